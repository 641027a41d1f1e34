"""The HTTP under the official SDK's client of sessions: bounded answers, kept connections, no header of a caller."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping

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

__all__ = ["http_client"]

_END_S = 0.05
_OWN = frozenset({b"host", b"content-length", b"transfer-encoding"})
"""Headers that the pool writes itself."""


def http_client(
    url: str, headers: Mapping[str, str], *, max_connections: int, max_body_bytes: int, trouble: list[str]
) -> httpx2.AsyncClient:
    """A client with the given headers and no others of any caller, no proxies, no redirects.

    Args:
        url: of the server; what is posted there goes over a pool, everything else as usual.
        headers: sent with every request.
        max_connections: at a time.
        max_body_bytes: of an answer that is no stream of events; the SDK bounds those.
        trouble: into which is written that an answer was too long.
    """
    return httpx2.AsyncClient(
        headers=dict(headers),
        transport=_Transport(url, max_connections, max_body_bytes, trouble),
        timeout=httpx2.Timeout(None, connect=10.0, pool=10.0),
        trust_env=False,
        follow_redirects=False,
    )


class _Transport(httpx2.AsyncBaseTransport):
    def __init__(self, url: str, max_connections: int, max_bytes: int, trouble: list[str]) -> None:
        limits = httpx2.Limits(max_connections=max_connections, max_keepalive_connections=max_connections)
        self._url, self._usual = httpx2.URL(url), httpx2.AsyncHTTPTransport(limits=limits)
        self._pool = HttpPool(url, max_connections=max_connections)
        self._max_bytes, self._trouble = max_bytes, trouble

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        posted = request.method == "POST" and request.url == self._url
        response = await (self._post(request) if posted else self._usual.handle_async_request(request))
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            inner = response.stream
            assert isinstance(inner, httpx2.AsyncByteStream)
            response.stream = _BoundedStream(inner, self._max_bytes, self._trouble)
        return response

    async def _post(self, request: httpx2.Request) -> httpx2.Response:
        fields = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in request.headers.raw
            if name.lower() not in _OWN
        ]
        body = await request.aread()
        with _as_httpx(request):
            response = await self._pool.post(fields, body)
        return httpx2.Response(response.status, headers=response.fields, stream=_PooledStream(response, request))

    async def aclose(self) -> None:
        await self._pool.close()
        await self._usual.aclose()


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
        try:
            if not self._reading:
                with contextlib.suppress(TimeoutError, httpx2.TransportError):
                    async with asyncio.timeout(_END_S):
                        await self._chunk()
        finally:
            self._response.close()


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
