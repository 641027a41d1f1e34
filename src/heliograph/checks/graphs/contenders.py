"""The arms of the graph checks: networks of equal parameters that take the same tensors, and untrained probes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from heliograph.graphs.core.message_passing import (
    GraphIsomorphismNetwork,
    LevelStates,
    MaxMessagePassing,
    count_parameters,
    match_width,
)
from heliograph.graphs.floydnet.algorithms import FloydReasoner, TaskBatch, TaskModel

__all__ = ["GinProbe", "build_model", "model_names"]

TOLERANCE = 0.05
Channels = tuple[int, int, int]
"""Input channels of a vertex, an ordered pair and the graph."""


class GinProbe(nn.Module):
    """An untrained message-passing network in float64: sees no more than colour refinement (1-WL) does."""

    def __init__(self, dim: int = 32, depth: int = 6, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = GraphIsomorphismNetwork(0, 1, 0, dim, depth).double().eval()

    def fingerprint(self, adj: Tensor) -> Tensor:
        """The sum of vertex states, [B, C]; adj [B, N, N]."""
        batch, size = adj.shape[:2]
        vertex = torch.zeros((batch, size, 0), dtype=torch.float64)
        mask = torch.ones((batch, size), dtype=torch.bool)
        graph = torch.zeros((batch, 0), dtype=torch.float64)
        states: LevelStates = self.network(vertex, adj.double().unsqueeze(-1), graph, mask)
        return states.graph


def model_names() -> tuple[str, ...]:
    """Networks that :func:`build_model` knows."""
    return tuple(_BUILDERS)


def _floydnet(channels: Channels, width: int, depth: int) -> nn.Module:
    heads = 2 if width % 2 == 0 else 1
    return FloydReasoner(*channels, dim=width, heads=heads, depth=depth)


def _mpnn(channels: Channels, width: int, _: int) -> nn.Module:
    return MaxMessagePassing(*channels, dim=width)


def _gin(channels: Channels, width: int, depth: int) -> nn.Module:
    return GraphIsomorphismNetwork(*channels, dim=width, depth=depth)


_BUILDERS: dict[str, Callable[[Channels, int, int], nn.Module]] = {
    "floydnet": _floydnet,
    "mpnn": _mpnn,
    "gin": _gin,
}


def build_model(
    name: str, batch: TaskBatch, width: int, depth: int, seed: int, parameters: int | None = None
) -> TaskModel:
    """A network with heads for the batch's targets.

    Args:
        name: of :func:`model_names`.
        batch: any batch of the task.
        width: channels, where ``parameters`` is ``None``.
        depth: layers (the message-passing network takes as many rounds as there are vertices).
        seed: of the initial weights.
        parameters: if given, the width is chosen to match this many within 5 %.
    """

    def build(dim: int) -> TaskModel:
        return TaskModel(_BUILDERS[name](batch.channels, dim, depth), dim, batch.targets)

    if parameters is not None:
        width = match_width(build, parameters, TOLERANCE, multiple=2 if name == "floydnet" else 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(width)


def reference_parameters(batch: TaskBatch, width: int, depth: int) -> int:
    """Parameters of the FloydNet that the others are matched to."""
    with torch.device("meta"):
        return count_parameters(TaskModel(_floydnet(batch.channels, width, depth), width, batch.targets))


def thin(history: Sequence[float], points: int = 60) -> list[list[float]]:
    """A learning curve with at most ``points`` points, each the mean of its stretch."""
    stride = max(1, math.ceil(len(history) / points))
    return [
        [start + len(part) / 2, sum(part) / len(part)]
        for start in range(0, len(history), stride)
        if (part := history[start : start + stride])
    ]
