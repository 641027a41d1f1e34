"""One POST of the stateless era (2026-07-28), relayed without the SDK's server: the gateway's hot path.

Such a request is whole in itself, and the gateway passes plain JSON on, so it needs no session, no typed models and no
task group. Only a request that the SDK would hand to the gateway unchanged is taken here. Every other one, and every
one that must be refused, goes to the SDK's application with its body given back: refusals have one author.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import mcp_types as types
from mcp.server.runner import modern_error_data
from mcp.server.streamable_http import check_accept_headers
from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from mcp.shared.exceptions import NoBackChannelError
from mcp.shared.inbound import (
    ERROR_CODE_HTTP_STATUS,
    MCP_METHOD_HEADER,
    MCP_NAME_HEADER,
    MCP_PROTOCOL_VERSION_HEADER,
    InboundLadderRejection,
    classify_inbound_request,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from opentelemetry import trace
from starlette.requests import Request

from heliograph.agents.core.config import Listen
from heliograph.agents.core.gateway import Gateway
from heliograph.agents.core.inbound import Inbound

__all__ = ["ExchangeFront"]

App = Callable[[Any, Any, Any], Awaitable[None]]

PING_S = 15.0
"""A stream without a message for so long gets a comment, or a proxy may close it."""
_SOON_S = 0.05
"""A call that is done by then needs nobody who watches whether its caller still waits."""
_VERSIONS = frozenset(version.encode() for version in MODERN_PROTOCOL_VERSIONS)
_ROUTING = (MCP_PROTOCOL_VERSION_HEADER, MCP_METHOD_HEADER, MCP_NAME_HEADER)
_ADMITTING = (b"host", b"origin", b"content-type", b"accept")
_EVENT_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"connection", b"keep-alive"),
    (b"x-accel-buffering", b"no"),
]


class ExchangeFront:
    """An ASGI application that answers what it can by itself, and hands on the rest.

    Args:
        gateway: relays.
        app: of the SDK.
        listen: path and limits.
        security: of the transport, as the SDK's application has it.
    """

    def __init__(
        self, gateway: Gateway, app: App, listen: Listen, security: TransportSecuritySettings | None = None
    ) -> None:
        self._gateway, self._app, self._listen = gateway, app, listen
        self._security = TransportSecurityMiddleware(security)
        self._admitted: set[tuple[bytes | None, ...]] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        headers = await self._headers(scope)
        if headers is None:
            await self._app(scope, receive, send)
            return
        messages = [await receive()]
        while messages[-1]["type"] == "http.request" and messages[-1].get("more_body", False):
            messages.append(await receive())
        body = b"".join(message.get("body", b"") for message in messages)
        reply = _Reply(send)
        inbound = self._inbound(scope, headers, body, reply) if messages[-1]["type"] == "http.request" else None
        if inbound is None:

            async def again() -> Any:
                return messages.pop(0) if messages else await receive()

            await self._app(scope, again, send)
            return
        await self._serve(inbound, receive, reply)

    async def _headers(self, scope: Any) -> Mapping[bytes, bytes] | None:
        """Those of a request that may be taken here."""
        if scope["method"] != "POST" or scope["path"] != self._listen.path or scope.get("root_path"):
            return None
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in headers:
                return None  # whoever reads the first and whoever reads the last may disagree
            headers[name] = value
        if headers.get(b"mcp-protocol-version") not in _VERSIONS:
            return None
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or len(length) > 15 or int(length) > self._listen.max_body_bytes:
            return None
        admitting = tuple(headers.get(name) for name in _ADMITTING)
        if admitting not in self._admitted:  # the SDK decides, once for the same headers
            request = Request(scope)
            if not all(check_accept_headers(request)):
                return None
            if await self._security.validate_request(request, is_post=True) is not None:
                return None
            if len(self._admitted) >= 100:
                self._admitted.clear()
            self._admitted.add(admitting)
        return headers

    def _inbound(self, scope: Any, headers: Mapping[bytes, bytes], body: bytes, reply: _Reply) -> Inbound | None:
        """The request, if the SDK would have the gateway relay it."""
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            return None
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            return None
        request_id, method, params = message.get("id"), message.get("method"), message.get("params")
        if type(request_id) not in (int, str) or not isinstance(method, str) or not isinstance(params, dict):
            return None
        given = {name: headers[name.encode()].decode("latin-1") for name in _ROUTING if name.encode() in headers}
        route = classify_inbound_request(message, headers=given)
        if isinstance(route, InboundLadderRejection) or not self._gateway.relays(method, route.protocol_version):
            return None
        if method == "subscriptions/listen" or self._gateway.header_map(method, params):
            return None
        if self._gateway.spans is None:
            return None
        return Inbound(method, params, request_id, route.protocol_version, reply, Request(scope))

    async def _serve(self, inbound: Inbound, receive: Any, reply: _Reply) -> None:
        task = asyncio.current_task()
        assert task is not None
        watch = _Watch(receive, reply, task)
        try:
            body = await self._answer(inbound)
            watch.end()
            await reply.finish({"jsonrpc": "2.0", "id": inbound.request_id, **body})
        except asyncio.CancelledError:
            if not watch.gone:
                raise
            task.uncancel()
        finally:
            watch.end()

    async def _answer(self, inbound: Inbound) -> dict[str, Any]:
        relay, spans = self._gateway.relay, self._gateway.spans
        try:
            if spans is not None and _traced(inbound):
                return {"result": await spans(inbound, relay)}
            return {"result": await relay(inbound)}
        except Exception as error:
            found = modern_error_data(error)
            data = {} if found.data is None else {"data": found.data}
            return {"error": {"code": found.code, "message": found.message, **data}}


def _traced(inbound: Inbound) -> bool:
    """Whether anybody hears of a span: an exporter here, or a server that is told whose part it is."""
    if isinstance(inbound.meta, Mapping) and "traceparent" in inbound.meta:
        return True
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider)


class _Watch:
    """Cancels a call whose caller has gone, and keeps the stream of a slow one open."""

    def __init__(self, receive: Any, reply: _Reply, call: asyncio.Task[Any]) -> None:
        self._receive, self._reply, self._call = receive, reply, call
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_SOON_S, self._begin)
        self.gone = False

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        heard = asyncio.ensure_future(self._receive())
        try:
            while True:
                count = self._reply.events
                await asyncio.wait({heard}, timeout=PING_S)
                if not heard.done():
                    if self._reply.events == count:
                        await self._reply.ping()
                elif heard.result()["type"] == "http.disconnect":
                    self.gone = True
                    self._call.cancel()
                    return
                else:
                    heard = asyncio.ensure_future(self._receive())
        finally:
            heard.cancel()

    def end(self) -> None:
        """Nobody waits for the call any more, or it is done."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()


