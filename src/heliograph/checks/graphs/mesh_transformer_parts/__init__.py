"""What the check of the mesh transformer measures, part by part."""
