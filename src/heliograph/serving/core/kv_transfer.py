"""Keys and values from one instance to another: the holder serves its leases over TCP, the other fetches and thanks.

Where both ends are processes of one machine with their caches on GPUs, a handle goes over TCP and the bytes go from
device to device; if that cannot be, they go over TCP after all.

A fetch that breaks off leaves the lease as it was; the blocks are free once the fetch is acknowledged, the request is
ended, or the lease runs out, whichever comes first.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from heliograph.errors import HeliographError
from heliograph.serving.core import cuda_peer
from heliograph.serving.core.async_engine import AsyncEngine, Held
from heliograph.serving.core.cuda_peer import DTYPES, PeerUnreachable
from heliograph.serving.core.frames import FrameError, Pace, receive_frame, send_frame
from heliograph.serving.core.request import Ticket

__all__ = ["KVServer", "TransferFailed", "fetch_blocks"]

MAX_TRANSFER_BYTES = 2**34


class TransferFailed(HeliographError):
    """Keys and values did not arrive."""


class KVServer:
    """Serves the leases of an engine.

    Args:
        host: to listen on; the port is free choice.
        pace: bytes a second that go out, of all transfers together.
        timeout_s: of a peer that stops reading or asking.

    Attributes:
        engine: whose leases these are; set before the first fetch.
        address: host and port.
        sent_bytes: of bodies.
    """

    def __init__(self, host: str = "127.0.0.1", *, pace: Pace | None = None, timeout_s: float = 20.0) -> None:
        self.engine: AsyncEngine | None = None
        self.phase: Callable[[str, str], object] | None = None
        self.sent_bytes = 0
        self._pace, self._timeout_s = pace or Pace(), timeout_s
        self._listening = socket.create_server((host, 0), backlog=64)
        self.address: tuple[str, int] = self._listening.getsockname()[:2]
        self._thread = threading.Thread(target=self._accept, name="kv-server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Takes no more fetches."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), name="kv-transfer", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(self._timeout_s)
        with connection, contextlib.suppress(FrameError, OSError):
            header, _ = receive_frame(connection)
            key = str(header.get("key"))
            near = bool(header.get("peer")) and header["peer"] == cuda_peer.host_id()
            engine = self.engine
            if engine is None:
                send_frame(connection, {"error": "this instance holds nothing yet"})
                return
            try:
                held = engine.submit(lambda: engine.held(key, on_device=near)).result(self._timeout_s)
            except HeliographError as error:
                send_frame(connection, {"error": str(error)})
                return
            facts, body = _answer(held)
            if self.phase is not None:
                self.phase("sending", key)
            send_frame(connection, facts, body, self._pace)
            self.sent_bytes += len(body) or held.contents.nbytes
            if self.phase is not None:
                self.phase("sent", key)
            answer, _ = receive_frame(connection)
            if answer.get("ack") == key:
                engine.submit(lambda: engine.engine.core.kv.release(key)).result(self._timeout_s)


def _answer(held: Held) -> tuple[dict[str, Any], memoryview]:
    """What is said of held blocks, and their bytes; none where the other end opens them on their device."""
    if _on_device(held.contents):
        with contextlib.suppress(PeerUnreachable):
            return {"tokens": held.tokens, "peer": cuda_peer.share_tensor(held.contents)}, memoryview(b"")
    contents = held.contents.cpu()
    body = contents.contiguous().view(torch.uint8).numpy().reshape(-1).data
    facts = {
        "shape": list(contents.shape),
        "dtype": str(contents.dtype).removeprefix("torch."),
        "tokens": held.tokens,
        "crc": zlib.crc32(body),
    }
    return facts, body


def _on_device(contents: Tensor) -> bool:
    return contents.is_cuda


def fetch_blocks(ticket: Ticket, timeout_s: float = 20.0, *, device: str = "cpu") -> Tensor:
    """Brings what a ticket stands for, [L, 2, blocks, block_size, G, D], and frees it at the holder.

    Args:
        ticket: where and what.
        timeout_s: of a silent holder.
        device: of this end's cache; with a GPU at both ends of one machine, the blocks come from device to device.

    Raises:
        TransferFailed: the holder is gone or silent, the lease has ended, or the bytes are damaged.
    """
    if device.startswith("cuda") and cuda_peer.host_id():
        with contextlib.suppress(PeerUnreachable):  # the lease is as it was
            return _fetch(ticket, timeout_s, cuda_peer.host_id(), device)
    return _fetch(ticket, timeout_s)


def _fetch(ticket: Ticket, timeout_s: float, peer: str = "", device: str = "cpu") -> Tensor:
    limit = 2 * ticket.nbytes if ticket.nbytes else MAX_TRANSFER_BYTES
    try:
        with socket.create_connection((ticket.host, ticket.port), timeout_s) as connection:
            connection.settimeout(timeout_s)
            send_frame(connection, {"key": ticket.key, "peer": peer})
            facts, body = receive_frame(connection, limit)
            if "error" in facts:
                raise TransferFailed(f"{ticket.host}:{ticket.port}: {facts['error']}")
            contents = _copied(facts, ticket, device) if peer and "peer" in facts else _tensor(facts, body, ticket)
            with contextlib.suppress(OSError):  # it came whole; without thanks the lease ends by itself
                send_frame(connection, {"ack": ticket.key})
            return contents
    except (OSError, FrameError) as error:
        raise TransferFailed(f"keys and values of {ticket.key} at {ticket.host}:{ticket.port}: {error}") from None


def _tensor(facts: dict[str, Any], body: bytearray, ticket: Ticket) -> Tensor:
    try:
        shape, dtype = tuple(int(n) for n in facts["shape"]), DTYPES[facts["dtype"]]
        whole = torch.frombuffer(body, dtype=dtype).view(shape)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise TransferFailed(f"what came for {ticket.key} does not fit its header: {error}") from None
    if zlib.crc32(body) != facts.get("crc") or facts.get("tokens") != ticket.tokens:
        raise TransferFailed(f"what came for {ticket.key} is damaged or of another length")
    return whole


def _copied(facts: dict[str, Any], ticket: Ticket, device: str) -> Tensor:
    """The holder's tensor on this end's device, while the holder keeps it."""
    place = facts["peer"]
    if not isinstance(place, dict):
        raise TransferFailed(f"what came for {ticket.key} does not fit its header")
    contents = cuda_peer.open_tensor(place).to(device, copy=True)
    if cuda_peer.checksum(contents) != place.get("sum") or facts.get("tokens") != ticket.tokens:
        raise TransferFailed(f"what came for {ticket.key} is damaged or of another length")
    return contents
