"""Quantiles of a stream whose slowest samples were cut off: bounded memory, old samples fade, censored ones count.

A call that was given up after 2 s did not take 2 s; it took longer, nobody knows how much. Treating it as finished at
2 s makes a tool look faster than it is, leaving it out even more so. :class:`CensoredQuantiles` keeps both kinds in
logarithmic bins and answers from the product-limit estimate of the survival function (Kaplan and Meier, 1958).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heliograph.errors import BadInput

__all__ = ["CensoredQuantiles", "QuantileState"]

_LARGEST_GAIN = 2.0**40
"""Newer samples weigh more instead of older ones less; beyond this all weights are scaled down."""


@dataclass(frozen=True)
class QuantileState:
    """Everything that a :class:`CensoredQuantiles` knows, as plain data.

    Attributes:
        low, high: edges of the resolved range.
        relative_error: of a quantile inside it.
        finished, censored: weight a bin, oldest scale removed.
        count: samples ever seen.
    """

    low: float
    high: float
    relative_error: float
    finished: tuple[float, ...]
    censored: tuple[float, ...]
    count: int


class CensoredQuantiles:
    """Streaming quantiles of positive values, some of which are only known to be larger than a bound.

    Values lie in logarithmic bins, so a quantile is right to ``relative_error`` between ``low`` and ``high``, which
    depends on neither the number nor the order of samples. Below ``low`` all values count as ``low``; at or above
    ``high`` they count as never finished.

    Args:
        low, high: the resolved range, in the unit of the samples.
        relative_error: of a quantile, in (0, 0.5].
        half_life_samples: after so many newer samples a sample weighs half; None for never.
        half_life_time: after so much time a sample weighs half, in the unit of ``now``; None for never.

    Raises:
        BadInput: a range, error or half-life that cannot be.
    """

    def __init__(
        self,
        *,
        low: float = 0.01,
        high: float = 1e7,
        relative_error: float = 0.02,
        half_life_samples: float | None = None,
        half_life_time: float | None = None,
    ) -> None:
        if not 0 < low < high or not math.isfinite(high) or not 0 < relative_error <= 0.5:
            raise BadInput(
                f"quantiles need 0 < low < high and a relative error in (0, 0.5]; got {low:g}, {high:g}, "
                f"{relative_error:g}"
            )
        for half_life in (half_life_samples, half_life_time):
            if half_life is not None and not (half_life > 0 and math.isfinite(half_life)):
                raise BadInput(f"a half-life is finite and above 0, or None; got {half_life:g}")
        self.low, self.high, self.relative_error = low, high, relative_error
        self._step = math.log1p(2 * relative_error)
        bins = math.ceil(math.log(high / low) / self._step) + 1
        self._finished: NDArray[np.float64] = np.zeros(bins)
        self._censored: NDArray[np.float64] = np.zeros(bins)
        self._gain = 1.0
        self._growth = 1.0 if half_life_samples is None else 2.0 ** (1.0 / half_life_samples)
        self._half_life_time = half_life_time
        self._latest: float | None = None
        self._distribution: NDArray[np.float64] | None = None
        self.count = 0

    def observe(self, value: float, *, censored: bool = False, now: float | None = None) -> None:
        """Takes one sample.

        Args:
            value: what was measured; with ``censored``, what the true value exceeds.
            censored: the end was not seen.
            now: time of the sample; times that run backwards count as the latest one.

        Raises:
            BadInput: the value is negative, infinite or not a number.
        """
        if not (value >= 0 and math.isfinite(value)):
            raise BadInput(f"a sample is finite and 0 or more; got {value}")
        self._gain *= self._growth
        if now is not None and self._half_life_time is not None:
            if self._latest is not None and now > self._latest:
                halves = (now - self._latest) / self._half_life_time
                if halves > 60:  # nothing of the past is left
                    self._finished[:] = 0
                    self._censored[:] = 0
                    self._gain = 1.0
                else:
                    self._gain *= 2.0**halves
            self._latest = now if self._latest is None else max(now, self._latest)
        if self._gain > _LARGEST_GAIN:
            self._finished /= self._gain
            self._censored /= self._gain
            self._gain = 1.0
        if value >= self.high:
            censored, value = True, self.high
        place = 0 if value <= self.low else min(len(self._finished) - 1, self._bin(value))
        (self._censored if censored else self._finished)[place] += self._gain
        self.count += 1
        self._distribution = None

    def _bin(self, value: float) -> int:
        return math.ceil(math.log(value / self.low) / self._step - 1e-9)

    @property
    def weight(self) -> float:
        """Samples that still count: the sum of all weights, of which the newest sample has 1."""
        return float((self._finished.sum() + self._censored.sum()) / self._gain)

    @property
    def censored_share(self) -> float:
        """Of the weight; 0 without samples."""
        total = float(self._finished.sum() + self._censored.sum())
        return float(self._censored.sum()) / total if total else 0.0

    def _cumulative(self) -> NDArray[np.float64]:
        """P(value <= upper edge) a bin, by the product limit; a finish and a cut in one bin: the finish came first."""
        if self._distribution is None:
            both = self._finished + self._censored
            at_risk = np.cumsum(both[::-1])[::-1]
            hazard = np.divide(self._finished, at_risk, out=np.zeros_like(at_risk), where=at_risk > 0)
            found: NDArray[np.float64] = np.asarray(1.0 - np.cumprod(1.0 - np.clip(hazard, 0.0, 1.0)), dtype=np.float64)
            self._distribution = found
        return self._distribution

    def quantile(self, share: float) -> float:
        """The value that ``share`` of samples do not exceed.

        Returns:
            The value; infinity where censoring hides it; NaN without samples.

        Raises:
            BadInput: ``share`` outside (0, 1).
        """
        if not 0 < share < 1:
            raise BadInput(f"a quantile's share lies in (0, 1); got {share}")
        if not self._finished.any() and not self._censored.any():
            return math.nan
        cumulative = self._cumulative()
        place = int(np.searchsorted(cumulative, share - 1e-12))
        return math.inf if place >= len(cumulative) else self._middle(place)

    def finishing_quantile(self, share: float) -> float:
        """The same among the values whose end can be seen at all: the part beyond all finishes is left out.

        Raises:
            BadInput: ``share`` outside (0, 1).
        """
        if not 0 < share < 1:
            raise BadInput(f"a quantile's share lies in (0, 1); got {share}")
        if not self._finished.any():
            return math.nan
        cumulative = self._cumulative()
        return self._middle(int(np.searchsorted(cumulative, share * cumulative[-1] - 1e-12)))

    def _middle(self, place: int) -> float:
        return self.low * math.exp(self._step * (place - 0.5)) if place else self.low

    def last_seen(self) -> float:
        """The largest value that was seen to finish; NaN if none was."""
        places = np.flatnonzero(self._finished)
        return self._middle(int(places[-1])) if len(places) else math.nan

    def cdf(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The estimated share of samples at or below each value, [N] of any order; NaN without samples."""
        if not self._finished.any() and not self._censored.any():
            return np.full(len(values), math.nan)
        cumulative = self._cumulative()
        places = np.floor(np.log(np.maximum(values, 1e-300) / self.low) / self._step + 0.5 + 1e-9).astype(int)
        inside = np.clip(places, 0, len(cumulative) - 1)
        found: NDArray[np.float64] = np.where(values < self.low, 0.0, cumulative[inside])
        return found

    def merge(self, other: CensoredQuantiles) -> None:
        """Adds another's samples at their present weights; both keep their own half-lives.

        Raises:
            BadInput: the bins differ.
        """
        if (self.low, self.high, self.relative_error) != (other.low, other.high, other.relative_error):
            raise BadInput("only quantiles of the same range and relative error can be merged")
        scale = self._gain / other._gain
        self._finished += other._finished * scale
        self._censored += other._censored * scale
        self.count += other.count
        self._distribution = None

    def state(self) -> QuantileState:
        """A snapshot that :meth:`from_state` reads."""
        finished, censored = (tuple((row / self._gain).tolist()) for row in (self._finished, self._censored))
        return QuantileState(self.low, self.high, self.relative_error, finished, censored, self.count)

    @classmethod
    def from_state(
        cls,
        state: QuantileState,
        *,
        half_life_samples: float | None = None,
        half_life_time: float | None = None,
    ) -> CensoredQuantiles:
        """From a snapshot; half-lives are given anew.

        Raises:
            BadInput: the snapshot does not fit its own range.
        """
        made = cls(
            low=state.low,
            high=state.high,
            relative_error=state.relative_error,
            half_life_samples=half_life_samples,
            half_life_time=half_life_time,
        )
        finished, censored = np.asarray(state.finished, dtype=float), np.asarray(state.censored, dtype=float)
        for row in (finished, censored):
            if row.shape != made._finished.shape or not np.isfinite(row).all() or (row < 0).any():
                raise BadInput(f"a snapshot of this range has {len(made._finished)} weights of 0 or more")
        made._finished, made._censored, made.count = finished.copy(), censored.copy(), state.count
        return made
