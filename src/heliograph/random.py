"""Noise that does not depend on how work is divided: a counter-based generator with the same bits everywhere.

Element ``i`` of a stream is a pure function of (seed, step, item, layer, i), so a rank may draw any slice of a tensor's
noise without drawing the rest, and two machines that split the work differently see the same numbers. Bits come from
Philox4x32 with ten rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). Normals use only
operations that IEEE 754 rounds exactly, hence numpy and torch agree bit for bit.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

__all__ = ["CounterRng", "CounterStream", "philox4x32"]

_MASK32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox4x32(counter: tuple[Any, Any, Any, Any], key: tuple[Any, Any]) -> tuple[Any, Any, Any, Any]:
    """The Philox4x32-10 bijection on 32-bit words held in 64-bit integers.

    Args:
        counter: four words; numpy or torch int64 arrays of one shape, or Python integers below 2**32.
        key: two words, likewise.

    Returns:
        Four words, each in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The signed 64-bit product wraps to the same bits as the unsigned one; the mask drops the sign extension.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, low0 = (product0 >> 32) & _MASK32, product0 & _MASK32
        high1, low1 = (product1 >> 32) & _MASK32, product1 & _MASK32
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return c0, c1, c2, c3


class CounterRng:
    """A family of independent streams, one for each (step, item, layer).

    >>> rng = CounterRng(seed=7)
    >>> whole = rng.at(step=3).uniform(10)
    >>> bool((rng.at(step=3).uniform(4, start=6) == whole[6:]).all())
    True

    Args:
        seed: any integer from 0 to 2**64 - 1.
    """

    def __init__(self, seed: SupportsIndex) -> None:
        self.seed = operator.index(seed)  # numpy's narrow integers would wrap in the arithmetic below
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must lie in [0, 2**64); got {seed}")

    def at(self, step: SupportsIndex = 0, item: SupportsIndex = 0, layer: SupportsIndex = 0) -> CounterStream:
        """The stream of this step, item and layer.

        Args:
            step: from 0 to 2**32 - 1.
            item: from 0 to 2**32 - 1, for example a sample or an expert.
            layer: from 0 to 2**16 - 1.
        """
        step, item, layer = operator.index(step), operator.index(item), operator.index(layer)
        for name, value, bits in (("step", step, 32), ("item", item, 32), ("layer", layer, 16)):
            if not 0 <= value < 2**bits:
                raise ValueError(f"{name} must lie in [0, 2**{bits}); got {value}")
        return CounterStream(self.seed, step, item, layer)


@dataclass(frozen=True)
class CounterStream:
    """An endless row of numbers, addressable by element."""

    seed: int
    step: int
    item: int
    layer: int

    def bits(self, count: SupportsIndex, start: SupportsIndex = 0, device: Any = None) -> Any:
        """Random 64-bit words for elements ``start .. start + count - 1``.

        Args:
            count: how many elements.
            start: the first element's index; at most 2**46.
            device: ``None`` for numpy, else a torch device.

        Returns:
            int64 array (numpy) or tensor (torch) of ``count`` words; two's complement, all bits random.
        """
        count, start = operator.index(count), operator.index(start)
        if count < 0 or start < 0 or start + count > 2**46:
            raise ValueError(f"elements must lie in [0, 2**46]; got start {start}, count {count}")
        index = _arange(start, count, device)
        block = index >> 1
        # Counter words: block index (45 bits) and layer (16), step, item. Key words: the seed.
        high = ((block >> 32) & _MASK32) | (self.layer << 16)
        zero = block * 0
        seed_low, seed_high = self.seed & _MASK32, self.seed >> 32
        with np.errstate(over="ignore"):
            w0, w1, w2, w3 = philox4x32(
                (block & _MASK32, high, zero + self.step, zero + self.item), (seed_low, seed_high)
            )
            odd = index & 1
            low, top = w0 + odd * (w2 - w0), w1 + odd * (w3 - w1)
            # Shifting the top word left past the sign bit wraps; built from parts so that no library complains.
            return low | (((top & 0x7FFFFFFF) << 32) | -(top >> 31) * (1 << 62) * 2)

    def uniform(self, count: SupportsIndex, start: SupportsIndex = 0, device: Any = None) -> Any:
        """Float64 in the open interval (0, 1): odd multiples of 2**-53."""
        mantissa = (self.bits(count, start, device) >> 12) & ((1 << 52) - 1)
        return ((_to_float(mantissa) if device is None else mantissa.double()) + 0.5) * 2.0**-52

    def integers(self, low: int, high: int, count: SupportsIndex, start: SupportsIndex = 0, device: Any = None) -> Any:
        """Integers in [low, high); the bias is below 2**-21 for ranges up to 2**32.

        Raises:
            ValueError: an empty range, one wider than 2**32, or one outside the 64-bit integers.
        """
        low, high = operator.index(low), operator.index(high)
        width = high - low
        if not 0 < width <= 2**32:
            raise ValueError(f"need low < high and at most 2**32 values; got [{low}, {high})")
        if low < -(2**63) or high > 2**63:
            raise ValueError(f"the values must fit 64-bit integers; got [{low}, {high})")
        return low + (((self.bits(count, start, device) >> 11) & ((1 << 53) - 1)) % width)

    def normal(self, count: SupportsIndex, start: SupportsIndex = 0, device: Any = None) -> Any:
        """Float64 standard normals by the inverse distribution function (Wichura's AS 241, 1988)."""
        uniform = self.uniform(count, start, device)
        return _inverse_normal(uniform)

    def rademacher(self, count: SupportsIndex, start: SupportsIndex = 0, device: Any = None) -> Any:
        """Float64 signs, -1 or 1 with equal chance."""
        sign = self.bits(count, start, device) & 1
        return (_to_float(sign) if device is None else sign.double()) * 2.0 - 1.0


