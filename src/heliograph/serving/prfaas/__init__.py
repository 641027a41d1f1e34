"""Prefill-as-a-Service: long prompts are computed in another cluster, and their caches travel here.

arXiv:2604.15039. A throughput model places the threshold and splits the local cluster; a router decides by tokens that
no cache holds and by what is scarce; one pool keeps caches of full, windowed and recurrent layers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from heliograph.errors import MissingExtra

if TYPE_CHECKING:
    from heliograph.serving.prfaas.congestion import AdaptiveThreshold, CongestionMonitor, LinkReport
    from heliograph.serving.prfaas.offload import HybridGenerator, RemoteFailed, RemotePrefill
    from heliograph.serving.prfaas.pool import CacheGroup, HybridKVPool, PrefixHit
    from heliograph.serving.prfaas.prefix_index import GlobalPrefixIndex, prefix_names
    from heliograph.serving.prfaas.profile import OutsideProfile, PrefillProfile, kv_bytes, kv_throughput
    from heliograph.serving.prfaas.profile_file import read_service
    from heliograph.serving.prfaas.remote import RemoteProcess, RemoteServer, RemoteSettings
    from heliograph.serving.prfaas.roles import RoleController
    from heliograph.serving.prfaas.router import (
        ClusterFacts,
        ClusterOffloading,
        ClusterRefused,
        HybridRouter,
        OffloadPlacement,
        OffloadRequest,
        check_clusters,
    )
    from heliograph.serving.prfaas.service_model import EmpiricalLengths, Plan, PrefillServiceModel, case_study
    from heliograph.serving.prfaas.simulate import (
        LeastLoadedSides,
        ServiceReport,
        ServiceSimulation,
        SimPrompt,
        prompts_from_trace,
    )
    from heliograph.serving.prfaas.transfer import LinkShape
    from heliograph.serving.prfaas.windowed import WindowedKV, windowed_layers, windowed_shape
    from heliograph.workload.arrivals import LogNormalLengths

_HOME = {
    **dict.fromkeys(("AdaptiveThreshold", "CongestionMonitor", "LinkReport"), "congestion"),
    **dict.fromkeys(("HybridGenerator", "RemoteFailed", "RemotePrefill"), "offload"),
    **dict.fromkeys(("CacheGroup", "HybridKVPool", "PrefixHit"), "pool"),
    **dict.fromkeys(("GlobalPrefixIndex", "prefix_names"), "prefix_index"),
    **dict.fromkeys(("OutsideProfile", "PrefillProfile", "kv_bytes", "kv_throughput"), "profile"),
    "read_service": "profile_file",
    **dict.fromkeys(("RemoteProcess", "RemoteServer", "RemoteSettings"), "remote"),
    "RoleController": "roles",
    **dict.fromkeys(
        (
            "ClusterFacts",
            "ClusterOffloading",
            "ClusterRefused",
            "HybridRouter",
            "OffloadPlacement",
            "OffloadRequest",
            "check_clusters",
        ),
        "router",
    ),
    **dict.fromkeys(("EmpiricalLengths", "Plan", "PrefillServiceModel", "case_study"), "service_model"),
    **dict.fromkeys(
        ("LeastLoadedSides", "ServiceReport", "ServiceSimulation", "SimPrompt", "prompts_from_trace"), "simulate"
    ),
    "LinkShape": "transfer",
    **dict.fromkeys(("WindowedKV", "windowed_layers", "windowed_shape"), "windowed"),
}

__all__ = [
    "AdaptiveThreshold",
    "CacheGroup",
    "ClusterFacts",
    "ClusterOffloading",
    "ClusterRefused",
    "CongestionMonitor",
    "EmpiricalLengths",
    "GlobalPrefixIndex",
    "HybridGenerator",
    "HybridKVPool",
    "HybridRouter",
    "LeastLoadedSides",
    "LinkReport",
    "LinkShape",
    "LogNormalLengths",
    "OffloadPlacement",
    "OffloadRequest",
    "OutsideProfile",
    "Plan",
    "PrefillProfile",
    "PrefillServiceModel",
    "PrefixHit",
    "RemoteFailed",
    "RemotePrefill",
    "RemoteProcess",
    "RemoteServer",
    "RemoteSettings",
    "RoleController",
    "ServiceReport",
    "ServiceSimulation",
    "SimPrompt",
    "WindowedKV",
    "case_study",
    "check_clusters",
    "kv_bytes",
    "kv_throughput",
    "prefix_names",
    "prompts_from_trace",
    "read_service",
    "windowed_layers",
    "windowed_shape",
]
_EXTRA = {"numba", "torch", "tokenizers"}


def __getattr__(name: str) -> Any:
    """Imports a public name's module at its first use."""
    if name == "LogNormalLengths":
        return importlib.import_module("heliograph.workload.arrivals").LogNormalLengths
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"heliograph.serving.prfaas.{_HOME[name]}")
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in _EXTRA:
            raise MissingExtra(package, "serving") from error
        raise
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
