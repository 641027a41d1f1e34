"""A cache over TCP to another process: block by block, by layer, whole; and whether it arrives bit by bit."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from heliograph.checks.serving.pd_serve_parts import peer
from heliograph.checks.serving.pd_serve_parts.caches import sent_cache
from heliograph.serving.pd_serve.transfer import (
    ACK,
    ContiguousKV,
    SmoothPace,
    block_messages,
    receive_messages,
    recv_scatter,
    send_messages,
)
from heliograph.trials.check import Context

__all__ = ["ARMS", "Link", "measure_identity", "measure_times", "open_link"]

ARMS = ("whole", "by layer", "block by block", "blocks in a row", "whole, again")
ACKNOWLEDGED = {"whole": True, "by layer": True, "block by block": True, "blocks in a row": False}


def _contiguous(arm: str) -> ContiguousKV | None:
    return {"whole": ContiguousKV(), "by layer": ContiguousKV(1)}.get(arm)


@dataclass
class Link:
    """A sender's end of a connection to a process that has a cache of the same shape.

    Attributes:
        cache, blocks: what is sent.
        tokens: of the prompt.
        sent: messages and bytes of each arm.
    """

    connection: socket.socket
    control: Connection
    cache: Tensor
    blocks: list[int]
    tokens: int
    pace: SmoothPace
    sent: dict[str, tuple[int, int]]

    def send(self, arm: str) -> None:
        """Sends the prompt's keys and values; returns once they lie in the receiver's blocks."""
        arm = arm.removesuffix(", again")
        self.control.send(arm)
        kv = _contiguous(arm)
        messages: Iterator[Tensor]
        if kv is not None:
            messages = kv.split(kv.pack(self.cache, self.blocks, self.tokens))
        else:
            messages = block_messages(self.cache, self.blocks)
        self.sent[arm] = send_messages(self.connection, messages, self.pace, acknowledged=ACKNOWLEDGED[arm])

    def received(self) -> str:
        """Hash of what lies in the receiver's blocks now, in order; they are emptied by this."""
        self.control.send("digest")
        return str(self.control.recv())

    def expected(self) -> str:
        """Hash of what should lie there."""
        return _digest(self.cache, self.blocks, self.tokens)


@contextmanager
def open_link(
    cache: Tensor, blocks: list[int], tokens: int, *, bytes_per_s: float | None, block_size: int
) -> Iterator[Link]:
    """A process with a cache of that block size, connected over loopback TCP."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(60)
    here, there = multiprocessing.get_context("fork").Pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            listening.close()
            here.close()
            torch.set_num_threads(1)  # this process's other threads stayed behind
            _receiver(there.recv(), there, cache, tokens, block_size)
            code = 0
        finally:
            os._exit(code)
    there.close()
    try:
        here.send(listening.getsockname()[1])
        connection, _ = listening.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(60)
        with connection:
            yield Link(connection, here, cache, blocks, tokens, SmoothPace(bytes_per_s), {})
            here.send("end")
    finally:
        here.close()
        listening.close()
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)  # it holds nothing that anybody needs
        os.waitpid(child, 0)


def _receiver(port: int, control: Connection, like: Tensor, tokens: int, block_size: int) -> None:
    number = -(-tokens // block_size)
    layers, two, _, _, heads, channels = like.shape
    cache = torch.zeros(layers, two, 2 * number, block_size, heads, channels, dtype=like.dtype)
    table = torch.randperm(2 * number, generator=torch.Generator().manual_seed(7))[:number].tolist()
    buffer = torch.empty(layers, two, tokens, heads, channels, dtype=like.dtype)
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while (command := control.recv()) != "end":
            if command == "digest":
                control.send(_digest(cache, table, tokens))
                cache.zero_()
                continue
            kv = _contiguous(command)
            # blocks arrive where they belong; a range is scattered from its buffer
            into = list(kv.split(buffer)) if kv is not None else list(block_messages(cache, table))
            receive_messages(connection, into, acknowledged=ACKNOWLEDGED[command])
            if kv is not None:
                recv_scatter(buffer, cache, table)
            connection.sendall(ACK)


def _digest(cache: Tensor, blocks: list[int], tokens: int) -> str:
    whole = ContiguousKV().pack(cache, blocks, tokens)
    return hashlib.sha256(whole.view(torch.uint8).reshape(-1).numpy().data).hexdigest()


def measure_identity(context: Context) -> Mapping[str, Any]:
    """``identical``: every way, length and block size leaves the same bits; ``notices``: other bits are told apart."""
    load = context.workload
    identical, notices = [], []
    for tokens in load["lengths"]:
        cache, blocks = sent_cache("random", tokens, 16, context.seed)
        for block_size in load["block_sizes"]:
            with open_link(cache, blocks, tokens, bytes_per_s=None, block_size=block_size) as link:
                for arm in ("whole", "by layer", *(("block by block", "blocks in a row") if block_size == 16 else ())):
                    link.send(arm)
                    identical.append(link.received() == link.expected())
                if len(blocks) > 1:
                    expected = link.expected()
                    link.blocks = link.blocks[1:] + link.blocks[:1]
                    link.send("whole")
                    notices.append(link.received() != expected)
    return {"identical": identical, "notices": notices}


def measure_times(context: Context) -> Mapping[str, Callable[[], Any]]:
    """A function for each way; gathering, sending, scattering and acknowledgements are all inside."""
    if context.device == "cuda":
        return peer.measure_times(context)
    load = context.workload
    cache, blocks = sent_cache(load["model"], load["tokens"], load["block_size"], context.seed)
    opened = open_link(
        cache, blocks, load["tokens"], bytes_per_s=load["bytes_per_s"] or None, block_size=load["block_size"]
    )
    link = opened.__enter__()  # it lives as long as the trial's process
    for arm in ARMS:
        link.send(arm)
        if link.received() != link.expected():
            raise RuntimeError(f"what was sent {arm} did not arrive as it left")
    context.keep("messages and bytes", {arm: list(sent) for arm, sent in link.sent.items()})

    def sending(arm: str) -> Callable[[], object]:
        def send() -> object:
            link.send(arm)
            return opened  # a context manager that nobody keeps would close the link

        return send

    return {arm: sending(arm) for arm in ARMS}
