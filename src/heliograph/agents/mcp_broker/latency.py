"""How long tools take: online, with calls that were given up counted as longer than their limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from heliograph.clock import Clock, WallClock
from heliograph.errors import BadInput
from heliograph.quantiles import CensoredQuantiles

__all__ = ["PRIOR_P99_MS", "ToolLatencyModel", "ToolTimes", "size_class"]

PRIOR_P99_MS: Mapping[str, float] = {"read": 500.0, "query": 2000.0, "write": 5000.0}
"""What the paper expects of three classes of tools, as the 99th percentile."""

ANY_TOOL = "*"
_PRIOR_MEDIAN = 0.25
"""A prior's median as a share of its 99th percentile: a log-normal of sigma 0.6."""


def size_class(argument_bytes: int) -> int:
    """0 below 1 KiB of arguments, 1 below 32 KiB, else 2."""
    return 0 if argument_bytes < 1024 else 1 if argument_bytes < 32 * 1024 else 2


@dataclass(frozen=True)
class ToolTimes:
    """What is known of one tool's latency at one moment.

    Attributes:
        tool: its name; "*" for an unknown one.
        median_ms, p99_ms: of calls that end; stalls are counted in ``stall_share``.
        stall_share: of calls whose end was never seen.
        cold: the numbers are a prior, not measurements.
        epoch: grows as the estimate moves; equal epochs of one tool mean equal numbers.
        source: the samples; None for a prior.
    """

    tool: str
    median_ms: float
    p99_ms: float
    stall_share: float = 0.0
    cold: bool = False
    epoch: int = 0
    source: CensoredQuantiles | None = None

    def cdf(self, limits_ms: NDArray[np.float64]) -> NDArray[np.float64]:
        """P(a call ends within each limit), [N]."""
        if self.source is not None:
            return self.source.cdf(limits_ms)
        from scipy.special import ndtr

        sigma = max(1e-6, np.log(self.p99_ms / self.median_ms) / 2.3263478740408408)
        found: NDArray[np.float64] = ndtr(np.log(np.maximum(limits_ms, 1e-9) / self.median_ms) / sigma)
        return found


class ToolLatencyModel:
    """Latency distributions by tool and size of arguments.

    Args:
        classes: globs of tool names to "read", "query" or "write", for tools without samples; the first match counts.
        default_class: of the others.
        min_samples: below it the prior answers.
        half_life_calls, half_life_s: how fast old samples fade.
        censoring: count calls that were given up as longer than their limit. False takes the limit for their latency,
            which is wrong, and here for comparison.
        refresh: samples between two looks at the distribution; 1 for always.
        clock: for the fading.
        capacity: distributions kept; the one unused longest is forgotten.

    Raises:
        BadInput: an unknown class, or a number that cannot be.
    """

    def __init__(
        self,
        classes: Mapping[str, str] | None = None,
        *,
        default_class: str = "query",
        min_samples: int = 30,
        half_life_calls: float = 500.0,
        half_life_s: float = 3600.0,
        censoring: bool = True,
        refresh: int = 10,
        clock: Clock | None = None,
        capacity: int = 10_000,
    ) -> None:
        self._classes = dict(classes or {})
        for name in (*self._classes.values(), default_class):
            if name not in PRIOR_P99_MS:
                raise BadInput(f"a tool's class is one of {', '.join(PRIOR_P99_MS)}; got {name!r}")
        if min_samples < 1 or refresh < 1 or capacity < 2:
            raise BadInput(
                f"a latency model needs min_samples and refresh of 1 or more and room for 2 tools; got {min_samples}, "
                f"{refresh}, {capacity}"
            )
        self._default, self._min_samples, self._refresh = default_class, min_samples, refresh
        self._half_life_calls, self._half_life_s = half_life_calls, half_life_s
        self._censoring, self._capacity = censoring, capacity
        self._clock = clock or WallClock()
        self._samples: dict[tuple[str, int], CensoredQuantiles] = {}
        self._cached: dict[tuple[str, int], ToolTimes] = {}

    def observe(self, tool: str, latency_ms: float, *, censored: bool = False, size: int = 0) -> None:
        """Takes one call.

        Args:
            tool: its name.
            latency_ms: how long it took; with ``censored``, how long it was waited for in vain.
            censored: it was given up.
            size: class of its arguments, from :func:`size_class`.

        Raises:
            BadInput: the latency is negative or not finite.
        """
        now = self._clock.now()
        for key in dict.fromkeys(((tool, size), (tool, -1), (ANY_TOOL, -1))):
            samples = self._samples.pop(key, None)
            if samples is None:
                if len(self._samples) >= self._capacity:
                    oldest = next(iter(self._samples))
                    del self._samples[oldest]
                    self._cached.pop(oldest, None)
                samples = CensoredQuantiles(
                    low=0.1, high=1e7, half_life_samples=self._half_life_calls, half_life_time=self._half_life_s
                )
            self._samples[key] = samples  # at the end: the most recently used
            samples.observe(latency_ms, censored=censored and self._censoring, now=now)

    def times(self, tool: str, size: int = 0) -> ToolTimes:
        """What is known now: of the size class if it has samples enough, else of the tool, else the prior."""
        for key in ((tool, size), (tool, -1)):
            samples = self._samples.get(key)
            if samples is None or samples.count < self._min_samples:
                continue
            cached = self._cached.get(key)
            epoch = samples.count // self._refresh
            if cached is None or cached.epoch != epoch:
                cached = _describe(tool, samples, epoch)
                if cached is None:
                    continue
                self._cached[key] = cached
            return cached
        if tool == ANY_TOOL:
            return self._prior(tool)
        return self._prior(tool) if self._class(tool) is not None else self.times(ANY_TOOL)

    def quantile(self, tool: str, share: float) -> float:
        """Latency in ms that ``share`` of all calls do not exceed; infinite where stalls hide it, NaN without samples.

        Raises:
            BadInput: ``share`` outside (0, 1).
        """
        samples = self._samples.get((tool, -1))
        return float("nan") if samples is None else samples.quantile(share)

    def tools(self) -> tuple[str, ...]:
        """Names of all tools with samples."""
        return tuple(sorted({tool for tool, size in self._samples if tool != ANY_TOOL and size < 0}))

    def _class(self, tool: str) -> str | None:
        return next((name for pattern, name in self._classes.items() if fnmatchcase(tool, pattern)), None)

    def _prior(self, tool: str) -> ToolTimes:
        p99 = PRIOR_P99_MS[self._class(tool) or self._default]
        return ToolTimes(tool, p99 * _PRIOR_MEDIAN, p99, cold=True, epoch=-int(p99))


def _describe(tool: str, samples: CensoredQuantiles, epoch: int) -> ToolTimes | None:
    median, p99 = samples.finishing_quantile(0.5), samples.finishing_quantile(0.99)
    if not p99 > 0:  # nothing has ever finished
        return None
    beyond = 1.0 - float(samples.cdf(np.array([samples.last_seen()]))[0])
    return ToolTimes(tool, median, p99, max(0.0, beyond), False, epoch, samples)
