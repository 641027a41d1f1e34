"""Seeded request generators: Poisson and bursty arrivals, log-normal lengths, shared prefixes.

The same seed gives the same trace everywhere: all draws come from :class:`heliograph.random.CounterRng`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from heliograph.errors import BadInput
from heliograph.random import CounterRng
from heliograph.workload.requests import RequestTrace, TraceRequest

__all__ = ["LogNormalLengths", "arrival_times", "generate_requests"]

ARRIVALS, PROMPTS, OUTPUTS, PREFIXES = range(4)


@dataclass(frozen=True)
class LogNormalLengths:
    """Lengths in tokens whose logarithm is normal, cut to ``low .. high``.

    Attributes:
        mu, sigma: of the logarithm; sigma 0 gives one length.
        low, high: shortest and longest; longer draws are not clipped but never drawn.
    """

    mu: float
    sigma: float
    low: int = 1
    high: int = 2**20

    def __post_init__(self) -> None:
        """Refuses an empty range."""
        if not (self.sigma >= 0 and math.isfinite(self.mu) and 1 <= self.low <= self.high):
            raise BadInput(
                f"need sigma >= 0 and 1 <= low <= high; got sigma {self.sigma}, low {self.low}, high {self.high}"
            )
        if self.sigma > 0 and self._share(self.high) - self._share(self.low) <= 0:
            raise BadInput(f"no length between {self.low} and {self.high} has any chance at mu {self.mu}")

    @classmethod
    def fixed(cls, tokens: int) -> LogNormalLengths:
        """Always this length."""
        return cls(math.log(tokens), 0.0, tokens, tokens)

    @classmethod
    def from_median(cls, median: float, sigma: float, low: int = 1, high: int = 2**20) -> LogNormalLengths:
        """From the median before cutting."""
        if not median > 0:
            raise BadInput(f"a median length is positive; got {median}")
        return cls(math.log(median), sigma, low, high)

    def sample(self, count: int, seed: int = 0, stream: int = PROMPTS) -> NDArray[np.int64]:
        """``count`` whole lengths, by the inverse of the cut distribution."""
        if self.sigma == 0:
            return np.full(count, min(self.high, max(self.low, round(math.exp(self.mu)))), dtype=np.int64)
        uniform = CounterRng(seed).at(item=stream).uniform(count)
        bottom, top = self._share(self.low), self._share(self.high)
        drawn = np.exp(self.mu + self.sigma * special.ndtri(bottom + uniform * (top - bottom)))
        return np.asarray(np.clip(np.rint(drawn), self.low, self.high), dtype=np.int64)

    def mean(self) -> float:
        """The mean of the cut distribution."""
        return self.mean_between(self.low, self.high)

    def share_above(self, tokens: float) -> float:
        """Chance of a length above ``tokens``."""
        if self.sigma == 0:
            return float(math.exp(self.mu) > tokens)
        bottom, top = self._share(self.low), self._share(self.high)
        inside = min(max(self._share(max(tokens, 1e-9)), bottom), top)
        return (top - inside) / (top - bottom)

    def mean_between(self, low: float, high: float) -> float:
        """The mean length of those between ``low`` and ``high``.

        Raises:
            BadInput: no length lies there.
        """
        low, high = max(low, self.low), min(high, self.high)
        if self.sigma == 0:
            return math.exp(self.mu)
        mass = self._share(high) - self._share(low)
        if mass <= 0:
            raise BadInput(f"no length lies between {low} and {high}")
        moment = self._share(high, shift=self.sigma) - self._share(low, shift=self.sigma)
        return math.exp(self.mu + self.sigma**2 / 2) * moment / mass

    def _share(self, tokens: float, shift: float = 0.0) -> float:
        return float(special.ndtr((math.log(tokens) - self.mu) / self.sigma - shift))


def arrival_times(
    count: int,
    rate_per_s: float,
    *,
    kind: Literal["poisson", "bursty", "even"] = "poisson",
    variation: float = 2.0,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Seconds at which ``count`` requests arrive; the mean rate is ``rate_per_s`` for every kind.

    Args:
        count: requests.
        rate_per_s: requests a second.
        kind: gaps that are exponential, gamma-distributed with coefficient of variation ``variation``, or equal.
        variation: of the gaps of bursty arrivals; 1 is Poisson, larger is burstier.
        seed: of the draws.

    Raises:
        BadInput: a count, rate or variation out of range.
    """
    if count < 1 or not (rate_per_s > 0 and math.isfinite(rate_per_s)) or not 0 < variation <= 20:
        raise BadInput(
            f"need a count and a rate above 0 and a variation in (0, 20]; got {count}, {rate_per_s}, {variation}"
        )
    uniform = CounterRng(seed).at(item=ARRIVALS).uniform(count)
    if kind == "poisson":
        gaps = -np.log1p(-uniform) / rate_per_s
    elif kind == "bursty":
        form = 1.0 / variation**2
        gaps = special.gammaincinv(form, uniform) / (form * rate_per_s)
    elif kind == "even":
        gaps = np.full(count, 1.0 / rate_per_s)
    else:
        raise BadInput(f"arrivals are poisson, bursty or even; got {kind!r}")
    return np.asarray(np.cumsum(gaps) - gaps[0], dtype=np.float64)


def generate_requests(
    count: int,
    rate_per_s: float,
    *,
    prompt: LogNormalLengths | int = 512,
    output: LogNormalLengths | int = 64,
    arrivals: Literal["poisson", "bursty", "even"] = "poisson",
    variation: float = 2.0,
    prefixes: int = 0,
    prefix_tokens: int = 0,
    seed: int = 0,
) -> RequestTrace:
    """A trace of independent requests.

    Args:
        count, rate_per_s, arrivals, variation: as in :func:`arrival_times`.
        prompt, output: lengths in tokens.
        prefixes: how many shared prefixes exist; each request begins with one of them, drawn at random. 0 for none.
        prefix_tokens: their length; prompts that are not longer keep their own length and share all but a token.
        seed: of all draws.

    Raises:
        BadInput: a size out of range.
    """
    times = arrival_times(count, rate_per_s, kind=arrivals, variation=variation, seed=seed)
    if prefixes < 0 or bool(prefixes) != bool(prefix_tokens):
        raise BadInput(f"prefixes and prefix_tokens belong together; got {prefixes} and {prefix_tokens}")
    prompts = _lengths(prompt).sample(count, seed, PROMPTS)
    outputs = _lengths(output).sample(count, seed, OUTPUTS)
    chosen = CounterRng(seed).at(item=PREFIXES).integers(0, max(1, prefixes), count)
    rows = []
    for time, length, answer, which in zip(times, prompts, outputs, chosen, strict=True):
        shared = min(prefix_tokens, int(length) - 1)
        extra: dict[str, Any] = {"prefix_id": f"prefix-{which}", "prefix_tokens": shared} if shared > 0 else {}
        rows.append(TraceRequest(arrival_s=float(time), prompt_tokens=int(length), output_tokens=int(answer), **extra))
    return RequestTrace(tuple(rows), name=f"{arrivals}, {rate_per_s:g}/s, seed {seed}")


def _lengths(length: LogNormalLengths | int) -> LogNormalLengths:
    if isinstance(length, LogNormalLengths):
        return length
    if length < 1:
        raise BadInput(f"a length is 1 token or more; got {length}")
    return LogNormalLengths.fixed(length)
