"""A decoder-only transformer: tokens read the past through attention, and nothing else.

It covers the shapes of Llama, SmolLM, Qwen2, Qwen3 and Gemma 3, whose layers see a window or everything in turn.

The model owns no cache and no mask: it is given an ``Attention``, which decides what queries see and where keys and
values are kept. A padded batch with a cache is :class:`CachedAttention`; a paged, ragged batch would be another
implementation of the same protocol, and the model's code does not change.

Shapes: ``...`` leading axes of tokens ([B, T] or ragged [T]), C channels, H heads, G key and value heads, D channels a
head, V tokens of the vocabulary.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from heliograph.errors import BadInput
from heliograph.lm.core.config import DecoderConfig, RopeSpec
from heliograph.lm.core.masks import MaskSpec

__all__ = ["Attention", "CachedAttention", "Decoder", "KVCache", "apply_rope", "fingerprint", "rotate", "rotation"]


class Attention(Protocol):
    """What queries see, and where keys and values go."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
        """Keeps k and v [..., G, D] of a layer and gives what q [..., H, D] hears, [..., H, D].

        Scores are divided by the root of D. ``window`` limits how many positions back a query hears, itself included.
        """
        ...


def apply_rope(x: Tensor, positions: Tensor, spec: RopeSpec) -> Tensor:
    r"""Rotates channel pairs by angles that grow with the position, in float32.

    .. math:: \theta_i = \frac{p}{s}\, b^{-2 i / d}, \qquad
              (a, b)_i \mapsto (a \cos\theta_i - b \sin\theta_i,\; a \sin\theta_i + b \cos\theta_i)

    Args:
        x: [..., heads, D]; the first ``spec.dim`` channels are rotated.
        positions: [...].
        spec: base b, width d, divisor s, and which channels are pairs.
    """
    return rotate(x, rotation(positions, spec), spec)


def rotation(positions: Tensor, spec: RopeSpec) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every pair's angle, [..., 1, dim / 2] each in float32; all layers turn by the same."""
    steps = torch.arange(spec.dim // 2, device=positions.device, dtype=torch.float32)
    angle = positions.float()[..., None, None] / spec.scaling * spec.base ** (-2 * steps / spec.dim)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, turn: tuple[Tensor, Tensor], spec: RopeSpec) -> Tensor:
    """:func:`apply_rope` by angles from :func:`rotation`."""
    cos, sin = turn
    half = spec.dim // 2
    turned = x[..., : spec.dim].float()
    if spec.interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        out = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    else:
        a, b = turned[..., :half], turned[..., half:]
        out = torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    if spec.dim == x.shape[-1]:
        return out.to(x.dtype)
    return torch.cat([out.to(x.dtype), x[..., spec.dim :]], dim=-1)


@dataclass(eq=False)
class KVCache:
    """Keys and values of all layers, [B, T, G, D] each; it grows at the end.

    Attributes:
        fingerprint: of the model that filled it; caches of different models do not mix.
        keys, values: one tensor a layer; none before the first token.
    """

    fingerprint: str = ""
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        """Tokens kept, T."""
        return self.keys[0].shape[1] if self.keys else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(part.numel() * part.element_size() for part in (*self.keys, *self.values))

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds [B, t, G, D] at the end of a layer; gives the layer's whole keys and values."""
        if layer == len(self.keys):
            self.keys.append(k)
            self.values.append(v)
        else:
            self.keys[layer] = torch.cat([self.keys[layer], k], dim=1)
            self.values[layer] = torch.cat([self.values[layer], v], dim=1)
        return self.keys[layer], self.values[layer]

    def slice(self, start: int, stop: int) -> KVCache:
        """The tokens from ``start`` to before ``stop``.

        Raises:
            BadInput: a range that is not within the cache.
        """
        if not 0 <= start <= stop <= len(self):
            raise BadInput(f"a cache of {len(self)} tokens has no range {start} to {stop}")
        return KVCache(self.fingerprint, [k[:, start:stop] for k in self.keys], [v[:, start:stop] for v in self.values])

    @staticmethod
    def concat(parts: Sequence[KVCache]) -> KVCache:
        """Tokens of several caches one after another; their positions are already turned into the keys.

        Raises:
            BadInput: no parts, or caches of different models.
        """
        if not parts or len({part.fingerprint for part in parts}) > 1:
            found = sorted({part.fingerprint for part in parts})
            raise BadInput(f"caches of one model can be joined; got {found or 'none'}")
        filled = [part for part in parts if part.keys]
        layers = range(len(filled[0].keys) if filled else 0)
        return KVCache(
            parts[0].fingerprint,
            [torch.cat([part.keys[layer] for part in filled], dim=1) for layer in layers],
            [torch.cat([part.values[layer] for part in filled], dim=1) for layer in layers],
        )


