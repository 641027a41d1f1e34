"""Peers that know nothing of the extension: their messages through the enforcer, and through a bare gateway."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping
from typing import Any

import mcp_types as types
from mcp import Client
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from heliograph.agents.mcp_sec.enforcer import SecurityEnforcer
from heliograph.agents.mcp_sec.inprocess import gateway_before
from heliograph.agents.mcp_sec.origin import untagged
from heliograph.agents.mcp_sec.policy import SecurityPolicy
from heliograph.trials.check import Context

__all__ = ["measure"]

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
TEXT = {"type": "text", "text": "plain"}
INSIDE = {"uri": "test://inside", "mimeType": "text/plain", "text": "inside"}
RESULTS: dict[str, dict[str, Any]] = {
    "text": {"content": [TEXT]},
    "image": {"content": [{"type": "image", "data": PIXEL, "mimeType": "image/png"}]},
    "audio": {"content": [{"type": "audio", "data": PIXEL, "mimeType": "audio/wav"}]},
    "embedded": {"content": [{"type": "resource", "resource": INSIDE}]},
    "link": {"content": [{"type": "resource_link", "uri": "test://inside", "name": "inside"}]},
    "mixed": {"content": [TEXT, {"type": "resource", "resource": INSIDE}], "_meta": {"own": {"kept": True}}},
    "structured": {"content": [TEXT], "structuredContent": {"a": [1, 2.5, None]}},
    "failing": {"content": [TEXT], "isError": True},
    "nothing": {"content": []},
}
SAMPLING = {"messages": [{"role": "user", "content": TEXT}], "maxTokens": 5}
QUESTION = {
    "message": "who?",
    "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}},
}


def _server() -> Server[Any]:
    def typed(ctx: Any, result: dict[str, Any], *, listed: bool = False) -> dict[str, Any]:
        if ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            return result
        return {"resultType": "complete", **({"ttlMs": 0, "cacheScope": "private"} if listed else {}), **result}

    async def tools(ctx: Any, params: Any) -> dict[str, Any]:  # noqa: ARG001 - the SDK's signature
        names = [*RESULTS, "refusing", "progress", "sampling", "elicitation"]
        return typed(ctx, {"tools": [{"name": n, "inputSchema": {"type": "object"}} for n in names]}, listed=True)

    async def ask(ctx: Any, method: str, body: dict[str, Any]) -> dict[str, Any]:
        if ctx.session.can_send_request:
            answer = await ctx.session._request_outbound.send_raw_request(method, body)
        else:
            given = (ctx.params or {}).get("inputResponses")
            if not given:
                wanted = {"it": {"method": method, "params": body}}
                return {"resultType": "input_required", "inputRequests": wanted, "requestState": "round"}
            answer = given["it"]
        kept = {key: answer[key] for key in ("action", "role", "content") if key in answer}
        return typed(ctx, {"content": [{"type": "text", "text": repr(sorted(kept.items()))}]})

    async def call(ctx: Any, params: types.CallToolRequestParams) -> dict[str, Any]:
        if params.name == "refusing":
            raise MCPError(-32602, "refused", {"why": "because"})
        if params.name == "sampling":
            return await ask(ctx, "sampling/createMessage", SAMPLING)
        if params.name == "elicitation":
            return await ask(ctx, "elicitation/create", QUESTION)
        if params.name == "progress":
            await ctx.session.report_progress(1, 2, "half")
            return typed(ctx, {"content": [TEXT]})
        return typed(ctx, RESULTS[params.name])

    async def resources(ctx: Any, params: Any) -> dict[str, Any]:  # noqa: ARG001
        return typed(ctx, {"resources": [{"uri": "test://inside", "name": "inside"}]}, listed=True)

    async def read(ctx: Any, params: Any) -> dict[str, Any]:  # noqa: ARG001
        return typed(ctx, {"contents": [INSIDE]}, listed=True)

    async def prompts(ctx: Any, params: Any) -> dict[str, Any]:  # noqa: ARG001
        return typed(ctx, {"prompts": [{"name": "hello"}]}, listed=True)

    async def prompt(ctx: Any, params: Any) -> dict[str, Any]:  # noqa: ARG001
        return typed(ctx, {"messages": [{"role": "user", "content": TEXT}]})

    async def complete(ctx: Any, params: Any) -> dict[str, Any]:  # noqa: ARG001
        return typed(ctx, {"completion": {"values": ["a", "b"]}})

    handlers: dict[str, Any] = {
        "on_list_tools": tools,
        "on_call_tool": call,
        "on_list_resources": resources,
        "on_read_resource": read,
        "on_list_prompts": prompts,
        "on_get_prompt": prompt,
        "on_completion": complete,
    }
    return Server("unaware", instructions="Be kind.", **handlers)


async def _everything(mode: str, stages: tuple[Any, ...]) -> list[Any]:
    async def sampled(context: Any, params: Any) -> types.CreateMessageResult:  # noqa: ARG001
        said = types.TextContent(type="text", text="said")
        return types.CreateMessageResult(role="assistant", content=said, model="m")

    async def asked(context: Any, params: Any) -> types.ElicitResult:  # noqa: ARG001
        return types.ElicitResult(action="accept", content={"name": "ann"})

    found: list[Any] = []
    steps: list[Any] = []

    async def heard(progress: float, total: float | None, message: str | None) -> None:
        steps.append([progress, total, message])

    gateway = gateway_before({"up": _server()}, stages)
    async with Client(gateway.server, mode=mode, sampling_callback=sampled, elicitation_callback=asked) as client:
        found.append(client.server_capabilities)
        for ask in (client.list_tools, client.list_prompts, client.list_resources):
            found.append(await ask())
        for name in [*RESULTS, "sampling", "elicitation"]:
            found.append(await client.call_tool(name, {"n": 1}))
        found.append(await client.call_tool("progress", {}, progress_callback=heard))
        found.append(await client.read_resource("test://inside"))
        found.append(await client.get_prompt("hello"))
        found.append(
            await client.complete(types.PromptReference(type="ref/prompt", name="hello"), {"name": "a", "value": ""})
        )
        try:
            await client.call_tool("refusing", {})
        except MCPError as error:
            found.append(error.error)
        plain = [one.model_dump(by_alias=True, mode="json", exclude_none=True) for one in found]
        return [*plain, steps, client.instructions]


def measure(context: Context) -> Mapping[str, Any]:
    """Answers that are equal once the extension's own fields are taken out, and whether they were there at all."""
    equal, marked = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for mode in ("auto", "legacy"):
            bare = asyncio.run(_everything(mode, ()))
            enforcer = SecurityEnforcer(policy=SecurityPolicy(mode="permissive"))
            guarded = asyncio.run(_everything(mode, (enforcer,)))
            equal += [untagged(one) == untagged(other) for one, other in zip(guarded, bare, strict=True)]
            equal.append(not enforcer.denials.counts)
            marked.append(guarded != bare)
            context.progress(0.5 if mode == "auto" else 1.0, mode)
    return {"same": equal, "marked": marked}
