"""A global workspace: role-bound minds around one stage, with a drive that reacts to repetition (arXiv:2604.08206)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from heliograph.errors import MissingExtra

if TYPE_CHECKING:
    from heliograph.agents.gwa.agent import Busy, GlobalWorkspaceAgent, single_writer
    from heliograph.agents.gwa.config import GWAConfig
    from heliograph.agents.gwa.drive import EntropyDrive, entropy_floor, reachable
    from heliograph.agents.gwa.embedding import HashedWords, default_embedding
    from heliograph.agents.gwa.nodes import Ask, BusNode, ModelNode, NodeResult, WorkspaceNode, serve_node
    from heliograph.agents.gwa.replay import replay_journal
    from heliograph.agents.gwa.server import workspace_server
    from heliograph.agents.gwa.state import NodeState, TickSnapshot
    from heliograph.agents.gwa.workspace import GlobalWorkspace

__all__ = [
    "Ask",
    "BusNode",
    "Busy",
    "EntropyDrive",
    "GWAConfig",
    "GlobalWorkspace",
    "GlobalWorkspaceAgent",
    "HashedWords",
    "ModelNode",
    "NodeResult",
    "NodeState",
    "TickSnapshot",
    "WorkspaceNode",
    "default_embedding",
    "entropy_floor",
    "reachable",
    "replay_journal",
    "serve_node",
    "single_writer",
    "workspace_server",
]

_HOME = {
    **dict.fromkeys(("Busy", "GlobalWorkspaceAgent", "single_writer"), "agent"),
    "GWAConfig": "config",
    **dict.fromkeys(("EntropyDrive", "entropy_floor", "reachable"), "drive"),
    **dict.fromkeys(("HashedWords", "default_embedding"), "embedding"),
    **dict.fromkeys(("Ask", "BusNode", "ModelNode", "NodeResult", "WorkspaceNode", "serve_node"), "nodes"),
    "replay_journal": "replay",
    "workspace_server": "server",
    **dict.fromkeys(("NodeState", "TickSnapshot"), "state"),
    "GlobalWorkspace": "workspace",
}


def __getattr__(name: str) -> Any:
    """Imports a public name's module at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"heliograph.agents.gwa.{_HOME[name]}")
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in {"mcp", "mcp_types", "rfc8785"}:
            raise MissingExtra(package, "agents") from error
        raise
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
