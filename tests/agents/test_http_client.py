"""The client under the SDK's sessions: what it adds to a pool, and how it fails."""

from __future__ import annotations

import gzip

import httpx2
import pytest

from heliograph.agents.core.http_client import HttpClient
from tests.agents.serving import free_port, run
from tests.agents.test_http_pool import JSON, Server


def client_of(url, **limits):
    options = {"max_connections": 4, "max_body_bytes": 1000, "trouble": [], **limits}
    return HttpClient(url, {"authorization": "Bearer own"}, **options)


def test_answer_keeps_all_its_headers_and_is_decoded():
    body = gzip.compress(b'{"a": 1}')
    head = JSON + b"content-encoding: gzip\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n"
    server = Server(head + b"content-length: %d\r\n\r\n" % len(body) + body)

    async def scenario():
        async with server.pool(), client_of(server.url) as client:
            answer = await client.post(server.url, json={"b": 2})
            assert answer.json() == {"a": 1}
            assert dict(client.cookies) == {"a": "1", "b": "2"}

    run(scenario)
    (request,) = server.requests
    assert b"authorization: Bearer own\r\n" in request.replace(b"Authorization", b"authorization")
    assert request.lower().count(b"\r\nhost:") == request.lower().count(b"\r\ncontent-length:") == 1


def test_stream_closed_before_its_end_keeps_its_connection_where_the_end_comes_soon():
    events = JSON.replace(b"application/json", b"text/event-stream") + b"transfer-encoding: chunked\r\n\r\n"
    server = Server([events, b"9\r\ndata: 1\n\n\r\n", b"0\r\n\r\n"], JSON + b"content-length: 2\r\n\r\n{}")

    async def scenario():
        async with server.pool(), client_of(server.url) as client:
            async with client.stream("POST", server.url, content=b"{}") as answer:
                assert await anext(answer.aiter_raw()) == b"data: 1\n\n"
            assert (await client.post(server.url, content=b"{}")).json() == {}

    run(scenario)
    assert server.connections == 1


def test_long_answer_ends_at_the_limit_and_says_so():
    server = Server(JSON + b"content-length: 5000\r\n\r\n" + bytes(5000))
    trouble = []

    async def scenario():
        async with server.pool(), client_of(server.url, trouble=trouble) as client:
            with pytest.raises(httpx2.ReadError):
                await client.post(server.url, content=b"{}")

    run(scenario)
    assert trouble == ["more than 1000 bytes, the limit of this gateway"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [(b"HTTP/1.1 2", httpx2.ReadError), (b"no HTTP\r\n\r\n", httpx2.RemoteProtocolError), (None, httpx2.ConnectError)],
)
def test_failure_is_one_that_the_sdk_knows(answer, error):
    async def scenario():
        server = Server(answer, end=True)
        async with server.pool():
            url = server.url if answer is not None else f"http://127.0.0.1:{free_port()}/"
            async with client_of(url) as client:
                with pytest.raises(error):
                    await client.post(url, content=b"{}")

    run(scenario)
