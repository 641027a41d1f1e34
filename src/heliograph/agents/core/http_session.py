"""One request within a session (2025-11-25 and older), relayed beside the SDK's server that keeps the session.

The SDK opens and ends a session, streams to it outside requests, and takes what a caller notifies and answers. A
request needs of it only that the session is there and whose it is: it is answered here, as JSON, or as a stream of
events once something is said before the answer. What a server asks the caller meanwhile gets its number from the SDK,
which waits for the caller's answer, and goes out on this stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import anyio
import pydantic_core
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser, authorization_context
from mcp.server.runner import modern_error_data
from mcp.server.streamable_http import GET_STREAM_KEY, REQUEST_CANCELLED, EventMessage
from mcp.shared.dispatcher import coerce_request_id
from mcp.shared.exceptions import NoBackChannelError
from mcp_types import CONNECTION_CLOSED, JSONRPCRequest
from starlette.requests import Request

from heliograph.agents.core.gateway import Gateway
from heliograph.agents.core.http_reply import Reply, Watch, plain_error, traced
from heliograph.agents.core.inbound import Inbound, Session

__all__ = ["SESSION_ID", "SessionExchange", "SessionFront"]

SESSION_ID = b"mcp-session-id"
_CANCELLED = {"code": REQUEST_CANCELLED, "message": "Request cancelled"}
_CLOSED = {"code": CONNECTION_CLOSED, "message": "Connection closed"}
_SAY_S = 1.0
"""What the SDK is about to ask on a stream may take so long; then the answer ends it."""
_MEMBERS = frozenset({"jsonrpc", "id", "method", "params"})


class SessionFront:
    """Takes requests within sessions.

    Args:
        gateway: relays.
        user_of: finds the authenticated user of a request, as the SDK's application gets it.
    """

    def __init__(self, gateway: Gateway, user_of: Callable[[Any], AuthenticatedUser | None]) -> None:
        self._gateway, self._user_of = gateway, user_of

    def exchange(self, scope: Any, session_id: bytes, body: bytes, send: Any) -> SessionExchange | None:
        """The request, if the SDK would have the gateway relay it; None for everything else."""
        manager = self._gateway.server.session_manager
        name = session_id.decode("latin-1")
        session, transport = self._gateway.session(name), manager._server_instances.get(name)
        if session is None or transport is None or transport.is_terminated:
            return None
        if transport.idle_scope is None or transport.idle_scope.cancel_called:
            return None
        user = self._user_of(scope)
        if (None if user is None else authorization_context(user)) != manager._session_owners.get(name):
            return None
        message = _request(body)
        if message is None or self._gateway.spans is None or not session.connection.initialize_accepted:
            return None
        request_id, version = message["id"], session.connection.protocol_version
        if not self._gateway.relays(message["method"], version):
            return None
        # Two requests of one number are told apart by nobody; the SDK has its way with them.
        if coerce_request_id(request_id) in session.exchanges or str(request_id) in transport._request_streams:
            return None
        reply = _SessionReply(send, session_id, session, transport, request_id)
        inbound = Inbound(
            message["method"],
            message.get("params"),
            request_id,
            version,
            reply,
            Request(scope),
            session.connection,
        )
        return SessionExchange(self._gateway, session, transport, inbound, reply)


def _request(body: bytes) -> dict[str, Any] | None:
    """A request of JSON-RPC as the SDK would read it; None if it is anything else, or there is doubt."""
    try:
        message = pydantic_core.from_json(body)
    except ValueError:
        return None
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0" or not _MEMBERS.issuperset(message):
        return None
    request_id, params = message.get("id"), message.get("params", {})
    if type(request_id) not in (int, str) or request_id == GET_STREAM_KEY or not isinstance(message.get("method"), str):
        return None
    if not isinstance(params, dict) or not isinstance(params.get("_meta", {}), dict):
        return None
    return message


class SessionExchange:
    """One request within a session.

    Args:
        gateway: relays.
        session: of the caller.
        transport: of the SDK, which has the session.
        inbound: the request.
        reply: to it.
    """

    def __init__(
        self, gateway: Gateway, session: Session, transport: Any, inbound: Inbound, reply: _SessionReply
    ) -> None:
        self._gateway, self._session, self._transport = gateway, session, transport
        self._inbound, self._reply = inbound, reply
        self._task: asyncio.Task[Any] | None = None
        self._why: dict[str, Any] | None = None

    async def serve(self, receive: Any) -> None:
        """Answers it.

        A caller whose connection breaks has not cancelled the request (that is a notification in this era): it goes on.
        """
        self._task = asyncio.current_task()
        number = coerce_request_id(self._inbound.request_id)
        self._session.exchanges[number] = self._abandon
        watch = Watch(receive, self._reply, lambda: None)
        try:
            with _in_use(self._transport):
                try:
                    body = await self._answer()
                except asyncio.CancelledError:
                    if self._why is None or self._task is None:
                        raise
                    self._task.uncancel()
                    body = {"error": self._why}
                finally:
                    del self._session.exchanges[number]
                    watch.end()
                await self._reply.finish({"jsonrpc": "2.0", "id": self._inbound.request_id, **body})
        finally:
            self._reply.release()

    def _abandon(self, *, cancelled: bool) -> None:
        """Ends it: the caller has cancelled it, or its session has ended."""
        if self._why is None and self._task is not None:
            self._why = _CANCELLED if cancelled else _CLOSED
            self._task.cancel()

    async def _answer(self) -> dict[str, Any]:
        try:
            return {"result": await traced(self._gateway, self._inbound)}
        except Exception as error:
            return {"error": plain_error(modern_error_data(error))}


class _SessionReply(Reply):
    """An answer in a session, on whose stream the SDK may ask the caller."""

    def __init__(self, send: Any, session_id: bytes, session: Session, transport: Any, request_id: int | str) -> None:
        super().__init__(send, [(SESSION_ID, session_id)])
        self._session, self._request_id = session, request_id
        self._streams, self._stream = transport._request_streams, _Stream(self._route)
        self._unsaid: deque[object] = deque()
        self._said = asyncio.Event()

    async def send_raw_request(self, method: str, params: Mapping[str, Any] | None) -> dict[str, Any]:
        """Asks the caller, and waits for its answer; raises NoBackChannelError after the answer."""
        if self._over:
            raise NoBackChannelError(method)
        mark = object()
        if self._streams.setdefault(str(self._request_id), (self._stream, self._stream))[0] is self._stream:
            self._unsaid.append(mark)
        dispatcher = self._session.connection.outbound
        try:
            result: dict[str, Any] = await dispatcher.send_raw_request(
                method, params, None, _related_request_id=self._request_id
            )
            return result
        finally:
            if mark in self._unsaid:
                self._unsaid.remove(mark)
            self._said.set()

    async def _route(self, event: EventMessage) -> None:
        await self.say(event.message.model_dump_json(by_alias=True, exclude_unset=True).encode())
        if self._unsaid and isinstance(event.message, JSONRPCRequest):
            self._unsaid.popleft()
        self._said.set()

    async def finish(self, message: dict[str, Any]) -> None:
        """The answer, after what the SDK is about to ask."""
        with contextlib.suppress(TimeoutError):
            if self._unsaid:
                async with asyncio.timeout(_SAY_S):
                    while self._unsaid:
                        self._said.clear()
                        await self._said.wait()
        self.release()
        await super().finish(message)

    def release(self) -> None:
        """Nothing more is asked."""
        key = str(self._request_id)
        if self._streams.get(key, (None,))[0] is self._stream:
            del self._streams[key]


class _Stream:
    """Stands among the SDK's streams of requests."""

    def __init__(self, send: Callable[[EventMessage], Awaitable[None]]) -> None:
        self.send = send

    def close(self) -> None:
        """The exchange ends by itself."""

    async def aclose(self) -> None:
        """The exchange ends by itself."""


@contextlib.contextmanager
def _in_use(transport: Any) -> Iterator[None]:
    """A session with a request in flight is not idle, as the SDK counts."""
    scope = transport.idle_scope
    transport._requests_in_flight += 1
    scope.deadline = math.inf
    try:
        yield
    finally:
        transport._requests_in_flight -= 1
        if not transport._requests_in_flight:
            scope.deadline = anyio.current_time() + transport._idle_timeout
