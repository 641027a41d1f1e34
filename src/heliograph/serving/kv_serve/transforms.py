"""Stage T: numbers are turned so that fewer levels do them less harm; the inverse turns them back.

Shapes: T tokens, G heads, D channels a head, P channels after padding to a power of two.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from heliograph.errors import BadInput
from heliograph.serving.kv_serve.quantizers import NotRepresentable

__all__ = ["AffineTransform", "DeltaTransform", "HadamardTransform", "KVTransform", "NoTransform", "make_transform"]

ANCHOR_GROUP = 10
ANCHOR_LEVELS = 255


class KVTransform(Protocol):
    """Turns the numbers of some heads; what the inverse needs beside them is returned in 16 bits."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[T, G, D] to [T, G, P] in float32, and tensors of float16."""
        ...

    def inverse(self, y: Tensor, meta: Sequence[Tensor]) -> Tensor:
        """Back to [T, G, D]."""
        ...

    def meta_shapes(self, tokens: int, heads: int) -> list[tuple[int, ...]]:
        """Shapes of the tensors that :meth:`forward` returns."""
        ...

    def bound(self, bound: Tensor, meta: Sequence[Tensor]) -> Tensor:
        """The largest error of each number [T, G, D] from that of each turned number [T, G, P]."""
        ...


class NoTransform:
    """Leaves numbers as they are."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The same."""
        return x, []

    def inverse(self, y: Tensor, meta: Sequence[Tensor]) -> Tensor:  # noqa: ARG002
        """The same."""
        return y

    def meta_shapes(self, tokens: int, heads: int) -> list[tuple[int, ...]]:  # noqa: ARG002
        """None."""
        return []

    def bound(self, bound: Tensor, meta: Sequence[Tensor]) -> Tensor:  # noqa: ARG002
        """The same."""
        return bound


