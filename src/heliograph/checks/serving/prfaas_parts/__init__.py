"""Measurements of the Prefill-as-a-Service check."""
