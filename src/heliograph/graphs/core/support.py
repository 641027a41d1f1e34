"""Who may send to whom: edge sets between vertices, sorted by target, that compose by union.

Every constructor takes the batch vector of PyTorch Geometric (the graph of each vertex, ascending), and no edge ever
joins two graphs. Sources and targets are vertex numbers; ``edge_id`` leads from each edge back to the row of the edge
list it came from, or is -1 where it stands for no given edge.

Shapes: N vertices, E edges, B graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sparse
import torch
from torch import Tensor

from heliograph.errors import BadInput, MemoryEstimateError
from heliograph.graphs.core.aggregate import segment_offsets

__all__ = [
    "EDGE_BUDGET_BYTES",
    "BySource",
    "Support",
    "complete_support",
    "ego_support",
    "given_support",
    "global_support",
    "khop_support",
    "random_support",
]

EDGE_BUDGET_BYTES = 2 * 2**30
BYTES_AN_EDGE = 24  # source, target and edge_id in int64


@dataclass(frozen=True, eq=False)
class BySource:
    """The same edges, sorted by source: ``target`` and ``edge`` (the row in the support) [E], ``offsets`` [N + 1]."""

    target: Tensor
    edge: Tensor
    offsets: Tensor


@dataclass(frozen=True, eq=False)
class Support:
    """A target-sorted edge set.

    Attributes:
        source, target: [E], int64; ``target`` ascends, and ``source`` within it.
        edge_id: [E], the given edge's row, or -1.
        batch: [N], the graph of each vertex, ascending.
        num_graphs: B.
    """

    source: Tensor
    target: Tensor
    edge_id: Tensor
    batch: Tensor
    num_graphs: int

    @property
    def num_vertices(self) -> int:
        """N."""
        return len(self.batch)

    @property
    def num_edges(self) -> int:
        """E."""
        return len(self.source)

    @cached_property
    def offsets(self) -> Tensor:
        """Where each target's run of edges begins, [N + 1]."""
        return segment_offsets(self.target, self.num_vertices)

    @cached_property
    def by_source(self) -> BySource:
        """The transposed order: where a source's messages go, which a backward pass walks along."""
        in_order, edge = self.source.sort(stable=True)
        return BySource(self.target[edge], edge, segment_offsets(in_order, self.num_vertices))

    @cached_property
    def sizes(self) -> Tensor:
        """Vertices of each graph, [B]."""
        return torch.bincount(self.batch, minlength=self.num_graphs)

    @cached_property
    def largest(self) -> int:
        """Vertices of the largest graph; read from the device once."""
        return int(self.sizes.max()) if self.num_graphs and self.num_vertices else 0

    @cached_property
    def place(self) -> Tensor:
        """The position of each vertex within its own graph, [N]."""
        starts = self.sizes.cumsum(0) - self.sizes
        return torch.arange(self.num_vertices, device=self.batch.device) - starts[self.batch]

    @cached_property
    def has_parallel(self) -> bool:
        """Whether two edges share source and target; dense back ends cannot tell them apart."""
        same = (self.target[1:] == self.target[:-1]) & (self.source[1:] == self.source[:-1])
        return bool(same.any())

    def gather(self, per_edge: Tensor, missing: float = 0.0) -> Tensor:
        """Rows of a table of the given edges in the order of this support; ``missing`` where there is no given edge."""
        if len(per_edge) == 0:
            return per_edge.new_full((self.num_edges, *per_edge.shape[1:]), missing)
        rows = per_edge[self.edge_id.clamp(min=0)]
        known = (self.edge_id >= 0).reshape(-1, *([1] * (rows.dim() - 1)))
        return torch.where(known, rows, missing)

    def to(self, device: torch.device | str) -> Support:
        """The same edges on another device."""
        return Support(
            self.source.to(device),
            self.target.to(device),
            self.edge_id.to(device),
            self.batch.to(device),
            self.num_graphs,
        )

    def __or__(self, other: Support) -> Support:
        """The union as a set: parallel edges become one, and a given edge's row wins over none."""
        if self.num_graphs != other.num_graphs or not torch.equal(self.batch, other.batch):
            raise BadInput(
                f"a union needs supports on the same vertices; got {self.num_vertices} vertices in {self.num_graphs} "
                f"graphs and {other.num_vertices} in {other.num_graphs}"
            )
        source, target, ids = (
            torch.cat([getattr(self, name), getattr(other, name)]) for name in ("source", "target", "edge_id")
        )
        # given edges first among equals, so that keeping the first of each run keeps its row
        order = torch.argsort((ids < 0).long(), stable=True)
        keys = (target * max(1, self.num_vertices) + source)[order]
        keys, moved = keys.sort(stable=True)
        first = torch.ones_like(keys, dtype=torch.bool)
        first[1:] = keys[1:] != keys[:-1]
        kept = order[moved][first]
        return Support(source[kept], target[kept], ids[kept], self.batch, self.num_graphs)


