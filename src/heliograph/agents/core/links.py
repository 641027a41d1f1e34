"""One connection to an MCP server behind the gateway, in either protocol era; messages pass as plain JSON.

A :class:`StreamLink` runs the official SDK's dispatcher over a stream: its streamable HTTP transport for sessions of
2025-11-25 or older, or one duplex pipe. Requests in such a session take a shorter way, in
:mod:`~heliograph.agents.core.http_posts`; the stateless era over HTTP is in :mod:`~heliograph.agents.core.http_link`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio
import httpx2
import mcp_types as types
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import (
    MCP_PROTOCOL_VERSION_HEADER,
    mcp_param_headers,
)
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, LATEST_HANDSHAKE_VERSION, MODERN_PROTOCOL_VERSIONS
from opentelemetry import trace

from heliograph import __version__
from heliograph.errors import HeliographError

__all__ = ["Call", "Link", "LinkInfo", "LinkLost", "ResponseTooLarge", "StreamLink", "WrongEra"]

logger = logging.getLogger(__name__)

Notify = Callable[[str, dict[str, Any]], Awaitable[None]]
Answer = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]

CLIENT_INFO = {"name": "heliograph", "version": __version__}
TOO_LARGE_CODE = -32004
LOST_CODE = -32005


class LinkLost(HeliographError):
    """The server cannot be reached, or went away before it answered.

    Attributes:
        unsent: the request provably never ran, so it may be sent again.
    """

    exit_code = 1

    def __init__(self, message: str, *, unsent: bool = False) -> None:
        super().__init__(message)
        self.unsent = unsent


class WrongEra(HeliographError):
    """The server does not speak the era that was tried."""

    exit_code = 1


class ResponseTooLarge(HeliographError):
    """An answer is longer than the gateway allows; the rest of it is not read."""

    exit_code = 1


@dataclass(frozen=True)
class LinkInfo:
    """What a server said of itself.

    Attributes:
        version: of the protocol, as negotiated.
        capabilities, server_info: as on the wire.
        instructions: for the model.
    """

    version: str
    capabilities: dict[str, Any] = field(default_factory=dict)
    server_info: dict[str, Any] = field(default_factory=dict)
    instructions: str = ""

    @property
    def modern(self) -> bool:
        """Whether it is the stateless era."""
        return self.version in MODERN_PROTOCOL_VERSIONS


@dataclass(frozen=True)
class Call:
    """What a request needs besides its content.

    Attributes:
        on_notify: gets the notifications that belong to this request.
        headers: argument names to header names of the called tool.
        request_id: to use where the transport allows it.
    """

    on_notify: Notify
    header_map: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    request_id: str | int | None = None


class Link(Protocol):
    """A live connection."""

    info: LinkInfo

    @property
    def alive(self) -> bool:
        """False once the connection is known to be gone."""
        ...

    async def call(self, method: str, params: dict[str, Any], call: Call) -> dict[str, Any]:
        """The result of a request.

        Raises:
            MCPError: the server answered with an error.
            LinkLost: it did not answer.
            ResponseTooLarge: it answered too much.
        """
        ...

    async def notify(self, method: str, params: dict[str, Any]) -> None:
        """Sends a notification."""
        ...

    async def close(self) -> None:
        """Ends the connection."""
        ...


def modern_meta(version: str, capabilities: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The ``_meta`` that every request of the stateless era carries, for requests that the gateway makes itself."""
    return {
        types.PROTOCOL_VERSION_META_KEY: version,
        types.CLIENT_INFO_META_KEY: CLIENT_INFO,
        types.CLIENT_CAPABILITIES_META_KEY: dict(capabilities or {}),
    }


