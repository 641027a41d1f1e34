"""The engine of the family ``lm``: what its systems and other families share."""
