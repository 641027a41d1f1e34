"""Stage Q: numbers become levels; statistics in 16 bits are rounded outwards, so that half a step bounds the error.

Shapes: T tokens, G heads, P channels; numbers that share statistics are one column of [A, R, B].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from heliograph.errors import HeliographError

__all__ = ["AbsMaxQuantizer", "KVQuantizer", "MinMaxQuantizer", "NotRepresentable", "make_quantizer", "min_max_meta"]


class NotRepresentable(HeliographError):
    """Numbers that are not finite, or whose statistics 16 bits do not hold; they travel as they are."""


class KVQuantizer(Protocol):
    """Turns numbers into levels and back."""

    def forward(self, x: Tensor, levels: int) -> tuple[Tensor, list[Tensor]]:
        """[T, G, P] to levels of uint8 in the quantiser's own order, and statistics of float16."""
        ...

    def inverse(self, q: Tensor, meta: Sequence[Tensor], levels: int, shape: tuple[int, int, int]) -> Tensor:
        """Levels back to [T, G, P] of float32."""
        ...

    def meta_shapes(self, shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
        """Shapes of the statistics of [T, G, P]."""
        ...

    def count(self, shape: tuple[int, int, int]) -> int:
        """Levels that [T, G, P] gives, padding included."""
        ...

    def bound(self, meta: Sequence[Tensor], levels: int, shape: tuple[int, int, int]) -> Tensor:
        """The largest error of each number, [T, G, P]."""
        ...


class _Grouped:
    """Which numbers share statistics.

    Args:
        axis: ``channel``: tokens of one channel; ``token``: channels of one token.
        group: how many of them; 0 for all.
    """

    def __init__(self, axis: str, group: int = 0) -> None:
        self.axis, self.group = axis, group

    def sizes(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """A, R and B."""
        tokens, heads, channels = shape
        if self.axis == "channel":
            rows = min(self.group or tokens, tokens)
            return -(-tokens // rows), rows, heads * channels
        if not self.group:
            return tokens, heads * channels, 1
        rows = min(self.group, channels)
        return tokens * heads * -(-channels // rows), rows, 1

    def fold(self, x: Tensor) -> Tensor:
        """[T, G, P] to [A, R, B]; the last number of a row fills what is missing, which moves no statistics."""
        a, r, b = self.sizes((x.shape[0], x.shape[1], x.shape[2]))
        if self.axis == "channel":
            missing = a * r - x.shape[0]
            if missing:
                x = torch.cat([x, x[-1:].expand(missing, -1, -1)])
        elif self.group:
            missing = a * r // (x.shape[0] * x.shape[1]) - x.shape[2]
            if missing:
                x = torch.cat([x, x[..., -1:].expand(-1, -1, missing)], -1)
        return x.reshape(a, r, b)

    def unfold(self, y: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """[A, R, B] back to [T, G, P]."""
        tokens, heads, channels = shape
        if self.axis == "channel":
            return y.reshape(-1, heads, channels)[:tokens]
        return y.reshape(tokens, heads, -1)[..., :channels]

    def meta_shape(self, shape: tuple[int, int, int]) -> tuple[int, ...]:
        """Of one statistic."""
        a, _, b = self.sizes(shape)
        return (a, b)

    def count(self, shape: tuple[int, int, int]) -> int:
        """Levels."""
        a, r, b = self.sizes(shape)
        return a * r * b


class MinMaxQuantizer(_Grouped):
    r"""Levels from the lowest to the highest number.

    .. math:: q = \mathrm{clip}(\mathrm{round}((x - m) / s), 0, n - 1), \qquad s = (M - m) / (n - 1)

    with m rounded down and s rounded up to 16 bits; the error is at most s / 2.
    """

    def forward(self, x: Tensor, levels: int) -> tuple[Tensor, list[Tensor]]:
        """Levels [A, R, B], and m and s [A, B]."""
        y = self.fold(x)
        low, high = torch.aminmax(y, dim=1) if y.shape[1] else (y.new_zeros(y.shape[0], y.shape[2]),) * 2
        low16, step16 = min_max_meta(low, high, levels)
        step = step16.float()
        inverse = torch.where(step > 0, 1 / step, 0.0)
        q = (y - low16.float()[:, None]).mul_(inverse[:, None]).round_().clamp_(0, levels - 1)
        return q.to(torch.uint8), [low16, step16]

    def inverse(self, q: Tensor, meta: Sequence[Tensor], levels: int, shape: tuple[int, int, int]) -> Tensor:  # noqa: ARG002
        """Numbers in the middle of their steps."""
        low, step = (part.float()[:, None] for part in meta)
        y = q.view(self.sizes(shape)).float().mul_(step).add_(low)
        return self.unfold(y, shape)

    def meta_shapes(self, shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
        """m and s."""
        return [self.meta_shape(shape)] * 2

    def bound(self, meta: Sequence[Tensor], levels: int, shape: tuple[int, int, int]) -> Tensor:
        """Half a step, and what float32 rounds in between."""
        low, step = (part.float() for part in meta)
        half = step / 2 + (low.abs() + levels * step) * 2e-7
        return self.unfold(half[:, None].expand(*self.sizes(shape)).contiguous(), shape)


class AbsMaxQuantizer(_Grouped):
    r"""Levels around zero.

    .. math:: q = \mathrm{round}(x M / a + M), \qquad M = \lfloor n / 2 \rfloor - 1

    with a the largest absolute number, rounded up to 16 bits; the error is at most a / (2 M).
    """

    def forward(self, x: Tensor, levels: int) -> tuple[Tensor, list[Tensor]]:
        """Levels [A, R, B], and a [A, B]."""
        y, middle = self.fold(x), levels // 2 - 1
        largest = y.abs().amax(1) if y.shape[1] else y.new_zeros(y.shape[0], y.shape[2])
        largest16 = _up(largest)
        _check(largest16)
        wide = largest16.float()
        inverse = torch.where(wide > 0, middle / wide, 0.0)
        q = (y * inverse[:, None]).round_().add_(middle).clamp_(0, 2 * middle)
        return q.to(torch.uint8), [largest16]

    def inverse(self, q: Tensor, meta: Sequence[Tensor], levels: int, shape: tuple[int, int, int]) -> Tensor:
        """Numbers in the middle of their steps."""
        middle = levels // 2 - 1
        y = q.view(self.sizes(shape)).float().sub_(middle).mul_((meta[0].float() / middle)[:, None])
        return self.unfold(y, shape)

    def meta_shapes(self, shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
        """Only a."""
        return [self.meta_shape(shape)]

    def bound(self, meta: Sequence[Tensor], levels: int, shape: tuple[int, int, int]) -> Tensor:
        """Half a step, and what float32 rounds in between."""
        half = meta[0].float() * (0.5 / (levels // 2 - 1) + 5e-7)
        return self.unfold(half[:, None].expand(*self.sizes(shape)).contiguous(), shape)


def min_max_meta(low: Tensor, high: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """m and s of :class:`MinMaxQuantizer` from the ends of the ranges.

    Raises:
        NotRepresentable: not finite.
    """
    low16 = _down(low)
    step16 = _up((high - low16.float()) / (levels - 1))
    _check(low16, step16)
    return low16, step16


def make_quantizer(name: str, axis: str, group: int) -> KVQuantizer:
    """The quantiser of that name."""
    return (AbsMaxQuantizer if name == "absmax" else MinMaxQuantizer)(axis, group)


def _down(x: Tensor) -> Tensor:
    """The next number of 16 bits that is not above."""
    found = x.half()
    bits = found.view(torch.int16)
    # the next number below: one more bit pattern for negative numbers, one less for positive ones, -0's for 0
    lower = torch.where(bits == 0, torch.full_like(bits, -0x7FFF), torch.where(bits < 0, bits + 1, bits - 1))
    return torch.where(found.float() > x, lower, bits).view(torch.float16)


def _up(x: Tensor) -> Tensor:
    """The next number of 16 bits that is not below."""
    return -_down(-x)


def _check(*parts: Tensor) -> None:
    if not all(bool(part.isfinite().all()) for part in parts):
        raise NotRepresentable("numbers are not finite, or too large for statistics of 16 bits")
