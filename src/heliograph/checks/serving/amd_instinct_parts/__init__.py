"""How each part of the check of the serving advisor and its load benchmark is measured."""
