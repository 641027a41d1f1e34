"""Exactness first: both back ends against the equations, walks against powers, answers alone against a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from heliograph.graphs.core.encodings import RRWP
from heliograph.graphs.core.support import complete_support
from heliograph.graphs.grit import GRIT, GRITLayer
from heliograph.graphs.grit.pairs import PairLayout
from heliograph.trials.check import Context

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["measure"]

C, H, K = 8, 2, 5
SHIFT = 1e-6  # under the root, so that its slope at 0 is finite
TOLERANCE = 1e-9
BACKENDS = ("dense", "edges")


def measure(context: Context) -> Mapping[str, Any]:
    """``equal``: each exact statement; ``notices``: what must be told apart, is."""
    random = np.random.default_rng(context.seed)
    torch.manual_seed(context.seed)
    equal: list[bool] = []
    for _ in range(context.workload["batches"]):
        equal += _layer_statements([int(random.integers(1, 8)) for _ in range(int(random.integers(1, 5)))])
    graphs = [_graph(random, int(random.integers(1, 10))) for _ in range(context.workload["graphs"])]
    equal += [_walks_agree(graph) for graph in graphs]
    for options in ({}, {"positions": "rwse"}, {"pair_outputs": True}):
        equal += _model_statements(_model(**options), graphs)
    return {"equal": equal, "notices": _noticed(graphs)}


def _layer_statements(sizes: Sequence[int]) -> list[bool]:
    """Values and gradients of a layer in training on graphs of these sizes, by both back ends and by the equations."""
    layer = GRITLayer(C, H).double()
    batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    support = complete_support(len(batch), batch)
    x = torch.randn(len(batch), C, dtype=torch.float64, requires_grad=True)
    e = torch.randn(support.num_edges, C, dtype=torch.float64, requires_grad=True)
    log_degree = torch.rand(len(batch), 1, dtype=torch.float64)
    inputs = (x, e, *layer.parameters())

    def values_and_slopes(found: tuple[Tensor, Tensor]) -> list[Tensor]:
        total = found[0].square().sum() + found[1].pow(3).sum()
        return [*found, *torch.autograd.grad(total, inputs)]

    expected = values_and_slopes(_equations(layer, x, e, sizes, log_degree))
    statements = []
    for backend in BACKENDS:
        layout = PairLayout.of(support, backend, hidden=C)  # type: ignore[arg-type]
        found = values_and_slopes(layer.exchange(x, e, layout, log_degree)[:2])
        statements.append(all(_same(first, second) for first, second in zip(found, expected, strict=True)))
    return statements


def _equations(
    layer: GRITLayer, x: Tensor, e: Tensor, sizes: Sequence[int], log_degree: Tensor
) -> tuple[Tensor, Tensor]:
    """The layer's equations as they stand: one head of one pair at a time."""
    dim = C // H
    assert layer.degree is not None
    assert layer.pair_out is not None
    query, key, value, scale_and_shift = layer.query(x), layer.key(x), layer.value(x), layer.pair(e)
    mixed, states = [], []
    first_vertex = first_pair = 0
    for size in sizes:
        for i in range(first_vertex, first_vertex + size):
            heads, own_states = [], [[] for _ in range(size)]  # type: ignore[var-annotated]
            for h in range(H):
                part = slice(h * dim, (h + 1) * dim)
                scores, heard = [], []
                for place, j in enumerate(range(first_vertex, first_vertex + size)):
                    row = scale_and_shift[first_pair + (i - first_vertex) * size + place]
                    w, b = row[2 * h * dim : (2 * h + 1) * dim], row[(2 * h + 1) * dim : (2 * h + 2) * dim]
                    z = (query[i, part] + key[j, part]) * w
                    root = torch.sign(z) * ((z.abs() + SHIFT).sqrt() - SHIFT**0.5)
                    t = torch.clamp(root + b, min=0)
                    scores.append(torch.clamp(layer.score.weight[h] @ t, -5, 5))
                    heard.append(value[j, part] + t @ layer.pair_value[:, h])
                    own_states[place].append(t)
                share = torch.stack(scores).exp()
                share = share / share.sum()
                heads.append((share.unsqueeze(-1) * torch.stack(heard)).sum(0))
            y = torch.cat(heads)
            mixed.append(y * layer.degree[0, :, 0] + log_degree[i] * y * layer.degree[0, :, 1])
            states += [torch.cat(parts) for parts in own_states]
        first_vertex, first_pair = first_vertex + size, first_pair + size * size
    x = _normed(layer.norm, x + layer.out(torch.stack(mixed)))
    return (
        _normed(layer.feed_forward_norm, x + layer.feed_forward(x)),
        _normed(layer.pair_norm, e + layer.pair_out(torch.stack(states))),
    )