class DeltaTransform:
    """Difference to the first token of each ten, the anchor, which is kept in 8 bits of its channel's range.

    Differences are taken to the anchor as the other end will see it, so that its own rounding adds no error.

    Args:
        dim: channels a head.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Differences; meta is the anchors' levels (two in one 16-bit word), their lowest value and their step."""
        anchors = x[::ANCHOR_GROUP]
        low, high = anchors.amin(0, keepdim=True), anchors.amax(0, keepdim=True)
        low16 = low.half()
        step16 = ((high - low16.float()) / ANCHOR_LEVELS).half()
        step = step16.float()
        level = torch.where(step > 0, (anchors - low16.float()) / step.clamp(min=1e-30), 0.0)
        level = level.round().clamp(0, ANCHOR_LEVELS).to(torch.uint8)
        flat = torch.nn.functional.pad(level.flatten(), (0, level.numel() % 2))
        meta = [flat.view(torch.float16), low16[0], step16[0]]
        return x - self._anchors(meta, x.shape[0], x.shape[1]), meta

    def inverse(self, y: Tensor, meta: Sequence[Tensor]) -> Tensor:
        """Anchors added again."""
        return y + self._anchors(meta, y.shape[0], y.shape[1])

    def _anchors(self, meta: Sequence[Tensor], tokens: int, heads: int) -> Tensor:
        packed, low, step = meta
        count = -(-tokens // ANCHOR_GROUP)
        level = packed.contiguous().view(torch.uint8)[: count * heads * self.dim].view(count, heads, self.dim)
        anchors = level.float() * step.float() + low.float()
        return anchors.repeat_interleave(ANCHOR_GROUP, 0)[:tokens]

    def meta_shapes(self, tokens: int, heads: int) -> list[tuple[int, ...]]:
        """Anchors' levels, lowest values, steps."""
        count = -(-tokens // ANCHOR_GROUP) * heads * self.dim
        return [((count + 1) // 2,), (heads, self.dim), (heads, self.dim)]

    def bound(self, bound: Tensor, meta: Sequence[Tensor]) -> Tensor:  # noqa: ARG002
        """The same."""
        return bound


class AffineTransform:
    """Each channel's mean taken away and its deviation divided out."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Standardised numbers; meta is mean and deviation of each channel."""
        mean = x.mean(0).half()
        deviation = x.std(0, correction=0).clamp(min=1e-4).half()
        if not bool(mean.isfinite().all() and deviation.isfinite().all()):
            raise NotRepresentable("means or deviations are not finite, or too large for 16 bits")
        return (x - mean.float()) / deviation.float(), [mean, deviation]

    def inverse(self, y: Tensor, meta: Sequence[Tensor]) -> Tensor:
        """Deviation and mean put back."""
        mean, deviation = meta
        return y * deviation.float() + mean.float()

    def meta_shapes(self, tokens: int, heads: int) -> list[tuple[int, ...]]:  # noqa: ARG002
        """Mean and deviation."""
        return [(heads, self.dim), (heads, self.dim)]

    def bound(self, bound: Tensor, meta: Sequence[Tensor]) -> Tensor:
        """Times the deviation."""
        return bound * meta[1].float()


class HadamardTransform:
    r"""A rotation that spreads outliers over a head's channels.

    .. math:: x' = (x \odot s)\, H / \sqrt{P}, \qquad x = (x' H^T / \sqrt{P}) \odot s

    Signs follow from (seed, layer, kind, head), so that both ends derive them; other head sizes are padded with zeros.

    Args:
        dim: channels a head.
        seed: of the signs.
        kind: 0 for keys, 1 for values.
        places: numbers of each head's layer and of the head in the model.
    """

    def __init__(self, dim: int, seed: int, kind: int, places: Sequence[tuple[int, int]]) -> None:
        self.dim, self.padded = dim, 1 << (dim - 1).bit_length()
        self.matrix = hadamard(self.padded)
        self.sign = torch.stack([signs(seed, layer, kind, head, self.padded) for layer, head in places])

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Rotated heads."""
        wide = torch.nn.functional.pad(x, (0, self.padded - self.dim)) if self.padded > self.dim else x
        return (wide * self.sign.to(x.device)) @ self.matrix.to(x.device), []

    def inverse(self, y: Tensor, meta: Sequence[Tensor]) -> Tensor:  # noqa: ARG002
        """Rotated back."""
        return ((y @ self.matrix.T.to(y.device)) * self.sign.to(y.device))[..., : self.dim]

    def meta_shapes(self, tokens: int, heads: int) -> list[tuple[int, ...]]:  # noqa: ARG002
        """None."""
        return []

    def bound(self, bound: Tensor, meta: Sequence[Tensor]) -> Tensor:  # noqa: ARG002
        """A rotation keeps a head's length, so no channel's error is larger than the length of the head's."""
        length = bound.expand(*bound.shape[:-1], self.padded).pow(2).sum(-1, keepdim=True).sqrt()
        return length.expand(*length.shape[:-1], self.dim)


@functools.lru_cache(maxsize=16)
def hadamard(size: int) -> Tensor:
    """Sylvester's matrix divided by the root of its size, [size, size]; its own inverse."""
    if size < 1 or size & (size - 1):
        raise BadInput(f"a Hadamard matrix has a power of two of rows; got {size}")
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


@functools.lru_cache(maxsize=65536)
def signs(seed: int, layer: int, kind: int, head: int, size: int) -> Tensor:
    """Signs of one head, [size]; from a hash, so that no library's generator is part of the wire format."""
    digest = hashlib.shake_128(f"kv signs {seed} {layer} {kind} {head}".encode()).digest(-(-size // 8))
    bits = np.unpackbits(np.frombuffer(digest, np.uint8))[:size]
    return torch.from_numpy(1.0 - 2.0 * bits.astype(np.float32))


def make_transform(name: str, dim: int, seed: int, kind: int, places: Sequence[tuple[int, int]]) -> KVTransform:
    """The transform of that name for some heads, given as numbers of layer and head."""
    if name == "hadamard":
        return HadamardTransform(dim, seed, kind, places)
    if name == "delta":
        return DeltaTransform(dim)
    return AffineTransform(dim) if name == "affine" else NoTransform()
