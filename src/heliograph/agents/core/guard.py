"""Interceptors that also see what passes between the gateway and each single server.

An interceptor of the chain sees a caller's request and the answer to it, which may be put together from several
servers. One that has the four methods of :class:`LinkGuard` too is asked at each server's link: once for what a server
says of itself, and for every request and notification in either direction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Protocol, runtime_checkable

from heliograph.agents.core.interceptor import Interceptor
from heliograph.agents.core.links import Call, Link, LinkInfo

__all__ = ["GuardedLink", "LinkGuard", "Onward", "asked", "guards_of", "hello", "told"]

Onward = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Sends the parameters on, and returns the result."""


@runtime_checkable
class LinkGuard(Protocol):
    """Sees one server's messages; :class:`~heliograph.agents.Rejected` refuses one."""

    async def hello(self, server: str, info: LinkInfo) -> LinkInfo | None:
        """What callers may learn of a server from what it says of itself; None for nothing."""
        ...

    async def exchange(
        self, server: str, info: LinkInfo, method: str, params: dict[str, Any], call_next: Onward
    ) -> dict[str, Any]:
        """One request to a server."""
        ...

    async def asked(
        self, server: str, session: str, method: str, params: dict[str, Any], call_next: Onward
    ) -> dict[str, Any]:
        """One request of a server to the caller of a session."""
        ...

    async def told(self, server: str, method: str, params: dict[str, Any]) -> dict[str, Any] | None:
        """A server's notification as it goes on; None drops it."""
        ...


class GuardedLink:
    """A link whose requests pass the guards, the first outermost."""

    def __init__(self, server: str, link: Link, guards: tuple[LinkGuard, ...]) -> None:
        self._server, self._link, self._guards = server, link, guards
        self.info = link.info

    @property
    def alive(self) -> bool:
        """As the link."""
        return self._link.alive

    async def call(self, method: str, params: dict[str, Any], call: Call) -> dict[str, Any]:
        """The result of a request."""

        async def send(onward: dict[str, Any]) -> dict[str, Any]:
            return await self._link.call(method, onward, call)

        step: Onward = send
        for guard in reversed(self._guards):
            step = partial(guard.exchange, self._server, self.info, method, call_next=step)
        return await step(params)

    async def notify(self, method: str, params: dict[str, Any]) -> None:
        """Sends a notification."""
        await self._link.notify(method, params)

    async def close(self) -> None:
        """Ends the connection."""
        await self._link.close()


def guards_of(interceptors: Iterable[Interceptor]) -> tuple[LinkGuard, ...]:
    """Those that see links too."""
    return tuple(stage for stage in interceptors if isinstance(stage, LinkGuard))


async def hello(guards: tuple[LinkGuard, ...], server: str, info: LinkInfo) -> LinkInfo | None:
    """What is left of a server's own words."""
    found: LinkInfo | None = info
    for guard in reversed(guards):
        found = None if found is None else await guard.hello(server, found)
    return found


async def asked(
    guards: tuple[LinkGuard, ...], server: str, session: str, method: str, params: dict[str, Any], send: Onward
) -> dict[str, Any]:
    """A server's request through the guards, the last of the chain first."""
    step = send
    for guard in guards:
        step = partial(guard.asked, server, session, method, call_next=step)
    return await step(params)


async def told(
    guards: tuple[LinkGuard, ...], server: str, method: str, params: dict[str, Any]
) -> dict[str, Any] | None:
    """A server's notification through the guards; None if one drops it."""
    body: dict[str, Any] | None = params
    for guard in reversed(guards):
        body = None if body is None else await guard.told(server, method, body)
    return body
