"""Rotating, quantising and packing as one kernel on CUDA, and the way back. Imported only where it runs.

A program goes through a span of tokens of one head, so that signs, matrix and a channel's statistics are read once. A
rotation multiplies by signs and a matrix of ones and minus ones, which 16-bit tensor cores do exactly; sums are
float32. On the way back numbers are split into two of 16 bits, whose error is far below that of the cache's own format.
The plain forms in ``transforms``, ``quantizers`` and ``codecs`` are what these must equal, but for numbers that lie so
close to the middle between two levels that the order of a sum decides.

Shapes: B layers of a group, T tokens, n heads of a layer, D channels, P channels after padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["DeviceRows", "pack", "quantise_rows", "restore_rows", "row_ranges", "unpack"]

TILE = 64
# what shares statistics: all tokens of a channel, some of them, all channels of a token's heads, some of a head's
OVER_TOKENS, OVER_RUNS, OVER_HEADS, OVER_CHANNELS = (tl.constexpr(number) for number in range(4))
SPAN = 512  # tokens that one program goes through
ROUND = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding and taking it away rounds to the even whole number


@dataclass(frozen=True, eq=False)
class DeviceRows:
    """Where the heads of a group lie in keys and values.

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

    def arguments(self) -> tuple[object, ...]:
        """What every kernel is given of it."""
        kv, spare = self.kv, self.kv
        return (
            kv, self.layers, self.heads, spare if self.signs is None else self.signs,
            spare if self.matrix is None else self.matrix,
            self.tokens, self.heads.shape[1], self.kind, kv.shape[2], kv.shape[3], kv.shape[4],
        )  # fmt: skip


@triton.jit
def _head_of(layers, heads, place, own, n, kind, S, G, D):
    """Where the first token of a head lies; the next one is G D numbers on."""
    layer = tl.load(layers + place).to(tl.int64)
    head = tl.load(heads + place * n + own)
    return ((layer * 2 + kind) * S * G + head) * D


@triton.jit
def _ones(matrix, P: tl.constexpr, ROTATE: tl.constexpr):
    """The matrix; anything where nothing is rotated."""
    channel = tl.arange(0, P)
    return tl.load(matrix + channel[:, None] * P + channel[None, :]) if ROTATE else 0


@triton.jit
def _signs_of(signs, place, own, n, P: tl.constexpr, ROTATE: tl.constexpr):
    return tl.load(signs + (place * n + own).to(tl.int64) * P + tl.arange(0, P)) if ROTATE else 0


@triton.jit
def _load_tokens(kv, start, token, stride, sign, ones, D, P: tl.constexpr, ROTATE: tl.constexpr):
    """[TILE, P] of float32, rotated."""
    channel = tl.arange(0, P)
    at = start + token.to(tl.int64)[:, None] * stride + channel[None, :]
    x = tl.load(kv + at, mask=(channel < D)[None, :], other=0.0).to(tl.float32)
    if ROTATE:
        x = tl.dot((x * sign[None, :]).to(ones.dtype), ones, input_precision="ieee") * (P**-0.5)
    return x


