"""A decoder on a CPU without gradients: weights in the order in which products read them, and few passes over memory.

What :class:`~heliograph.lm.core.decoder.Decoder` computes, up to rounding. The sum that runs through the layers is
float32 here also where weights are bfloat16, so the result is nearer to that of float32 weights.

Shapes as in :mod:`heliograph.lm.core.decoder`, but all tokens of a step on one axis, T.
"""

from __future__ import annotations

import importlib.util
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from heliograph.lm.core.decoder import Attention, Block, Decoder, RMSNorm, rotate, rotation

__all__ = ["PackedDecoder"]

PACKED_FLOAT32 = range(3, 257)
"""Rows at which packed float32 weights are the faster ones (oneDNN against MKL on two cores of a Xeon)."""


class _Product:
    """A linear layer, with a copy of its weight as oneDNN likes it best where that helps."""

    def __init__(self, layer: nn.Linear, copies: bool) -> None:
        self.weight, self.bias = layer.weight.detach(), layer.bias
        self.half = self.weight.dtype == torch.bfloat16
        self._packed = _packed(layer) if copies and _packs(self.weight.dtype) else None

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed is None or not (self.half or len(x) in PACKED_FLOAT32):
            return functional.linear(x, self.weight, self.bias)
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return found


_KNOWN: WeakKeyDictionary[nn.Linear, tuple[tuple[int, int], Tensor]] = WeakKeyDictionary()


def _packed(layer: nn.Linear) -> Tensor:
    """The copy of a layer's weight; all engines of one model share it as long as the weight stays what it is."""
    weight = layer.weight.detach()
    state = weight.data_ptr(), 0 if weight.is_inference() else layer.weight._version
    known = _KNOWN.get(layer)
    if known is None or known[0] != state:
        known = _KNOWN[layer] = state, torch.ops.mkldnn._reorder_linear_weight(weight, 32)
    return known[1]


def _packs(dtype: torch.dtype) -> bool:
    """Whether torch has oneDNN's products for that format here; they are what its own compiler uses, not its public."""
    here: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not here or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class _PackedBlock:
    def __init__(self, block: Block, copies: bool) -> None:
        self.block = block
        self.query_key_value, self.out = _Product(block.query_key_value, copies), _Product(block.out, copies)
        self.gate_up, self.down = _Product(block.gate_up, copies), _Product(block.down, copies)


class PackedDecoder:
    """Hidden states and logits of a decoder, for inference.

    Weights are copied, once a model, so that they take twice the memory; later changes of the decoder's weights are
    not seen.

    Args:
        decoder: on the CPU, in float32 or bfloat16; :meth:`fits` says whether it is.
        copies: False computes with the decoder's own weights, which is slower.
    """

    def __init__(self, decoder: Decoder, *, copies: bool = True) -> None:
        from heliograph.lm.core import fused_cpu

        self._fused = fused_cpu
        self._decoder = decoder
        self._blocks = [_PackedBlock(block, copies) for block in decoder.blocks]  # type: ignore[arg-type]
        self._head = _Product(decoder.head, copies)
        self.embed = decoder.embed

    @staticmethod
    def fits(decoder: Decoder) -> bool:
        """Whether this form can be made of a decoder on this machine; it needs numba."""
        weight = decoder.embedding.weight
        known = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
        return known and importlib.util.find_spec("numba") is not None

    @torch.inference_mode()
    def __call__(self, embeds: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Hidden states after the last norm, [T, C].

        Args:
            embeds: [T, C], from :meth:`embed` or elsewhere.
            positions: [T], int64.
            attention: what queries see, and where keys and values go.
        """
        turns: dict[Any, tuple[Tensor, Tensor]] = {}
        x = embeds.float() if embeds.dtype != torch.float32 else embeds.clone()
        delta: Tensor | None = None
        for packed in self._blocks:
            rope = packed.block.rope
            if rope not in turns:
                turns[rope] = rotation(positions, rope)
            delta = self._feed_forward(packed, x, self._attend(packed, x, delta, turns[rope], attention))
        return self._norm(self._decoder.norm, x, delta)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """[T, C] to [T, V], in float32."""
        return self._head(hidden).float()

    def _attend(
        self,
        packed: _PackedBlock,
        x: Tensor,
        delta: Tensor | None,
        turn: tuple[Tensor, Tensor],
        attention: Attention,
    ) -> Tensor:
        """What attention adds to x + delta; x becomes that sum."""
        block = packed.block
        config = block.config
        heads = packed.query_key_value(self._norm(block.attention_norm, x, delta)).view(len(x), -1, config.head_dim)
        q, k, v = torch.split(heads, [config.heads, config.kv_heads, config.kv_heads], dim=-2)
        if block.query_norm is None or block.key_norm is None:
            self._fused.rotate_heads(heads, config.heads + config.kv_heads, turn, block.rope.interleaved)
        else:
            q, k = rotate(block.query_norm(q), turn, block.rope), rotate(block.key_norm(k), turn, block.rope)
        if block.query_factor is not None:
            q = q * block.query_factor
        limits = {} if block.window is None else {"window": block.window}
        heard = attention.attend(block.number, q, k, v, **limits)
        return block.attention_post_norm(packed.out(heard.flatten(-2)))  # type: ignore[no-any-return]

    def _feed_forward(self, packed: _PackedBlock, x: Tensor, delta: Tensor) -> Tensor:
        """What the feed-forward part adds to x + delta; x becomes that sum."""
        block = packed.block
        both = packed.gate_up(self._norm(block.feed_forward_norm, x, delta))
        if block.config.activation == "silu":
            inner = self._fused.gated_silu(both)
        else:
            gate, up = both.chunk(2, dim=-1)
            inner = functional.gelu(gate, approximate="tanh") * up
        return block.feed_forward_post_norm(packed.down(inner))  # type: ignore[no-any-return]

    def _norm(self, norm: RMSNorm, x: Tensor, delta: Tensor | None) -> Tensor:
        return self._fused.add_and_norm(x, delta, norm.weight.detach(), norm.eps)
