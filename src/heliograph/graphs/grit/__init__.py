"""GRIT: all vertex pairs of a graph exchange features, with no message passing beside it (arXiv:2305.17589)."""

from heliograph.graphs.grit.layer import GRITLayer
from heliograph.graphs.grit.model import GRIT, GRITConfig

__all__ = ["GRIT", "GRITConfig", "GRITLayer"]