@triton.jit
def _channel_ranges(
    low, high, kv, layers, heads, signs, matrix, T, n, kind, S, G, D, spans, span,
    P: tl.constexpr, ROTATE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Of each channel of a head over a span of tokens; [B, spans, n, P]."""
    place, own = tl.program_id(0).to(tl.int64) // n, tl.program_id(0) % n
    at = tl.program_id(1)
    start = _head_of(layers, heads, place, own, n, kind, S, G, D)
    sign, ones = _signs_of(signs, place, own, n, P, ROTATE), _ones(matrix, P, ROTATE)
    least = tl.full([P], float("inf"), tl.float32)
    most = tl.full([P], float("-inf"), tl.float32)
    first, last = at * span, tl.minimum(at * span + span, T)
    for token in range(first, last, TILE):
        each = tl.minimum(token + tl.arange(0, TILE), last - 1)  # the last one again moves no range
        y = _load_tokens(kv, start, each, G * D, sign, ones, D, P, ROTATE)
        least = tl.minimum(least, tl.min(tl.where(y != y, float("inf"), y), 0))
        most = tl.maximum(most, tl.max(tl.where(y != y, float("inf"), y), 0))
    to = ((place * spans + at) * n + own) * P + tl.arange(0, P)
    tl.store(low + to, least)
    tl.store(high + to, most)


@triton.jit
def _token_ranges(
    low, high, kv, layers, heads, signs, matrix, T, n, kind, S, G, D, span,
    P: tl.constexpr, GROUP: tl.constexpr, ROTATE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Of each token's groups of channels in a head; [B, T, n, P / GROUP]."""
    place, own = tl.program_id(0).to(tl.int64) // n, tl.program_id(0) % n
    start = _head_of(layers, heads, place, own, n, kind, S, G, D)
    sign, ones = _signs_of(signs, place, own, n, P, ROTATE), _ones(matrix, P, ROTATE)
    first = tl.program_id(1) * span
    for begin in range(first, tl.minimum(first + span, T), TILE):
        token = begin + tl.arange(0, TILE)
        y = _load_tokens(kv, start, tl.minimum(token, T - 1), G * D, sign, ones, D, P, ROTATE)
        y = tl.reshape(tl.where(y != y, float("inf"), y), [TILE, P // GROUP, GROUP])
        to = ((place * T + token) * n + own)[:, None] * (P // GROUP) + tl.arange(0, P // GROUP)[None, :]
        inside = (token < T)[:, None]
        tl.store(low + to, tl.min(y, 2), mask=inside)
        tl.store(high + to, tl.max(y, 2), mask=inside)


@triton.jit
def _statistics(meta, token, own, n, numbers, run, P: tl.constexpr, SHARING: tl.constexpr, GROUP: tl.constexpr):
    """Lowest value and step of some tokens of a head, that broadcast to [TILE, P]."""
    channel = tl.arange(0, P)
    if SHARING == OVER_TOKENS:
        at = own * P + channel[None, :]
    elif SHARING == OVER_RUNS:
        at = ((token // run) * n + own)[:, None] * P + channel[None, :]
    elif SHARING == OVER_HEADS:
        at = token[:, None]
    else:
        at = (token * n + own)[:, None] * (P // GROUP) + (channel // GROUP)[None, :]
    return tl.load(meta + at).to(tl.float32), tl.load(meta + at + numbers).to(tl.float32)


@triton.jit
def _quantise(
    out, meta, kv, layers, heads, signs, matrix, T, n, kind, S, G, D, numbers, run, base, words, span,
    P: tl.constexpr, SHARING: tl.constexpr, GROUP: tl.constexpr, ROTATE: tl.constexpr, DIGITS: tl.constexpr,
    WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Words of a head: their digits are the levels of the same head and token, some layers apart."""
    place, own = tl.program_id(0).to(tl.int64) // n, tl.program_id(0) % n
    ones = _ones(matrix, P, ROTATE)
    first = tl.program_id(1) * span
    for begin in range(first, tl.minimum(first + span, T), TILE):
        token = begin + tl.arange(0, TILE)
        inside = tl.minimum(token, T - 1)
        total = tl.zeros([TILE, P], tl.int32)
        times = 1
        for digit in tl.static_range(DIGITS):
            here = place + digit * words
            start = _head_of(layers, heads, here, own, n, kind, S, G, D)
            sign = _signs_of(signs, here, own, n, P, ROTATE)
            y = _load_tokens(kv, start, inside, G * D, sign, ones, D, P, ROTATE)
            table = meta + here * 2 * numbers
            low, step = _statistics(table, inside, own, n, numbers, run, P, SHARING, GROUP)
            inverse = tl.where(step > 0, 1.0 / step, 0.0)
            level = ((y - low) * inverse + ROUND) - ROUND
            level = tl.minimum(tl.maximum(level, 0.0), base - 1.0)
            total += level.to(tl.int32) * times
            times = times * base
        to = ((place * T + token) * n + own)[:, None] * P + tl.arange(0, P)[None, :]
        for byte in tl.static_range(WIDTH):
            plane = out + byte * (tl.cast(words, tl.int64) * T * n * P)
            tl.store(plane + to, ((total >> (8 * byte)) & 255).to(tl.uint8), mask=(token < T)[:, None])


@triton.jit
def _restore(
    packed, meta, kv, layers, heads, signs, matrix, T, n, kind, S, G, D, numbers, run, base, words, span,
    P: tl.constexpr, SHARING: tl.constexpr, GROUP: tl.constexpr, ROTATE: tl.constexpr, DIGITS: tl.constexpr,
    WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    place, own = tl.program_id(0).to(tl.int64) // n, tl.program_id(0) % n
    channel = tl.arange(0, P)
    ones = _ones(matrix, P, ROTATE)
    first = tl.program_id(1) * span
    for begin in range(first, tl.minimum(first + span, T), TILE):
        token = begin + tl.arange(0, TILE)
        inside = tl.minimum(token, T - 1)
        at = ((place * T + inside) * n + own)[:, None] * P + channel[None, :]
        total = tl.zeros([TILE, P], tl.int32)
        for byte in tl.static_range(WIDTH):
            plane = packed + byte * (tl.cast(words, tl.int64) * T * n * P)
            total += tl.load(plane + at).to(tl.int32) << (8 * byte)
        for digit in tl.static_range(DIGITS):
            here = place + digit * words
            level = (total % base).to(tl.float32)
            total = total // base
            table = meta + here * 2 * numbers
            low, step = _statistics(table, inside, own, n, numbers, run, P, SHARING, GROUP)
            y = level * step + low
            if ROTATE:
                sign = _signs_of(signs, here, own, n, P, ROTATE)
                coarse = y.to(ones.dtype)
                x = tl.dot(coarse, ones, input_precision="ieee")
                if ones.dtype != tl.float32:
                    x = tl.dot((y - coarse.to(tl.float32)).to(ones.dtype), ones, x)
                y = x * (P**-0.5) * sign[None, :]
            start = _head_of(layers, heads, here, own, n, kind, S, G, D)
            to = start + token.to(tl.int64)[:, None] * (G * D) + channel[None, :]
            tl.store(kv + to, y.to(kv.dtype.element_ty), mask=(token < T)[:, None] & (channel < D)[None, :])


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
        tl.store(
            out + byte * tl.cast(words, tl.int64) + word, ((total >> (8 * byte)) & 255).to(tl.uint8), mask=word < words
        )


@triton.jit
def _unpack(packed, out, count, words, base, DIGITS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr):
    word = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    total = tl.zeros([TILE], tl.int32)
    for byte in tl.static_range(WIDTH):
        one = tl.load(packed + byte * tl.cast(words, tl.int64) + word, mask=word < words, other=0)
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
            low, high, *rows.arguments(), spans, span, P=channels, ROTATE=rotate,
            TILE=min(TILE, max(16, triton.next_power_of_2(span))),
        )  # fmt: skip
        if not group:
            low, high = low.amin(1, keepdim=True), high.amax(1, keepdim=True)
    else:
        each = group or channels
        low = torch.empty(layers, tokens, own * (channels // each), device=rows.kv.device)
        high = torch.empty_like(low)
        _token_ranges[(layers * own, -(-tokens // SPAN))](
            low,
            high,
            *rows.arguments(),
            SPAN,
            P=channels,
            GROUP=each,
            ROTATE=rotate,
            TILE=TILE if each == channels else 32,  # groups within a row fit worse into registers
        )
        if not group:
            low, high = low.amin(2), high.amax(2)
    return low.reshape(layers, -1), high.reshape(layers, -1)


def quantise_rows(
    rows: DeviceRows, meta: Tensor, out: Tensor, *, axis: str, group: int, base: int, digits: int, width: int
) -> None:
    """Levels of all heads, ``digits`` of them in a word of ``width`` bytes.

    Args:
        rows: of a group of heads; the number of layers is a multiple of ``digits``.
        meta: [B, 2, numbers] of float16: lowest values and steps.
        out: of uint8, B T n P / digits * width of them.
        axis, group: as for :func:`row_ranges`.
        base: levels.
        digits, width: of a word.
    """
    _launch(_quantise, out, rows, meta, axis, group, base, digits, width)


def restore_rows(
    rows: DeviceRows, meta: Tensor, packed: Tensor, *, axis: str, group: int, base: int, digits: int, width: int
) -> None:
    """Numbers from what :func:`quantise_rows` wrote, into ``rows.kv``."""
    _launch(_restore, packed, rows, meta, axis, group, base, digits, width)


def _launch(
    kernel, packed: Tensor, rows: DeviceRows, meta: Tensor, axis: str, group: int, base: int, digits: int, width: int
) -> None:
    layers, own = rows.heads.shape
    words = layers // digits
    if axis == "channel":
        sharing = OVER_RUNS if 0 < group < rows.tokens else OVER_TOKENS
    else:
        sharing = OVER_CHANNELS if group else OVER_HEADS
    kernel[(words * own, -(-rows.tokens // SPAN))](
        packed, meta, *rows.arguments(), meta.shape[2], max(1, group), base, words, SPAN,
        P=rows.channels, SHARING=sharing, GROUP=group or rows.channels, ROTATE=rows.signs is not None,
        DIGITS=digits, WIDTH=width, TILE=TILE,
    )  # fmt: skip


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
