"""How the parts of the pre-decoder's check are measured."""
