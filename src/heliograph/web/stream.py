"""The live page of a running check: what it does this moment, sent as server-sent events until it ends.

Event ``state`` carries the HTML of the live part, ``end`` says that the run is over, ``trouble`` why nothing can be
read at present; the browser then asks again by itself. A comment every ten seconds keeps the connection open.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from heliograph.errors import HeliographError
from heliograph.trials.live import LiveState, read_live
from heliograph.trials.record import TrialRecord
from heliograph.trials.sentences import figure_text
from heliograph.web.reader import Reader, StoredRun, machine_label

__all__ = ["MAX_STREAMS", "LiveStream", "LiveView", "StreamCount", "Watch", "live_events"]

MAX_STREAMS = 64
POLL_S = 0.5
HEARTBEAT_S = 10.0
STORE_EVERY_S = 2.0
SILENCE_S = 30.0
RECENT = 8


@dataclass(frozen=True)
class TrialLine:
    """A finished trial in one line."""

    trial: str
    status: str
    text: str


@dataclass(frozen=True)
class LiveView:
    """What a running check does this moment.

    Attributes:
        state: ``running``; ``silent`` where the store says running but no process of this machine does; ``ended``.
        done, planned: trials.
        left: the time left in words, or ``""``.
        failed: finished trials that did not end well.
        recent: the latest trials, latest first.
    """

    run: str
    slugs: tuple[str, ...]
    preset: str
    machine: str
    state: Literal["running", "silent", "ended"]
    done: int
    planned: int
    current: tuple[str, ...] = ()
    latest: str = ""
    said: tuple[str, ...] = ()
    left: str = ""
    failed: int = 0
    recent: tuple[TrialLine, ...] = ()


@dataclass
class Watch:
    """Looks at one run again and again; reads the store no more often than every two seconds.

    Attributes:
        reader: the store.
        folder: where the live files are.
        run: the run's full id.
    """

    reader: Reader
    folder: Path
    run: str
    _stored: StoredRun | None = None
    _status: str = ""
    _read_at: float = 0.0
    _changed_at: float = field(default_factory=time.monotonic)

    def look(self) -> LiveView:
        """What the run does now.

        Raises:
            HeliographError: the run or the store cannot be read.
        """
        now, live = time.monotonic(), read_live(self.folder, self.run)
        stored = self._stored
        if stored is None or now - self._read_at >= STORE_EVERY_S or live is None:
            count = len(stored.records) if stored else -1
            stored = self._stored = self.reader.run(self.run)
            self._status = self.reader.status(stored) if live is None else "running"
            self._read_at = now
            if live is not None or len(stored.records) != count:
                self._changed_at = now
        state: Literal["running", "silent", "ended"] = "running"
        if live is None:
            state = "silent" if self._status == "running" else "ended"
        return _view(stored, live, state)

    @property
    def given_up(self) -> bool:
        """Whether nothing has been heard for so long that the run must have been killed."""
        return time.monotonic() - self._changed_at >= SILENCE_S


def _view(stored: StoredRun, live: LiveState | None, state: Literal["running", "silent", "ended"]) -> LiveView:
    header, records = stored.header, stored.records
    latest_first = sorted(records, key=lambda r: r.started_at, reverse=True)
    return LiveView(
        run=header.run,
        slugs=header.slugs,
        preset=header.preset,
        machine=machine_label(header),
        state=state,
        done=live.done if live else len(records),
        planned=live.planned if live else len(header.settings.get("planned", ())),
        current=live.current if live else (),
        latest=live.latest if live else "",
        said=live.said if live else (),
        left=_left(live.seconds_left) if live else "",
        failed=sum(r.status != "ok" for r in records),
        recent=tuple(_line(r) for r in latest_first[:RECENT]),
    )


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    return f"about {round(seconds / 60)} min left"


def _line(record: TrialRecord) -> TrialLine:
    if record.status != "ok":
        return TrialLine(record.trial, record.status, (record.tail.strip().splitlines() or [""])[0][:200])
    numbers = [
        f"{arm} {name.replace('_', ' ')} {figure_text(float(value))}"
        for arm, metrics in record.metrics.items()
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not name.startswith("peak_")
    ]
    return TrialLine(record.trial, record.status, ", ".join(numbers[:4]))


async def live_events(watch: Watch, render: Callable[[LiveView], str]) -> AsyncGenerator[str, None]:
    """The events of one run, until it ends."""
    shown, sent_at = "", time.monotonic()
    yield "retry: 3000\n\n"
    while True:
        try:
            view = await run_in_threadpool(watch.look)
        except HeliographError as error:
            yield _event("trouble", str(error))
            return
        if (html := render(view)) != shown:
            shown, sent_at = html, time.monotonic()
            yield _event("state", html)
        elif time.monotonic() - sent_at >= HEARTBEAT_S:
            sent_at = time.monotonic()
            yield ": still here\n\n"
        if view.state == "ended" or (view.state == "silent" and watch.given_up):
            yield _event("end", view.state)
            return
        await pause(POLL_S)


async def pause(seconds: float) -> None:
    """Waits between two looks."""
    await asyncio.sleep(seconds)


def _event(name: str, text: str) -> str:
    data = "".join(f"data: {line}\n" for line in text.splitlines() or [""])
    return f"event: {name}\n{data}\n"


@dataclass
class StreamCount:
    """How many streams are open; the event loop alone changes it."""

    limit: int = MAX_STREAMS
    open: int = 0


class LiveStream(Response):
    """Sends events until they end or the client is gone; refuses with 503 while too many streams are open.

    Args:
        events: what to send; closed in any case.
        count: the streams of this application.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None], count: StreamCount) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.events, self.count = events, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response."""
        if self.count.open >= self.count.limit:
            text = f"{self.count.limit} live pages are open already; close one and reload.\n"
            await PlainTextResponse(text, 503, {"retry-after": "10"})(scope, receive, send)
            return
        self.count.open += 1
        try:
            async with aclosing(self.events), anyio.create_task_group() as group:
                group.start_soon(_cancel_when_gone, receive, group.cancel_scope)
                await self._send(scope, send)
                group.cancel_scope.cancel()
        finally:
            self.count.open -= 1

    async def _send(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if scope["method"] == "GET":
            async for event in self.events:
                await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
