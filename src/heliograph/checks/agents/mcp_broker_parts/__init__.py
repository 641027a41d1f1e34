"""What the check of the broker measures, one module an experiment."""
