# ruff: noqa: RUF024 - the shared schemas are never changed
"""An MCP server with the tools, resources and prompts that the official conformance suite asks for by name.

Run it as ``python fixture_server.py http PORT`` (prints READY) or ``python fixture_server.py stdio``. The tools whose
names do not begin with ``test_`` serve the gateway's own tests: they hang, flood, report the caller, or end the
process.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import sys
import warnings
from typing import Any

import mcp_types as types
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http import EventMessage, EventStore
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import PromptsListChanged, ResourceUpdated, ToolsListChanged
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

warnings.filterwarnings("ignore", message=".*deprecated as of 2026-07-28.*")

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
WAV = base64.b64encode(b"RIFF&\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0@\x1f\0\0\x80>\0\0\2\0\x10\0data\2\0\0\0\0\0").decode()
SECRET = os.urandom(32)
JSON_SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def complete(*blocks: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"content": list(blocks), **more}


def form(message: str, properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
    }
    return {"method": "elicitation/create", "params": {"message": message, "requestedSchema": schema}}


def sample(prompt: str, tokens: int = 100) -> dict[str, Any]:
    messages = [{"role": "user", "content": text(prompt)}]
    return {"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": tokens}}


ROOTS = {"method": "roots/list", "params": {}}
STRING = {"type": "string"}


def seal(value: str) -> str:
    return value + "." + hmac.new(SECRET, value.encode(), hashlib.sha256).hexdigest()


def unseal(state: str | None) -> str:
    value, _, _ = (state or "").rpartition(".")
    if not hmac.compare_digest(seal(value), state or ""):
        raise MCPError(types.INVALID_PARAMS, "the request state was changed")
    return value


def ask(requests: dict[str, Any], state: str | None = None) -> dict[str, Any]:
    sealed = {} if state is None else {"requestState": seal(state)}
    return {"resultType": "input_required", "inputRequests": requests, **sealed}


def accepted(answers: dict[str, Any], key: str) -> dict[str, Any] | None:
    answer = answers.get(key)
    if isinstance(answer, dict) and answer.get("action") == "accept" and isinstance(answer.get("content"), dict):
        return answer["content"]
    return None


ENUMS = {
    "untitledSingle": {"type": "string", "enum": ["option1", "option2", "option3"]},
    "titledSingle": {
        "type": "string",
        "oneOf": [{"const": f"value{n}", "title": f"Option {n}"} for n in (1, 2, 3)],
    },
    "legacyEnum": {"type": "string", "enum": ["opt1", "opt2"], "enumNames": ["Option One", "Option Two"]},
    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": ["option1", "option2", "option3"]}},
    "titledMulti": {
        "type": "array",
        "items": {"anyOf": [{"const": f"value{n}", "title": f"Choice {n}"} for n in (1, 2, 3)]},
    },
}
DEFAULTS = {
    "name": {"type": "string", "default": "John Doe"},
    "age": {"type": "integer", "default": 30},
    "score": {"type": "number", "default": 95.5},
    "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    "verified": {"type": "boolean", "default": True},
}
TOOLS = {
    **dict.fromkeys(
        [
            "test_simple_text",
            "test_image_content",
            "test_audio_content",
            "test_embedded_resource",
            "test_multiple_content_types",
            "test_tool_with_logging",
            "test_tool_with_progress",
            "test_error_handling",
            "test_elicitation_sep1034_defaults",
            "test_elicitation_sep1330_enums",
            "test_reconnection",
            "test_missing_capability",
            "test_streaming_elicitation",
            "test_logging_tool",
            "test_trigger_tool_change",
            "test_trigger_prompt_change",
            *(f"test_input_required_result_{n}" for n in ("elicitation", "sampling", "list_roots", "request_state")),
            *(f"test_input_required_result_{n}" for n in ("multiple_inputs", "multi_round", "tampered_state")),
            "test_input_required_result_capabilities",
            "hang",
            "die",
            "touch_resource",
        ],
        {"type": "object", "properties": {}},
    ),
    "test_sampling": {"type": "object", "properties": {"prompt": STRING}, "required": ["prompt"]},
    "test_elicitation": {"type": "object", "properties": {"message": STRING}, "required": ["message"]},
    "json_schema_2020_12_tool": JSON_SCHEMA,
    "by_region": {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}},
    "echo": {"type": "object", "properties": {"value": {}, "delay_ms": {"type": "number"}}},
    "flood": {"type": "object", "properties": {"bytes": {"type": "integer"}}},
    "headers": {"type": "object", "properties": {}},
}


def typed(handler: Any) -> Any:
    """The stateless era wants every result to say its type; older ones know no such field."""

    async def answer(ctx: Any, params: Any) -> dict[str, Any]:
        result = await handler(ctx, params)
        return {"resultType": "complete", **result} if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS else result

    return answer


class Fixture:
    def __init__(self) -> None:
        self.bus = InMemorySubscriptionBus()
        self.subscribed: dict[str, list[Any]] = {}
        self.cancelled = 0
        self.server: Server[Any] = Server(
            "fixture",
            version="1.0.0",
            instructions="A server for tests.",
            on_list_tools=typed(self.list_tools),
            on_call_tool=typed(self.call_tool),
            on_list_resources=typed(self.list_resources),
            on_list_resource_templates=typed(self.list_templates),
            on_read_resource=typed(self.read_resource),
            on_subscribe_resource=self.subscribe,
            on_unsubscribe_resource=self.unsubscribe,
            on_subscriptions_listen=ListenHandler(self.bus),
            on_list_prompts=typed(self.list_prompts),
            on_get_prompt=typed(self.get_prompt),
            on_completion=typed(self.completion),
            on_set_logging_level=self.set_level,
            get_tool_input_schema=TOOLS.get,
        )

    async def list_tools(self, ctx: Any, params: Any) -> dict[str, Any]:
        tools = [{"name": n, "description": f"The tool {n}.", "inputSchema": s} for n, s in TOOLS.items()]
        return {"tools": tools, "ttlMs": 1000, "cacheScope": "public"}

    async def call_tool(self, ctx: Any, params: Any) -> dict[str, Any]:
        if params.name not in TOOLS:
            raise MCPError(types.INVALID_PARAMS, f"no tool {params.name}")
        arguments = params.arguments or {}
        raw = dict(ctx.params or {})
        if params.name.startswith("test_input_required_result_"):
            return self.rounds(ctx, params.name.removeprefix("test_input_required_result_"), raw)
        handler = getattr(self, params.name, None)
        return complete(text("ok")) if handler is None else await handler(ctx, arguments)

    def rounds(self, ctx: Any, which: str, raw: dict[str, Any]) -> dict[str, Any]:
        answers = raw.get("inputResponses") or {}
        state = raw.get("requestState")
        name = form("What is your name?", {"name": STRING})
        if which == "elicitation":
            given = accepted(answers, "user_name")
            valid = given is not None and isinstance(given.get("name"), str)
            return complete(text(f"Hello, {given['name']}!")) if valid and given else ask({"user_name": name})
        if which == "sampling":
            return complete(text("answered")) if answers else ask({"capital_question": sample("Capital of France?")})
        if which == "list_roots":
            return complete(text(json.dumps(answers))) if answers else ask({"client_roots": ROOTS})
        if which == "capabilities":
            capabilities = ((raw.get("_meta") or {}).get(types.CLIENT_CAPABILITIES_META_KEY)) or {}
            wanted = {"elicitation": name, "sampling": sample("Say hello"), "roots": ROOTS}
            requests = {key: wanted[key] for key in wanted if key in capabilities}
            return ask(requests) if requests and not answers else complete(text("done"))
        if which == "multi_round":
            if state is None:
                return ask({"step1": name}, "round 1")
            if unseal(state) == "round 1":
                return ask({"step2": form("Which colour?", {"color": STRING})}, "round 2")
            return complete(text("both rounds done"))
        if state is not None:
            unseal(state)
            return complete(text("state-ok"))
        if which == "multiple_inputs":
            return ask({"user_name": name, "greeting": sample("Greet", 50), "client_roots": ROOTS}, "many")
        return ask({"confirm": form("Please confirm", {"ok": {"type": "boolean"}})}, which)

    async def test_simple_text(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        return complete(text("This is a simple text response for testing."))

    async def test_image_content(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        return complete({"type": "image", "data": PNG, "mimeType": "image/png"})

    async def test_audio_content(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        return complete({"type": "audio", "data": WAV, "mimeType": "audio/wav"})

    async def test_embedded_resource(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        inner = {"uri": "test://embedded-resource", "mimeType": "text/plain", "text": "An embedded resource."}
        return complete({"type": "resource", "resource": inner})

    async def test_multiple_content_types(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        inner = {"uri": "test://mixed-content-resource", "mimeType": "application/json", "text": '{"test":"data"}'}
        image = {"type": "image", "data": PNG, "mimeType": "image/png"}
        return complete(text("Multiple content types test:"), image, {"type": "resource", "resource": inner})

    async def test_tool_with_logging(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        for message in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await ctx.session.send_log_message("info", message, related_request_id=ctx.request_id)
            await asyncio.sleep(0.02)
        return complete(text("logged"))

    test_logging_tool = test_tool_with_logging

    async def test_tool_with_progress(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        for done in (0, 50, 100):
            await ctx.session.report_progress(done, 100, f"{done} of 100")
            await asyncio.sleep(0.02)
        return complete(text("done"))

    async def test_streaming_elicitation(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        return ask({"user_name": form("What is your name?", {"name": STRING})})

    async def test_error_handling(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        return complete(text("This tool intentionally returns an error for testing"), isError=True)

    async def test_missing_capability(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        capabilities = ctx.session.client_capabilities
        if capabilities is None or capabilities.sampling is None:
            raise MCPError(-32021, "this tool needs sampling", {"requiredCapabilities": {"sampling": {}}})
        return complete(text("ok"))

    async def test_trigger_tool_change(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        await self.bus.publish(ToolsListChanged())
        return complete(text("changed"))

    async def test_trigger_prompt_change(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        await self.bus.publish(PromptsListChanged())
        return complete(text("changed"))

    async def _ask_now(self, ctx: Any, request: dict[str, Any]) -> dict[str, Any]:
        if not ctx.session.can_send_request:
            return ask({"answer": request})
        return await ctx.session._request_outbound.send_raw_request(request["method"], request["params"])

    async def test_sampling(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        result = await self._ask_now(ctx, sample(arguments["prompt"]))
        if "inputRequests" in result:
            answers = (ctx.params or {}).get("inputResponses")
            if not answers:
                return result
            result = answers["answer"]
        return complete(text(f"LLM response: {result['content']['text']}"))

    async def _elicited(self, ctx: Any, request: dict[str, Any]) -> dict[str, Any]:
        result = await self._ask_now(ctx, request)
        if "inputRequests" in result:
            answers = (ctx.params or {}).get("inputResponses")
            if not answers:
                return result
            result = answers["answer"]
        return complete(text(f"Elicitation completed: action={result['action']}, content={result.get('content')}"))

    async def test_elicitation(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        return await self._elicited(ctx, form(arguments["message"], {"response": STRING}))

    async def test_elicitation_sep1034_defaults(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        return await self._elicited(ctx, form("Please fill in", DEFAULTS, []))

    async def test_elicitation_sep1330_enums(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        return await self._elicited(ctx, form("Please choose", ENUMS, []))

    async def test_reconnection(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        if ctx.close_sse_stream is not None:
            await ctx.close_sse_stream()
        await asyncio.sleep(0.1)
        return complete(text("reconnected"))

    async def echo(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        await asyncio.sleep(arguments.get("delay_ms", 0) / 1000)
        return complete(text(json.dumps(arguments.get("value"))))

    async def hang(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return {}

    async def flood(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        return complete(text("x" * arguments["bytes"]))

    async def die(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        os._exit(9)

    async def headers(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        found = {} if ctx.request is None else dict(ctx.request.headers)
        return complete(text(json.dumps({"headers": found, "meta": (ctx.params or {}).get("_meta", {})})))

    async def touch_resource(self, ctx: Any, arguments: Any) -> dict[str, Any]:
        uri = "test://watched-resource"
        await self.bus.publish(ResourceUpdated(uri=uri))
        for connection in self.subscribed.get(uri, []):
            await connection.send_resource_updated(uri)
        return complete(text("touched"))

    async def list_resources(self, ctx: Any, params: Any) -> dict[str, Any]:
        kinds = {"static-text": "text/plain", "static-binary": "image/png", "watched-resource": "text/plain"}
        found = [
            {"uri": f"test://{n}", "name": n, "description": f"The resource {n}.", "mimeType": m}
            for n, m in kinds.items()
        ]
        return {"resources": found, "ttlMs": 1000, "cacheScope": "public"}

    async def list_templates(self, ctx: Any, params: Any) -> dict[str, Any]:
        one = {"uriTemplate": "test://template/{id}/data", "name": "template", "mimeType": "application/json"}
        return {"resourceTemplates": [one], "ttlMs": 1000, "cacheScope": "public"}

    async def read_resource(self, ctx: Any, params: Any) -> dict[str, Any]:
        uri = str(params.uri)
        item: dict[str, Any] = {"uri": uri, "mimeType": "text/plain"}
        if uri == "test://static-binary":
            item |= {"mimeType": "image/png", "blob": PNG}
        elif uri.startswith("test://template/"):
            body = {"id": uri.split("/")[3], "templateTest": True, "data": f"Data for ID: {uri.split('/')[3]}"}
            item |= {"mimeType": "application/json", "text": json.dumps(body)}
        elif uri in ("test://static-text", "test://watched-resource"):
            item["text"] = "This is the content of the static text resource."
        else:
            raise MCPError(types.INVALID_PARAMS, "Resource not found", {"uri": uri})
        return {"contents": [item], "ttlMs": 1000, "cacheScope": "private"}

    async def subscribe(self, ctx: Any, params: Any) -> types.EmptyResult:
        self.subscribed.setdefault(str(params.uri), []).append(ctx.session._connection)
        return types.EmptyResult()

    async def unsubscribe(self, ctx: Any, params: Any) -> types.EmptyResult:
        self.subscribed.get(str(params.uri), []).remove(ctx.session._connection)
        return types.EmptyResult()

    async def list_prompts(self, ctx: Any, params: Any) -> dict[str, Any]:
        words = {
            "test_simple_prompt": [],
            "test_prompt_with_arguments": ["arg1", "arg2"],
            "test_prompt_with_embedded_resource": ["resourceUri"],
            "test_prompt_with_image": [],
            "test_input_required_result_prompt": [],
        }
        found = [
            {"name": n, "description": f"The prompt {n}.", "arguments": [{"name": a, "required": True} for a in names]}
            for n, names in words.items()
        ]
        return {"prompts": found, "ttlMs": 1000, "cacheScope": "public"}

    async def get_prompt(self, ctx: Any, params: Any) -> dict[str, Any]:
        given = params.arguments or {}
        if params.name == "test_prompt_with_arguments":
            contents = [text(f"Prompt with arguments: arg1='{given.get('arg1')}', arg2='{given.get('arg2')}'")]
        elif params.name == "test_prompt_with_embedded_resource":
            inner = {"uri": given.get("resourceUri"), "mimeType": "text/plain", "text": "Embedded."}
            contents = [{"type": "resource", "resource": inner}, text("Please process the resource above.")]
        elif params.name == "test_prompt_with_image":
            contents = [{"type": "image", "data": PNG, "mimeType": "image/png"}, text("Please look at the image.")]
        elif params.name == "test_input_required_result_prompt":
            answers = (ctx.params or {}).get("inputResponses") or {}
            if accepted(answers, "user_context") is None:
                return ask({"user_context": form("Which context?", {"context": STRING})})
            contents = [text("with context")]
        elif params.name == "test_simple_prompt":
            contents = [text("This is a simple prompt for testing.")]
        else:
            raise MCPError(types.INVALID_PARAMS, f"no prompt {params.name}")
        return {"messages": [{"role": "user", "content": content} for content in contents]}

    async def completion(self, ctx: Any, params: Any) -> dict[str, Any]:
        words = [word for word in ("paris", "park", "party") if word.startswith(params.argument.value)]
        return {"completion": {"values": words, "total": len(words), "hasMore": False}}

    async def set_level(self, ctx: Any, params: Any) -> types.EmptyResult:
        return types.EmptyResult()


class Events(EventStore):
    """Keeps the events of streams, so that a client can take one up again."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    async def store_event(self, stream_id: str, message: Any) -> str:
        self.events.append((stream_id, message))
        return str(len(self.events))

    async def replay_events_after(self, last_event_id: str, send_callback: Any) -> str | None:
        if not last_event_id.isdigit() or not 0 < int(last_event_id) <= len(self.events):
            return None
        stream = self.events[int(last_event_id) - 1][0]
        for number, (other, message) in enumerate(self.events[int(last_event_id) :], int(last_event_id) + 1):
            if other == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


def http_app(fixture: Fixture | None = None) -> Any:
    return (fixture or Fixture()).server.streamable_http_app(event_store=Events(), retry_interval=100)


async def serve_stdio() -> None:
    server = Fixture().server
    options = server.create_initialization_options(
        NotificationOptions(tools_changed=True, prompts_changed=True, resources_changed=True)
    )
    async with stdio_server() as (read, write):
        await server.run(read, write, options)


def serve_http(port: int) -> None:
    import uvicorn

    class Announcing(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            print("READY", flush=True)

    Announcing(uvicorn.Config(http_app(), port=port, log_level="error")).run()


if __name__ == "__main__":
    if sys.argv[1] == "http":
        serve_http(int(sys.argv[2]))
    else:
        asyncio.run(serve_stdio())
