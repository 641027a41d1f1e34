"""One POST, relayed without the SDK's server: the gateway's hot path.

A request of the stateless era (2026-07-28) is whole in itself, and the gateway passes plain JSON on, so it needs no
typed models and no task group. One within a session needs of the SDK only that it has the session
(:mod:`~heliograph.agents.core.http_session`). Only a request that the SDK would hand to the gateway unchanged is taken
here. Every other one, and every one that must be refused, goes to the SDK's application with its body given back:
refusals have one author.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.runner import modern_error_data
from mcp.server.streamable_http import check_accept_headers
from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from mcp.shared.inbound import (
    ERROR_CODE_HTTP_STATUS,
    MCP_METHOD_HEADER,
    MCP_NAME_HEADER,
    MCP_PROTOCOL_VERSION_HEADER,
    InboundLadderRejection,
    classify_inbound_request,
)
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS
from starlette.requests import Request

from heliograph.agents.core.config import Listen
from heliograph.agents.core.gateway import Gateway
from heliograph.agents.core.http_reply import Reply, Watch, plain_error, traced
from heliograph.agents.core.http_session import SESSION_ID, SessionFront
from heliograph.agents.core.inbound import Inbound

__all__ = ["ExchangeFront"]

App = Callable[[Any, Any, Any], Awaitable[None]]

_VERSIONS = frozenset(version.encode() for version in MODERN_PROTOCOL_VERSIONS)
_SESSION_VERSIONS = frozenset(version.encode() for version in HANDSHAKE_PROTOCOL_VERSIONS)
_ROUTING = (MCP_PROTOCOL_VERSION_HEADER, MCP_METHOD_HEADER, MCP_NAME_HEADER)
_ADMITTING = (b"host", b"origin", b"content-type", b"accept")


class ExchangeFront:
    """An ASGI application that answers what it can by itself, and hands on the rest.

    Args:
        gateway: relays.
        app: of the SDK.
        listen: path and limits.
        security: of the transport, as the SDK's application has it.
        user_of: finds the authenticated user of a request, as the SDK's application gets it.
    """

    def __init__(
        self,
        gateway: Gateway,
        app: App,
        listen: Listen,
        security: TransportSecuritySettings | None = None,
        user_of: Callable[[Any], AuthenticatedUser | None] = lambda _: None,
    ) -> None:
        self._gateway, self._app, self._listen = gateway, app, listen
        self._security = TransportSecurityMiddleware(security)
        self._sessions = SessionFront(gateway, user_of)
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
        whole = messages[-1]["type"] == "http.request"
        if SESSION_ID in headers:
            exchange = self._sessions.exchange(scope, headers[SESSION_ID], body, send) if whole else None
            if exchange is not None:
                await exchange.serve(receive)
                return
        elif whole:
            reply = Reply(send, statuses=ERROR_CODE_HTTP_STATUS)
            inbound = self._inbound(scope, headers, body, reply)
            if inbound is not None:
                await self._serve(inbound, receive, reply)
                return

        async def again() -> Any:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, again, send)

    async def _headers(self, scope: Any) -> Mapping[bytes, bytes] | None:
        """Those of a request that may be taken here."""
        if scope["method"] != "POST" or scope["path"] != self._listen.path or scope.get("root_path"):
            return None
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in headers:
                return None  # whoever reads the first and whoever reads the last may disagree
            headers[name] = value
        if headers.get(b"mcp-protocol-version") not in (_SESSION_VERSIONS if SESSION_ID in headers else _VERSIONS):
            return None
        if (
            SESSION_ID in headers
            and headers.get(b"content-type", b"").partition(b";")[0].strip() != b"application/json"
        ):
            return None  # of a session's requests the SDK wants just this type
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

    def _inbound(self, scope: Any, headers: Mapping[bytes, bytes], body: bytes, reply: Reply) -> Inbound | None:
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

    async def _serve(self, inbound: Inbound, receive: Any, reply: Reply) -> None:
        task = asyncio.current_task()
        assert task is not None
        watch = Watch(receive, reply, task.cancel)
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
        try:
            return {"result": await traced(self._gateway, inbound)}
        except Exception as error:
            return {"error": plain_error(modern_error_data(error))}
