"""A cache from device to device, between two processes: on two GPUs where there are two, else on one.

The receiver is a process of its own; it says where its cache and a contiguous buffer lie, and the sender writes there.
A message is a copy that has ended and a byte over a socket, and its acknowledgement is a byte back.

    python -m heliograph.checks.serving.pd_serve_parts.peer PORT
"""

from __future__ import annotations

import atexit
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from heliograph.serving.core.cuda_peer import open_tensor, share_tensor
from heliograph.serving.core.frames import receive_frame, send_frame
from heliograph.serving.pd_serve.transfer import ACK, ContiguousKV, block_messages, recv_scatter
from heliograph.trials.check import Context

__all__ = ["PeerLink", "measure_times"]

WAYS = ("whole", "by layer", "block by block", "blocks in a row")


def _table(tokens: int, block_size: int, seed: int) -> tuple[int, list[int]]:
    """Blocks of a cache, and those of a prompt, anywhere in it."""
    number = -(-tokens // block_size)
    order = torch.randperm(2 * number, generator=torch.Generator().manual_seed(seed))
    return 2 * number, order[:number].tolist()


class PeerLink:
    """The sender's end; the receiver has a cache of the same shape, and other places for the blocks.

    Args:
        shape: layers, key and value heads, channels of bfloat16.
        tokens: of the prompt.
        block_size: at both ends.
        seed: of the numbers.
    """

    def __init__(self, shape: tuple[int, int, int], tokens: int, block_size: int, seed: int) -> None:
        layers, heads, channels = shape
        self.tokens = tokens
        number, self.blocks = _table(tokens, block_size, seed)
        self.cache = torch.empty(
            layers, 2, number, block_size, heads, channels, dtype=torch.bfloat16, device="cuda:0"
        ).normal_(generator=torch.Generator("cuda:0").manual_seed(seed))
        listening = socket.create_server(("127.0.0.1", 0))
        listening.settimeout(120)
        command = [sys.executable, "-m", __name__, str(listening.getsockname()[1])]
        self.process = subprocess.Popen(command)
        atexit.register(self.process.kill)
        self.connection, _ = listening.accept()
        listening.close()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection.settimeout(120)
        target = torch.cuda.device_count() - 1
        send_frame(self.connection, {"shape": [*shape], "tokens": tokens, "block_size": block_size, "device": target})
        facts, _ = receive_frame(self.connection)
        self.there, self.buffer = open_tensor(facts["cache"]), open_tensor(facts["buffer"])
        self.table = facts["table"]
        self.sent: dict[str, tuple[int, int]] = {}

    def send(self, way: str) -> None:
        """Sends the prompt's keys and values; returns once they lie in the receiver's blocks."""
        way = way.removesuffix(", again")
        kv = {"whole": ContiguousKV(), "by layer": ContiguousKV(1)}.get(way)
        if kv is not None:
            pairs = zip(
                kv.split(self.buffer), kv.split(kv.pack(self.cache, self.blocks, self.tokens)), strict=True
            )  # fmt: skip
        else:
            pairs = zip(
                block_messages(self.there, self.table), block_messages(self.cache, self.blocks), strict=True
            )  # fmt: skip
        count = total = 0
        for target, source in pairs:
            target.copy_(source, non_blocking=True)
            count, total = count + 1, total + source.nbytes
            if way != "blocks in a row":
                self._told(b"m")
        if way == "blocks in a row":
            self._told(b"m")
        self._told(b"s" if kv is not None else b"e")  # into its own blocks, where they are not there already
        self.sent[way] = count, total

    def _told(self, what: bytes) -> None:
        torch.cuda.synchronize(0)
        self.connection.sendall(what)
        if self.connection.recv(1) != ACK:
            raise ConnectionError("the receiver went away")

    def arrived(self) -> bool:
        """Whether every bit lies in the receiver's blocks; they are emptied by this."""
        whole = ContiguousKV()
        here = whole.pack(self.cache, self.blocks, self.tokens)
        there = whole.pack(self.there, self.table, self.tokens).to(here.device)
        same = torch.equal(here.view(torch.int16), there.view(torch.int16))
        self.there.zero_()
        torch.cuda.synchronize()
        return same


def measure_times(context: Context) -> Mapping[str, Callable[[], Any]]:
    """A function for each way; gathering, copying, scattering and acknowledgements are all inside."""
    load = context.workload
    link = PeerLink(tuple(load["shape"]), load["tokens"], load["block_size"], context.seed)
    for way in WAYS:
        link.send(way)
        if not link.arrived():
            raise RuntimeError(f"what was sent {way} did not arrive as it left")
    context.keep("messages and bytes", {way: list(sent) for way, sent in link.sent.items()})
    context.keep("devices", torch.cuda.device_count())
    return {way: partial(link.send, way) for way in (*WAYS, "whole, again")}


def receive(port: int) -> None:
    """The other end, until the sender goes away."""
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(None)
        load, _ = receive_frame(connection)
        (layers, heads, channels), tokens = load["shape"], load["tokens"]
        number, table = _table(tokens, load["block_size"], 7)
        device = f"cuda:{load['device']}"
        cache: Tensor = torch.zeros(
            layers, 2, number, load["block_size"], heads, channels, dtype=torch.bfloat16, device=device
        )
        buffer = torch.empty(layers, 2, tokens, heads, channels, dtype=torch.bfloat16, device=device)
        send_frame(connection, {"cache": share_tensor(cache), "buffer": share_tensor(buffer), "table": table})
        while what := connection.recv(1):
            if what == b"s":
                recv_scatter(buffer, cache, table)
                torch.cuda.synchronize(device)
            connection.sendall(ACK)


if __name__ == "__main__":
    receive(int(sys.argv[1]))
