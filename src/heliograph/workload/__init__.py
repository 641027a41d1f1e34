"""What a system is asked to do, as plain data: model shapes, operator graphs, device data sheets, request traces.

Nothing here imports torch, so that simulators, planners and load generators can share it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heliograph.workload.arrivals import LogNormalLengths, arrival_times, generate_requests
    from heliograph.workload.config_reader import read_shape
    from heliograph.workload.device_spec import DeviceSpec
    from heliograph.workload.mooncake import read_mooncake
    from heliograph.workload.op_graph import Gemm, Operator, OpGraph, TensorUse, gemms, step_graph
    from heliograph.workload.requests import RequestTrace, TraceRequest, read_trace, write_trace
    from heliograph.workload.shape import AttentionShape, LayerShape, LlmShape, MoeShape

_HOME = {
    **dict.fromkeys(("LogNormalLengths", "arrival_times", "generate_requests"), "arrivals"),
    "read_shape": "config_reader",
    "DeviceSpec": "device_spec",
    "read_mooncake": "mooncake",
    **dict.fromkeys(("Gemm", "OpGraph", "Operator", "TensorUse", "gemms", "step_graph"), "op_graph"),
    **dict.fromkeys(("RequestTrace", "TraceRequest", "read_trace", "write_trace"), "requests"),
    **dict.fromkeys(("AttentionShape", "LayerShape", "LlmShape", "MoeShape"), "shape"),
}

__all__ = [
    "AttentionShape",
    "DeviceSpec",
    "Gemm",
    "LayerShape",
    "LlmShape",
    "LogNormalLengths",
    "MoeShape",
    "OpGraph",
    "Operator",
    "RequestTrace",
    "TensorUse",
    "TraceRequest",
    "arrival_times",
    "gemms",
    "generate_requests",
    "read_mooncake",
    "read_shape",
    "read_trace",
    "step_graph",
    "write_trace",
]


def __getattr__(name: str) -> Any:
    """Imports a public name's module at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"heliograph.workload.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