class _Reply:
    """JSON, or a stream of events from the first thing that is said before the answer."""

    def __init__(self, send: Any) -> None:
        self._send = send
        self._lock = asyncio.Lock()
        self._over = False
        self.events = 0

    async def notify(self, method: str, params: Mapping[str, Any] | None) -> None:
        """A notification of the request, as an event."""
        said = {} if params is None else {"params": dict(params)}
        await self._event(_event({"jsonrpc": "2.0", "method": method, **said}))

    async def send_raw_request(self, method: str, params: Mapping[str, Any] | None) -> dict[str, Any]:  # noqa: ARG002
        """The stateless era has no requests to callers."""
        raise NoBackChannelError(method)

    async def ping(self) -> None:
        """A comment."""
        await self._event(b": ping\r\n\r\n")

    async def _event(self, event: bytes, *, last: bool = False) -> None:
        async with self._lock:
            if self._over:
                return
            if not self.events:
                await self._send({"type": "http.response.start", "status": 200, "headers": _EVENT_HEADERS})
            self.events += 1
            self._over = last
            await self._send({"type": "http.response.body", "body": event, "more_body": not last})

    async def finish(self, message: dict[str, Any]) -> None:
        """The answer."""
        if self.events:
            await self._event(_event(message), last=True)
            return
        self._over = True
        code = message["error"]["code"] if "error" in message else None
        body = _dumped(message)
        headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        status = ERROR_CODE_HTTP_STATUS.get(code, 200) if code is not None else 200
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


_STRICT = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def _event(message: dict[str, Any]) -> bytes:
    return b"event: message\r\ndata: " + _dumped(message) + b"\r\n\r\n"


def _dumped(message: dict[str, Any]) -> bytes:
    try:
        return _STRICT.encode(message).encode()
    except (TypeError, ValueError):  # NaN, which some servers send, or a value of an interceptor that is not JSON
        plain = types.JSONRPCNotification(jsonrpc="2.0", method="", params=message).model_dump(mode="json")["params"]
        return json.dumps(plain, separators=(",", ":")).encode()