def given_support(edge_index: Tensor, num_vertices: int, batch: Tensor | None = None) -> Support:
    """The given edges as they are, self-loops and parallel edges included.

    Args:
        edge_index: [2, E]; row 0 sends, row 1 receives.
        num_vertices: N.
        batch: [N]; one graph where None.

    Raises:
        BadInput: an index outside [0, N), an edge between two graphs, or a batch vector that does not ascend.
    """
    batch, graphs = _check_batch(batch, num_vertices, edge_index.device)
    _check_edges(edge_index, num_vertices, batch)
    source, target = edge_index
    order = torch.argsort(target * max(1, num_vertices) + source, stable=True)
    return Support(source[order], target[order], order, batch, graphs)


def khop_support(
    edge_index: Tensor, num_vertices: int, hops: int, batch: Tensor | None = None, *, include_self: bool = False
) -> Support:
    """Vertices that reach the target in 1 to ``hops`` steps along the edges, each once.

    A target is its own source only where ``include_self`` says so. Edges of one step keep the row of the first given
    edge. Raises as :func:`given_support`, and BadInput for ``hops < 1``.
    """
    if hops < 1:
        raise BadInput(f"hops counts steps and must be 1 or more; got {hops}")
    given = given_support(edge_index, num_vertices, batch)
    step = _matrix(given)
    reached = step.copy()
    walk = step
    for _ in range(hops - 1):
        walk = (walk @ step).sign()
        reached = (reached + walk).sign()
    _refuse_edges(int(reached.nnz), f"{hops} hops on {num_vertices} vertices")
    if include_self:
        reached = (reached + sparse.identity(num_vertices, dtype=np.int64, format="csr")).sign()
    far = _from_matrix(reached, given, drop_self=not include_self)
    loops = given.source == given.target
    near = given if include_self else _select(given, ~loops)
    return near | far


def ego_support(edge_index: Tensor, num_vertices: int, radius: int = 1, batch: Tensor | None = None) -> Support:
    """Each vertex hears its ego network: itself and all within ``radius`` steps, edges taken in both directions."""
    both = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    support = khop_support(both, num_vertices, radius, batch, include_self=True)
    given = edge_index.shape[1]
    reverse_only = support.edge_id >= given  # an edge that exists in the other direction alone has no row of its own
    return Support(
        support.source,
        support.target,
        torch.where(reverse_only, -1, support.edge_id),
        support.batch,
        support.num_graphs,
    )


def complete_support(num_vertices: int, batch: Tensor | None = None, *, include_self: bool = True) -> Support:
    """All pairs within each graph, target by target.

    Raises:
        MemoryEstimateError: the pairs would take more than ``EDGE_BUDGET_BYTES``; the largest graph is named.
    """
    batch, graphs = _check_batch(batch, num_vertices, None)
    sizes = torch.bincount(batch, minlength=graphs)
    largest = int(sizes.max()) if graphs else 0
    _refuse_edges(int(sizes.square().sum()), f"all pairs (largest graph: {largest} vertices)")
    repeats = sizes[batch]
    target = torch.repeat_interleave(torch.arange(num_vertices, device=batch.device), repeats)
    starts = (sizes.cumsum(0) - sizes)[batch]
    within = torch.arange(len(target), device=batch.device) - torch.repeat_interleave(
        repeats.cumsum(0) - repeats, repeats
    )
    source = torch.repeat_interleave(starts, repeats) + within
    support = Support(source, target, torch.full_like(source, -1), batch, graphs)
    return support if include_self else _select(support, source != target)


