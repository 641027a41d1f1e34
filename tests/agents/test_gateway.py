# ruff: noqa: SIM117 - a server, the gateway and a client read better one under the other
"""The gateway between official clients and official servers, in both protocol eras."""

from __future__ import annotations

import asyncio
import json
import sys

import httpx2
import mcp_types as types
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from heliograph.agents import Gateway, Rejected, UpstreamSpec
from heliograph.agents.core.config import Listen
from heliograph.agents.core.gateway import current_call
from heliograph.agents.core.http_front import HttpFront
from heliograph.agents.core.identity import Principal, StaticTokens
from heliograph.agents.core.interceptor import interceptor
from heliograph.errors import BadInput
from tests.agents.fixture_server import Fixture, http_app
from tests.agents.serving import FIXTURE, gateway_before, run, serving

ERAS = pytest.mark.parametrize("mode", ["auto", "legacy"])
STDIO = UpstreamSpec(command=sys.executable, args=(str(FIXTURE), "stdio"))


def dumped(result):
    plain = result.model_dump(by_alias=True, mode="json", exclude_none=True)
    plain.pop("_meta", None)
    return plain


def said(result):
    return result.content[0].text


async def everything(client):
    """One of everything that a client can ask for."""
    return [
        dumped(await client.list_tools()),
        dumped(await client.call_tool("test_simple_text", {})),
        dumped(await client.call_tool("test_multiple_content_types", {})),
        dumped(await client.call_tool("test_error_handling", {})),
        dumped(await client.list_resources()),
        dumped(await client.list_resource_templates()),
        dumped(await client.read_resource("test://static-binary")),
        dumped(await client.read_resource("test://template/7/data")),
        dumped(await client.list_prompts()),
        dumped(await client.get_prompt("test_prompt_with_arguments", {"arg1": "a", "arg2": "b"})),
        dumped(
            await client.complete(
                types.PromptReference(name="test_prompt_with_arguments"), {"name": "arg1", "value": "par"}
            )
        ),
        client.server_capabilities.model_dump(exclude_none=True) if client.server_capabilities else None,
        client.instructions,
    ]


@ERAS
@pytest.mark.parametrize("transport", ["http", "stdio"])
def test_client_sees_the_same_through_the_gateway_as_without_it(mode, transport):
    async def scenario():
        async with serving(http_app()) as direct_url:
            async with Client(direct_url, mode=mode) as direct:
                expected = await everything(direct)
            upstream = direct_url if transport == "http" else STDIO
            async with gateway_before({"up": upstream}) as (_, url), Client(url, mode=mode) as client:
                found = await everything(client)
        if transport == "stdio":
            expected[-2] = found[-2]  # a pipe announces list changes in its own way
        assert found == expected

    run(scenario)


@ERAS
def test_progress_and_logs_reach_the_request_they_belong_to(mode):
    async def scenario():
        logs, progress = [], []

        async def on_log(params):
            logs.append(params.data)

        async def on_progress(done, total, message):
            progress.append(done)

        async with serving(http_app()) as up, gateway_before({"up": up}) as (_, url):
            async with Client(url, mode=mode, logging_callback=on_log, log_level="info") as client:
                await client.call_tool("test_tool_with_logging", {})
                await client.call_tool("test_tool_with_progress", {}, progress_callback=on_progress)
        assert logs == ["Tool execution started", "Tool processing data", "Tool execution completed"]
        assert progress == [0, 50, 100]

    run(scenario)


@ERAS
def test_server_can_ask_the_client_through_the_gateway(mode):
    async def scenario():
        async def elicit(ctx, params):
            return types.ElicitResult(action="accept", content={"response": "blue", "name": "Ann"})

        async def sampling(ctx, params):
            answer = types.TextContent(type="text", text="Paris")
            return types.CreateMessageResult(role="assistant", content=answer, model="m")

        async with serving(http_app()) as up, gateway_before({"up": up}) as (_, url):
            async with Client(url, mode=mode, elicitation_callback=elicit, sampling_callback=sampling) as client:
                chosen = await client.call_tool("test_elicitation", {"message": "Colour?"})
                sampled = await client.call_tool("test_sampling", {"prompt": "Capital of France?"})
        assert "blue" in said(chosen)
        assert said(sampled) == "LLM response: Paris"

    run(scenario)


