"""Is the link scarce? A switch with two thresholds, and a routing threshold that follows the bandwidth left.

One threshold would make the router oscillate with the queue that it creates itself: above it all stays local, the queue
drains, all leaves again. Between the two levels the answer stays what it was.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

from heliograph.errors import BadInput
from heliograph.serving.prfaas.service_model import GIGABIT, EmpiricalLengths, PrefillServiceModel

__all__ = ["AdaptiveThreshold", "CongestionMonitor", "LinkReport"]

MIB = 2**20


@dataclass(frozen=True)
class LinkReport:
    """What a sender tells of its link.

    Attributes:
        now_s: on the clock of the one who listens.
        sent_bytes: since the start.
        queue_bytes: that wait to be sent.
        bytes_per_s: the link's bandwidth as known or measured.
        resent: chunks sent again since the start.
    """

    now_s: float
    sent_bytes: float
    queue_bytes: float
    bytes_per_s: float
    resent: int = 0


class CongestionMonitor:
    """Says whether bandwidth is scarce.

    Args:
        high, low: shares of the link in use above which it becomes scarce, and below which it may cease to be.
        queue_high, queue_low: the same of bytes that wait.
        window_s: over which the use is averaged; long enough for several transfers, or single ones turn the switch.
        standing_s: the queue counts as its smallest size in this time: a burst that drains at once is none.

    Attributes:
        scarce: the present answer.
        switches: how often it changed.
        utilisation: of the last window.
        most_queued: largest queue seen.

    Raises:
        BadInput: levels that do not leave a gap.
    """

    def __init__(
        self,
        *,
        high: float = 0.8,
        low: float = 0.6,
        queue_high: float = 64 * MIB,
        queue_low: float = 16 * MIB,
        window_s: float = 30.0,
        standing_s: float = 1.0,
    ) -> None:
        if not (0 < low < high and 0 <= queue_low < queue_high and window_s > 0 and standing_s >= 0):
            raise BadInput(
                f"need 0 < low < high, queue_low < queue_high and a window; got {low}, {high}, {queue_low}, "
                f"{queue_high}, {window_s}"
            )
        self.high, self.low, self.queue_high, self.queue_low = high, low, queue_high, queue_low
        self.window_s, self.standing_s = window_s, standing_s
        self.scarce = False
        self.switches = self.resent = 0
        self.utilisation = self.most_queued = self.bytes_per_s = 0.0
        self._reports: deque[LinkReport] = deque()

    def observe(self, report: LinkReport) -> bool:
        """Takes a report; whether bandwidth is scarce now.

        Raises:
            BadInput: a report from the past.
        """
        reports = self._reports
        if reports and report.now_s < reports[-1].now_s:
            raise BadInput(f"a report of {report.now_s} s came after one of {reports[-1].now_s} s: use one clock")
        reports.append(report)
        while len(reports) > 2 and report.now_s - reports[1].now_s >= self.window_s:
            reports.popleft()
        span = report.now_s - reports[0].now_s
        self.bytes_per_s = report.bytes_per_s
        if not report.bytes_per_s > 0:
            self.utilisation = math.inf  # no link: whatever would have to be sent cannot be
        elif span > 0:
            self.utilisation = (report.sent_bytes - reports[0].sent_bytes) / span / report.bytes_per_s
        self.most_queued = max(self.most_queued, report.queue_bytes)
        self.resent = report.resent
        standing = min(r.queue_bytes for r in reports if report.now_s - r.now_s <= self.standing_s)
        if self.scarce:
            after = self.utilisation > self.low or standing > self.queue_low
        else:
            after = self.utilisation > self.high or standing > self.queue_high
        self.switches += after != self.scarce
        self.scarce = after
        return after


class AdaptiveThreshold:
    """Searches for t again over the lengths that come, with the bandwidth that there is.

    Args:
        model: of the clusters; its bandwidth is replaced by the measured one.
        t: to begin with.
        n_p: local prefill instances, as they are.
        recent: lengths that are remembered.
        least: lengths before anything is solved.
        every_s: at most once in so many seconds.
        change: t moves only where the new one differs by more than this share; else it would follow noise.
        headroom: share of the link that may be planned for.

    Attributes:
        t: the present one.
        changes: (time, t) of each move.
    """

    def __init__(
        self,
        model: PrefillServiceModel,
        t: float,
        n_p: int,
        *,
        recent: int = 2000,
        least: int = 100,
        every_s: float = 5.0,
        change: float = 0.1,
        headroom: float = 0.8,
    ) -> None:
        if not t >= 0 or least < 1 or recent < least or not 0 < headroom <= 1 or not change >= 0:
            raise BadInput(
                f"need t >= 0, 1 <= least <= recent, headroom in (0, 1] and change >= 0; got {t}, {least}, {recent}, "
                f"{headroom}, {change}"
            )
        self.model, self.t, self.n_p = model, t, n_p
        self.least, self.every_s, self.change, self.headroom = least, every_s, change, headroom
        self.changes: list[tuple[float, float]] = []
        self._lengths: deque[float] = deque(maxlen=recent)
        self._solved_s = -math.inf
        self._scarce = False

    def saw(self, uncached: float) -> None:
        """A prompt came with so many uncached tokens."""
        self._lengths.append(uncached)

    def update(self, now_s: float, scarce: bool, bytes_per_s: float, queue_bytes: float = 0.0) -> float:
        """The threshold to use now.

        While bandwidth is scarce, what waits already is taken off the bandwidth that is planned for.

        Args:
            now_s: one clock throughout.
            scarce: from the monitor.
            bytes_per_s: the link's present bandwidth.
            queue_bytes: that wait.
        """
        turned = scarce != self._scarce
        self._scarce = scarce
        if len(self._lengths) < self.least or (now_s - self._solved_s < self.every_s and not turned):
            return self.t
        self._solved_s = now_s
        usable = bytes_per_s
        if scarce:
            usable = max(0.0, self.headroom * bytes_per_s - queue_bytes / 60.0)
        wanted = self._solve(usable)
        same = wanted == self.t or (math.isfinite(wanted) and abs(wanted - self.t) <= self.change * max(self.t, 1.0))
        if not same:
            self.t = wanted
            self.changes.append((now_s, wanted))
        return self.t

    def resize(self, n_p: int) -> None:
        """The local cluster was split anew; t is solved at the next update."""
        self.n_p, self._solved_s = n_p, -math.inf

    def _solve(self, bytes_per_s: float) -> float:
        model = replace(self.model, egress_gbps=bytes_per_s / GIGABIT)
        if not bytes_per_s:
            return math.inf if self.n_p else 0.0  # where nobody here computes prompts, they cannot stay
        lengths = EmpiricalLengths(list(self._lengths))
        step = max(100, int((lengths.high - lengths.low) / 200))
        return model.optimise(lengths, n_p=self.n_p, step_tokens=step).t
