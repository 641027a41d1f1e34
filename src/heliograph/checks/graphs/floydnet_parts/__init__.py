"""How the parts of FloydNet's check are measured."""
