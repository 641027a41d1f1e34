"""Powers of the random walk: one routine behind RWSE (its diagonal) and RRWP (all pairs).

The walk steps along an edge with probability proportional to the edge's weight; parallel edges add up, self-loops
count, and a vertex without outgoing edges has a row of 0. Everything is computed in float64 and lies in [0, 1].

Graphs up to ``DENSE_VERTICES`` are multiplied as padded blocks of similar size; of larger ones, columns of the powers
are made block by block from the sparse matrix, so that no N x N array is ever held for a diagonal.

Shapes: N vertices of all graphs, E edges, K powers, P pairs of vertices of the same graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import scipy.sparse as sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from heliograph.errors import BadInput, MemoryEstimateError

__all__ = ["WALK_BUDGET_BYTES", "return_probabilities", "walk_powers"]

WALK_BUDGET_BYTES = 2 * 2**30
DENSE_VERTICES = 256
BLOCK_BYTES = 64 * 2**20

Floats = NDArray[np.float64]
Progress = Callable[[float], None]


def return_probabilities(
    edge_index: Tensor,
    num_vertices: int,
    steps: int,
    weight: Tensor | None = None,
    batch: Tensor | None = None,
    progress: Progress | None = None,
) -> Tensor:
    r"""The probability of being back after 1 to K steps, [N, K] in float32: :math:`[(D^{-1} A)^k]_{vv}`.

    Args:
        edge_index: [2, E]; the walk goes from row 0 to row 1.
        num_vertices: N.
        steps: K.
        weight: [E], not negative; 1 where None.
        batch: [N], ascending; one graph where None.
        progress: called with the share done, for graphs that take long.

    Raises:
        BadInput: steps < 1, indices out of range, weights that are negative or not finite.
    """
    walk, starts = _walk_matrix(edge_index, num_vertices, weight, batch, steps)
    out = np.zeros((num_vertices, steps))
    for graphs in _buckets(starts):
        size = int(starts[graphs[0] + 1] - starts[graphs[0]])
        if size > DENSE_VERTICES:
            start = int(starts[graphs[0]])
            own = slice(start, start + size)
            out[own] = _sparse_diagonals(walk[own, own], steps, progress)
            continue
        first, rows, mask = _blocks(walk, starts, graphs)
        power = first
        for k in range(steps):
            power = power if k == 0 else power @ first
            out[rows[mask], k] = np.diagonal(power, axis1=1, axis2=2)[mask]
    return torch.from_numpy(np.clip(out, 0.0, 1.0).astype(np.float32)).to(edge_index.device)


def walk_powers(
    edge_index: Tensor,
    num_vertices: int,
    steps: int,
    weight: Tensor | None = None,
    batch: Tensor | None = None,
) -> Tensor:
    r"""Powers 0 to K - 1 of the walk for all pairs of each graph, [P, K] in float32.

    Pairs come in the order of ``complete_support``: by target i, then source j, both of one graph. The pair whose
    target is i and whose source is j carries :math:`[M^k]_{ij}`, the probability of walking from i to j.

    Raises:
        BadInput: as :func:`return_probabilities`, with steps >= 2.
        MemoryEstimateError: P K numbers exceed ``WALK_BUDGET_BYTES``; the bytes and the largest graph are named.
    """
    if steps < 2:
        raise BadInput(f"steps counts powers from the zeroth on and must be 2 or more; got {steps}")
    walk, starts = _walk_matrix(edge_index, num_vertices, weight, batch, steps)
    sizes = np.diff(starts)
    pairs = sizes * sizes
    need = int(pairs.sum()) * steps * 4
    if need > WALK_BUDGET_BYTES:
        raise MemoryEstimateError(
            f"{steps} walk powers of all pairs take {need / 2**30:.1f} GiB (largest graph: {int(sizes.max())} "
            f"vertices), above the budget of {WALK_BUDGET_BYTES / 2**30:.1f} GiB; use fewer steps, smaller graphs, or "
            "the diagonal (RWSE)"
        )
    ends = pairs.cumsum()
    out = np.empty((int(pairs.sum()), steps), dtype=np.float32)
    for graphs in _buckets(starts):
        first, _, mask = _blocks(walk, starts, graphs)
        power = np.broadcast_to(np.eye(first.shape[1]), first.shape)
        for k in range(steps):
            power = power if k == 0 else power @ first
            for place, graph in enumerate(graphs):
                size = int(mask[place].sum())
                rows = slice(int(ends[graph] - pairs[graph]), int(ends[graph]))
                out[rows, k] = np.clip(power[place, :size, :size], 0.0, 1.0).reshape(-1)
    return torch.from_numpy(out).to(edge_index.device)


def _walk_matrix(
    edge_index: Tensor, num_vertices: int, weight: Tensor | None, batch: Tensor | None, steps: int
) -> tuple[sparse.csr_matrix, NDArray[np.int64]]:
    """D^-1 A, and where each graph's vertices begin (with the end appended)."""
    if steps < 1:
        raise BadInput(f"steps must be 1 or more; got {steps}")
    edges = edge_index.detach().cpu().numpy().reshape(2, -1)
    if edges.size and not 0 <= edges.min() <= edges.max() < num_vertices:
        wrong = edges[(edges < 0) | (edges >= num_vertices)][0]
        raise BadInput(f"edge_index holds {wrong}; vertices are numbered 0 to {num_vertices - 1}")
    values = np.ones(edges.shape[1]) if weight is None else weight.detach().cpu().double().numpy().reshape(-1)
    if len(values) != edges.shape[1]:
        raise BadInput(f"{len(values)} weights for {edges.shape[1]} edges")
    bad = np.flatnonzero(~np.isfinite(values) | (values < 0))
    if len(bad):
        raise BadInput(f"edge {bad[0]} weighs {values[bad[0]]}; a walk needs weights that are finite and not negative")
    shape = (num_vertices, num_vertices)
    adjacency = sparse.csr_matrix((values, (edges[0], edges[1])), shape=shape)  # sums parallel edges
    degree = np.asarray(adjacency.sum(axis=1)).reshape(-1)
    inverse = np.divide(1.0, degree, out=np.zeros_like(degree), where=degree > 0)
    graph = np.zeros(num_vertices, dtype=np.int64) if batch is None else batch.detach().cpu().numpy()
    if len(graph) != num_vertices or (np.diff(graph) < 0).any():
        raise BadInput(f"the batch vector must ascend and have {num_vertices} entries; got {len(graph)}")
    if edges.size and (graph[edges[0]] != graph[edges[1]]).any():
        raise BadInput("an edge joins two graphs of the batch")
    starts = np.concatenate([np.flatnonzero(np.diff(graph, prepend=-1)), [num_vertices]]).astype(np.int64)
    return sparse.diags(inverse) @ adjacency, starts


