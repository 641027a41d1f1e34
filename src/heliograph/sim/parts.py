"""What processes meet in: signals, queues, places, work at a rate, and wires."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from heliograph.errors import BadInput
from heliograph.sim.engine import Body, Process, Sim, Wait

__all__ = ["Fifo", "Link", "Resource", "Signal", "Slots"]

Policy = Literal["fifo", "shared", "priority"]


class Signal:
    """Something that happens once; all who wait for it go on with its value."""

    def __init__(self, sim: Sim, name: str = "signal") -> None:
        self.sim, self.name, self.value, self.given = sim, name, None, False
        self._waiting: list[Process] = []

    def give(self, value: Any = None) -> None:
        """Lets it happen. Raises BadInput if it has."""
        if self.given:
            raise BadInput(f"{self.name} was given already")
        self.value, self.given = value, True
        for process in self._waiting:
            process.resume(value)

    def begin(self, process: Process) -> None:
        """Waiting for the signal."""
        if self.given:
            process.resume(self.value)
        else:
            self._waiting.append(process)

    def holders(self) -> Iterable[Process]:
        """Unknown."""
        return ()

    def describe(self) -> str:
        """In words."""
        return self.name


class Fifo:
    """A queue of at most ``depth`` items: ``put`` waits while it is full, ``get`` while it is empty, first come first
    served.

    Raises:
        BadInput: a depth below 1.
    """

    def __init__(self, sim: Sim, depth: int | None = None, name: str = "fifo") -> None:
        if depth is not None and depth < 1:
            raise BadInput(f"a queue holds at least one item; got depth={depth}")
        self.sim, self.depth, self.name = sim, depth, name
        self.items: deque[Any] = deque()
        self.most = 0
        self._getters: deque[Process] = deque()
        self._putters: deque[tuple[Process, Any]] = deque()
        self._seen: dict[str, dict[str, Process]] = {"put": {}, "get": {}}

    def __len__(self) -> int:
        return len(self.items)

    def put(self, item: Any) -> Wait:
        """Waits until there is room, and leaves the item."""
        return _Put(self, item)

    def get(self) -> Wait:
        """Waits until there is an item, and takes it."""
        return _Get(self)

    def put_now(self, item: Any) -> None:
        """Leaves an item without waiting, from outside of processes.

        Raises:
            BadInput: there is no room.
        """
        if self.depth is not None and len(self.items) >= self.depth:
            raise BadInput(f"{self.name} is full: {len(self.items)} items")
        self._add(item)

    def _add(self, item: Any) -> None:
        while self._getters:
            process = self._getters.popleft()
            if not process.done:
                process.resume(item)
                return
        self.items.append(item)
        self.most = max(self.most, len(self.items))

    def _taken(self) -> None:
        while self._putters:
            process, item = self._putters.popleft()
            if not process.done:  # what a killed process was about to put is lost with it
                self._add(item)
                process.resume()
                return


@dataclass(frozen=True, eq=False)
class _Put:
    fifo: Fifo
    item: Any

    def begin(self, process: Process) -> None:
        fifo = self.fifo
        fifo._seen["put"][process.name] = process
        if fifo.depth is not None and len(fifo.items) >= fifo.depth:
            fifo._putters.append((process, self.item))
        else:
            fifo._add(self.item)
            process.resume()

    def holders(self) -> Iterable[Process]:
        return self.fifo._seen["get"].values()

    def describe(self) -> str:
        return f"room in {self.fifo.name} ({len(self.fifo.items)} of {self.fifo.depth} items)"


@dataclass(frozen=True, eq=False)
class _Get:
    fifo: Fifo

    def begin(self, process: Process) -> None:
        fifo = self.fifo
        fifo._seen["get"][process.name] = process
        if fifo.items:
            item = fifo.items.popleft()
            fifo._taken()
            process.resume(item)
        else:
            fifo._getters.append(process)

    def holders(self) -> Iterable[Process]:
        return self.fifo._seen["put"].values()

    def describe(self) -> str:
        return f"an item of {self.fifo.name}"


class Slots:
    """``count`` places that processes hold and give back.

    ``yield slots.acquire()`` waits for one; ``slots.release(process)`` gives it back and needs no waiting.
    """

    def __init__(self, sim: Sim, count: int = 1, name: str = "slots") -> None:
        if count < 1:
            raise BadInput(f"there must be at least one place; got count={count}")
        self.sim, self.count, self.name = sim, count, name
        self.held: list[Process] = []
        self._queue: deque[Process] = deque()

    def acquire(self) -> Wait:
        """Waits for a place; answers with the holder, which ``release`` takes."""
        return _Acquire(self)

    def release(self, holder: Process) -> None:
        """Gives a place back.

        Raises:
            BadInput: it is not held.
        """
        if holder not in self.held:
            raise BadInput(f"{holder.name} holds no place of {self.name}")
        self.held.remove(holder)
        while self._queue:
            following = self._queue.popleft()
            if not following.done:
                self.held.append(following)
                following.resume(following)
                return


@dataclass(frozen=True, eq=False)
class _Acquire:
    slots: Slots

    def begin(self, process: Process) -> None:
        if len(self.slots.held) < self.slots.count:
            self.slots.held.append(process)
            process.resume(process)
        else:
            self.slots._queue.append(process)

    def holders(self) -> Iterable[Process]:
        return tuple(self.slots.held)

    def describe(self) -> str:
        return f"a place of {self.slots.name}, held by {', '.join(p.name for p in self.slots.held)}"


@dataclass(eq=False)
class _Job:
    amount: float
    process: Process
    rank: tuple[float, int]
    left: float


class Resource:
    """Work done at ``rate`` units a second.

    ``yield resource.use(amount)`` takes ``amount / rate`` seconds alone. Policies: ``fifo`` serves one after another,
    ``priority`` the smallest priority first without interrupting, ``shared`` all at once, each at its part of the rate.

    Attributes:
        busy: seconds with work.
        done: units finished.
    """

    def __init__(self, sim: Sim, rate: float, policy: Policy = "fifo", name: str = "resource") -> None:
        if not rate > 0:
            raise BadInput(f"a rate is in units a second and must be above 0; got {rate}")
        if policy not in ("fifo", "shared", "priority"):
            raise BadInput(f"policy is fifo, shared or priority; got {policy!r}")
        self.sim, self.rate, self.policy, self.name = sim, rate, policy, name
        self.busy = self.done = 0.0
        self._count = itertools.count()
        self._queue: list[tuple[tuple[float, int], _Job]] = []
        self._active: list[_Job] = []
        self._since = 0.0
        self._cancel: Callable[[], None] | None = None

    def use(self, amount: float, priority: float = 0.0) -> Wait:
        """Waits until so many units are done.

        Raises:
            ValueError: a negative amount or NaN.
        """
        if not amount >= 0:
            raise ValueError(f"an amount of work cannot be negative or NaN; got {amount}")
        return _Use(self, amount, priority)

    def _arrive(self, process: Process, amount: float, priority: float) -> None:
        self._advance()
        rank = (priority if self.policy == "priority" else 0.0, next(self._count))
        job = _Job(amount, process, rank, amount)
        if self.policy == "shared":
            self._active.append(job)
        else:
            heapq.heappush(self._queue, (rank, job))
        self._plan()

    def _advance(self) -> None:
        """Work done since the last change."""
        passed = self.sim.now - self._since
        self._since = self.sim.now
        if self._active and passed > 0:
            self.busy += passed
            part = self.rate * passed / len(self._active)
            for job in self._active:
                job.left -= part

    def _plan(self) -> None:
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
        if not self._active and self._queue:
            self._active.append(heapq.heappop(self._queue)[1])
        if self._active:
            soonest = min(max(job.left, 0.0) for job in self._active)
            self._cancel = self.sim.at(self.sim.now + soonest * len(self._active) / self.rate, self._finish)

    def _finish(self) -> None:
        self._cancel = None
        self._advance()
        least = min(job.left for job in self._active)
        slack = max(0.0, least) + 1e-9 * max(job.amount for job in self._active)
        ended = [job for job in self._active if job.left <= slack]
        self._active = [job for job in self._active if job.left > slack]
        for job in ended:
            self.done += job.amount
            job.process.resume()
        self._plan()


@dataclass(frozen=True, eq=False)
class _Use:
    resource: Resource
    amount: float
    priority: float

    def begin(self, process: Process) -> None:
        self.resource._arrive(process, self.amount, self.priority)

    def holders(self) -> Iterable[Process]:
        return ()

    def describe(self) -> str:
        return f"{self.amount:g} units of {self.resource.name}"


class Link:
    """A wire: messages leave one after another and arrive ``alpha`` seconds later.

    A message of n bytes occupies the wire for ``beta`` n seconds. ``yield link.transfer(n)`` waits until it has
    arrived; ``yield link.send(n, fifo, item)`` only until it has left, and the item comes out of ``fifo`` when it
    arrives.

    Args:
        alpha: seconds of latency.
        beta: seconds a byte.

    Attributes:
        sent, arrived: bytes.
    """

    def __init__(self, sim: Sim, alpha: float, beta: float, name: str = "link") -> None:
        if not alpha >= 0 or not beta > 0:
            raise BadInput(f"alpha must be 0 or more and beta above 0, in seconds; got {alpha} and {beta}")
        self.sim, self.alpha, self.beta, self.name = sim, alpha, beta, name
        self.wire = Resource(sim, 1 / beta, name=name)
        self.sent = self.arrived = 0
        self._count = itertools.count()

    def transfer(self, nbytes: int) -> Wait:
        """Waits until a message has arrived."""
        return self.sim.spawn(self._carry(nbytes, None, None, whole=True), self._next_name())

    def send(self, nbytes: int, to: Fifo | None = None, item: Any = None) -> Wait:
        """Waits until a message has left; ``item`` comes out of ``to`` when it arrives."""
        return self.sim.spawn(self._carry(nbytes, to, item, whole=False), self._next_name())

    def _carry(self, nbytes: int, to: Fifo | None, item: Any, whole: bool) -> Body:
        if nbytes < 0:
            raise ValueError(f"a message has 0 bytes or more; got {nbytes}")
        yield self.wire.use(float(nbytes))
        self.sent += nbytes

        def arrive() -> Body:
            yield self.sim.wait(self.alpha)
            self.arrived += nbytes
            if to is not None:
                yield to.put(item)

        flight = self.sim.spawn(arrive(), self._next_name())
        if whole:
            yield flight

    def _next_name(self) -> str:
        return f"{self.name}, message {next(self._count)}"
