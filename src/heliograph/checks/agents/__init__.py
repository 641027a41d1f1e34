"""Checks of the agents family."""
