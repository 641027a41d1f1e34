"""The local side: has long prompts computed remotely, receives their caches, and goes on by itself when that fails."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from heliograph.errors import BadInput, HeliographError
from heliograph.lm.core.load import LanguageModel
from heliograph.serving.core.frames import FrameError, receive_frame, send_frame
from heliograph.serving.prfaas.congestion import LinkReport
from heliograph.serving.prfaas.pool import HybridKVPool
from heliograph.serving.prfaas.router import ClusterRefused, HybridRouter, OffloadRequest
from heliograph.serving.prfaas.transfer import acknowledge
from heliograph.serving.prfaas.windowed import WindowedKV, continue_greedily, prefill

__all__ = ["HybridAnswer", "HybridGenerator", "RemoteCache", "RemoteFailed", "RemotePrefill"]

MAX_CHUNK = 2**26


class RemoteFailed(HeliographError):
    """A prompt's cache did not come: the remote side is gone, silent, too slow or refuses."""

    exit_code = 1


@dataclass(frozen=True)
class RemoteCache:
    """What came.

    Attributes:
        kv: to go on from. first_token: of the answer.
        nbytes: of the cache. prefill_s: that the remote side computed, on its clock.
        elapsed_s: from asking to the last byte, on the clock here.
        attempts: sets of connections. resent: chunks that came or went twice.
    """

    kv: WindowedKV
    first_token: int
    nbytes: int
    prefill_s: float
    elapsed_s: float
    attempts: int
    resent: int


@dataclass(eq=False)
class _Arriving:
    """A cache of which some has come."""

    buffers: list[bytearray]
    held: set[int] = field(default_factory=set)
    received: int = 0
    done: dict[str, Any] | None = None
    refused: str = ""
    skew: bool = False
    alive: int = 0
    resent: int = 0
    heard_at: float = 0.0
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def whole(self) -> bool:
        return self.done is not None and self.received == sum(map(len, self.buffers))


