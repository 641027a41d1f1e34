"""A session at a server over HTTP (2025-11-25 and older), whose requests pass beside the SDK's client.

The SDK opens and ends the session, listens to what the server says outside requests, and carries notifications and
answers to the server. A request is a POST of its own with the headers that the SDK sends: its answer is read here, as
JSON or as a stream of events. What a server asks there, and what it says there that belongs to the session and not to
the request, goes to the SDK's dispatcher. Requests go back to the SDK's client where the server redirects one, or where
an OpenTelemetry SDK hears of spans.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import anyio
import httpx2
import mcp_types as types
import pydantic_core
from mcp.shared._httpx_utils import sse_within_origin
from mcp.shared.dispatcher import coerce_request_id
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from opentelemetry import propagate
from opentelemetry.context import get_current
from pydantic import ValidationError

from heliograph.agents.core.http_client import HttpClient
from heliograph.agents.core.http_events import Event, bounded, events
from heliograph.agents.core.http_pool import ConnectError, HttpError, Response
from heliograph.agents.core.links import Call, LinkLost, StreamLink, makes_spans

__all__ = ["SessionLink"]

logger = logging.getLogger(__name__)

_ATTEMPTS = 2
"""To take up a broken stream again, as the SDK's client has it; so is the time between them."""
_RETRY_MS = 1000
_CANCEL_S = 5.0
_UNDONE = (types.CONNECTION_CLOSED, "SSE stream ended without a response")


