"""Language models: tokens exchange state inside a model; scans and attention that the other families share."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from heliograph.errors import MissingExtra

if TYPE_CHECKING:
    from heliograph.lm.core.generate import Completion, generate, score_tokens
    from heliograph.lm.core.load import LanguageModel, load_model
    from heliograph.lm.core.sampling import SamplingParams
    from heliograph.lm.core.save import save_model
    from heliograph.lm.core.scan import selective_scan, ssd_scan
    from heliograph.lm.core.tokens import Tokenizer, train_tokenizer
    from heliograph.lm.core.train import (
        TrainingPlan,
        TrainingPoint,
        encode_documents,
        new_model,
        small_config,
        text_loss,
        train_model,
    )

__all__ = [
    "Completion",
    "LanguageModel",
    "SamplingParams",
    "Tokenizer",
    "TrainingPlan",
    "TrainingPoint",
    "encode_documents",
    "generate",
    "load_model",
    "new_model",
    "save_model",
    "score_tokens",
    "selective_scan",
    "small_config",
    "ssd_scan",
    "text_loss",
    "train_model",
    "train_tokenizer",
]

_HOME = {
    **dict.fromkeys(("Completion", "generate", "score_tokens"), "heliograph.lm.core.generate"),
    **dict.fromkeys(("LanguageModel", "load_model"), "heliograph.lm.core.load"),
    "SamplingParams": "heliograph.lm.core.sampling",
    "save_model": "heliograph.lm.core.save",
    **dict.fromkeys(("Tokenizer", "train_tokenizer"), "heliograph.lm.core.tokens"),
    **dict.fromkeys(
        ("TrainingPlan", "TrainingPoint", "encode_documents", "new_model", "small_config", "text_loss", "train_model"),
        "heliograph.lm.core.train",
    ),
    **dict.fromkeys(("selective_scan", "ssd_scan"), "heliograph.lm.core.scan"),
}


def __getattr__(name: str) -> Any:
    """Imports a public name's module at its first use, so that importing this package costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(_HOME[name])
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == "torch":
            raise MissingExtra("torch", "lm") from error
        raise
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
