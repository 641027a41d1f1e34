"""Requests of a session at a server that answers in every way it may, and in some that it may not."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json

import pytest
from mcp import Client, MCPError
from starlette.applications import Starlette
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from heliograph.agents.core import http_posts
from heliograph.agents.core.http_posts import SessionLink
from heliograph.agents.core.links import Call, LinkLost, ResponseTooLarge, StreamLink
from heliograph.agents.core.upstream import Caller, Upstream, UpstreamSpec
from tests.agents.serving import all_closed, gateway_before, run, serving
from tests.agents.test_gateway import said


def result(number, value="ok"):
    return {"jsonrpc": "2.0", "id": number, "result": {"content": [{"type": "text", "text": value}]}}


def note(method, **params):
    return {"jsonrpc": "2.0", "method": method, "params": params}


def event(message, number=""):
    head = f"id: {number}\n" if number else ""
    return f"{head}event: message\ndata: {json.dumps(message)}\n\n".encode()


def stream(*parts):
    async def body():
        for part in parts:
            yield part
            await asyncio.sleep(0)

    return StreamingResponse(body(), media_type="text/event-stream")


class Scripted:
    """A server of sessions; ``tools[name]`` answers a call of that name with a response of HTTP."""

    def __init__(self, **tools):
        self.tools = tools
        self.posted, self.headers, self.opened, self.deleted, self.resumed = [], [], 0, [], []
        self.known, self.standing, self.replay = set(), asyncio.Queue(), []
        self.app = Starlette(
            routes=[
                Route("/mcp", self.post, methods=["POST"]),
                Route("/mcp", self.get, methods=["GET"]),
                Route("/mcp", self.delete, methods=["DELETE"]),
                Route("/elsewhere", self.post, methods=["POST"]),
            ]
        )

    async def post(self, request):
        message = json.loads(await request.body())
        self.posted.append(message)
        self.headers.append(dict(request.headers))
        if message.get("method") == "initialize":
            self.opened += 1
            name = f"session-{self.opened}"
            self.known.add(name)
            version = message["params"]["protocolVersion"]
            body = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": {"name": "s"}}
            body["serverInfo"]["version"] = "1"
            answer = {"jsonrpc": "2.0", "id": message["id"], "result": body}
            return JSONResponse(answer, headers={"mcp-session-id": name, "set-cookie": "route=7"})
        if request.headers.get("mcp-session-id") not in self.known:
            error = {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "Session not found"}}
            return JSONResponse(error, 404)
        if message.get("method") == "tools/list":
            tools = [{"name": name, "inputSchema": {"type": "object"}} for name in self.tools]
            return JSONResponse({"jsonrpc": "2.0", "id": message["id"], "result": {"tools": tools}})
        if message.get("method") != "tools/call":
            return Response(status_code=202)
        return await self.tools[message["params"]["name"]](message, request)

    async def get(self, request):
        if "last-event-id" in request.headers:
            self.resumed.append(request.headers["last-event-id"])
            return self.replay.pop(0) if self.replay else Response(status_code=500)

        async def body():
            while True:
                yield event(await self.standing.get())

        return StreamingResponse(body(), media_type="text/event-stream")

    async def delete(self, request):
        self.deleted.append(request.headers["mcp-session-id"])
        return Response()


async def plain(message, request):
    return JSONResponse(result(message["id"], json.dumps(dict(request.headers))))


class Heard:
    """What a call, or a caller outside its calls, was told and asked."""

    def __init__(self):
        self.told, self.other, self.asked = [], [], []
        self.news = asyncio.Event()

    async def on_notify(self, method, params):
        self.told.append((method, params))
        self.news.set()

    async def outside(self, method, params):
        self.other.append((method, params))
        self.news.set()

    async def on_request(self, method, params):
        self.asked.append((method, params))
        if method == "roots/list":
            raise MCPError(-32601, "no roots")
        return {"action": "accept"}


@contextlib.asynccontextmanager
async def linked(server, heard=None, **limits):
    """A session whose handshake is complete, so that its calls go directly."""
    heard = heard or Heard()
    async with serving(server.app) as url:
        upstream = Upstream("up", UpstreamSpec(url=url, era="sessions", **limits))
        caller = Caller("s", "2025-11-25", {}, {"name": "c", "version": "1"}, heard.on_request, heard.outside)
        try:
            link = await upstream.link(caller)
            assert isinstance(link, SessionLink)
            while link._client.wire.headers is None:
                await asyncio.sleep(0.005)
            yield upstream, link, caller
        finally:
            await upstream.close()


def tool(name, token=None, **arguments):
    meta = {} if token is None else {"_meta": {"progressToken": token}}
    return {"name": name, "arguments": arguments, **meta}


async def called(link, name, heard=None, **more):
    heard = heard or Heard()
    return (await link.call("tools/call", tool(name, **more), Call(heard.on_notify)))["content"][0]["text"]


def test_call_goes_directly_with_the_headers_that_the_sdk_sends(monkeypatch):
    server = Scripted(plain=plain)

    async def scenario():
        async with linked(server, headers={"authorization": "Bearer own"}) as (_, link, caller):
            slow = StreamLink._request
            found = json.loads(
                (await slow(link, 100, "tools/call", tool("plain"), Call(caller.on_notify)))["content"][0]["text"]
            )

            async def never(*_):
                raise AssertionError("the SDK was asked")

            monkeypatch.setattr(StreamLink, "_request", never)
            ours = json.loads(await called(link, "plain"))
        for headers in (found, ours):
            for name in ("host", "content-length", "accept-encoding", "connection"):
                headers.pop(name, None)
        assert ours == found
        assert ours["mcp-session-id"] == "session-1"
        assert ours["mcp-protocol-version"] == "2025-11-25"
        assert ours["cookie"] == "route=7"

    run(scenario)


def test_spans_that_somebody_hears_of_are_made_by_the_sdk(monkeypatch):
    seen, inner = [], StreamLink._request

    async def watched(self, number, method, params, call):
        seen.append(number)
        return await inner(self, number, method, params, call)

    async def scenario():
        server = Scripted(plain=plain)
        async with linked(server) as (_, link, _caller):
            monkeypatch.setattr(StreamLink, "_request", watched)
            await called(link, "plain")
            assert seen == []
            monkeypatch.setattr(http_posts, "makes_spans", lambda: True)
            await called(link, "plain")
        numbers = [message["id"] for message in server.posted if message.get("method") == "tools/call"]
        assert seen == [max(numbers)]
        assert len(set(numbers)) == 2

    run(scenario)


def test_cookie_is_the_servers_newest_or_the_configured_one():
    async def other(message, request):
        return JSONResponse(result(message["id"]), headers={"set-cookie": "route=8"})

    async def scenario(**limits):
        server = Scripted(plain=plain, other=other)
        async with linked(server, **limits) as (_, link, _caller):
            await called(link, "other")
            return json.loads(await called(link, "plain"))["cookie"]

    assert run(scenario) == "route=8"
    assert run(lambda: scenario(headers={"Cookie": "own=1"})) == "own=1"


def test_what_is_said_before_the_answer_reaches_whom_it_concerns():
    async def talk(message, request):
        number = message["params"]["_meta"]["progressToken"]
        assert number == message["id"]
        return stream(
            b": hello\n\nid: 0\ndata:\n\n",
            event(note("notifications/progress", progressToken=number, progress=1, total=2, message="half")),
            event(note("notifications/progress", progressToken=str(number), progress=1.5)),
            event(note("notifications/progress", progressToken="other", progress=9)),
            event(note("notifications/progress", progressToken=number, progress=True)),
            event(note("notifications/progress", progressToken=[], progress=1)),
            event(note("notifications/message", level="info", data="log")),
            event(note("notifications/tools/list_changed")),
            event({"jsonrpc": "2.0", "id": "q1", "method": "elicitation/create", "params": {"message": "?"}}),
            event({"jsonrpc": "2.0", "id": "q2", "method": "roots/list"}),
            b"event: other\ndata: {}\n\n",
            event(result(str(message["id"]), "done")),
        )

    async def scenario():
        server, heard, mine = Scripted(talk=talk), Heard(), Heard()
        async with linked(server, heard) as (_, link, _caller):
            assert await called(link, "talk", mine, token="t") == "done"
            while len(heard.asked) < 2 or not heard.other or len(server.posted) < 5:
                await asyncio.sleep(0.005)
        assert mine.told == [
            ("notifications/progress", {"progressToken": "t", "progress": 1, "total": 2, "message": "half"}),
            ("notifications/progress", {"progressToken": "t", "progress": 1.5}),
            ("notifications/message", {"level": "info", "data": "log"}),
        ]
        assert heard.other == [("notifications/tools/list_changed", {})]
        assert heard.asked == [("elicitation/create", {"message": "?"}), ("roots/list", {})]
        answers = {m["id"]: m for m in server.posted if "method" not in m}
        assert answers["q1"]["result"] == {"action": "accept"}
        assert answers["q2"]["error"]["message"] == "no roots"

    run(scenario)


def test_progress_on_the_standing_stream_reaches_its_call():
    async def scenario():
        heard, mine = Heard(), Heard()

        async def late(message, request):
            number = message["params"]["_meta"]["progressToken"]
            await server.standing.put(note("notifications/progress", progressToken=number, progress=3))
            await server.standing.put(note("notifications/message", level="info", data="outside"))
            await mine.news.wait()
            await heard.news.wait()
            return JSONResponse(result(message["id"]))

        server = Scripted(late=late)
        async with linked(server, heard) as (_, link, _caller):
            assert await called(link, "late", mine, token=4) == "ok"
        assert mine.told == [("notifications/progress", {"progressToken": 4, "progress": 3})]
        assert heard.other == [("notifications/message", {"level": "info", "data": "outside"})]

    run(scenario)


def test_listener_that_fails_does_not_fail_the_call():
    async def talk(message, request):
        return stream(event(note("notifications/message", level="info", data="log")), event(result(message["id"])))

    async def refuse(method, params):
        raise RuntimeError("no ear")

    async def scenario():
        async with linked(Scripted(talk=talk)) as (_, link, _caller):
            assert (await link.call("tools/call", tool("talk"), Call(refuse)))["content"]

    run(scenario)


def test_broken_stream_is_taken_up_again_after_its_last_event():
    async def broken(message, request):
        number = message["id"]
        server.replay = [
            Response(status_code=503),
            stream(b"id: 3\ndata:\n\n", event(note("notifications/message", level="info", data="b"), 4)),
            stream(event(result(number, "late"), 5)),
        ]
        return stream(b"id: 1\nretry: 1\ndata:\n\n", event(note("notifications/message", level="info", data="a"), 2))

    server = Scripted(broken=broken)

    async def scenario():
        mine = Heard()
        async with linked(server) as (_, link, _caller):
            assert await called(link, "broken", mine) == "late"
        assert [params["data"] for _, params in mine.told] == ["a", "b"]
        assert server.resumed == ["2", "2", "4"]

    run(scenario)


def test_broken_stream_that_cannot_be_taken_up_is_lost():
    async def broken(message, request):
        return stream(b"id: 1\nretry: 1\ndata:\n\n")

    async def silent(message, request):
        return stream(event(note("notifications/message", level="info", data="a")))

    server = Scripted(broken=broken, silent=silent, plain=plain)

    async def scenario():
        async with linked(server) as (_, link, _caller):
            with pytest.raises(LinkLost, match="attempts were exhausted") as lost:
                await called(link, "broken")
            assert not lost.value.unsent
            with pytest.raises(LinkLost, match="without a response"):
                await called(link, "silent")
            assert link.alive
            assert await called(link, "plain")
        assert server.resumed == ["1", "1"]

    run(scenario)


ANSWERS = {
    "accepted": (Response(status_code=202), -32600, "202 Accepted"),
    "no content type": (Response(b"hello"), -32600, "Unexpected content type"),
    "not JSON": (Response(b"{", media_type="application/json"), -32700, "JSON-RPC"),
    "batch": (JSONResponse([result(1)]), -32700, "JSON-RPC"),
    "no object as result": (JSONResponse({"jsonrpc": "2.0", "id": 1, "result": 5}), -32700, "JSON-RPC"),
    "other version": (JSONResponse({"jsonrpc": "1.0", "id": 1, "result": {}}), -32700, "JSON-RPC"),
    "only a notification": (JSONResponse(note("notifications/message", level="info", data=1)), -32700, "neither"),
    "deep": (Response(b"[" * 100_000, media_type="application/json"), -32700, "JSON-RPC"),
    "error": (JSONResponse({"jsonrpc": "2.0", "id": 1, "error": {"code": -5, "message": "bad", "data": 1}}), -5, "bad"),
    "error at 400": (JSONResponse({"jsonrpc": "2.0", "id": None, "error": {"code": -6, "message": "b"}}, 400), -6, "b"),
    "500": (Response(status_code=500), -32603, "error response"),
    "JSON at 500": (JSONResponse({"detail": "x"}, 500), -32603, "error response"),
    "broken event": (stream(b"data: {\n\n"), -32700, "JSON-RPC"),
    "error as event": (stream(event({"jsonrpc": "2.0", "id": 1, "error": {"code": -7, "message": "e"}})), -7, "e"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answer_that_is_no_result_is_an_error_and_the_session_goes_on(name):
    answer, code, text = ANSWERS[name]

    async def strange(message, request):
        return answer

    async def scenario():
        async with linked(Scripted(strange=strange, plain=plain)) as (upstream, link, _caller):
            with pytest.raises(MCPError, match=text) as error:
                await called(link, "strange")
            assert error.value.error.code == code
            assert link.alive
            assert await called(link, "plain")
            assert upstream.opened == 1

    run(scenario)


def test_answer_beyond_the_limit_is_refused_in_every_form():
    async def long(message, request):
        return JSONResponse(result(message["id"], "x" * 5000))

    async def streamed(message, request):
        return stream(event(note("notifications/message", data="x" * 5000)), event(result(message["id"])))

    async def refused(message, request):
        return JSONResponse({"x": "x" * 5000}, 400)

    async def packed(message, request):
        body = gzip.compress(json.dumps(result(message["id"], "x" * 5000)).encode())
        return Response(body, media_type="application/json", headers={"content-encoding": "gzip"})

    async def small(message, request):
        body = gzip.compress(json.dumps(result(message["id"], "small")).encode())
        return Response(body, media_type="application/json", headers={"content-encoding": "gzip"})

    async def wrong(message, request):
        return Response(b"{}", media_type="application/json", headers={"content-encoding": "gzip"})

    tools = {"long": long, "streamed": streamed, "refused": refused, "packed": packed, "small": small, "wrong": wrong}

    async def scenario():
        async with linked(Scripted(**tools), max_response_bytes=2000) as (_, link, _caller):
            for name in ("long", "streamed", "refused", "packed"):
                with pytest.raises(ResponseTooLarge, match="2000 bytes"):
                    await called(link, name)
            assert await called(link, "small") == "small"
            with pytest.raises(LinkLost):
                await called(link, "wrong")
            assert link.alive

    run(scenario)


def test_redirect_is_left_to_the_sdk():
    async def moved(message, request):
        if request.url.path == "/elsewhere":
            token = message["params"]["_meta"]["progressToken"]
            return stream(
                event(note("notifications/progress", progressToken=token, progress=1)), event(answer(message))
            )
        return RedirectResponse("/elsewhere", 307)

    def answer(message):
        return result(message["id"], "there")

    async def abroad(message, request):
        return RedirectResponse("http://127.0.0.1:1/mcp", 307)

    async def scenario():
        server, mine = Scripted(moved=moved, abroad=abroad), Heard()
        async with linked(server) as (_, link, _caller):
            for count in (1, 2):
                assert await called(link, "moved", mine, token="t") == "there"
                while len(mine.told) < count:  # the SDK passes it on beside the answer
                    await asyncio.sleep(0.005)
            told = {"progressToken": "t", "progress": 1}
            assert mine.told == [("notifications/progress", told)] * 2
            assert len([m for m in server.posted if m.get("method") == "tools/call"]) == 5
        async with linked(Scripted(abroad=abroad)) as (_, link, _caller):
            with pytest.raises(MCPError, match="not followed"):
                await called(link, "abroad")

    run(scenario)


def test_call_that_is_given_up_is_cancelled_by_its_number():
    async def scenario():
        started = asyncio.Event()

        async def hang(message, request):
            started.set()
            await asyncio.sleep(0.5)
            return JSONResponse(result(message["id"]))

        async def streaming(message, request):
            async def body():
                yield b"id: 1\ndata:\n\n"
                started.set()
                await asyncio.Event().wait()

            return StreamingResponse(body(), media_type="text/event-stream")

        server = Scripted(hang=hang, streaming=streaming, plain=plain)
        async with linked(server) as (_, link, _caller):
            for name in ("hang", "streaming"):
                started.clear()
                task = asyncio.create_task(called(link, name))
                await started.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                number = next(m["id"] for m in server.posted if m.get("params", {}).get("name") == name)
                while server.posted[-1].get("method") != "notifications/cancelled":
                    await asyncio.sleep(0.005)
                assert server.posted[-1]["params"]["requestId"] == number
            assert await called(link, "plain")

    run(scenario)


def test_session_that_the_server_no_longer_knows_is_opened_again_for_the_same_call():
    async def scenario():
        server = Scripted(plain=plain)
        async with serving(server.app) as up:
            spec = UpstreamSpec(url=up, era="sessions")
            async with gateway_before({"up": spec}) as (gateway, url), Client(url, mode="legacy") as client:
                assert "session-1" in said(await client.call_tool("plain", {}))
                server.known.clear()
                assert "session-2" in said(await client.call_tool("plain", {}))
                server.known.clear()
                both = await asyncio.gather(client.call_tool("plain", {}), client.call_tool("plain", {}))
                assert all("session-3" in said(one) for one in both)
                assert gateway.upstreams["up"].opened == 3

    run(scenario)


def test_link_that_is_closed_ends_its_calls():
    async def scenario():
        started = asyncio.Event()

        async def hang(message, request):
            started.set()
            await asyncio.sleep(1)
            return JSONResponse(result(message["id"]))

        async def broken(message, request):
            started.set()
            return stream(b"id: 1\nretry: 100\ndata:\n\n")

        server = Scripted(hang=hang, broken=broken)
        for name in ("hang", "broken"):
            started.clear()
            async with linked(server) as (_, link, _caller):
                task = asyncio.create_task(called(link, name))
                await started.wait()
                await link.close()
                with pytest.raises(LinkLost):
                    await task
                with pytest.raises(LinkLost, match="gone"):
                    await called(link, name)

    run(scenario)


def test_server_that_is_gone_ends_the_link_before_anything_was_sent():
    async def scenario():
        server = Scripted(plain=plain)
        async with linked(server) as (_, link, _caller):
            await called(link, "plain")
            link._client.wire._pool._url = link._client.wire._pool._url.with_port(1)
            await link._client.wire._pool._session.close()
            link._client.wire._pool._session = None
            with pytest.raises(LinkLost) as lost:
                await called(link, "plain")
            assert lost.value.unsent
            assert not link.alive

    run(scenario)


def test_one_connection_serves_call_after_call_whose_streams_end_a_moment_after_the_answer():
    async def scenario():
        ports = set()

        async def seen(message, request):
            ports.add(request.client.port)

            async def body():
                yield event(result(message["id"]))
                await asyncio.sleep(0.005)

            return StreamingResponse(body(), media_type="text/event-stream")

        async with linked(Scripted(seen=seen)) as (_, link, _caller):
            for _ in range(20):
                await called(link, "seen")
                while link._closing_responses:
                    await asyncio.sleep(0)
        assert len(ports) == 1

    with all_closed():
        run(scenario)