class RemotePrefill:
    """Asks a remote side for caches.

    Args:
        address: host and port of a :class:`~heliograph.serving.prfaas.remote.RemoteServer`.
        model, windows: of this side; the remote one refuses others.
        connections: of a transfer.
        attempts: sets of connections that are tried; a later one goes on with what has not come.
        stall_s: of silence after which a set is given up.
        pool: where the pages of a transfer are reserved before it begins; None reserves none.
        listen: called with what the sender tells of its link, on the clock of this side.
    """

    def __init__(
        self,
        address: tuple[str, int],
        model: LanguageModel,
        windows: tuple[int | None, ...],
        *,
        connections: int = 4,
        attempts: int = 3,
        stall_s: float = 20.0,
        pool: HybridKVPool | None = None,
        listen: Callable[[LinkReport], object] | None = None,
        bytes_per_s: float = 1.25e9,
    ) -> None:
        if connections < 1 or attempts < 1 or not stall_s > 0:
            raise BadInput(f"need connections, attempts and stall_s above 0; got {connections}, {attempts}, {stall_s}")
        self.address, self.model, self.windows = address, model, windows
        self.connections, self.attempts, self.stall_s = connections, attempts, stall_s
        self.pool, self.listen, self.bytes_per_s = pool, listen, bytes_per_s
        self._serial = itertools.count()

    def layer_sizes(self, length: int) -> list[int]:
        """Bytes of each layer's keys and values after ``length`` tokens."""
        config, number = self.model.config, self._dtype.itemsize
        token = 2 * config.kv_heads * config.head_dim * number
        return [token * (length if window is None else min(length, window)) for window in self.windows]

    def fetch(self, tokens: Sequence[int], *, layerwise: bool = True, deadline_s: float = 120.0) -> RemoteCache:
        """Has a prompt computed and receives its cache.

        Args:
            tokens: of the prompt.
            layerwise: whether layers leave while later ones are computed, or all after the last.
            deadline_s: from now.

        Raises:
            RemoteFailed: it did not come in time. ClusterRefused: the remote side has another model.
            BadInput: no tokens.
        """
        if not tokens:
            raise BadInput("a prompt has at least one token")
        begin = time.monotonic()
        name = f"{os.getpid()}-{id(self):x}-{next(self._serial)}"
        sizes = self.layer_sizes(len(tokens))
        if self.pool is not None and not self.pool.reserve_transfer(name, sum(sizes)):
            raise RemoteFailed(
                f"no room for a cache of {sum(sizes)} bytes: {self.pool.num_free} pages of {self.pool.page_bytes} "
                "bytes are free"
            )
        arriving = _Arriving([bytearray(size) for size in sizes], heard_at=begin)
        attempt = 0
        try:
            while True:
                left = begin + deadline_s - time.monotonic()
                if left > 0 and attempt < self.attempts:
                    self._try(name, tokens, arriving, attempt, layerwise, begin + deadline_s)
                    attempt += 1
                if arriving.whole:
                    break
                if arriving.skew:
                    raise ClusterRefused(arriving.refused)
                if arriving.refused or left <= 0 or attempt >= self.attempts:
                    why = arriving.refused or (
                        f"{len(arriving.held)} chunks came in {time.monotonic() - begin:.1f} s and {attempt} attempts"
                    )
                    raise RemoteFailed(f"no cache from {self.address[0]}:{self.address[1]}: {why}")
        except HeliographError:
            self._cancel(name)
            raise
        finally:
            if self.pool is not None:
                self.pool.end_transfer(name)
        assert arriving.done is not None
        kv = WindowedKV.filled(self.windows, *self._tensors(arriving, len(tokens)), len(tokens))
        done = arriving.done
        return RemoteCache(
            kv, int(done["first_token"]), sum(sizes), float(done["seconds"]), time.monotonic() - begin, attempt,
            arriving.resent,
        )  # fmt: skip

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.decoder.parameters()).dtype

    def _try(
        self, name: str, tokens: Sequence[int], arriving: _Arriving, attempt: int, layerwise: bool, deadline: float
    ) -> None:
        """One set of connections, until all has come, all are gone, or nothing is heard any more."""
        opened: list[socket.socket] = []
        held = sorted(arriving.held)
        with suppress(OSError):
            for number in range(self.connections):
                timeout = max(0.01, min(5.0, deadline - time.monotonic()))
                connection = socket.create_connection(self.address, timeout)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                opened.append(connection)
                if number == 0 and attempt == 0:
                    facts = {"fingerprint": self.model.fingerprint, "windows": self.windows, "layerwise": layerwise}
                    body = torch.tensor(list(tokens), dtype=torch.int64).numpy().tobytes()
                    send_frame(connection, {"op": "prefill", "request": name, **facts}, body)
                else:
                    send_frame(connection, {"op": "join", "request": name, "attempt": attempt, "held": held})
                connection.settimeout(None)
        with arriving.changed:
            arriving.alive = len(opened)
            arriving.heard_at = time.monotonic()
        readers = [
            threading.Thread(target=self._read, args=(connection, arriving), name="cache reader", daemon=True)
            for connection in opened
        ]
        for reader in readers:
            reader.start()
        with arriving.changed:
            while not (arriving.whole or arriving.refused or not arriving.alive):
                now = time.monotonic()
                until = min(deadline, arriving.heard_at + self.stall_s)
                if now >= until:
                    break
                arriving.changed.wait(until - now)
        for connection in opened:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for reader in readers:
            reader.join()

    def _read(self, connection: socket.socket, arriving: _Arriving) -> None:
        with suppress(OSError, FrameError, KeyError, TypeError, ValueError):
            while True:
                facts, body = receive_frame(connection, MAX_CHUNK)
                self._take(connection, arriving, facts, body)
        with arriving.changed:
            arriving.alive -= 1
            arriving.changed.notify_all()

    def _take(self, connection: socket.socket, arriving: _Arriving, facts: dict[str, Any], body: bytearray) -> None:
        op = facts["op"]
        now = time.monotonic()
        if op == "refused":
            with arriving.changed:
                if facts.get("skew") or not arriving.held:
                    arriving.refused, arriving.skew = str(facts["reason"]), bool(facts.get("skew"))
                arriving.changed.notify_all()
            raise FrameError("refused")
        number = int(facts["number"])
        intact = zlib.crc32(body) == facts["crc"]
        with arriving.changed:
            arriving.heard_at = now
            if intact and op == "chunk":
                layer, offset, length = int(facts["layer"]), int(facts["offset"]), int(facts["length"])
                into = arriving.buffers[layer] if 0 <= layer < len(arriving.buffers) else bytearray()
                if length != len(body) or offset < 0 or offset + length > len(into):
                    raise FrameError(f"a chunk of layer {layer} does not fit the cache that was asked for")
                into[offset : offset + length] = body
                arriving.received += 0 if number in arriving.held else length
                arriving.held.add(number)
            elif intact and op == "done":
                arriving.done = facts
            elif intact and op == "failed":
                arriving.refused = str(facts["reason"])
            arriving.resent = max(arriving.resent, int(facts.get("resent", 0)))
            arriving.changed.notify_all()
        acknowledge(connection, number, intact)
        if self.listen is not None:
            self.listen(
                LinkReport(now, float(facts["sent"]), float(facts["queued"]), self.bytes_per_s, arriving.resent)
            )

    def _tensors(self, arriving: _Arriving, length: int) -> tuple[list[Tensor], list[Tensor]]:
        config, keys, values = self.model.config, [], []
        device = next(self.model.decoder.parameters()).device
        for buffer, window in zip(arriving.buffers, self.windows, strict=True):
            kept = length if window is None else min(length, window)
            both = torch.frombuffer(buffer, dtype=self._dtype).view(2, kept, config.kv_heads, config.head_dim)
            keys.append(both[0].to(device))
            values.append(both[1].to(device))
        return keys, values

    def _cancel(self, name: str) -> None:
        with suppress(OSError), socket.create_connection(self.address, 1.0) as connection:
            send_frame(connection, {"op": "cancel", "request": name})


