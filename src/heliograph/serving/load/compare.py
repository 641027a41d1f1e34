"""Are two conditions different, in their mean and in their spread, given a few independent runs of each?

Means: Welch's interval for the difference of mean logarithms, shown as a ratio. Spreads: the F interval for the ratio
of variances of the logarithms, shown as a ratio of standard deviations; it assumes normal logarithms and has little
power at five runs. What can be found with so many runs, :func:`power` tells beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from heliograph.errors import BadInput
from heliograph.statistics import Interval, simultaneous_level

__all__ = ["DEFAULT_LEVEL", "Comparison", "coefficient_of_variation", "compare_runs", "power"]

DEFAULT_LEVEL = 0.99
"""Of both statements together. Higher than 0.95, because whoever ablates flags makes many comparisons."""


@dataclass(frozen=True)
class Comparison:
    """The second condition against the first.

    Attributes:
        ratio: of the means (of the logarithms, so of geometric means).
        spread_ratio: of the standard deviations of the logarithms.
        level: of both intervals together.
    """

    ratio: Interval
    spread_ratio: Interval
    level: float

    @property
    def mean_differs(self) -> bool:
        """Whether the interval of the ratio leaves 1 out."""
        return not self.ratio.low <= 1 <= self.ratio.high

    @property
    def spread_differs(self) -> bool:
        """Whether the interval of the ratio of spreads leaves 1 out."""
        return not self.spread_ratio.low <= 1 <= self.spread_ratio.high

    @property
    def differs(self) -> bool:
        """Whether either does."""
        return self.mean_differs or self.spread_differs

    def __str__(self) -> str:
        """One line for people."""
        mean, spread = self.ratio, self.spread_ratio
        if not self.differs:
            verdict = "no difference found"
        else:
            which = [name for name, yes in (("mean", self.mean_differs), ("spread", self.spread_differs)) if yes]
            verdict = f"{' and '.join(which)} differ{'s' if len(which) == 1 else ''}"
        return (
            f"{verdict}: mean {mean.estimate:.3f}x [{mean.low:.3f}, {mean.high:.3f}], "
            f"spread {spread.estimate:.2f}x [{spread.low:.2f}, {spread.high:.2f}] at {self.level:.0%} together"
        )


def compare_runs(first: Sequence[float], second: Sequence[float], level: float = DEFAULT_LEVEL) -> Comparison:
    """Compares positive measurements of two conditions, one number a run.

    Raises:
        BadInput: fewer than two runs of either, or a number that is not positive.
    """
    a, b = _logs(first), _logs(second)
    each = simultaneous_level(level, 2)
    va, vb = float(a.var(ddof=1)) / len(a), float(b.var(ddof=1)) / len(b)
    difference = float(b.mean() - a.mean())
    if va + vb > 0:
        parts = va**2 / (len(a) - 1) + vb**2 / (len(b) - 1)
        freedom = (va + vb) ** 2 / parts if parts > 0 else 1.0
        half = float(special.stdtrit(freedom, 0.5 + each / 2)) * math.sqrt(va + vb)
    else:
        half = 0.0
    count = len(a) + len(b)
    ratio = Interval(math.exp(difference), math.exp(difference - half), math.exp(difference + half), each, count)
    return Comparison(ratio, _spread(a, b, each), level)


def _spread(a: np.ndarray, b: np.ndarray, level: float) -> Interval:
    va, vb = float(a.var(ddof=1)), float(b.var(ddof=1))
    count = len(a) + len(b)
    if va == 0 or vb == 0:
        same = 1.0 if va == vb else math.inf if va == 0 else 0.0
        return Interval(same, 0.0, math.inf, level, count)
    ratio = vb / va
    tail = (1 - level) / 2
    low = ratio / float(special.fdtri(len(b) - 1, len(a) - 1, 1 - tail))
    high = ratio * float(special.fdtri(len(a) - 1, len(b) - 1, 1 - tail))
    return Interval(math.sqrt(ratio), math.sqrt(low), math.sqrt(high), level, count)


def coefficient_of_variation(values: Sequence[float]) -> float:
    """Standard deviation over mean of a sample."""
    sample = np.asarray(values, dtype=float)
    if len(sample) < 2:
        raise BadInput(f"a spread needs two runs or more; got {len(sample)}")
    return float(sample.std(ddof=1) / sample.mean())


def power(variation: float, gain: float, runs: int, spread_ratio: float = 1.0, level: float = DEFAULT_LEVEL) -> float:
    """The chance that :func:`compare_runs` finds a gain of the mean, approximately.

    Args:
        variation: coefficient of variation of the first condition, for example 0.01.
        gain: of the mean, for example 0.04.
        runs: of each condition.
        spread_ratio: standard deviation of the second over that of the first.
        level: of both statements together.
    """
    if runs < 2 or not variation > 0 or not spread_ratio > 0 or not gain > -1:
        raise BadInput(f"need two runs or more and positive spreads; got {runs}, {variation}, {spread_ratio}, {gain}")
    va, vb = variation**2 / runs, (variation * spread_ratio) ** 2 / runs
    freedom = (va + vb) ** 2 / ((va**2 + vb**2) / (runs - 1))
    critical = float(special.stdtrit(freedom, 0.5 + simultaneous_level(level, 2) / 2))
    shift = abs(math.log1p(gain)) / math.sqrt(va + vb)
    return float(1 - special.nctdtr(freedom, shift, critical))  # of the noncentral t; the other tail is negligible


def _logs(values: Sequence[float]) -> np.ndarray:
    row = np.asarray(values, dtype=float)
    if row.ndim != 1 or len(row) < 2 or not np.isfinite(row).all() or (row <= 0).any():
        raise BadInput(f"a comparison needs two positive numbers or more of each condition; got {list(values)}")
    logs: np.ndarray = np.log(row)
    return logs
