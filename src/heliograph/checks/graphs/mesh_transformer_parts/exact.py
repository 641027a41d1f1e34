"""Exactness first: attention against PyG and dense masks, supports against searches, roll-outs bit by bit."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from heliograph.data.mesh import INFLOW, NORMAL, OUTFLOW, WALL, MeshTrajectory, mesh_trajectory
from heliograph.graphs.core.attend import attend
from heliograph.graphs.core.support import Support
from heliograph.graphs.mesh_transformer import MeshSimulator, MeshTransformer
from heliograph.graphs.mesh_transformer.supports import adjacency, dilated, edge_set, global_nodes, khop, random_edges
from heliograph.trials.check import Context

__all__ = ["measure"]

H, K = 2, 4
TOLERANCE, TOLERANCE_32 = 1e-9, 1e-4


def measure(context: Context) -> Mapping[str, Any]:
    """``attention``, ``supports`` and ``rollout``: exact statements; ``notices``: what must make a difference, does."""
    random = np.random.default_rng(context.seed)
    torch.manual_seed(context.seed)
    attention, supports = [], []
    for number in range(context.workload["graphs"]):
        size = int(random.integers(1, 12))
        edges = torch.from_numpy(random.integers(size, size=(2, int(random.integers(0, 3 * size)))))
        attention += _attention(edge_set(edges, size), context.device)
        supports += _supports(edges, size, number)
        context.progress(number / context.workload["graphs"])
    rollout, notices = [], []
    for _ in range(context.workload["flows"]):
        flow = make_flow(random)
        rollout += _rollout(flow)
        notices += _notices(flow)
    return {"attention": attention, "supports": supports, "rollout": rollout, "notices": notices}


def make_flow(random: np.random.Generator, frames: int = 6) -> MeshTrajectory:
    """Random fields on a grid of triangles with every kind of boundary."""
    wide, high = int(random.integers(3, 6)), int(random.integers(3, 5))
    column, row = (axis.ravel() for axis in np.meshgrid(np.arange(wide), np.arange(high)))
    corner = (row * wide + column)[(column < wide - 1) & (row < high - 1)]
    cells = np.concatenate(
        [np.stack([corner, corner + 1, corner + wide + 1], 1), np.stack([corner, corner + wide + 1, corner + wide], 1)]
    )
    kind = np.where((row == 0) | (row == high - 1), WALL, NORMAL)
    kind = np.where((kind == NORMAL) & (column == 0), INFLOW, kind)
    kind = np.where((kind == NORMAL) & (column == wide - 1), OUTFLOW, kind)
    pos = np.stack([column, row], axis=1) + random.uniform(-0.2, 0.2, size=(wide * high, 2))
    return mesh_trajectory(pos, cells, random.normal(size=(frames, wide * high, 2)), kind)


def _attention(support: Support, device: str) -> list[bool]:
    q, k, v = (torch.randn(support.num_vertices, H, K, dtype=torch.float64, requires_grad=True) for _ in range(3))
    truth, slopes = _with_slopes(_by_mask(support, q, k, v), q, k, v)
    found = []
    backends: tuple[Literal["edges", "dense"], ...] = ("edges", "dense")
    for backend in backends:
        out, grads = _with_slopes(attend(support, q, k, v, backend=backend), q, k, v)
        found += [_near(a, b) for a, b in zip((out, *grads), (truth, *slopes), strict=True)]
    from torch_geometric.nn import TransformerConv  # takes seconds to import, and no other part of the check needs it

    conv = TransformerConv(H * K, K, heads=H, root_weight=False).double()
    flat = torch.randn(support.num_vertices, H * K, dtype=torch.float64)
    queries, keys, values = (layer(flat).reshape(-1, H, K) for layer in (conv.lin_query, conv.lin_key, conv.lin_value))
    theirs = conv(flat, torch.stack([support.source, support.target]))
    found.append(_near(attend(support, queries, keys, values).flatten(1), theirs))
    if device == "cuda":  # the kernel computes in float32
        there = support.to(device)
        near_q, near_k, near_v = (x.detach().float().to(device).requires_grad_() for x in (q, k, v))
        heard = attend(there, near_q, near_k, near_v, backend="csr")
        out, grads = _with_slopes(heard, near_q, near_k, near_v)
        found += [
            _near(a.double().cpu(), b, TOLERANCE_32) for a, b in zip((out, *grads), (truth, *slopes), strict=True)
        ]
    return found


def _by_mask(support: Support, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The equation, over all pairs; rows without a source give 0."""
    size = support.num_vertices
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[support.target, support.source] = True
    logits = torch.einsum("ihk,jhk->ijh", q, k) / K**0.5
    raised = torch.where(mask.unsqueeze(-1), logits.exp(), 0.0)
    total = raised.sum(1, keepdim=True)
    return torch.einsum("ijh,jhk->ihk", raised / torch.where(total > 0, total, 1.0), v)


