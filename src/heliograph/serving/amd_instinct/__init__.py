"""Flags that follow a model's architecture, and a load benchmark that says whether they do (arXiv:2603.10031).

:class:`ServingAdvisor` reads a model's configuration and a device and returns flags with reasons, a memory plan and a
predicted point of saturation. :class:`LoadBenchmark` measures any OpenAI-compatible server in phases, with repeats,
intervals and status rules; :func:`ablate_flag` compares two settings so that drift cancels.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heliograph.serving.amd_instinct.ablation import AblationResult, ablate_flag
    from heliograph.serving.amd_instinct.advisor import ServingAdvisor, ServingPlan
    from heliograph.serving.amd_instinct.benchmark import BenchmarkReport, LoadBenchmark, LoadPhase, LoadStatus
    from heliograph.serving.amd_instinct.capacity import CapacityModel, EffectiveRates, measure_rates
    from heliograph.serving.amd_instinct.memory import DoesNotFit, MemoryPlan, plan_memory
    from heliograph.serving.amd_instinct.rules import RULES, ServingRule
    from heliograph.serving.amd_instinct.studied import studied_model, studied_models

_HOME = {
    **dict.fromkeys(("AblationResult", "ablate_flag"), "ablation"),
    **dict.fromkeys(("ServingAdvisor", "ServingPlan"), "advisor"),
    **dict.fromkeys(("BenchmarkReport", "LoadBenchmark", "LoadPhase", "LoadStatus"), "benchmark"),
    **dict.fromkeys(("CapacityModel", "EffectiveRates", "measure_rates"), "capacity"),
    **dict.fromkeys(("DoesNotFit", "MemoryPlan", "plan_memory"), "memory"),
    **dict.fromkeys(("RULES", "ServingRule"), "rules"),
    **dict.fromkeys(("studied_model", "studied_models"), "studied"),
}

__all__ = [
    "RULES",
    "AblationResult",
    "BenchmarkReport",
    "CapacityModel",
    "DoesNotFit",
    "EffectiveRates",
    "LoadBenchmark",
    "LoadPhase",
    "LoadStatus",
    "MemoryPlan",
    "ServingAdvisor",
    "ServingPlan",
    "ServingRule",
    "ablate_flag",
    "measure_rates",
    "plan_memory",
    "studied_model",
    "studied_models",
]


def __getattr__(name: str) -> Any:
    """Imports a public name's module at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"heliograph.serving.amd_instinct.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
