"""The four models of arXiv:2603.10031, as the public facts of their configurations."""

from __future__ import annotations

from pathlib import Path

from heliograph.errors import BadInput
from heliograph.workload.config_reader import read_shape
from heliograph.workload.shape import LlmShape

__all__ = ["studied_model", "studied_models"]

FOLDER = Path(__file__).parent / "models"


def studied_models() -> tuple[str, ...]:
    """Names that :func:`studied_model` takes."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def studied_model(name: str) -> LlmShape:
    """The shape of ``deepseek_v32``, ``kimi_k25``, ``llama31_405b`` or ``qwen3_vl_235b``.

    Raises:
        BadInput: another name.
    """
    if name not in studied_models():
        raise BadInput(f"no model of the study is called {name!r}; known: {', '.join(studied_models())}")
    return read_shape(FOLDER / f"{name}.json")
