"""Virtual time for processes written as generators: what happens when, in one reproducible order.

A process yields what it waits for and is resumed with the answer. Events at the same time happen in the order in which
they were scheduled, so two runs of the same program are the same run. When everybody waits and nothing is scheduled,
:class:`Deadlock` says who waits for whom.

>>> from heliograph.sim.parts import Fifo
>>> sim = Sim()
>>> queue = Fifo(sim, depth=1, name="queue")
>>> def producer():
...     for item in range(3):
...         yield sim.wait(1.0)
...         yield queue.put(item)
>>> def consumer():
...     while True:
...         item = yield queue.get()
...         print(sim.now, item)
...         if item == 2:
...             return
>>> _ = sim.spawn(producer(), "producer"), sim.spawn(consumer(), "consumer")
>>> sim.run()
1.0 0
2.0 1
3.0 2
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from heliograph.clock import VirtualClock
from heliograph.errors import BadInput, HeliographError

__all__ = ["Body", "Deadlock", "Process", "Sim", "Wait"]

Body = Generator["Wait", Any, Any]


class Deadlock(HeliographError):
    """Processes wait and nothing is scheduled.

    Attributes:
        waiting: process name to what it waits for.
        cycle: names that wait for each other in a ring; empty where none was found.
    """

    exit_code = 1

    def __init__(self, now: float, waiting: dict[str, str], cycle: tuple[str, ...]) -> None:
        listed = "; ".join(f"{name} waits for {what}" for name, what in sorted(waiting.items()))
        ring = f" Wait cycle: {' -> '.join((*cycle, cycle[0]))}." if cycle else ""
        super().__init__(f"deadlock at {now:g} s: {listed}.{ring}")
        self.now, self.waiting, self.cycle = now, waiting, cycle

    def __reduce__(self) -> tuple[type[Deadlock], tuple[float, dict[str, str], tuple[str, ...]]]:
        return type(self), (self.now, self.waiting, self.cycle)


class Wait(Protocol):
    """Something that a process can yield."""

    def begin(self, process: Process) -> None:
        """Starts waiting; later the simulation resumes the process with an answer."""
        ...

    def holders(self) -> Iterable[Process]:
        """The processes on which the end of the wait depends, as far as they are known."""
        ...

    def describe(self) -> str:
        """What is waited for, in words."""
        ...


class Process:
    """A running generator.

    Attributes:
        name: unique within its simulation.
        result: what the generator returned, once ``done``.
        done: whether it has ended.
    """

    def __init__(self, sim: Sim, body: Body, name: str) -> None:
        self.sim, self.name, self.done, self.result = sim, name, False, None
        self.waiting: Wait | None = None
        self._body = body
        self._joined: list[Process] = []

    def resume(self, answer: Any = None) -> None:
        """Schedules the process to go on, now."""
        self.waiting = None
        self.sim.at(self.sim.now, lambda: self._step(answer))

    def kill(self) -> None:
        """Ends the process where it stands; who waits for its end goes on with None. Places that it holds stay held."""
        if not self.done:
            self.done, self.waiting = True, None
            self._body.close()
            self._leave()

    def begin(self, process: Process) -> None:
        """Waiting for a process means until it ends."""
        if self.done:
            process.resume(self.result)
        else:
            self._joined.append(process)

    def holders(self) -> Iterable[Process]:
        """The process itself."""
        return (self,)

    def describe(self) -> str:
        """In words."""
        return f"the end of {self.name}"

    def _step(self, answer: Any) -> None:
        if self.done:
            return
        try:
            wait = self._body.send(answer)
        except StopIteration as stop:
            self.done, self.result = True, stop.value
            self._leave()
            return
        except BaseException:
            self.done = True
            self._leave()
            raise
        if not hasattr(wait, "begin"):
            raise BadInput(f"{self.name} yielded {wait!r}; yield what a simulation waits for, such as sim.wait(1.0)")
        self.waiting = wait
        wait.begin(self)

    def _leave(self) -> None:
        self.sim._ended(self)
        for other in self._joined:
            other.resume(self.result)


class Sim:
    """One simulation: its time, and the processes in it."""

    def __init__(self, clock: VirtualClock | None = None) -> None:
        self.clock = VirtualClock() if clock is None else clock
        self._alive: dict[str, Process] = {}
        self._count = itertools.count()

    @property
    def now(self) -> float:
        """Seconds."""
        return self.clock.now()

    def at(self, when: float, action: Callable[[], object]) -> Callable[[], None]:
        """Calls ``action`` at a time; returns a function that cancels it."""
        return self.clock.call_at(when, action)

    def spawn(self, body: Body, name: str = "") -> Process:
        """Starts a generator as a process, now.

        Raises:
            BadInput: a living process has that name, or ``body`` is no generator.
        """
        if not hasattr(body, "send"):
            raise BadInput(f"a process is a generator; got {type(body).__name__} (call the function that yields)")
        name = name or f"process {next(self._count)}"
        if name in self._alive:
            raise BadInput(f"a process named {name!r} is running already")
        process = self._alive[name] = Process(self, body, name)
        process.resume()
        return process

    def wait(self, seconds: float) -> Wait:
        """Until so many seconds have passed.

        Raises:
            ValueError: a negative number or NaN.
        """
        if not seconds >= 0:
            raise ValueError(f"a delay is in seconds and cannot be negative or NaN; got {seconds}")
        return _Delay(self, seconds)

    def run(self, until: float | None = None) -> None:
        """Runs to ``until``, or until nothing is left to happen.

        Raises:
            Deadlock: without ``until``, processes wait and nothing is scheduled. Errors of processes come through.
        """
        if until is not None:
            if until < self.now:
                raise ValueError(f"cannot run to {until} s: it is {self.now} s already")
            self.clock.sleep(until - self.now)
            return
        self.clock.run()
        waiting = {p.name: p.waiting for p in self._alive.values() if p.waiting is not None}
        if waiting:
            raise Deadlock(self.now, {n: w.describe() for n, w in waiting.items()}, _cycle(self._alive))

    def _ended(self, process: Process) -> None:
        self._alive.pop(process.name, None)


@dataclass(frozen=True, eq=False)
class _Delay:
    sim: Sim
    seconds: float

    def begin(self, process: Process) -> None:
        self.sim.at(self.sim.now + self.seconds, process.resume)

    def holders(self) -> Iterable[Process]:
        return ()

    def describe(self) -> str:
        return f"{self.seconds:g} s to pass"


def _cycle(alive: dict[str, Process]) -> tuple[str, ...]:
    """Names on a ring of waits, the alphabetically first one first."""
    edges = {
        name: [h.name for h in process.waiting.holders() if h.name in alive and not h.done]
        for name, process in alive.items()
        if process.waiting is not None
    }
    for start in sorted(edges):
        path, seen, name = [start], {start}, start
        stack = [iter(edges[start])]
        while stack:
            name = next((n for n in stack[-1] if n == start or (n in edges and n not in seen)), "")
            if name == start:
                return tuple(path)
            if not name:
                stack.pop()
                path.pop()
            else:
                seen.add(name)
                path.append(name)
                stack.append(iter(edges[name]))
    return ()
