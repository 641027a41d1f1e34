"""Frames made and read where keys and values lie on a GPU; the host reads and writes the same bytes.

Transform, quantiser and packing of a group of heads are one kernel (two for the ranges) where the point allows it:
``none`` or ``hadamard``, ``minmax``, heads of 16 to 256 channels after padding, prompts that are not tiny. Other points
take the plain tensor operations on the same device. Entropy coders run on the host; use ``KVPipeline`` for them.

Shapes: L layers, T tokens, G key and value heads, D channels.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heliograph.errors import BadInput
from heliograph.serving.kv_serve.codecs import CodecError, pack_levels, unpack_levels, word_of
from heliograph.serving.kv_serve.frame import (
    DTYPES,
    FrameDamaged,
    FrameHeader,
    KVLayout,
    Stream,
    pack_frame,
    parse_frame,
)
from heliograph.serving.kv_serve.parts import Part, parts_of
from heliograph.serving.kv_serve.pipeline import (
    BYTES,
    KVPipeline,
    check_expected,
    check_probe,
    check_raw,
    probe_of,
    restore,
    signs_checksum,
    stream_table,
)
from heliograph.serving.kv_serve.point import CompressionPoint, named
from heliograph.serving.kv_serve.quantizers import NotRepresentable, min_max_meta
from heliograph.serving.kv_serve.transforms import HadamardTransform, hadamard

if TYPE_CHECKING:
    from heliograph.serving.kv_serve.device_triton import DeviceRows

__all__ = ["DeviceFrame", "DeviceKVPipeline", "restore_on_device"]

FUSED_TRANSFORMS = ("none", "hadamard")
PACKED = ("none", "bitpack")


def settle(device: torch.device) -> None:
    """Waits until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _has_kernels(device: torch.device) -> bool:
    """On CUDA; elsewhere only under Triton's interpreter, as tests use it."""
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True, eq=False)
class DeviceFrame:
    """A frame whose statistics, newest tokens and packed levels lie on a device.

    Attributes:
        header: as of any frame.
        body: what follows the header, one tensor of uint8.
    """

    header: FrameHeader
    body: Tensor

    @property
    def nbytes(self) -> int:
        """Of the body; the header is about a kilobyte."""
        return self.body.numel()

    def to_bytes(self) -> bytes:
        """The frame as it goes over a wire; any receiver reads it."""
        return pack_frame(self.header, self.body.cpu().numpy().tobytes(), b"", [])

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, device: str | torch.device) -> DeviceFrame:
        """A frame from a wire.

        Raises:
            FrameDamaged: truncated or changed bytes.
        """
        header, rest = parse_frame(data)
        return cls(header, torch.frombuffer(bytearray(rest), dtype=torch.uint8).to(device))


@dataclass(frozen=True, eq=False)
class _Group:
    """Heads of several layers with one number of levels.

    Attributes:
        parts: as :func:`parts_of` gives them.
        meta: where its statistics begin in the body, and their bytes.
        levels: where its levels begin in the stream, and how many they are.
        fused: numbers of layers [B] and heads [B, n], signs [B, n, P] or None, matrix or None; None without kernels.
    """

    parts: tuple[Part, ...]
    meta: tuple[int, int]
    levels: tuple[int, int]
    fused: tuple[Tensor, Tensor, Tensor | None, Tensor | None] | None


@dataclass(frozen=True, eq=False)
class _Stream:
    """Groups whose levels are packed together; ``at`` is where they begin in the body, ``word`` digits and bytes."""

    stream: Stream
    at: int
    word: tuple[int, int]
    groups: tuple[_Group, ...]

    @property
    def in_one_go(self) -> bool:
        """Whether packing is part of the quantiser's kernel: each word's digits are whole layers apart."""
        (first, *others) = self.groups
        return not others and first.fused is not None and len(first.parts) % self.word[0] == 0


@dataclass(frozen=True, eq=False)
class _Plan:
    """Where everything of a frame lies."""

    streams: tuple[_Stream, ...]
    meta_bytes: int
    recent_bytes: int

    @property
    def nbytes(self) -> int:
        return self.meta_bytes + self.recent_bytes + sum(each.stream.nbytes for each in self.streams)


