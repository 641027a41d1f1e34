"""Compressed keys and values between engines: the holder of a lease chooses and compresses, the fetcher restores.

Both are drop-ins for the engine's own transfer: :class:`CompressedKVServer` in place of ``KVServer``,
:class:`CompressedFetch` in place of ``fetch_blocks``. A fetch that fails leaves the lease as it was, and the engine
computes the prompt itself.

Shapes: L layers, l tokens, G key and value heads, D channels.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections import Counter

import torch
from torch import Tensor

from heliograph.errors import BadInput, HeliographError
from heliograph.serving.core.frames import FrameError, Pace, receive_frame, send_frame
from heliograph.serving.core.kv_transfer import MAX_TRANSFER_BYTES, KVServer, TransferFailed
from heliograph.serving.core.request import Ticket
from heliograph.serving.core.torch_executor import TorchExecutor
from heliograph.serving.kv_serve.controller import CompressionController, TransferContext, Transferred
from heliograph.serving.kv_serve.frame import DTYPES, FrameDamaged, KVLayout
from heliograph.serving.kv_serve.link import SteadyPace, scores_of
from heliograph.serving.kv_serve.pipeline import KVPipeline, restore

__all__ = ["CompressedFetch", "CompressedKVServer"]


class CompressedKVServer(KVServer):
    """Serves an engine's leases, each compressed by what the controller chooses.

    Args:
        controller: chooses once a fetch.
        host: to listen on; the port is free choice.
        pace: bytes a second that go out.
        timeout_s: of a peer that stops reading or asking.
        dtype: to which keys and values are rounded before they are sent; None for that of the engine.

    Attributes:
        raw_bytes: what ``sent_bytes`` would have been.
    """

    def __init__(
        self,
        controller: CompressionController,
        host: str = "127.0.0.1",
        *,
        pace: Pace | None = None,
        timeout_s: float = 20.0,
        dtype: str | None = None,
    ) -> None:
        if dtype is not None and dtype not in DTYPES:
            raise BadInput(f"keys and values are sent as {', '.join(DTYPES)}; got {dtype!r}")
        self.controller, self.raw_bytes, self.dtype = controller, 0, dtype
        self._scores = scores_of(controller.profiles)
        self._served = threading.Lock()
        super().__init__(host, pace=pace, timeout_s=timeout_s)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(self._timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, contextlib.suppress(FrameError, OSError):
            asked, _ = receive_frame(connection)
            key, engine = str(asked.get("key")), self.engine
            if engine is None:
                send_frame(connection, {"error": "this instance holds nothing yet"})
                return
            try:
                kv = engine.submit(lambda: self._gather(key)).result(self._timeout_s)
                layout = KVLayout.of(kv)
                context = TransferContext(
                    layout.nbytes,
                    layout.tokens,
                    str(asked.get("workload", "unified")),
                    float(asked.get("min_quality", 0.0)),
                    math.inf if asked.get("slo_s") is None else float(asked["slo_s"]),
                )
                decision = self.controller.select(context)
                begin = time.perf_counter()
                pipeline = KVPipeline(
                    decision.profile.point,
                    scores=self._scores,
                    fingerprint=engine.engine.model.fingerprint,
                    model_layers=layout.layers,
                )
                frame = pipeline.compress(kv, request=key)
            except (HeliographError, TypeError, ValueError) as error:
                send_frame(connection, {"error": str(error)})
                return
            compressed = time.perf_counter()
            if self.phase is not None:
                self.phase("sending", key)
            send_frame(connection, {"profile": decision.profile.id, "reason": decision.reason}, frame, self._pace)
            if isinstance(self._pace, SteadyPace):
                self._pace.settle()
            if self.phase is not None:
                self.phase("sent", key)
            try:
                answer, _ = receive_frame(connection)
            except (FrameError, OSError):
                self.controller.failed(decision, "link")
                raise
            ended = time.perf_counter()
            with self._served:
                self.sent_bytes += len(frame)
                self.raw_bytes += layout.nbytes
            if answer.get("ack") == key:
                spent = float(answer.get("restore_s", 0.0))
                taken = Transferred(compressed - begin, max(0.0, ended - compressed - spent), spent, len(frame))
                self.controller.observe(decision, taken)
                engine.submit(lambda: engine.engine.core.kv.release(key)).result(self._timeout_s)
            else:
                self.controller.failed(decision, str(answer.get("refused", "link")))

    def _gather(self, key: str) -> Tensor:
        """[L, 2, l, G, D], in the engine's thread: nobody writes into the blocks meanwhile."""
        engine = self.engine
        assert engine is not None
        core = engine.engine.core
        lease = core.kv.leases.get(key)
        if lease is None or not isinstance(core.executor, TorchExecutor):
            raise BadInput(f"nothing is held under {key!r}; the lease has ended")
        lease.deadline_s = core.clock.now() + engine.lease_s
        blocks = core.executor.cache.read(lease.blocks)
        kv = blocks.flatten(2, 3)[:, :, : lease.tokens].contiguous().cpu()
        return kv if self.dtype is None else kv.to(DTYPES[self.dtype])


