"""A caller's request as the gateway relays it, whatever transport and protocol era it came by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Inbound", "Outbound"]


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
