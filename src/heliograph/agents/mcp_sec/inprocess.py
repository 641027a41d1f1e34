"""A gateway before servers of the same process: the official SDK on both sides, streams in memory in between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mcp.client._memory import InMemoryTransport

from heliograph.agents.core.gateway import Gateway
from heliograph.agents.core.interceptor import Interceptor
from heliograph.agents.core.links import StreamLink
from heliograph.agents.core.upstream import Caller, Upstream, UpstreamSpec

__all__ = ["MemoryUpstream", "gateway_before"]


class MemoryUpstream(Upstream):
    """An upstream whose server runs in this process.

    Args:
        name: of it.
        server: ``Server`` or ``MCPServer`` of the official SDK.
        spec: for its limits.
    """

    def __init__(self, name: str, server: Any, spec: UpstreamSpec | None = None) -> None:
        super().__init__(name, spec or UpstreamSpec(command="in-process"))
        self._server = server

    async def _pipe(self, caller: Caller) -> StreamLink:
        return await self._stream(InMemoryTransport(self._server), caller, self.name, [])


def gateway_before(servers: Mapping[str, Any], interceptors: Iterable[Interceptor] = ()) -> Gateway:
    """A gateway before servers of this process; ``mcp.Client(gateway.server)`` connects to it."""
    gateway = Gateway({name: UpstreamSpec(command="in-process") for name in servers}, interceptors)
    gateway.upstreams = {name: MemoryUpstream(name, server) for name, server in servers.items()}
    return gateway
