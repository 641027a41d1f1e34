"""Claims on the bus: screened, traced, blocked and rolled back; and how errors cascade (arXiv:2603.04474).

:class:`Governor` is an interceptor of the bus and of the gateway. :class:`LineageGraph` says who derived what from
whom, :func:`fit_cascade` and :class:`CascadeRisk` how fast a false claim spreads in a communication graph.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from heliograph.agents.core.stages import register_stage
from heliograph.errors import MissingExtra

if TYPE_CHECKING:
    from heliograph.agents.core.interceptor import Interceptor
    from heliograph.agents.error_cascade.claims import (
        Atom,
        Claim,
        EveryClaim,
        LMClaims,
        RegexClaims,
        Split,
        StructuredClaims,
        TooManyClaims,
    )
    from heliograph.agents.error_cascade.dynamics import (
        FRAMEWORKS,
        Indicators,
        exact_coverage,
        indicators,
        predict_cascade,
        simulate_cascade,
        topology,
    )
    from heliograph.agents.error_cascade.fit import CascadeFit, fit_cascade
    from heliograph.agents.error_cascade.governor import Correction, Governor
    from heliograph.agents.error_cascade.judges import ExactJudge, JudgeQuality, LMJudge, NoisyJudge, judge_quality
    from heliograph.agents.error_cascade.lineage import LineageGraph, Rollback
    from heliograph.agents.error_cascade.logs import LogMessage, MessageLog, read_log
    from heliograph.agents.error_cascade.options import GovernorOptions, governor_stages
    from heliograph.agents.error_cascade.plots import plot_coverage
    from heliograph.agents.error_cascade.replaying import Replayed, replay, replay_record
    from heliograph.agents.error_cascade.risk import CascadeRisk

_HOME = {
    **dict.fromkeys(
        ("Atom", "Claim", "EveryClaim", "LMClaims", "RegexClaims", "Split", "StructuredClaims", "TooManyClaims"),
        "claims",
    ),
    **dict.fromkeys(
        ("FRAMEWORKS", "Indicators", "exact_coverage", "indicators", "predict_cascade", "simulate_cascade", "topology"),
        "dynamics",
    ),
    **dict.fromkeys(("CascadeFit", "fit_cascade"), "fit"),
    **dict.fromkeys(("Correction", "Governor"), "governor"),
    **dict.fromkeys(("ExactJudge", "JudgeQuality", "LMJudge", "NoisyJudge", "judge_quality"), "judges"),
    **dict.fromkeys(("LineageGraph", "Rollback"), "lineage"),
    **dict.fromkeys(("LogMessage", "MessageLog", "read_log"), "logs"),
    **dict.fromkeys(("GovernorOptions", "governor_stages"), "options"),
    "plot_coverage": "plots",
    **dict.fromkeys(("Replayed", "replay", "replay_record"), "replaying"),
    "CascadeRisk": "risk",
}

__all__ = [
    "FRAMEWORKS",
    "Atom",
    "CascadeFit",
    "CascadeRisk",
    "Claim",
    "Correction",
    "EveryClaim",
    "ExactJudge",
    "Governor",
    "GovernorOptions",
    "Indicators",
    "JudgeQuality",
    "LMClaims",
    "LMJudge",
    "LineageGraph",
    "LogMessage",
    "MessageLog",
    "NoisyJudge",
    "RegexClaims",
    "Replayed",
    "Rollback",
    "Split",
    "StructuredClaims",
    "TooManyClaims",
    "exact_coverage",
    "fit_cascade",
    "governor_stages",
    "indicators",
    "judge_quality",
    "plot_coverage",
    "predict_cascade",
    "read_log",
    "replay",
    "replay_record",
    "simulate_cascade",
    "topology",
]


def _stage(options: Mapping[str, Any]) -> Sequence[Interceptor]:
    from heliograph.agents.error_cascade.options import GovernorOptions, governor_stages

    return governor_stages(GovernorOptions.from_mapping(options))


def _schema() -> dict[str, Any]:
    from heliograph.agents.error_cascade.options import options_schema

    return options_schema()


register_stage("governor", _stage, _schema)


def __getattr__(name: str) -> Any:
    """Imports a public name's module at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"heliograph.agents.error_cascade.{_HOME[name]}")
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in {"httpx2", "mcp", "rfc8785"}:
            raise MissingExtra(package, "agents") from error
        raise
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
