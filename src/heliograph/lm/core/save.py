"""Models to disk: a Hugging Face folder that :func:`load_model`, ``transformers`` and ``heliograph serve`` all read."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from heliograph.errors import BadInput, MissingExtra
from heliograph.lm.core.config import DecoderConfig
from heliograph.lm.core.load import HUGGING_FACE_NAMES, LanguageModel, parameter_rows

__all__ = ["save_model"]

CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def save_model(model: LanguageModel, folder: Path | str) -> Path:
    """Writes ``config.json``, ``model.safetensors`` and ``tokenizer.json``; the folder appears whole or not at all.

    Args:
        model: of the shape of Llama, Qwen2 or Qwen3, with half-split rotary channels.
        folder: must not exist.

    Returns:
        The folder.

    Raises:
        BadInput: it exists, it cannot be written, or the model is of another shape.
    """
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise MissingExtra("safetensors", "lm") from error
    folder = Path(folder)
    config = model.config
    if config.architecture not in CLASSES or config.rope.interleaved or config.rope.dim != config.head_dim:
        raise BadInput(f"a folder of {config.architecture} with rope {config.rope} is not written; Llama and Qwen are")
    if folder.exists():
        raise BadInput(f"{folder} exists; name a folder that does not")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror}") from None
    try:
        (part / "config.json").write_text(json.dumps(_settings(config, model.name), indent=2) + "\n", encoding="utf-8")
        save_file(_tensors(model), part / "model.safetensors", metadata={"format": "pt"})
        model.tokenizer.save(part)
        part.rename(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise BadInput(f"{folder} cannot be written: {error.strerror}") from None
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return folder


def _tensors(model: LanguageModel) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for own, value in model.decoder.state_dict().items():
        if own == "embedding.weight":
            found["model.embed_tokens.weight"] = value.contiguous()
        elif own == "norm.weight":
            found["model.norm.weight"] = value.contiguous()
        elif own == "head.weight":
            if not model.config.tied:
                found["lm_head.weight"] = value.contiguous()
        else:
            _, number, name, kind = own.split(".")
            rows = parameter_rows(model.config, own, tuple(value.shape))
            for theirs, piece in zip(HUGGING_FACE_NAMES[name], value.split(list(rows)), strict=True):
                found[f"model.layers.{number}.{theirs}.{kind}"] = piece.contiguous()
    return found


def _settings(config: DecoderConfig, name: str) -> dict[str, Any]:
    scaling = (
        {} if config.rope.scaling == 1 else {"rope_scaling": {"rope_type": "linear", "factor": config.rope.scaling}}
    )
    return scaling | {
        "architectures": [CLASSES[config.architecture]],
        "model_type": config.architecture,
        "_name_or_path": name,
        "vocab_size": config.vocabulary,
        "num_hidden_layers": config.layers,
        "hidden_size": config.hidden,
        "intermediate_size": config.feed_forward,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.base,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
    }
