"""Which points there are to choose from, and as which numbers a model of them sees them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heliograph.errors import BadInput
from heliograph.serving.kv_serve.point import CompressionPoint

__all__ = ["CompressionSpace"]

CATEGORIES = ("transform", "quantizer", "split", "key_axis", "value_axis", "codec")
NUMBERS = ("key_high", "key_low", "value_high", "value_low", "hybrid_ratio", "group", "keep_recent")


@dataclass(frozen=True)
class CompressionSpace:
    """The product of some settings; what makes no sense or says the same twice is left out.

    >>> len(CompressionSpace(transform=("none", "hadamard"), levels_high=(12, 8), levels_low=(6,), codec=("bitpack",)))
    8

    Attributes:
        transform, quantizer, split, hybrid_ratio, codec, group, keep_recent: see :class:`CompressionPoint`.
        levels_high, levels_low: of keys and of values, each on its own; low ones are at most the high ones.
        axis: pairs of the keys' and the values' axis.
    """

    transform: Sequence[str] = ("none", "delta", "affine", "hadamard")
    quantizer: Sequence[str] = ("minmax",)
    hybrid_ratio: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9)
    levels_high: Sequence[int] = (16, 12, 10, 8, 6)
    levels_low: Sequence[int] = (8, 6, 4, 3)
    axis: Sequence[tuple[str, str]] = (("channel", "token"),)
    codec: Sequence[str] = ("bitpack", "huffman", "zlib", "zstd")
    split: Sequence[str] = ("head",)
    group: Sequence[int] = (0,)
    keep_recent: Sequence[int] = (0,)

    def __post_init__(self) -> None:
        """Refuses a setting without any choice."""
        for name, choices in vars(self).items():
            if isinstance(choices, str) or not len(choices):
                raise BadInput(f"{name} is a list of choices; got {choices!r}")
        if not len(self):
            raise BadInput("no combination of these settings makes sense: all low levels exceed all high ones")

    def __iter__(self) -> Iterator[CompressionPoint]:
        """All points, in a fixed order."""
        seen: set[CompressionPoint] = set()
        pairs = [(high, low) for high in self.levels_high for low in self.levels_low if low <= high]
        for transform, quantizer, ratio, key, value, axis, codec, split, group, recent in itertools.product(
            self.transform,
            self.quantizer,
            self.hybrid_ratio,
            pairs,
            pairs,
            self.axis,
            self.codec,
            self.split,
            self.group,
            self.keep_recent,
        ):
            if ratio in (0, 1):  # one kind of heads only: the other levels say nothing
                key, value = ((key[1 if ratio else 0],) * 2, (value[1 if ratio else 0],) * 2)
            if key[0] == key[1] and value[0] == value[1]:
                ratio = 0.0
            point = CompressionPoint(
                transform=transform,
                quantizer=quantizer,
                key_high=key[0],
                key_low=key[1],
                value_high=value[0],
                value_low=value[1],
                hybrid_ratio=ratio,
                split=split,
                key_axis=axis[0],
                value_axis=axis[1],
                group=group,
                codec=codec,
                keep_recent=recent,
            )
            if point not in seen:
                seen.add(point)
                yield point

    def __len__(self) -> int:
        """How many points."""
        return sum(1 for _ in self)


def embed(points: Sequence[CompressionPoint]) -> NDArray[np.float64]:
    """[N, F]: categories as one-hot columns, numbers between 0 and 1; what is the same for all is left out."""
    columns: list[NDArray[np.float64]] = []
    for name in CATEGORIES:
        values = [getattr(point, name) for point in points]
        kinds = sorted(set(values))
        if len(kinds) > 1:
            columns += [np.array([float(value == kind) for value in values]) for kind in kinds]
    for name in NUMBERS:
        row = np.array([float(getattr(point, name)) for point in points])
        if np.ptp(row) > 0:
            columns.append((row - row.min()) / np.ptp(row))
    return np.stack(columns, 1) if columns else np.zeros((len(points), 1))