class CachedAttention:
    """Padded sequences with a growing cache: the plain form that every faster one must equal.

    Args:
        mask: of the queries against all keys kept, the new ones included; None for causal attention without padding.
        cache: where keys and values are kept; None keeps nothing.
    """

    def __init__(self, mask: MaskSpec | None = None, cache: KVCache | None = None) -> None:
        self.cache, self.mask = cache, mask
        self._dense: dict[int | None, Tensor] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
        """q [B, T, H, D]; k, v [B, T, G, D]. A query that sees nothing hears 0."""
        if self.cache is not None:
            k, v = self.cache.append(layer, k, v)
        queries, keys, values = (part.transpose(1, 2) for part in (q, k, v))
        grouped = q.shape[2] != k.shape[2]
        allowed = self._allowed(window)
        if allowed is None:
            past = k.shape[1] - q.shape[1]
            if past == 0 and (window is None or window >= k.shape[1]):
                heard = functional.scaled_dot_product_attention(
                    queries, keys, values, is_causal=True, enable_gqa=grouped
                )
                return heard.transpose(1, 2)
            allowed = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).tril(past)
            if window is not None:
                allowed = allowed.triu(past - window + 1)
        heard = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed, enable_gqa=grouped)
        blind = ~allowed.any(-1, keepdim=True)
        return torch.where(blind, 0.0, heard).transpose(1, 2)

    def _allowed(self, window: int | None) -> Tensor | None:
        """[B, 1, Q, K], made once for each kind of layer; None without a mask."""
        if self.mask is None:
            return None
        if window not in self._dense:
            spec = self.mask
            if window is not None:
                spec = replace(spec, window=window if spec.window is None else min(window, spec.window))
            self._dense[window] = spec.dense()[:, None]
        return self._dense[window]


@functools.cache
def _fused() -> Any:
    """The kernels for CUDA; None where Triton is not installed."""
    try:
        return importlib.import_module("heliograph.lm.core.fused_triton")
    except ModuleNotFoundError:
        return None


