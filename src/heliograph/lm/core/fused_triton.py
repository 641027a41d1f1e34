"""Small steps of a decoder as one kernel each on CUDA, where launching several would take longer than their work.

Used without gradients only; the plain forms in :mod:`heliograph.lm.core.decoder` are what they must equal. Imported
only where it runs.

Shapes: T tokens, H heads, D channels a head, F channels of the feed-forward part.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["gated_silu", "rotate_heads"]


@triton.jit
def _gated(both, out, F: tl.constexpr, WIDE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    inside = at < F
    gate = tl.load(both + row * 2 * F + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(both + row * 2 * F + F + at, mask=inside, other=0.0)
    opened = (gate * tl.sigmoid(gate)).to(up.dtype)
    tl.store(out + row * F + at, opened * up, mask=inside)


@triton.jit
def _rotate(
    x, cosine, sine, row_stride, D: tl.constexpr, HALF: tl.constexpr, PAD: tl.constexpr, INTERLEAVED: tl.constexpr
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    pair = tl.arange(0, PAD)
    inside = pair < HALF
    cos = tl.load(cosine + row * HALF + pair, mask=inside, other=0.0)
    sin = tl.load(sine + row * HALF + pair, mask=inside, other=0.0)
    start = x + row * row_stride + head * D
    if INTERLEAVED:
        first, second = start + 2 * pair, start + 2 * pair + 1
    else:
        first, second = start + pair, start + HALF + pair
    a = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(second, mask=inside, other=0.0).to(tl.float32)
    tl.store(first, (a * cos - b * sin).to(x.dtype.element_ty), mask=inside)
    tl.store(second, (a * sin + b * cos).to(x.dtype.element_ty), mask=inside)


def gated_silu(both: Tensor) -> Tensor:
    """silu(gate) times up from [..., 2 F], gates first; [..., F]."""
    width = both.shape[-1] // 2
    rows = both.reshape(-1, 2 * width)
    out = torch.empty(len(rows), width, dtype=both.dtype, device=both.device)
    wide = 1024
    _gated[(len(rows), triton.cdiv(width, wide))](rows, out, F=width, WIDE=wide)
    return out.view(*both.shape[:-1], width)


def rotate_heads(x: Tensor, heads: int, turn: tuple[Tensor, Tensor], interleaved: bool) -> None:
    """Turns the first ``heads`` heads of [T, H, D] where they lie.

    Args:
        x: contiguous.
        heads: how many are turned.
        turn: cosine and sine, [T, 1, half] each in float32.
        interleaved: whether neighbours are a pair.
    """
    half = turn[0].shape[-1]
    _rotate[(len(x), heads)](
        x,
        turn[0],
        turn[1],
        x.stride(0),
        D=x.shape[-1],
        HALF=half,
        PAD=triton.next_power_of_2(half),
        INTERLEAVED=interleaved,
    )
