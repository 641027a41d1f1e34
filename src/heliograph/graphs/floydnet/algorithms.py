"""Supervised tasks on dense graphs: how inputs enter FloydNet's pair state, and heads, losses and scores for any model.

``FloydReasoner`` and the peers of ``graphs.core.message_passing`` take the same inputs and give ``LevelStates``;
``TaskModel`` puts the same heads on either. No hints and no intermediate steps: one forward pass, outputs only.

Shapes: B instances, N vertices (M = N + 1 with the super-node), C channels, V E G input channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from heliograph.data.algorithms import IGNORED, AlgorithmBatch
from heliograph.data.counting import CountingGraphs
from heliograph.errors import BadInput
from heliograph.graphs.core.message_passing import LevelStates
from heliograph.graphs.floydnet.network import PivotalStack, sum_to_vertices

__all__ = [
    "FloydReasoner",
    "TaskBatch",
    "TaskModel",
    "TaskTarget",
    "algorithm_tensors",
    "counting_scales",
    "counting_tensors",
    "task_error",
    "task_loss",
    "task_score",
]

_VALUE_KINDS = ("graph_value", "vertex_value", "edge_value")
_GRAPH_KINDS = ("graph_value", "graph_category")
_CLASS_KINDS = ("graph_category", "vertex_category", "pair_category")
_VERTEX_KINDS = ("vertex_value", "vertex_category", "mask", "mask_one")


@dataclass(frozen=True)
class TaskTarget:
    """One output to learn.

    Attributes:
        kind: of ``data.algorithms`` ("pointer", "mask", "mask_one", "pair_pointer", "pair_category"), a class
            ("graph_category", "vertex_category"), or a regression ("graph_value", "vertex_value", "edge_value").
        values: long, -1 where nothing is scored; for regressions floating, NaN where nothing is scored.
        outputs: classes, or regressed numbers.
    """

    kind: str
    values: Tensor
    outputs: int = 1


@dataclass(frozen=True)
class TaskBatch:
    """vertex [B, N, V], edge [B, N, N, E] with the adjacency in channel 0, graph [B, G], mask [B, N] bool, targets."""

    vertex: Tensor
    edge: Tensor
    graph: Tensor
    mask: Tensor
    targets: tuple[TaskTarget, ...]

    @property
    def channels(self) -> tuple[int, int, int]:
        """(V, E, G): what a model has to be built for."""
        return self.vertex.shape[-1], self.edge.shape[-1], self.graph.shape[-1]

    def __len__(self) -> int:
        return len(self.vertex)


class FloydReasoner(nn.Module):
    """FloydNet on real-valued inputs: [B, N, V], [B, N, N, E], [B, G] to states at all three levels.

    Vertex inputs enter as MLP([x_i, x_k]) on every pair and linearly on the super-node's row and column; edge inputs on
    their pair; graph inputs on the super-node's pair with itself. Reads the pair state R[i, k], for a vertex the sum of
    its row and column, for the graph the sum of all pairs.

    Args:
        vertex_channels, edge_channels, graph_channels: of the inputs, 0 where there are none.
        dim, heads, depth: of the stack; further options go to ``PivotalAttentionBlock``.
    """

    def __init__(
        self,
        vertex_channels: int,
        edge_channels: int,
        graph_channels: int,
        dim: int = 96,
        heads: int = 4,
        depth: int = 16,
        norm: str = "affine",
        feed_forward: bool = True,
        chunk: int | None = None,
        checkpoint_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.ends = nn.Linear(2 * vertex_channels + 1, dim)
        self.pair = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim))
        self.edge = nn.Linear(edge_channels + 1, dim, bias=False)
        self.super_row, self.super_column = nn.Linear(vertex_channels + 1, dim), nn.Linear(vertex_channels + 1, dim)
        self.super_self = nn.Linear(graph_channels + 1, dim)
        self.equality = nn.Embedding(2, dim)
        self.stack = PivotalStack(
            depth,
            checkpoint_blocks,
            dim=dim,
            heads=heads,
            norm=norm,
            feed_forward=feed_forward,
            chunk=chunk,
        )

    def forward(self, vertex_BNV: Tensor, edge_BNNE: Tensor, graph_BG: Tensor, mask_BN: Tensor) -> LevelStates:
        """mask_BN: True on real vertices, bool."""
        batch, size = mask_BN.shape
        vertex, edge, graph = (functional.pad(x, (0, 1), value=1.0) for x in (vertex_BNV, edge_BNNE, graph_BG))
        tails = vertex_BNV[:, :, None].expand(batch, size, size, -1)
        heads = vertex[:, None].expand(batch, size, size, -1)
        same = self.equality(torch.eye(size, dtype=torch.long, device=mask_BN.device))
        inner_BNNC = self.pair(self.ends(torch.cat([tails, heads], dim=-1))) + self.edge(edge) + same
        corner_B11C = self.super_self(graph)[:, None, None]
        top_B1MC = torch.cat([corner_B11C, self.super_row(vertex)[:, None]], dim=2)
        rest_BNMC = torch.cat([self.super_column(vertex)[:, :, None], inner_BNNC], dim=2)
        vertex_mask_BM = functional.pad(mask_BN, (1, 0), value=True)
        state_BMMC = self.stack(torch.cat([top_B1MC, rest_BNMC], dim=1), vertex_mask_BM)
        pair_mask = vertex_mask_BM[:, :, None, None] & vertex_mask_BM[:, None, :, None]
        state_BMMC = state_BMMC * pair_mask
        return LevelStates(
            vertex=sum_to_vertices(state_BMMC, 2)[:, 1:],
            pair=state_BMMC[:, 1:, 1:],
            graph=state_BMMC.sum(dim=(1, 2)),
        )


class TaskModel(nn.Module):
    """Any backbone with ``LevelStates`` out, and a head for each target of a task.

    Args:
        backbone: ``backbone(vertex, edge, graph, mask) -> LevelStates`` with ``dim`` channels.
        dim: those channels.
        targets: kinds and outputs are taken from these (of any batch of the task).
    """

    def __init__(self, backbone: nn.Module, dim: int, targets: Sequence[TaskTarget]) -> None:
        super().__init__()
        self.backbone, self.kinds = backbone, tuple(target.kind for target in targets)
        self.heads = nn.ModuleList(_make_head(target, dim) for target in targets)

    def forward(self, batch: TaskBatch) -> tuple[Tensor, ...]:
        """One tensor a target: scores over the candidates in the last axis, logits [B, N] for masks, or numbers."""
        states = self.backbone(batch.vertex, batch.edge, batch.graph, batch.mask)
        return tuple(_read(kind, head, states, batch.mask) for kind, head in zip(self.kinds, self.heads, strict=True))


class _PairPointerHead(nn.Module):
    """Scores p for the pair (i, k) as pivotal attention does: q[i, k] . (k1[i, p] + k2[p, k])."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query, self.first, self.second = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, pair_BNNC: Tensor) -> Tensor:
        query = self.query(pair_BNNC) / math.sqrt(2 * pair_BNNC.shape[-1])
        along_row = torch.einsum("bikc,bipc->bikp", query, self.first(pair_BNNC))
        return along_row + torch.einsum("bikc,bpkc->bikp", query, self.second(pair_BNNC))


