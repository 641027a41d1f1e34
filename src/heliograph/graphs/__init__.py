"""Graphs: vertices (and pairs of vertices) exchange features; one engine, and the published systems on it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from heliograph.errors import MissingExtra

if TYPE_CHECKING:
    from heliograph.graphs.core.encodings import RRWP, RWSE
    from heliograph.graphs.core.equivariant import EquivariantLinear
    from heliograph.graphs.core.train import FittedModel, evaluate, fit, load_model, predict
    from heliograph.graphs.floydnet import (
        DiffusionTour,
        FloydNet,
        PivotalAttentionBlock,
        pivotal_attention,
        pivotal_attention3,
        wl_distinguishes,
    )
    from heliograph.graphs.gnn_plus import GNNPlus
    from heliograph.graphs.graph_mamba import GraphMamba, WalkTokens
    from heliograph.graphs.grit import GRIT, GRITLayer
    from heliograph.graphs.mesh_transformer import MeshGraphNet, MeshSimulator, MeshTransformer
    from heliograph.graphs.surface_predecoder import (
        PreDecoder,
        SurfaceMemory,
        canonicalize_spacelike,
        canonicalize_timelike,
        detectors_to_grid,
        grid_to_detectors,
        learn_edge_weights,
    )

__all__ = [
    "GRIT",
    "RRWP",
    "RWSE",
    "DiffusionTour",
    "EquivariantLinear",
    "FittedModel",
    "FloydNet",
    "GNNPlus",
    "GRITLayer",
    "GraphMamba",
    "MeshGraphNet",
    "MeshSimulator",
    "MeshTransformer",
    "PivotalAttentionBlock",
    "PreDecoder",
    "SurfaceMemory",
    "WalkTokens",
    "canonicalize_spacelike",
    "canonicalize_timelike",
    "detectors_to_grid",
    "evaluate",
    "fit",
    "grid_to_detectors",
    "learn_edge_weights",
    "load_model",
    "pivotal_attention",
    "pivotal_attention3",
    "predict",
    "wl_distinguishes",
]

_HOME = {
    **dict.fromkeys(__all__, "heliograph.graphs.floydnet"),
    **dict.fromkeys(("RRWP", "RWSE"), "heliograph.graphs.core.encodings"),
    **dict.fromkeys(("FittedModel", "evaluate", "fit", "load_model", "predict"), "heliograph.graphs.core.train"),
    "EquivariantLinear": "heliograph.graphs.core.equivariant",
    "GNNPlus": "heliograph.graphs.gnn_plus",
    **dict.fromkeys(("GRIT", "GRITLayer"), "heliograph.graphs.grit"),
    **dict.fromkeys(("MeshGraphNet", "MeshSimulator", "MeshTransformer"), "heliograph.graphs.mesh_transformer"),
    **dict.fromkeys(("GraphMamba", "WalkTokens"), "heliograph.graphs.graph_mamba"),
    **dict.fromkeys(
        (
            "PreDecoder",
            "SurfaceMemory",
            "canonicalize_spacelike",
            "canonicalize_timelike",
            "detectors_to_grid",
            "grid_to_detectors",
            "learn_edge_weights",
        ),
        "heliograph.graphs.surface_predecoder",
    ),
}


def __getattr__(name: str) -> Any:
    """Imports a public name's module at its first use, so that importing this package costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(_HOME[name])
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == "torch":
            raise MissingExtra("torch", "graphs") from error
        raise
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
