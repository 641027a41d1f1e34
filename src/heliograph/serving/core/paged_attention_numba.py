"""Attention of decoding rows on a CPU: blocks are read where they lie, all heads of a group with one reading of a key.

:func:`heliograph.serving.core.paged_attention.attend_rows` is the plain form that this must equal. Imported only where
it runs.

Shapes: T tokens, R rows, M blocks a row at most, H heads, G key and value heads, D channels a head, a multiple of 8.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from heliograph.lm.core.vector_numba import LANES, add_scaled, array, dots, exponential, in_parts, kernel, narrow, wide

__all__ = ["attend_decodes", "store"]


@kernel
def _store(k: Any, v: Any, keys: Any, values: Any, slots: Any, first: int, last: int) -> None:
    for t in range(first, last):
        slot = slots[t]
        for g in range(k.shape[1]):
            for d in range(k.shape[2]):
                keys[slot, g, d] = k[t, g, d]
                values[slot, g, d] = v[t, g, d]


@kernel
def _attend(
    q: Any,
    keys: Any,
    values: Any,
    tables: Any,
    context: Any,
    size: int,
    scale: float,
    window: int,
    first: int,
    last: int,
    out: Any,
    share: Any,
    lanes: Any,
) -> None:
    heads, channels, groups = q.shape[1], LANES * len(lanes), keys.shape[1]
    most = 0
    for r in range(first, last):
        most = max(most, min(context[r], window))
    scores = np.empty((heads, most), dtype=np.float32)
    query = np.empty(heads * channels, dtype=np.float32)
    heard = np.empty(heads * channels, dtype=np.float32)
    for r in range(first, last):
        length = context[r]
        oldest = max(0, length - window)
        for h in range(heads):
            for d in range(channels):
                query[h * channels + d] = wide(q[r, h, d]) * np.float32(scale)
                heard[h * channels + d] = 0
        for block in range(oldest // size, (length + size - 1) // size):
            start = np.int64(tables[r, block]) * size - block * size
            for t in range(max(oldest, block * size), min(length, (block + 1) * size)):
                for g in range(groups):
                    at = ((start + t) * groups + g) * channels
                    own = g * len(share)
                    dots(query, own * channels, keys, at, scores, own * most + t - oldest, most, share, lanes)
        for h in range(heads):
            line = scores[h, : length - oldest]
            top = np.float32(-np.inf)
            for i in range(len(line)):
                top = max(top, line[i])
            total = np.float32(0)
            for i in range(len(line)):
                weight = exponential(line[i] - top)
                line[i] = weight
                total += weight
            part = np.float32(1) / total
            for i in range(len(line)):
                line[i] *= part
        for block in range(oldest // size, (length + size - 1) // size):
            start = np.int64(tables[r, block]) * size - block * size
            for t in range(max(oldest, block * size), min(length, (block + 1) * size)):
                for g in range(groups):
                    at = ((start + t) * groups + g) * channels
                    own = g * len(share)
                    add_scaled(heard, own * channels, values, at, scores, own * most + t - oldest, most, share, lanes)
        for h in range(heads):
            for d in range(channels):
                out[r, h, d] = narrow(out, heard[h * channels + d])


def store(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """Puts k and v [T, G, D] into their slots of the layer's keys and values [slots, G, D]."""
    taken = (array(k), array(v), array(keys), array(values), slots.numpy())
    in_parts(lambda first, last: _store(*taken, first, last), len(slots), k.numel())


def attend_decodes(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    context: Tensor,
    block_size: int,
    window: int | None,
    out: Tensor,
) -> None:
    """What q [R, H, D] hears goes into ``out``; the rest as for ``attend_rows``."""
    heads, width = q.shape[1:]
    back = 2**31 - 1 if window is None else window
    lengths = np.minimum(context.numpy(), back)
    past = (array(keys), array(values), tables.numpy(), context.numpy(), block_size, 1 / math.sqrt(width), back)
    shape = (0,) * (heads // keys.shape[1]), (0,) * (width // LANES)
    queries, heard = array(q), array(out)
    operations = 2 * heads * width * int(lengths.sum())
    in_parts(lambda first, last: _attend(queries, *past, first, last, heard, *shape), len(queries), operations, lengths)
