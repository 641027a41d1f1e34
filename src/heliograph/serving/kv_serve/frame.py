"""What crosses the link: a checked header, the statistics of all tensors in one piece, and the packed levels.

A frame is: 4 bytes ``HKV1``, the header's length and a checksum of all that follows (4 bytes each), the MessagePack
header, statistics, newest tokens, packed streams. Every length is checked against the header and the header against
what the receiver expects before anything of that size is allocated.

Shapes: L layers of the frame, T tokens, G key and value heads, D channels.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor

from heliograph.errors import BadInput, HeliographError
from heliograph.serving.kv_serve.point import CompressionPoint

__all__ = ["DTYPES", "FrameDamaged", "FrameHeader", "KVLayout", "Stream", "pack_frame", "parse_frame"]

MAGIC = b"HKV1"
VERSION = 1
_HEAD = struct.Struct("<4sII")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_HEADER_BYTES = 2**20


class FrameDamaged(HeliographError):
    """A frame that cannot be used; the request's prompt has to be computed where it was to be received.

    Attributes:
        reason: truncated, checksum, version, fingerprint, layout, signs, probe or format; failures are counted by it.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class KVLayout:
    """Shape and number format of keys and values.

    Attributes:
        layers, tokens, kv_heads, head_dim: sizes; ``kv_heads`` of one tensor-parallel rank.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
    """

    layers: int
    tokens: int
    kv_heads: int
    head_dim: int
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        """Refuses sizes below one and unknown formats."""
        if min(self.layers, self.tokens, self.kv_heads, self.head_dim) < 1:
            raise BadInput(f"keys and values have at least one layer, token, head and channel; got {self}")
        if self.dtype not in DTYPES:
            raise BadInput(f"keys and values are {', '.join(DTYPES)}; got {self.dtype}")

    @classmethod
    def of(cls, kv: Tensor) -> KVLayout:
        """Of [L, 2, T, G, D].

        Raises:
            BadInput: another shape or format.
        """
        if kv.dim() != 5 or kv.shape[1] != 2:
            raise BadInput(
                f"keys and values are [layers, 2, tokens, heads, channels]; got a tensor of shape {list(kv.shape)}"
            )
        return cls(kv.shape[0], kv.shape[2], kv.shape[3], kv.shape[4], str(kv.dtype).removeprefix("torch."))

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """[L, 2, T, G, D]."""
        return (self.layers, 2, self.tokens, self.kv_heads, self.head_dim)

    @property
    def nbytes(self) -> int:
        """Uncompressed."""
        count = 2 * self.layers * self.tokens * self.kv_heads * self.head_dim
        return count * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Stream:
    """Packed levels of one kind.

    Attributes:
        kind: 0 keys, 1 values, 2 bytes of numbers as they are.
        base: levels.
        count: of levels.
        codec: that packed them; not always the point's, where that one would have made them larger.
        nbytes: packed.
    """

    kind: int
    base: int
    count: int
    codec: str
    nbytes: int


@dataclass(frozen=True)
class FrameHeader:
    """What a frame says about itself.

    Attributes:
        request, attempt: whose keys and values; a frame of an older attempt is dropped by its number.
        first_layer, model_layers: where the frame's layers stand in the model.
        layout: of the frame.
        point: how it was compressed; a raw frame says ``none``.
        fingerprint: of the model.
        levels: [2, L, G] as bytes of uint16; empty for a raw frame.
        heads: numbers of the heads in the model.
        signs: checksum of the sender's signs.
        probe: one head's numbers before compression; where they stand follows from the layout.
        meta_bytes, recent_bytes, streams: what follows.
        why_raw: why a frame is raw although its point is not; "" otherwise.
    """

    request: str
    attempt: int
    first_layer: int
    model_layers: int
    layout: KVLayout
    point: CompressionPoint
    fingerprint: str
    levels: bytes
    heads: tuple[int, ...]
    signs: int
    probe: bytes
    meta_bytes: int
    recent_bytes: int
    streams: tuple[Stream, ...]
    why_raw: str = ""


def pack_frame(header: FrameHeader, meta: bytes, recent: bytes, streams: list[bytes | memoryview]) -> bytes:
    """The bytes of a frame."""
    text = msgspec.msgpack.encode({"version": VERSION, **_plain(header)})
    body = b"".join([text, meta, recent, *streams])
    return _HEAD.pack(MAGIC, len(text), zlib.crc32(body)) + body


