"""A peer's front door for MCP clients, and the names under which both edges offer what the peer can reach."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from heliograph.agents.mod_x.discovery import Capability
from heliograph.agents.mod_x.peer import CallFailed, ModXPeer
from heliograph.agents.mod_x.wire import Exchange, write
from heliograph.errors import HeliographError, MissingExtra

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server

__all__ = ["DISCOVER", "find_tools", "input_schema", "serve_mcp", "tool_names"]

DISCOVER = "discover"


def tool_names(peer: ModXPeer) -> dict[str, Capability]:
    """Capabilities by a name that MCP and A2A allow; a number is added where two would be alike."""
    names: dict[str, Capability] = {}
    for capability in peer.index.all():
        base = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{capability.agent}.{capability.name}")[:120]
        name, number = base, 1
        while name in names or name == DISCOVER:
            number += 1
            name = f"{base}-{number}"
        names[name] = capability
    return names


def input_schema(capability: Capability) -> dict[str, Any]:
    """JSON Schema of its arguments."""
    if capability.schema:
        return capability.schema
    properties = {name: {"description": f"a {kind}"} for name, kind in capability.inputs.items()}
    return {"type": "object", "properties": properties, "required": list(capability.inputs)}


def find_tools(peer: ModXPeer, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What ``discover`` answers: tools for a ``query``, the ``top`` best ones.

    Raises:
        CallFailed: other arguments.
    """
    query, top = arguments.get("query"), arguments.get("top", 5)
    if not isinstance(query, str) or isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise CallFailed("discover takes query as text, and top as an integer above 0", "refused")
    names = {one.id: name for name, one in tool_names(peer).items()}
    return [
        {"tool": names[hit.capability.id], "description": hit.capability.description, "score": hit.score}
        for hit in peer.discover(query, top=top)
        if hit.capability.id in names
    ]


def serve_mcp(peer: ModXPeer, *, timeout_s: float = 30.0) -> Server[Any]:
    """A server of the official SDK: every capability is a tool, and ``discover`` searches them.

    Run it as any other: ``server.streamable_http_app()``, stdio, or ``Client(server)`` in one process.

    Args:
        peer: whose index and calls it serves.
        timeout_s: for one call.
    """
    try:
        import mcp_types as types
        from mcp.server.lowlevel import Server
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or "mcp").split(".")[0], "agents") from error

    search = types.Tool(
        name=DISCOVER,
        description="Finds tools for a wish in words.",
        input_schema={
            "type": "object",
            "properties": {"query": {"type": "string"}, "top": {"type": "integer", "minimum": 1}},
            "required": ["query"],
        },
        annotations=types.ToolAnnotations(read_only_hint=True),
    )

    async def tools(_: Any, __: Any) -> types.ListToolsResult:
        found = [
            types.Tool(
                name=name,
                description=one.description or one.name,
                input_schema=input_schema(one),
                annotations=types.ToolAnnotations(read_only_hint=one.effects == "read"),
            )
            for name, one in tool_names(peer).items()
        ]
        return types.ListToolsResult(tools=[search, *found])

    async def call(_: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        arguments = dict(params.arguments or {})
        try:
            names = tool_names(peer)
            if params.name == DISCOVER:
                result: Any = find_tools(peer, arguments)
            elif params.name in names:
                result = await peer.call(names[params.name], arguments, timeout_s=timeout_s)
            else:
                raise CallFailed(f"there is no tool {params.name}", "unknown")
        except HeliographError as error:
            kind = getattr(error, "kind", "refused")
            text = json.dumps({"error": kind, "message": str(error)})
            return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=True)
        written = write(Exchange("result", result, id=0), "mcp")["result"]
        return types.CallToolResult.model_validate(written)

    return Server(f"modx-{peer.name}", on_list_tools=tools, on_call_tool=call)
