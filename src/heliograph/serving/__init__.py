"""Serving: requests share the steps of a model; stages and instances exchange keys and values."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from heliograph.errors import MissingExtra

if TYPE_CHECKING:
    from heliograph.lm.core.sampling import SamplingParams
    from heliograph.serving.amd_instinct import (
        CapacityModel,
        LoadBenchmark,
        LoadPhase,
        LoadStatus,
        ServingAdvisor,
        ServingPlan,
        ServingRule,
        ablate_flag,
    )
    from heliograph.serving.core.async_engine import AsyncEngine, StreamEvent
    from heliograph.serving.core.blocks import BlockPool, KVManager
    from heliograph.serving.core.cluster import (
        Cluster,
        ClusterBackend,
        Instance,
        InstanceView,
        LeastOutstanding,
        Placement,
        RoundRobin,
        Router,
    )
    from heliograph.serving.core.cost_model import CostModel
    from heliograph.serving.core.engine import Engine, EngineStats
    from heliograph.serving.core.executor import Executor, ModelledExecutor
    from heliograph.serving.core.request import Request, StepPlan, StepResult
    from heliograph.serving.core.run_server import serve
    from heliograph.serving.core.scheduler import Admission, Scheduler, SchedulerConfig
    from heliograph.serving.core.torch_executor import TorchExecutor
    from heliograph.serving.kv_serve import (
        CompressedLink,
        CompressionController,
        CompressionProfile,
        CompressionSpace,
        KVCodec,
        KVPipeline,
        KVQuantizer,
        KVTransform,
        lower_envelope,
        profile_search,
    )
    from heliograph.serving.pd_serve import (
        ContiguousKV,
        PDGateway,
        PDGroup,
        PrefillAdmission,
        RatioController,
        balance_ratio,
        recv_scatter,
    )
    from heliograph.serving.prfaas import (
        CongestionMonitor,
        GlobalPrefixIndex,
        HybridKVPool,
        HybridRouter,
        LogNormalLengths,
        PrefillProfile,
        PrefillServiceModel,
    )
    from heliograph.serving.xllm import ColocationPolicy, SloAwareRouter, ZeroEvictAdmission

__all__ = [
    "Admission",
    "AsyncEngine",
    "BlockPool",
    "CapacityModel",
    "Cluster",
    "ClusterBackend",
    "ColocationPolicy",
    "CompressedLink",
    "CompressionController",
    "CompressionProfile",
    "CompressionSpace",
    "CongestionMonitor",
    "ContiguousKV",
    "CostModel",
    "Engine",
    "EngineStats",
    "Executor",
    "GlobalPrefixIndex",
    "HybridKVPool",
    "HybridRouter",
    "Instance",
    "InstanceView",
    "KVCodec",
    "KVManager",
    "KVPipeline",
    "KVQuantizer",
    "KVTransform",
    "LeastOutstanding",
    "LoadBenchmark",
    "LoadPhase",
    "LoadStatus",
    "LogNormalLengths",
    "ModelledExecutor",
    "PDGateway",
    "PDGroup",
    "Placement",
    "PrefillAdmission",
    "PrefillProfile",
    "PrefillServiceModel",
    "RatioController",
    "Request",
    "RoundRobin",
    "Router",
    "SamplingParams",
    "Scheduler",
    "SchedulerConfig",
    "ServingAdvisor",
    "ServingPlan",
    "ServingRule",
    "SloAwareRouter",
    "StepPlan",
    "StepResult",
    "StreamEvent",
    "TorchExecutor",
    "ZeroEvictAdmission",
    "ablate_flag",
    "balance_ratio",
    "lower_envelope",
    "profile_search",
    "recv_scatter",
    "serve",
]

_SYSTEMS = {
    **dict.fromkeys(
        (
            "CapacityModel",
            "LoadBenchmark",
            "LoadPhase",
            "LoadStatus",
            "ServingAdvisor",
            "ServingPlan",
            "ServingRule",
            "ablate_flag",
        ),
        "amd_instinct",
    ),
    **dict.fromkeys(
        (
            "CompressedLink",
            "CompressionController",
            "CompressionProfile",
            "CompressionSpace",
            "KVCodec",
            "KVPipeline",
            "KVQuantizer",
            "KVTransform",
            "lower_envelope",
            "profile_search",
        ),
        "kv_serve",
    ),
    **dict.fromkeys(
        (
            "ContiguousKV",
            "PDGateway",
            "PDGroup",
            "PrefillAdmission",
            "RatioController",
            "balance_ratio",
            "recv_scatter",
        ),
        "pd_serve",
    ),
    **dict.fromkeys(
        (
            "CongestionMonitor",
            "GlobalPrefixIndex",
            "HybridKVPool",
            "HybridRouter",
            "LogNormalLengths",
            "PrefillProfile",
            "PrefillServiceModel",
        ),
        "prfaas",
    ),
    **dict.fromkeys(("ColocationPolicy", "SloAwareRouter", "ZeroEvictAdmission"), "xllm"),
}
_HOME = {
    **dict.fromkeys(("AsyncEngine", "StreamEvent"), "async_engine"),
    **dict.fromkeys(("BlockPool", "KVManager"), "blocks"),
    **dict.fromkeys(
        (
            "Cluster",
            "ClusterBackend",
            "Instance",
            "InstanceView",
            "LeastOutstanding",
            "Placement",
            "RoundRobin",
            "Router",
        ),
        "cluster",
    ),
    "CostModel": "cost_model",
    **dict.fromkeys(("Engine", "EngineStats"), "engine"),
    **dict.fromkeys(("Executor", "ModelledExecutor"), "executor"),
    **dict.fromkeys(("Request", "StepPlan", "StepResult"), "request"),
    "serve": "run_server",
    **dict.fromkeys(("Admission", "Scheduler", "SchedulerConfig"), "scheduler"),
    "TorchExecutor": "torch_executor",
}
_EXTRA = {"fastapi", "httpx", "numba", "prometheus_client", "pydantic", "starlette", "torch", "uvicorn"}


def __getattr__(name: str) -> Any:
    """Imports a public name's module at its first use, so that importing this package costs nothing."""
    if name == "SamplingParams":
        return importlib.import_module("heliograph.lm").SamplingParams
    if name not in _HOME and name not in _SYSTEMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"core.{_HOME[name]}" if name in _HOME else _SYSTEMS[name]
    try:
        module = importlib.import_module(f"heliograph.serving.{home}")
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in _EXTRA:
            raise MissingExtra(package, "serving") from error
        raise
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
