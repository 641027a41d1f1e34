"""The shape of a decoder-only language model, from a GGUF header or a Hugging Face ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from heliograph.errors import BadInput

__all__ = ["ARCHITECTURES", "DecoderConfig", "RopeSpec"]

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding.

    Attributes:
        base: of the frequencies, base^(-2 i / dim).
        dim: rotated channels of a head; the rest pass unchanged.
        interleaved: whether channels (2 i, 2 i + 1) are a pair, as in GGUF files of Llama; else (i, i + dim / 2).
        scaling: position divisor of linear scaling; 1 for none.
    """

    base: float
    dim: int
    interleaved: bool = False
    scaling: float = 1.0


@dataclass(frozen=True)
class DecoderConfig:
    """All that decides the shapes and the arithmetic of a decoder.

    Attributes:
        architecture: one of :data:`ARCHITECTURES`.
        vocabulary, layers, hidden, feed_forward: sizes.
        heads, kv_heads, head_dim: of attention; ``kv_heads`` divides ``heads``.
        context: longest sequence it was trained for.
        norm_eps: of RMS norms.
        rope: of positions.
        tied: whether the output matrix is that of the embedding.
        qkv_bias: whether q, k and v have biases (Qwen2); qk_norm: whether q and k are normed a head (Qwen3, Gemma 3).
        post_norms: whether what attention and the feed-forward part add is normed first (Gemma 3).
        activation: of the feed-forward gate; "gelu" is its tanh form.
        embed_scale: of embeddings, where they enter.
        query_scale: by which scores are multiplied; None for head_dim ** -0.5.
        window: how many positions back sliding layers see, the token itself included; None where no layer slides.
        global_every: with a window, layers of number n with (n + 1) divisible by this see everything.
        local_rope: of sliding layers, where it differs.
    """

    architecture: str
    vocabulary: int
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    norm_eps: float
    rope: RopeSpec
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    activation: Literal["silu", "gelu"] = "silu"
    embed_scale: float = 1.0
    query_scale: float | None = None
    window: int | None = None
    global_every: int = 1
    local_rope: RopeSpec | None = None

    def __post_init__(self) -> None:
        """Refuses sizes that do not fit each other."""
        sizes = (self.vocabulary, self.layers, self.hidden, self.feed_forward, self.heads, self.kv_heads, self.context)
        if self.architecture not in ARCHITECTURES:
            raise BadInput(f"architecture {self.architecture!r} is not built; known: {', '.join(ARCHITECTURES)}")
        if min(sizes) < 1 or self.heads % self.kv_heads or self.head_dim < 2 or self.rope.dim % 2:
            raise BadInput(
                f"sizes do not fit: vocabulary, layers, hidden, feed-forward, heads, key heads, context = {sizes}, "
                f"head {self.head_dim}, rotated {self.rope.dim}"
            )
        for rope in (self.rope, self.local_rope or self.rope):
            if rope.dim > self.head_dim or not rope.base > 0 or not rope.scaling > 0:
                raise BadInput(f"rotary settings do not fit heads of {self.head_dim}: {rope}")
        if (self.window is not None and self.window < 1) or self.global_every < 1:
            raise BadInput(
                f"a window and the spacing of global layers are at least 1: {self.window}, {self.global_every}"
            )

    def window_of(self, layer: int) -> int | None:
        """How many positions back a layer sees; None for all."""
        return None if self.window is None or (layer + 1) % self.global_every == 0 else self.window

    def rope_of(self, layer: int) -> RopeSpec:
        """Rotary positions of a layer."""
        return self.rope if self.window_of(layer) is None else self.local_rope or self.rope

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token keeps in all layers, in 16-bit numbers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, tied: bool, vocabulary: int) -> DecoderConfig:
        """From a GGUF header; ``tied`` and ``vocabulary`` follow from the tensors that the file has.

        Raises:
            BadInput: a field is missing, or the architecture is not built.
        """
        name = str(metadata.get("general.architecture"))
        if name not in ARCHITECTURES:
            raise BadInput(f"architecture {name!r} is not built; known: {', '.join(ARCHITECTURES)}")

        def field(key: str, default: Any = None) -> Any:
            value = metadata.get(f"{name}.{key}", default)
            if value is None:
                raise BadInput(f"the GGUF header lacks {name}.{key}")
            return value

        scaling = metadata.get(f"{name}.rope.scaling.type", "none")
        if scaling not in ("none", "linear"):
            raise BadInput(f"rotary scaling {scaling!r} is not built; known: none, linear")
        heads, hidden = int(field("attention.head_count")), int(field("embedding_length"))
        head_dim = int(field("attention.key_length", hidden // max(1, heads)))
        rope = RopeSpec(
            float(field("rope.freq_base", 10_000.0)),
            int(field("rope.dimension_count", head_dim)),
            interleaved=name == "llama",
            scaling=float(field("rope.scaling.factor", 1.0)) if scaling == "linear" else 1.0,
        )
        layers = int(field("block_count"))
        special: dict[str, Any] = {}
        if name == "gemma3":
            # the largest of the family alone divides by the root of its hidden width a head
            query = (hidden / heads if layers == 62 else head_dim) ** -0.5
            local = float(field("rope.freq_base_swa", 10_000.0))
            special = _gemma(hidden, head_dim, query, int(field("attention.sliding_window")), 6, local)
        return cls(
            name,
            vocabulary,
            layers,
            hidden,
            int(field("feed_forward_length")),
            heads,
            int(field("attention.head_count_kv", heads)),
            head_dim,
            int(field("context_length")),
            float(field("attention.layer_norm_rms_epsilon")),
            rope,
            tied,
            qkv_bias=name == "qwen2",
            **{"qk_norm": name == "qwen3", **special},
        )

    @classmethod
    def from_hugging_face(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """From the fields of a ``config.json``.

        Raises:
            BadInput: a field is missing, or the architecture or its rotary scaling is not built.
        """
        name = str(config.get("model_type"))
        if name == "gemma3":
            raise BadInput("gemma3 with images is not built; save its language model alone (model_type gemma3_text)")
        name = "gemma3" if name == "gemma3_text" else name
        if name not in ARCHITECTURES:
            raise BadInput(f"model_type {name!r} is not built; known: {', '.join(ARCHITECTURES)}")
        if config.get("attention_bias") or config.get("mlp_bias"):
            raise BadInput(f"{name} with biases in every linear map is not built")
        if config.get("use_sliding_window"):
            raise BadInput(f"{name} with sliding windows is not built")

        def field(key: str) -> Any:
            if config.get(key) is None:
                raise BadInput(f"config.json lacks {key}")
            return config[key]

        ropes = config.get("rope_parameters") or config.get("rope_scaling") or {}
        rope = ropes.get("full_attention", ropes)
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "linear"):
            raise BadInput(f"rotary scaling {kind!r} is not built; known: default, linear")
        heads, hidden = int(field("num_attention_heads")), int(field("hidden_size"))
        head_dim = int(config.get("head_dim") or hidden // max(1, heads))
        base = float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
        special: dict[str, Any] = {}
        if name == "gemma3":
            if config.get("final_logit_softcapping") or config.get("attn_logit_softcapping"):
                raise BadInput("gemma3 with capped logits is not built")
            if config.get("use_bidirectional_attention"):
                raise BadInput("gemma3 that sees the future is not built")
            query = float(config.get("query_pre_attn_scalar") or head_dim) ** -0.5
            nested = ropes.get("sliding_attention", {})
            local = float(nested.get("rope_theta") or config.get("rope_local_base_freq") or 10_000.0)
            special = _gemma(hidden, head_dim, query, int(field("sliding_window")), _global_every(config), local)
        return cls(
            name,
            int(field("vocab_size")),
            int(field("num_hidden_layers")),
            hidden,
            int(field("intermediate_size")),
            heads,
            int(config.get("num_key_value_heads") or heads),
            head_dim,
            int(config.get("max_position_embeddings") or 2048),
            float(config.get("rms_norm_eps", 1e-6)),
            RopeSpec(base, head_dim, scaling=float(rope.get("factor", 1.0)) if kind == "linear" else 1.0),
            bool(config.get("tie_word_embeddings", name == "gemma3")),
            qkv_bias=name == "qwen2",
            **{"qk_norm": name == "qwen3", **special},
        )


def _gemma(hidden: int, head_dim: int, query: float, window: int, every: int, local: float) -> dict[str, Any]:
    """What Gemma 3 has and the others have not."""
    return {
        "qk_norm": True,
        "post_norms": True,
        "activation": "gelu",
        "embed_scale": hidden**0.5,
        "query_scale": query,
        "window": window,
        "global_every": every,
        "local_rope": RopeSpec(local, head_dim),
    }


def _global_every(config: Mapping[str, Any]) -> int:
    """After how many layers one sees everything, from the list of a ``config.json`` or its older single number."""
    kinds = config.get("layer_types")
    if not kinds:
        return int(config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6)
    every = next((n + 1 for n, kind in enumerate(kinds) if kind == "full_attention"), len(kinds) + 1)
    if any((kind == "full_attention") != ((n + 1) % every == 0) for n, kind in enumerate(kinds)):
        raise BadInput("layer_types that follow no fixed spacing are not built")
    return every
