"""One way to compress keys and values: transform, quantiser and codec with their settings; known methods are points.

Shapes: L layers, G key and value heads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from heliograph.errors import BadInput

__all__ = ["METHODS", "CompressionPoint", "level_table"]

CHOICES = {
    "transform": ("none", "delta", "affine", "hadamard"),
    "quantizer": ("none", "minmax", "absmax"),
    "split": ("head", "layer", "cachegen"),
    "key_axis": ("channel", "token"),
    "value_axis": ("channel", "token"),
    "codec": ("none", "bitpack", "huffman", "zlib", "zstd"),
}
LEVELS = ("key_high", "key_low", "value_high", "value_low")


@dataclass(frozen=True)
class CompressionPoint:
    """One point of a :class:`~heliograph.serving.kv_serve.CompressionSpace`.

    >>> CompressionPoint(transform="hadamard", key_high=6, key_low=6, value_high=6, value_low=4).name
    'hadamard minmax K6/6:channel V6/4:token huffman'

    Attributes:
        transform: what is done to the numbers before they are quantised.
        quantizer: ``none`` keeps every bit; then there are no levels and no transform.
        key_high, key_low, value_high, value_low: levels, 2 to 256, of heads that need precision and of the others.
        hybrid_ratio: share of the heads (or layers) that get the low levels.
        split: whether heads are told apart by score, layers by depth (the last ones low), or layers in three groups.
        key_axis, value_axis: ``channel`` takes statistics over tokens, ``token`` over the channels of one token.
        group: tokens (of a channel) or channels (of a token) that share statistics; 0 for all.
        codec: what packs the levels.
        keep_recent: newest tokens that stay as they are.
        min_compress_size: bytes; what is smaller goes out as it is.
        seed: of the signs of ``hadamard``.
    """

    transform: str = "none"
    quantizer: str = "minmax"
    key_high: int = 16
    key_low: int = 16
    value_high: int = 16
    value_low: int = 16
    hybrid_ratio: float = 0.0
    split: str = "head"
    key_axis: str = "channel"
    value_axis: str = "token"
    group: int = 0
    codec: str = "huffman"
    keep_recent: int = 0
    min_compress_size: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses settings that do not exist or do not go together."""
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise BadInput(f"{name} is one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        for name in LEVELS:
            value = getattr(self, name)
            if type(value) is not int or not (4 if self.quantizer == "absmax" else 2) <= value <= 256:
                raise BadInput(f"{name} is a number of levels from 2 to 256, for absmax from 4; got {value!r}")
        for name in ("group", "keep_recent", "min_compress_size", "seed"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise BadInput(f"{name} is a whole number of 0 or more; got {value!r}")
        ratio = self.hybrid_ratio
        if not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
            raise BadInput(f"hybrid_ratio is a share from 0 to 1; got {ratio!r}")
        if self.key_low > self.key_high or self.value_low > self.value_high:
            raise BadInput("low levels are at most the high ones")
        if self.quantizer == "none" and self.transform != "none":
            raise BadInput("a transform without a quantiser would round without saving anything; use transform='none'")

    @property
    def lossless(self) -> bool:
        """Whether every bit comes back."""
        return self.quantizer == "none"

    @property
    def name(self) -> str:
        """Settings in a row; those that say nothing are left out."""
        if self.lossless:
            return f"lossless {self.codec}" if self.codec != "none" else "none"
        parts = [
            self.transform,
            self.quantizer,
            f"K{self.key_high}/{self.key_low}:{self.key_axis}",
            f"V{self.value_high}/{self.value_low}:{self.value_axis}",
            self.codec,
        ]
        if self.hybrid_ratio:
            parts.append(f"{self.split} {self.hybrid_ratio:g}")
        parts += [f"group {self.group}"] * bool(self.group) + [f"recent {self.keep_recent}"] * bool(self.keep_recent)
        return " ".join(parts)

    @property
    def lossy_part(self) -> CompressionPoint:
        """The same without the codec: two points with equal lossy parts give back the same numbers."""
        return replace(self, codec="none")

    def to_json(self) -> dict[str, Any]:
        """A plain object that :meth:`from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CompressionPoint:
        """From :meth:`to_json`.

        Raises:
            BadInput: unknown fields or values.
        """
        if not isinstance(value, Mapping):
            raise BadInput(f"a point is an object; got {type(value).__name__}")
        unknown = sorted(set(value) - {each.name for each in fields(cls)})
        if unknown:
            raise BadInput(f"a point has no setting {unknown[0]!r}")
        return cls(**value)


METHODS: Mapping[str, CompressionPoint] = {
    "none": CompressionPoint(quantizer="none", codec="none"),
    "lossless": CompressionPoint(quantizer="none", codec="huffman"),
    "kivi": CompressionPoint(
        key_high=4, key_low=4, value_high=4, value_low=4, group=32, keep_recent=128, codec="bitpack"
    ),
    "cachegen": CompressionPoint(
        transform="delta", key_high=32, key_low=12, value_high=32, value_low=16, split="cachegen", hybrid_ratio=1.0,
        key_axis="channel", value_axis="channel", codec="huffman",
    ),
    "quarot": CompressionPoint(
        transform="hadamard", key_axis="token", value_axis="token", group=64, codec="bitpack"
    ),
}  # fmt: skip


def level_table(point: CompressionPoint, layers: int, heads: int, scores: Tensor | None = None) -> Tensor:
    """Levels of every head, [2, L, G] of uint16, keys first.

    Args:
        point: settings.
        layers, heads: of the whole model.
        scores: [L, G], larger for heads that look things up; the lowest ``hybrid_ratio`` of all heads get low levels.

    Raises:
        BadInput: heads are to be told apart and there are no scores of that shape.
    """
    table = torch.empty(2, layers, heads, dtype=torch.long)
    table[0], table[1] = point.key_high, point.value_high
    if point.split == "cachegen":
        return _by_depth(point, table)
    low = torch.zeros(layers, heads, dtype=torch.bool)
    if point.split == "layer":
        low[layers - round(point.hybrid_ratio * layers) :] = True
    elif 0 < point.hybrid_ratio < 1:
        if scores is None or tuple(scores.shape) != (layers, heads):
            found = "none" if scores is None else tuple(scores.shape)
            raise BadInput(
                f"scores of {layers} layers and {heads} key and value heads are needed to tell heads apart; "
                f"got {found}; make them with retrieval_scores, or use split='layer'"
            )
        order = scores.flatten().argsort(stable=True)
        low.view(-1)[order[: round(point.hybrid_ratio * low.numel())]] = True
    else:
        low[:] = point.hybrid_ratio >= 1
    table[0][low], table[1][low] = point.key_low, point.value_low
    return table


def _by_depth(point: CompressionPoint, table: Tensor) -> Tensor:
    """Keys in three groups of layers, values in two: the first layers are the most sensitive."""
    layers = table.shape[1]
    middle = round(math.sqrt(point.key_high * point.key_low))
    first, second = round(0.32 * layers), round(0.63 * layers)
    middle = 16 if (point.key_high, point.key_low) == (32, 12) else middle
    table[0, first:second], table[0, second:] = middle, point.key_low
    table[1, min(layers, max(2, round(0.15 * layers))) :] = point.value_low
    return table


@functools.lru_cache(maxsize=8)
def named(name: str) -> CompressionPoint:
    """A method by name.

    Raises:
        BadInput: there is none of this name.
    """
    if name not in METHODS:
        raise BadInput(f"methods by name are {', '.join(METHODS)}; got {name!r}")
    return METHODS[name]


def sliced(table: Tensor, heads: Sequence[int]) -> Tensor:
    """A level table of some heads only: those of one tensor-parallel rank."""
    return table[:, :, list(heads)].contiguous()
