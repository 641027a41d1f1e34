"""POST requests to one server over kept HTTP/1.1 connections: what a relay needs of aiohttp, and no more.

No redirects, proxies, cookies or content codings, and nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import ssl
from collections.abc import Callable, Iterable
from functools import partial
from io import BytesIO

import httpcore2

from heliograph.errors import MissingExtra

try:
    import aiohttp
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.connector import Connection
    from yarl import URL
except ModuleNotFoundError as error:
    raise MissingExtra((error.name or "aiohttp").split(".")[0], "agents") from error

__all__ = [
    "ConnectError",
    "ConnectTimeout",
    "HttpError",
    "HttpPool",
    "PoolTimeout",
    "ProtocolError",
    "ReadError",
    "Response",
]

CONNECT_S = 10.0
"""For a connection, and for a place among the connections; an answer has the caller's time."""
END_S = 0.05
"""For the end of an answer whose reader has seen enough."""
_AT_ONCE = 256 * 1024
"""A longer request is written in parts."""
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_UNASKED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""Headers that aiohttp would add."""
_NOT_HTTP = "the request or the server's answer is not HTTP/1.1"


class HttpError(Exception):
    """A request without a whole answer."""


class ConnectError(HttpError):
    """No connection, so nothing was sent."""


class ConnectTimeout(ConnectError):
    """No connection in time."""


class PoolTimeout(ConnectError):
    """All connections are in use."""


class ReadError(HttpError):
    """The server closed the connection before the end of its answer."""


class ProtocolError(HttpError):
    """A request or an answer that is not HTTP/1.1."""


class HttpPool:
    """Connections to one server; close it in the event loop that posts.

    Args:
        url: http or https.
        max_connections: at a time; more requests wait for ten seconds.
    """

    def __init__(self, url: str, *, max_connections: int) -> None:
        self._url = URL(url, encoded=True)
        self._places = asyncio.Semaphore(max_connections)
        self._bodies: dict[ResponseHandler, aiohttp.StreamReader | None] = {}
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def post(self, headers: Iterable[tuple[str, str]], body: bytes) -> Response:
        """Sends a request, and returns once the head of the answer is there. Close the response.

        Raises:
            ConnectError: nothing was sent.
            ReadError: the connection broke.
            ProtocolError: a header that cannot be sent, or an answer that is not HTTP/1.1.
        """
        fields = list(headers)
        for name, _ in fields:
            if not _NAME.fullmatch(name):  # aiohttp looks for ends of lines only
                raise ProtocolError(f"not an HTTP header: {name!r}")
        await self._place()
        try:
            data = BytesIO(body) if len(body) > _AT_ONCE else body
            answer = await self._open().post(self._url, data=data, headers=fields, allow_redirects=False)
        except BaseException as error:
            self._places.release()
            if isinstance(error, aiohttp.ClientError | ValueError):
                raise _ours(error) from None
            raise
        response = Response(answer, self._places.release)
        if answer.connection is not None and answer.connection.protocol in self._bodies:
            self._bodies[answer.connection.protocol] = answer.content
        if response.status == 101:
            response.close()
            raise ProtocolError("the server changed to a protocol that nobody asked for")
        return response

    async def _place(self) -> None:
        """Among the connections; aiohttp's own limit would not say that this is what took too long."""
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._places.acquire()
        except TimeoutError:
            raise PoolTimeout("all connections are in use") from None

    def _open(self) -> aiohttp.ClientSession:
        """A session belongs to an event loop, so the first request makes it."""
        if self._closed:
            raise ConnectError("the pool is closed")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # The same certificates as the SDK's own client.
                connector=aiohttp.TCPConnector(limit=0, ssl=_tls() if self._url.scheme == "https" else True),
                timeout=aiohttp.ClientTimeout(connect=CONNECT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=_UNASKED,
                request_class=_Request,
                middlewares=(self._send,),
            )
        return self._session

    async def _send(self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        assert isinstance(request, _Request)
        request.watch = self._watch
        while True:
            try:
                return await handler(request)
            except _StaleError:  # that connection is gone now, and a new one is never stale
                continue
            except BaseException:
                # aiohttp would keep the connection until a server that reads nothing has got the whole request.
                if request.transport is not None:
                    request.transport.abort()
                raise

    def _watch(self, protocol: ResponseHandler) -> None:
        """Before each request; refuses a kept connection that the server has closed or sent something over.

        aiohttp would take what came too early for the next answer, and cannot repeat a POST whose connection turns out
        to be closed when the loop gets to see it.
        """
        if protocol in self._bodies:
            if protocol.should_close or _has_input(protocol.transport):
                raise _StaleError
        elif (closed := protocol.closed) is not None:
            self._bodies[protocol] = None
            closed.add_done_callback(partial(self._lost, protocol))

    def _lost(self, protocol: ResponseHandler, closed: asyncio.Future[None]) -> None:
        """Wakes who waits for a body; aiohttp's compiled parser forgets to where a later part of it is malformed."""
        if not closed.cancelled():
            closed.exception()  # its readers hear of it from aiohttp
        body = self._bodies.pop(protocol)
        if body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(ProtocolError(_NOT_HTTP))

    async def close(self) -> None:
        """Closes all connections, those in use too."""
        self._closed = True
        if self._session is None:
            return
        closing = []
        for protocol in self._bodies:  # aiohttp alone would wait for servers that read nothing, and not wake readers
            if protocol.transport is not None and protocol.closed is not None:
                protocol.transport.abort()
                closing.append(protocol.closed)
        if closing:
            await asyncio.wait(closing)
        await self._session.close()


class Response:
    """The answer to one request.

    Attributes:
        status: of HTTP.
        headers: by name in any case.
        fields: all of them, in their order.
    """

    def __init__(self, answer: aiohttp.ClientResponse, give: Callable[[], None]) -> None:
        self._answer, self._give, self._closed = answer, give, False
        self.status, self.headers, self.fields = answer.status, answer.headers, answer.raw_headers

    async def chunk(self) -> bytes:
        """The next part of the body; nothing at its end."""
        try:
            return await self._answer.content.readany()
        except aiohttp.ClientError as error:
            raise _ours(error) from None

    @property
    def whole(self) -> bool:
        """Whether all of it has come, read or not."""
        return self._answer.connection is None

    async def end(self) -> None:
        """Waits a moment for the rest of an answer of which enough is known, and ends the request."""
        try:
            with contextlib.suppress(TimeoutError, HttpError):
                async with asyncio.timeout(END_S):
                    await self.chunk()
        finally:
            self.close()

    def close(self) -> None:
        """Ends the request; its connection is kept if the whole answer has come, read or not."""
        if self._closed:
            return
        self._closed = True
        connection = self._answer.connection  # None once the whole answer has come
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        self._answer.close()
        self._give()


class _StaleError(Exception):
    """Nothing may be sent over a kept connection."""


class _Request(aiohttp.ClientRequest):
    """Tells the pool over which connection it is about to go."""

    watch: Callable[[ResponseHandler], None]
    transport: asyncio.Transport | None = None

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        assert conn.protocol is not None
        self.watch(conn.protocol)
        self.transport = conn.transport
        return await super().send(conn)


def _has_input(transport: asyncio.Transport | None) -> bool:
    if transport is None or transport.is_closing():
        return True
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _ours(error: Exception) -> HttpError:
    """Without aiohttp's words where they name the whole URL, in which a secret may be."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return ConnectTimeout(f"no connection within {CONNECT_S:g} s")
    if isinstance(error, aiohttp.ClientConnectorError):
        return ConnectError(str(error))
    if isinstance(error, aiohttp.ClientResponseError | ValueError):
        return ProtocolError(_NOT_HTTP)
    return ReadError("the server closed the connection before the end of its answer")


def _tls() -> ssl.SSLContext:
    context = httpcore2.default_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
