"""Messages over a stream of bytes: a MessagePack header, then raw bytes as they lie in memory.

A frame is: 4 bytes length of the header, the header, and as many bytes of body as the header's ``nbytes`` says. Both
lengths are checked before anything is read, so that a hostile peer cannot make this process allocate what it likes.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from heliograph.errors import BadInput, HeliographError

__all__ = ["MAX_HEADER_BYTES", "FrameError", "Pace", "read_frame", "receive_frame", "send_frame", "write_frame"]

MAX_HEADER_BYTES = 16 * 2**20
CHUNK_BYTES = 256 * 2**10
_LENGTH = struct.Struct("!I")


class FrameError(HeliographError):
    """What came is no frame, or larger than was agreed, or stopped in the middle."""


class Pace:
    """A limit of bytes a second, kept over any time.

    Args:
        bytes_per_s: at most; None for no limit.
    """

    def __init__(self, bytes_per_s: float | None = None) -> None:
        if bytes_per_s is not None and not bytes_per_s > 0:
            raise BadInput(f"a link carries more than 0 bytes a second; got {bytes_per_s}")
        self.bytes_per_s = bytes_per_s
        self._free_at = 0.0

    def wait(self, nbytes: int) -> None:
        """Blocks until ``nbytes`` more may have been sent."""
        if self.bytes_per_s is None:
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + nbytes / self.bytes_per_s
        if self._free_at > now:
            time.sleep(self._free_at - now)


def pack(header: Mapping[str, Any]) -> bytes:
    """A header with its length before it."""
    text = msgspec.msgpack.encode(dict(header))
    if len(text) > MAX_HEADER_BYTES:
        raise FrameError(f"a header of {len(text)} bytes is too large; the limit is {MAX_HEADER_BYTES}")
    return _LENGTH.pack(len(text)) + text


def unpack(text: bytes) -> dict[str, Any]:
    """A header from its bytes.

    Raises:
        FrameError: these are no MessagePack object.
    """
    try:
        header = msgspec.msgpack.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"no readable header: {error}") from None
    if not isinstance(header, dict):
        raise FrameError(f"a header is an object; got {type(header).__name__}")
    return header


def send_frame(
    connection: socket.socket, header: Mapping[str, Any], body: memoryview | bytes = b"", pace: Pace | None = None
) -> None:
    """Sends a frame; the body in pieces, at the pace of the link."""
    view = memoryview(body).cast("B") if len(body) else memoryview(b"")
    connection.sendall(pack({**header, "nbytes": len(view)}))
    for start in range(0, len(view), CHUNK_BYTES):
        piece = view[start : start + CHUNK_BYTES]
        if pace is not None:
            pace.wait(len(piece))
        connection.sendall(piece)


def receive_frame(connection: socket.socket, max_body_bytes: int = 0) -> tuple[dict[str, Any], bytearray]:
    """The next frame.

    Raises:
        FrameError: the peer went away, or its frame is larger than agreed.
    """
    (length,) = _LENGTH.unpack(_read(connection, _LENGTH.size))
    if length > MAX_HEADER_BYTES:
        raise FrameError(f"a header of {length} bytes was announced; the limit is {MAX_HEADER_BYTES}")
    header = unpack(bytes(_read(connection, length)))
    nbytes = header.get("nbytes", 0)
    if not isinstance(nbytes, int) or not 0 <= nbytes <= max_body_bytes:
        raise FrameError(f"a body of {nbytes} bytes was announced; at most {max_body_bytes} were agreed")
    return header, _read(connection, nbytes)


async def write_frame(writer: asyncio.StreamWriter, header: Mapping[str, Any]) -> None:
    """Sends a header without a body."""
    writer.write(pack(header))
    await writer.drain()


async def read_frame(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The next header; None once the peer has gone.

    Raises:
        FrameError: it is no frame.
    """
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MAX_HEADER_BYTES:
            raise FrameError(f"a header of {length} bytes was announced; the limit is {MAX_HEADER_BYTES}")
        return unpack(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _read(connection: socket.socket, nbytes: int) -> bytearray:
    data = bytearray(nbytes)
    view, have = memoryview(data), 0
    while have < nbytes:
        got = connection.recv_into(view[have:])
        if not got:
            raise FrameError(f"the peer went away after {have} of {nbytes} bytes")
        have += got
    return data