def random_support(num_vertices: int, degree: int, seed: int, batch: Tensor | None = None) -> Support:
    """Each vertex hears up to ``degree`` distinct others of its graph, drawn from ``seed``; fewer in smaller graphs."""
    if degree < 0:
        raise BadInput(f"degree counts sources and must be 0 or more; got {degree}")
    batch, graphs = _check_batch(batch, num_vertices, None)
    random = np.random.default_rng(seed)
    sizes = torch.bincount(batch, minlength=graphs).tolist()
    pairs: list[tuple[int, int]] = []
    start = 0
    for size in sizes:
        for vertex in range(size):
            drawn = random.choice(size - 1, size=min(degree, size - 1), replace=False) if size > 1 else ()
            pairs += [(start + int(other) + int(other >= vertex), start + vertex) for other in sorted(drawn)]
        start += size
    table = torch.tensor(pairs, dtype=torch.long, device=batch.device).reshape(-1, 2)
    source, target = table[:, 0].contiguous(), table[:, 1].contiguous()
    return Support(source, target, torch.full_like(source, -1), batch, graphs)


def global_support(vertices: Sequence[int] | Tensor, num_vertices: int, batch: Tensor | None = None) -> Support:
    """The named vertices exchange with all others of their graph, both ways, and with themselves."""
    batch, graphs = _check_batch(batch, num_vertices, None)
    chosen = torch.as_tensor(vertices, dtype=torch.long, device=batch.device)
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < num_vertices:
        raise BadInput(f"global vertices must lie in [0, {num_vertices}); got {chosen.tolist()[:8]}")
    everyone = torch.arange(num_vertices, device=batch.device)
    hub, other = (batch[chosen][:, None] == batch[None, :]).nonzero(as_tuple=True)
    hub, other = chosen[hub], everyone[other]
    keys = torch.unique(torch.cat([other * num_vertices + hub, hub * num_vertices + other]))
    source, target = keys % max(1, num_vertices), keys // max(1, num_vertices)
    return Support(source, target, torch.full_like(source, -1), batch, graphs)


def _select(support: Support, kept: Tensor) -> Support:
    return Support(support.source[kept], support.target[kept], support.edge_id[kept], support.batch, support.num_graphs)


def _matrix(support: Support) -> sparse.csr_matrix:
    """Row target, column source, 1 where there is an edge."""
    rows, columns = support.target.cpu().numpy(), support.source.cpu().numpy()
    shape = (support.num_vertices, support.num_vertices)
    return sparse.csr_matrix((np.ones(len(rows), dtype=np.int64), (rows, columns)), shape=shape).sign()


def _from_matrix(matrix: sparse.csr_matrix, like: Support, *, drop_self: bool) -> Support:
    rows, columns = matrix.nonzero()
    if drop_self:
        rows, columns = rows[rows != columns], columns[rows != columns]
    order = np.lexsort((columns, rows))
    device = like.batch.device
    source = torch.from_numpy(columns[order].astype(np.int64)).to(device)
    target = torch.from_numpy(rows[order].astype(np.int64)).to(device)
    return Support(source, target, torch.full_like(source, -1), like.batch, like.num_graphs)


def _check_batch(batch: Tensor | None, num_vertices: int, device: torch.device | None) -> tuple[Tensor, int]:
    if batch is None:
        return torch.zeros(num_vertices, dtype=torch.long, device=device), 1
    if len(batch) != num_vertices:
        raise BadInput(f"the batch vector has {len(batch)} entries for {num_vertices} vertices")
    if len(batch) and bool((batch[1:] < batch[:-1]).any()):
        raise BadInput("the batch vector must ascend: vertices of one graph lie together")
    return batch, int(batch[-1]) + 1 if len(batch) else 0


def _check_edges(edge_index: Tensor, num_vertices: int, batch: Tensor) -> None:
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise BadInput(f"edge_index must be [2, E]; got {list(edge_index.shape)}")
    if edge_index.numel() == 0:
        return
    low, high = int(edge_index.min()), int(edge_index.max())
    if low < 0 or high >= num_vertices:
        raise BadInput(f"edge_index holds {low if low < 0 else high}; vertices are numbered 0 to {num_vertices - 1}")
    crossing = (batch[edge_index[0]] != batch[edge_index[1]]).nonzero()
    if len(crossing):
        raise BadInput(f"edge {int(crossing[0])} joins two graphs of the batch")


def _refuse_edges(edges: int, what: str) -> None:
    need = edges * BYTES_AN_EDGE
    if need > EDGE_BUDGET_BYTES:
        raise MemoryEstimateError(
            f"{what}: {edges:,} edges take {need / 2**30:.1f} GiB, above the budget of "
            f"{EDGE_BUDGET_BYTES / 2**30:.1f} GiB; use fewer hops, smaller batches or a sparse support"
        )
