"""Keys and values from one GPU to another, or back to the same one, through pinned memory at the pace of a link."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from heliograph.errors import BadInput
from heliograph.serving.core.frames import Pace
from heliograph.serving.kv_serve.controller import CompressionController, TransferContext, Transferred
from heliograph.serving.kv_serve.device import DeviceFrame, DeviceKVPipeline, restore_on_device, settle
from heliograph.serving.kv_serve.frame import KVLayout
from heliograph.serving.kv_serve.link import Delivery, SteadyPace, fixed_decision
from heliograph.serving.kv_serve.point import CompressionPoint

__all__ = ["DeviceLink"]


class DeviceLink:
    """Frames from one device to another through pinned memory, at a pace: compressed by what a controller chooses.

    Args:
        target: device of the receiver.
        chooser: a controller; or one point for all requests.
        pace: bytes a second of the link.
        scores, fingerprint: as of :class:`DeviceKVPipeline`.
        chunk_bytes: that are copied at once; the next chunk leaves the device while this one waits for its turn.
        clock: in seconds.

    Attributes:
        sent_bytes, raw_bytes: of frames, and of the keys and values in them.
    """

    def __init__(
        self,
        target: str | torch.device,
        chooser: CompressionController | CompressionPoint,
        *,
        pace: Pace | None = None,
        scores: Tensor | None = None,
        fingerprint: str = "",
        chunk_bytes: int = 2**24,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if chunk_bytes < 1:
            raise BadInput(f"a chunk has at least one byte; got {chunk_bytes}")
        self.target, self.pace, self.chunk_bytes = torch.device(target), pace or Pace(), chunk_bytes
        self.controller = chooser if isinstance(chooser, CompressionController) else None
        self._point = None if isinstance(chooser, CompressionController) else chooser
        self._scores, self._fingerprint, self._clock = scores, fingerprint, clock
        self._pipelines: dict[CompressionPoint, DeviceKVPipeline] = {}
        self._buffers: list[Tensor] = []
        self.sent_bytes = self.raw_bytes = 0

    def send(
        self, kv: Tensor, *, request: str = "", attempt: int = 0, context: TransferContext | None = None
    ) -> tuple[Tensor, Delivery]:
        """Keys and values on the target, and what became of them; a transfer that fails raises.

        Raises:
            FrameDamaged: what arrived is not what was sent.
        """
        layout = KVLayout.of(kv)
        context = context or TransferContext(layout.nbytes, layout.tokens)
        if self.controller is None:
            decision = fixed_decision(self._point, context)
        else:
            decision = self.controller.select(context)
        pipeline = self._pipelines.get(decision.profile.point)
        if pipeline is None:
            pipeline = DeviceKVPipeline(decision.profile.point, scores=self._scores, fingerprint=self._fingerprint)
            self._pipelines[decision.profile.point] = pipeline
        begin = self._clock()
        frame = pipeline.compress(kv, request=request, attempt=attempt)
        settle(kv.device)
        made = self._clock()
        arrived = DeviceFrame(frame.header, self.carry(frame.body))
        sent = self._clock()
        found = restore_on_device(arrived, fingerprint=self._fingerprint)
        settle(self.target)
        restored = self._clock()
        taken = Transferred(made - begin, sent - made, restored - sent, frame.nbytes)
        self.sent_bytes += frame.nbytes
        self.raw_bytes += layout.nbytes
        if self.controller is not None:
            self.controller.observe(decision, taken)
        return found, Delivery(decision, True, taken)

    def carry(self, body: Tensor) -> Tensor:
        """Bytes [N], from wherever they lie, on the target."""
        there = torch.empty(len(body), dtype=torch.uint8, device=self.target)
        if not self._buffers:
            pinned = body.device.type == "cuda"
            self._buffers = [torch.empty(self.chunk_bytes, dtype=torch.uint8, pin_memory=pinned) for _ in range(2)]
        pieces = [slice(at, min(at + self.chunk_bytes, len(body))) for at in range(0, len(body), self.chunk_bytes)]
        out = None if body.device.type == "cpu" else torch.cuda.Stream(body.device)  # type: ignore[no-untyped-call]
        into = None if self.target.type == "cpu" else torch.cuda.Stream(self.target)  # type: ignore[no-untyped-call]
        if out is not None:
            out.wait_stream(torch.cuda.current_stream(body.device))
        free: list[torch.cuda.Event | None] = [None, None]

        def leave(number: int) -> torch.cuda.Event | None:
            piece, buffer, before = pieces[number], self._buffers[number % 2], free[number % 2]
            if before is not None:
                before.synchronize()
            with torch.cuda.stream(out):
                buffer[: piece.stop - piece.start].copy_(body[piece], non_blocking=True)
                return None if out is None else out.record_event()

        left = leave(0) if pieces else None
        for number, piece in enumerate(pieces):
            if left is not None:
                left.synchronize()
            if number + 1 < len(pieces):
                left = leave(number + 1)
            self.pace.wait(piece.stop - piece.start)
            with torch.cuda.stream(into):
                there[piece].copy_(self._buffers[number % 2][: piece.stop - piece.start], non_blocking=True)
                free[number % 2] = None if into is None else into.record_event()
        if isinstance(self.pace, SteadyPace):
            self.pace.settle()
        if into is not None:
            torch.cuda.current_stream(self.target).wait_stream(into)
            into.synchronize()
        return there