class CompressedFetch:
    """Brings a ticket's keys and values in blocks of the receiver's own size; a ``Fetch`` of the common engine.

    Args:
        block_size: of the receiver.
        workload, min_quality, slo_s: told to the holder, whose controller chooses by them.
        dtype: of the receiver's cache; None for that of the frame.
        timeout_s: of a silent holder.

    Attributes:
        failures: by reason; the engine computes the prompt of each.
        profiles: fetches by the id of their profile.
    """

    def __init__(
        self,
        block_size: int,
        *,
        workload: str = "unified",
        min_quality: float = 0.0,
        slo_s: float | None = None,
        timeout_s: float = 20.0,
        dtype: str | None = None,
    ) -> None:
        if dtype is not None and dtype not in DTYPES:
            raise BadInput(f"a cache holds {', '.join(DTYPES)}; got {dtype!r}")
        self.block_size, self.timeout_s, self.dtype = block_size, timeout_s, dtype
        self.asks = {"workload": workload, "min_quality": min_quality, "slo_s": slo_s}
        self.failures: Counter[str] = Counter()
        self.profiles: Counter[str] = Counter()

    def __call__(self, ticket: Ticket) -> Tensor:
        """[L, 2, blocks, block_size, G, D]; what lies behind the last token is 0.

        Raises:
            TransferFailed: the holder is gone or silent, the lease has ended, or the frame cannot be used.
        """
        where = f"keys and values of {ticket.key} at {ticket.host}:{ticket.port}"
        limit = 2 * ticket.nbytes + 2**20 if ticket.nbytes else MAX_TRANSFER_BYTES
        try:
            with socket.create_connection((ticket.host, ticket.port), self.timeout_s) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                send_frame(connection, {"key": ticket.key, **self.asks})
                told, body = receive_frame(connection, limit)
                if "error" in told:
                    self.failures["lease"] += 1
                    raise TransferFailed(f"{where}: {told['error']}")
                begin = time.perf_counter()
                kv = self._restore(connection, ticket, body, limit)
                with contextlib.suppress(OSError):  # it came whole; without thanks the lease ends by itself
                    send_frame(connection, {"ack": ticket.key, "restore_s": time.perf_counter() - begin})
                self.profiles[str(told.get("profile"))] += 1
                return kv
        except FrameDamaged as error:
            self.failures[error.reason] += 1
            raise TransferFailed(f"{where}: {error}") from None
        except (OSError, FrameError) as error:
            self.failures["link"] += 1
            raise TransferFailed(f"{where}: {error}") from None

    def _restore(self, connection: socket.socket, ticket: Ticket, body: bytearray, limit: int) -> Tensor:
        try:
            found = restore(body, fingerprint=ticket.fingerprint, max_bytes=limit)
            if found.header.request != ticket.key or found.kv.shape[2] != ticket.tokens:
                raise FrameDamaged("layout", f"{ticket.tokens} tokens were expected; the frame holds {found.kv.shape}")
        except FrameDamaged as error:
            with contextlib.suppress(OSError):
                send_frame(connection, {"refused": error.reason})
            raise
        layers, two, tokens, heads, channels = found.kv.shape
        blocks = -(-tokens // self.block_size)
        dtype = found.kv.dtype if self.dtype is None else DTYPES[self.dtype]
        padded = torch.zeros(layers, two, blocks * self.block_size, heads, channels, dtype=dtype)
        padded[:, :, :tokens] = found.kv
        return padded.view(layers, two, blocks, self.block_size, heads, channels)