def test_resource_updates_reach_a_session_and_a_subscription():
    async def scenario():
        fixture = Fixture()
        async with serving(http_app(fixture)) as up, gateway_before({"up": up}) as (_, url):
            updated = asyncio.Event()

            async def on_message(message):
                if isinstance(message, types.ResourceUpdatedNotification):
                    updated.set()

            async with Client(url, mode="legacy", message_handler=on_message) as old:
                await old.session.subscribe_resource("test://watched-resource")
                await old.call_tool("touch_resource", {})
                await updated.wait()
            async with Client(url) as new:
                async with new.listen(resource_subscriptions=["test://watched-resource"]) as events:
                    await new.call_tool("touch_resource", {})
                    assert (await anext(aiter(events))).uri == "test://watched-resource"

    run(scenario)


@ERAS
def test_several_servers_are_told_apart_by_name(mode):
    async def scenario():
        async with serving(http_app()) as one, serving(http_app()) as two:
            async with gateway_before({"one": one, "my_two": two}) as (_, url), Client(url, mode=mode) as client:
                names = {tool.name for tool in (await client.list_tools()).tools}
                assert {"one.echo", "my_two.echo"} <= names
                assert said(await client.call_tool("my_two.echo", {"value": 5})) == "5"
                uris = {str(r.uri) for r in (await client.list_resources()).resources}
                assert {"one+test://static-text", "my.two+test://static-text"} <= uris
                read = await client.read_resource("my.two+test://static-text")
                assert str(read.contents[0].uri) == "my.two+test://static-text"
                embedded = await client.call_tool("one.test_embedded_resource", {})
                assert str(embedded.content[0].resource.uri) == "one+test://embedded-resource"
                prompt = await client.get_prompt("one.test_simple_prompt")
                assert prompt.messages
                for wrong in ("echo", "three.echo"):
                    with pytest.raises(MCPError, match="no server behind this gateway"):
                        await client.call_tool(wrong, {})

    run(scenario)


def test_one_dead_server_hides_nothing_of_the_others():
    async def scenario():
        async with serving(http_app()) as good:
            async with gateway_before({"good": good, "dead": "http://127.0.0.1:1/mcp"}) as (_, url):
                async with Client(url) as client:
                    names = {tool.name for tool in (await client.list_tools()).tools}
                    assert "good.echo" in names
                    assert not any(name.startswith("dead.") for name in names)
                    with pytest.raises(MCPError) as caught:
                        await client.call_tool("dead.echo", {})
                    assert caught.value.error.code == -32005
                    assert caught.value.error.data["retryable"] is True

    run(scenario)


def test_callers_of_both_eras_reach_a_server_of_sessions_only():
    async def scenario():
        async with serving(http_app()) as up:
            spec = UpstreamSpec(url=up, era="sessions")
            async with gateway_before({"up": spec}) as (gateway, url):
                for mode in ("auto", "legacy"):
                    async with Client(url, mode=mode) as client:
                        assert said(await client.call_tool("echo", {"value": mode})) == f'"{mode}"'
                        assert len((await client.list_tools()).tools) > 20
                assert gateway.upstreams["up"].info.version == "2025-11-25"

    run(scenario)


def test_sessions_share_nothing_and_get_their_own_answers():
    async def scenario():
        async with serving(http_app()) as up, gateway_before({"up": up}) as (gateway, url):

            async def caller(number, mode):
                async def elicit(ctx, params):
                    return types.ElicitResult(action="accept", content={"response": f"caller {number}"})

                async with Client(url, mode=mode, elicitation_callback=elicit) as client:
                    for step in range(6):
                        value = f"{number}-{step}"
                        echo, asked = await asyncio.gather(
                            client.call_tool("echo", {"value": value, "delay_ms": (number * 7 + step) % 5}),
                            client.call_tool("test_elicitation", {"message": value}),
                        )
                        assert said(echo) == json.dumps(value)
                        assert f"caller {number}'" in said(asked)

            await asyncio.gather(*(caller(n, "legacy" if n % 2 else "auto") for n in range(8)))
            assert gateway.in_flight == 0

    run(scenario)


