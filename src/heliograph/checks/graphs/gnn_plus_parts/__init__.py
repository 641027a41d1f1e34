"""How each part of the check of GNN+ is measured."""
