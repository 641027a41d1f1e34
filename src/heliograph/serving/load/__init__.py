"""Load against any OpenAI-compatible server: open and closed loop, latencies by token, failures kept apart.

Shared by every check that measures a server.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heliograph.serving.load.client import CompletionClient, LoadRequest
    from heliograph.serving.load.compare import Comparison, compare_runs
    from heliograph.serving.load.drive import LoadRun, run_closed_loop, run_open_loop, run_trace
    from heliograph.serving.load.launch import ServerProcess, launch_server
    from heliograph.serving.load.prompts import make_requests
    from heliograph.serving.load.record import Failure, RequestRecord
    from heliograph.serving.load.summary import LoadSummary, Quantile, summarise

_HOME = {
    **dict.fromkeys(("CompletionClient", "LoadRequest"), "client"),
    **dict.fromkeys(("Comparison", "compare_runs"), "compare"),
    **dict.fromkeys(("LoadRun", "run_closed_loop", "run_open_loop", "run_trace"), "drive"),
    **dict.fromkeys(("ServerProcess", "launch_server"), "launch"),
    "make_requests": "prompts",
    **dict.fromkeys(("Failure", "RequestRecord"), "record"),
    **dict.fromkeys(("LoadSummary", "Quantile", "summarise"), "summary"),
}

__all__ = [
    "Comparison",
    "CompletionClient",
    "Failure",
    "LoadRequest",
    "LoadRun",
    "LoadSummary",
    "Quantile",
    "RequestRecord",
    "ServerProcess",
    "compare_runs",
    "launch_server",
    "make_requests",
    "run_closed_loop",
    "run_open_loop",
    "run_trace",
    "summarise",
]


def __getattr__(name: str) -> Any:
    """Imports a public name's module at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"heliograph.serving.load.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