def test_ended_session_ends_its_session_upstream():
    async def scenario():
        async with serving(http_app()) as up, gateway_before({"up": up}) as (gateway, url):
            async with Client(url, mode="legacy") as client:
                await client.list_tools()
                assert gateway.upstreams["up"].sessions == 1
            while gateway.upstreams["up"].sessions:
                await asyncio.sleep(0.01)

    run(scenario)


def test_no_header_of_the_caller_reaches_the_server():
    async def scenario():
        tokens = StaticTokens({"caller-secret-0123456789": Principal("ann")})
        async with serving(http_app()) as up:
            spec = UpstreamSpec(url=up, headers={"authorization": "Bearer own-credential"})
            async with gateway_before({"up": spec}, verifier=tokens) as (_, url):
                headers = {
                    "authorization": "Bearer caller-secret-0123456789",
                    "cookie": "a=caller-cookie",
                    "x-forwarded-for": "1.2.3.4",
                }
                for mode in ("auto", "legacy"):
                    async with httpx2.AsyncClient(headers=headers) as http:
                        async with Client(streamable_http_client(url, http_client=http), mode=mode) as client:
                            seen = said(await client.call_tool("headers", {}))
                    assert "caller-secret" not in seen
                    assert "caller-cookie" not in seen
                    assert "1.2.3.4" not in seen
                    assert "own-credential" in seen

    run(scenario)