def makes_spans() -> bool:
    """Whether this process has an OpenTelemetry SDK that hears of spans."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider)


async def ignore(method: str, params: dict[str, Any]) -> None:
    """For requests whose notifications nobody wants."""


def info_of_discover(version: str, found: Mapping[str, Any]) -> LinkInfo:
    """From the result of ``server/discover``."""
    meta = found.get("_meta") or {}
    return LinkInfo(
        version,
        dict(found.get("capabilities") or {}),
        dict(meta.get(types.SERVER_INFO_META_KEY) or {}),
        str(found.get("instructions") or ""),
    )


class StreamLink:
    """A dispatcher of the official SDK over a transport of the official SDK, owned by a task of its own.

    Args:
        transport: an async context manager that gives a read and a write stream.
        on_request: answers what the server asks its client.
        on_notify: gets notifications that belong to no single request.
        where: for messages.
        trouble: into which the transport writes why it broke off, if the server sent too much.
    """

    def __init__(
        self, transport: Any, *, on_request: Answer, on_notify: Notify, where: str, trouble: list[str] | None = None
    ) -> None:
        self._trouble = [] if trouble is None else trouble
        self._transport, self._on_request, self._on_notify, self._where = transport, on_request, on_notify, where
        self.info = LinkInfo("")
        self._alive = False
        self._closing = asyncio.Event()
        self._dispatcher: JSONRPCDispatcher[Any] | None = None
        self._task: asyncio.Task[None] | None = None
        self._in_flight: dict[int, Call] = {}
        self._serial = 0
        self.unattributed = 0
        self.why = ""

    @property
    def alive(self) -> bool:
        """Whether the transport still runs."""
        return self._alive

    async def start(self, handshake: Callable[[StreamLink], Awaitable[LinkInfo]], *, timeout_s: float) -> StreamLink:
        """Connects and shakes hands.

        Raises:
            LinkLost: not reachable, or no answer in time.
            WrongEra: the server refuses this era.
        """
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._own(handshake, ready))
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(ready)
        except TimeoutError:
            await self.close()
            raise LinkLost(f"{self._where} did not answer the handshake within {timeout_s:g} s", unsent=True) from None
        except asyncio.CancelledError:
            await self.close()
            raise
        return self

    async def _own(self, handshake: Callable[[StreamLink], Awaitable[LinkInfo]], ready: asyncio.Future[None]) -> None:
        try:
            async with self._transport as (read, write):
                self._dispatcher = JSONRPCDispatcher(read, write)

                async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
                    assert self._dispatcher is not None
                    await self._dispatcher.run(self._answer, self._take, task_status=task_status)
                    self._alive = False
                    self._closing.set()

                async with anyio.create_task_group() as group:
                    await group.start(run)
                    self._alive = True
                    self.info = await handshake(self)
                    if not ready.done():
                        ready.set_result(None)
                    await self._closing.wait()
                    group.cancel_scope.cancel()
        except BaseException as error:
            self.why = _reason(error)
            if not ready.done():
                cause = error if isinstance(error, WrongEra | LinkLost) else None
                ready.set_exception(cause or LinkLost(f"cannot use {self._where}: {self.why}", unsent=True))
            elif isinstance(error, asyncio.CancelledError):
                raise
            else:
                logger.info("connection to %s ended: %s", self._where, self.why)
        finally:
            self._alive = False
            if not ready.done():
                ready.set_exception(LinkLost(f"{self._where} closed the connection at once", unsent=True))
            if ready.done() and not ready.cancelled():
                ready.exception()  # nobody may be waiting any more

    async def _answer(self, _: Any, method: str, params: Mapping[str, Any] | None) -> dict[str, Any]:
        return await self._on_request(method, dict(params or {}))

    async def _take(self, _: Any, method: str, params: Mapping[str, Any] | None) -> None:
        if method in ("notifications/progress", "notifications/cancelled"):
            return  # the dispatcher has applied them
        await self._on_notify(method, dict(params or {}))

    def only_call(self) -> Call | None:
        """The one request in flight; None if there are none or several."""
        return next(iter(self._in_flight.values())) if len(self._in_flight) == 1 else None

    async def call(self, method: str, params: dict[str, Any], call: Call) -> dict[str, Any]:
        """A request over the shared stream."""
        if not self._alive or self._dispatcher is None:
            raise LinkLost(f"the connection to {self._where} is gone", unsent=True)
        self._serial += 1
        serial = self._serial
        self._in_flight[serial] = call
        try:
            return await self._request(serial if call.request_id is None else call.request_id, method, params, call)
        except MCPError as error:
            code, text = error.error.code, error.error.message
            if code == types.CONNECTION_CLOSED:
                if (over := re.search(r"exceeded the (\d+) byte limit", text)) is not None:
                    raise ResponseTooLarge(
                        f"the answer has more than {over[1]} bytes, the limit of this gateway"
                    ) from None
                if self._trouble:
                    raise ResponseTooLarge(f"the answer has {self._trouble.pop()}") from None
                raise LinkLost(f"{self._where} went away: {text}") from None
            if text == "Session terminated" or (code == types.INVALID_REQUEST and "ession not found" in text):
                await self.close()
                raise LinkLost(f"{self._where} no longer knows this session", unsent=True) from None
            raise
        finally:
            self._in_flight.pop(serial, None)

    async def _request(self, number: int | str, method: str, params: dict[str, Any], call: Call) -> dict[str, Any]:
        assert self._dispatcher is not None
        options: dict[str, Any] = {"headers": self._headers(params, call), "request_id": number}
        meta = params.get("_meta") or {}
        token = meta.get("progressToken")
        if token is not None:

            async def progress(value: float, total: float | None, message: str | None) -> None:
                body: dict[str, Any] = {"progressToken": token, "progress": value}
                if total is not None:
                    body["total"] = total
                if message is not None:
                    body["message"] = message
                await call.on_notify("notifications/progress", body)

            options["on_progress"] = progress
        return await self._dispatcher.send_raw_request(method, params, options)  # type: ignore[arg-type]

    def _headers(self, params: dict[str, Any], call: Call) -> dict[str, str]:
        if not self.info.version:
            return {}
        headers = {MCP_PROTOCOL_VERSION_HEADER: self.info.version}
        if call.header_map and self.info.modern:
            headers.update(mcp_param_headers(call.header_map, params.get("arguments") or {}))
        return headers

    async def notify(self, method: str, params: dict[str, Any]) -> None:
        """Sends a notification, or drops it if the connection is gone."""
        if self._dispatcher is not None and self._alive:
            headers = {MCP_PROTOCOL_VERSION_HEADER: self.info.version} if self.info.version else {}
            await self._dispatcher.notify(method, params, {"headers": headers})

    def _end(self) -> None:
        """Lets the transport end by itself."""
        self._alive = False
        self._closing.set()

    async def close(self) -> None:
        """Ends the transport and waits for it."""
        self._end()
        task = self._task
        if task is None or task is asyncio.current_task():
            return
        done, _ = await asyncio.wait([task], timeout=8)
        if not done:
            task.cancel()
            await asyncio.wait([task], timeout=2)


def _reason(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return _reason(error.exceptions[0])
    if isinstance(error, MCPError):
        return error.error.message
    return str(error) or type(error).__name__


def handshake_of_session(
    version: str, capabilities: Mapping[str, Any], client_info: Mapping[str, Any]
) -> Callable[[StreamLink], Awaitable[LinkInfo]]:
    """The ``initialize`` handshake in a client's name."""

    async def handshake(link: StreamLink) -> LinkInfo:
        params = {
            "protocolVersion": version if version in HANDSHAKE_PROTOCOL_VERSIONS else LATEST_HANDSHAKE_VERSION,
            "capabilities": dict(capabilities),
            "clientInfo": dict(client_info) or CLIENT_INFO,
        }
        try:
            found = await link.call("initialize", params, Call(ignore))
        except MCPError as error:
            raise WrongEra(f"the server refuses a session: {error.error.message}") from None
        link.info = LinkInfo(
            str(found.get("protocolVersion")),
            dict(found.get("capabilities") or {}),
            dict(found.get("serverInfo") or {}),
            str(found.get("instructions") or ""),
        )
        await link.notify("notifications/initialized", {})
        return link.info

    return handshake


