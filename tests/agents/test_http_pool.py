"""Answers of every form and in every cut, kept connections, and servers that do not keep to HTTP.

They are read by aiohttp; this is what the gateway relies on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from heliograph.agents.core import http_pool
from heliograph.agents.core.http_pool import (
    ConnectError,
    ConnectTimeout,
    HttpError,
    HttpPool,
    PoolTimeout,
    ProtocolError,
    ReadError,
)
from tests.agents.serving import all_closed, free_port, run

JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


class Server:
    """Answers each request with the next text, in the given parts; counts connections."""

    def __init__(self, *answers, end=False, pause_s=0.0):
        self.answers, self.end, self.pause_s = list(answers), end, pause_s
        self.written = 0
        self.connections, self.requests, self.writers = 0, [], []

    async def _serve(self, reader, writer):
        self.connections += 1
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                parts = self.answers.pop(0)
                for part in [parts] if isinstance(parts, bytes) else parts:
                    writer.write(part)
                    await writer.drain()
                    self.written += len(part)
                    await asyncio.sleep(self.pause_s)
                if self.end:
                    break
            if not self.end:
                await reader.read()
        writer.close()

    @contextlib.asynccontextmanager
    async def pool(self, **limits):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp?a=1"
        pool = HttpPool(self.url, **{"max_connections": 4, **limits})
        try:
            yield pool
        finally:
            await pool.close()
            server.close()


async def fetched(pool, body=b"{}", headers=()):
    response = await pool.post(headers, body)
    try:
        content = b""
        while chunk := await response.chunk():
            content += chunk
        return response.status, content
    finally:
        response.close()


def cut(data, places):
    marks = sorted({place % len(data) for place in places})
    return [data[a:b] for a, b in zip([0, *marks], [*marks, len(data)], strict=True) if a < b]


def chunked(content, sizes):
    out, at = b"", 0
    for size in sizes:
        part = content[at : at + size]
        if part:
            out += b"%X;note=1\r\n%s\r\n" % (len(part), part)
        at += size
    rest = content[at:]
    return out + (b"%x\r\n%s\r\n" % (len(rest), rest) if rest else b"") + b"0\r\ntrailer: x\r\n\r\n"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    content=st.binary(min_size=1, max_size=400),
    sizes=st.lists(st.integers(1, 90), max_size=6),
    places=st.lists(st.integers(0, 10_000), max_size=8),
    form=st.sampled_from(["length", "chunked", "close"]),
    interim=st.booleans(),
)
def test_answer_is_read_whole_however_it_is_framed_and_cut(content, sizes, places, form, interim):
    head = (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" if interim else b"") + JSON
    answer = {
        "length": head + b"content-length: %d\r\n\r\n" % len(content) + content,
        "chunked": head + b"transfer-encoding: chunked\r\n\r\n" + chunked(content, sizes),
        "close": head + b"\r\n" + content,
    }[form]
    close = form == "close"
    server = Server(cut(answer, places), cut(answer, places[1:]), end=close)

    async def scenario():
        async with server.pool() as pool:
            assert await fetched(pool) == (200, content)
            assert await fetched(pool) == (200, content)

    run(scenario)
    assert server.connections == (2 if close else 1)


def test_request_is_written_without_a_header_that_nobody_asked_for():
    server = Server(JSON + b"content-length: 0\r\n\r\n")

    async def scenario():
        async with server.pool() as pool:
            assert await fetched(pool, b'{"a":1}', [("mcp-method", "tools/call")]) == (200, b"")

    run(scenario)
    (request,) = server.requests
    first, *fields, _, body = request.decode().split("\r\n")
    assert (first, body) == ("POST /mcp?a=1 HTTP/1.1", '{"a":1}')
    host = server.url.split("/")[2]
    assert sorted(field.lower() for field in fields) == ["content-length: 7", f"host: {host}", "mcp-method: tools/call"]


def test_redirect_is_not_followed_and_a_cookie_not_kept():
    moved = b"HTTP/1.1 307 Moved\r\nlocation: /other\r\nset-cookie: a=1\r\ncontent-length: 0\r\n\r\n"
    server = Server(moved, JSON + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\nok")

    async def scenario():
        async with server.pool() as pool:
            assert await fetched(pool) == (307, b"")
            assert await fetched(pool) == (200, b"ok")  # as it is; nobody asked for a content coding

    run(scenario)
    assert not any(b"cookie" in request.lower() for request in server.requests)


@pytest.mark.parametrize(
    "header", [("a b", "x"), ("", "x"), ("a", "x\r\nb: y"), ("a", "x\0"), ("a\n", "x"), ("a", "x\n")]
)
def test_header_that_would_end_its_line_is_not_sent(header):
    server = Server(JSON + b"content-length: 0\r\n\r\n")

    async def scenario():
        async with server.pool() as pool:
            with pytest.raises(ProtocolError):
                await fetched(pool, headers=[header])

    run(scenario)
    assert server.requests == []


CHUNKED = JSON + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nabc",
        JSON + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab",
        JSON + b"content-length: -1\r\n\r\n",
        JSON + b"content-length: 9\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"1\r\nabc\r\n",
        [CHUNKED, b"zz\r\n"],
        [CHUNKED + b"2\r\nok\r\n", b"1\r\nabc\r\n"],
        b"HTTP/1.1 200 OK\r\na: " + b"x" * 100_000,
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000,
        CHUNKED + b"1" * 100_000,
        CHUNKED + b"0\r\n" + b"a: b\r\n" * 20_000,
    ],
)
def test_answer_that_is_not_http_is_refused_and_its_connection_closed(answer):
    server = Server(answer, JSON + b"content-length: 2\r\n\r\nok", pause_s=0.02)

    async def scenario():
        async with server.pool() as pool:
            async with asyncio.timeout(5):
                with pytest.raises(ProtocolError):
                    await fetched(pool)
            assert (await fetched(pool))[1] == b"ok"

    run(scenario)
    # A 101 without a protocol is an answer without a body.
    assert server.connections == (1 if answer == b"HTTP/1.1 101 Switching Protocols\r\n\r\n" else 2)


def test_trailer_that_does_not_end_is_refused():
    server = Server([CHUNKED, b"0\r\n" + b"a: b\r\n" * 20_000], pause_s=0.02)

    async def scenario():
        async with server.pool() as pool, asyncio.timeout(5):
            with pytest.raises(HttpError):
                await fetched(pool)

    run(scenario)


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200", JSON + b"content-length: 9\r\n\r\nshort", CHUNKED + b"5\r\nab", [CHUNKED, b"5\r\nab"]],
)
def test_answer_that_ends_early_is_an_error_and_its_request_not_repeated(answer):
    server = Server(JSON + b"content-length: 2\r\n\r\nok", answer, b"never")

    async def scenario():
        async with server.pool() as pool:
            assert await fetched(pool) == (200, b"ok")
            server.end = True
            with pytest.raises(ReadError):
                await fetched(pool)

    run(scenario)
    assert (server.connections, len(server.requests)) == (1, 2)


@pytest.mark.parametrize(
    ("first", "connections"),
    [
        (JSON + b"content-length: 2\r\n\r\nok", 1),
        (JSON + b"content-length: 2\r\nconnection: close\r\n\r\nok", 2),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", 2),
        # Would be read as the next caller's answer, whether the loop has seen it or not.
        ([JSON + b"content-length: 2\r\n\r\n", b"ok" + JSON + b"content-length: 3\r\n\r\nbad"], 2),
        ([JSON + b"content-length: 2\r\n\r\nok", JSON + b"content-length: 3\r\n\r\nbad"], 2),
    ],
)
def test_connection_is_kept_only_after_a_clean_end(first, connections):
    server = Server(first, JSON + b"content-length: 4\r\n\r\nnext", pause_s=0.02)

    async def scenario():
        async with server.pool() as pool:
            assert await fetched(pool) == (200, b"ok")
            await asyncio.sleep(0.1)
            assert await fetched(pool) == (200, b"next")

    run(scenario)
    assert server.connections == connections


def test_connection_that_closed_while_nobody_looked_is_not_written_to():
    server = Server(JSON + b"content-length: 2\r\n\r\nok", JSON + b"content-length: 4\r\n\r\nnext")

    async def scenario():
        async with server.pool() as pool:
            assert await fetched(pool) == (200, b"ok")
            (writer,) = server.writers
            writer.get_extra_info("socket").shutdown(socket.SHUT_WR)  # the loop does not run between this and the next
            assert await fetched(pool) == (200, b"next")

    run(scenario)
    assert server.connections == 2


def test_rest_of_a_stream_that_is_here_already_does_not_cost_the_connection():
    events = b"4\r\none\n\r\n4\r\ntwo\n\r\n0\r\n\r\n"
    server = Server(JSON + b"transfer-encoding: chunked\r\n\r\n" + events, JSON + b"content-length: 2\r\n\r\nok")

    async def scenario():
        async with server.pool() as pool:
            response = await pool.post([], b"{}")
            assert (await response.chunk()).startswith(b"one\n")
            response.close()
            assert await fetched(pool) == (200, b"ok")

    run(scenario)
    assert server.connections == 1


def test_cancelled_request_gives_its_place_back_and_closes_its_connection():
    server = Server([], JSON + b"content-length: 2\r\n\r\nok")

    async def scenario():
        async with server.pool(max_connections=1) as pool:
            waiting = asyncio.create_task(fetched(pool))
            while not server.requests:
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert await fetched(pool) == (200, b"ok")

    run(scenario)
    assert server.connections == 2


def test_full_pool_and_absent_server_say_that_nothing_was_sent(monkeypatch):
    monkeypatch.setattr(http_pool, "CONNECT_S", 0.05)

    async def scenario():
        server = Server([])
        async with server.pool(max_connections=1) as pool:
            hung = asyncio.create_task(fetched(pool))
            while not server.requests:
                await asyncio.sleep(0)
            with pytest.raises(PoolTimeout):
                await fetched(pool)
            hung.cancel()
        nobody = HttpPool(f"http://127.0.0.1:{free_port()}/", max_connections=1)
        for _ in range(2):  # a failed connection gives its place back
            with pytest.raises(ConnectError):
                await fetched(nobody)
        await nobody.close()

    run(scenario)


def test_server_that_does_not_accept_is_given_up_in_time(monkeypatch):
    monkeypatch.setattr(http_pool, "CONNECT_S", 0.2)

    async def scenario():
        with contextlib.ExitStack() as stack:
            deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            for _ in range(4):  # the queue of connections is full then
                probe = stack.enter_context(socket.socket())
                probe.setblocking(False)
                probe.connect_ex(deaf.getsockname())
            pool = HttpPool(f"http://127.0.0.1:{deaf.getsockname()[1]}/", max_connections=1)
            with pytest.raises(ConnectTimeout):
                await fetched(pool)
            await pool.close()

    run(scenario)


@pytest.mark.parametrize("answer", [[], JSON + b"content-length: 9\r\n\r\nshort"])
def test_closing_the_pool_ends_who_waits_for_an_answer(answer):
    server = Server(answer)

    async def scenario():
        async with server.pool() as pool:
            waiting = asyncio.create_task(fetched(pool))
            await asyncio.sleep(0.1)
            await pool.close()
            async with asyncio.timeout(5):
                with pytest.raises(ReadError):
                    await waiting
            with pytest.raises(ConnectError):
                await fetched(pool)

    run(scenario)


@pytest.mark.parametrize(("first", "then"), [(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), (CHUNKED, b"1\r\na\r\n")])
def test_server_that_reads_nothing_holds_up_neither_a_cancelled_request_nor_the_end(first, then):
    lost = []

    async def deaf(reader, writer):
        writer.transport.pause_reading()
        writer.write(first)
        with contextlib.suppress(ConnectionError):
            while True:  # an aborted connection is noticed only by writing
                writer.write(then)
                await writer.drain()
                await asyncio.sleep(0.01)
        lost.append(writer)

    async def scenario():
        server = await asyncio.start_server(deaf, "127.0.0.1", 0)
        pool = HttpPool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", max_connections=2)
        for _ in range(2):
            cancelled = asyncio.create_task(fetched(pool, bytes(30_000_000)))
            await asyncio.sleep(0.2)
            cancelled.cancel()
            await asyncio.gather(cancelled, return_exceptions=True)
        last = asyncio.create_task(fetched(pool, bytes(30_000_000)))
        await asyncio.sleep(0.2)
        async with asyncio.timeout(5):
            await pool.close()
            with pytest.raises(ReadError):
                await last
            while len(lost) < 3:
                await asyncio.sleep(0.01)
        server.close()

    run(scenario)


def test_answer_that_nobody_reads_stays_at_the_server():
    part = bytes(1_000_000)
    server = Server([JSON + b"content-length: 50000000\r\n\r\n", *[part] * 50])

    async def scenario():
        async with server.pool() as pool:
            response = await pool.post([], b"{}")
            await asyncio.sleep(0.3)
            assert server.written < 20_000_000  # most of it in the sockets' buffers
            response.close()

    run(scenario)


def test_answer_that_came_whole_but_unread_does_not_stop_the_next():
    server = Server(JSON + b"content-length: 200000\r\n\r\n" + bytes(200_000), JSON + b"content-length: 2\r\n\r\nok")

    async def scenario():
        async with server.pool() as pool, asyncio.timeout(5):
            response = await pool.post([], b"{}")
            await asyncio.sleep(0.1)
            response.close()
            assert await fetched(pool) == (200, b"ok")

    run(scenario)


def test_pool_leaves_nothing_open(caplog):
    server = Server(JSON + b"content-length: 2\r\n\r\nok")

    async def scenario():
        async with server.pool() as pool:
            assert await fetched(pool) == (200, b"ok")
        await HttpPool(server.url, max_connections=1).close()
        HttpPool(server.url, max_connections=1)

    with all_closed():
        run(scenario)
    assert caplog.messages == []
