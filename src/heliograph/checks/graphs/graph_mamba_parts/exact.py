"""Exactness first: back ends of the scan against the loop, packed graphs against graphs alone, and who hears whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from heliograph.graphs.graph_mamba import GraphMamba
from heliograph.lm.core.scan import selective_scan
from heliograph.trials.check import Context

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["measure"]

TIGHT, LOOSE = 1e-9, 2e-4


def measure(context: Context) -> Mapping[str, Any]:
    """``equal``: back ends and packing, case by case; ``heard``: gradients that must be there; ``silent``: gradients
    that must be exactly 0, and differences that must be seen."""
    from torch_geometric.data import Batch

    random = np.random.default_rng(context.seed)
    torch.manual_seed(context.seed)
    equal: list[bool] = []
    for _ in range(context.workload["cases"]):
        equal += _scans(random, context.device)
    graphs = [_graph(random) for _ in range(context.workload["graphs"])]
    for encoder in ("walk", "mpnn", "set"):
        model = GraphMamba(2, node_types=4, hidden=8, walks=2, samples=2, state=4, encoder=encoder).double().eval()
        alone = torch.cat([model(graph) for graph in graphs])
        equal.append(_same(model(Batch.from_data_list(graphs)), alone, TIGHT))
    return {"equal": equal, "heard": _heard(bidirectional=True), "silent": _silent()}


def _scans(random: np.random.Generator, device: str) -> list[bool]:
    rows, steps, channels, state = (int(random.integers(1, most + 1)) for most in (3, 300, 4, 5))
    u, dt = torch.randn(rows, steps, channels).double(), torch.rand(rows, steps, channels).double()
    A = -torch.rand(channels, state).double()
    B, C = torch.randn(rows, steps, state).double(), torch.randn(rows, steps, state).double()
    reset = torch.rand(rows, steps) < 0.05
    values = (u, dt, A, B, C)
    found = []
    for reverse in (False, True):
        expected = _with_gradients(_scan("reference", reset, reverse), values)
        chunked = _with_gradients(_scan("chunked", reset, reverse), values)
        found.append(all(_same(a, b, TIGHT) for a, b in zip(chunked, expected, strict=True)))
        if device == "cuda":
            moved = [value.float().cuda() for value in values]
            there = _with_gradients(_scan("triton", reset.cuda(), reverse), moved)
            found.append(all(_same(a.cpu().double(), b, LOOSE) for a, b in zip(there, expected, strict=True)))
    flipped = [value.flip(1) for value in (u, dt, B, C)]
    back = selective_scan(flipped[0], flipped[1], A, flipped[2], flipped[3]).flip(1)
    found.append(_same(selective_scan(u, dt, A, B, C, reverse=True), back, TIGHT))
    return found


def _scan(backend: Any, reset: Tensor, reverse: bool) -> Callable[..., Tensor]:
    def call(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return selective_scan(u, dt, A, B, C, None, reset, reverse, backend)

    return call


def _with_gradients(call: Callable[..., Tensor], values: Any) -> list[Tensor]:
    values = [value.detach().requires_grad_() for value in values]
    y = call(*values)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
    return [y, *torch.autograd.grad((y * weights).sum(), values)]


def _heard(bidirectional: bool) -> list[bool]:
    """First from last, and last from first: whether any gradient is not exactly 0."""
    from torch_geometric.data import Data

    size = 12
    x = torch.randn(size, 2, dtype=torch.float64, requires_grad=True)
    model = GraphMamba(
        1, in_dim=2, hidden=8, m=0, mpnn=None, global_layers=1, bidirectional=bidirectional, order=_by_place
    ).double()
    answer = model.eval()(Data(x=x, edge_index=torch.zeros(2, 0, dtype=torch.long)))
    found = []
    for listener, speaker in ((0, size - 1), (size - 1, 0)):
        (gradient,) = torch.autograd.grad(answer[listener, 0], x, retain_graph=True)
        found.append(bool((gradient[speaker] != 0).any()))
    return found


def _silent() -> list[bool]:
    """Scanning forward only, the first vertex hears nothing of the last; without resets, packed sequences do meet."""
    first_hears, last_hears = _heard(bidirectional=False)
    u = torch.randn(1, 6, 2).double()
    dt, B = torch.rand_like(u), torch.randn(1, 6, 3).double()
    A = -torch.rand(2, 3).double()
    reset = torch.tensor([[True, False, False, True, False, False]])
    together, apart = selective_scan(u, dt, A, B, B), selective_scan(u, dt, A, B, B, reset_RK=reset)
    return [not first_hears, last_hears, not _same(together, apart, TIGHT)]


def _by_place(data: Any) -> Tensor:
    return torch.arange(int(data.num_nodes))


def _graph(random: np.random.Generator) -> Data:
    """Self-loops, parallel and one-way edges and isolated vertices included."""
    from torch_geometric.data import Data

    size = int(random.integers(1, 12))
    edges = torch.from_numpy(random.integers(size, size=(2, int(random.integers(0, 3 * size)))))
    return Data(x=torch.from_numpy(random.integers(4, size=size)), edge_index=edges)


def _same(first: Tensor, second: Tensor, tolerance: float) -> bool:
    scale = float(second.detach().abs().max()) if second.numel() else 1.0
    return first.shape == second.shape and bool(
        torch.allclose(first, second, atol=tolerance * max(1.0, scale), rtol=tolerance)
    )
