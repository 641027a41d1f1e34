"""Graphs: vertices (and pairs of vertices) exchange features; one engine, and the published systems on it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from heliograph.errors import MissingExtra

if TYPE_CHECKING:
    from heliograph.graphs.floydnet import (
        DiffusionTour,
        FloydNet,
        PivotalAttentionBlock,
        pivotal_attention,
        pivotal_attention3,
        wl_distinguishes,
    )

__all__ = [
    "DiffusionTour",
    "FloydNet",
    "PivotalAttentionBlock",
    "pivotal_attention",
    "pivotal_attention3",
    "wl_distinguishes",
]

_HOME = dict.fromkeys(__all__, "heliograph.graphs.floydnet")


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
