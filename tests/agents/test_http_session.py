# ruff: noqa: SIM117 - a server, the gateway and a client read better one under the other
"""Requests within a session, served beside the SDK's server: the same answers, and the session stays the SDK's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math

import httpx2
import mcp_types as types
import pytest
from mcp import Client
from mcp.server.streamable_http import EventMessage

from heliograph.agents import Rejected
from heliograph.agents.core import http_reply, http_session
from heliograph.agents.core.http_client import SessionWire
from heliograph.agents.core.identity import Principal, StaticTokens
from heliograph.agents.core.inbound import Session
from heliograph.agents.core.interceptor import interceptor
from tests.agents.fixture_server import Fixture, http_app
from tests.agents.serving import gateway_before, run, serving
from tests.agents.test_gateway import everything, said

VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26")
ACCEPT = {"accept": "application/json, text/event-stream", "content-type": "application/json"}


@interceptor("odd")
async def odd(env, call_next):
    name = (env.payload["params"] or {}).get("name")
    if name == "refused":
        raise Rejected("not here", data={"nothing": None})
    if name == "broken":
        raise RuntimeError("it broke")
    answer = await call_next(env)
    if name == "echo":
        result = {**answer.payload["result"], "nothing": None, "text": "\u2028é"}
        return answer.replace(payload={**answer.payload, "result": result})
    return answer


async def pass_on(ctx, call_next):
    return await call_next(ctx)


def call(name="echo", arguments=None, **changes):
    params = {"name": name, "arguments": {"value": 1} if arguments is None else arguments}
    return {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params, **changes}


def asked(method, params=None, **changes):
    return {"jsonrpc": "2.0", "id": 7, "method": method, **({} if params is None else {"params": params}), **changes}


class Session2025:
    """A session over plain HTTP, as a caller of no SDK would have it."""

    def __init__(self, http, url, version="2025-11-25", headers=()):
        self.http, self.url, self.version = http, url, version
        self.headers = {**ACCEPT, **dict(headers)}

    async def __aenter__(self):
        params = {
            "protocolVersion": self.version,
            "capabilities": {"elicitation": {}, "sampling": {}},
            "clientInfo": {"name": "raw", "version": "1"},
        }
        opened = await self.http.post(self.url, json=asked("initialize", params, id=0), headers=self.headers)
        assert message_of(opened)["result"]["protocolVersion"] == self.version
        self.headers |= {"mcp-session-id": opened.headers["mcp-session-id"], "mcp-protocol-version": self.version}
        done = await self.post({"jsonrpc": "2.0", "method": "notifications/initialized"})
        assert done.status_code == 202
        return self

    async def __aexit__(self, *_):
        await self.http.delete(self.url, headers=self.headers)

    async def post(self, body, headers=()):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.http.post(self.url, content=content, headers={**self.headers, **dict(headers)})


def events_of(answer):
    return [json.loads(line[6:]) for line in answer.text.split("\r\n") if line.startswith("data: ")]


def message_of(answer):
    kind = answer.headers.get("content-type", "")
    if kind.startswith("text/event-stream"):
        return events_of(answer)[-1]
    return answer.json() if kind.startswith("application/json") and answer.content else answer.text


def without_sdk(gateway):
    """Counts what is handed to the SDK from now on."""
    manager, handed = gateway.server._session_manager, []
    inner = manager.asgi_app

    async def watched(scope, receive, send):
        handed.append(scope["method"])
        await inner(scope, receive, send)

    manager.asgi_app = watched
    return handed


REQUESTS = {
    "call": (call(), {}),
    "tool error": (call("test_error_handling"), {}),
    "unknown tool": (call("nothing_like_it"), {}),
    "text id": (call(id="a"), {}),
    "large id": (call(id=2**70), {}),
    "huge id": (b'{"jsonrpc":"2.0","method":"tools/list","id":' + b"9" * 5000 + b"}", {}),
    "huge text id": (call(id="9" * 5000), {}),
    "refused": (call("refused"), {}),
    "broken": (call("broken"), {}),
    "list": (asked("tools/list", {}), {}),
    "list without parameters": (asked("tools/list"), {}),
    "level of logs": (asked("logging/setLevel", {"level": "info"}), {}),
    "unknown method": (asked("no/such", {}), {}),
    "of another era": (asked("subscriptions/listen", {"notifications": {}}), {}),
    "ping": (asked("ping"), {}),
    "null as parameters": (asked("tools/list", params=None) | {"params": None}, {}),
    "list as parameters": (asked("tools/list", []), {}),
    "list as _meta": (asked("tools/list", {"_meta": []}), {}),
    "fractional id": (call(id=1.5), {}),
    "true as id": (call(id=True), {}),
    "null as id": (call(id=None), {}),
    "id of the standing stream": (call(id="_GET_stream"), {}),
    "no id": ({k: v for k, v in call().items() if k != "id"}, {}),
    "result in a request": (call(result={}), {}),
    "answer that nobody asked for": ({"jsonrpc": "2.0", "id": 99, "result": {}}, {}),
    "other version of JSON-RPC": (call(jsonrpc="1.0"), {}),
    "number as method": (asked(5, {}), {}),
    "batch": ([call()], {}),
    "not JSON": (b"{", {}),
    "half of a character": (b'{"jsonrpc":"2.0","id":7,"method":"tools/list","params":{"cursor":"\\ud800"}}', {}),
    "not UTF-8": (b'{"jsonrpc":"2.0","id":7,"method":"tools/list","params":{"cursor":"\xff"}}', {}),
    "deep": (b'{"jsonrpc":"2.0","id":7,"method":"tools/list","params":{"x":' + b"[" * 5000, {}),
    "empty": (b"", {}),
    "other session": (call(), {"mcp-session-id": "0" * 32}),
    "no version in the header": (call(), {"mcp-protocol-version": ""}),
    "other version in the header": (call(), {"mcp-protocol-version": "2030-01-01"}),
    "older version in the header": (call(), {"mcp-protocol-version": "2025-03-26"}),
    "stateless version in the header": (call(), {"mcp-protocol-version": "2026-07-28"}),
    "other host": (call(), {"host": "evil.example"}),
    "other origin": (call(), {"origin": "https://evil.example"}),
    "own origin": (call(), {"origin": "http://localhost:3000"}),
    "not accepted": (call(), {"accept": "application/json"}),
    "no JSON by its type": (call(), {"content-type": "text/plain"}),
    "JSON with a character set": (call(), {"content-type": "application/json; charset=utf-8"}),
    "almost JSON by its type": (call(), {"content-type": "application/jsonp"}),
    "JSON in capitals": (call(), {"content-type": "Application/JSON"}),
    "two types": (call(), {"content-type": "application/json, text/plain"}),
    "long": (call(arguments={"value": "x" * 300_000}), {}),
}


def test_answer_is_that_of_the_sdk():
    async def scenario():
        listen = {"max_body_bytes": 200_000}
        async with serving(http_app()) as up, gateway_before({"up": up}, [odd], listen=listen) as (gateway, url):
            async with httpx2.AsyncClient() as http, Session2025(http, url) as session:
                for name, (body, headers) in REQUESTS.items():
                    ours = [await session.post(body, headers) for _ in range(2)]
                    gateway.server.middleware.insert(0, pass_on)
                    sdk = await session.post(body, headers)
                    gateway.server.middleware.remove(pass_on)
                    for one in ours:
                        assert one.status_code == sdk.status_code, name
                        assert one.headers.get("mcp-session-id") == sdk.headers.get("mcp-session-id"), name
                        assert message_of(one) == message_of(sdk), name
                        assert "it broke" not in one.text, name

    run(scenario)


@pytest.mark.parametrize("version", VERSIONS)
def test_call_is_served_without_the_sdk_in_every_version_with_sessions(version):
    async def scenario():
        async with serving(http_app()) as up, gateway_before({"up": up}) as (gateway, url):
            async with httpx2.AsyncClient() as http, Session2025(http, url, version) as session:
                handed = without_sdk(gateway)
                answer = await session.post(call())
                assert answer.headers["content-type"] == "application/json"
                assert answer.json()["result"]["content"] == [{"type": "text", "text": "1"}]
                assert handed == []
                gateway.server.middleware.insert(0, pass_on)
                assert (await session.post(call())).headers["content-type"].startswith("text/event-stream")
                assert handed == ["POST"]

    run(scenario)


@pytest.mark.parametrize("back", ["direct", "sdk"])
@pytest.mark.parametrize("front", ["direct", "sdk"])
def test_everything_is_the_same_on_every_path(front, back, monkeypatch):
    if back == "sdk":
        monkeypatch.setattr(SessionWire, "_learn", lambda *_: None)

    async def scenario():
        logs, progress, updated = [], [], asyncio.Event()

        async def on_log(params):
            logs.append(params.data)

        async def on_progress(done, total, message):
            progress.append((done, total, message))

        async def on_message(message):
            if isinstance(message, types.ResourceUpdatedNotification):
                updated.set()

        async def elicit(ctx, params):
            return types.ElicitResult(action="accept", content={"response": "blue"})

        async def sampling(ctx, params):
            answer = types.TextContent(type="text", text="Paris")
            return types.CreateMessageResult(role="assistant", content=answer, model="m")

        callbacks = {
            "logging_callback": on_log,
            "message_handler": on_message,
            "elicitation_callback": elicit,
            "sampling_callback": sampling,
        }
        fixture = Fixture()
        async with serving(http_app(fixture)) as up, gateway_before({"up": up}) as (gateway, url):
            if front == "sdk":
                gateway.server.middleware.insert(0, pass_on)
            async with Client(up, mode="legacy", **callbacks) as client:
                expected = await everything(client)
            async with Client(url, mode="legacy", **callbacks) as client:
                assert await everything(client) == expected
                await client.call_tool("test_tool_with_logging", {})
                await client.call_tool("test_tool_with_progress", {}, progress_callback=on_progress)
                chosen, sampled = await asyncio.gather(
                    client.call_tool("test_elicitation", {"message": "Colour?"}),
                    client.call_tool("test_sampling", {"prompt": "Capital of France?"}),
                )
                assert "blue" in said(chosen)
                assert said(sampled) == "LLM response: Paris"
                assert said(await client.call_tool("test_reconnection", {})) == "reconnected"
                await client.session.subscribe_resource("test://watched-resource")
                await client.call_tool("touch_resource", {})
                await updated.wait()
            assert gateway.in_flight == 0
        assert logs == ["Tool execution started", "Tool processing data", "Tool execution completed"]
        assert progress == [(0, 100, "0 of 100"), (50, 100, "50 of 100"), (100, 100, "100 of 100")]

    run(scenario)


def test_what_is_said_before_the_answer_makes_it_a_stream_of_that_request_alone():
    async def scenario():
        async with serving(http_app()) as up, gateway_before({"up": up}) as (_, url):
            async with httpx2.AsyncClient() as http, Session2025(http, url) as session:
                params = {"name": "test_tool_with_progress", "arguments": {}}
                tokens = ["t", 5, "u"]
                bodies = [call(params=params | {"_meta": {"progressToken": t}}, id=n) for n, t in enumerate(tokens)]
                logs = call("test_tool_with_logging", {}, id=9)
                answers = await asyncio.gather(*(session.post(body) for body in [*bodies, logs]))
        for number, (token, answer) in enumerate(zip(tokens, answers, strict=False)):
            assert answer.headers["mcp-session-id"] == session.headers["mcp-session-id"]
            *before, last = events_of(answer)
            assert [event["params"]["progressToken"] for event in before] == [token] * 3
            assert (last["id"], last["result"]["content"][0]["text"]) == (number, "done")
        *before, last = events_of(answers[3])
        assert [event["method"] for event in before] == ["notifications/message"] * 3
        assert last["id"] == 9

    run(scenario)


def test_question_of_the_server_goes_out_on_the_request_it_belongs_to():
    async def scenario():
        async with serving(http_app()) as up, gateway_before({"up": up}) as (_, url):
            async with httpx2.AsyncClient() as http, Session2025(http, url) as session:
                # The newest request in flight is the one that hangs.
                asking = asyncio.create_task(self_answering(session, call("test_elicitation", {"message": "?"}, id=1)))
                hanging = asyncio.create_task(session.post(call("echo", {"value": 2, "delay_ms": 300}, id=2)))
                question, answer = await asking
                assert (question["method"], question["params"]["message"]) == ("elicitation/create", "?")
                assert "green" in answer["result"]["content"][0]["text"]
                assert (await hanging).json()["id"] == 2

    async def self_answering(session, body):
        headers = session.headers
        async with session.http.stream("POST", session.url, json=body, headers=headers) as stream:
            messages = []
            async for line in stream.aiter_lines():
                if line.startswith("data: "):
                    messages.append(json.loads(line[6:]))
                    if "method" in messages[-1]:
                        chosen = {"action": "accept", "content": {"response": "green"}}
                        reply = {"jsonrpc": "2.0", "id": messages[-1]["id"], "result": chosen}
                        assert (await session.post(reply)).status_code == 202
        return messages

    run(scenario)


def test_cancelled_call_is_answered_as_such_and_ends_at_the_server():
    async def scenario():
        fixture = Fixture()
        async with serving(http_app(fixture)) as up, gateway_before({"up": up}) as (gateway, url):
            async with httpx2.AsyncClient() as http, Session2025(http, url) as session:
                await session.post(call())
                for number in (5, "text", "12"):
                    hung = asyncio.create_task(session.post(call("hang", {}, id=number)))
                    while not gateway.in_flight:
                        await asyncio.sleep(0.01)
                    for other in (6, None, True, [], {}, "no", "" if number == 5 else 5):
                        params = {"requestId": other}
                        await session.post({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})
                    assert gateway.in_flight == 1
                    params = {"requestId": 12 if number == "12" else number, "reason": "enough"}
                    await session.post({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})
                    answer = (await hung).json()
                    assert answer == {
                        "jsonrpc": "2.0",
                        "id": number,
                        "error": {"code": -32800, "message": "Request cancelled"},
                    }
                while fixture.cancelled < 3:
                    await asyncio.sleep(0.01)
                assert gateway.in_flight == 0
                assert (await session.post(call())).json()["result"]

    run(scenario)


def test_cancelling_reaches_only_the_own_session():
    async def scenario():
        async with serving(http_app()) as up, gateway_before({"up": up}) as (gateway, url):
            async with httpx2.AsyncClient() as http, Session2025(http, url) as ann, Session2025(http, url) as bob:
                slow = asyncio.create_task(ann.post(call("echo", {"value": 3, "delay_ms": 200})))
                while not gateway.in_flight:
                    await asyncio.sleep(0.01)
                await bob.post({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}})
                assert (await slow).json()["result"]["content"][0]["text"] == "3"

    run(scenario)


def test_session_deleted_while_a_call_is_running_ends_the_call_and_the_session_at_the_server():
    async def scenario():
        fixture = Fixture()
        async with serving(http_app(fixture)) as up, gateway_before({"up": up}) as (gateway, url):
            async with httpx2.AsyncClient() as http, Session2025(http, url) as session:
                await session.post(call())
                hung = asyncio.create_task(session.post(call("hang", {})))
                while not gateway.in_flight:
                    await asyncio.sleep(0.01)
                assert (await http.delete(url, headers=session.headers)).status_code == 200
                answer = (await hung).json()
                assert (answer["id"], answer["error"]["code"]) == (7, types.CONNECTION_CLOSED)
                assert (await session.post(call())).status_code == 404
                while gateway.in_flight or gateway.upstreams["up"].sessions or not fixture.cancelled:
                    await asyncio.sleep(0.01)
                assert gateway.session(session.headers["mcp-session-id"]) is None

    run(scenario)


def test_caller_who_goes_away_leaves_the_call_to_end_by_itself():
    async def scenario():
        fixture = Fixture()
        async with serving(http_app(fixture)) as up, gateway_before({"up": up}) as (gateway, url):
            async with httpx2.AsyncClient() as http, Session2025(http, url) as session:
                await session.post(call())
                before = gateway.upstreams["up"].calls
                gone = asyncio.create_task(session.post(call("echo", {"value": 1, "delay_ms": 300})))
                while not gateway.in_flight:
                    await asyncio.sleep(0.01)
                gone.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await gone
                while gateway.in_flight:
                    await asyncio.sleep(0.01)
                assert gateway.upstreams["up"].calls == before + 1
                assert fixture.cancelled == 0
                assert (await session.post(call())).json()["id"] == 7

    run(scenario)


def test_session_of_another_caller_is_not_there():
    async def scenario():
        tokens = StaticTokens(
            {
                "token-of-ann-0123456789": Principal("ann", tenant="a"),
                "token-of-eve-0123456789": Principal("ann", tenant="b"),
                "token-of-bob-0123456789": Principal("bob", tenant="a"),
            }
        )
        async with serving(http_app()) as up, gateway_before({"up": up}, verifier=tokens) as (gateway, url):
            own = {"authorization": "Bearer token-of-ann-0123456789"}
            async with httpx2.AsyncClient() as http, Session2025(http, url, headers=own) as session:
                handed = without_sdk(gateway)
                assert (await session.post(call())).json()["result"]
                assert handed == []
                for thief in ("eve", "bob"):
                    headers = {"authorization": f"Bearer token-of-{thief}-0123456789"}
                    assert (await session.post(call(), headers)).status_code == 404
                assert (await session.post(call(), {"authorization": "Bearer no"})).status_code == 401
                assert (await session.post(call())).json()["result"]

    run(scenario)


def test_two_calls_of_one_number_are_both_answered():
    async def scenario():
        async with serving(http_app()) as up, gateway_before({"up": up}) as (gateway, url):
            async with httpx2.AsyncClient() as http, Session2025(http, url) as session:
                slow = asyncio.create_task(session.post(call("echo", {"value": "slow", "delay_ms": 200})))
                while not gateway.in_flight:
                    await asyncio.sleep(0.01)
                for number in (7, "7"):
                    quick = await session.post(call("echo", {"value": "quick"}, id=number))
                    assert message_of(quick)["result"]["content"][0]["text"] == '"quick"'
                assert (await slow).json()["result"]["content"][0]["text"] == '"slow"'

    run(scenario)


def test_slow_call_is_kept_open_by_comments(monkeypatch):
    monkeypatch.setattr(http_reply, "PING_S", 0.05)

    async def scenario():
        async with serving(http_app()) as up, gateway_before({"up": up}) as (_, url):
            async with httpx2.AsyncClient() as http, Session2025(http, url) as session:
                answer = await session.post(call(arguments={"value": 1, "delay_ms": 400}))
        assert answer.text.startswith(": ping\r\n\r\n")
        assert events_of(answer)[-1]["id"] == 7

    run(scenario)


def test_session_with_a_call_in_flight_is_not_idle_and_ends_after_it():
    async def scenario():
        async with serving(http_app()) as up, gateway_before({"up": up}) as (gateway, url):
            gateway.server.session_manager.session_idle_timeout = 0.2
            async with httpx2.AsyncClient() as http, Session2025(http, url) as session:
                slow = await session.post(call(arguments={"value": 1, "delay_ms": 500}))
                assert slow.json()["result"]
                transport = gateway.server.session_manager._server_instances[session.headers["mcp-session-id"]]
                assert transport._requests_in_flight == 0
                assert transport.idle_scope.deadline < math.inf
                while gateway.session(session.headers["mcp-session-id"]) is not None:
                    await asyncio.sleep(0.02)
                assert (await session.post(call())).status_code == 404

    run(scenario)


def test_answer_does_not_overtake_a_question_on_its_stream():
    class Transport:
        def __init__(self):
            self._request_streams = {}

    class Dispatcher:
        """Writes the question only when it is let, as the SDK's router does a little later."""

        def __init__(self, transport):
            self.transport, self.go, self.answered = transport, asyncio.Event(), asyncio.Event()

        async def send_raw_request(self, method, params, opts, *, _related_request_id):
            await self.go.wait()
            stream = self.transport._request_streams[str(_related_request_id)][0]
            await stream.send(EventMessage(types.JSONRPCRequest(jsonrpc="2.0", id=1, method=method)))
            await self.answered.wait()
            return {}

    class Connection:
        pass

    async def scenario():
        sent, transport, connection = [], Transport(), Connection()
        connection.outbound = dispatcher = Dispatcher(transport)

        async def send(message):
            sent.append(message)

        reply = http_session._SessionReply(send, b"s", Session("s", connection), transport, 3)
        question = asyncio.create_task(reply.send_raw_request("roots/list", None))
        await asyncio.sleep(0)
        finish = asyncio.create_task(reply.finish({"jsonrpc": "2.0", "id": 3, "result": {}}))
        await asyncio.sleep(0)
        assert sent == []
        dispatcher.go.set()
        await finish
        bodies = [message["body"] for message in sent if "body" in message]
        assert [b"roots/list" in body for body in bodies] == [True, False]
        assert transport._request_streams == {}
        dispatcher.answered.set()
        assert await question == {}

    run(scenario)


def test_trace_of_the_caller_goes_on_to_the_server():
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    async def scenario():
        async with serving(http_app()) as up, gateway_before({"up": up}) as (_, url):
            async with httpx2.AsyncClient() as http, Session2025(http, url) as session:
                texts = []
                for meta in ({"traceparent": parent}, {}):
                    params = {"name": "headers", "arguments": {}, "_meta": meta}
                    texts.append((await session.post(call(params=params))).text)
        assert parent.split("-")[1] in texts[0]
        assert "traceparent" not in texts[1]

    run(scenario)
