"""Checks of the serving family."""
