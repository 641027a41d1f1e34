"""Contiguous keys and values over TCP: the holder packs a lease in one go, the receiver gets it in its own blocks.

A fetch names the lease; the answer says shape, number format and checksum, then come the messages, then one
acknowledgement, after which the holder's blocks are free. A fetch that breaks off leaves the lease to its deadline.

Shapes: as in :mod:`heliograph.serving.pd_serve.transfer`.
"""

from __future__ import annotations

import contextlib
import socket
import zlib
from typing import Any

import torch
from torch import Tensor

from heliograph.errors import BadInput, HeliographError
from heliograph.serving.core.cuda_peer import DTYPES
from heliograph.serving.core.frames import FrameError, Pace, receive_frame, send_frame
from heliograph.serving.core.kv_transfer import MAX_TRANSFER_BYTES, KVServer, TransferFailed
from heliograph.serving.core.request import Ticket
from heliograph.serving.core.torch_executor import TorchExecutor
from heliograph.serving.pd_serve.transfer import ContiguousKV

__all__ = ["ContiguousFetch", "ContiguousKVServer"]


class ContiguousKVServer(KVServer):
    """Serves an engine's leases as contiguous ranges.

    Args:
        host: to listen on; the port is free choice.
        transfer: how many layers a message holds.
        pace: bytes a second that go out.
        timeout_s: of a peer that stops reading or asking.

    Attributes:
        messages: sent.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        *,
        transfer: ContiguousKV = ContiguousKV(),  # noqa: B008 - frozen
        pace: Pace | None = None,
        timeout_s: float = 20.0,
    ) -> None:
        self.transfer, self.messages = transfer, 0
        super().__init__(host, pace=pace, timeout_s=timeout_s)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(self._timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, contextlib.suppress(FrameError, OSError):
            header, _ = receive_frame(connection)
            key, engine = str(header.get("key")), self.engine
            if engine is None:
                send_frame(connection, {"error": "this instance holds nothing yet"})
                return
            try:
                skip = int(header.get("skip", 0))
                buffer = engine.submit(lambda: self._pack(key, skip)).result(self._timeout_s)
            except (HeliographError, ValueError) as error:
                send_frame(connection, {"error": str(error)})
                return
            messages = list(self.transfer.split(buffer))
            body = buffer.view(torch.uint8).reshape(-1).numpy().data
            facts: dict[str, Any] = {
                "shape": list(buffer.shape),
                "dtype": str(buffer.dtype).removeprefix("torch."),
                "messages": len(messages),
                "crc": zlib.crc32(body),
            }
            if self.phase is not None:
                self.phase("sending", key)
            send_frame(connection, facts)
            for number, message in enumerate(messages):
                part = message.view(torch.uint8).reshape(-1).numpy().data
                send_frame(connection, {"message": number}, part, self._pace)
                self.messages += 1
                self.sent_bytes += len(part)
            if self.phase is not None:
                self.phase("sent", key)
            answer, _ = receive_frame(connection)
            if answer.get("ack") == key:
                engine.submit(lambda: engine.engine.core.kv.release(key)).result(self._timeout_s)

    def _pack(self, key: str, skip: int) -> Tensor:
        """In the engine's thread: nobody writes into the blocks meanwhile."""
        engine = self.engine
        assert engine is not None
        core = engine.engine.core
        lease = core.kv.leases.get(key)
        if lease is None or not isinstance(core.executor, TorchExecutor):
            raise BadInput(f"nothing is held under {key!r}; the lease has ended")
        lease.deadline_s = core.clock.now() + engine.lease_s
        return self.transfer.pack(core.executor.cache.data, lease.blocks, lease.tokens, skip=skip).cpu()


class ContiguousFetch:
    """Brings a ticket's keys and values in blocks of the receiver's own size; a ``Fetch`` of the common engine.

    Args:
        block_size: of the receiver.
        timeout_s: of a silent holder.
    """

    def __init__(self, block_size: int, timeout_s: float = 20.0) -> None:
        self.block_size, self.timeout_s = block_size, timeout_s

    def __call__(self, ticket: Ticket) -> Tensor:
        """[L, 2, blocks, block_size, G, D]; what lies behind the last token is 0.

        Raises:
            TransferFailed: the holder is gone or silent, the lease has ended, or the bytes are damaged.
        """
        buffer = self.fetch(ticket)
        layers, two, tokens, heads, channels = buffer.shape
        blocks = -(-tokens // self.block_size)
        padded = buffer.new_zeros(layers, two, blocks * self.block_size, heads, channels)
        padded[:, :, :tokens] = buffer
        return padded.view(layers, two, blocks, self.block_size, heads, channels)

    def fetch(self, ticket: Ticket, skip: int = 0) -> Tensor:
        """The contiguous buffer itself, [L, 2, tokens - skip, G, D].

        Raises:
            TransferFailed: as above.
        """
        limit = 2 * ticket.nbytes if ticket.nbytes else MAX_TRANSFER_BYTES
        where = f"keys and values of {ticket.key} at {ticket.host}:{ticket.port}"
        try:
            with socket.create_connection((ticket.host, ticket.port), self.timeout_s) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                send_frame(connection, {"key": ticket.key, "skip": skip})
                facts, _ = receive_frame(connection)
                if "error" in facts:
                    raise TransferFailed(f"{where}: {facts['error']}")
                buffer = self._receive(connection, facts, ticket.tokens - skip, limit)
                with contextlib.suppress(OSError):  # it came whole; without thanks the lease ends by itself
                    send_frame(connection, {"ack": ticket.key})
                return buffer
        except (OSError, FrameError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise TransferFailed(f"{where}: {error}") from None

    def _receive(self, connection: socket.socket, facts: dict[str, Any], tokens: int, limit: int) -> Tensor:
        shape, dtype = tuple(int(n) for n in facts["shape"]), DTYPES[facts["dtype"]]
        if len(shape) != 5 or shape[1] != 2 or shape[2] != tokens:
            raise FrameError(f"a cache of {tokens} tokens was expected; one of shape {shape} was announced")
        nbytes = dtype.itemsize
        for size in shape:
            nbytes *= size
        if nbytes > limit:
            raise FrameError(f"{nbytes} bytes were announced; at most {limit} were agreed")
        body = bytearray()
        for _ in range(int(facts["messages"])):
            _, part = receive_frame(connection, nbytes - len(body))
            body += part
        if len(body) != nbytes or zlib.crc32(body) != facts["crc"]:
            raise FrameError("what came is damaged or of another length")
        return torch.frombuffer(body, dtype=dtype).view(shape)