@dataclass(frozen=True)
class HybridAnswer:
    """An answer.

    Attributes:
        tokens: drawn.
        ttft_s: until the second step could begin: prompt computed and, if remotely, its cache here.
        path: "local", "remote", or "fallback" where the remote side was asked in vain.
        reason: of the path, in words.
        cache: what came, where it did.
    """

    tokens: tuple[int, ...]
    ttft_s: float
    path: str
    reason: str
    cache: RemoteCache | None = None


class HybridGenerator:
    """Greedy answers on the local side, long prompts computed remotely.

    Args:
        model, windows: of this side.
        router: decides by length; reports of the link go to its monitor.
        remote: None keeps all local.
        deadline_s: of a remote prompt; past it, the prompt is computed here.
    """

    def __init__(
        self,
        model: LanguageModel,
        windows: tuple[int | None, ...],
        router: HybridRouter,
        remote: RemotePrefill | None,
        *,
        deadline_s: float = 120.0,
    ) -> None:
        self.model, self.windows, self.router, self.remote, self.deadline_s = model, windows, router, remote, deadline_s
        self._reporting = threading.Lock()
        if remote is not None and remote.listen is None:
            remote.listen = self._listen

    def generate(self, tokens: Sequence[int], count: int, *, layerwise: bool = True) -> HybridAnswer:
        """``count`` tokens after a prompt."""
        begin = time.monotonic()
        with self._reporting:
            self.router.remote_alive = self.remote is not None
            placed = self.router.route(OffloadRequest(len(tokens)))
        path, reason, cache = str(placed.cluster), placed.reason, None
        if placed.cluster == "remote" and self.remote is not None:
            try:
                cache = self.remote.fetch(tokens, layerwise=layerwise, deadline_s=self.deadline_s)
            except RemoteFailed as error:
                path, reason = "fallback", str(error)
        if cache is not None:
            kv, first = cache.kv, cache.first_token
        else:
            kv = WindowedKV(self.windows)
            first = prefill(self.model, tokens, kv)
        ttft = time.monotonic() - begin
        return HybridAnswer(tuple(continue_greedily(self.model, kv, first, count)), ttft, path, reason, cache)

    def _listen(self, report: LinkReport) -> None:
        with self._reporting, suppress(BadInput):  # reports of several connections may overtake each other
            self.router.observe(report)
