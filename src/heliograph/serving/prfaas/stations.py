"""Parts of two clusters in virtual time: prefill instances before one queue, places to decode, a link that varies."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from heliograph.errors import BadInput
from heliograph.serving.prfaas.service_model import GIGABIT
from heliograph.sim import Sim

__all__ = ["DecodePlaces", "PrefillStation", "VaryingLink"]


class PrefillStation:
    """Instances that compute one prompt after another from a common queue, first come, first served.

    Attributes:
        servers: instances at work or ready.
        waiting_s: seconds of computing that wait in the queue.
        busy_s: seconds of computing, of all instances.
    """

    def __init__(self, sim: Sim, servers: int) -> None:
        self.sim, self.servers = sim, servers
        self.busy = 0
        self.busy_s = self.waiting_s = 0.0
        self._ends: dict[int, float] = {}  # of prompts under way
        self._serial = 0
        self._queue: deque[tuple[float, Callable[[], None], Callable[[], None]]] = deque()

    @property
    def queued(self) -> int:
        """Prompts that wait."""
        return len(self._queue)

    def submit(self, seconds: float, begun: Callable[[], None], ended: Callable[[], None]) -> None:
        """Computes a prompt as soon as an instance is free."""
        self._queue.append((seconds, begun, ended))
        self.waiting_s += seconds
        self._start()

    def expected_wait_s(self) -> float:
        """Seconds until a prompt that came now would start: what is left to compute, shared by the instances."""
        if not self.servers:
            return math.inf
        if self.busy < self.servers:
            return 0.0
        left = sum(end - self.sim.now for end in self._ends.values())
        return (self.waiting_s + left) / self.servers

    def resize(self, servers: int) -> None:
        """More instances begin at once; fewer end what they compute first."""
        self.servers = servers
        self._start()

    def _start(self) -> None:
        while self._queue and self.busy < self.servers:
            seconds, begun, ended = self._queue.popleft()
            self.waiting_s = max(0.0, self.waiting_s - seconds) if self._queue else 0.0
            self.busy += 1
            self.busy_s += seconds
            self._serial += 1
            self._ends[self._serial] = self.sim.now + seconds

            def finish(serial: int = self._serial, ended: Callable[[], None] = ended) -> None:
                self.busy -= 1
                del self._ends[serial]
                ended()
                self._start()

            self.sim.at(self.sim.now + seconds, finish)
            begun()


class DecodePlaces:
    """Places in the batches of the decode instances; who comes first gets the next one.

    Attributes:
        instances: that decode. taken: places in use.
    """

    def __init__(self, instances: int, batch: int) -> None:
        self.instances, self.batch = instances, batch
        self.taken = 0
        self._queue: deque[Callable[[], None]] = deque()
        self._drained: deque[tuple[int, Callable[[], None]]] = deque()

    @property
    def queued(self) -> int:
        """Answers that wait for a place."""
        return len(self._queue)

    def reserve(self, granted: Callable[[], None]) -> None:
        """Calls back once a place is held."""
        self._queue.append(granted)
        self._grant()

    def release(self) -> None:
        """Gives a place back."""
        self.taken -= 1
        self._settle()
        self._grant()

    def resize(self, instances: int, drained: Callable[[], None] | None = None) -> None:
        """Changes the number of instances; ``drained`` is called once no more places are in use than there are."""
        self.instances = instances
        if drained is not None:
            self._drained.append((instances * self.batch, drained))
        self._settle()
        self._grant()

    def _settle(self) -> None:
        while self._drained and self.taken <= self._drained[0][0]:
            self._drained.popleft()[1]()

    def _grant(self) -> None:
        while self._queue and self.taken < self.instances * self.batch:
            self.taken += 1
            self._queue.popleft()()


class VaryingLink:
    """A wire whose bandwidth changes at given times; pieces leave one after another and arrive ``delay_s`` later.

    Args:
        gbps: 1e9 bits a second; 0 carries nothing.
        delay_s: of propagation.
        changes: (time, gbps), in order.

    Attributes:
        queued_bytes: that wait or are being sent. most_queued: the largest of that. sent_bytes: that have left.
    """

    def __init__(
        self, sim: Sim, gbps: float, delay_s: float = 0.0, changes: tuple[tuple[float, float], ...] = ()
    ) -> None:
        if not gbps >= 0 or not delay_s >= 0 or any(not g >= 0 or not t >= 0 for t, g in changes):
            raise BadInput(f"a link has 0 Gbit/s or more at times of 0 or more; got {gbps}, {delay_s} s, {changes}")
        self.sim, self.delay_s = sim, delay_s
        self.bytes_per_s = gbps * GIGABIT
        self.queued_bytes = self.most_queued = self.sent_bytes = 0.0
        self._queue: deque[tuple[float, Callable[[], None], Callable[[], bool]]] = deque()
        self._left = 0.0
        self._since = 0.0
        self._cancel: Callable[[], None] | None = None
        for when, rate in changes:
            sim.at(when, lambda rate=rate: self._change(rate))  # type: ignore[misc]

    def send(self, nbytes: float, arrived: Callable[[], None], wanted: Callable[[], bool] = lambda: True) -> None:
        """Sends a piece; where nobody wants it any more when its turn comes, it is left out."""
        self._queue.append((nbytes, arrived, wanted))
        self.queued_bytes += nbytes
        self.most_queued = max(self.most_queued, self.queued_bytes)
        if len(self._queue) == 1:
            self._begin()

    def _begin(self) -> None:
        while self._queue and not self._queue[0][2]():
            self.queued_bytes -= self._queue.popleft()[0]
        if self._queue:
            self._left, self._since = self._queue[0][0], self.sim.now
            self._plan()
        else:
            self.queued_bytes = 0.0

    def _plan(self) -> None:
        if self.bytes_per_s:
            self._cancel = self.sim.at(self.sim.now + self._left / self.bytes_per_s, self._finish)

    def _finish(self) -> None:
        self._cancel = None
        nbytes, arrived, _ = self._queue.popleft()
        self.queued_bytes -= nbytes
        self.sent_bytes += nbytes
        self.sim.at(self.sim.now + self.delay_s, arrived)
        self._begin()

    def _change(self, gbps: float) -> None:
        if self._queue:
            self._left = max(0.0, self._left - (self.sim.now - self._since) * self.bytes_per_s)
            self._since = self.sim.now
            if self._cancel is not None:
                self._cancel()
                self._cancel = None
        self.bytes_per_s = gbps * GIGABIT
        if self._queue:
            self._plan()
