"""Measurements of the P/D-Serve check."""
