"""Certified servers, keys and clocks for the tests of mcp_sec."""

from __future__ import annotations

from typing import Any

import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from heliograph.agents.core.identity import Identity
from heliograph.agents.mcp_sec import AttestedServer, CapabilityCertificate, TrustStore, pins_of

ISSUER, KEY, OTHER = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
TOOLS = [
    {"name": "echo", "description": "Says it again", "inputSchema": {"type": "object"}},
    {"name": "store", "description": "Keeps it", "inputSchema": {"type": "object"}},
]
EFFECTS = {"echo": "read", "store": "write"}


class Clock:
    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def certificate(server="mail", *, issuer=ISSUER, key=KEY, capabilities=("tools",), tools=TOOLS, **more: Any):
    return CapabilityCertificate.issue(
        server,
        key.public,
        issuer,
        issued_by=more.pop("issued_by", "acme"),
        capabilities=capabilities,
        tools=pins_of(tools, EFFECTS),
        **more,
    )


def trust(**more: Any) -> TrustStore:
    return TrustStore({"acme": ISSUER.public}, **more)


def server(name: str, attestation: CapabilityCertificate | None = None, *, tools=None, ask=None, now=None) -> Server:
    """Echoes; ``tools`` is a list that a test may change; ``ask`` is made once for each call without answers."""
    listed = TOOLS if tools is None else tools
    made: Any

    def typed(ctx: Any, result: dict[str, Any], **modern: Any) -> dict[str, Any]:
        new = ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
        return {"resultType": "complete", **modern, **result} if new else result

    async def tool_list(ctx: Any, params: Any) -> dict[str, Any]:
        return typed(ctx, {"tools": [dict(one) for one in listed]}, ttlMs=0, cacheScope="private")

    async def call(ctx: Any, params: types.CallToolRequestParams) -> dict[str, Any]:
        arguments = dict(params.arguments or {})
        made.calls.append((params.name, arguments))
        if arguments.get("fail"):
            raise MCPError(-32602, str(arguments["fail"]), {"at": "fail"})
        if ask is not None:
            if ctx.session.can_send_request:
                answer = await ctx.session._request_outbound.send_raw_request(*ask)
                return typed(ctx, {"content": [{"type": "text", "text": f"got {answer}"}]})
            given = (ctx.params or {}).get("inputResponses")
            if not given:
                wanted = {"it": {"method": ask[0], "params": ask[1]}}
                return {"resultType": "input_required", "inputRequests": wanted, "requestState": "state-of-server"}
            return typed(ctx, {"content": [{"type": "text", "text": f"got {given}"}]})
        return typed(ctx, {"content": [{"type": "text", "text": str(arguments.get("text", "")) or f"{name} ok"}]})

    made = Server(name, on_list_tools=tool_list, on_call_tool=call)
    made.calls = []
    if attestation is not None:
        made.attested = AttestedServer(attestation, KEY, **({} if now is None else {"now": now})).install(made)
    return made