async def handshake_of_pipe(link: StreamLink) -> LinkInfo:
    """``server/discover`` over a duplex pipe; a server of sessions only refuses it and gets ``initialize`` instead.

    A server that says nothing for five seconds may be old and deaf to what it does not know, or new and slow to start:
    it is asked for a session too, and where it refuses that, its answer to the first question is waited for.
    """
    version = MODERN_PROTOCOL_VERSIONS[-1]
    session = handshake_of_session(LATEST_HANDSHAKE_VERSION, {}, CLIENT_INFO)
    asked = asyncio.create_task(link.call("server/discover", {"_meta": modern_meta(version)}, Call(ignore)))
    try:
        await asyncio.wait({asked}, timeout=5)
        if not asked.done():
            with contextlib.suppress(MCPError, WrongEra):
                return await session(link)
        try:
            found = await asked
        except MCPError:
            return await session(link)
        mutual = [v for v in MODERN_PROTOCOL_VERSIONS if v in found.get("supportedVersions", ())]
        return info_of_discover(mutual[-1], found) if mutual else await session(link)
    finally:
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)


@asynccontextmanager
async def session_transport(url: str, client: httpx2.AsyncClient, max_response_bytes: int) -> AsyncIterator[Any]:
    """The official SDK's streamable HTTP transport; ends the client with it."""
    async with (
        client,
        streamable_http_client(url, http_client=client, max_sse_event_size=max_response_bytes) as streams,
    ):
        yield streams
