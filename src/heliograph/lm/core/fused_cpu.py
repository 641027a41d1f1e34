"""Small steps of a decoder as one loop each on a CPU, where each of torch's operations reads and writes all of memory.

Used without gradients only; the plain forms in :mod:`heliograph.lm.core.decoder` are what they must equal. Inside, all
is float32; what comes in and goes out may be bfloat16.

Shapes: T tokens, H heads, D channels a head, C channels, F channels of the feed-forward part.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from heliograph.lm.core.vector_numba import array, exponential, in_parts, kernel, narrow, wide

__all__ = ["add_and_norm", "gated_silu", "rotate_heads"]


@kernel
def _norm(x: Any, delta: Any, adds: bool, weight: Any, eps: float, first: int, last: int, out: Any) -> None:
    channels = x.shape[1]
    for r in range(first, last):
        squares = np.float32(0)
        if adds:
            for c in range(channels):
                value = x[r, c] + wide(delta[r, c])
                x[r, c] = value
                squares += value * value
        else:
            for c in range(channels):
                squares += x[r, c] * x[r, c]
        scale = np.float32(1) / np.sqrt(squares / np.float32(channels) + np.float32(eps))
        for c in range(channels):
            out[r, c] = narrow(out, x[r, c] * scale * wide(weight[c]))


@kernel
def _gated(both: Any, first: int, last: int, out: Any) -> None:
    channels = both.shape[1] // 2
    for r in range(first, last):
        for c in range(channels):
            gate, up = wide(both[r, c]), wide(both[r, channels + c])
            out[r, c] = narrow(out, gate * up / (np.float32(1) + exponential(-gate)))


@kernel
def _rotate(x: Any, heads: int, cos: Any, sin: Any, interleaved: bool, first: int, last: int) -> None:
    half = cos.shape[1]
    for r in range(first, last):
        for h in range(heads):
            if interleaved:
                for i in range(half):
                    a, b = wide(x[r, h, 2 * i]), wide(x[r, h, 2 * i + 1])
                    x[r, h, 2 * i] = narrow(x, a * cos[r, i] - b * sin[r, i])
                    x[r, h, 2 * i + 1] = narrow(x, a * sin[r, i] + b * cos[r, i])
            else:
                for i in range(half):
                    a, b = wide(x[r, h, i]), wide(x[r, h, half + i])
                    x[r, h, i] = narrow(x, a * cos[r, i] - b * sin[r, i])
                    x[r, h, half + i] = narrow(x, a * sin[r, i] + b * cos[r, i])


def add_and_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Adds ``delta`` to x in place and gives its root-mean-square norm, in the number format of ``weight``.

    Args:
        x: [T, C], float32.
        delta: [T, C]; None adds nothing.
        weight: [C].
        eps: added to the mean of squares.
    """
    out = torch.empty(x.shape, dtype=weight.dtype)
    added = x if delta is None else delta
    taken = (array(x), array(added), delta is not None, array(weight), eps)
    written = array(out)
    in_parts(lambda first, last: _norm(*taken, first, last, written), len(x), 3 * x.numel())
    return out


def gated_silu(both: Tensor) -> Tensor:
    """silu of the first half of the channels times the second, [T, 2 F] to [T, F]."""
    out = torch.empty(len(both), both.shape[1] // 2, dtype=both.dtype)
    taken, written = array(both), array(out)
    in_parts(lambda first, last: _gated(taken, first, last, written), len(both), 8 * out.numel())
    return out


def rotate_heads(x: Tensor, heads: int, turn: tuple[Tensor, Tensor], interleaved: bool) -> None:
    """Turns the first ``heads`` of x [T, H, D] in place; ``turn`` is cosine and sine, [T, 1, pairs] in float32."""
    cos, sin = (part.flatten(1).numpy() for part in turn)
    taken = (array(x), heads, cos, sin, interleaved)
    in_parts(lambda first, last: _rotate(*taken, first, last), len(x), 3 * x.numel())
