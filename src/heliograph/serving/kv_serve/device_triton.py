"""Rotating, quantising and packing as one kernel on CUDA, and the way back. Imported only where it runs.

A rotation multiplies by signs and a matrix of ones and minus ones, which 16-bit tensor cores do exactly; sums are
float32. The plain forms in ``transforms``, ``quantizers`` and ``codecs`` are what these must equal, but for numbers
that lie so close to the middle between two levels that the order of a sum decides.

Shapes: B layers of a group, T tokens, n heads of a layer, D channels, P channels after padding, R = B T n rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["DeviceRows", "pack", "quantise_rows", "restore_rows", "row_ranges", "unpack"]

TILE = 32
SPAN = 512  # tokens that one program goes through for the range of a channel
ROUND = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding and taking it away rounds to the even whole number


@dataclass(frozen=True, eq=False)
class DeviceRows:
    """Where the rows of a group lie in keys and values.

    Attributes:
        kv: [L, 2, T', G, D] on the device, contiguous, T' >= T.
        kind: 0 keys, 1 values.
        layers: [B] of int32, and heads [B, n] of int32.
        heads: of each layer.
        signs: [B, n, P] of float32; None without a rotation.
        matrix: [P, P] of 1 and -1 in the format that is multiplied; None without a rotation.
        tokens: T.
        channels: P.
    """

    kv: Tensor
    kind: int
    layers: Tensor
    heads: Tensor
    signs: Tensor | None
    matrix: Tensor | None
    tokens: int
    channels: int

    @property
    def count(self) -> int:
        """R."""
        return self.heads.numel() * self.tokens

    def arguments(self) -> tuple[object, ...]:
        """What every kernel is given of it."""
        kv, spare = self.kv, self.kv
        return (
            kv, self.layers, self.heads, spare if self.signs is None else self.signs,
            spare if self.matrix is None else self.matrix,
            self.count, self.tokens, self.heads.shape[1], self.kind,
            kv.shape[2], kv.shape[3], kv.shape[4],
        )  # fmt: skip


@triton.jit
def _offsets(row, layers, heads, T, n, kind, S, G, D):
    """Where the head of each row begins, and the number of its layer and head within the group."""
    place = row // (T * n)
    within = row % (T * n)
    token, own = within // n, within % n
    layer = tl.load(layers + place).to(tl.int64)
    head = tl.load(heads + place * n + own)
    return (((layer * 2 + kind) * S + token) * G + head) * D, place * n + own


@triton.jit
def _load_rows(row, kv, layers, heads, signs, matrix, rows, T, n, kind, S, G, D, P: tl.constexpr, ROTATE: tl.constexpr):
    """[TILE, P] of float32, rotated."""
    channel = tl.arange(0, P)
    row = tl.minimum(row, rows - 1)
    start, own = _offsets(row, layers, heads, T, n, kind, S, G, D)
    x = tl.load(kv + start[:, None] + channel[None, :], mask=(channel < D)[None, :], other=0.0)
    if not ROTATE:
        return x.to(tl.float32)
    sign = tl.load(signs + own[:, None].to(tl.int64) * P + channel[None, :])
    ones = tl.load(matrix + channel[:, None] * P + channel[None, :])
    turned = (x.to(tl.float32) * sign).to(ones.dtype)
    return tl.dot(turned, ones, input_precision="ieee") * (P**-0.5)


@triton.jit
def _channel_ranges(
    low, high, kv, layers, heads, signs, matrix, rows, T, n, kind, S, G, D, spans, span,
    P: tl.constexpr, ROTATE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Of each channel of a head over a span of tokens; [B, spans, n, P]."""
    own, at = tl.program_id(0), tl.program_id(1)
    place, head = (own // n).to(tl.int64), own % n
    least = tl.full([P], float("inf"), tl.float32)
    most = tl.full([P], float("-inf"), tl.float32)
    first, last = at * span, tl.minimum(at * span + span, T)
    for token in range(first, last, TILE):
        each = tl.minimum(token + tl.arange(0, TILE), last - 1)  # the last one again moves no range
        y = _load_rows(
            (place * T + each) * n + head, kv, layers, heads, signs, matrix, rows, T, n, kind, S, G, D, P, ROTATE
        )
        least = tl.minimum(least, tl.min(tl.where(y != y, float("inf"), y), 0))
        most = tl.maximum(most, tl.max(tl.where(y != y, float("inf"), y), 0))
    to = ((place * spans + at) * n + head) * P + tl.arange(0, P)
    tl.store(low + to, least)
    tl.store(high + to, most)


@triton.jit
def _token_ranges(
    low, high, kv, layers, heads, signs, matrix, rows, T, n, kind, S, G, D,
    P: tl.constexpr, GROUP: tl.constexpr, ROTATE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Of each row's groups of channels; [R, P / GROUP]."""
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    y = _load_rows(row, kv, layers, heads, signs, matrix, rows, T, n, kind, S, G, D, P, ROTATE)
    y = tl.reshape(tl.where(y != y, float("inf"), y), [TILE, P // GROUP, GROUP])
    to = row[:, None] * (P // GROUP) + tl.arange(0, P // GROUP)[None, :]
    inside = (row < rows)[:, None]
    tl.store(low + to, tl.min(y, 2), mask=inside)
    tl.store(high + to, tl.max(y, 2), mask=inside)


@triton.jit
def _statistics(meta, row, T, n, numbers, run, P: tl.constexpr, GROUP: tl.constexpr):
    """Lowest value and step of each number of some rows; GROUP is 0 by channel, and P * n or less by token.

    ``meta`` is [B, 2, numbers]; ``run`` tokens of a channel share them, or all heads of a token where it is below 0.
    """
    channel = tl.arange(0, P)
    place = row // (T * n)
    within = row % (T * n)
    if GROUP == 0:
        token, own = within // n, within % n
        at = ((token // run) * n + own)[:, None] * P + channel[None, :]
    else:
        if run < 0:
            at = (within // n)[:, None] + channel[None, :] * 0
        else:
            at = within[:, None] * (P // GROUP) + (channel // GROUP)[None, :]
    at += place[:, None] * 2 * numbers
    return tl.load(meta + at).to(tl.float32), tl.load(meta + at + numbers).to(tl.float32)


@triton.jit
def _quantise(
    out, meta, kv, layers, heads, signs, matrix, rows, T, n, kind, S, G, D, numbers, run, base, words,
    P: tl.constexpr, GROUP: tl.constexpr, ROTATE: tl.constexpr, DIGITS: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """A tile of words: row ``r`` of them has the levels of rows r, r + words, ... as its digits."""
    word = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE, P], tl.int32)
    times = 1
    for digit in tl.static_range(DIGITS):
        row = tl.minimum(word + digit * words, rows - 1)
        y = _load_rows(row, kv, layers, heads, signs, matrix, rows, T, n, kind, S, G, D, P, ROTATE)
        low, step = _statistics(meta, row, T, n, numbers, run, P, GROUP)
        inverse = tl.where(step > 0, 1.0 / step, 0.0)
        level = ((y - low) * inverse + ROUND) - ROUND
        level = tl.minimum(tl.maximum(level, 0.0), base - 1.0)
        total += level.to(tl.int32) * times
        times = times * base
    to = word[:, None] * P + tl.arange(0, P)[None, :]
    for byte in tl.static_range(WIDTH):
        plane = out + byte * words.to(tl.int64) * P
        tl.store(plane + to, ((total >> (8 * byte)) & 255).to(tl.uint8), mask=(word < words)[:, None])


@triton.jit
def _restore(
    packed, meta, kv, layers, heads, signs, matrix, rows, T, n, kind, S, G, D, numbers, run, base, words,
    P: tl.constexpr, GROUP: tl.constexpr, ROTATE: tl.constexpr, DIGITS: tl.constexpr, WIDTH: tl.constexpr,
    PRECISION: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    word = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    channel = tl.arange(0, P)
    at = tl.minimum(word, words - 1)[:, None] * P + channel[None, :]
    total = tl.zeros([TILE, P], tl.int32)
    for byte in tl.static_range(WIDTH):
        total += tl.load(packed + byte * words.to(tl.int64) * P + at).to(tl.int32) << (8 * byte)
    for digit in tl.static_range(DIGITS):
        row = tl.minimum(word + digit * words, rows - 1)
        level = (total % base).to(tl.float32)
        total = total // base
        low, step = _statistics(meta, row, T, n, numbers, run, P, GROUP)
        y = level * step + low
        start, own = _offsets(row, layers, heads, T, n, kind, S, G, D)
        if ROTATE:
            ones = tl.load(matrix + channel[:, None] * P + channel[None, :]).to(tl.float32)
            sign = tl.load(signs + own[:, None].to(tl.int64) * P + channel[None, :])
            y = tl.dot(y, ones, input_precision=PRECISION) * (P**-0.5) * sign
        inside = (word < words)[:, None] & (channel < D)[None, :]
        tl.store(kv + start[:, None] + channel[None, :], y.to(kv.dtype.element_ty), mask=inside)


@triton.jit
def _pack(levels, out, count, words, base, DIGITS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr):
    word = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE], tl.int32)
    times = 1
    for digit in tl.static_range(DIGITS):
        at = word + digit * words
        total += tl.load(levels + at, mask=(word < words) & (at < count), other=0).to(tl.int32) * times
        times = times * base
    for byte in tl.static_range(WIDTH):
        tl.store(out + byte * words.to(tl.int64) + word, ((total >> (8 * byte)) & 255).to(tl.uint8), mask=word < words)


@triton.jit
def _unpack(packed, out, count, words, base, DIGITS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr):
    word = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE], tl.int32)
    for byte in tl.static_range(WIDTH):
        one = tl.load(packed + byte * words.to(tl.int64) + word, mask=word < words, other=0)
        total += one.to(tl.int32) << (8 * byte)
    for digit in tl.static_range(DIGITS):
        at = word + digit * words
        tl.store(out + at, (total % base).to(tl.uint8), mask=(word < words) & (at < count))
        total = total // base


def row_ranges(rows: DeviceRows, axis: str, group: int) -> tuple[Tensor, Tensor]:
    """Lowest and highest numbers of what shares statistics, [B, numbers] of float32; NaN counts as infinite.

    Args:
        rows: of a group of heads.
        axis: ``channel`` or ``token``.
        group: tokens of a channel or channels of a token that share them; 0 for all.
    """
    layers, own = rows.heads.shape
    tokens, channels, rotate = rows.tokens, rows.channels, rows.signs is not None
    if axis == "channel":
        span = group or SPAN
        spans = -(-tokens // span)
        low = torch.empty(layers, spans, own * channels, device=rows.kv.device)
        high = torch.empty_like(low)
        _channel_ranges[(layers * own, spans)](
            low, high, *rows.arguments(), spans, span, P=channels, ROTATE=rotate, TILE=TILE
        )
        if not group:
            low, high = low.amin(1, keepdim=True), high.amax(1, keepdim=True)
    else:
        each = group or channels
        low = torch.empty(layers, tokens, own * (channels // each), device=rows.kv.device)
        high = torch.empty_like(low)
        _token_ranges[(triton.cdiv(rows.count, TILE),)](
            low, high, *rows.arguments(), P=channels, GROUP=each, ROTATE=rotate, TILE=TILE
        )
        if not group:
            low, high = low.amin(2), high.amax(2)
    return low.reshape(layers, -1), high.reshape(layers, -1)


def quantise_rows(
    rows: DeviceRows, meta: Tensor, out: Tensor, *, axis: str, group: int, base: int, digits: int, width: int
) -> None:
    """Levels of all rows, ``digits`` of them in a word of ``width`` bytes.

    Args:
        rows: of a group of heads; their number is a multiple of ``digits``.
        meta: [B, 2, numbers] of float16: lowest values and steps.
        out: of uint8, R P / digits * width of them.
        axis, group: as for :func:`row_ranges`.
        base: levels.
        digits, width: of a word.
    """
    words = rows.count // digits
    _quantise[(triton.cdiv(words, TILE),)](
        out, meta, *rows.arguments(), meta.shape[2], _run(rows, axis, group), base, words,
        P=rows.channels, GROUP=_shared(rows, axis, group), ROTATE=rows.signs is not None, DIGITS=digits, WIDTH=width,
        TILE=TILE,
    )  # fmt: skip


def restore_rows(
    rows: DeviceRows, meta: Tensor, packed: Tensor, *, axis: str, group: int, base: int, digits: int, width: int
) -> None:
    """Numbers from what :func:`quantise_rows` wrote, into ``rows.kv``."""
    words = rows.count // digits
    precision = "ieee" if rows.kv.dtype is torch.float32 else "tf32x3"
    _restore[(triton.cdiv(words, TILE),)](
        packed, meta, *rows.arguments(), meta.shape[2], _run(rows, axis, group), base, words,
        P=rows.channels, GROUP=_shared(rows, axis, group), ROTATE=rows.signs is not None, DIGITS=digits, WIDTH=width,
        PRECISION=precision, TILE=TILE,
    )  # fmt: skip


def _run(rows: DeviceRows, axis: str, group: int) -> int:
    if axis == "channel":
        return group or rows.tokens
    return 0 if group else -1


def _shared(rows: DeviceRows, axis: str, group: int) -> int:
    return 0 if axis == "channel" else group or rows.channels


def pack(levels: Tensor, out: Tensor, base: int, digits: int, width: int) -> None:
    """Levels [N] of uint8 to words of ``width`` bytes, as :func:`~.codecs.pack_levels` lays them out."""
    words = -(-len(levels) // digits)
    _pack[(triton.cdiv(words, 1024),)](
        levels, out, len(levels), words, base, DIGITS=digits, WIDTH=width, TILE=1024
    )  # fmt: skip


def unpack(packed: Tensor, out: Tensor, base: int, digits: int, width: int) -> None:
    """The levels again."""
    words = -(-len(out) // digits)
    _unpack[(triton.cdiv(words, 1024),)](
        packed, out, len(out), words, base, DIGITS=digits, WIDTH=width, TILE=1024
    )  # fmt: skip
