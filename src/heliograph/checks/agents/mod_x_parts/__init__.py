"""Parts of the check of mod_x."""
