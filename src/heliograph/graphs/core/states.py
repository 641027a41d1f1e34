"""Vertex states of different sizes side by side: packed rows to padded blocks and back, and states of pairs.

Shapes: B graphs, N vertices of all graphs, M vertices of the largest, d and c channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from heliograph.errors import BadInput, MemoryEstimateError
from heliograph.graphs.core.support import Support, complete_support

__all__ = ["PAIR_BUDGET_BYTES", "MaskedBatchNorm", "PairBatch", "pack", "unpack"]

PAIR_BUDGET_BYTES = 4 * 2**30


def pack(rows: Tensor, batch: Tensor, num_graphs: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows of all graphs as a padded block.

    Args:
        rows: [N, ...], graph by graph.
        batch: [N], ascending.
        num_graphs: B; one more than the last entry of ``batch`` where None. Name it where last graphs may be empty.

    Returns:
        The block [B, M, ...] with 0 where padded, and the mask [B, M] of real rows.

    Raises:
        BadInput: lengths differ or ``batch`` does not ascend.
    """
    if len(rows) != len(batch):
        raise BadInput(f"{len(rows)} rows for {len(batch)} entries of the batch vector")
    if len(batch) and bool((batch[1:] < batch[:-1]).any()):
        raise BadInput("the batch vector must ascend: vertices of one graph lie together")
    graphs = (int(batch[-1]) + 1 if len(batch) else 0) if num_graphs is None else num_graphs
    sizes = torch.bincount(batch, minlength=graphs)
    largest = int(sizes.max()) if graphs else 0
    place = torch.arange(len(batch), device=batch.device) - (sizes.cumsum(0) - sizes)[batch]
    block = rows.new_zeros((graphs, largest, *rows.shape[1:])).index_put((batch, place), rows)
    mask = torch.arange(largest, device=batch.device) < sizes[:, None]
    return block, mask


def unpack(block: Tensor, mask: Tensor) -> Tensor:
    """The real rows of a padded block, [N, ...], graph by graph: what :func:`pack` was given."""
    return block[mask]


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Dense states of vertices and ordered pairs.

    Attributes:
        x: [B, M, d].
        e: [B, M, M, c]; ``e[b, i, j]`` belongs to target i and source j.
        mask: [B, M], real vertices.
    """

    x: Tensor
    e: Tensor
    mask: Tensor

    @property
    def pair_mask(self) -> Tensor:
        """[B, M, M], pairs of two real vertices."""
        return self.mask[:, :, None] & self.mask[:, None, :]

    @classmethod
    def from_rows(cls, x: Tensor, pair: Tensor, support: Support) -> PairBatch:
        """From vertex rows [N, d] and a row for each edge of a support without parallel edges; other pairs are 0.

        Raises:
            BadInput: parallel edges, or rows that do not fit the support.
            MemoryEstimateError: the pairs exceed ``PAIR_BUDGET_BYTES``.
        """
        if support.has_parallel:
            raise BadInput("a dense pair state has one place a pair and cannot hold parallel edges")
        if len(pair) != support.num_edges:
            raise BadInput(f"{len(pair)} pair rows for a support of {support.num_edges} edges")
        largest = int(support.sizes.max()) if support.num_vertices else 0
        need = support.num_graphs * largest**2 * pair.shape[-1] * pair.element_size()
        if need > PAIR_BUDGET_BYTES:
            raise MemoryEstimateError(
                f"dense pairs of {support.num_graphs} graphs (largest: {largest} vertices) take {need / 2**30:.1f} "
                f"GiB, above the budget of {PAIR_BUDGET_BYTES / 2**30:.1f} GiB; use smaller batches of similar sizes"
            )
        block, mask = pack(x, support.batch, support.num_graphs)
        at = (support.batch[support.target], support.place[support.target], support.place[support.source])
        e = pair.new_zeros((*mask.shape, largest, pair.shape[-1])).index_put(at, pair)
        return cls(block, e, mask)

    def to_rows(self) -> tuple[Tensor, Tensor]:
        """Vertex rows [N, d] and pair rows [P, c] in the order of ``complete_support``."""
        return unpack(self.x, self.mask), self.e[self.pair_mask]

    def support(self) -> Support:
        """The complete support of the real vertices."""
        batch = self.mask.nonzero()[:, 0]
        return replace(complete_support(len(batch), batch), num_graphs=len(self.mask))

    def masked(self) -> PairBatch:
        """The same with 0 wherever padded."""
        x = torch.where(self.mask.unsqueeze(-1), self.x, 0.0)
        return replace(self, x=x, e=torch.where(self.pair_mask.unsqueeze(-1), self.e, 0.0))


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm over the real entries of a padded block; padded entries come out as 0.

    With a single real entry in training there is no variance to divide by: running statistics serve instead.
    """

    def forward(self, block: Tensor, mask: Tensor | None = None) -> Tensor:
        """Any leading axes with channels last; ``mask`` has the leading axes, all real where None."""
        rows = block.reshape(-1, block.shape[-1]) if mask is None else block[mask]
        if self.training and len(rows) < 2:
            normed = nn.functional.batch_norm(rows, self.running_mean, self.running_var, self.weight, self.bias)
        else:
            normed = super().forward(rows)
        if mask is None:
            return normed.reshape(block.shape)
        return torch.zeros_like(block, dtype=normed.dtype).masked_scatter(mask.unsqueeze(-1), normed)
