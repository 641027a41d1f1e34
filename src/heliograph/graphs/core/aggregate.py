"""Sums, means, maxima, deviations and softmax over segments: what arrives at each vertex, in one number per channel.

``index`` names the segment of every row, in any order. An empty segment gives 0. The result does not depend on how a
device schedules its threads: rows are added in order on a CPU, and on other devices the rows are sorted by segment
(stable) and reduced run by run, without atomic additions. Nothing here waits for the device.

Shapes: E rows (messages), S segments (vertices); any trailing axes, written ``...``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "Method",
    "segment_count",
    "segment_max",
    "segment_mean",
    "segment_offsets",
    "segment_softmax",
    "segment_std",
    "segment_sum",
    "take_rows",
]

Method = Literal["auto", "indexed", "sorted"]


def segment_sum(values: Tensor, index: Tensor, num_segments: int, method: Method = "auto") -> Tensor:
    """The sum of each segment's rows.

    Args:
        values: [E, ...], floating point.
        index: [E], int64 in [0, S).
        num_segments: S.
        method: ``indexed`` adds rows in their order, ``sorted`` reduces runs; ``auto`` takes the first on a CPU only.

    Returns:
        [S, ...] in the type of ``values``.
    """
    if method == "indexed" or (method == "auto" and values.device.type == "cpu"):
        return values.new_zeros((num_segments, *values.shape[1:])).index_add(0, index, values)
    return _reduce_runs(values, index, num_segments, "sum")


def segment_count(index: Tensor, num_segments: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """How many rows each segment has, [S]; integers in float32 add exactly in any order up to 2^24."""
    ones = torch.ones(len(index), device=index.device, dtype=torch.float32)
    return torch.zeros(num_segments, device=index.device).index_add(0, index, ones).to(dtype)


def segment_mean(values: Tensor, index: Tensor, num_segments: int, method: Method = "auto") -> Tensor:
    """The mean of each segment's rows, [S, ...]."""
    total = segment_sum(values, index, num_segments, method)
    count = segment_count(index, num_segments, values.dtype).clamp(min=1)
    return total / _align(count, total)


def segment_max(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """The maximum of each segment's rows by channel, [S, ...]; rows that tie share the gradient."""
    return _reduce_runs(values, index, num_segments, "max")


def segment_std(values: Tensor, index: Tensor, num_segments: int, method: Method = "auto") -> Tensor:
    """The standard deviation (over the rows, not a sample's) of each segment, [S, ...]; its gradient is 0 at 0."""
    centred = values - segment_mean(values, index, num_segments, method)[index]
    variance = segment_mean(centred.square(), index, num_segments, method)
    positive = variance > 0
    # the inner where keeps the infinite slope of the root at 0 out of the backward pass
    return torch.where(positive, torch.where(positive, variance, 1.0).sqrt(), 0.0)


def segment_softmax(logits: Tensor, index: Tensor, num_segments: int, method: Method = "auto") -> Tensor:
    """Softmax over the rows of each segment, by channel, [E, ...].

    16-bit logits are exponentiated and added in float32; the weights come back in the type of ``logits``. A segment
    whose logits are all ``-inf`` gets weights of 0.
    """
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    with torch.no_grad():  # subtracting any constant a segment leaves the weights as they are
        peak = wide.new_full((num_segments, *wide.shape[1:]), -torch.inf)
        place = _align(index, wide).expand_as(wide)
        peak = peak.scatter_reduce(0, place, wide, "amax", include_self=True)
        peak = torch.where(peak.isfinite(), peak, 0.0)
    raised = (wide - take_rows(peak, index)).exp()
    total = segment_sum(raised, index, num_segments, method)
    # no floor such as 1e-16: the largest term of a segment with any finite logit is exactly 1
    return (raised / take_rows(torch.where(total > 0, total, 1.0), index)).to(logits.dtype)


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]``, [E, ...]: by the faster call on a CPU, by the one with a deterministic gradient elsewhere."""
    return values.index_select(0, index) if values.device.type == "cpu" else values[index]


def segment_offsets(sorted_index: Tensor, num_segments: int) -> Tensor:
    """Where each segment's run begins in a sorted index, and the end: [S + 1] (the row pointer of CSR)."""
    edges = torch.arange(num_segments + 1, device=sorted_index.device, dtype=sorted_index.dtype)
    return torch.searchsorted(sorted_index, edges)


def _reduce_runs(values: Tensor, index: Tensor, num_segments: int, reduce: str) -> Tensor:
    if values.numel() == 0:
        return values.new_zeros((num_segments, *values.shape[1:])) + values.sum()  # joined to the graph of autograd
    in_order, order = index.sort(stable=True)
    flat = values[order].reshape(len(index), -1)
    offsets = segment_offsets(in_order, num_segments)
    reduced = torch.segment_reduce(flat, reduce, offsets=offsets, unsafe=True)
    empty = (offsets[1:] == offsets[:-1]).unsqueeze(-1)
    return torch.where(empty, 0.0, reduced).reshape(num_segments, *values.shape[1:])


def _align(per_row: Tensor, like: Tensor) -> Tensor:
    return per_row.reshape(-1, *([1] * (like.dim() - 1)))
