"""Intervals and tests for few, independent blocks of measurements.

Every function takes the level as the two-sided confidence, for example 0.95. Quantiles come from ``scipy.special``:
importing ``scipy.stats`` would cost a second of start-up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heliograph.random import CounterRng

__all__ = [
    "Interval",
    "bootstrap_mean",
    "clopper_pearson",
    "mcnemar_difference",
    "mcnemar_p_value",
    "paired_t",
    "rule_of_three",
    "simultaneous_level",
    "smallest_detectable_effect",
    "wilson",
]

MIN_BOOTSTRAP_BLOCKS = 20


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        estimate: the point estimate.
        low: lower end.
        high: upper end.
        level: two-sided confidence.
        count: independent observations behind it.
    """

    estimate: float
    low: float
    high: float
    level: float
    count: int

    def shifted(self, by: float) -> Interval:
        """The same interval, moved."""
        return Interval(self.estimate + by, self.low + by, self.high + by, self.level, self.count)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies in (0, 1); got {level}")


def _finite_row(effects: Sequence[float]) -> NDArray[np.float64]:
    values = np.asarray(effects, dtype=float)
    if values.ndim != 1:
        raise ValueError(f"effects must be one row, one number a block; got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("an effect is not finite")
    return values


def simultaneous_level(level: float, intervals: int) -> float:
    """The level of each of ``intervals`` intervals so that all hold together with ``level`` (Bonferroni)."""
    _check_level(level)
    if intervals < 1:
        raise ValueError(f"need at least one interval; got {intervals}")
    return 1 - (1 - level) / intervals


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t."""
    from scipy import special

    return float(special.stdtrit(freedom, probability))


def paired_t(effects: Sequence[float], level: float = 0.95) -> Interval:
    """Student's interval for the mean of independent effects, one a block.

    Args:
        effects: one paired difference (or log-ratio) a block; at least two.
        level: two-sided confidence.

    Raises:
        ValueError: fewer than two effects, or one that is not finite.
    """
    _check_level(level)
    values = _finite_row(effects)
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two blocks; got {len(values)}")
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) / math.sqrt(len(values))
    half = t_quantile(0.5 + level / 2, len(values) - 1) * spread
    return Interval(mean, mean - half, mean + half, level, len(values))


def smallest_detectable_effect(deviation: float, blocks: int, level: float = 0.95, power: float = 0.8) -> float:
    """The effect whose interval excludes zero with probability ``power``, approximately.

    Args:
        deviation: standard deviation of one block's effect.
        blocks: how many blocks.
        level: two-sided confidence.
        power: chance of seeing it.
    """
    if blocks < 2:
        return math.inf
    freedom = blocks - 1
    return (t_quantile(0.5 + level / 2, freedom) + t_quantile(power, freedom)) * deviation / math.sqrt(blocks)


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Exact interval of a proportion.

    Raises:
        ValueError: counts out of range.
    """
    from scipy import special

    _check_level(level)
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"need 0 <= successes <= trials and trials > 0; got {successes} of {trials}")
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(special.betaincinv(successes, trials - successes + 1, tail))
    high = 1.0 if successes == trials else float(special.betaincinv(successes + 1, trials - successes, 1 - tail))
    return Interval(successes / trials, low, high, level, trials)


def wilson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion: shorter than the exact one, close to nominal on average."""
    from scipy import special

    _check_level(level)
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"need 0 <= successes <= trials and trials > 0; got {successes} of {trials}")
    z = float(special.ndtri(0.5 + level / 2))
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes == 0 else max(0.0, centre - half)  # rounding would miss 0 and 1 at the ends
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return Interval(share, low, high, level, trials)


def rule_of_three(trials: int, level: float = 0.95) -> float:
    """Upper bound of a rate of which no event was seen: about ``3 / trials`` at 95 %."""
    _check_level(level)
    if trials < 1:
        raise ValueError(f"need at least one trial; got {trials}")
    return float(1 - (1 - level) ** (1 / trials))


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar test on the discordant pairs; 1.0 where there are none.

    Raises:
        ValueError: a count is negative.
    """
    from scipy import special

    if only_first < 0 or only_second < 0:
        raise ValueError(f"counts of pairs cannot be negative; got {only_first} and {only_second}")
    discordant = only_first + only_second
    if discordant == 0:
        return 1.0
    return min(1.0, 2 * float(special.bdtr(min(only_first, only_second), discordant, 0.5)))


def mcnemar_difference(first: Sequence[bool], second: Sequence[bool], level: float = 0.95) -> Interval:
    """Difference of two paired success rates, first minus second; excludes 0 exactly when McNemar's test rejects.

    The difference is (rate of discordant pairs) x (2 x share of them won by ``first`` - 1). The ends are its extremes
    over the two exact intervals; the share alone decides the sign, hence the agreement with McNemar's test. Where one
    outcome never beats the other the rate alone decides, and without discordant pairs this is the rule of three.

    Raises:
        ValueError: unequal or zero lengths.
    """
    _check_level(level)
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(f"paired outcomes must be two rows of one length; got {a.shape} and {b.shape}")
    wins, losses, count = int((a & ~b).sum()), int((b & ~a).sum()), len(a)
    rate = clopper_pearson(wins + losses, count, level)
    share = clopper_pearson(wins, wins + losses, level) if wins + losses else Interval(0.5, 0.0, 1.0, level, 0)
    worst, best = 2 * share.low - 1, 2 * share.high - 1
    low = worst * (rate.low if worst > 0 else rate.high)
    high = best * (rate.high if best > 0 else rate.low)
    return Interval((wins - losses) / count, low, high, level, count)


def bootstrap_mean(effects: Sequence[float], level: float = 0.95, seed: int = 0, draws: int = 4000) -> Interval:
    """Percentile bootstrap of the mean; refused below 20 blocks, where it is too narrow.

    Raises:
        ValueError: fewer than 20 effects, or one that is not finite.
    """
    _check_level(level)
    values = _finite_row(effects)
    if len(values) < MIN_BOOTSTRAP_BLOCKS:
        raise ValueError(f"the bootstrap needs {MIN_BOOTSTRAP_BLOCKS} blocks or more; got {len(values)}")
    picks = CounterRng(seed).at().integers(0, len(values), draws * len(values)).reshape(draws, len(values))
    means = values[picks].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), level, len(values))
