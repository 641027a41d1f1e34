"""A server behind the gateway: how to reach it, its pooled connections, its health, and bounded reconnection.

Callers of the stateless era share one connection pool. A caller with a session gets a session of its own there: what a
server sends to one of them can then never reach another. A failed connection is retried by the next call, but not
before a delay that doubles up to a limit; until then calls fail at once and say when to come back.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import mcp_types as types
from mcp_types.version import LATEST_HANDSHAKE_VERSION

from heliograph.agents.core.http_client import HttpClient
from heliograph.agents.core.http_link import HttpLink
from heliograph.agents.core.http_pool import HttpPool
from heliograph.agents.core.http_posts import SessionLink
from heliograph.agents.core.links import (
    CLIENT_INFO,
    Answer,
    Link,
    LinkInfo,
    LinkLost,
    Notify,
    StreamLink,
    WrongEra,
    handshake_of_pipe,
    handshake_of_session,
    session_transport,
)
from heliograph.agents.core.pipes import pipe_transport
from heliograph.clock import Clock, WallClock
from heliograph.errors import BadInput

__all__ = ["Caller", "Upstream", "UpstreamSpec"]

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


@dataclass(frozen=True)
class UpstreamSpec:
    """How to reach a server: by ``url`` (streamable HTTP), or by ``command`` (standard input and output).

    Attributes:
        url: http or https.
        headers: sent with every request; a caller's headers never are.
        command, args, env, cwd: the program, as in the usual ``mcpServers`` files.
        era: "auto" mirrors the caller's protocol era, "sessions" uses 2025-11-25 or older only.
        timeout_s: for one request, at most.
        connect_timeout_s: for the handshake.
        max_response_bytes: of one answer.
        max_concurrency: requests at a time; more of them wait, within their time.
        max_sessions: sessions at a time.
    """

    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""
    era: Literal["auto", "sessions"] = "auto"
    timeout_s: float = 60.0
    connect_timeout_s: float = 15.0
    max_response_bytes: int = 16 * 1024 * 1024
    max_concurrency: int = 128
    max_sessions: int = 1000

    def __post_init__(self) -> None:
        """Refuses what cannot be reached."""
        if bool(self.url) == bool(self.command):
            raise BadInput("an upstream has a url or a command, one of them")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise BadInput(f"an upstream's url begins with http:// or https://; got {self.url!r}")
        positive = (
            self.timeout_s,
            self.connect_timeout_s,
            self.max_response_bytes,
            self.max_concurrency,
            self.max_sessions,
        )
        if not all(value > 0 and math.isfinite(value) for value in positive):
            raise BadInput("an upstream's times, sizes and numbers are finite and above 0")


@dataclass(frozen=True)
class Caller:
    """For whom a connection is.

    Attributes:
        session: None for the stateless era.
        version, capabilities, client_info: as the caller said in its handshake.
        on_request: answers what the server asks this caller.
        on_notify: takes what the server tells this caller outside a request.
    """

    session: Hashable | None
    version: str
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    client_info: Mapping[str, Any] = field(default_factory=dict)
    on_request: Answer | None = None
    on_notify: Notify | None = None


@dataclass
class _Slot:
    """A connection, or the promise of one; the lock keeps two calls from opening it twice."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    link: Link | None = None


