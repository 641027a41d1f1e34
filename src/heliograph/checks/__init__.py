"""What decides each claim: one file a system, grouped by family."""
