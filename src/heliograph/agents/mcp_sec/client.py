"""The client's side for the official SDK's client: a transport that signs requests and checks answers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from mcp.client.extension import ClientExtension
from mcp.shared.message import SessionMessage
from mcp_types import ErrorData, JSONRPCError, JSONRPCRequest, JSONRPCResponse

from heliograph.agents.mcp_sec.certificates import EXTENSION, CapabilityCertificate, SecurityError
from heliograph.agents.mcp_sec.channel import ClientChannel, Pending
from heliograph.agents.mcp_sec.denial import AUTH_CODE, actions_for
from heliograph.agents.mcp_sec.hello import read_hello
from heliograph.agents.mcp_sec.trust import TrustStore
from heliograph.errors import BadInput

__all__ = ["ClientAuth"]

_HELLO = ("initialize", "server/discover")


class ClientAuth(ClientExtension):
    """Attestation for a client that talks to one server without a gateway.

    ``Client(auth.transport(streamable_http_client(url)), extensions=[auth])``. An answer that does not check becomes a
    JSON-RPC error (-32014) with its reason, and its content never reaches the client.

    Args:
        trust: whom to believe.
        server_id: that the server must be.
        client_id: of this side.
        shared_secret: that proves it.
        require: refuse a server without a certificate.
        skew_s: that clocks may differ.
        now: seconds since 1970.
    """

    identifier = EXTENSION

    def __init__(
        self,
        trust: TrustStore,
        server_id: str,
        *,
        client_id: str = "client",
        shared_secret: bytes = b"",
        require: bool = True,
        skew_s: float = 30.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        if not server_id:
            raise BadInput("ClientAuth needs the id of the server that it expects")
        self.trust, self.server_id, self.require = trust, server_id, require
        self._client_id, self._secret, self._skew_s, self._now = client_id, shared_secret, skew_s, now
        self.certificate: CapabilityCertificate | None = None
        self.refused: dict[str, int] = {}
        self._channel: ClientChannel | None = None
        self._why = SecurityError("the server has not said who it is", "unattested")
        self._pending: dict[Any, Pending | str] = {}

    def settings(self) -> dict[str, Any]:
        """What the client says of itself."""
        return {"v": 1, "client_id": self._client_id}

    @asynccontextmanager
    async def transport(self, inner: Any) -> AsyncIterator[tuple[Any, Any]]:
        """A transport of the official SDK, with signatures."""
        async with inner as (read, write):
            yield _Checked(read, self), _Signed(write, self)

    def signed(self, message: SessionMessage) -> SessionMessage:
        """An outgoing message with its code."""
        request = message.message
        if not isinstance(request, JSONRPCRequest):
            return message
        if request.method in _HELLO or self._channel is None:
            self._pending[request.id] = request.method
            return message
        params, pending = self._channel.sign(request.method, request.params or {})
        self._pending[request.id] = pending
        return SessionMessage(request.model_copy(update={"params": params}), message.metadata)

    def checked(self, item: Any) -> Any:
        """An incoming message, or an error in its place."""
        message = item.message if isinstance(item, SessionMessage) else None
        if not isinstance(message, JSONRPCResponse | JSONRPCError):
            return item
        waiting = self._pending.pop(message.id, None)
        try:
            if isinstance(waiting, str):
                if waiting in _HELLO and isinstance(message, JSONRPCResponse):
                    self._meet(message.result, waiting)
                elif self.require and isinstance(message, JSONRPCResponse):
                    raise self._why
                return item
            if waiting is None or self._channel is None:
                return item
            if isinstance(message, JSONRPCResponse):
                result = self._channel.check_result(waiting, message.result)
                return SessionMessage(message.model_copy(update={"result": result}), item.metadata)
            error = message.error
            data = self._channel.check_error(waiting, error.code, error.message, error.data)
            bare = ErrorData(code=error.code, message=error.message, data=data)
            return SessionMessage(message.model_copy(update={"error": bare}), item.metadata)
        except SecurityError as refusal:
            self.refused[refusal.reason] = self.refused.get(refusal.reason, 0) + 1
            data = {"reason": refusal.reason, "suggested_actions": list(actions_for(refusal.reason))}
            refused = ErrorData(code=AUTH_CODE, message=str(refusal), data=data)
            return SessionMessage(JSONRPCError(jsonrpc="2.0", id=message.id, error=refused), item.metadata)

    def _meet(self, result: dict[str, Any], method: str) -> None:
        from mcp_types.version import MODERN_PROTOCOL_VERSIONS

        hello = read_hello(result.get("capabilities"))
        if hello is None:
            if self.require:
                raise SecurityError(f"the server shows no certificate of {self.server_id}", "unattested")
            return
        certificate, offer = hello
        now = self._now()
        self.trust.check(certificate, self.server_id, now=now, skew_s=self._skew_s)
        offer.check(certificate, now, self._skew_s)
        version = str(result.get("protocolVersion", ""))
        if method == "server/discover":
            offered = result.get("supportedVersions") or ()
            version = next((v for v in reversed(MODERN_PROTOCOL_VERSIONS) if v in offered), "")
        self.certificate = certificate
        self._channel = ClientChannel(
            certificate,
            offer,
            client_id=self._client_id,
            version=version,
            shared_secret=self._secret,
            skew_s=self._skew_s,
            now=self._now,
        )


class _Wrapped:
    def __init__(self, inner: Any, auth: ClientAuth) -> None:
        self._inner, self._auth = inner, auth

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def __aenter__(self) -> Any:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *about: Any) -> Any:
        return await self._inner.__aexit__(*about)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Signed(_Wrapped):
    async def send(self, item: SessionMessage) -> None:
        await self._inner.send(self._auth.signed(item))


class _Checked(_Wrapped):
    async def receive(self) -> Any:
        return self._auth.checked(await self._inner.receive())

    def __aiter__(self) -> _Checked:
        return self

    async def __anext__(self) -> Any:
        return self._auth.checked(await self._inner.__anext__())
