"""Runs trials on this machine: side by side where they may, alone where they are timed."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from heliograph.errors import HeliographError
from heliograph.trials.execute import TAIL_CHARACTERS, one_thread_environment
from heliograph.trials.plan import Trial
from heliograph.trials.record import TrialRecord, failed_record

__all__ = ["Event", "Executor", "LocalExecutor"]

READ_BYTES = 1 << 18
POLL_S = 0.2


@dataclass(frozen=True)
class Event:
    """Something that happened to a trial.

    Attributes:
        kind: ``started``, ``said``, ``progress`` or ``finished``.
        trial: which.
        text: the line said, or the latest metric.
        fraction: how far the trial is, for ``progress``.
        record: for ``finished``.
    """

    kind: Literal["started", "said", "progress", "finished"]
    trial: Trial
    text: str = ""
    fraction: float = 0.0
    record: TrialRecord | None = None


OnEvent = Callable[[Event], None]


class Executor(Protocol):
    """Runs trials somewhere and reports what happens to them."""

    def run(self, trials: Sequence[Trial], on_event: OnEvent) -> None:
        """Runs all trials; each ends with exactly one ``finished`` event, whatever becomes of it."""


@dataclass
class _Running:
    trial: Trial
    pid: int
    events: socket.socket
    output_fd: int
    began: float
    started_at: str
    buffer: bytes = b""
    tail: bytes = b""
    printed_bytes: int = 0
    record: TrialRecord | None = None
    said: list[str] = field(default_factory=list)
    killed: str = ""
    ended: tuple[int, float] | None = None


class LocalExecutor:
    """Forks trials from one server process with imports preloaded.

    Args:
        preload: modules that the server imports once.
        workers: how many unhurried trials run at a time; timed ones always run alone. The number of cores by default.
    """

    def __init__(self, preload: Iterable[str] = (), workers: int | None = None) -> None:
        self.preload = tuple(preload)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.workers = workers or cores
        self.missing: dict[str, str] = {}
        self.touches_cuda = ""
        self._running: dict[str, _Running] = {}
        self._replies: deque[dict[str, Any]] = deque()
        self._reply_buffer = b""

    def run(self, trials: Sequence[Trial], on_event: OnEvent) -> None:
        """Runs all trials; on an exception (Ctrl-C too) every running trial is killed at once."""
        waiting = deque(trials)
        if not waiting:
            return
        preload = self._harmless_preload() if any(t.device != "cpu" for t in waiting) else self.preload
        with self._server(preload) as control, selectors.DefaultSelector() as self._selector:
            self._control = control
            self._selector.register(control, selectors.EVENT_READ, "control")
            try:
                while waiting or self._running:
                    while waiting and self._may_start(waiting[0]):
                        self._start(waiting.popleft(), on_event)
                    self._wait(on_event)
            finally:
                for running in self._running.values():
                    _kill_group(running.pid)
                    self._close(running)
                self._running.clear()

    def _may_start(self, trial: Trial) -> bool:
        if not self._running:
            return True
        alone = trial.exclusive or any(r.trial.exclusive for r in self._running.values())
        return not alone and len(self._running) < self.workers

    def _harmless_preload(self) -> tuple[str, ...]:
        """The modules whose import leaves CUDA alone: a process forked after CUDA began cannot use a GPU."""
        modules = self.preload
        while modules:
            with self._server(modules):
                if not self.touches_cuda:
                    break
                self.missing[self.touches_cuda] = "its import initialises CUDA, so each trial imports it by itself"
                modules = tuple(m for m in modules if m != self.touches_cuda)
        return modules

    @contextlib.contextmanager
    def _server(self, preload: tuple[str, ...]) -> Any:
        ours, theirs = socket.socketpair()
        # The child must find the modules that this process finds, for example a test's own checks.
        environment = one_thread_environment() | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        server = subprocess.Popen(
            [sys.executable, "-m", "heliograph.trials.forkserver", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self._reply_buffer, self._replies = b"", deque()
        try:
            with ours:
                ours.sendall(json.dumps({"preload": preload}).encode())
                self._control = ours
                ready = self._reply("ready")
                self.missing |= ready["missing"]
                self.touches_cuda = ready["touches_cuda"]
                yield ours
        finally:
            # With the socket closed, the server kills what still runs and ends.
            try:
                server.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()

    def _reply(self, kind: str) -> dict[str, Any]:
        """Waits for the server's answer of this kind; keeps the others for later."""
        while True:
            for reply in self._replies:
                if kind in reply:
                    self._replies.remove(reply)
                    return reply
            self._read_replies()

    def _read_replies(self) -> None:
        data = self._control.recv(READ_BYTES)
        if not data:
            raise HeliographError("the process that runs trials ended by itself; its messages stand above")
        *lines, self._reply_buffer = (self._reply_buffer + data).split(b"\n")
        self._replies.extend(json.loads(line) for line in lines)

    def _start(self, trial: Trial, on_event: OnEvent) -> None:
        events, theirs = socket.socketpair()
        output_read, output_write = os.pipe()
        try:
            request = json.dumps({"trial": trial.to_json()}).encode()
            socket.send_fds(self._control, [request], [theirs.fileno(), output_write])
            pid = self._reply("started")["pid"]
        finally:
            theirs.close()
            os.close(output_write)
        os.set_blocking(output_read, False)
        events.setblocking(False)
        running = _Running(
            trial, pid, events, output_read, time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
        )
        self._running[trial.id] = running
        self._selector.register(events, selectors.EVENT_READ, (running, "events"))
        self._selector.register(output_read, selectors.EVENT_READ, (running, "output"))
        on_event(Event("started", trial))

    def _wait(self, on_event: OnEvent) -> None:
        if not self._replies:
            for key, _ in self._selector.select(POLL_S):
                if key.data == "control":
                    self._read_replies()
                    continue
                running, what = key.data
                (self._read_events if what == "events" else self._read_output)(running, on_event)
        while self._replies:
            reply = self._replies.popleft()
            if reply.get("ended") in self._running:
                running = self._running.pop(reply["ended"])
                running.ended = (reply["status"], reply["cpu_s"])
                self._finish(running, on_event)
        for running in self._running.values():
            self._enforce_limits(running)

    def _read_events(self, running: _Running, on_event: OnEvent) -> None:
        try:
            data = running.events.recv(READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._unregister(running.events)
            return
        *lines, running.buffer = (running.buffer + data).split(b"\n")
        for line in lines:
            ((kind, value),) = json.loads(line).items()
            if kind == "say":
                running.said.append(value)
                on_event(Event("said", running.trial, value))
            elif kind == "progress":
                on_event(Event("progress", running.trial, value[1], value[0]))
            elif kind == "record":
                running.record = TrialRecord.from_json(value)

    def _read_output(self, running: _Running, _: OnEvent) -> None:
        try:
            data = os.read(running.output_fd, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._unregister(running.output_fd)
            return
        running.printed_bytes += len(data)
        running.tail = (running.tail + data)[-TAIL_CHARACTERS:]

    def _enforce_limits(self, running: _Running) -> None:
        if running.killed:
            return
        trial = running.trial
        if time.monotonic() - running.began > trial.time_limit_s:
            running.killed = f"timed_out: stopped after its limit of {trial.time_limit_s:g} s"
        elif (resident := _resident_bytes(running.pid)) > trial.memory_limit_bytes:
            held, limit = resident / 2**20, trial.memory_limit_bytes / 2**20
            running.killed = f"out_of_memory: held {held:.0f} MiB; its limit is {limit:.0f} MiB"
        if running.killed:
            _kill_group(running.pid)

    def _finish(self, running: _Running, on_event: OnEvent) -> None:
        """Drains what the dead trial still had in its pipes, and makes its record."""
        while self._registered(running.events):
            self._read_events(running, on_event)
        # Grandchildren may hold the pipe open, so read only what is there.
        with contextlib.suppress(OSError):
            while self._registered(running.output_fd):
                before = running.printed_bytes
                self._read_output(running, on_event)
                if running.printed_bytes == before:
                    break
        self._close(running)
        status, cpu_s = running.ended or (0, 0.0)
        record = running.record
        tail = running.tail.decode(errors="replace")
        if record is None or running.killed:
            failed, reason = "crashed", _why_it_died(status)
            if running.killed:
                failed, _, reason = running.killed.partition(": ")
            record = failed_record(
                running.trial,
                failed,  # type: ignore[arg-type]
                f"{reason}\n{tail}".strip(),
                said=tuple(running.said),
                wall_s=time.monotonic() - running.began,
                host=socket.gethostname(),
                started_at=running.started_at,
            )
        elif record.status != "ok":
            record = replace(record, tail=f"{record.tail}\n{tail}".strip()[-TAIL_CHARACTERS:])
        record = replace(record, cpu_s=cpu_s, printed_bytes=running.printed_bytes)
        on_event(Event("finished", running.trial, record=record))

    def _registered(self, what: Any) -> bool:
        return what in self._selector.get_map()

    def _unregister(self, what: Any) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(what)

    def _close(self, running: _Running) -> None:
        self._unregister(running.events)
        self._unregister(running.output_fd)
        running.events.close()
        with contextlib.suppress(OSError):
            os.close(running.output_fd)


def _why_it_died(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"the trial's process ended with code {code} and no result"
    name = signal.Signals(-code).name
    if name == "SIGKILL":
        return "the trial's process was killed (SIGKILL), most likely because the machine ran out of memory"
    return f"the trial's process was killed by {name}"


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
