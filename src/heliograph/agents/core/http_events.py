"""Server-sent events of an answer, each of bounded size (WHATWG HTML, section 9.2.6)."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from heliograph.agents.core.links import ResponseTooLarge

__all__ = ["Event", "bounded", "events"]

_END_OF_LINE = re.compile(rb"\r\n?|\n")


@dataclass(frozen=True)
class Event:
    """One event.

    Attributes:
        data: its lines, joined.
        kind: "message" where the server gives none.
        id: the newest of the stream, with which it can be taken up again; empty if there was none.
        retry_ms: after which to come back, if this event says so.
    """

    data: bytes
    kind: str = "message"
    id: str = ""
    retry_ms: int | None = None


def bounded(size: int, max_bytes: int) -> None:
    """Raises ResponseTooLarge beyond the limit, in bytes."""
    if size > max_bytes:
        raise ResponseTooLarge(f"the answer has more than {max_bytes} bytes, the limit of this gateway")


async def events(read: Callable[[], Awaitable[bytes]], max_bytes: int) -> AsyncGenerator[Event]:
    """The events of a stream, up to its end.

    Args:
        read: gives the next part, and nothing at the end.
        max_bytes: of one event.

    Raises:
        ResponseTooLarge: an event is longer.
    """
    buffer, data = bytearray(), bytearray()
    kind, number, retry_ms = "", "", None
    told = after_cr = False
    while chunk := await read():
        if after_cr:  # the other half of an end of line
            chunk, after_cr = chunk.removeprefix(b"\n"), False
        bounded(len(chunk) + len(buffer) + len(data), max_bytes)
        searched = len(buffer)
        buffer += chunk
        while (end := _END_OF_LINE.search(buffer, searched)) is not None:
            after_cr = end[0] == b"\r" and end.end() == len(buffer)
            line = bytes(buffer[: end.start()])
            del buffer[: end.end()]
            searched = 0
            if not line:
                if data or told:
                    yield Event(bytes(data[:-1]), kind or "message", number, retry_ms)
                data.clear()
                kind, retry_ms, told = "", None, False
                continue
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                data += value + b"\n"
            elif name == b"event":
                kind = value.decode("utf-8", "replace")
            elif name == b"id" and b"\0" not in value:
                number, told = value.decode("latin-1"), True
            elif name == b"retry" and value.isdigit():
                retry_ms, told = int(value[:9]), True
