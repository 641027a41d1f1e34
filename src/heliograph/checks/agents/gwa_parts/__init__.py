"""What the check of gwa measures, one module an experiment."""