class SessionLink(StreamLink):
    """A session over HTTP.

    Args:
        client: under the SDK's transport.
        max_response_bytes: of one answer, and of one event before it.
        options: of every link over a stream.
    """

    def __init__(self, transport: Any, *, client: HttpClient, max_response_bytes: int, **options: Any) -> None:
        super().__init__(transport, **options)
        self._client, self._max_bytes = client, max_response_bytes
        self._watched: dict[int | str, tuple[Any, Call]] = {}
        self._closing_responses: set[asyncio.Task[None]] = set()

    async def _request(self, number: int | str, method: str, params: dict[str, Any], call: Call) -> dict[str, Any]:
        if self._client.wire.headers is None or makes_spans():
            return await super()._request(number, method, params, call)
        meta = dict(params.get("_meta") or {})
        token = meta.get("progressToken")
        if token is not None:
            meta["progressToken"] = number
            self._watched[coerce_request_id(number)] = token, call
        if get_current():  # without a span or baggage there is nothing to carry on
            propagate.inject(meta)
        bare = {key: value for key, value in params.items() if key != "_meta"}
        inside = {**bare, "_meta": meta} if meta else bare
        message = {"jsonrpc": "2.0", "id": number, "method": method, **({"params": inside} if inside else {})}
        try:
            return await self._post(message, call)
        except _RedirectedError:
            self._watched.pop(coerce_request_id(number), None)  # the SDK watches its own requests
            self._client.wire.redirected()
            return await super()._request(number, method, params, call)
        except asyncio.CancelledError:
            with anyio.move_on_after(_CANCEL_S, shield=True):
                about = {"requestId": number, "reason": "caller cancelled"}
                await self.notify("notifications/cancelled", about)
            raise
        finally:
            self._watched.pop(coerce_request_id(number), None)

    async def _post(self, message: dict[str, Any], call: Call) -> dict[str, Any]:
        try:
            response = await self._client.wire.post(
                pydantic_core.to_json(message, inf_nan_mode="null"), self._client.cookies
            )
        except ConnectError as error:
            self._end()
            raise LinkLost(f"cannot reach {self._where}: {type(error).__name__}", unsent=True) from None
        except HttpError as error:
            raise LinkLost(f"{self._where} broke off: {type(error).__name__}") from None
        answered = False
        try:
            result = await self._read(response, call)
            answered = True
            return result
        except MCPError:
            answered = True
            raise
        except HttpError as error:
            raise LinkLost(f"{self._where} broke off: {type(error).__name__}") from None
        finally:
            if answered and not response.whole:
                self._close_soon(response)
            else:
                response.close()

    def _close_soon(self, response: Response) -> None:
        """A stream of events ends a moment after the answer; its connection can be kept only after that."""
        task = asyncio.get_running_loop().create_task(response.end())
        self._closing_responses.add(task)
        task.add_done_callback(self._closing_responses.discard)

    async def _read(self, response: Response, call: Call) -> dict[str, Any]:
        status = response.status
        if status == 202:
            raise MCPError(types.INVALID_REQUEST, "server answered a request with 202 Accepted")
        if 300 <= status < 400:
            raise _RedirectedError
        kind = response.headers.get("content-type", "").lower()
        read = self._client.wire.reader(response)
        if status >= 400:
            raise await self._refusal(status, kind, read)
        if kind.startswith("application/json"):
            result = await self._take_message(await self._whole(read), call)
            if result is None:
                raise MCPError(types.PARSE_ERROR, "the server's answer is neither a result nor an error")
            return result
        if kind.startswith("text/event-stream"):
            return await self._stream(events(read, self._max_bytes), call)
        raise MCPError(types.INVALID_REQUEST, f"Unexpected content type: {kind}")

    async def _whole(self, read: Callable[[], Awaitable[bytes]]) -> bytes:
        content = bytearray()
        while chunk := await read():
            content += chunk
            bounded(len(content), self._max_bytes)
        return bytes(content)

    async def _refusal(self, status: int, kind: str, read: Callable[[], Awaitable[bytes]]) -> MCPError:
        if kind.startswith("application/json"):
            with contextlib.suppress(ValueError):  # ValidationError is one
                found = types.jsonrpc_message_adapter.validate_json(await self._whole(read), by_name=False)
                if isinstance(found, types.JSONRPCError):
                    return MCPError(found.error.code, found.error.message, found.error.data)
        if status != 404:
            return MCPError(types.INTERNAL_ERROR, "Server returned an error response")
        if self._client.wire.in_session:
            return MCPError(types.INVALID_REQUEST, "Session terminated")
        return MCPError(types.METHOD_NOT_FOUND, "Not Found")

    async def _stream(self, stream: AsyncGenerator[Event], call: Call) -> dict[str, Any]:
        newest = Event(b"")
        try:
            async with contextlib.aclosing(stream):
                async for event in stream:
                    newest = replace(event, retry_ms=newest.retry_ms if event.retry_ms is None else event.retry_ms)
                    result = await self._take_event(event, call)
                    if result is not None:
                        return result
        except HttpError as error:
            logger.debug("%s broke off a stream: %s", self._where, type(error).__name__)
        if newest.id:
            return await self._resumed(newest, call)
        raise MCPError(*_UNDONE)

    async def _resumed(self, newest: Event, call: Call) -> dict[str, Any]:
        """The answer of a stream that is taken up again after its last event."""
        attempts = 0
        while attempts < _ATTEMPTS:
            await asyncio.sleep((_RETRY_MS if newest.retry_ms is None else newest.retry_ms) / 1000)
            if not self._alive:
                break
            headers = {**dict(self._client.wire.headers or ()), "last-event-id": newest.id}
            streaming = False
            try:
                async with sse_within_origin(
                    self._client, str(self._client.wire.url), headers=headers, max_event_size=self._max_bytes
                ) as source:
                    source.response.raise_for_status()
                    streaming = source.response.headers.get("content-type", "").startswith("text/event-stream")
                    async for sse in source:
                        retry_ms = newest.retry_ms if sse.retry is None else sse.retry
                        event = Event(sse.data.encode(), sse.event, sse.id or newest.id, retry_ms)
                        newest = event
                        result = await self._take_event(event, call)
                        if result is not None:
                            return result
                attempts = 0
            except httpx2.SSEError as error:
                if streaming:
                    raise MCPError(types.CONNECTION_CLOSED, f"SSE stream failed: {error}") from None
                attempts += 1
            except (httpx2.HTTPError, RuntimeError) as error:  # RuntimeError: the client was closed meanwhile
                logger.debug("%s could not be taken up again: %s", self._where, type(error).__name__)
                attempts += 1
        raise MCPError(types.CONNECTION_CLOSED, "SSE stream ended and reconnection attempts were exhausted")

    async def _take_event(self, event: Event, call: Call) -> dict[str, Any] | None:
        if event.kind != "message" or not event.data:  # an event without data only says where the stream is
            return None
        return await self._take_message(event.data, call)

    async def _take_message(self, data: bytes, call: Call) -> dict[str, Any] | None:
        """One message of a request's own answer; its result if it is that.

        Raises:
            MCPError: the answer is an error, or not JSON-RPC.
        """
        try:
            message = pydantic_core.from_json(data)
            if _is_plain_result(message):
                result: dict[str, Any] = message["result"]
                return result
            item = types.jsonrpc_message_adapter.validate_python(message, by_name=False)
        except (ValueError, ValidationError):
            raise MCPError(types.PARSE_ERROR, "the server's answer is not JSON-RPC") from None
        if isinstance(item, types.JSONRPCResponse):
            return item.result
        if isinstance(item, types.JSONRPCError):
            raise MCPError(item.error.code, item.error.message, item.error.data)
        if isinstance(item, types.JSONRPCNotification) and item.method == "notifications/message":
            await self._tell(call, item.method, dict(item.params or {}))
        elif isinstance(item, types.JSONRPCNotification) and item.method == "notifications/progress":
            await self._progress(item.params or {})
        elif self._alive and self._dispatcher is not None:
            await self._dispatcher._dispatch(SessionMessage(item), self._answer, self._take, None)
        return None

    async def _take(self, context: Any, method: str, params: Mapping[str, Any] | None) -> None:
        if method == "notifications/progress":
            await self._progress(params or {})  # said outside the request that it belongs to
        else:
            await super()._take(context, method, params)

    async def _progress(self, params: Mapping[str, Any]) -> None:
        number, done = params.get("progressToken"), params.get("progress")
        if type(number) not in (int, str) or isinstance(done, bool) or not isinstance(done, int | float):
            return
        token, call = self._watched.get(coerce_request_id(number), (None, None))  # type: ignore[arg-type]
        if call is None:
            return
        body: dict[str, Any] = {"progressToken": token, "progress": done}
        if isinstance(params.get("total"), int | float):
            body["total"] = params["total"]
        if isinstance(params.get("message"), str):
            body["message"] = params["message"]
        await self._tell(call, "notifications/progress", body)

    async def _tell(self, call: Call, method: str, body: dict[str, Any]) -> None:
        try:
            await call.on_notify(method, body)
        except Exception:  # what is said meanwhile does not fail a call
            logger.exception("%s of %s could not be passed on", method, self._where)


class _RedirectedError(Exception):
    """The SDK decides whether to follow."""


def _is_plain_result(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and len(message) == 3
        and message.get("jsonrpc") == "2.0"
        and type(message.get("id")) in (int, str)
        and isinstance(message.get("result"), dict)
    )
