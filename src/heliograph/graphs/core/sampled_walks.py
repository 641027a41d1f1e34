"""Random walks drawn from every vertex, and look-up of edges by their ends.

Draws come from a seed alone: a walk depends on the seed, the vertex's place in its graph and the graph, not on the
graphs beside it in a batch, nor on the order in which edges are listed.

Shapes: N vertices, E edges, W walks a vertex, L steps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from heliograph.errors import BadInput, MemoryEstimateError

__all__ = ["SAMPLE_BUDGET_BYTES", "EdgeLookup", "sample_walks"]

SAMPLE_BUDGET_BYTES = 2 * 2**30


class EdgeLookup:
    """Finds edges by their ends.

    Args:
        edge_index: [2, E].
        num_vertices: N.

    Raises:
        BadInput: edges that are no [2, E] or name a vertex that is not there.
    """

    def __init__(self, edge_index: Tensor, num_vertices: int) -> None:
        _check(edge_index, num_vertices)
        self.num_vertices = num_vertices
        # stable: of parallel edges the first listed is found
        self.keys, self.order = (edge_index[0] * num_vertices + edge_index[1]).sort(stable=True)

    def find(self, source: Tensor, target: Tensor) -> Tensor:
        """The number of an edge from ``source`` to ``target`` (int64, of one shape), -1 where there is none."""
        if len(self.keys) == 0:
            return torch.full_like(source, -1)
        wanted = source * self.num_vertices + target
        place = torch.searchsorted(self.keys, wanted).clamp(max=len(self.keys) - 1)
        return torch.where(self.keys[place] == wanted, self.order[place], -1)


def sample_walks(
    edge_index: Tensor,
    num_vertices: int,
    walks: int,
    steps: int,
    seed: int,
    batch: Tensor | None = None,
) -> Tensor:
    """Walks from every vertex along the edges, from row 0 to row 1, each outgoing edge equally likely.

    Parallel edges count as often as they are listed, a self-loop is an edge, and a walk stays where no edge leads out.

    Args:
        edge_index: [2, E].
        num_vertices: N.
        walks: W.
        steps: L, 0 or more.
        seed: of the draw; vertices with the same place in their graph get the same random numbers.
        batch: [N], ascending; one graph where None.

    Returns:
        int32 [N, W, L + 1]; the first column is the vertex itself.

    Raises:
        BadInput: sizes below their least, edges out of range.
        MemoryEstimateError: the walks and what draws them exceed ``SAMPLE_BUDGET_BYTES``.
    """
    _check(edge_index, num_vertices)
    if walks < 1 or steps < 0:
        raise BadInput(f"sample_walks needs walks >= 1 and steps >= 0; got {walks} and {steps}")
    if num_vertices >= 2**31:
        raise BadInput(f"walks are stored as 32-bit numbers; {num_vertices:,} vertices are too many for one graph")
    device = edge_index.device
    batch = torch.zeros(num_vertices, dtype=torch.long, device=device) if batch is None else batch
    if len(batch) != num_vertices:
        raise BadInput(f"the batch vector has {len(batch)} entries for {num_vertices} vertices")
    sizes = torch.bincount(batch) if num_vertices else batch
    largest = int(sizes.max()) if num_vertices else 0
    need = 4 * num_vertices * walks * (steps + 1) + 8 * largest * walks * steps
    if need > SAMPLE_BUDGET_BYTES:
        raise MemoryEstimateError(
            f"{walks} walks of {steps} steps from each of {num_vertices:,} vertices take {need / 2**30:.1f} GiB, above "
            f"the budget of {SAMPLE_BUDGET_BYTES / 2**30:.1f} GiB; use fewer or shorter walks, or smaller graphs"
        )
    table = np.random.default_rng(seed).random((largest, walks, steps))
    drawn = torch.from_numpy(table).to(device)
    place = torch.arange(num_vertices, device=device) - (sizes.cumsum(0) - sizes)[batch]
    target = edge_index[1][(edge_index[0] * num_vertices + edge_index[1]).argsort()]
    degree = torch.bincount(edge_index[0], minlength=num_vertices)
    first = degree.cumsum(0) - degree
    out = torch.empty(num_vertices, walks, steps + 1, dtype=torch.int32, device=device)
    here = torch.arange(num_vertices, device=device).unsqueeze(1).expand(-1, walks)
    out[:, :, 0] = here
    for step in range(steps):
        choice = (drawn[:, :, step][place] * degree[here]).long()  # below the degree: numpy draws from [0, 1)
        if len(target):
            onward = target[(first[here] + choice).clamp(max=len(target) - 1)]
            here = torch.where(degree[here] > 0, onward, here)
        out[:, :, step + 1] = here
    return out


def _check(edge_index: Tensor, num_vertices: int) -> None:
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise BadInput(f"edge_index must be [2, E]; got {list(edge_index.shape)}")
    if edge_index.device.type == "cpu" and edge_index.numel():
        low, high = int(edge_index.min()), int(edge_index.max())
        if low < 0 or high >= num_vertices:
            wrong = low if low < 0 else high
            raise BadInput(f"edge_index holds {wrong}; vertices are numbered 0 to {num_vertices - 1}")
