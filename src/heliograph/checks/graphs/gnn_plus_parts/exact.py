"""Exactness first: layers against PyG and their equations, encodings against float64, answers alone and in a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from heliograph.graphs.core.blocks import GatedGCNMixer, GCNMixer, GINMixer
from heliograph.graphs.core.encodings import RWSE
from heliograph.graphs.gnn_plus import SWITCHES, GNNPlus
from heliograph.trials.check import Context

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["measure"]

C, K = 8, 6
TOLERANCE = 1e-9


def measure(context: Context) -> Mapping[str, Any]:
    """``equal``: each exact statement by graph; ``notices``: what must be told apart, is."""
    from torch_geometric.data import Batch

    random = np.random.default_rng(context.seed)
    torch.manual_seed(context.seed)
    graphs = [_graph(random, int(random.integers(1, 12))) for _ in range(context.workload["graphs"])]
    equal = [statement for graph in graphs for statement in _statements(graph)]
    models = [_model(conv).double().eval() for conv in ("gcn", "gin", "gatedgcn")]
    for model in models:
        alone = torch.cat([model(graph) for graph in graphs])
        equal += [_same(model(Batch.from_data_list(graphs)), alone)]
        equal += [_same(model(Batch.from_data_list(graphs[::-1])), alone.flip(0))]
    return {"equal": equal, "notices": _noticed(graphs)}


def _statements(graph: Data) -> list[bool]:
    from torch_geometric.nn import GCNConv, GINEConv

    x, edge = torch.randn(graph.num_nodes, C).double(), torch.randn(graph.num_edges, C).double()
    gcn, gin, gated = GCNMixer(C).double(), GINMixer(C, True).double(), GatedGCNMixer(C).double()
    nn.init.normal_(gcn.bias)
    their_gcn, their_gin = GCNConv(C, C).double(), GINEConv(gin.mlp).double()
    their_gcn.lin.weight, their_gcn.bias = gcn.linear.weight, gcn.bias
    return [
        _same(gcn(x, graph.edge_index), their_gcn(x, graph.edge_index)),
        _same(gin(x, graph.edge_index, edge), their_gin(x, graph.edge_index, edge)),
        _same(gated(x, graph.edge_index), _gated(gated, x, graph.edge_index)),
        bool(np.abs(RWSE(K)(graph).rwse.numpy() - _walks(graph)).max(initial=0) < 1e-6),
    ]


def _gated(layer: GatedGCNMixer, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
    """The equation, edge by edge; the numerator by PyG's ``ResGatedGraphConv``, which does not divide."""
    from torch_geometric.nn import ResGatedGraphConv

    theirs = ResGatedGraphConv(C, C, bias=False, root_weight=False).double()
    for own, other in (
        (theirs.lin_key, layer.gate_target),
        (theirs.lin_query, layer.gate_source),
        (theirs.lin_value, layer.sent),
    ):
        own.weight, own.bias = other.weight, other.bias
    below = torch.zeros_like(x)
    for u, v in edge_index.t().tolist():
        below[v] += torch.sigmoid(layer.gate_target(x[v]) + layer.gate_source(x[u]))
    mixed: torch.Tensor = layer.own(x) + theirs(x, edge_index) / (below + 1e-6)
    return mixed


def _walks(graph: Data) -> np.ndarray[Any, Any]:
    adjacency = np.zeros((graph.num_nodes, graph.num_nodes))
    np.add.at(adjacency, tuple(graph.edge_index.numpy()), 1.0)
    degree = adjacency.sum(1, keepdims=True)
    walk = np.divide(adjacency, degree, out=np.zeros_like(adjacency), where=degree > 0)
    return np.stack([np.diagonal(np.linalg.matrix_power(walk, k)) for k in range(1, K + 1)], axis=1)


def _noticed(graphs: list[Data]) -> list[bool]:
    """Another edge label, and each of the six switches, must change the answer (in training mode for dropout)."""
    torch.manual_seed(0)
    graph = max(graphs, key=lambda g: g.num_edges)
    other = graph.clone()
    other.edge_attr = (graph.edge_attr + 1) % 3
    model = _model("gcn").double().eval()
    answers = [not _same(model.encode(graph), model.encode(other))]
    for switch in SWITCHES:
        without = model.ablate(switch).double()
        without.load_state_dict(model.state_dict(), strict=False) if switch != "pe" else None
        model.train(switch == "dropout")
        without.train(switch == "dropout")
        with torch.random.fork_rng(devices=[]):
            answers.append(not _same(model.encode(graph), without.encode(graph)))
    return answers


def _model(conv: str) -> GNNPlus:
    return GNNPlus(2, node_types=4, edge_types=3, conv=conv, layers=2, hidden=C, dropout=0.5, pe=RWSE(K, dim=3))  # type: ignore[arg-type]


def _graph(random: np.random.Generator, size: int) -> Data:
    """Self-loops, parallel and one-way edges and isolated vertices included."""
    from torch_geometric.data import Data

    edges = torch.from_numpy(random.integers(size, size=(2, int(random.integers(0, 3 * size)))))
    return Data(
        x=torch.from_numpy(random.integers(4, size=size)),
        edge_index=edges,
        edge_attr=torch.from_numpy(random.integers(3, size=edges.shape[1])),
    )


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and bool(torch.allclose(first, second, atol=TOLERANCE, rtol=1e-7))