def parse_frame(data: bytes | bytearray | memoryview) -> tuple[FrameHeader, memoryview]:
    """Header and the bytes behind it, all lengths checked.

    Raises:
        FrameDamaged: truncated, changed, of another version, or no frame at all.
    """
    view = memoryview(data).cast("B") if len(data) else memoryview(b"")
    if len(view) < _HEAD.size:
        raise FrameDamaged("truncated", f"a frame has at least {_HEAD.size} bytes; got {len(view)}")
    magic, length, checksum = _HEAD.unpack_from(view)
    if magic != MAGIC:
        raise FrameDamaged("format", f"a frame begins with {MAGIC!r}; this begins with {bytes(view[:4])!r}")
    if length > min(MAX_HEADER_BYTES, len(view) - _HEAD.size):
        raise FrameDamaged("truncated", f"a header of {length} bytes was announced; {len(view) - _HEAD.size} follow")
    if zlib.crc32(view[_HEAD.size :]) != checksum:
        raise FrameDamaged("checksum", "the bytes of the frame have changed, or some of them are missing")
    try:
        plain = msgspec.msgpack.decode(view[_HEAD.size : _HEAD.size + length])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FrameDamaged("format", f"no readable header: {error}") from None
    if not isinstance(plain, dict) or plain.get("version") != VERSION:
        found = plain.get("version") if isinstance(plain, dict) else plain
        raise FrameDamaged("version", f"frames of version {VERSION} are read; this one is of version {found!r}")
    try:
        header = _header(plain)
    except (BadInput, KeyError, TypeError, ValueError) as error:
        raise FrameDamaged("format", f"a header that does not fit together: {error}") from None
    rest = view[_HEAD.size + length :]
    wanted = header.meta_bytes + header.recent_bytes + sum(stream.nbytes for stream in header.streams)
    if len(rest) != wanted or min(header.meta_bytes, header.recent_bytes, *_sizes(header), 0) < 0:
        raise FrameDamaged("truncated", f"{wanted} bytes were announced behind the header; {len(rest)} follow")
    return header, rest


def _sizes(header: FrameHeader) -> list[int]:
    return [number for stream in header.streams for number in (stream.count, stream.nbytes)] or [0]


def _plain(header: FrameHeader) -> dict[str, Any]:
    plain = {**vars(header), "layout": list(asdict(header.layout).values())}
    default = vars(CompressionPoint())
    plain["point"] = {name: value for name, value in vars(header.point).items() if value != default[name]}
    plain["streams"] = [[s.kind, s.base, s.count, s.codec, s.nbytes] for s in header.streams]
    plain["heads"] = None if header.heads == tuple(range(header.layout.kv_heads)) else list(header.heads)
    return plain


def _header(plain: dict[str, Any]) -> FrameHeader:
    if not (isinstance(plain["levels"], bytes) and isinstance(plain["probe"], bytes)):  # bytes(n) makes n zeros
        raise BadInput("tables of levels and probes are bytes")
    layout = KVLayout(*plain["layout"])
    if layout.kv_heads > MAX_HEADER_BYTES:
        raise BadInput(f"{layout.kv_heads} heads, more than a header can number")
    heads = range(layout.kv_heads) if plain["heads"] is None else plain["heads"]
    header = FrameHeader(
        request=str(plain["request"]),
        attempt=int(plain["attempt"]),
        first_layer=int(plain["first_layer"]),
        model_layers=int(plain["model_layers"]),
        layout=layout,
        point=CompressionPoint.from_json(plain["point"]),
        fingerprint=str(plain["fingerprint"]),
        levels=plain["levels"],
        heads=tuple(int(head) for head in heads),
        signs=int(plain["signs"]),
        probe=plain["probe"],
        meta_bytes=int(plain["meta_bytes"]),
        recent_bytes=int(plain["recent_bytes"]),
        streams=tuple(Stream(int(k), int(b), int(c), str(codec), int(n)) for k, b, c, codec, n in plain["streams"]),
        why_raw=str(plain["why_raw"]),
    )
    if len(header.heads) != layout.kv_heads:
        raise BadInput(f"{layout.kv_heads} heads, and numbers of {len(header.heads)}")
    wanted = 0 if header.point.lossless else 2 * 2 * layout.layers * layout.kv_heads
    if len(header.levels) != wanted:
        raise BadInput(f"a table of {wanted} bytes of levels was expected; got {len(header.levels)}")
    return header
