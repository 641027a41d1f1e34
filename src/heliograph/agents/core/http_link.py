"""A server of the stateless era (2026-07-28) over HTTP: every request is a POST of its own.

Whatever arrives on a request's response stream belongs to that request and to nobody else, so callers can share a pool
of connections and still never see each other's messages.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import mcp_types as types
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import (
    MCP_METHOD_HEADER,
    MCP_NAME_HEADER,
    MCP_PROTOCOL_VERSION_HEADER,
    NAME_BEARING_METHODS,
    encode_header_value,
    mcp_param_headers,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from opentelemetry import propagate
from opentelemetry.context import get_current

from heliograph.agents.core.http_events import bounded, events
from heliograph.agents.core.http_pool import ConnectError, HttpError, HttpPool, Response
from heliograph.agents.core.links import (
    Call,
    LinkInfo,
    LinkLost,
    WrongEra,
    ignore,
    info_of_discover,
    modern_meta,
)

__all__ = ["HttpLink"]


class HttpLink:
    """The stateless era over HTTP, with one pool of connections.

    Args:
        url: of the server.
        pool: of connections; owned by the caller.
        headers: of our own, sent with every request.
        max_response_bytes: of one answer.
    """

    def __init__(
        self,
        url: str,
        pool: HttpPool,
        *,
        headers: Mapping[str, str],
        max_response_bytes: int,
    ) -> None:
        self.url, self._pool, self._max_bytes = url, pool, max_response_bytes
        self._headers = [
            ("accept", "application/json, text/event-stream"),
            ("content-type", "application/json"),
            *((name.lower(), value) for name, value in headers.items()),
        ]
        self.info = LinkInfo("")
        self.alive = True
        self._next_id = 0

    @classmethod
    async def open(
        cls,
        url: str,
        pool: HttpPool,
        *,
        headers: Mapping[str, str],
        max_response_bytes: int,
    ) -> HttpLink:
        """Asks the server what it is.

        Raises:
            WrongEra: it does not know ``server/discover``.
            LinkLost: it cannot be reached.
        """
        link = cls(url, pool, headers=headers, max_response_bytes=max_response_bytes)
        version = MODERN_PROTOCOL_VERSIONS[-1]
        for _ in range(2):
            link.info = LinkInfo(version)
            try:
                found = await link.call("server/discover", {"_meta": modern_meta(version)}, Call(ignore))
            except MCPError as error:
                data = error.error.data
                offered = data.get("supported", ()) if isinstance(data, dict) else ()
                mutual = [v for v in MODERN_PROTOCOL_VERSIONS if v in offered]
                if error.error.code != types.UNSUPPORTED_PROTOCOL_VERSION or not mutual:
                    raise WrongEra(f"{url} does not speak {version}: {error.error.message}") from None
                version = mutual[-1]
                continue
            mutual = [v for v in MODERN_PROTOCOL_VERSIONS if v in found.get("supportedVersions", ())]
            if not mutual:
                raise WrongEra(f"{url} offers no version of the stateless era")
            link.info = info_of_discover(mutual[-1], found)
            return link
        raise WrongEra(f"{url} refuses the version that it offers")

    async def call(self, method: str, params: dict[str, Any], call: Call) -> dict[str, Any]:
        """One POST."""
        self._next_id += 1
        request_id = call.request_id if call.request_id is not None else self._next_id
        routing = {MCP_PROTOCOL_VERSION_HEADER: self.info.version, MCP_METHOD_HEADER: method}
        name = params.get(NAME_BEARING_METHODS.get(method, ""))
        if isinstance(name, str):
            routing[MCP_NAME_HEADER] = encode_header_value(name)
        if call.header_map:
            routing.update(mcp_param_headers(call.header_map, params.get("arguments") or {}))
        if get_current():  # without a span or baggage there is nothing to carry on
            propagate.inject(routing)
        message = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
        body = _COMPACT.encode(message).encode()
        try:
            response = await self._pool.post([*self._headers, *routing.items()], body)
            try:
                return await self._read(response, request_id, call)
            finally:
                response.close()
        except ConnectError as error:
            raise LinkLost(f"cannot reach {self.url}: {type(error).__name__}", unsent=True) from None
        except HttpError as error:
            raise LinkLost(f"{self.url} broke off: {type(error).__name__}") from None

    async def _read(self, response: Response, request_id: str | int, call: Call) -> dict[str, Any]:
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "text/event-stream":
            async with contextlib.aclosing(events(response.chunk, self._max_bytes)) as stream:
                async for event in stream:
                    message = _json_object(event.data)
                    if message is None:
                        continue
                    if "method" in message and "id" not in message:
                        await call.on_notify(message["method"], message.get("params") or {})
                    elif message.get("id") == request_id and "method" not in message:
                        return result_of(message)
            raise LinkLost(f"{self.url} ended its stream without an answer")
        content = bytearray()
        while chunk := await response.chunk():
            content += chunk
            bounded(len(content), self._max_bytes)
        message = _json_object(bytes(content)) if kind == "application/json" else None
        if message is not None and ("result" in message or "error" in message):
            return result_of(message)
        raise MCPError(types.INTERNAL_ERROR, f"the server answered HTTP {response.status} without a JSON-RPC answer")

    async def notify(self, method: str, params: dict[str, Any]) -> None:
        """The stateless era has no notifications from clients; nothing is sent."""

    async def close(self) -> None:
        """Nothing to end: the pool belongs to the caller."""
        self.alive = False


_COMPACT = json.JSONEncoder(separators=(",", ":"))


def _json_object(data: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(data)
        if isinstance(value, dict):
            return value
    return None


def result_of(message: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a JSON-RPC answer.

    Raises:
        MCPError: the answer is an error, or its result is no object.
    """
    if isinstance(message.get("result"), dict):
        return dict(message["result"])
    error = message.get("error")
    if isinstance(error, Mapping) and isinstance(error.get("code"), int):
        raise MCPError(error["code"], str(error.get("message", "")), error.get("data"))
    raise MCPError(types.INTERNAL_ERROR, "the server's answer is neither a result nor an error")