@functools.lru_cache(maxsize=64)
def _plan(
    point: CompressionPoint,
    layout: KVLayout,
    first_layer: int,
    heads: tuple[int, ...],
    levels: bytes,
    device: torch.device,
    fused: bool,
) -> _Plan:
    table = torch.frombuffer(bytearray(levels), dtype=torch.int16).long().view(2, layout.layers, layout.kv_heads)
    grouped: dict[tuple[int, int, int], list[Part]] = {}
    for part in parts_of(table, point, layout, first_layer, heads):
        grouped.setdefault((part.kind, part.base, len(part.places[0][1])), []).append(part)
    found: dict[tuple[int, int], list[_Group]] = {}
    counts: dict[tuple[int, int], int] = {}
    meta = 0
    for (kind, base, _), parts in grouped.items():
        shapes = [
            shape
            for part in parts
            for shape in (
                *part.transform.meta_shapes(part.tokens, part.heads), *part.quantizer.meta_shapes(part.shape)
            )
        ]  # fmt: skip
        size = 2 * sum(math.prod(shape) for shape in shapes)
        count = sum(part.quantizer.count(part.shape) for part in parts)
        begin = counts.get((kind, base), 0)
        tables = _tables(point, parts, DTYPES[layout.dtype], device) if fused and _has_kernels(device) else None
        found.setdefault((kind, base), []).append(_Group(tuple(parts), (meta, size), (begin, count), tables))
        counts[kind, base] = begin + count
        meta += size
    recent = layout.nbytes // layout.tokens * min(point.keep_recent, layout.tokens)
    at, streams = meta + recent, []
    for (kind, base), groups in sorted(found.items()):
        digits, width = word_of(base, 3) if point.codec == "bitpack" else (1, 1)
        count = counts[kind, base]
        nbytes = -(-count // digits) * width
        streams.append(_Stream(Stream(kind, base, count, point.codec, nbytes), at, (digits, width), tuple(groups)))
        at += nbytes
    return _Plan(tuple(streams), meta, recent)


def _tables(
    point: CompressionPoint, parts: Sequence[Part], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None] | None:
    """What the kernels need of a group; None where they do not cover the point or the shape."""
    first = parts[0]
    axis = point.value_axis if first.kind else point.key_axis
    channels, group = first.channels, point.group
    shared = first.tokens if axis == "channel" else channels
    covered = (
        point.transform in FUSED_TRANSFORMS
        and point.quantizer == "minmax"
        and channels in (16, 32, 64, 128, 256)
        and all(len(part.places) == 1 for part in parts)
        and (not group or (shared % group == 0 and group & (group - 1) == 0))
    )
    if not covered:
        return None
    layers = torch.tensor([part.places[0][0] for part in parts], dtype=torch.int32, device=device)
    heads = torch.tensor([part.places[0][1] for part in parts], dtype=torch.int32, device=device)
    if not isinstance(first.transform, HadamardTransform):
        return layers, heads, None, None
    turns = [part.transform.sign for part in parts if isinstance(part.transform, HadamardTransform)]
    # Triton's interpreter multiplies float32 alone
    ones = hadamard(channels).sign().to(device, dtype if device.type == "cuda" else torch.float32)
    return layers, heads, torch.stack(turns).to(device), ones


class DeviceKVPipeline:
    """Compresses on the device where keys and values lie.

    Args:
        point: settings, or a method by name; its codec is ``none`` or ``bitpack``.
        scores, fingerprint, model_layers, heads: as of :class:`KVPipeline`.
        fused: False takes plain tensor operations throughout, for comparison.

    Raises:
        BadInput: an entropy coder, or settings that do not go together.
    """

    def __init__(
        self,
        point: CompressionPoint | str,
        *,
        scores: Tensor | None = None,
        fingerprint: str = "",
        model_layers: int | None = None,
        heads: Sequence[int] | None = None,
        fused: bool = True,
    ) -> None:
        self.host = KVPipeline(point, scores=scores, fingerprint=fingerprint, model_layers=model_layers, heads=heads)
        self.point, self.fused = self.host.point, fused
        if self.point.codec not in PACKED:
            raise BadInput(
                f"on a device levels are packed by {' or '.join(PACKED)}; "
                f"{self.point.codec!r} runs on the host: use KVPipeline"
            )

    def compress(self, kv: Tensor, *, request: str = "", attempt: int = 0, first_layer: int = 0) -> DeviceFrame:
        """One frame.

        Args:
            kv: [L, 2, T, G, D] on any device.
            request, attempt: carried along.
            first_layer: its number in the model.

        Raises:
            BadInput: other shapes or formats.
        """
        layout, kv = KVLayout.of(kv), kv.contiguous()
        if self.point.lossless or layout.nbytes < self.point.min_compress_size:
            why = "" if self.point.lossless else "small"
            return self._as_it_is(kv, layout, request, attempt, first_layer, why)
        try:
            frame = self._lossy(kv, layout, request, attempt, first_layer)
        except NotRepresentable:
            return self._as_it_is(kv, layout, request, attempt, first_layer, "not finite")
        if frame.nbytes < layout.nbytes:
            return frame
        return self._as_it_is(kv, layout, request, attempt, first_layer, "larger")

    def _as_it_is(self, kv: Tensor, layout: KVLayout, request: str, attempt: int, first: int, why: str) -> DeviceFrame:
        streams = [Stream(BYTES, 256, layout.nbytes, "none", layout.nbytes)]
        header = self.host.header_of(layout, request, attempt, first, named("none"), streams, why_raw=why)
        return DeviceFrame(header, kv.view(torch.uint8).view(-1))

    def _lossy(self, kv: Tensor, layout: KVLayout, request: str, attempt: int, first: int) -> DeviceFrame:
        point, heads = self.point, self.host.heads_of(layout)
        levels = self.host.table_of(layout, first).to(torch.int16).numpy().tobytes()
        plan = _plan(point, layout, first, heads, levels, kv.device, self.fused)
        body = torch.empty(plan.nbytes, dtype=torch.uint8, device=kv.device)
        if plan.recent_bytes:
            newest = kv[:, :, max(0, layout.tokens - point.keep_recent) :].contiguous()
            body[plan.meta_bytes : plan.meta_bytes + plan.recent_bytes] = newest.view(torch.uint8).view(-1)
        for stream in plan.streams:
            _fill(stream, kv, body, point)
        header = self.host.header_of(
            layout,
            request,
            attempt,
            first,
            point,
            [each.stream for each in plan.streams],
            levels=levels,
            signs=signs_checksum(point, layout, first, heads),
            probe=probe_of(kv, layout).cpu().contiguous().view(torch.uint8).numpy().tobytes(),
            meta_bytes=plan.meta_bytes,
            recent_bytes=plan.recent_bytes,
        )
        return DeviceFrame(header, body)


def _axis(point: CompressionPoint, group: _Group) -> str:
    return point.value_axis if group.parts[0].kind else point.key_axis


def _fill(stream: _Stream, kv: Tensor, body: Tensor, point: CompressionPoint) -> None:
    """Statistics and packed levels of a stream into the body."""
    (digits, width), base = stream.word, stream.stream.base
    target = body[stream.at : stream.at + stream.stream.nbytes]
    levels = target if digits == 1 else None
    if levels is None and not stream.in_one_go:
        levels = torch.empty(stream.stream.count, dtype=torch.uint8, device=kv.device)
    for group in stream.groups:
        meta = body[group.meta[0] : sum(group.meta)].view(torch.float16)
        own = None if levels is None else levels[group.levels[0] : sum(group.levels)]
        if group.fused is None:
            assert own is not None
            _plain_levels(group, kv, own, meta)
            continue
        from heliograph.serving.kv_serve.device_triton import quantise_rows, row_ranges

        rows, axis = _rows(group, kv), _axis(point, group)
        low, step = min_max_meta(*row_ranges(rows, axis, point.group), base)
        table = meta.view(low.shape[0], 2, -1)
        table[:, 0], table[:, 1] = low, step
        word = (1, 1) if own is not None else (digits, width)
        out = target if own is None else own
        quantise_rows(rows, table, out, axis=axis, group=point.group, base=base, digits=word[0], width=word[1])
    if levels is not None and digits > 1:
        _packed(levels, target, base, digits, width)


def _plain_levels(group: _Group, kv: Tensor, levels: Tensor, meta: Tensor) -> None:
    at = done = 0
    for part in group.parts:
        y, turned = part.transform.forward(part.gather(kv))
        q, found = part.quantizer.forward(part.fold(y), part.base)
        levels[done : done + q.numel()] = q.reshape(-1)
        done += q.numel()
        for one in (*turned, *found):
            meta[at : at + one.numel()].view(torch.int16).copy_(one.reshape(-1).view(torch.int16))
            at += one.numel()


def _rows(group: _Group, kv: Tensor) -> DeviceRows:
    from heliograph.serving.kv_serve.device_triton import DeviceRows

    assert group.fused is not None
    layers, heads, signs, matrix = group.fused
    part = group.parts[0]
    return DeviceRows(kv, part.kind, layers, heads, signs, matrix, part.tokens, part.channels)


def _packed(levels: Tensor, target: Tensor, base: int, digits: int, width: int) -> None:
    if _has_kernels(levels.device):
        from heliograph.serving.kv_serve.device_triton import pack

        pack(levels, target, base, digits, width)
        return
    target.copy_(torch.from_numpy(pack_levels(levels.cpu().numpy(), base)))


def _unpacked(packed: Tensor, count: int, base: int, digits: int, width: int) -> Tensor:
    if digits == 1:
        return packed
    if not _has_kernels(packed.device):
        return torch.from_numpy(unpack_levels(packed.cpu().numpy(), count, base)).to(packed.device)
    from heliograph.serving.kv_serve.device_triton import unpack

    levels = torch.empty(count, dtype=torch.uint8, device=packed.device)
    unpack(packed, levels, base, digits, width)
    return levels


def restore_on_device(
    frame: DeviceFrame | bytes | bytearray | memoryview,
    device: str | torch.device | None = None,
    *,
    layout: KVLayout | None = None,
    fingerprint: str | None = None,
    max_bytes: int = 2**36,
    fused: bool = True,
) -> Tensor:
    """Keys and values [L, 2, T, G, D] on a device.

    Args:
        frame: on the device, or as it came over a wire.
        device: where to; the frame's own where None.
        layout, fingerprint: what is expected; not compared where None.
        max_bytes: that keys and values may take.
        fused: False takes plain tensor operations throughout.

    Raises:
        FrameDamaged: anything that is not as it should be; ``reason`` says what.
        BadInput: bytes without a device.
    """
    if not isinstance(frame, DeviceFrame):
        if device is None:
            raise BadInput("bytes lie on no device; say to which one keys and values shall go")
        frame = DeviceFrame.from_bytes(frame, device)
    header, body = frame.header, frame.body if device is None else frame.body.to(device)
    own = header.layout
    check_expected(header, layout, fingerprint, max_bytes)
    if any(stream.codec not in PACKED for stream in header.streams):
        return restore(DeviceFrame(header, body).to_bytes()).kv.to(body.device)
    if header.point.lossless:
        check_raw(header)
        if len(body) != own.nbytes:
            raise FrameDamaged("truncated", f"{own.nbytes} bytes were announced; {len(body)} are there")
        return body.view(DTYPES[own.dtype]).view(own.shape)
    try:
        return _restore_lossy(header, body, fused)
    except (CodecError, BadInput, ValueError, RuntimeError, IndexError) as error:
        raise FrameDamaged("format", f"the frame's parts do not fit together: {error}") from None


def _restore_lossy(header: FrameHeader, body: Tensor, fused: bool) -> Tensor:
    point, layout = header.point, header.layout
    stream_table(header)  # signs as here, levels within their limits
    plan = _plan(point, layout, header.first_layer, header.heads, header.levels, body.device, fused)
    wanted = (tuple(each.stream for each in plan.streams), plan.meta_bytes, plan.recent_bytes, plan.nbytes)
    if (header.streams, header.meta_bytes, header.recent_bytes, len(body)) != wanted:
        raise FrameDamaged("format", f"streams and sizes {wanted} follow from the layout; the frame has others")
    kv = torch.empty(layout.shape, dtype=DTYPES[layout.dtype], device=body.device)
    old = max(0, layout.tokens - point.keep_recent)
    if plan.recent_bytes:
        newest = body[plan.meta_bytes : plan.meta_bytes + plan.recent_bytes].clone()  # a copy begins at a whole number
        kv[:, :, old:] = newest.view(kv.dtype).view(kv[:, :, old:].shape)
    limit = 0.0
    for stream in plan.streams:
        limit = max(limit, _empty(stream, kv, body, point, layout if layout.tokens // 2 < old else None))
    check_probe(kv, header, limit)
    return kv


def _empty(stream: _Stream, kv: Tensor, body: Tensor, point: CompressionPoint, probed: KVLayout | None) -> float:
    """Numbers of a stream's levels; and the largest length of the probed head's error, 0 where it is elsewhere."""
    digits, width = stream.word
    packed, base = body[stream.at : stream.at + stream.stream.nbytes], stream.stream.base
    levels = None if stream.in_one_go else _unpacked(packed, stream.stream.count, base, digits, width)
    limit = 0.0
    for group in stream.groups:
        meta = body[group.meta[0] : sum(group.meta)].view(torch.float16)
        own = None if levels is None else levels[group.levels[0] : sum(group.levels)]
        if group.fused is None:
            assert own is not None
            limit = max(limit, _plain_numbers(group, kv, own, meta, point, probed))
            continue
        from heliograph.serving.kv_serve.device_triton import restore_rows

        rows, axis = _rows(group, kv), _axis(point, group)
        table = meta.view(len(group.parts), 2, -1)
        word = (1, 1) if own is not None else (digits, width)
        source = packed if own is None else own
        restore_rows(rows, table, source, axis=axis, group=point.group, base=base, digits=word[0], width=word[1])
        limit = max(limit, _limit(group, table, point, probed))
    return limit


def _limit(group: _Group, table: Tensor, point: CompressionPoint, probed: KVLayout | None) -> float:
    """The largest length of the probed head's error, as the quantiser's bound says."""
    for place, part in enumerate(group.parts):
        head = None if probed is None else part.probed(probed)
        if head is None or probed is None:
            continue
        token, each, shape = probed.tokens // 2, len(part.places[0][1]), part.shape
        if part.by_token:
            groups = max(1, part.channels // point.group) if point.group else 1
            at = (token * each + head) * groups if point.group else token
            chosen = slice(at, at + groups)
            repeats = part.channels // groups
        else:
            at = (token // min(point.group or shape[0], shape[0]) * each + head) * part.channels
            chosen, repeats = slice(at, at + part.channels), 1
        low, step = table[place, :, chosen].float().cpu()
        half = step / 2 + (low.abs() + part.base * step) * 2e-7
        return float(half.norm()) * math.sqrt(repeats)
    return 0.0


def _plain_numbers(
    group: _Group, kv: Tensor, levels: Tensor, meta: Tensor, point: CompressionPoint, probed: KVLayout | None
) -> float:
    at, done, limit = 0, 0, 0.0

    def taken(shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        nonlocal at
        found = []
        for shape in shapes:
            size = math.prod(shape)
            found.append(meta[at : at + size].view(shape))
            at += size
        return found

    for part in group.parts:
        turned = taken(part.transform.meta_shapes(part.tokens, part.heads))
        statistics = taken(part.quantizer.meta_shapes(part.shape))
        count = part.quantizer.count(part.shape)
        y = part.quantizer.inverse(levels[done : done + count], statistics, part.base, part.shape)
        done += count
        part.scatter(part.transform.inverse(part.unfold(y), turned), kv)
        head = None if probed is None else part.probed(probed)
        if head is None or probed is None:
            continue
        worst = part.transform.bound(
            part.unfold(part.quantizer.bound(statistics, part.base, part.shape)), turned
        )[probed.tokens // 2, head]  # fmt: skip
        limit = float(worst[0] if point.transform == "hadamard" else worst.norm())
    return limit