class Upstream:
    """The connections to one server.

    Args:
        name: letters, digits, ``_`` and ``-``.
        spec: how to reach it.
        clock: for the delays between connections.
        backoff_s, max_backoff_s: first delay after a failure, and the longest.

    Attributes:
        calls, lost, opened: requests answered, requests lost, connections made.
    """

    def __init__(
        self,
        name: str,
        spec: UpstreamSpec,
        *,
        clock: Clock | None = None,
        backoff_s: float = 0.25,
        max_backoff_s: float = 30.0,
    ) -> None:
        if not name or not set(name) <= _NAME_CHARACTERS or not name[0].isalpha():
            raise BadInput(
                f"an upstream's name begins with a letter and has letters, digits, _ and - only; got {name!r}"
            )
        self.name, self.spec = name, spec
        self._clock = clock or WallClock()
        self._backoff_s, self._max_backoff_s = backoff_s, max_backoff_s
        self._delay_s, self._not_before, self._last_error = 0.0, -math.inf, ""
        self._shared = _Slot()
        self._sessions: dict[Hashable, _Slot] = {}
        self._pool: HttpPool | None = None
        self._modern: bool | None = False if spec.era == "sessions" else None
        self.gate = asyncio.Semaphore(spec.max_concurrency)
        self.calls = self.lost = self.opened = 0
        self._closed = False

    async def link(self, caller: Caller) -> Link:
        """A live connection for this caller.

        Raises:
            LinkLost: none can be had now; the message says when to try again.
        """
        if self._closed:
            raise LinkLost(f"{self.name} was taken out of the gateway", unsent=True)
        shared = caller.session is None
        slot = self._shared if shared else self._session(caller)
        link = slot.link
        if link is not None and link.alive:
            return link
        async with slot.lock:
            if slot.link is not None and slot.link.alive:
                return slot.link
            if slot.link is not None:
                await slot.link.close()
                slot.link = None
            wait = self._not_before - self._clock.now()
            if wait > 0:
                raise LinkLost(
                    f"{self.name} failed ({self._last_error}); the next try is in {math.ceil(wait * 1000)} ms",
                    unsent=True,
                )
            try:
                slot.link = await (self._open_shared() if shared else self._open_session(caller))
            except (LinkLost, WrongEra) as error:
                self.failed(str(error))
                raise LinkLost(f"{self.name}: {error}", unsent=True) from None
            self.opened += 1
            self._delay_s, self._last_error = 0.0, ""
            return slot.link

    def failed(self, why: str) -> None:
        """Doubles the delay before the next connection."""
        self._delay_s = min(self._max_backoff_s, self._delay_s * 2 or self._backoff_s)
        self._not_before, self._last_error = self._clock.now() + self._delay_s, why

    def _session(self, caller: Caller) -> _Slot:
        if caller.session not in self._sessions:
            if len(self._sessions) >= self.spec.max_sessions:
                raise LinkLost(f"{self.name} has its {self.spec.max_sessions} sessions; end one, or raise max_sessions")
            self._sessions[caller.session] = _Slot()
        return self._sessions[caller.session]

    async def _open_shared(self) -> Link:
        if self.spec.command:
            return await self._pipe(Caller(None, LATEST_HANDSHAKE_VERSION))
        if self._modern is not False:
            try:
                async with asyncio.timeout(self.spec.connect_timeout_s):
                    found = await self._open_stateless()
                self._modern = True
                return found
            except TimeoutError:
                raise LinkLost(f"no answer within {self.spec.connect_timeout_s:g} s", unsent=True) from None
            except WrongEra:
                if self._modern:
                    raise
        link = await self._web_session(Caller(None, LATEST_HANDSHAKE_VERSION, {}, CLIENT_INFO))
        self._modern = False
        return link

    async def _open_session(self, caller: Caller) -> Link:
        try:
            return await (self._pipe(caller) if self.spec.command else self._web_session(caller))
        except WrongEra:
            if self.spec.command or self._modern is False:
                raise
            return await self._open_stateless()

    async def _web_session(self, caller: Caller) -> StreamLink:
        trouble: list[str] = []
        client = HttpClient(
            self.spec.url,
            self.spec.headers,
            max_connections=self.spec.max_concurrency + 2,
            max_body_bytes=self.spec.max_response_bytes,
            trouble=trouble,
        )
        limit = self.spec.max_response_bytes
        transport = session_transport(self.spec.url, client, limit)
        make = partial(SessionLink, client=client, max_response_bytes=limit)
        return await self._stream(transport, caller, self.spec.url, trouble, make)

    async def _pipe(self, caller: Caller) -> StreamLink:
        spec = self.spec
        errlog = open("/dev/null", "w") if not sys.stderr else sys.stderr  # noqa: SIM115, PTH123
        trouble: list[str] = []
        limit = spec.max_response_bytes
        transport = pipe_transport(spec.command, spec.args, spec.env, spec.cwd, errlog, limit, trouble)
        return await self._stream(transport, caller, spec.command, trouble)

    async def _stream(
        self,
        transport: Any,
        caller: Caller,
        where: str,
        trouble: list[str],
        make: Callable[..., StreamLink] = StreamLink,
    ) -> StreamLink:
        async def refuse(method: str, _: dict[str, Any]) -> dict[str, Any]:
            from mcp.shared.exceptions import MCPError

            raise MCPError(types.METHOD_NOT_FOUND, f"{method}: this connection is shared by callers without a session")

        async def tell(method: str, params: dict[str, Any]) -> None:
            call = link.only_call()
            if caller.on_notify is not None:
                await caller.on_notify(method, params)
            elif call is not None:
                await call.on_notify(method, params)
            else:
                link.unattributed += 1  # several callers share the pipe, and nothing says whose this is

        link = make(transport, on_request=caller.on_request or refuse, on_notify=tell, where=where, trouble=trouble)
        modern_pipe = caller.session is None and self.spec.command and self.spec.era == "auto"
        handshake = (
            handshake_of_pipe
            if modern_pipe
            else handshake_of_session(caller.version, caller.capabilities, caller.client_info)
        )
        return await link.start(handshake, timeout_s=self.spec.connect_timeout_s)

    async def _open_stateless(self) -> HttpLink:
        if self._pool is None:
            self._pool = HttpPool(
                self.spec.url,
                # Lists and subscriptions come on top of the calls that are counted.
                max_connections=self.spec.max_concurrency + 256,
            )
        limit = self.spec.max_response_bytes
        return await HttpLink.open(self.spec.url, self._pool, headers=self.spec.headers, max_response_bytes=limit)

    @property
    def info(self) -> LinkInfo | None:
        """What the server said on its newest live connection."""
        slots = [self._shared, *self._sessions.values()]
        return next((slot.link.info for slot in slots if slot.link is not None and slot.link.alive), None)

    @property
    def last_error(self) -> str:
        """Why the last connection failed; empty if it did not."""
        return self._last_error

    @property
    def sessions(self) -> int:
        """Sessions now."""
        return len(self._sessions)

    async def end_session(self, session: Hashable) -> None:
        """Closes a caller's own connection."""
        slot = self._sessions.pop(session, None)
        if slot is not None and slot.link is not None:
            await slot.link.close()

    async def close(self) -> None:
        """Closes all connections."""
        self._closed = True
        slots = [self._shared, *self._sessions.values()]
        self._sessions = {}
        await asyncio.gather(*(slot.link.close() for slot in slots if slot.link is not None), return_exceptions=True)
        if self._pool is not None:
            await self._pool.close()
