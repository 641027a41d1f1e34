"""Reads the shape of a model from a Hugging Face ``config.json``, field by field, and says what it could not read.

A model type that is not known is read from its field names and marked; nothing is taken for grouped-query attention
silently. Field names are those of the public model configurations.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from heliograph.errors import BadInput
from heliograph.workload.shape import AttentionKind, AttentionShape, LayerShape, LlmShape, MoeShape, WeightFormat

__all__ = ["KNOWN_TYPES", "read_shape"]

GATED_TYPES = frozenset(
    """
    afmoe apertus arcee cohere cohere2 dbrx deepseek_v2 deepseek_v3 deepseek_v32 ernie4_5 ernie4_5_moe exaone4 gemma
    gemma2 gemma3 gemma3_text glm glm4 glm4_moe gpt_oss granite granitemoe helium hunyuan_v1_dense internlm3 kimi_k2
    kimi_k25 kimi_linear llama llama4 llama4_text mimo mimo_v2_flash minicpm3 minimax_m2 ministral ministral3 mistral
    mistral3 mixtral olmo olmo2 olmo3 olmoe phi3 phimoe qwen2 qwen2_5_vl qwen2_5_vl_text qwen2_moe qwen2_vl
    qwen2_vl_text qwen3 qwen3_moe qwen3_next qwen3_vl qwen3_vl_moe qwen3_vl_moe_text qwen3_vl_text seed_oss smollm3
    stablelm
    """.split()  # noqa: SIM905
)
PLAIN_TYPES = frozenset("bloom falcon gpt2 gpt_bigcode gpt_neox gptj nemotron opt phi starcoder2".split())  # noqa: SIM905
TIED_TYPES = frozenset("bloom cohere cohere2 falcon gemma gemma2 gemma3 gemma3_text gpt2 opt".split())  # noqa: SIM905
KNOWN_TYPES = GATED_TYPES | PLAIN_TYPES

NESTED = ("text_config", "llm_config", "language_config")
NAMES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "vocab_size": ("vocab_size",),
}
BITS = {"bfloat16": 16.0, "float16": 16.0, "half": 16.0, "float32": 32.0, "float": 32.0, "float8_e4m3fn": 8.0}
SPARSE_PERIOD = {"gemma3": 6, "gemma3_text": 6, "cohere2": 4, "gemma2": 2, "gpt_oss": 2}


def read_shape(config: Path | str | Mapping[str, Any]) -> LlmShape:
    """The shape of a model, from its ``config.json``.

    Args:
        config: the file, the folder that holds it, or its fields.

    Raises:
        BadInput: unreadable, no decoder-only model, or a needed field is missing or contradicts another.
    """
    outer = config if isinstance(config, Mapping) else _load(Path(config))
    if outer.get("is_encoder_decoder"):
        raise BadInput(f"{outer.get('model_type')} is an encoder-decoder model; only decoders are described here")
    inner = next((outer[key] for key in NESTED if isinstance(outer.get(key), Mapping)), outer)
    return _Reader(outer, inner).shape()


def _load(path: Path) -> Mapping[str, Any]:
    path = path / "config.json" if path.is_dir() else path
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}; give a Hugging Face config.json or its folder") from None
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} is not JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise BadInput(f"{path} holds {type(loaded).__name__}; a config.json is one object")
    return loaded


class _Reader:
    """One configuration, and what was found unclear in it."""

    def __init__(self, outer: Mapping[str, Any], inner: Mapping[str, Any]) -> None:
        self.outer, self.fields = outer, inner
        self.type = str(inner.get("model_type") or outer.get("model_type") or "unknown")
        self.unknowns: list[str] = []
        if self.type not in KNOWN_TYPES:
            self.unknowns.append(
                f"attention and feed-forward of model_type {self.type!r}, which is not known here, are read from field "
                "names"
            )
        self.layers = self.need("num_hidden_layers")
        self.heads = self.need("num_attention_heads")
        self.hidden = self.need("hidden_size")

    def shape(self) -> LlmShape:
        layers = tuple(
            LayerShape(attention, 0 if moe else self.feed_forward(), moe)
            for attention, moe in zip(self.attentions(), self.experts(), strict=True)
        )
        tied = self.fields.get("tie_word_embeddings", self.outer.get("tie_word_embeddings"))
        if tied is None:
            tied = self.type in TIED_TYPES
        vision = self.outer.get("vision_config") or self.outer.get("visual")
        return LlmShape(
            name=str(self.outer.get("model_type") or self.type),
            hidden=self.hidden,
            vocabulary=self.need("vocab_size"),
            context=self.number("max_position_embeddings", "n_positions", "n_ctx", "seq_length", default=2048),
            layers=layers,
            tied=bool(tied),
            gated=self.type not in PLAIN_TYPES,
            weights=self.weights(),
            vision=isinstance(vision, Mapping),
            vision_parameters=_vision_parameters(vision) if isinstance(vision, Mapping) else 0,
            unknowns=tuple(dict.fromkeys(self.unknowns)),
        )

    def need(self, name: str) -> int:
        value = self.number(*NAMES[name], default=0)
        if value < 1:
            raise BadInput(f"config.json of {self.type} lacks {name} (looked for {', '.join(NAMES[name])})")
        return value

    def number(self, *names: str, default: int) -> int:
        for name in names:
            value = self.fields.get(name)
            if value is None or value == []:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
                raise BadInput(f"config.json: {name} is {value!r}; a whole number of 0 or more is expected")
            return int(value)
        return default

    # attention

    def attentions(self) -> list[AttentionShape]:
        kinds = self.layer_kinds()
        window = self.window()
        full = self.full_attention()
        rows = []
        for kind in kinds:
            if kind == "linear":
                rows.append(self.linear_attention())
            elif kind == "window" and full.kind != "mla":
                rows.append(self.full_attention(window or self.unclear_window(), sliding=True))
            else:
                rows.append(full)
        return rows

    def unclear_window(self) -> int:
        raise BadInput(f"config.json of {self.type} has sliding layers but no sliding_window")

    def window(self) -> int | None:
        if self.fields.get("use_sliding_window") is False:
            return None
        if self.type in ("llama4", "llama4_text"):
            return self.number("attention_chunk_size", default=8192)
        value = self.number("sliding_window", "sliding_window_size", "window_size", default=0)
        return value or None

    def layer_kinds(self) -> list[str]:
        """One of "full", "window" and "linear" a layer."""
        listed = self.fields.get("layer_types")
        if isinstance(listed, list):
            if len(listed) != self.layers:
                raise BadInput(f"config.json: layer_types has {len(listed)} entries for {self.layers} layers")
            return [self.named_kind(str(name)) for name in listed]
        if isinstance(pattern := self.fields.get("hybrid_layer_pattern"), list):
            return ["window" if flag else "full" for flag in pattern][: self.layers]
        if isinstance(linear := self.fields.get("linear_attn_config"), Mapping):
            full = set(linear.get("full_attn_layers") or [])  # counted from 1
            return ["full" if layer + 1 in full else "linear" for layer in range(self.layers)]
        if self.type == "qwen3_next" or self.fields.get("full_attention_interval"):
            return self.every(self.number("full_attention_interval", default=4), "linear")
        if self.type in ("llama4", "llama4_text"):
            return self.every(self.number("no_rope_layer_interval", default=4), "window")
        if self.window() is None:
            return ["full"] * self.layers
        period = self.number("sliding_window_pattern", default=SPARSE_PERIOD.get(self.type, 0))
        if self.type == "mimo_v2_flash":
            return ["full" if i == 0 or (i + 1) % 6 == 0 else "window" for i in range(self.layers)]
        if period:
            return self.every(period, "window")
        if self.type in ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe"):
            if not self.fields.get("use_sliding_window"):
                return ["full"] * self.layers
            first = self.number("max_window_layers", default=0)
            return ["window" if layer >= first else "full" for layer in range(self.layers)]
        if self.type not in KNOWN_TYPES:
            self.unknowns.append("which layers use the sliding window is not stated; all are taken to")
        return ["window"] * self.layers

    def every(self, period: int, other: str) -> list[str]:
        """Full attention in each ``period``-th layer."""
        return ["full" if (layer + 1) % max(1, period) == 0 else other for layer in range(self.layers)]

    def named_kind(self, name: str) -> str:
        if name in ("sliding_attention", "chunked_attention"):
            return "window"
        if name in ("full_attention", "attention", "indexed_attention"):
            return "full"
        if name != "linear_attention":
            self.unknowns.append(f"attention of layer type {name!r} is not known; it is sized as a full layer")
            return "full"
        return "linear"

    def full_attention(self, window: int | None = None, *, sliding: bool = False) -> AttentionShape:
        if latent := self.number("kv_lora_rank", default=0):
            return self.latent_attention(latent)
        prefix = "swa_" if sliding and self.fields.get("swa_num_key_value_heads") else ""
        heads = self.number(f"{prefix}num_attention_heads", default=self.heads) if prefix else self.heads
        names = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
        grouped = self.number("swa_num_key_value_heads", default=0) if prefix else self.number(*names, default=0)
        if self.fields.get("multi_query") and not self.fields.get("new_decoder_architecture"):
            grouped = 1
        grouped = grouped or heads
        if heads % grouped:
            raise BadInput(f"config.json: {grouped} key heads do not divide {heads} heads")
        head_dim = self.number(f"{prefix}head_dim", "head_dim", default=0) or self.hidden // heads
        value_dim = self.number(f"{prefix}v_head_dim", "v_head_dim", default=0) or head_dim
        kind: AttentionKind = "mha" if grouped == heads else "mqa" if grouped == 1 else "gqa"
        gated = self.type == "qwen3_next" or bool(self.fields.get("attn_output_gate"))
        return AttentionShape(kind, heads, grouped, head_dim, value_dim, window, gated=gated)

    def latent_attention(self, rank: int) -> AttentionShape:
        plain = self.number("qk_nope_head_dim", default=0)
        if not plain:
            raise BadInput(f"config.json of {self.type} has kv_lora_rank but no qk_nope_head_dim")
        return AttentionShape(
            "mla",
            self.heads,
            self.heads,
            plain,
            self.number("v_head_dim", default=0) or self.hidden // self.heads,
            kv_lora_rank=rank,
            rope_dim=self.number("qk_rope_head_dim", default=0),
            q_lora_rank=self.number("q_lora_rank", default=0),
            index_heads=self.number("index_n_heads", default=0),
            index_dim=self.number("index_head_dim", default=0),
            index_top_k=self.number("index_topk", default=0),
        )

    def linear_attention(self) -> AttentionShape:
        nested = self.fields.get("linear_attn_config")
        if isinstance(nested, Mapping) or self.fields.get("linear_num_heads"):
            source = nested if isinstance(nested, Mapping) else {}
            heads = int(source.get("num_heads") or self.number("linear_num_heads", default=self.heads))
            size = int(source.get("head_dim") or self.number("linear_head_dim", default=128))
            width = int(source.get("short_conv_kernel_size") or self.number("linear_conv_kernel_dim", default=4))
            text = "gates of linear layers are sized as one full matrix each"
            if text not in self.unknowns:
                self.unknowns.append(text)
            return AttentionShape("linear", heads, heads, size, size, convolution=width, gated=True)
        keys = self.number("linear_num_key_heads", default=0)
        if not keys:
            raise BadInput(f"config.json of {self.type} has linear layers but not their sizes (linear_num_key_heads)")
        return AttentionShape(
            "linear",
            self.number("linear_num_value_heads", default=keys),
            keys,
            self.number("linear_key_head_dim", default=128),
            self.number("linear_value_head_dim", default=128),
            convolution=self.number("linear_conv_kernel_dim", default=4),
            gated=True,
        )

    # feed-forward

    def feed_forward(self) -> int:
        names = ("intermediate_size_mlp",) if self.type.startswith("llama4") else ()
        size = self.number(*names, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", default=0)
        if not size and self.type not in ("gpt2", "falcon", "bloom"):  # whose null means four times
            self.unknowns.append(
                "the inner size of the feed-forward is not stated; four times the hidden size is taken"
            )
        return size or 4 * self.hidden

    def experts(self) -> list[MoeShape | None]:
        count = self.number(
            "n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts", "num_routed_experts", default=0
        )
        if count < 2:
            return [None] * self.layers
        top_k = self.number("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_top_k", default=0)
        if not top_k:
            raise BadInput(f"config.json of {self.type} has {count} experts but no num_experts_per_tok")
        hidden = self.number("moe_intermediate_size", "expert_intermediate_size", "intermediate_size", default=0)
        if not hidden:
            raise BadInput(f"config.json of {self.type} has {count} experts but no moe_intermediate_size")
        shared = self.number("shared_expert_intermediate_size", default=0) or hidden * self.number(
            "n_shared_experts", "num_shared_experts", default=1 if self.type.startswith("llama4") else 0
        )
        moe = MoeShape(count, top_k, hidden, shared)
        return [moe if sparse else None for sparse in self.sparse_layers()]

    def sparse_layers(self) -> list[bool]:
        """Which layers have experts."""
        listed = self.fields.get("mlp_layer_types")
        if isinstance(listed, list) and len(listed) == self.layers:
            return [name == "sparse" for name in listed]
        if isinstance(frequency := self.fields.get("moe_layer_freq"), list):
            return [bool(flag) for flag in frequency][: self.layers]
        if isinstance(chosen := self.fields.get("moe_layers"), list) and chosen:
            return [layer in chosen for layer in range(self.layers)]
        if self.type.startswith("llama4"):
            return self.spaced(self.number("interleave_moe_layer_step", default=1), ())
        dense = self.fields.get("mlp_only_layers") or ()
        if self.fields.get("decoder_sparse_step") is not None:
            return self.spaced(self.number("decoder_sparse_step", default=1), dense)
        first = self.number("first_k_dense_replace", default=0)
        step = max(1, self.number("moe_layer_freq", "moe_layer_interval", default=1))
        return [layer >= first and layer % step == 0 and layer not in dense for layer in range(self.layers)]

    def spaced(self, step: int, dense: Iterable[int]) -> list[bool]:
        return [step > 0 and (layer + 1) % step == 0 and layer not in set(dense) for layer in range(self.layers)]

    # storage

    def weights(self) -> WeightFormat:
        stated = self.fields.get("torch_dtype") or self.fields.get("dtype")
        stated = stated or self.outer.get("torch_dtype") or self.outer.get("dtype")
        plain = BITS.get(str(stated).removeprefix("torch."), 0.0)
        if not plain:
            plain = 16.0
            self.unknowns.append("the type of the weights is not stated; 16 bits are taken")
        how = self.fields.get("quantization_config") or self.outer.get("quantization_config")
        if not isinstance(how, Mapping):
            return WeightFormat(plain, plain)
        method = str(how.get("quant_method") or how.get("quant_algo") or "unknown").lower()
        bits = _quantised_bits(how, method)
        if not bits:
            self.unknowns.append(f"bits of the quantisation {method!r} are not stated; {plain:g} are taken")
        spared = [str(name) for key in ("ignore", "modules_to_not_convert") for name in how.get(key) or ()]
        experts_only = any("self_attn" in name or "attention" in name for name in spared)
        return WeightFormat(bits or plain, plain, method, experts_only)


def _quantised_bits(how: Mapping[str, Any], method: str) -> float:
    groups = how.get("config_groups")
    if isinstance(groups, Mapping):
        for group in groups.values():
            weights = group.get("weights") if isinstance(group, Mapping) else None
            if isinstance(weights, Mapping) and weights.get("num_bits"):
                size = weights.get("group_size") or 0
                return float(weights["num_bits"]) + (16.0 / size if size > 0 else 0.0)
    if method in ("mxfp4", "nvfp4"):
        return 4.25 if method == "mxfp4" else 4.5
    if "fp8" in method or "int8" in method or how.get("load_in_8bit"):
        return 8.0
    if how.get("load_in_4bit"):
        return 4.5
    if isinstance(how.get("bits"), int):
        size = how.get("group_size") or 0
        return float(how["bits"]) + (16.0 / size if isinstance(size, int) and size > 0 else 0.0)
    return 0.0


def _vision_parameters(vision: Mapping[str, Any]) -> int:
    """The tower's matrices, from its depth, width and inner width; 0 where they are not stated."""
    depth = vision.get("depth") or vision.get("num_hidden_layers") or vision.get("vt_num_hidden_layers")
    hidden = vision.get("hidden_size") or vision.get("vt_hidden_size")
    inner = vision.get("intermediate_size") or vision.get("vt_intermediate_size")
    if not all(isinstance(value, int) and value > 0 for value in (depth, hidden, inner)):
        return 0
    return int(depth) * (4 * int(hidden) ** 2 + 2 * int(hidden) * int(inner))  # type: ignore[arg-type]
