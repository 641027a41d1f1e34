"""``bits = C(Q(T(KV)))``: keys and values of some layers become a frame, and a frame becomes keys and values again.

Shapes: L layers, T tokens, G key and value heads, D channels.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from heliograph.errors import BadInput
from heliograph.serving.kv_serve.codecs import CODECS, CodecError, make_codec
from heliograph.serving.kv_serve.frame import (
    DTYPES,
    FrameDamaged,
    FrameHeader,
    KVLayout,
    Stream,
    pack_frame,
    parse_frame,
)
from heliograph.serving.kv_serve.parts import parts_of
from heliograph.serving.kv_serve.point import CompressionPoint, level_table, named
from heliograph.serving.kv_serve.quantizers import NotRepresentable
from heliograph.serving.kv_serve.transforms import signs

__all__ = ["KVPipeline", "Restored", "restore", "stack_layers"]

BYTES = 2  # kind of a stream of numbers as they are
PROBE_VALUES = 64


@dataclass(frozen=True, eq=False)
class Restored:
    """What a frame gave.

    Attributes:
        kv: [L, 2, T, G, D] in the cache's number format.
        header: of the frame.
        bound: the largest error of each number, of the same shape in float32; None where it was not asked for.
    """

    kv: Tensor
    header: FrameHeader
    bound: Tensor | None = None


def stack_layers(kv: Tensor | Mapping[int, tuple[Tensor, Tensor]]) -> tuple[Tensor, int]:
    """[L, 2, T, G, D], and the number of the first layer.

    Args:
        kv: that already, or keys and values [T, G, D] by layer, without gaps.

    Raises:
        BadInput: gaps, or shapes that differ.
    """
    if isinstance(kv, Tensor):
        KVLayout.of(kv)
        return kv, 0
    layers = sorted(kv)
    if not layers or layers != list(range(layers[0], layers[0] + len(layers))):
        raise BadInput(f"layers come without gaps; got {layers}")
    shapes = {(tuple(part.shape), part.dtype) for pair in kv.values() for part in pair}
    if len(shapes) != 1:
        raise BadInput(f"keys and values of all layers have one shape and format; got {sorted(map(str, shapes))}")
    whole = torch.stack([torch.stack(kv[layer]) for layer in layers])
    KVLayout.of(whole)
    return whole, layers[0]


class KVPipeline:
    """Compresses by one point.

    >>> import torch
    >>> kv = torch.randn(2, 2, 40, 3, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    >>> frame = KVPipeline("lossless").compress(kv)
    >>> bool((restore(frame).kv == kv).all())
    True

    Args:
        point: settings, or a method by name: none, lossless, kivi, cachegen, quarot.
        scores: [L, G] of the whole model, where the point tells heads apart.
        fingerprint: of the model; receivers compare it.
        model_layers: of the whole model; that of what is compressed where None.
        heads: numbers of the heads that this tensor-parallel rank has; all where None.

    Raises:
        BadInput: settings that do not go together.
    """

    def __init__(
        self,
        point: CompressionPoint | str,
        *,
        scores: Tensor | None = None,
        fingerprint: str = "",
        model_layers: int | None = None,
        heads: Sequence[int] | None = None,
    ) -> None:
        self.point = named(point) if isinstance(point, str) else point
        self.scores, self.fingerprint, self.model_layers = scores, fingerprint, model_layers
        self.heads = None if heads is None else tuple(heads)
        self._codec = make_codec(self.point.codec)

    def compress(
        self,
        kv: Tensor | Mapping[int, tuple[Tensor, Tensor]],
        *,
        request: str = "",
        attempt: int = 0,
        first_layer: int | None = None,
    ) -> bytes:
        """One frame.

        Args:
            kv: [L, 2, T, G, D], or keys and values [T, G, D] by number of the layer.
            request, attempt: carried along.
            first_layer: number of the first layer, where ``kv`` is a tensor.

        Raises:
            BadInput: other shapes or formats.
        """
        whole, first = stack_layers(kv)
        first = first if first_layer is None else first_layer
        layout = KVLayout.of(whole)
        whole = whole.cpu().contiguous()
        if not self.point.lossless and layout.nbytes >= self.point.min_compress_size:
            try:
                frame = self._lossy(whole, layout, request, attempt, first)
            except NotRepresentable:
                return self._as_it_is(whole, layout, request, attempt, first, named("lossless"), "not finite")
            if len(frame) < layout.nbytes:
                return frame
            return self._as_it_is(whole, layout, request, attempt, first, named("none"), "larger")
        point = self.point if layout.nbytes >= self.point.min_compress_size else named("none")
        why = "" if point is self.point else "small"
        return self._as_it_is(whole, layout, request, attempt, first, point, why)

    def frames(self, kv: Tensor, layers: int, *, request: str = "", attempt: int = 0) -> Iterator[bytes]:
        """Frames of a few layers each, so that one can be sent while the next is made.

        Raises:
            BadInput: no layers a frame.
        """
        if layers < 1:
            raise BadInput(f"a frame holds at least one layer; got {layers}")
        for first in range(0, len(kv), layers):
            yield self.compress(kv[first : first + layers], request=request, attempt=attempt, first_layer=first)

    def _as_it_is(
        self, whole: Tensor, layout: KVLayout, request: str, attempt: int, first: int, point: CompressionPoint, why: str
    ) -> bytes:
        streams: list[Stream] = []
        bodies: list[bytes | memoryview] = []
        for plane in [_bits(whole)] if point.codec == "none" else _planes(whole):
            stream, body = _encoded(BYTES, 256, plane, point.codec) if point.codec != "none" else _plain(plane)
            streams.append(stream)
            bodies.append(body)
        header = self.header_of(layout, request, attempt, first, point, streams, why_raw=why)
        return pack_frame(header, b"", b"", bodies)

    def _lossy(self, whole: Tensor, layout: KVLayout, request: str, attempt: int, first: int) -> bytes:
        point = self.point
        heads = self.heads_of(layout)
        table = self.table_of(layout, first)
        old = max(0, layout.tokens - point.keep_recent)
        recent = whole[:, :, old:].contiguous()
        found: dict[tuple[int, int], list[Tensor]] = {}
        statistics: list[bytes] = []
        for part in parts_of(table, point, layout, first, heads):
            y, turned = part.transform.forward(part.gather(whole))
            q, meta = part.quantizer.forward(part.fold(y), part.base)
            found.setdefault((part.kind, part.base), []).append(q.reshape(-1))
            statistics += [each.contiguous().view(torch.uint8).numpy().tobytes() for each in (*turned, *meta)]
        streams: list[Stream] = []
        bodies: list[bytes | memoryview] = []
        for (kind, base), levels in sorted(found.items()):
            stream, body = _encoded(kind, base, torch.cat(levels).numpy(), point.codec)
            streams.append(stream)
            bodies.append(body)
        meta_bytes, recent_bytes = b"".join(statistics), _bits(recent).tobytes()
        header = self.header_of(
            layout,
            request,
            attempt,
            first,
            point,
            streams,
            levels=table.to(torch.int16).numpy().tobytes(),
            signs=signs_checksum(point, layout, first, heads),
            probe=_bits(probe_of(whole, layout)).tobytes(),
            meta_bytes=len(meta_bytes),
            recent_bytes=len(recent_bytes),
        )
        return pack_frame(header, meta_bytes, recent_bytes, bodies)

    def heads_of(self, layout: KVLayout) -> tuple[int, ...]:
        """Numbers of this rank's heads in the model."""
        heads = tuple(range(layout.kv_heads)) if self.heads is None else self.heads
        if len(heads) != layout.kv_heads:
            raise BadInput(f"this pipeline is for the heads {list(heads)}; got {layout.kv_heads} heads")
        return heads

    def table_of(self, layout: KVLayout, first: int) -> Tensor:
        """Levels [2, L, G] of the frame's layers and this rank's heads."""
        layers = self.model_layers or (len(self.scores) if self.scores is not None else first + layout.layers)
        heads = self.heads_of(layout)
        whole_heads = self.scores.shape[1] if self.scores is not None else max(heads) + 1
        if first + layout.layers > layers or max(heads) >= whole_heads:
            raise BadInput(
                f"layers {first} to {first + layout.layers - 1} and heads {list(heads)} are not within "
                f"{layers} layers of {whole_heads} heads"
            )
        table = level_table(self.point, layers, whole_heads, self.scores)
        return table[:, first : first + layout.layers][:, :, list(heads)].contiguous()

    def header_of(
        self,
        layout: KVLayout,
        request: str,
        attempt: int,
        first: int,
        point: CompressionPoint,
        streams: list[Stream],
        *,
        levels: bytes = b"",
        signs: int = 0,
        probe: bytes = b"",
        meta_bytes: int = 0,
        recent_bytes: int = 0,
        why_raw: str = "",
    ) -> FrameHeader:
        """The header of a frame of this pipeline."""
        return FrameHeader(
            request=request,
            attempt=attempt,
            first_layer=first,
            model_layers=self.model_layers or first + layout.layers,
            layout=layout,
            point=point,
            fingerprint=self.fingerprint,
            levels=levels,
            heads=self.heads_of(layout),
            signs=signs,
            probe=probe,
            meta_bytes=meta_bytes,
            recent_bytes=recent_bytes,
            streams=tuple(streams),
            why_raw=why_raw,
        )


def restore(
    frame: bytes | bytearray | memoryview,
    *,
    layout: KVLayout | None = None,
    fingerprint: str | None = None,
    max_bytes: int = 2**34,
    with_bound: bool = False,
) -> Restored:
    """Keys and values from a frame.

    Args:
        frame: its bytes.
        layout: what is expected; not compared where None.
        fingerprint: of the receiver's model; not compared where None.
        max_bytes: that keys and values may take.
        with_bound: whether the largest possible error of each number is worked out too.

    Raises:
        FrameDamaged: anything that is not as it should be; ``reason`` says what.
    """
    header, rest = parse_frame(frame)
    check_expected(header, layout, fingerprint, max_bytes)
    try:
        if header.point.lossless:
            kv = _restore_bits(header, rest)
            return Restored(kv, header, torch.zeros(kv.shape) if with_bound else None)
        kv, bound, limit = _restore_lossy(header, rest, with_bound)
    except (CodecError, BadInput, ValueError, RuntimeError, IndexError, MemoryError) as error:
        if isinstance(error, FrameDamaged):
            raise
        raise FrameDamaged("format", f"the frame's parts do not fit together: {error}") from None
    check_probe(kv, header, limit)
    return Restored(kv, header, bound)


def check_expected(header: FrameHeader, layout: KVLayout | None, fingerprint: str | None, max_bytes: int) -> None:
    """Refuses a frame of another model or layout, or of more bytes than are taken.

    Raises:
        FrameDamaged: the header says otherwise.
    """
    if fingerprint is not None and header.fingerprint != fingerprint:
        raise FrameDamaged("fingerprint", f"the frame is of model {header.fingerprint!r}, this is {fingerprint!r}")
    if layout is not None and header.layout != layout:
        raise FrameDamaged("layout", f"{layout} was expected; the frame holds {header.layout}")
    if header.layout.nbytes > max_bytes:
        raise FrameDamaged("layout", f"keys and values of {header.layout.nbytes} bytes; at most {max_bytes} are taken")


def check_raw(header: FrameHeader) -> None:
    """Refuses a frame of numbers as they are that has not just that one stream.

    Raises:
        FrameDamaged: other streams.
    """
    nbytes = header.layout.nbytes
    if [(s.kind, s.codec, s.count, s.nbytes) for s in header.streams] != [(BYTES, "none", nbytes, nbytes)]:
        raise FrameDamaged("format", f"one stream of {nbytes} bytes was expected; got {header.streams}")


def _restore_bits(header: FrameHeader, rest: memoryview) -> Tensor:
    layout = header.layout
    size = DTYPES[layout.dtype].itemsize
    if header.point.codec == "none":
        check_raw(header)
        bits = torch.from_numpy(np.frombuffer(bytearray(rest), np.uint8))
        return bits.view(DTYPES[layout.dtype]).view(layout.shape)
    if len(header.streams) != size or any(s.kind != BYTES or s.base != 256 for s in header.streams):
        raise FrameDamaged("format", f"{size} streams of bytes were expected; got {header.streams}")
    count = layout.nbytes // size
    planes, at = np.empty((count, size), np.uint8), 0
    for number, stream in enumerate(header.streams):
        planes[:, number] = _decoded(stream, rest[at : at + stream.nbytes], count)
        at += stream.nbytes
    return torch.from_numpy(planes).view(DTYPES[layout.dtype]).view(layout.shape)


def _restore_lossy(header: FrameHeader, rest: memoryview, with_bound: bool) -> tuple[Tensor, Tensor | None, float]:
    point, layout = header.point, header.layout
    table = stream_table(header)
    old = max(0, layout.tokens - point.keep_recent)
    dtype = DTYPES[layout.dtype]
    kv = torch.empty(layout.shape, dtype=dtype)
    bound = torch.zeros(layout.shape) if with_bound else None
    newest = kv[:, :, old:]
    if newest.numel() * dtype.itemsize != header.recent_bytes:
        raise FrameDamaged("format", f"{newest.numel()} newest numbers were expected; got {header.recent_bytes} bytes")
    meta, at = rest[: header.meta_bytes], header.meta_bytes
    if header.recent_bytes:
        raw = bytearray(rest[at : at + header.recent_bytes])
        newest.copy_(torch.frombuffer(raw, dtype=dtype).view(newest.shape))
    at += header.recent_bytes
    parts = list(parts_of(table, point, layout, header.first_layer, header.heads))
    wanted: dict[tuple[int, int], int] = {}
    for part in parts:
        key = (part.kind, part.base)
        wanted[key] = wanted.get(key, 0) + part.quantizer.count(part.shape)
    if {(s.kind, s.base): s.count for s in header.streams} != wanted or len(header.streams) != len(wanted):
        raise FrameDamaged("format", f"streams of {wanted} levels were expected; got {header.streams}")
    levels: dict[tuple[int, int], Tensor] = {}
    for stream in header.streams:
        decoded = _decoded(stream, rest[at : at + stream.nbytes], stream.count)
        levels[stream.kind, stream.base] = torch.from_numpy(decoded if decoded.flags.writeable else decoded.copy())
        at += stream.nbytes
    done = dict.fromkeys(wanted, 0)
    limit = 0.0
    for part in parts:
        key, transform, quantizer = (part.kind, part.base), part.transform, part.quantizer
        turned, meta = _take(meta, transform.meta_shapes(part.tokens, part.heads))
        statistics, meta = _take(meta, quantizer.meta_shapes(part.shape))
        count = quantizer.count(part.shape)
        y = quantizer.inverse(levels[key][done[key] : done[key] + count], statistics, part.base, part.shape)
        done[key] += count
        x = transform.inverse(part.unfold(y), turned)
        part.scatter(x, kv)
        probed = part.probed(layout)
        if bound is None and probed is None:
            continue
        worst = transform.bound(part.unfold(quantizer.bound(statistics, part.base, part.shape)), turned)
        if bound is not None:
            part.scatter(worst + x.abs() * _unit(dtype) + 1e-6 * (x.abs().amax() + 1), bound)
        if probed is not None and layout.tokens // 2 < old:
            row = worst[layout.tokens // 2, probed]
            limit = float(row[0] if point.transform == "hadamard" else row.norm())
    if len(meta):
        raise FrameDamaged("format", f"{len(meta)} bytes of statistics too many")
    return kv, bound, limit


def stream_table(header: FrameHeader) -> Tensor:
    """Levels [2, L, G] that a header names.

    Raises:
        FrameDamaged: some that no quantiser has, or this end derives other signs.
    """
    layout = header.layout
    if signs_checksum(header.point, layout, header.first_layer, header.heads) != header.signs:
        raise FrameDamaged("signs", "the two ends derive different signs; both need the same version of this program")
    table = torch.frombuffer(bytearray(header.levels), dtype=torch.int16).long()
    if int(table.min()) < 2 or int(table.max()) > 256:
        raise FrameDamaged("format", "levels lie between 2 and 256")
    return table.view(2, layout.layers, layout.kv_heads)


def _encoded(kind: int, base: int, levels: np.ndarray, codec: str) -> tuple[Stream, bytes]:
    """Packed by the codec, or without one where that is no larger."""
    body = make_codec(codec).encode(levels, base)
    if codec not in ("none", "bitpack"):
        plain = "none" if base == 256 else "bitpack"
        if kind == BYTES and len(body) >= len(levels):
            body, codec = make_codec(plain).encode(levels, base), plain
    return Stream(kind, base, len(levels), codec, len(body)), body


def _plain(levels: np.ndarray) -> tuple[Stream, memoryview]:
    """Bytes where they lie."""
    return Stream(BYTES, 256, len(levels), "none", len(levels)), levels.data


def _decoded(stream: Stream, data: memoryview, count: int) -> np.ndarray:
    if stream.codec not in CODECS:
        raise FrameDamaged("format", f"codecs are {', '.join(CODECS)}; the frame names {stream.codec!r}")
    if stream.count != count:
        raise FrameDamaged("format", f"{count} levels were expected; the frame announces {stream.count}")
    return make_codec(stream.codec).decode(data, stream.count, stream.base)


def _take(meta: memoryview, shapes: Sequence[tuple[int, ...]]) -> tuple[list[Tensor], memoryview]:
    found = []
    for shape in shapes:
        nbytes = 2 * int(np.prod(shape, dtype=np.int64))
        if nbytes > len(meta):
            raise FrameDamaged("format", "statistics are missing")
        piece = bytearray(meta[:nbytes])
        found.append(torch.frombuffer(piece, dtype=torch.float16).view(shape) if nbytes else torch.empty(shape).half())
        meta = meta[nbytes:]
    return found, meta


def _bits(x: Tensor) -> np.ndarray:
    return x.contiguous().view(torch.uint8).numpy().reshape(-1)


def _planes(whole: Tensor) -> list[np.ndarray]:
    """The first bytes of all numbers, then the second ones: exponents resemble each other, mantissas do not."""
    rows = _bits(whole).reshape(-1, whole.element_size())
    return [np.ascontiguousarray(rows[:, number]) for number in range(whole.element_size())]


def _unit(dtype: torch.dtype) -> float:
    """The largest relative error of rounding to a format."""
    return torch.finfo(dtype).eps / 2 * 1.01


def signs_checksum(point: CompressionPoint, layout: KVLayout, first: int, heads: Sequence[int]) -> int:
    if point.transform != "hadamard":
        return 0
    padded = 1 << (layout.head_dim - 1).bit_length()
    return zlib.crc32(signs(point.seed, first, 1, heads[0], padded).numpy().tobytes())


def probe_of(kv: Tensor, layout: KVLayout) -> Tensor:
    """Values of the last head of the middle layer and token: a whole head, or 64 of its channels."""
    return kv[layout.layers // 2, 1, layout.tokens // 2, -1, :PROBE_VALUES]


def check_probe(kv: Tensor, header: FrameHeader, limit: float) -> None:
    """A head of the sender against what came out; ``limit`` is the largest length that its error can have."""
    layout = header.layout
    here = probe_of(kv, layout).float().cpu()
    dtype = DTYPES[layout.dtype]
    if len(header.probe) != here.numel() * dtype.itemsize:
        raise FrameDamaged("format", "the probe has another length")
    there = torch.frombuffer(bytearray(header.probe), dtype=dtype).float()
    rounding = float(here.norm() + there.norm()) * _unit(dtype) + 1e-5
    if not float((here - there).norm()) <= limit * (1 + 1e-5) + rounding:
        raise FrameDamaged("probe", "a head that was sent along uncompressed differs from what came out")
