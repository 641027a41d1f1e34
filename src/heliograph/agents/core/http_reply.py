"""How the gateway answers one POST by itself: JSON, or a stream of events once something is said before the answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mcp_types as types
from mcp.shared.exceptions import NoBackChannelError

from heliograph.agents.core.gateway import Gateway
from heliograph.agents.core.inbound import Inbound
from heliograph.agents.core.links import makes_spans

__all__ = ["Reply", "Watch", "plain_error", "traced"]

Header = tuple[bytes, bytes]

PING_S = 15.0
"""A stream without a message for so long gets a comment, or a proxy may close it."""
_SOON_S = 0.05
"""A call that is done by then needs nobody who watches whether its caller still waits."""
_EVENT_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"connection", b"keep-alive"),
    (b"x-accel-buffering", b"no"),
]


async def traced(gateway: Gateway, inbound: Inbound) -> dict[str, Any]:
    """Relays a request, within a span if anybody hears of it: an exporter, or a server that is told whose part it is.

    Raises:
        MCPError: the answer is an error.
    """
    relay, spans = gateway.relay, gateway.spans
    told = isinstance(inbound.meta, Mapping) and "traceparent" in inbound.meta
    result: dict[str, Any]
    if spans is not None and (told or makes_spans()):
        result = await spans(inbound, relay)
    else:
        result = await relay(inbound)
    return result


def plain_error(error: types.ErrorData) -> dict[str, Any]:
    """An error as it stands in an answer."""
    data = {} if error.data is None else {"data": error.data}
    return {"code": error.code, "message": error.message, **data}


class Watch:
    """Notices that a caller has gone, and keeps the stream of a slow call open.

    Args:
        receive: of ASGI.
        reply: to the caller.
        on_gone: called once nobody reads the reply any more.
    """

    def __init__(self, receive: Any, reply: Reply, on_gone: Callable[[], object]) -> None:
        self._receive, self._reply, self._on_gone = receive, reply, on_gone
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
                    self._on_gone()
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


class Reply:
    """JSON, or a stream of events from the first thing that is said before the answer.

    Args:
        send: of ASGI.
        headers: beside those of the content.
        statuses: of HTTP for errors, by their codes; 200 for others.
    """

    def __init__(self, send: Any, headers: Sequence[Header] = (), statuses: Mapping[int, int] | None = None) -> None:
        self._send, self._headers, self._statuses = send, headers, statuses or {}
        self._lock = asyncio.Lock()
        self._over = False
        self.events = 0

    async def notify(self, method: str, params: Mapping[str, Any] | None) -> None:
        """A notification of the request, as an event."""
        said = {} if params is None else {"params": dict(params)}
        await self.say(_dumped({"jsonrpc": "2.0", "method": method, **said}))

    async def send_raw_request(self, method: str, params: Mapping[str, Any] | None) -> dict[str, Any]:  # noqa: ARG002
        """The stateless era has no requests to callers."""
        raise NoBackChannelError(method)

    async def say(self, message: bytes) -> None:
        """A message before the answer; after it, nothing."""
        await self._event(_event(message))

    async def ping(self) -> None:
        """A comment."""
        await self._event(b": ping\r\n\r\n")

    async def _event(self, event: bytes, *, last: bool = False) -> None:
        async with self._lock:
            if self._over:
                return
            if not self.events:
                headers = [*_EVENT_HEADERS, *self._headers]
                await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            self.events += 1
            self._over = last
            await self._send({"type": "http.response.body", "body": event, "more_body": not last})

    async def finish(self, message: dict[str, Any]) -> None:
        """The answer."""
        if self.events:
            await self._event(_event(_dumped(message)), last=True)
            return
        self._over = True
        code = message["error"]["code"] if "error" in message else None
        body = _dumped(message)
        headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json"), *self._headers]
        status = 200 if code is None else self._statuses.get(code, 200)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


_STRICT = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def _event(message: bytes) -> bytes:
    return b"event: message\r\ndata: " + message + b"\r\n\r\n"


def _dumped(message: dict[str, Any]) -> bytes:
    try:
        return _STRICT.encode(message).encode()
    except (TypeError, ValueError):  # NaN, which some servers send, or a value of an interceptor that is not JSON
        plain = types.JSONRPCNotification(jsonrpc="2.0", method="", params=message).model_dump(mode="json")["params"]
        return json.dumps(plain, separators=(",", ":")).encode()
