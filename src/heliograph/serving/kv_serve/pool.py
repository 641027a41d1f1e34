"""A store of compressed prefixes: written once with the writer's profile, fetched by whoever needs them.

Frames are kept as bytes, whole; the profile travels inside. What was used longest ago goes first.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from torch import Tensor

from heliograph.errors import BadInput
from heliograph.serving.kv_serve.frame import FrameDamaged, KVLayout
from heliograph.serving.kv_serve.pipeline import KVPipeline, restore

__all__ = ["KVPool"]


class KVPool:
    """Keys and values by name.

    Args:
        capacity_bytes: of frames.
        fingerprint: of the model; others are neither kept nor given.

    Attributes:
        held_bytes: of all frames.
        hits, misses: of fetches; a damaged frame is a miss and is thrown away.
        failures: damaged frames, by reason.
    """

    def __init__(self, capacity_bytes: int, fingerprint: str = "") -> None:
        if capacity_bytes < 1:
            raise BadInput(f"a pool has room for at least one byte; got {capacity_bytes}")
        self.capacity_bytes, self.fingerprint = capacity_bytes, fingerprint
        self.held_bytes = self.hits = self.misses = 0
        self.failures: Counter[str] = Counter()
        self._frames: OrderedDict[str, bytes] = OrderedDict()

    def __len__(self) -> int:
        """Names that are held."""
        return len(self._frames)

    def put(self, name: str, kv: Tensor, pipeline: KVPipeline) -> int:
        """Keeps [L, 2, T, G, D]; bytes that it takes, 0 where it does not fit at all.

        Raises:
            BadInput: the pipeline is for another model.
        """
        if pipeline.fingerprint != self.fingerprint:
            raise BadInput(f"this pool is for model {self.fingerprint!r}; the writer's is {pipeline.fingerprint!r}")
        frame = pipeline.compress(kv, request=name)
        self.drop(name)
        if len(frame) > self.capacity_bytes:
            return 0
        while self.held_bytes + len(frame) > self.capacity_bytes:
            _, oldest = self._frames.popitem(last=False)
            self.held_bytes -= len(oldest)
        self._frames[name] = frame
        self.held_bytes += len(frame)
        return len(frame)

    def frame(self, name: str) -> bytes | None:
        """The bytes that go over a link; None where the name is not held."""
        found = self._frames.get(name)
        if found is None:
            self.misses += 1
            return None
        self._frames.move_to_end(name)
        self.hits += 1
        return found

    def get(self, name: str, layout: KVLayout | None = None) -> Tensor | None:
        """Keys and values; None where they are not held or cannot be used, and the prompt is computed."""
        found = self.frame(name)
        if found is None:
            return None
        try:
            return restore(found, fingerprint=self.fingerprint, layout=layout).kv
        except FrameDamaged as error:
            self.failures[error.reason] += 1
            self.hits, self.misses = self.hits - 1, self.misses + 1
            self.drop(name)
            return None

    def drop(self, name: str) -> bool:
        """Forgets a name; whether it was held."""
        found = self._frames.pop(name, None)
        self.held_bytes -= len(found) if found is not None else 0
        return found is not None
