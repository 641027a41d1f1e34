"""The server's side: an official SDK server that shows its certificate and authenticates its messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mcp.server.extension import Extension
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel

from heliograph.agents.core.identity import Identity
from heliograph.agents.mcp_sec.certificates import EXTENSION, CapabilityCertificate, SecurityError
from heliograph.agents.mcp_sec.channel import ServerChannel, own_fields
from heliograph.agents.mcp_sec.denial import AUTH_CODE, actions_for
from heliograph.agents.mcp_sec.nonces import SharedNonces

__all__ = ["AttestedServer"]

_HELLO = ("initialize", "server/discover")


class AttestedServer(Extension):
    """Attestation for one server.

    :meth:`install` does all of it. Passed as ``MCPServer(extensions=[...])`` it advertises the certificate only, since
    an extension cannot see whole messages; ``server.middleware.insert(0, attested.middleware)`` adds the rest.

    Args:
        certificate: of the server, or the file that holds it.
        key: that the certificate names, or its PEM file.
        require_auth: refuse messages of clients that do not know the extension.
        nonces: SQLite file that several workers share; in memory by default.
        channel: further arguments of :class:`~heliograph.agents.mcp_sec.channel.ServerChannel`.

    Raises:
        BadInput: a file cannot be read, or the key is not the certificate's.
    """

    identifier = EXTENSION

    def __init__(
        self,
        certificate: CapabilityCertificate | str | Path,
        key: Identity | str | Path,
        *,
        require_auth: bool = False,
        nonces: str | Path | None = None,
        **channel: Any,
    ) -> None:
        if not isinstance(certificate, CapabilityCertificate):
            certificate = CapabilityCertificate.load(certificate)
        if not isinstance(key, Identity):
            key = Identity.load(key)
        if nonces is not None:
            channel["nonces"] = SharedNonces(nonces, window_s=channel.get("skew_s", 30.0))
        self.channel = ServerChannel(certificate, key, **channel)
        self.require_auth = require_auth
        self.refused: dict[str, int] = {}

    def settings(self) -> dict[str, Any]:
        """Certificate and key offer."""
        return self.channel.hello()

    def install(self, server: Any) -> AttestedServer:
        """Adds it to a ``Server`` or ``MCPServer`` of the official SDK; returns itself."""
        lowlevel = getattr(server, "_lowlevel_server", server)
        lowlevel.extensions[EXTENSION] = self.settings()
        server.middleware.insert(0, self.middleware)  # outermost, where results have their form on the wire
        return self

    async def middleware(self, ctx: Any, call_next: Any) -> Any:
        """Checks a request and signs its answer."""
        if ctx.request_id is None:
            return await call_next(ctx)
        if ctx.method in _HELLO:
            return self._introduced(_plain(await call_next(ctx)))
        params = dict(ctx.params or {})
        if own_fields(params.get("_meta")) is None and not self.require_auth:
            return await call_next(ctx)
        try:
            bare, auth = self.channel.check_request(ctx.method, params, ctx.protocol_version)
        except SecurityError as error:
            self.refused[error.reason] = self.refused.get(error.reason, 0) + 1
            data = {"reason": error.reason, "suggested_actions": list(actions_for(error.reason))}
            raise MCPError(AUTH_CODE, str(error), data) from None
        try:
            result = _plain(await call_next(replace(ctx, params=bare)))
        except MCPError as error:
            code, message = error.error.code, error.error.message
            raise MCPError(
                code, message, self.channel.sign_error(auth, ctx.method, code, message, error.error.data)
            ) from None
        return self.channel.sign_result(auth, ctx.method, result)

    def _introduced(self, result: dict[str, Any]) -> dict[str, Any]:
        """With the certificate where both eras have room for it: session versions know no extensions."""
        capabilities = dict(result.get("capabilities") or {})
        hello = self.channel.hello()
        for place in ("extensions", "experimental"):
            if place == "experimental" or place in capabilities or "resultType" in result:
                capabilities[place] = {**(capabilities.get(place) or {}), EXTENSION: hello}
        return {**result, "capabilities": capabilities}


def _plain(result: Any) -> dict[str, Any]:
    if isinstance(result, BaseModel):
        dumped: dict[str, Any] = result.model_dump(by_alias=True, mode="json", exclude_none=True)
        return dumped
    return dict(result) if isinstance(result, Mapping) else {}
