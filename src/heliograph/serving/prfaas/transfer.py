"""A prompt's cache from one cluster to another, layer by layer while later layers are computed.

The one who needs the cache opens several connections to the one who computes it. What is sent on them are chunks of
layers, each with its place and a checksum, and each acknowledged; a chunk whose connection breaks goes over another,
and a new set of connections goes on with what has not been acknowledged (arXiv:2604.15039, KV transfer).
"""

from __future__ import annotations

import socket
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from heliograph.errors import BadInput
from heliograph.serving.core.frames import FrameError, Pace, pack, receive_frame, send_frame

__all__ = ["CacheSender", "LinkShape", "layer_bytes"]


@dataclass(frozen=True)
class LinkShape:
    """What the link between two clusters is made to be, where there is no real one.

    Attributes:
        bytes_per_s: None for no limit.
        delay_s: of propagation, one way.
        chunk_bytes: of a chunk's body.
    """

    bytes_per_s: float | None = None
    delay_s: float = 0.0
    chunk_bytes: int = 2**20

    def __post_init__(self) -> None:
        """Refuses a link that carries nothing."""
        if (self.bytes_per_s is not None and not self.bytes_per_s > 0) or not self.delay_s >= 0 or self.chunk_bytes < 1:
            raise BadInput(f"a link has bandwidth and chunks above 0, and a delay of 0 or more; got {self}")

    @property
    def in_flight_bytes(self) -> float:
        """Unacknowledged bytes at most: twice what fits on the wire, and no fewer than eight chunks."""
        if self.bytes_per_s is None:
            return float("inf")
        return max(8.0 * self.chunk_bytes, 2 * self.bytes_per_s * 2 * self.delay_s)


def layer_bytes(k: Tensor, v: Tensor) -> memoryview:
    """Keys, then values, as they lie in memory."""
    whole = torch.stack([k, v]).contiguous().cpu()
    return whole.view(torch.uint8).reshape(-1).numpy().data.cast("B")


@dataclass
class _Chunk:
    number: int
    header: dict[str, Any]
    body: memoryview


@dataclass(eq=False)
class _Line:
    """One connection: what is on its way there, and the chunks that nobody has acknowledged."""

    connection: socket.socket
    wire: deque[tuple[float, _Chunk]] = field(default_factory=deque)
    unacknowledged: dict[int, _Chunk] = field(default_factory=dict)
    alive: bool = True


