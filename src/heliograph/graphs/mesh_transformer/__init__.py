"""Transformers for simulation meshes: vertices exchange features by attention along the mesh (arXiv:2508.18051).

``model`` holds the transformer, ``mesh_graph_net`` the message-passing reference, ``supports`` recipes for who hears
whom, ``simulator`` a model with normalisers, ``training`` its training, ``rollout`` what it predicts and how well,
``persistence`` its files.
"""

from __future__ import annotations

from heliograph.graphs.mesh_transformer import supports
from heliograph.graphs.mesh_transformer.mesh_graph_net import MeshGraphNet
from heliograph.graphs.mesh_transformer.model import MeshTransformer
from heliograph.graphs.mesh_transformer.rollout import MeshScore, RolloutDivergence
from heliograph.graphs.mesh_transformer.simulator import MeshSimulator
from heliograph.graphs.mesh_transformer.supports import MeshSupport
from heliograph.graphs.mesh_transformer.training import FitReport

__all__ = [
    "FitReport",
    "MeshGraphNet",
    "MeshScore",
    "MeshSimulator",
    "MeshSupport",
    "MeshTransformer",
    "RolloutDivergence",
    "supports",
]
