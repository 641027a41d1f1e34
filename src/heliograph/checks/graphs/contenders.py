"""The arms of the graph checks: networks of equal parameters that take the same tensors, and untrained probes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from heliograph.graphs.core.blocks import GatedGCNMixer, GCNMixer, NodeBlock
from heliograph.graphs.core.message_passing import (
    GraphIsomorphismNetwork,
    InputEncoder,
    LevelReadout,
    LevelStates,
    MaxMessagePassing,
    count_parameters,
    match_width,
)
from heliograph.graphs.floydnet.algorithms import FloydReasoner, TaskBatch, TaskModel

__all__ = ["GinProbe", "SparseStack", "build_model", "model_names"]

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


class SparseStack(nn.Module):
    """Layers on the edge list with the inputs and outputs of the dense networks, so that all take the same tasks.

    Args:
        vertex_channels, edge_channels, graph_channels: of the inputs; the first edge channel is the adjacency.
        dim, depth: channels and layers.
        conv: "gcn", "gatedgcn" or "gps" (PyG's ``GPSConv``: GINE beside attention over the whole graph).
        plus: with edge features, batch norm, residual and feed-forward part, as in GNN+ (without its walk encoding).
    """

    def __init__(
        self,
        vertex_channels: int,
        edge_channels: int,
        graph_channels: int,
        dim: int,
        depth: int = 6,
        conv: str = "gcn",
        plus: bool = True,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.encode = InputEncoder(vertex_channels, edge_channels, graph_channels, dim)
        self.layers = nn.ModuleList(self._layer(dim, plus) for _ in range(depth))
        self.read = LevelReadout(dim)

    def _layer(self, dim: int, plus: bool) -> nn.Module:
        if self.conv == "gps":
            from torch_geometric.nn import GINEConv, GPSConv

            mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
            layer: nn.Module = GPSConv(dim, GINEConv(mlp), heads=2)
            return layer
        mixer = GCNMixer(dim, plus) if self.conv == "gcn" else GatedGCNMixer(dim, plus)
        return NodeBlock(mixer, dim, "batch" if plus else None, 0.0, plus, plus, plus)

    def forward(self, vertex_BNV: Tensor, edge_BNNE: Tensor, graph_BG: Tensor, mask_BN: Tensor) -> LevelStates:
        """mask_BN: True on real vertices, bool."""
        vertex_BNC, edge_BNNC, graph_BC = self.encode(vertex_BNV, edge_BNNE, graph_BG)
        place_BN = (mask_BN.reshape(-1).cumsum(0) - 1).reshape(mask_BN.shape)
        linked = (edge_BNNE[..., 0] != 0) & mask_BN[:, :, None] & mask_BN[:, None, :]
        number, tails, heads = linked.nonzero(as_tuple=True)
        edge_index = torch.stack([place_BN[number, tails], place_BN[number, heads]])
        edge = edge_BNNC[number, tails, heads]
        x, batch = (vertex_BNC + graph_BC[:, None])[mask_BN], mask_BN.nonzero()[:, 0]
        for layer in self.layers:
            if self.conv == "gps":
                x = layer(x, edge_index, batch, edge_attr=edge)
            else:
                x, edge = layer(x, edge_index, edge)
        hidden_BNC = torch.zeros_like(vertex_BNC).masked_scatter(mask_BN.unsqueeze(-1), x)
        states: LevelStates = self.read(hidden_BNC, edge_BNNC, mask_BN)
        return states


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


def _stack(conv: str, plus: bool) -> Callable[[Channels, int, int], nn.Module]:
    return lambda channels, width, depth: SparseStack(*channels, dim=width, depth=depth, conv=conv, plus=plus)


_BUILDERS: dict[str, Callable[[Channels, int, int], nn.Module]] = {
    "floydnet": _floydnet,
    "mpnn": _mpnn,
    "gin": _gin,
    "gnn_plus": _stack("gatedgcn", plus=True),
    "gatedgcn": _stack("gatedgcn", plus=False),
    "gcn": _stack("gcn", plus=False),
    "gps": _stack("gps", plus=False),
}
_EVEN = ("floydnet", "gps")  # their heads must divide the width


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
        width = match_width(build, parameters, TOLERANCE, multiple=2 if name in _EVEN else 1)
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