class CacheSender:
    """Sends the cache of one prompt.

    Args:
        request: its name.
        link: pace, delay and size of chunks.
        pace: shared by all senders of a cluster; of this one alone where None.

    Attributes:
        sent_bytes: of bodies, those sent again included. resent: chunks.
    """

    def __init__(self, request: str, link: LinkShape, pace: Pace | None = None) -> None:
        self.request, self.link, self.pace = request, link, pace or Pace(link.bytes_per_s)
        self.attempt = 0
        self.sent_bytes = self.resent = 0
        self._chunks: list[_Chunk] = []
        self._waiting: deque[_Chunk] = deque()
        self._acknowledged: set[int] = set()
        self._lines: list[_Line] = []
        self._whole = self._closed = False
        self._heard_at = time.monotonic()
        self._changed = threading.Condition()
        threading.Thread(target=self._dispatch, name=f"dispatch {request}", daemon=True).start()

    @property
    def queued_bytes(self) -> int:
        """That wait to be sent."""
        with self._changed:
            return sum(len(chunk.body) for chunk in self._waiting)

    @property
    def finished(self) -> bool:
        """Whether all has been put in and acknowledged."""
        with self._changed:
            return self._whole and len(self._acknowledged) == len(self._chunks)

    def put(self, layer: int, body: memoryview, group: str) -> None:
        """A layer's bytes are ready."""
        for offset in range(0, len(body), self.link.chunk_bytes):
            piece = body[offset : offset + self.link.chunk_bytes]
            facts = {"op": "chunk", "group": group, "layer": layer, "offset": offset, "length": len(piece)}
            self._add(facts, piece)

    def end(self, first_token: int, seconds: float) -> None:
        """The prompt is computed: the last chunk tells the first token and how many chunks there are."""
        with self._changed:
            count = len(self._chunks)
            self._whole = True
        self._add({"op": "done", "first_token": first_token, "chunks": count, "seconds": seconds}, memoryview(b""))

    def fail(self, reason: str) -> None:
        """The prompt cannot be computed."""
        self._whole = True
        self._add({"op": "failed", "reason": reason}, memoryview(b""))

    def attach(self, connections: Iterable[socket.socket], attempt: int, held: Iterable[int]) -> None:
        """A further set of connections, from a receiver that holds these chunks; older connections are given up."""
        with self._changed:
            if attempt > self.attempt:
                for line in self._lines:
                    self._lose(line)
                self.attempt = attempt
                self._acknowledged |= set(held)
                self._waiting = deque(c for c in self._waiting if c.number not in self._acknowledged)
        for connection in connections:
            line = _Line(connection)
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
            threading.Thread(target=self._write, args=(line,), name="cache writer", daemon=True).start()
            threading.Thread(target=self._listen, args=(line,), name="cache acks", daemon=True).start()

    def wait(self, timeout_s: float) -> bool:
        """Whether all was acknowledged within a time."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._closed or (self._whole and len(self._acknowledged) == len(self._chunks)), timeout_s
            )

    def busy(self, within_s: float) -> bool:
        """Whether somebody is connected, or was so lately, or the prompt is still being computed."""
        with self._changed:
            recent = time.monotonic() - self._heard_at < within_s
            return not self._closed and (recent or not self._whole or any(line.alive for line in self._lines))

    def close(self) -> None:
        """Sends no more and forgets the cache."""
        with self._changed:
            self._closed = True
            for line in self._lines:
                self._lose(line)
            self._chunks, self._waiting = [], deque()
            self._changed.notify_all()

    def _add(self, facts: dict[str, Any], body: memoryview) -> None:
        with self._changed:
            number = len(self._chunks)
            header = {**facts, "request": self.request, "number": number, "crc": zlib.crc32(body)}
            chunk = _Chunk(number, header, body)
            self._chunks.append(chunk)
            self._waiting.append(chunk)
            self._changed.notify_all()

    def _ready(self) -> bool:
        if self._closed:
            return True
        if not self._waiting or not any(line.alive for line in self._lines):
            return False
        flying = sum(len(c.body) for line in self._lines if line.alive for c in line.unacknowledged.values())
        return flying == 0 or flying + len(self._waiting[0].body) <= self.link.in_flight_bytes

    def _dispatch(self) -> None:
        """Gives chunks to the connections as fast as the link takes them."""
        while True:
            with self._changed:
                self._changed.wait_for(self._ready)
                if self._closed:
                    return
                chunk = self._waiting.popleft()
            self.pace.wait(len(chunk.body))
            with self._changed:
                alive = [line for line in self._lines if line.alive]
                if chunk.number in self._acknowledged:
                    continue
                if not alive:
                    self._waiting.appendleft(chunk)
                    continue
                line = min(alive, key=lambda each: len(each.unacknowledged))
                line.unacknowledged[chunk.number] = chunk
                line.wire.append((time.monotonic() + self.link.delay_s, chunk))
                self.sent_bytes += len(chunk.body)
                self._changed.notify_all()

    def _write(self, line: _Line) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: line.wire or not line.alive)
                if not line.alive:
                    return
                due, chunk = line.wire.popleft()
                queued = sum(len(c.body) for c in self._waiting)
                state = {"attempt": self.attempt, "queued": queued, "sent": self.sent_bytes, "resent": self.resent}
            if (early := due - time.monotonic()) > 0:
                time.sleep(early)
            try:
                send_frame(line.connection, {**chunk.header, **state}, chunk.body)
            except OSError:
                with self._changed:
                    self._lose(line)
                return

    def _listen(self, line: _Line) -> None:
        with suppress(OSError, FrameError, KeyError, TypeError, ValueError):
            while line.alive:
                answer, _ = receive_frame(line.connection)
                number = int(answer["number"])
                with self._changed:
                    self._heard_at = time.monotonic()
                    chunk = line.unacknowledged.pop(number, None)
                    if answer.get("ok"):
                        self._acknowledged.add(number)
                    elif chunk is not None:  # it came damaged
                        self.resent += 1
                        self._waiting.appendleft(chunk)
                    self._changed.notify_all()
        with self._changed:
            self._lose(line)

    def _lose(self, line: _Line) -> None:
        """A connection is gone; what it carried is sent again over another one. Under the lock."""
        if not line.alive:
            return
        line.alive = False
        again = [chunk for n, chunk in sorted(line.unacknowledged.items()) if n not in self._acknowledged]
        self.resent += len(again)
        self._waiting.extendleft(reversed(again))
        line.unacknowledged.clear()
        line.wire.clear()
        with suppress(OSError):
            line.connection.shutdown(socket.SHUT_RDWR)
        line.connection.close()
        self._changed.notify_all()


def acknowledge(connection: socket.socket, number: int, ok: bool) -> None:
    """Tells a sender that a chunk came, whole or damaged."""
    connection.sendall(pack({"number": number, "ok": ok}))