def _arange(start: int, count: int, device: Any) -> Any:
    if device is None:
        return np.arange(start, start + count, dtype=np.int64)
    import torch

    return torch.arange(start, start + count, dtype=torch.int64, device=device)


def _to_float(integers: NDArray[np.int64]) -> NDArray[np.float64]:
    return integers.astype(np.float64)


# Wichura's three rational approximations: numerator and denominator, highest power first.
_CENTRE = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.3871328727963666080),
    (5226.4952788528545610, 28729.085735721942674, 39307.895800092710610, 21213.794301586595867,
     5394.1960214247511077, 687.18700749205790830, 42.313330701600911252, 1.0),
)  # fmt: skip
_MIDDLE = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258,
     3.64784832476320460504, 5.76949722146069140550, 4.63033784615654529590, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
     6.89767334985100004550e-1, 1.67638483018380384940, 2.05319162663775882187, 1.0),
)  # fmt: skip
_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
     2.96560571828504891230e-1, 1.78482653991729133580, 5.46378491116411436990, 6.65790464350110377720),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
     1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0),
)  # fmt: skip


def _rational(x: Any, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> Any:
    top, bottom = coefficients
    numerator, denominator = x * 0 + top[0], x * 0 + bottom[0]
    for a, b in zip(top[1:], bottom[1:], strict=True):
        numerator, denominator = numerator * x + a, denominator * x + b
    return numerator / denominator


def _int64_view(x: Any) -> Any:
    if isinstance(x, np.ndarray):
        return x.view(np.int64)
    import torch

    return x.view(torch.int64)


def _where(condition: Any, yes: Any, no: Any) -> Any:
    if isinstance(condition, np.ndarray):
        return np.where(condition, yes, no)
    import torch

    return torch.where(condition, yes, no)


def _same_sqrt(x: Any) -> Any:
    """Square root of positive float64 by Newton steps: vectorised library roots differ in the last bit."""
    root = ((_int64_view(x) >> 1) + (1023 << 51)).view(x.dtype)
    for _ in range(6):
        root = 0.5 * (root + x / root)
    return root


def _same_log(x: Any) -> Any:
    """Natural logarithm of float64 in (0, 1) by additions, multiplications and divisions alone: equal bits everywhere.

    ``x = m 2**e`` with m in [sqrt(1/2), sqrt(2)); ``log m = 2 atanh(s)`` with ``s = (m - 1) / (m + 1)``.
    """
    bits = _int64_view(x)
    exponent = ((bits >> 52) & 0x7FF) - 1023
    mantissa = ((bits & ((1 << 52) - 1)) | (1023 << 52)).view(x.dtype)
    high = mantissa > 1.4142135623730951
    mantissa = _where(high, mantissa * 0.5, mantissa)
    power = _where(high, exponent + 1, exponent) + x * 0  # float64 in both libraries
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    series = square * 0 + 1.0 / 25
    for odd in range(23, 0, -2):
        series = series * square + 1.0 / odd
    return power * 0.6931471805599453 + 2.0 * s * series


def _inverse_normal(p: Any) -> Any:
    centred = p - 0.5
    centre = centred * _rational(0.180625 - centred * centred, _CENTRE)
    radius = _same_sqrt(-_same_log(_where(centred < 0, p, 1.0 - p)))
    tail = _where(radius <= 5.0, _rational(radius - 1.6, _MIDDLE), _rational(radius - 5.0, _TAIL))
    return _where(abs(centred) <= 0.425, centre, _where(centred < 0, -tail, tail))
