# ruff: noqa: SIM117 - a server, the gateway and a client read better one under the other
"""The gateway's own way of serving a request of the stateless era: it answers as the SDK's server would."""

from __future__ import annotations

import asyncio
import json
import math

import httpx2
import pytest
from mcp import Client

from heliograph.agents import Rejected, UpstreamSpec
from heliograph.agents.core import http_reply
from heliograph.agents.core.interceptor import interceptor
from tests.agents.fixture_server import Fixture, http_app
from tests.agents.serving import gateway_before, run, serving
from tests.agents.test_gateway import modern

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@interceptor("odd")
async def odd(env, call_next):
    name = (env.payload["params"] or {}).get("name")
    if name == "refused":
        raise Rejected("not here", data={"nothing": None})
    if name == "broken":
        raise RuntimeError("a secret of the gateway")
    answer = await call_next(env)
    if name == "echo":
        result = {**answer.payload["result"], "number": math.nan, "nothing": None, "text": "\u2028é"}
        return answer.replace(payload={**answer.payload, "result": result})
    return answer


def call(name="echo", arguments=None, meta=None, **changes):
    body, headers = modern("tools/call", {"name": name, "arguments": arguments or {"value": 1}}, **{"mcp-name": name})
    body["params"]["_meta"] |= meta or {}
    return {**body, **changes}, headers


def posted(body, headers, **changes):
    return json.dumps(body).encode(), {"content-type": "application/json", **headers, **changes}


REQUESTS = {
    "call": posted(*call()),
    "tool error": posted(*call("test_error_handling")),
    "unknown tool": posted(*call("nothing_like_it")),
    "text id": posted(*call(id="a")),
    "refused": posted(*call("refused")),
    "broken": posted(*call("broken")),
    "list": posted(*modern("tools/list", {})),
    "unknown method": posted(*modern("no/such", {})),
    "ping": posted(*modern("ping", {})),
    "discover": posted(*modern("server/discover", {})),
    "bad id": posted(*call(id=1.5)),
    "true as id": posted(*call(id=True)),
    "no id": posted({k: v for k, v in call()[0].items() if k != "id"}, call()[1]),
    "other version of JSON-RPC": posted(*call(jsonrpc="1.0")),
    "batch": (json.dumps([call()[0]]).encode(), {"content-type": "application/json", **call()[1]}),
    "not JSON": (b"{", {"content-type": "application/json", **call()[1]}),
    "other name in the header": posted(*call(), **{"mcp-name": "flood"}),
    "other method in the header": posted(*call(), **{"mcp-method": "tools/list"}),
    "other version in the header": posted(*call(), **{"mcp-protocol-version": "2030-01-01"}),
    "no envelope": posted({**call()[0], "params": {"name": "echo"}}, call()[1]),
    "other host": posted(*call(), host="evil.example"),
    "other origin": posted(*call(), origin="https://evil.example"),
    "own origin": posted(*call(), origin="http://localhost:3000"),
    "not accepted": posted(*call(), accept="application/json"),
    "no JSON by its type": posted(*call(), **{"content-type": "text/plain"}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_answer_is_that_of_the_sdk(name):
    body, headers = REQUESTS[name]

    async def scenario():
        async with serving(http_app()) as up, gateway_before({"up": up}, [odd]) as (_, url):
            async with httpx2.AsyncClient() as http:
                ours = [await http.post(url, content=body, headers=headers) for _ in range(2)]
                twice = [*headers.items(), ("x-twice", "1"), ("x-twice", "2")]  # the SDK's application serves these
                sdk = await http.post(url, content=body, headers=twice)
        for one in ours:
            assert (one.status_code, one.headers.get("content-type")) == (
                sdk.status_code,
                sdk.headers.get("content-type"),
            )
            assert one.text == sdk.text
        return sdk

    answer = run(scenario)
    assert "secret" not in answer.text


def test_call_is_served_without_the_sdk_and_a_middleware_of_somebody_else_brings_it_back():
    seen = []

    async def middleware(ctx, call_next):
        seen.append(ctx.method)
        return await call_next(ctx)

    async def scenario():
        async with serving(http_app()) as up, gateway_before({"up": up}) as (gateway, url):
            manager = gateway.server._session_manager
            handed, inner = [], manager.asgi_app

            async def watched(scope, receive, send):
                handed.append(scope["path"])
                await inner(scope, receive, send)

            manager.asgi_app = watched
            async with httpx2.AsyncClient() as http:
                body, headers = posted(*call())
                await http.post(url, content=body, headers=headers)
                assert handed == []
                gateway.server.middleware.insert(0, middleware)
                answer = await http.post(url, content=body, headers=headers)
            assert answer.json()["result"]["content"]
            return handed

    assert run(scenario) == ["/mcp"]
    assert seen == ["tools/call"]


def test_what_is_said_before_the_answer_makes_it_a_stream():
    async def scenario():
        async with serving(http_app()) as up, gateway_before({"up": up}) as (_, url):
            async with httpx2.AsyncClient() as http:
                body, headers = posted(*call("test_tool_with_progress", meta={"progressToken": "t"}))
                answer = await http.post(url, content=body, headers=headers)
        assert answer.headers["content-type"] == "text/event-stream"
        events = [json.loads(line[6:]) for line in answer.text.split("\r\n") if line.startswith("data: ")]
        assert [event.get("method") for event in events[:-1]] == ["notifications/progress"] * (len(events) - 1)
        assert len(events) > 1
        assert events[-1]["id"] == 1

    run(scenario)


def test_slow_call_is_kept_open_by_comments(monkeypatch):
    monkeypatch.setattr(http_reply, "PING_S", 0.05)

    async def scenario():
        async with serving(http_app()) as up, gateway_before({"up": up}) as (_, url):
            async with httpx2.AsyncClient() as http:
                body, headers = posted(*call(arguments={"value": 1, "delay_ms": 400}))
                answer = await http.post(url, content=body, headers=headers)
        assert answer.text.startswith(": ping\r\n\r\n")
        assert '"id":1' in answer.text

    run(scenario)


def test_caller_who_goes_away_cancels_the_call_and_leaves_the_gateway_idle():
    async def scenario():
        fixture = Fixture()
        async with serving(http_app(fixture)) as up, gateway_before({"up": UpstreamSpec(url=up)}) as (gateway, url):
            async with httpx2.AsyncClient() as http:
                body, headers = posted(*call("hang"))
                hung = asyncio.create_task(http.post(url, content=body, headers=headers))
                while not gateway.upstreams["up"].info or not gateway.in_flight:
                    await asyncio.sleep(0.01)
                hung.cancel()
                while not fixture.cancelled or gateway.in_flight:
                    await asyncio.sleep(0.01)
            async with Client(url) as client:
                assert (await client.call_tool("echo", {"value": 2})).content[0].text == "2"

    run(scenario)


def test_trace_of_the_caller_goes_on_to_the_server():
    async def scenario():
        async with serving(http_app()) as up, gateway_before({"up": up}) as (_, url):
            async with httpx2.AsyncClient() as http:
                texts = []
                for meta in ({"traceparent": PARENT}, {}):
                    body, headers = posted(*call("headers", meta=meta))
                    texts.append((await http.post(url, content=body, headers=headers)).text)
        assert PARENT.split("-")[1] in texts[0]
        assert "traceparent" not in texts[1]

    run(scenario)