def task_loss(model: nn.Module, batch: TaskBatch) -> Tensor:
    """Mean over the targets of cross entropy (pointers, classes), binary cross entropy (masks) or L1 (numbers)."""
    losses = [_loss(target, out) for target, out in zip(batch.targets, model(batch), strict=True)]
    return torch.stack(losses).mean()


@torch.no_grad()
def task_score(model: nn.Module, batches: Sequence[TaskBatch]) -> float:
    """The benchmark's score in [0, 1], averaged over targets: accuracy of pointers and classes, micro-F1 of masks."""
    return float(np.mean(_over_targets(model, batches, _score)))


@torch.no_grad()
def task_error(model: nn.Module, batches: Sequence[TaskBatch]) -> float:
    """Mean absolute error of the regressed numbers over all that is scored, averaged over targets and their columns."""
    return float(np.mean(_over_targets(model, batches, _error)))


def algorithm_tensors(batch: AlgorithmBatch, device: torch.device | str = "cpu") -> TaskBatch:
    """An algorithm's batch as tensors; targets of padded vertices and pairs are not scored."""
    mask = torch.from_numpy(batch.mask).to(device)
    targets = []
    for target in batch.targets:
        values = torch.from_numpy(target.values).to(device)
        real = mask if values.dim() == 2 else mask[:, :, None] & mask[:, None, :]
        targets.append(TaskTarget(target.kind, values.masked_fill(~real, IGNORED), max(1, target.classes)))
    vertex, edge, graph = (torch.from_numpy(np.ascontiguousarray(x)) for x in (batch.vertex, batch.edge, batch.graph))
    return TaskBatch(vertex.to(device), edge.to(device), graph.to(device), mask, tuple(targets))


def counting_scales(graphs: CountingGraphs, levels: Sequence[str] = ("edge",)) -> tuple[Tensor, ...]:
    """The standard deviation of each pattern's counts at each level, over what is scored: divide targets by it."""
    scales = []
    for level in levels:
        values, scored = _counts(graphs, level)
        scales.append(torch.from_numpy(np.maximum(values[scored].std(axis=0), 1e-12)).float())
    return tuple(scales)


