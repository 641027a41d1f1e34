"""Measurements of the KVServe check."""
