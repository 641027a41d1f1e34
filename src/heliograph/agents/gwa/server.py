"""A mind as an MCP server: think, status, and the trace of its ticks."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from heliograph.agents.gwa.agent import Busy, GlobalWorkspaceAgent
from heliograph.errors import HeliographError, MissingExtra

if TYPE_CHECKING:
    from mcp.server import MCPServer

__all__ = ["workspace_server"]


def workspace_server(agent: GlobalWorkspaceAgent, idle_every: float = 0.0) -> MCPServer[Any]:
    """Tools ``think(input, max_ticks)`` and ``status()``, resource ``gwa://NAME/trace``.

    ``think`` answers one caller at a time; a call that is cancelled leaves no half of a tick, and its message waits for
    the next ``think`` without input.

    Raises:
        MissingExtra: the official SDK is not installed.
    """
    try:
        from mcp.server import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or "mcp").split(".")[0], "agents") from error
    workspace = agent.workspace
    server: MCPServer[Any] = MCPServer(f"gwa-{workspace.name}")

    @server.tool()
    async def think(input: str = "", max_ticks: int = 0) -> dict[str, Any]:
        """Answer a message, or think on without one. max_ticks of 0 takes the server's setting."""
        ticks = []
        try:
            async for tick in agent.run(input or None, max_ticks=max_ticks or None):
                ticks.append(tick)
        except Busy as error:
            raise ToolError(str(error)) from None
        except HeliographError as error:
            raise ToolError(f"{type(error).__name__}: {error}") from None
        finally:
            if idle_every and not agent.workspace.state.pending:
                agent.idle(idle_every)
        said = next((tick.said for tick in reversed(ticks) if tick.said), "")
        return {"said": said, "ticks": len(ticks), "winners": [tick.winner for tick in ticks]}

    @server.tool()
    async def status() -> dict[str, Any]:
        """Tick, temperature, entropy and memory of the mind."""
        state = workspace.state
        return {
            "name": workspace.name,
            "tick": state.tick,
            "pending": bool(state.pending),
            "entropy": workspace.drive.entropy(),
            "temperature": workspace.drive.temperature(),
            "estimator": workspace.drive.estimator,
            "stage_tokens": state.stage_tokens,
            "theta": workspace.config.theta,
            "memories": len(state.archive),
        }

    @server.resource(f"gwa://{workspace.name}/trace", mime_type="application/json")
    def read_trace() -> str:
        """The latest ticks, idle ones too."""
        return json.dumps([asdict(tick) for tick in agent.trace])

    return server