def counting_tensors(
    graphs: CountingGraphs,
    scales: Sequence[Tensor],
    levels: Sequence[str] = ("edge",),
    device: torch.device | str = "cpu",
) -> TaskBatch:
    """Counts as regression targets in units of ``scales`` (of the training graphs, from :func:`counting_scales`).

    Pair counts are scored on edges, vertex counts on real vertices. Dividing each level by its own spread makes the
    paper's division by automorphism factors fall out. The adjacency is the only input.
    """
    mask = torch.from_numpy(graphs.mask).to(device)
    targets = []
    for level, scale in zip(levels, scales, strict=True):
        counts, scored = _counts(graphs, level)
        values = torch.from_numpy(counts).float() / scale
        values[torch.from_numpy(~scored)] = torch.nan
        targets.append(TaskTarget(f"{level}_value", values.to(device), len(graphs.patterns)))
    edge = torch.from_numpy(graphs.adj).float().unsqueeze(-1).to(device)
    empty = torch.zeros((*mask.shape, 0), device=device), torch.zeros((len(mask), 0), device=device)
    return TaskBatch(empty[0], edge, empty[1], mask, tuple(targets))


def _counts(graphs: CountingGraphs, level: str) -> tuple[np.ndarray, np.ndarray]:
    if level == "graph":
        return graphs.graph, np.ones(len(graphs), dtype=bool)
    if level == "vertex":
        return graphs.vertex, graphs.mask
    if level == "edge":
        return graphs.edge, graphs.adj > 0
    raise BadInput(f"levels are a choice of graph, vertex, edge; got {level!r}")


def _make_head(target: TaskTarget, dim: int) -> nn.Module:
    if target.kind == "pair_pointer":
        return _PairPointerHead(dim)
    if target.kind in ("pointer", "mask", "mask_one", *_CLASS_KINDS, *_VALUE_KINDS):
        return nn.Linear(dim, target.outputs)
    raise BadInput(f"unknown kind of target {target.kind!r}")


def _read(kind: str, head: nn.Module, states: LevelStates, mask_BN: Tensor) -> Tensor:
    level = states.pair
    if kind in _VERTEX_KINDS:
        level = states.vertex
    elif kind in _GRAPH_KINDS:
        level = states.graph
    out: Tensor = head(level)
    if kind in ("pointer", "mask", "mask_one"):
        out = out.squeeze(-1)
    if kind in ("pointer", "pair_pointer", "mask_one"):  # candidates in the last axis: padded ones are out
        out = out.masked_fill(~mask_BN.reshape(len(mask_BN), *([1] * (out.dim() - 2)), -1), -1e9)
    return out


def _loss(target: TaskTarget, out: Tensor) -> Tensor:
    if target.kind in _VALUE_KINDS:
        return _masked_mean((out - target.values.nan_to_num()).abs(), ~target.values.isnan())
    scored = target.values != IGNORED
    if target.kind == "mask":
        wanted = target.values.clamp(min=0).to(out.dtype)
        return _masked_mean(functional.binary_cross_entropy_with_logits(out, wanted, reduction="none"), scored)
    if target.kind == "mask_one":
        return functional.cross_entropy(out, target.values.argmax(dim=1))
    losses = functional.cross_entropy(out.flatten(0, -2), target.values.clamp(min=0).flatten(), reduction="none")
    return _masked_mean(losses, scored.flatten())


def _masked_mean(values: Tensor, scored: Tensor) -> Tensor:
    return (values * scored).sum() / scored.sum().clamp(min=1)


def _over_targets(
    model: nn.Module,
    batches: Sequence[TaskBatch],
    part: Callable[[TaskTarget, Tensor], tuple[float, float]],
) -> list[float]:
    was_training = model.training
    model.eval()
    totals = np.zeros((len(batches[0].targets), 2))
    for batch in batches:
        totals += [part(target, out) for target, out in zip(batch.targets, model(batch), strict=True)]
    model.train(was_training)
    return list(totals[:, 0] / np.maximum(totals[:, 1], 1))


def _score(target: TaskTarget, out: Tensor) -> tuple[float, float]:
    """Numerator and denominator that add up over batches."""
    scored = target.values != IGNORED
    if target.kind == "mask":
        chosen, wanted = (out > 0) & scored, (target.values == 1) & scored
        # F1 = 2 TP / (predicted + wanted)
        return float(2 * (chosen & wanted).sum()), float(chosen.sum() + wanted.sum())
    if target.kind == "mask_one":
        return float((out.argmax(dim=1) == target.values.argmax(dim=1)).sum()), float(len(out))
    return float(((out.argmax(dim=-1) == target.values) & scored).sum()), float(scored.sum())


def _error(target: TaskTarget, out: Tensor) -> tuple[float, float]:
    if target.kind not in _VALUE_KINDS:
        raise BadInput(f"task_error is for regressed numbers; got a target of kind {target.kind!r}")
    scored = ~target.values.isnan()
    return float(((out - target.values.nan_to_num()).abs() * scored).sum()), float(scored.sum())