def _buckets(starts: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Graph numbers by size, the largest first, in groups whose padded blocks stay within ``BLOCK_BYTES``."""
    sizes = np.diff(starts)
    order = np.argsort(-sizes, kind="stable")
    at = 0
    while at < len(order):
        largest = int(sizes[order[at]])
        count = 1 if largest > DENSE_VERTICES else max(1, BLOCK_BYTES // (8 * max(1, largest) ** 2))
        group = order[at : at + count]
        group = group[sizes[group] * 2 > largest] if len(group) > 1 else group  # one large graph pads no small ones
        yield group
        at += len(group)


def _blocks(
    walk: sparse.csr_matrix, starts: NDArray[np.int64], graphs: NDArray[np.int64]
) -> tuple[Floats, NDArray[np.int64], NDArray[np.bool_]]:
    """The walk matrices of some graphs, padded [G, M, M]; the row of each place, [G, M]; which places are real."""
    sizes = starts[graphs + 1] - starts[graphs]
    largest = int(sizes.max())
    places = np.arange(largest)
    mask = places[None, :] < sizes[:, None]
    rows = np.where(mask, starts[graphs][:, None] + places, 0)
    blocks = np.zeros((len(graphs), largest, largest))
    for number, (graph, size) in enumerate(zip(graphs, sizes, strict=True)):
        start, end = walk.indptr[starts[graph]], walk.indptr[starts[graph] + size]
        lengths = np.diff(walk.indptr[starts[graph] : starts[graph] + size + 1])
        row = np.repeat(np.arange(size), lengths)
        blocks[number, row, walk.indices[start:end] - starts[graph]] = walk.data[start:end]
    return blocks, rows, mask


def _sparse_diagonals(walk: sparse.csr_matrix, steps: int, progress: Progress | None) -> Floats:
    """Diagonals of powers 1 to K from blocks of columns: M^k e_v, for some v at a time."""
    size = walk.shape[0]
    width = max(1, min(size, BLOCK_BYTES // (16 * size)))
    out = np.zeros((size, steps))
    for start in range(0, size, width):
        columns = np.arange(start, min(size, start + width))
        power = np.zeros((size, len(columns)))
        power[columns, columns - start] = 1.0
        for k in range(steps):
            power = walk @ power
            out[columns, k] = power[columns, columns - start]
        if progress is not None:
            progress(float(columns[-1] + 1) / size)
    return out