def _with_slopes(out: Tensor, *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    weight = torch.linspace(-1, 1, max(1, out.numel()), device=out.device, dtype=out.dtype)[: out.numel()]
    return out, torch.autograd.grad((out.flatten() * weight).sum(), inputs)


def _supports(edges: Tensor, size: int, seed: int) -> list[bool]:
    graph = nx.Graph()
    graph.add_nodes_from(range(size))
    graph.add_edges_from(edges.t().tolist())
    far = dict(nx.all_pairs_shortest_path_length(graph))
    pos = torch.rand(size, 2)

    def within(hops: set[int]) -> set[tuple[int, int]]:
        return {(u, v) for u in range(size) for v, d in far[u].items() if d in hops}

    def pairs(recipe: Any) -> set[tuple[int, int]]:
        made = recipe.build(edges, size, pos, seed=seed)
        found = list(zip(made.source.tolist(), made.target.tolist(), strict=True))
        sane = len(set(found)) == len(found) and all(u != v and (v, u) in set(found) for u, v in found)
        return set(found) if sane else {(-1, -1)}

    mesh = within({1})
    shells, drawn, hubs = pairs(dilated(5, 2, 2)), pairs(random_edges(0.5)), pairs(global_nodes(2))
    busy = [sum(1 for _, v in shells - mesh if v == vertex) for vertex in range(size)]
    return [
        pairs(adjacency()) == mesh,
        pairs(khop(3)) == within({1, 2, 3}),
        pairs(dilated(5, 2, size)) == within({1, 3, 5}),
        mesh <= shells <= within({1, 3, 5}) and max(busy) <= 4,
        mesh <= drawn and len(drawn) <= 1.5 * len(mesh) + 1,
        drawn == pairs(random_edges(0.5)),
        mesh <= hubs and sum(all((u, v) in hubs for v in range(size) if v != u) for u in range(size)) >= min(2, size),
    ]


def _rollout(flow: MeshTrajectory) -> list[bool]:
    simulator = _simulator(flow)
    simulator.fit([flow], steps=4, batch=2)
    before = {name: value.clone() for name, value in simulator.state_dict().items()}
    first, second = simulator.rollout(flow), simulator.rollout(flow)
    held = ~np.isin(flow.node_type, (NORMAL, OUTFLOW))
    truth = torch.from_numpy(flow.fields[2:])
    with tempfile.TemporaryDirectory() as folder:
        simulator.save(Path(folder) / "kept")
        again = MeshSimulator.load(Path(folder) / "kept").rollout(flow)
    one = simulator.one_step(flow)
    return [
        torch.equal(first[:, held], truth[:, held]),
        torch.equal(first, second),
        torch.equal(first, again),
        _near(one[0], first[0], 1e-5),
        all(torch.equal(value, before[name]) for name, value in simulator.state_dict().items()),
    ]


def _notices(flow: MeshTrajectory) -> list[bool]:
    """A neighbour is heard and a vertex out of reach is not; predicted vertices move; noise spares the boundary."""
    model = MeshTransformer(3, 1, hidden=8, layers=1, heads=2).double()
    support = adjacency().build(torch.from_numpy(flow.edge_index), flow.num_vertices)
    x = torch.randn(flow.num_vertices, 3, dtype=torch.float64, requires_grad=True)
    vertex = flow.num_vertices - 1
    (slope,) = torch.autograd.grad(model(x, support=support)[vertex].sum(), x)
    heard = {vertex, *support.source[support.target == vertex].tolist()}
    felt = set(slope.abs().sum(1).nonzero().squeeze(1).tolist())
    simulator = _simulator(flow)
    simulator.fit([flow], steps=2)
    free = np.isin(flow.node_type, (NORMAL, OUTFLOW))
    moved = (simulator.rollout(flow)[:, free] != torch.from_numpy(flow.fields[2:])[:, free]).any()
    return [felt == heard, len(felt) < flow.num_vertices, bool(moved)]


def _simulator(flow: MeshTrajectory) -> MeshSimulator:
    model = MeshTransformer(flow.schema.input_width(history=True), 2, hidden=8, layers=2, heads=2)
    return MeshSimulator(model, flow.schema, noise_std=0.1, history=True, support=khop(2) | global_nodes(2))


def _near(first: Tensor, second: Tensor, tolerance: float = TOLERANCE) -> bool:
    return first.shape == second.shape and bool(torch.allclose(first, second, atol=tolerance, rtol=tolerance))
