"""Keys and values as one contiguous range: gathered at the sender, scattered into the receiver's own blocks.

A cache in blocks would go out as 2 L ceil(l / block_size) messages, each with its acknowledgement; a contiguous buffer
goes out as one message, or as one every few layers (arXiv:2408.08147, section on block-free transfer).

Shapes: L layers, N blocks, l tokens, G key and value heads, D channels a head. A cache is [L, 2, N, block_size, G, D],
a buffer [L, 2, l, G, D].
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heliograph.errors import BadInput, HeliographError
from heliograph.serving.core.frames import Pace

__all__ = [
    "ContiguousKV",
    "KVShape",
    "LinkRefused",
    "SmoothPace",
    "block_messages",
    "check_link",
    "receive_messages",
    "recv_scatter",
    "scatter_blocks",
    "send_messages",
]

ACK = b"\x06"
CHUNK_BYTES = 256 * 2**10


class LinkRefused(HeliographError):
    """Two instances cannot exchange caches; found when they are linked, not at the first transfer."""


@dataclass(frozen=True)
class KVShape:
    """What both ends of a link must agree on, and the block size, which may differ.

    Attributes:
        layers, kv_heads, head_dim: of the model; ``kv_heads`` are those of one tensor-parallel rank.
        dtype: of the cache, for example ``float32``.
        block_size: tokens a block.
        fingerprint: of the weights.
    """

    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    block_size: int
    fingerprint: str = ""

    @classmethod
    def of(cls, cache: Tensor, fingerprint: str = "") -> KVShape:
        """Of a cache [L, 2, N, block_size, G, D]."""
        layers, _, _, block_size, kv_heads, head_dim = cache.shape
        return cls(layers, kv_heads, head_dim, str(cache.dtype).removeprefix("torch."), block_size, fingerprint)

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * torch.zeros(0, dtype=_dtype(self.dtype)).element_size()


def check_link(sender: KVShape, receiver: KVShape, *, contiguous: bool = True) -> None:
    """Refuses a link over which no cache could pass.

    Args:
        sender, receiver: of the two instances.
        contiguous: whether caches travel as ranges; block by block, the block sizes must agree as well.

    Raises:
        LinkRefused: a difference; the message names both values.
    """
    names = ["layers", "kv_heads", "head_dim", "dtype", "fingerprint"] + ([] if contiguous else ["block_size"])
    for name in names:
        ours, theirs = getattr(sender, name), getattr(receiver, name)
        if ours != theirs:
            way = (
                "send contiguous ranges, for which block sizes may differ"
                if name == "block_size"
                else ("give both instances the same model, number format and tensor-parallel degree")
            )
            raise LinkRefused(f"{name} is {ours} at the sender and {theirs} at the receiver; {way}")


@dataclass(frozen=True)
class ContiguousKV:
    """How a cache is packed.

    >>> import torch
    >>> cache = torch.arange(2 * 2 * 4 * 2.0).reshape(2, 2, 4, 2, 1, 1)
    >>> ContiguousKV().pack(cache, [3, 1], tokens=3)[0, 0].flatten().tolist()
    [6.0, 7.0, 2.0]

    Attributes:
        layers_per_message: None for the whole model in one message; 1 sends each layer as it is, a few are for
            receivers whose memory holds no larger buffer.
    """

    layers_per_message: int | None = None

    def __post_init__(self) -> None:
        """Refuses messages without layers."""
        if self.layers_per_message is not None and self.layers_per_message < 1:
            raise BadInput(f"a message holds at least one layer; got layers_per_message={self.layers_per_message}")

    def pack(self, cache: Tensor, block_ids: Sequence[int], tokens: int, *, skip: int = 0) -> Tensor:
        """Gathers a sequence's blocks.

        Args:
            cache: [L, 2, N, block_size, G, D].
            block_ids: of the sequence, in order.
            tokens: of the sequence that are computed.
            skip: first tokens that the receiver has already.

        Returns:
            [L, 2, tokens - skip, G, D], contiguous.

        Raises:
            BadInput: the blocks do not hold so many tokens, or one does not exist.
        """
        size, number = cache.shape[3], cache.shape[2]
        _check_table(block_ids, number, size, skip, tokens)
        first, last = skip // size, -(-tokens // size)
        index = torch.tensor(list(block_ids[first:last]), dtype=torch.long, device=cache.device)
        gathered = cache.index_select(2, index).flatten(2, 3)
        start = skip - first * size
        return gathered[:, :, start : start + tokens - skip].contiguous()

    def split(self, buffer: Tensor) -> Iterator[Tensor]:
        """The messages of a buffer: views of a few layers each, contiguous."""
        step = self.layers_per_message or len(buffer)
        for layer in range(0, len(buffer), step):
            yield buffer[layer : layer + step]


def recv_scatter(buffer: Tensor, kv_cache: Tensor, block_table: Sequence[int], *, start: int = 0) -> None:
    """Writes a contiguous buffer into a sequence's blocks, whatever the block size of the sender was.

    Args:
        buffer: [L, 2, l, G, D].
        kv_cache: [L, 2, N, block_size, G, D], written in place.
        block_table: the sequence's blocks at the receiver, in order.
        start: position of the buffer's first token in the sequence.

    Raises:
        BadInput: shapes or number formats differ, or the table is too short; nothing has been written then.
    """
    wanted = (*kv_cache.shape[:2], buffer.shape[2], *kv_cache.shape[4:])
    if tuple(buffer.shape) != wanted or buffer.dtype != kv_cache.dtype:
        raise BadInput(
            f"a buffer of {tuple(buffer.shape)} {buffer.dtype} does not fit this cache; {wanted} {kv_cache.dtype} does"
        )
    size, tokens = kv_cache.shape[3], buffer.shape[2]
    _check_table(block_table, kv_cache.shape[2], size, start, start + tokens)
    table = torch.tensor(list(block_table), dtype=torch.long, device=kv_cache.device)
    position = torch.arange(start, start + tokens, device=kv_cache.device)
    slots = table[position // size] * size + position % size
    kv_cache.flatten(2, 3).index_copy_(2, slots, buffer.to(kv_cache.device))


def _check_table(blocks: Sequence[int], number: int, size: int, start: int, end: int) -> None:
    if not 0 <= start <= end or end > len(blocks) * size:
        raise BadInput(f"{len(blocks)} blocks of {size} tokens do not hold the tokens {start} to {end}")
    wrong = next((block for block in blocks if not 0 <= block < number), None)
    if wrong is not None or len(set(blocks)) != len(blocks):
        raise BadInput(f"a block table names each block of a cache of {number} once at most; got {list(blocks)}")


def block_messages(cache: Tensor, block_ids: Sequence[int]) -> Iterator[Tensor]:
    """The old way: each block of each layer, keys and values apart, [block_size, G, D]."""
    for layer in cache:
        for part in layer:
            for block in block_ids:
                yield part[block]


def scatter_blocks(messages: Sequence[Tensor], cache: Tensor, block_ids: Sequence[int]) -> None:
    """Writes what :func:`block_messages` gave into other blocks of the same size."""
    place = iter(messages)
    for layer in cache:
        for part in layer:
            for block in block_ids:
                part[block].copy_(next(place))


class SmoothPace(Pace):
    """A limit of bytes a second that sleeps only for a millisecond or more.

    A sleep lasts some fifty microseconds longer than asked for; slept for every small message, that would be counted
    as the link's time.
    """

    least_sleep_s = 1e-3

    def __init__(self, bytes_per_s: float | None = None) -> None:
        super().__init__(bytes_per_s)
        self._owed = 0

    def wait(self, nbytes: int) -> None:
        """Blocks until the bytes so far may have been sent, once that is worth a sleep."""
        if self.bytes_per_s is None:
            return
        self._owed += nbytes
        if self._owed / self.bytes_per_s >= self.least_sleep_s:
            owed, self._owed = self._owed, 0
            super().wait(owed)

    def settle(self) -> None:
        """Waits for what is still owed."""
        if self.bytes_per_s is not None and self._owed:
            owed, self._owed = self._owed, 0
            super().wait(owed)


def send_messages(
    connection: socket.socket, messages: Iterator[Tensor], pace: Pace | None = None, *, acknowledged: bool = True
) -> tuple[int, int]:
    """Sends raw messages whose sizes the receiver knows.

    Args:
        connection: to the receiver.
        messages: contiguous tensors of the host.
        pace: of the link.
        acknowledged: whether each message waits for its acknowledgement; else only the last one does.

    Returns:
        Messages and bytes.

    Raises:
        OSError: the peer went away.
    """
    count = total = 0
    for message in messages:
        body = message.view(torch.uint8).reshape(-1).numpy().data
        for start in range(0, len(body), CHUNK_BYTES):
            piece = body[start : start + CHUNK_BYTES]
            if pace is not None:
                pace.wait(len(piece))
            connection.sendall(piece)
        count, total = count + 1, total + len(body)
        if acknowledged:
            _await_ack(connection)
    if isinstance(pace, SmoothPace):
        pace.settle()
    if not acknowledged:
        _await_ack(connection)
    return count, total


def receive_messages(connection: socket.socket, into: Sequence[Tensor], *, acknowledged: bool = True) -> None:
    """Receives what :func:`send_messages` sends; the last acknowledgement is the caller's to send with :data:`ACK`.

    Args:
        connection: to the sender.
        into: contiguous tensors of the host that are filled in order.
        acknowledged: as at the sender.

    Raises:
        OSError: the peer went away half-way.
    """
    for number, message in enumerate(into):
        view = message.view(torch.uint8).reshape(-1).numpy().data
        have = 0
        while have < len(view):
            got = connection.recv_into(view[have:])
            if not got:
                raise ConnectionError(f"the peer went away in message {number + 1} of {len(into)}")
            have += got
        if acknowledged and number + 1 < len(into):
            connection.sendall(ACK)


def _await_ack(connection: socket.socket) -> None:
    if connection.recv(1) != ACK:
        raise ConnectionError("the peer went away before it acknowledged")


def _dtype(name: str) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