def modern(method, params, **headers):
    meta = {
        types.PROTOCOL_VERSION_META_KEY: "2026-07-28",
        types.CLIENT_CAPABILITIES_META_KEY: {},
        types.CLIENT_INFO_META_KEY: {"name": "raw", "version": "1"},
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
    own = {
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": "2026-07-28",
        "mcp-method": method,
        **headers,
    }
    return body, own


def test_routing_header_that_disagrees_with_the_body_is_refused():
    async def scenario():
        async with serving(http_app()) as up, gateway_before({"up": up}) as (gateway, url):
            async with httpx2.AsyncClient() as http:
                body, headers = modern("tools/call", {"name": "echo", "arguments": {}}, **{"mcp-name": "flood"})
                answer = await http.post(url, json=body, headers=headers)
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == -32020
            assert gateway.upstreams["up"].calls == 0

    run(scenario)


def test_tool_arguments_that_travel_as_headers_reach_the_server():
    async def scenario():
        async with serving(http_app()) as up, gateway_before({"up": up}) as (_, url), Client(url) as client:
            await client.list_tools()
            assert said(await client.call_tool("by_region", {"region": "eu"})) == "ok"

    run(scenario)


def test_interceptors_see_the_caller_the_tool_and_can_refuse():
    seen = []

    @interceptor("guard")
    async def guard(env, call_next):
        call = current_call()
        params = env.payload["params"]
        seen.append((env.sender, env.tenant, call.upstream, env.payload["method"], params.get("name")))
        if params.get("name") == "die":
            raise Rejected("die is not allowed here", data={"suggested_actions": ["ask"]})
        answer = await call_next(env)
        if params.get("name") == "echo":
            result = {**answer.payload["result"], "content": [{"type": "text", "text": "rewritten"}]}
            return answer.replace(payload={**answer.payload, "result": result})
        return answer

    async def scenario():
        tokens = StaticTokens({"a-token-of-some-length": Principal("ann", tenant="acme")})
        async with serving(http_app()) as up, gateway_before({"up": up}, [guard], verifier=tokens) as (_, url):
            body, headers = modern("tools/call", {"name": "echo", "arguments": {}}, **{"mcp-name": "echo"})
            refused, _ = modern("tools/call", {"name": "die", "arguments": {}})
            async with httpx2.AsyncClient(headers={"authorization": "Bearer a-token-of-some-length"}) as http:
                good = (await http.post(url, json=body, headers=headers)).json()
                bad = (await http.post(url, json=refused, headers={**headers, "mcp-name": "die"})).json()
        assert good["result"]["content"][0]["text"] == "rewritten"
        assert bad["error"]["code"] == -32003
        assert bad["error"]["data"] == {"suggested_actions": ["ask"], "rejected_by": "guard"}
        assert seen[0] == ("ann", "acme", "up", "tools/call", "echo")

    run(scenario)


@pytest.mark.parametrize("authorization", [None, "Bearer wrong-token-wrong-token", "Basic x", "Bearer"])
def test_caller_without_a_good_token_gets_401(authorization):
    async def scenario():
        tokens = StaticTokens({"a-token-of-some-length": Principal("ann")})
        async with serving(http_app()) as up, gateway_before({"up": up}, verifier=tokens) as (_, url):
            async with httpx2.AsyncClient() as http:
                body, headers = modern("tools/list", {})
                given = {"authorization": authorization} if authorization else {}
                answer = await http.post(url, json=body, headers={**headers, **given})
                metrics = await http.get(url.replace("/mcp", "/metrics"), headers=given)
                health = await http.get(url.replace("/mcp", "/health"))
        assert (answer.status_code, metrics.status_code, health.status_code) == (401, 401, 200)
        assert answer.headers["www-authenticate"].startswith("Bearer")

    run(scenario)


def test_session_belongs_to_the_caller_who_opened_it():
    async def scenario():
        tokens = StaticTokens(
            {"token-of-ann-0123456789": Principal("ann"), "token-of-bob-0123456789": Principal("bob")}
        )
        async with serving(http_app()) as up, gateway_before({"up": up}, verifier=tokens) as (_, url):
            async with httpx2.AsyncClient(headers={"accept": "application/json, text/event-stream"}) as http:
                hello = {
                    "jsonrpc": "2.0",
                    "id": 1,
                    "method": "initialize",
                    "params": {
                        "protocolVersion": "2025-11-25",
                        "capabilities": {},
                        "clientInfo": {"name": "x", "version": "1"},
                    },
                }
                ann = {"authorization": "Bearer token-of-ann-0123456789"}
                opened = await http.post(url, json=hello, headers=ann)
                session = {"mcp-session-id": opened.headers["mcp-session-id"]}
                ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
                stolen = await http.post(
                    url, json=ping, headers={**session, "authorization": "Bearer token-of-bob-0123456789"}
                )
                own = await http.post(url, json=ping, headers={**session, **ann})
        assert (stolen.status_code, own.status_code) == (404, 200)

    run(scenario)


def test_beyond_loopback_needs_authentication():
    with pytest.raises(BadInput, match="auth"):
        HttpFront(Gateway({"up": "http://127.0.0.1:1/mcp"}), Listen(host="0.0.0.0"))


def test_metrics_count_outcomes():
    async def scenario():
        async with serving(http_app()) as up, gateway_before({"up": up}) as (_, url):
            async with Client(url) as client:
                await client.call_tool("echo", {})
                await client.call_tool("test_error_handling", {})
            async with httpx2.AsyncClient() as http:
                text = (await http.get(url.replace("/mcp", "/metrics"))).text
        for outcome in ("ok", "tool_error"):
            line = f'heliograph_requests_total{{method="tools/call",outcome="{outcome}",upstream="up"}} 1.0'
            assert line in text
        assert 'heliograph_upstream_up{upstream="up"} 1.0' in text

    run(scenario)


def test_reconfiguration_keeps_sessions_and_unchanged_servers():
    async def scenario():
        async with serving(http_app()) as one, serving(http_app()) as two:
            async with gateway_before({"one": one, "two": two}) as (gateway, url):
                async with Client(url, mode="legacy") as client:
                    await client.call_tool("one.echo", {})
                    before = gateway.upstreams["one"]
                    await gateway.reconfigure({"one": one, "three": two})
                    assert gateway.upstreams["one"] is before
                    names = {tool.name for tool in (await client.list_tools()).tools}
                    assert "three.echo" in names
                    assert "two.echo" not in names
                    assert said(await client.call_tool("three.echo", {"value": 1})) == "1"
                    with pytest.raises(BadInput):
                        await gateway.reconfigure({})
                    assert said(await client.call_tool("one.echo", {"value": 2})) == "2"

    run(scenario)


@pytest.mark.parametrize("bad", [{}, {"": "http://x"}, {"a b": "http://x"}, {"1a": "http://x"}, {"a": "ftp://x"}])
def test_upstreams_that_cannot_be_are_refused(bad):
    with pytest.raises(BadInput):
        Gateway(bad)


def test_two_names_that_differ_in_case_only_are_refused():
    with pytest.raises(BadInput, match="differ in case"):
        Gateway({"crm": "http://a", "CRM": "http://b"})
