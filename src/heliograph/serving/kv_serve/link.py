"""Keys and values over a link that carries so many bytes a second: compressed by what the controller chooses.

A link is anything with ``call(header, body) -> answer``; :class:`PacedLink` is one over a socket. The receiver answers
with what restoring took, or with why the frame could not be used; then the request's prompt is computed there.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from heliograph.errors import BadInput, HeliographError
from heliograph.serving.core.frames import FrameError, Pace, receive_frame, send_frame
from heliograph.serving.kv_serve.controller import CompressionController, Decision, TransferContext, Transferred
from heliograph.serving.kv_serve.frame import FrameDamaged, KVLayout
from heliograph.serving.kv_serve.pipeline import KVPipeline, restore
from heliograph.serving.kv_serve.point import METHODS, CompressionPoint
from heliograph.serving.kv_serve.profile import ProfileSet

__all__ = ["CompressedLink", "Delivery", "KVReceiver", "Link", "LinkDown", "PacedLink", "SteadyPace"]

MAX_FRAME_BYTES = 2**34


class LinkDown(HeliographError):
    """The peer is gone or silent."""


class SteadyPace(Pace):
    """A limit of bytes a second that sleeps for two milliseconds or more at once, and settles at the end of a message.

    A sleep lasts a little longer than asked for. What it lasts longer is made up by the next one, because the time
    at which the link is free again does not depend on it.
    """

    least_sleep_s = 2e-3

    def __init__(self, bytes_per_s: float | None = None) -> None:
        super().__init__(bytes_per_s)
        self._began = 0.0

    def wait(self, nbytes: int) -> None:
        """Counts the bytes; blocks once enough of them are owed."""
        if self.bytes_per_s is None:
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + nbytes / self.bytes_per_s
        if self._free_at - now >= self.least_sleep_s:
            time.sleep(self._free_at - now)

    def settle(self) -> None:
        """Blocks until all bytes so far may have been sent."""
        left = self._free_at - time.monotonic()
        if self.bytes_per_s is not None and left > 0:
            time.sleep(left)


class Link(Protocol):
    """Carries a message to the receiver and brings its answer."""

    def call(self, header: Mapping[str, Any], body: bytes | memoryview) -> dict[str, Any]:
        """The answer, once the receiver has dealt with the message.

        Raises:
            LinkDown: no answer.
        """
        ...


class PacedLink:
    """A link over a connected socket.

    Args:
        connection: to a :class:`KVReceiver`.
        pace: bytes a second that go out.
        timeout_s: of a silent receiver.
    """

    def __init__(self, connection: socket.socket, pace: Pace | None = None, timeout_s: float = 60.0) -> None:
        self.connection, self.pace = connection, pace or Pace()
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(timeout_s)

    def call(self, header: Mapping[str, Any], body: bytes | memoryview) -> dict[str, Any]:
        """Sends at the pace of the link and waits for the answer.

        Raises:
            LinkDown: the peer went away or does not answer.
        """
        try:
            send_frame(self.connection, header, body, self.pace)
            if isinstance(self.pace, SteadyPace):
                self.pace.settle()
            answer, _ = receive_frame(self.connection)
            return answer
        except (OSError, FrameError) as error:
            raise LinkDown(f"keys and values were not taken: {error}") from None


@dataclass(frozen=True)
class Delivery:
    """What became of a request's keys and values.

    Attributes:
        decision: by which they were compressed.
        arrived: whether all frames could be used; otherwise the receiver computes the prompt.
        taken: seconds of the stages and bytes of whole frames.
        reason: why they did not arrive.
    """

    decision: Decision
    arrived: bool
    taken: Transferred
    reason: str = ""


class CompressedLink:
    """A link for keys and values over another link.

    Args:
        base: carries frames.
        controller: chooses; or one point, for all requests.
        fingerprint: of the model; the receiver compares it.
        layers_per_frame: None for one frame of all layers.
        overlap: whether a thread makes the next frame while this one is sent. The closed form knows nothing of that;
            the controller learns it as a residual.
        scores: [L, G] of the heads; those of the controller's profiles where None.
        clock: in seconds.

    Attributes:
        sent_bytes, raw_bytes: of frames, and of what they hold.
    """

    def __init__(
        self,
        base: Link,
        controller: CompressionController | CompressionPoint,
        *,
        fingerprint: str = "",
        layers_per_frame: int | None = None,
        overlap: bool = False,
        scores: Tensor | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if layers_per_frame is not None and layers_per_frame < 1:
            raise BadInput(f"a frame holds at least one layer; got {layers_per_frame}")
        self.base, self.fingerprint, self.layers_per_frame = base, fingerprint, layers_per_frame
        self.controller = controller if isinstance(controller, CompressionController) else None
        self.point = None if isinstance(controller, CompressionController) else controller
        if scores is None and self.controller is not None and self.controller.profiles.scores:
            scores = torch.tensor(self.controller.profiles.scores)
        self.scores, self._clock = scores, clock
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="kv-compress") if overlap else None
        self.sent_bytes = self.raw_bytes = 0
        self._pipelines: dict[tuple[CompressionPoint, int], KVPipeline] = {}

    def send(
        self,
        kv: Tensor,
        *,
        request: str = "",
        attempt: int = 0,
        context: TransferContext | None = None,
    ) -> Delivery:
        """Sends [L, 2, T, G, D]; returns once the receiver has it, or has refused it.

        Args:
            kv: keys and values.
            request, attempt: whose; carried along.
            context: what the choice depends on; of this size and nothing else where None.

        Raises:
            LinkDown: the base link has failed; the failure is counted.
        """
        layout = KVLayout.of(kv)
        context = context or TransferContext(layout.nbytes, layout.tokens)
        decision = (
            self.controller.select(context) if self.controller is not None else fixed_decision(self.point, context)
        )
        pipeline = self._pipeline(decision.profile.point, layout.layers)
        compress_s = send_s = restore_s = 0.0
        sent = 0
        frames = pipeline.frames(kv, self.layers_per_frame or layout.layers, request=request, attempt=attempt)
        reason, began = "", self._clock()
        for frame, seconds in self._made(frames):
            compress_s += seconds
            begin = self._clock()
            header = {"kv": request, "attempt": attempt}
            try:
                answer = self.base.call(header, frame)
            except HeliographError:
                self._failed(decision, "link")
                raise
            spent = float(answer.get("restore_s", 0.0))
            send_s += max(0.0, self._clock() - begin - spent)
            restore_s, sent = restore_s + spent, sent + len(frame)
            reason = str(answer.get("refused", ""))
            if reason:
                break
        self.sent_bytes += sent
        self.raw_bytes += layout.nbytes
        wall = None if self._ahead is None else self._clock() - began
        taken = Transferred(compress_s, send_s, restore_s, sent, wall)
        if reason:
            self._failed(decision, reason)
        elif self.controller is not None:
            self.controller.observe(decision, taken)
        return Delivery(decision, not reason, taken, reason)

    def _made(self, frames: Iterator[bytes]) -> Iterator[tuple[bytes, float]]:
        """Frames with the seconds that making them took, one ahead of the caller where stages overlap."""

        def make() -> tuple[bytes | None, float]:
            begin = self._clock()
            frame = next(frames, None)
            return frame, self._clock() - begin

        if self._ahead is None:
            while (made := make())[0] is not None:
                yield made[0], made[1]
            return
        following = self._ahead.submit(make)
        try:
            while (made := following.result())[0] is not None:
                following = self._ahead.submit(make)
                yield made[0], made[1]
        finally:
            following.cancel()
            wait([following])

    def _failed(self, decision: Decision, reason: str) -> None:
        if self.controller is not None:
            self.controller.failed(decision, reason)

    def _pipeline(self, point: CompressionPoint, layers: int) -> KVPipeline:
        key = (point, layers)
        if key not in self._pipelines:
            self._pipelines[key] = KVPipeline(
                point, scores=self.scores, fingerprint=self.fingerprint, model_layers=layers
            )
        return self._pipelines[key]


def fixed_decision(point: CompressionPoint | None, context: TransferContext) -> Decision:
    """The decision of a link that has one point."""
    from heliograph.serving.kv_serve.profile import CompressionProfile

    profile = CompressionProfile("fixed", point or METHODS["none"])
    return Decision(profile, "exploit", 0.0, 0.0, ("", 0, 0, ""), context, 1.0, 0.0)


class KVReceiver:
    """Takes frames from a connection and hands keys and values on.

    Args:
        connection: to a :class:`PacedLink`.
        deliver: called with request, attempt, number of the first layer, and keys and values of the frame.
        layout: of the whole model's keys and values, tokens aside; None takes any.
        fingerprint: of the model; None takes any.
        max_bytes: of one frame's keys and values.

    Attributes:
        failures: frames that could not be used, by reason; each stands for a prompt that is computed here.
    """

    def __init__(
        self,
        connection: socket.socket,
        deliver: Callable[[str, int, int, Tensor], object],
        *,
        layout: KVLayout | None = None,
        fingerprint: str | None = None,
        max_bytes: int = 2**31,
    ) -> None:
        self.connection, self.deliver, self.layout, self.fingerprint = connection, deliver, layout, fingerprint
        self.max_bytes = max_bytes
        self.failures: Counter[str] = Counter()

    def start(self) -> threading.Thread:
        """Serves in a thread until the peer goes away."""
        thread = threading.Thread(target=self.serve, name="kv-receiver", daemon=True)
        thread.start()
        return thread

    def serve(self) -> None:
        """Serves until the peer goes away."""
        with self.connection, contextlib.suppress(FrameError, OSError):
            while True:
                header, body = receive_frame(self.connection, 2 * self.max_bytes)
                send_frame(self.connection, self.take(header, body))

    def take(self, header: Mapping[str, Any], body: bytes | bytearray) -> dict[str, Any]:
        """The answer to one message."""
        begin = time.perf_counter()
        try:
            found = restore(body, fingerprint=self.fingerprint, max_bytes=self.max_bytes)
            own = found.header
            if (own.request, own.attempt) != (header.get("kv"), header.get("attempt")):
                raise FrameDamaged("request", f"a frame of {own.request!r} came in a message of {header.get('kv')!r}")
            if self.layout is not None:
                wanted = replace(self.layout, layers=own.layout.layers, tokens=own.layout.tokens)
                if own.layout != wanted or own.first_layer + own.layout.layers > self.layout.layers:
                    raise FrameDamaged("layout", f"{self.layout} was expected; the frame holds {own.layout}")
            self.deliver(own.request, own.attempt, own.first_layer, found.kv)
        except FrameDamaged as error:
            self.failures[error.reason] += 1
            return {"refused": error.reason, "message": str(error), "restore_s": time.perf_counter() - begin}
        return {"restore_s": time.perf_counter() - begin}


def scores_of(profiles: ProfileSet) -> Tensor | None:
    """Scores of the heads, [L, G]; None where the set has none."""
    return torch.tensor(profiles.scores) if profiles.scores else None
