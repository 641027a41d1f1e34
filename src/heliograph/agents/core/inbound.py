"""A caller's request as the gateway relays it, whatever transport and protocol era it came by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from mcp_types.version import LATEST_HANDSHAKE_VERSION

__all__ = ["Abandon", "Inbound", "Outbound", "Session"]


class Outbound(Protocol):
    """A request's own way back to its caller."""

    async def notify(self, method: str, params: Mapping[str, Any] | None) -> None:
        """Tells the caller something before the answer."""
        ...

    async def send_raw_request(self, method: str, params: Mapping[str, Any] | None) -> dict[str, Any]:
        """Asks the caller; raises MCPError where it cannot be asked."""
        ...


@dataclass(frozen=True)
class Inbound:
    """One message of a caller.

    Attributes:
        method, params: as on the wire.
        request_id: None for a notification.
        protocol_version: that the caller speaks.
        outbound: the way back.
        request: of HTTP; None on a pipe.
        connection: of the SDK's server; None where an exchange stands alone.
    """

    method: str
    params: Mapping[str, Any] | None
    request_id: Any
    protocol_version: str
    outbound: Outbound
    request: Any = None
    connection: Any = None

    @property
    def meta(self) -> Any:
        """Of the parameters."""
        return (self.params or {}).get("_meta")

    @classmethod
    def of(cls, ctx: Any) -> Inbound:
        """From a request context of the SDK's server."""
        session = ctx.session
        return cls(
            ctx.method,
            ctx.params,
            ctx.request_id,
            ctx.protocol_version,
            session._request_outbound,
            ctx.request,
            session._connection,
        )


class Abandon(Protocol):
    """Ends a request in flight."""

    def __call__(self, *, cancelled: bool) -> None:
        """``cancelled``: by its caller; otherwise its session has ended."""
        ...


@dataclass(eq=False)
class Session:
    """A caller's session of the older era.

    Attributes:
        id: of the transport, or one of the gateway's own.
        connection: of the SDK's server.
        version, capabilities, client_info: as the handshake said.
        in_flight: the ways back of its requests, the newest last.
        exchanges: how to end those that are served without the SDK, by their numbers.
    """

    id: str
    connection: Any
    version: str = LATEST_HANDSHAKE_VERSION
    capabilities: dict[str, Any] = field(default_factory=dict)
    client_info: dict[str, Any] = field(default_factory=dict)
    in_flight: list[Outbound] = field(default_factory=list)
    exchanges: dict[int | str, Abandon] = field(default_factory=dict)

    def way_back(self, own: Outbound | None) -> Outbound | None:
        """For what a server says: ``own``, if it is of a request in flight here, or the newest; None without any."""
        if own is not None and any(own is one for one in self.in_flight):
            return own
        return self.in_flight[-1] if self.in_flight else None
