"""A peer's front doors for the outside: an MCP server and an A2A endpoint over all that the peer can reach."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from heliograph.agents.mod_x.discovery import Capability
from heliograph.agents.mod_x.peer import CallFailed, ModXPeer
from heliograph.agents.mod_x.wire import Exchange, read, write
from heliograph.errors import BadInput, HeliographError, MissingExtra

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server
    from starlette.applications import Starlette

__all__ = ["serve_a2a", "serve_mcp", "tool_names"]

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


def _schema(capability: Capability) -> dict[str, Any]:
    if capability.schema:
        return capability.schema
    properties = {name: {"description": f"a {kind}"} for name, kind in capability.inputs.items()}
    return {"type": "object", "properties": properties, "required": list(capability.inputs)}


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
                input_schema=_schema(one),
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
                ids = {one.id: name for name, one in names.items()}
                top = arguments.get("top", 5)
                if not isinstance(arguments.get("query"), str) or not isinstance(top, int):
                    raise BadInput("discover takes query as text, and top as an integer")
                result: Any = [
                    {"tool": ids[hit.capability.id], "description": hit.capability.description, "score": hit.score}
                    for hit in peer.discover(arguments["query"], top=top)
                ]
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


def serve_a2a(peer: ModXPeer, url: str = "http://127.0.0.1", *, timeout_s: float = 30.0) -> Starlette:
    """An ASGI application with the peer's agent card and ``SendMessage`` (also under its older name
    ``message/send``). It answers with a message; tasks that go on, streaming and push are not served.

    Args:
        peer: whose index and calls it serves.
        url: that the card names.
        timeout_s: for one call.
    """
    try:
        from starlette.applications import Starlette
        from starlette.requests import Request
        from starlette.responses import JSONResponse
        from starlette.routing import Route
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or "mcp").split(".")[0], "agents") from error

    async def card(_: Request) -> JSONResponse:
        skills = [
            {"id": name, "name": one.name, "description": one.description or one.name, "tags": list(one.concepts)}
            for name, one in tool_names(peer).items()
        ]
        return JSONResponse(
            {
                "name": peer.name,
                "description": f"Capabilities that the peer {peer.name} can reach.",
                "version": "1",
                "supportedInterfaces": [{"url": url, "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}],
                "capabilities": {"streaming": False, "pushNotifications": False},
                "defaultInputModes": ["application/json"],
                "defaultOutputModes": ["application/json"],
                "skills": skills,
            }
        )

    async def rpc(request: Request) -> JSONResponse:
        number: Any = None
        try:
            body = await request.json()
            if not isinstance(body, Mapping) or body.get("jsonrpc") != "2.0":
                return JSONResponse(_fault(None, -32600, "not a JSON-RPC 2.0 request"))
            number = body.get("id")
            if body.get("method") not in ("SendMessage", "message/send"):
                return JSONResponse(_fault(number, -32601, f"{body.get('method')} is not served; SendMessage is"))
            params = body.get("params")
            exchange = read(params.get("message") if isinstance(params, Mapping) else None, "a2a")
        except BadInput as error:
            return JSONResponse(_fault(number, -32602, str(error)))
        except (ValueError, RecursionError):
            return JSONResponse(_fault(None, -32700, "not JSON"))
        if exchange.kind != "call":
            return JSONResponse(_fault(number, -32602, 'name a skill: one data part {"capability", "arguments"}'))
        answer: Exchange
        try:
            capability = tool_names(peer).get(exchange.capability)
            if capability is None:
                raise CallFailed(f"there is no skill {exchange.capability}", "unknown")
            if not isinstance(exchange.body, Mapping):
                raise CallFailed("arguments are an object", "refused")
            result = await peer.call(capability, exchange.body, timeout_s=timeout_s)
            answer = Exchange("result", result, id=exchange.id, conv=exchange.conv)
        except HeliographError as error:
            failure = {"code": -32000, "message": str(error), "data": {"kind": getattr(error, "kind", "failed")}}
            answer = Exchange("failure", failure, id=exchange.id, conv=exchange.conv)
        return JSONResponse({"jsonrpc": "2.0", "id": number, "result": {"message": write(answer, "a2a")}})

    return Starlette(
        routes=[
            Route("/.well-known/agent-card.json", card, methods=["GET"]),
            Route("/", rpc, methods=["POST"]),
        ]
    )


def _fault(number: Any, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": message}}
