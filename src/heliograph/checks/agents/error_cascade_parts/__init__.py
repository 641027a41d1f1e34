"""Parts of the check of error_cascade."""
