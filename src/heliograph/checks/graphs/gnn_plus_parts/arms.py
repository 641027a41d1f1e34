"""The arms of the check: classic networks, the same with the six techniques, and GPS, at equal parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from heliograph.graphs.core.baselines import GPS
from heliograph.graphs.core.encodings import RWSE
from heliograph.graphs.core.message_passing import count_parameters, match_width
from heliograph.graphs.core.tasks import GraphTask
from heliograph.graphs.gnn_plus import GNNPlus

__all__ = ["build_arm", "encoding_of"]

TOLERANCE = 0.05
CONVS = ("gcn", "gin", "gatedgcn")


def encoding_of(load: Any) -> RWSE:
    """The encoding that all arms with an encoding use."""
    return RWSE(load["walk_steps"], dim=load["walk_dim"])


def build_arm(name: str, task: GraphTask, load: Any, seed: int, off: str = "") -> nn.Module:
    """An untrained arm.

    Args:
        name: "gcn", "gcn+" and the like, or "gps". All but the reference, "<conv>+", are widened or narrowed until they
            have its number of parameters within 5 %; "gps" takes "gcn+" for reference.
        task: what it is for.
        load: ``layers``, ``hidden``, ``walk_steps``, ``walk_dim`` and ``dropout``.
        seed: of the weights.
        off: one of the six techniques to leave out (at unchanged width).
    """
    conv = name.rstrip("+") if name != "gps" else "gcn"
    if conv not in CONVS:
        raise KeyError(name)
    pool = "sum" if task.name == "molecules.zinc" else "mean"
    pooling = pool if task.target.level == "graph" else None
    common: dict[str, Any] = {**task.inputs(), "layers": load["layers"], "pool": pooling}

    def plus(hidden: int) -> GNNPlus:
        return GNNPlus(**common, conv=conv, hidden=hidden, dropout=load["dropout"], pe=encoding_of(load))  # type: ignore[arg-type]

    def plain(hidden: int) -> nn.Module:
        return GNNPlus(
            **common, conv=conv, hidden=hidden, pe=None, ffn=False, residual=False, norm=None, edge_features=False  # type: ignore[arg-type]
        )  # fmt: skip

    def gps(hidden: int) -> nn.Module:
        return GPS(hidden=hidden, pe=encoding_of(load), **common)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name.endswith("+"):
            model = plus(load["hidden"])
            return model.ablate(off) if off else model
        build: Callable[[int], nn.Module] = gps if name == "gps" else plain
        with torch.device("meta"):
            parameters = count_parameters(plus(load["hidden"]))
        # below the encoding's width GPS cannot be built, so its search starts above it
        multiple = 2 if name == "gps" else 1
        least = load["walk_dim"] // multiple + 1 if name == "gps" else 1

        def sized(hidden: int) -> nn.Module:
            return build(max(hidden, least * multiple))

        width = match_width(sized, parameters, TOLERANCE, multiple=multiple, largest=1024)
        return sized(width)
