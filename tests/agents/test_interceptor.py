from __future__ import annotations

import asyncio

import pytest
from mcp import Client, MCPError
from mcp.server.lowlevel import Server
from mcp_types import CallToolResult, ListToolsResult, TextContent, Tool

from heliograph.agents import CallRate, Chain, Envelope, RateLimiter, Rejected
from heliograph.agents.core.interceptor import as_mcp_middleware, interceptor, transparency_faults
from heliograph.clock import VirtualClock
from heliograph.errors import BadInput


async def echo(env: Envelope) -> Envelope:
    return env.answer(env.payload)


def noting(name: str, notes: list[str]):
    @interceptor(name)
    async def stage(env, call_next):
        notes.append(f"{name} in")
        answer = await call_next(env)
        notes.append(f"{name} out")
        return answer

    return stage


def test_first_of_the_list_is_outermost():
    notes: list[str] = []
    asyncio.run(Chain([noting("a", notes), noting("b", notes)])(Envelope(topic="x"), echo))
    assert notes == ["a in", "b in", "b out", "a out"]


def test_refusal_names_the_stage_and_keeps_later_ones_from_seeing_the_message():
    notes: list[str] = []

    @interceptor("guard")
    async def guard(env, call_next):
        raise Rejected("not this", data={"hint": 1})

    with pytest.raises(Rejected) as caught:
        asyncio.run(Chain([noting("a", notes), guard, noting("b", notes)])(Envelope(topic="x"), echo))
    assert caught.value.to_jsonrpc_error() == {
        "code": -32003,
        "message": "not this",
        "data": {"hint": 1, "rejected_by": "guard"},
    }
    assert notes == ["a in"]


def test_two_stages_of_one_name_are_refused():
    with pytest.raises(BadInput, match="'a'"):
        Chain([noting("a", []), noting("a", [])])


def test_transparency_test_passes_an_observer_and_catches_each_kind_of_change():
    messages = [Envelope(topic="x", payload={"n": n}) for n in range(3)]

    @interceptor("rewrites")
    async def rewrites(env, call_next):
        return await call_next(env.replace(tenant="other"))

    @interceptor("answers")
    async def answers(env, call_next):
        return env.answer("mine")

    @interceptor("edits")
    async def edits(env, call_next):
        return (await call_next(env)).replace(payload="edited")

    def faults(stage):
        return asyncio.run(transparency_faults(stage, messages))

    assert faults(noting("a", [])) == []
    assert "on its way in" in faults(rewrites)[0]
    assert "0 times" in faults(answers)[0]
    assert "on the way out" in faults(edits)[0]


def test_interceptor_guards_a_server_of_the_official_sdk():
    async def call_tool(ctx, params):
        return CallToolResult(content=[TextContent(type="text", text=params.arguments["word"])])

    async def list_tools(ctx, params):
        return ListToolsResult(tools=[Tool(name="say", input_schema={"type": "object"})])

    @interceptor("polite")
    async def polite(env, call_next):
        params = env.payload.get("params", {})
        if env.payload["method"] == "tools/call" and params["arguments"]["word"] == "rude":
            raise Rejected("mind your words", data={"retryable": False})
        return await call_next(env)

    server = Server("s", on_call_tool=call_tool, on_list_tools=list_tools)
    server.middleware.append(as_mcp_middleware(polite))

    async def run(mode):
        async with Client(server, mode=mode) as client:
            good = await client.call_tool("say", {"word": "please"})
            with pytest.raises(MCPError) as caught:
                await client.call_tool("say", {"word": "rude"})
            return good.content[0].text, caught.value

    for mode in ("auto", "legacy"):
        text, error = asyncio.run(run(mode))
        assert text == "please"
        assert (error.code, error.data) == (-32003, {"retryable": False, "rejected_by": "polite"})


def test_bucket_gives_its_burst_then_refills_at_its_rate():
    clock = VirtualClock()
    limiter = RateLimiter(2.0, 3, clock=clock)
    assert [limiter.admit("a") for _ in range(3)] == [0, 0, 0]
    assert limiter.admit("a") == pytest.approx(0.5)
    assert limiter.admit("b") == 0
    clock.sleep(0.5)
    assert limiter.admit("a") == 0
    assert limiter.admit("a") > 0


def test_limiter_never_keeps_more_keys_than_its_capacity():
    limiter = RateLimiter(1, 1, clock=VirtualClock(), capacity=10)
    for number in range(1000):
        limiter.admit(str(number))
    assert len(limiter) == 10


def test_call_rate_limits_a_caller_and_tool_and_says_when_to_return():
    clock = VirtualClock()
    chain = Chain([CallRate(RateLimiter(1, 1, clock=clock))])

    def call(sender, tool, method="tools/call"):
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"name": tool}}
        return asyncio.run(chain(Envelope.from_jsonrpc(message, sender=sender), echo))

    call("ann", "t")
    with pytest.raises(Rejected) as caught:
        call("ann", "t")
    assert caught.value.data == {"retryable": True, "retry_after_ms": 1000}
    call("ann", "other")
    call("bob", "t")
    call("ann", "t", method="tools/list")
    clock.sleep(1)
    call("ann", "t")


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0.5), (float("inf"), 1), (float("nan"), 1)])
def test_impossible_rates_are_refused(rate, burst):
    with pytest.raises(BadInput, match="rate limit"):
        RateLimiter(rate, burst)
