"""Which heads go through transform and quantiser together; both ends go through the same parts in the same order.

Heads of several layers that have the same number of levels are one part while they are few numbers, since a call costs
as much as some thousand numbers do. Statistics stay those of one layer.

Shapes: B layers of a part, T tokens, n heads of a layer, D channels, P channels after padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heliograph.serving.kv_serve.frame import KVLayout
from heliograph.serving.kv_serve.point import CompressionPoint
from heliograph.serving.kv_serve.quantizers import KVQuantizer, make_quantizer
from heliograph.serving.kv_serve.transforms import KVTransform, make_transform

__all__ = ["Part", "parts_of"]

MOST_NUMBERS = 2**17


@dataclass(frozen=True)
class Part:
    """Heads with the same number of levels.

    Attributes:
        kind: 0 keys, 1 values.
        base: levels.
        places: layers of the frame, and numbers of the heads within this rank; as many heads in each layer.
        tokens: of the frame that are quantised.
        channels: P.
        transform, quantizer: of these heads.
        by_token: whether statistics are over the heads of a token, which keeps layers apart as if they were tokens.
    """

    kind: int
    base: int
    places: tuple[tuple[int, tuple[int, ...]], ...]
    tokens: int
    channels: int
    transform: KVTransform
    quantizer: KVQuantizer
    by_token: bool

    @property
    def heads(self) -> int:
        """Of all layers, B n."""
        return len(self.places) * len(self.places[0][1])

    @property
    def shape(self) -> tuple[int, int, int]:
        """What the quantiser sees: [T, B n, P], or [B T, n, P] by token."""
        if self.by_token:
            return len(self.places) * self.tokens, len(self.places[0][1]), self.channels
        return self.tokens, self.heads, self.channels

    def gather(self, kv: Tensor) -> Tensor:
        """[L, 2, T, G, D] to [T, B n, D] in float32."""
        whole = kv.shape[3] == len(self.places[0][1])
        rows = [
            kv[layer, self.kind, : self.tokens] if whole else kv[layer, self.kind, : self.tokens, list(heads)]
            for layer, heads in self.places
        ]
        return (rows[0] if len(rows) == 1 else torch.cat(rows, 1)).float()

    def scatter(self, x: Tensor, kv: Tensor) -> None:
        """[T, B n, D] back into [L, 2, T, G, D]."""
        each = len(self.places[0][1])
        for number, (layer, heads) in enumerate(self.places):
            own, target = x[:, number * each : (number + 1) * each], kv[layer, self.kind, : self.tokens]
            if each == kv.shape[3]:
                target.copy_(own)
            else:
                target[:, list(heads)] = own.to(kv.dtype)

    def fold(self, y: Tensor) -> Tensor:
        """[T, B n, P] as the quantiser sees it."""
        if not self.by_token or len(self.places) == 1:
            return y
        return y.view(self.tokens, len(self.places), -1, y.shape[2]).transpose(0, 1).reshape(self.shape)

    def unfold(self, y: Tensor) -> Tensor:
        """Back to [T, B n, P]."""
        if not self.by_token or len(self.places) == 1:
            return y
        apart = y.reshape(len(self.places), self.tokens, -1, y.shape[2])
        return apart.transpose(0, 1).reshape(self.tokens, self.heads, y.shape[2])

    def probed(self, layout: KVLayout) -> int | None:
        """Where in [T, B n, D] the head stands that is sent along uncompressed; None where it is in another part."""
        for number, (layer, heads) in enumerate(self.places):
            if self.kind == 1 and layer == layout.layers // 2 and layout.kv_heads - 1 in heads:
                return number * len(heads) + heads.index(layout.kv_heads - 1)
        return None


def parts_of(
    table: Tensor, point: CompressionPoint, layout: KVLayout, first_layer: int, heads: Sequence[int]
) -> Iterator[Part]:
    """The parts of a frame, in order.

    Args:
        table: levels [2, L, G].
        point: settings.
        layout: of the frame.
        first_layer: number of the frame's first layer in the model.
        heads: numbers of this rank's heads in the model.
    """
    tokens = layout.tokens - point.keep_recent
    if tokens < 1:
        return
    channels = 1 << (layout.head_dim - 1).bit_length() if point.transform == "hadamard" else layout.head_dim
    groups: dict[tuple[int, int, int], list[tuple[int, tuple[int, ...]]]] = {}
    plain = table.tolist()
    for layer in range(layout.layers):
        for kind in (0, 1):
            row = plain[kind][layer]
            for base in set(row):
                own = tuple(head for head, levels in enumerate(row) if levels == base)
                groups.setdefault((kind, base, len(own)), []).append((layer, own))
    for (kind, base, each), places in sorted(groups.items()):
        axis = point.value_axis if kind else point.key_axis
        step = max(1, MOST_NUMBERS // (tokens * each * channels))
        for start in range(0, len(places), step):
            chosen = tuple(places[start : start + step])
            named = [(first_layer + layer, heads[head]) for layer, own in chosen for head in own]
            yield Part(
                kind,
                base,
                chosen,
                tokens,
                channels,
                make_transform(point.transform, layout.head_dim, point.seed, kind, named),
                make_quantizer(point.quantizer, axis, point.group),
                axis == "token",
            )
