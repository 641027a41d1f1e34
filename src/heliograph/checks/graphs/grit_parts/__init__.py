"""How each part of the check of GRIT is measured."""
