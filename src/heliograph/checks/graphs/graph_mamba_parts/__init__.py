"""How each part of the check of Graph Mamba is measured."""
