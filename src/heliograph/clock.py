"""Time as a passed object: wall time, virtual time, and an asyncio loop that runs on virtual time.

Code that waits takes a :class:`Clock`. In production it is a :class:`WallClock`; in tests and simulations a
:class:`VirtualClock`, whose seconds cost nothing and never differ between two runs.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar, runtime_checkable

from heliograph.errors import HeliographError

__all__ = ["Clock", "Stalled", "VirtualClock", "VirtualTimeLoop", "WallClock", "run_virtual"]

T = TypeVar("T")


class Stalled(HeliographError):
    """Virtual time cannot advance: everybody waits and nothing is scheduled."""

    exit_code = 1


@runtime_checkable
class Clock(Protocol):
    """Seconds since an arbitrary start; never runs backwards."""

    def now(self) -> float:
        """Seconds since this clock's start."""
        ...

    def sleep(self, seconds: float) -> None:
        """Returns once ``seconds`` have passed on this clock.

        Raises:
            ValueError: ``seconds`` is negative or not a number.
        """
        ...


def _check_delay(seconds: float) -> None:
    if not seconds >= 0:
        raise ValueError(f"a delay is in seconds and cannot be negative or NaN; got {seconds}")


class WallClock:
    """Real time, from the monotonic clock: a jump of the system's date does not move it."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def now(self) -> float:
        """Seconds since this clock was made."""
        return time.monotonic() - self._start

    def sleep(self, seconds: float) -> None:
        """Blocks the calling thread for ``seconds``."""
        _check_delay(seconds)
        time.sleep(seconds)


class VirtualClock:
    """Time that moves only when told; callbacks due on the way run in order of time, then of scheduling.

    >>> clock = VirtualClock()
    >>> _ = clock.call_at(2.0, lambda: print("at", clock.now()))
    >>> clock.sleep(5.0)
    at 2.0
    >>> clock.now()
    5.0
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self._serial = itertools.count()
        self._pending: set[int] = set()

    def now(self) -> float:
        """Virtual seconds."""
        return self._now

    def call_at(self, when: float, callback: Callable[[], object]) -> Callable[[], None]:
        """Schedules ``callback``; returns a function that cancels it.

        Raises:
            ValueError: ``when`` lies in the past.
        """
        if not when >= self._now:
            raise ValueError(f"cannot schedule at {when} s: the clock already shows {self._now} s")
        serial = next(self._serial)
        heapq.heappush(self._queue, (when, serial, callback))
        self._pending.add(serial)
        return lambda: self._pending.discard(serial)

    def sleep(self, seconds: float) -> None:
        """Advances by ``seconds``, running what falls due; takes no real time."""
        _check_delay(seconds)
        until = self._now + seconds
        while self._queue and self._queue[0][0] <= until:
            self._pop()
        self._now = max(self._now, until)

    def run(self) -> None:
        """Advances until nothing is scheduled."""
        while self._queue:
            self._pop()

    def _pop(self) -> None:
        when, serial, callback = heapq.heappop(self._queue)
        if serial not in self._pending:  # cancelled
            return
        self._pending.discard(serial)
        self._now = max(self._now, when)
        callback()


class _VirtualSelector(selectors.DefaultSelector):
    """Polls real files without waiting; where asyncio would wait, virtual time jumps instead."""

    def __init__(self) -> None:
        super().__init__()
        self.virtual_now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise Stalled("virtual time stands still: every task waits and no timer is set")
        self.virtual_now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio loop whose ``sleep`` and timeouts take virtual seconds and no real ones.

    For coroutines that talk through queues, events and timers; a coroutine that waits for another process has no
    business on it, and is reported as :class:`Stalled`.
    """

    def __init__(self) -> None:
        self._virtual_selector = _VirtualSelector()
        super().__init__(self._virtual_selector)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._virtual_selector.virtual_now

    def now(self) -> float:
        """The same, under the name that :class:`Clock` uses."""
        return self.time()

    @property
    def _clock_resolution(self) -> float:
        # asyncio runs the timers that lie before time() + this. Its own constant, a nanosecond, vanishes in the sum
        # once time() passes 2**24 s, and the loop would spin for ever.
        return math.ulp(self.time())

    @_clock_resolution.setter
    def _clock_resolution(self, value: float) -> None:
        """Ignores what asyncio sets at construction."""


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end on a fresh :class:`VirtualTimeLoop`.

    Raises:
        Stalled: every task waits and no timer is set.
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
