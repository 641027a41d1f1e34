"""The HTTP under the official SDK's client of sessions: bounded answers, kept connections, no header of a caller."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

import httpx2

from heliograph.agents.core.http_pool import (
    ConnectError,
    ConnectTimeout,
    HttpPool,
    PoolTimeout,
    ProtocolError,
    ReadError,
    Response,
)

__all__ = ["HttpClient", "SessionWire"]

_OWN = frozenset({b"host", b"content-length", b"transfer-encoding"})
"""Headers that the pool writes itself."""
_IDENTITY = ("accept-encoding", "identity")
_VERSION, _SESSION_ID = "mcp-protocol-version", "mcp-session-id"


class HttpClient(httpx2.AsyncClient):
    """A client with the given headers and no others of any caller, no proxies, no redirects.

    Args:
        url: of the server; what is posted there goes over a pool, everything else as usual.
        headers: sent with every request.
        max_connections: at a time.
        max_body_bytes: of an answer that is no stream of events; the SDK bounds those.
        trouble: into which is written that an answer was too long.

    Attributes:
        wire: under it; requests of a session may take it directly.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str], *, max_connections: int, max_body_bytes: int, trouble: list[str]
    ) -> None:
        own = frozenset(name.lower() for name in headers)
        self.wire = SessionWire(url, max_connections, max_body_bytes, trouble, keeps_cookies="cookie" not in own)
        super().__init__(
            headers=dict(headers),
            transport=self.wire,
            timeout=httpx2.Timeout(None, connect=10.0, pool=10.0),
            trust_env=False,
            follow_redirects=False,
        )


class SessionWire(httpx2.AsyncBaseTransport):
    """What goes to the server, from the SDK through httpx2, or directly with the headers that the SDK sends.

    Args:
        url, max_connections, max_bytes, trouble: as for the client.
        keeps_cookies: sends the server's; otherwise the one that is configured.

    Attributes:
        headers: of what is posted in the session; None until the server has taken the first message with its version.
        in_session: whether the server gave the session an id.
    """

    def __init__(
        self, url: str, max_connections: int, max_bytes: int, trouble: list[str], *, keeps_cookies: bool = True
    ) -> None:
        limits = httpx2.Limits(max_connections=max_connections, max_keepalive_connections=max_connections)
        self.url, self._usual = httpx2.URL(url), httpx2.AsyncHTTPTransport(limits=limits)
        self._pool = HttpPool(url, max_connections=max_connections)
        self._max_bytes, self._trouble, self._keeps_cookies = max_bytes, trouble, keeps_cookies
        self.headers: list[tuple[str, str]] | None = None
        self.in_session = self._redirected = False

    def redirected(self) -> None:
        """The server is elsewhere; only the SDK posts from now on."""
        self.headers, self._redirected = None, True

    async def post(self, body: bytes, cookies: httpx2.Cookies) -> Response:
        """Posts a message in the session, and returns once the head of the answer is there. Close the response.

        Raises:
            HttpError: as :meth:`HttpPool.post`.
        """
        assert self.headers is not None
        sent = [*self.headers, _IDENTITY]
        if cookies and self._keeps_cookies:
            asking = httpx2.Request("POST", self.url)
            cookies.set_cookie_header(asking)
            if "cookie" in asking.headers:
                sent.append(("cookie", asking.headers["cookie"]))
        response = await self._pool.post(sent, body)
        if "set-cookie" in response.headers:
            asked = httpx2.Request("POST", self.url)
            cookies.extract_cookies(httpx2.Response(response.status, headers=response.fields, request=asked))
        return response

    def reader(self, response: Response) -> Callable[[], Awaitable[bytes]]:
        """Gives the parts of an answer, decoded if the server has encoded it unasked."""
        if response.headers.get("content-encoding", "identity").strip().lower() == "identity":
            return response.chunk
        return _Decoded(response, httpx2.Request("POST", self.url)).chunk

    def _learn(self, request: httpx2.Request, response: httpx2.Response) -> None:
        if self.headers is None and not self._redirected and response.is_success and _VERSION in request.headers:
            dropped = {"accept-encoding", "cookie"} if self._keeps_cookies else {"accept-encoding"}
            self.headers = [(name, value) for name, value in _fields(request) if name.lower() not in dropped]
            self.in_session = _SESSION_ID in request.headers

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Of the SDK, through httpx2."""
        posted = request.method == "POST" and request.url == self.url
        response = await (self._post(request) if posted else self._usual.handle_async_request(request))
        if posted:
            self._learn(request, response)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            inner = response.stream
            assert isinstance(inner, httpx2.AsyncByteStream)
            response.stream = _BoundedStream(inner, self._max_bytes, self._trouble)
        return response

    async def _post(self, request: httpx2.Request) -> httpx2.Response:
        body = await request.aread()
        with _as_httpx(request):
            response = await self._pool.post(_fields(request), body)
        return httpx2.Response(response.status, headers=response.fields, stream=_PooledStream(response, request))

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._pool.close()
        await self._usual.aclose()


def _fields(request: httpx2.Request) -> list[tuple[str, str]]:
    return [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in request.headers.raw
        if name.lower() not in _OWN
    ]


class _PooledStream(httpx2.AsyncByteStream):
    """The body of an answer; waits a moment for the end of one whose reader has seen enough.

    The SDK closes a stream of events at the answer, before its end; without that its connection could not be kept.
    """

    def __init__(self, response: Response, request: httpx2.Request) -> None:
        self._response, self._request, self._reading = response, request, False

    async def _chunk(self) -> bytes:
        self._reading = True
        try:
            with _as_httpx(self._request):
                return await self._response.chunk()
        finally:
            self._reading = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self._chunk():
            yield chunk

    async def aclose(self) -> None:
        if self._reading:
            self._response.close()
        else:
            await self._response.end()


class _Decoded:
    """An answer that the server has encoded although it was asked not to."""

    def __init__(self, response: Response, request: httpx2.Request) -> None:
        stream = _PooledStream(response, request)
        self._parts = httpx2.Response(response.status, headers=response.fields, stream=stream).aiter_bytes()

    async def chunk(self) -> bytes:
        """The next part; nothing at the end."""
        try:
            return await anext(self._parts, b"")
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise ReadError(str(error)) from None


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream, max_bytes: int, trouble: list[str]) -> None:
        self._inner, self._max_bytes, self._trouble = inner, max_bytes, trouble

    async def __aiter__(self) -> AsyncIterator[bytes]:
        total = 0
        async for chunk in self._inner:
            total += len(chunk)
            if total > self._max_bytes:
                self._trouble.append(f"more than {self._max_bytes} bytes, the limit of this gateway")
                raise httpx2.ReadError(self._trouble[-1])
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


_ERRORS: dict[type[Exception], type[httpx2.TransportError]] = {
    PoolTimeout: httpx2.PoolTimeout,
    ConnectTimeout: httpx2.ConnectTimeout,
    ConnectError: httpx2.ConnectError,
    ReadError: httpx2.ReadError,
    ProtocolError: httpx2.RemoteProtocolError,
}


@contextlib.contextmanager
def _as_httpx(request: httpx2.Request) -> Iterator[None]:
    try:
        yield
    except tuple(_ERRORS) as error:
        raise _ERRORS[type(error)](str(error), request=request) from error