class RMSNorm(nn.Module):
    r"""x / sqrt(mean(x^2) + eps) times a weight, computed in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        if x.is_cuda and not torch.is_grad_enabled():  # one kernel, float32 inside
            return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        wide = functional.rms_norm(x.float(), (x.shape[-1],), eps=self.eps)
        return wide.to(x.dtype) * self.weight


class Block(nn.Module):
    """One layer: attention, then a gated feed-forward part, each on a normed input and added to it."""

    def __init__(self, config: DecoderConfig, number: int) -> None:
        super().__init__()
        self.number, self.config, self.window = number, config, config.window_of(number)
        self.rope = config.rope_of(number)
        # attention divides by the root of the head's width; what is meant instead is put into the queries
        self.query_factor = None if config.query_scale is None else config.query_scale * config.head_dim**0.5
        inner, outer = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.attention_norm = RMSNorm(config.hidden, config.norm_eps)
        self.query_key_value = nn.Linear(config.hidden, inner + 2 * outer, bias=config.qkv_bias)
        self.query_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.key_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.out = nn.Linear(inner, config.hidden, bias=False)
        self.feed_forward_norm = RMSNorm(config.hidden, config.norm_eps)
        self.gate_up = nn.Linear(config.hidden, 2 * config.feed_forward, bias=False)
        self.down = nn.Linear(config.feed_forward, config.hidden, bias=False)
        self.attention_post_norm = RMSNorm(config.hidden, config.norm_eps) if config.post_norms else nn.Identity()
        self.feed_forward_post_norm = RMSNorm(config.hidden, config.norm_eps) if config.post_norms else nn.Identity()

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], attention: Attention) -> Tensor:
        """x [..., C]; ``turn`` from :func:`rotation` with this layer's rotary positions."""
        config = self.config
        heads = self.query_key_value(self.attention_norm(x)).unflatten(-1, (-1, config.head_dim))
        q, k, v = heads.split([config.heads, config.kv_heads, config.kv_heads], dim=-2)
        fused = _fused() if x.is_cuda and not torch.is_grad_enabled() else None
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if fused is not None and self.query_norm is None and x.dim() == 2:
            fused.rotate_heads(heads, config.heads + config.kv_heads, turn, self.rope.interleaved)
        else:
            q, k = rotate(q, turn, self.rope), rotate(k, turn, self.rope)
        if self.query_factor is not None:
            q = q * self.query_factor
        if self.window is None:
            heard = attention.attend(self.number, q, k, v)
        else:
            heard = attention.attend(self.number, q, k, v, window=self.window)
        x = x + self.attention_post_norm(self.out(heard.flatten(-2)))
        both = self.gate_up(self.feed_forward_norm(x))
        if fused is not None and config.activation == "silu":
            inner = fused.gated_silu(both)
        else:
            gate, up = both.chunk(2, dim=-1)
            act = functional.silu(gate) if config.activation == "silu" else functional.gelu(gate, approximate="tanh")
            inner = act * up
        return x + self.feed_forward_post_norm(self.down(inner))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """The whole model: embeddings, blocks, a last norm, and logits where they are asked for."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.hidden)
        self.blocks = nn.ModuleList(Block(config, number) for number in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        self.head = nn.Linear(config.hidden, config.vocabulary, bias=False)
        if config.tied:
            self.head.weight = self.embedding.weight

    def forward(self, embeds: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Hidden states after the last norm.

        Args:
            embeds: [..., C], from :meth:`embed` or elsewhere.
            positions: [...], int64.
            attention: what queries see, and where keys and values go.
        """
        x = embeds
        turns = {rope: rotation(positions, rope) for rope in {block.rope for block in self._layers}}
        for block in self._layers:
            x = block(x, turns[block.rope], attention)
        hidden: Tensor = self.norm(x)
        return hidden

    def embed(self, tokens: Tensor) -> Tensor:
        """[...] token numbers to [..., C].

        Raises:
            BadInput: a number outside the vocabulary.
        """
        if tokens.device.type == "cpu" and tokens.numel():
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= self.config.vocabulary:
                raise BadInput(
                    f"token {low if low < 0 else high} is outside the vocabulary of {self.config.vocabulary}"
                )
        embeds: Tensor = self.embedding(tokens)
        if self.config.embed_scale == 1:
            return embeds
        return embeds * torch.tensor(self.config.embed_scale, dtype=embeds.dtype).item()  # rounded as the weights are

    @property
    def _layers(self) -> Sequence[Block]:
        return self.blocks  # type: ignore[return-value]

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., C] to [..., V], in float32."""
        scores: Tensor = self.head(hidden)
        return scores.float()


def fingerprint(model: Decoder) -> str:
    """Tells models apart whose caches must not mix: configuration, number format, and a sample of every weight."""
    digest = hashlib.sha256(repr(sorted(asdict(model.config).items(), key=lambda item: item[0])).encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name}{weight.dtype}".encode())
        digest.update(weight.detach().flatten()[:16].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
