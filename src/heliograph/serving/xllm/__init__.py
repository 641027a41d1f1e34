"""A service over the serving engine: placement by predicted latency, roles that change, offline work in the gaps.

After the xLLM technical report (arXiv:2510.14686). :class:`SloAwareRouter` places requests on a cluster and changes its
roles; :class:`ColocationPolicy` lets offline work use what online work leaves; :class:`ZeroEvictAdmission` starts only
what never has to be evicted. All of them run on worker processes and in virtual time alike, where not said otherwise.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heliograph.serving.xllm.admission import ZeroEvictAdmission
    from heliograph.serving.xllm.colocation import ColocationPolicy
    from heliograph.serving.xllm.control import control
    from heliograph.serving.xllm.experts import ExpertPlacement, ReplanRule, place_replicas, replicate
    from heliograph.serving.xllm.kv_index import CacheAwareRouter, GlobalKVIndex, Heartbeat, Tier, cache_aware_score
    from heliograph.serving.xllm.pages import OutOfPages, PageAccount, PagePool
    from heliograph.serving.xllm.predictor import ProfilePoint, TimePredictor
    from heliograph.serving.xllm.recovery import Recovery, fetch_or_recompute
    from heliograph.serving.xllm.routing import SloAwareRouter

_HOME = {
    "ZeroEvictAdmission": "admission",
    "ColocationPolicy": "colocation",
    "control": "control",
    **dict.fromkeys(("ExpertPlacement", "ReplanRule", "place_replicas", "replicate"), "experts"),
    **dict.fromkeys(("CacheAwareRouter", "GlobalKVIndex", "Heartbeat", "Tier", "cache_aware_score"), "kv_index"),
    **dict.fromkeys(("OutOfPages", "PageAccount", "PagePool"), "pages"),
    **dict.fromkeys(("ProfilePoint", "TimePredictor"), "predictor"),
    **dict.fromkeys(("Recovery", "fetch_or_recompute"), "recovery"),
    "SloAwareRouter": "routing",
}

__all__ = [
    "CacheAwareRouter",
    "ColocationPolicy",
    "ExpertPlacement",
    "GlobalKVIndex",
    "Heartbeat",
    "OutOfPages",
    "PageAccount",
    "PagePool",
    "ProfilePoint",
    "Recovery",
    "ReplanRule",
    "SloAwareRouter",
    "Tier",
    "TimePredictor",
    "ZeroEvictAdmission",
    "cache_aware_score",
    "control",
    "fetch_or_recompute",
    "place_replicas",
    "replicate",
]


def __getattr__(name: str) -> Any:
    """Imports a public name's module at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"heliograph.serving.xllm.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