def _normed(norm: Any, rows: Tensor) -> Tensor:
    """Batch norm in training; with running statistics, 0 and 1 in a new layer, where there is one row only."""
    if len(rows) < 2:
        return norm.weight * rows / (1 + norm.eps) ** 0.5 + norm.bias  # type: ignore[no-any-return]
    centred = rows - rows.mean(0)
    return norm.weight * centred / (centred.square().mean(0) + norm.eps).sqrt() + norm.bias  # type: ignore[no-any-return]


def _walks_agree(graph: Data) -> bool:
    """Row i * n + j of the encoding is the probability of walking from i to j, in float64 powers."""
    size = graph.num_nodes
    adjacency = np.zeros((size, size))
    np.add.at(adjacency, tuple(graph.edge_index.numpy()), 1.0)
    degree = adjacency.sum(1, keepdims=True)
    walk = np.divide(adjacency, degree, out=np.zeros_like(adjacency), where=degree > 0)
    powers = np.stack([np.linalg.matrix_power(walk, k) for k in range(K)], axis=-1)
    found = RRWP(K)(graph).rrwp.numpy().reshape(size, size, K)
    return bool(np.abs(found - powers).max() < 1e-6)


@torch.no_grad()
def _model_statements(model: GRIT, graphs: Sequence[Data]) -> list[bool]:
    from torch_geometric.data import Batch

    graphs = [model.encoding(graph) for graph in graphs]  # once, so that both see the same roundings of the walks
    alone = torch.cat([model(graph) for graph in graphs])
    statements = []
    for backend in BACKENDS:
        model.backend = backend  # type: ignore[assignment]
        statements.append(_same(model(Batch.from_data_list(graphs)), alone))
        statements.append(_same(model(Batch.from_data_list(graphs[::-1])), alone.flip(0)))
    return statements


@torch.no_grad()
def _noticed(graphs: Sequence[Data]) -> list[bool]:
    """What GRIT adds to a transformer must change its answer: each part left out, and each input changed."""
    graph = RRWP(K)(max(graphs, key=lambda g: g.num_edges))
    size = graph.num_nodes
    model = _model()
    expected = model.encode(graph)
    other, turned = graph.clone(), graph.clone()
    other.edge_attr = (graph.edge_attr + 1) % 3
    turned.rrwp = graph.rrwp.unflatten(0, (size, size)).transpose(0, 1).flatten(0, 1)
    answers = [not _same(model.encode(changed), expected) for changed in (other, turned)]
    for options in ({"positions": "rwse"}, {"update_pairs": False}, {"degree_scaler": False}):
        without = _model(**options)
        without.load_state_dict(model.state_dict(), strict=False) if "positions" not in options else None
        answers.append(not _same(without.encode(graph), expected))
    return answers


def _model(**options: Any) -> GRIT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GRIT(2, node_types=4, edge_types=3, hidden=C, layers=2, heads=H, walk_steps=K, **options)
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm1d)):  # as if it had been trained
            norm.running_mean.normal_()  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
        return model.double().eval()


def _graph(random: np.random.Generator, size: int) -> Data:
    """Self-loops, parallel and one-way edges and isolated vertices included."""
    from torch_geometric.data import Data

    edges = torch.from_numpy(random.integers(size, size=(2, int(random.integers(0, 3 * size)))))
    return Data(
        x=torch.from_numpy(random.integers(4, size=size)),
        edge_index=edges,
        edge_attr=torch.from_numpy(random.integers(3, size=edges.shape[1])),
    )


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and bool(torch.allclose(first, second, atol=TOLERANCE, rtol=1e-7))
