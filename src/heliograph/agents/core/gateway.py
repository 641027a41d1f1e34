"""The gateway before MCP servers: one address in front, any number of servers behind, interceptors in between.

In front is the official SDK's low-level server, over streamable HTTP and stdio, in both protocol eras. One middleware
of it takes every request as plain JSON, sends it through the interceptor chain as an :class:`Envelope`, and relays it
to the server that its *body* names; a routing header that disagrees is refused by the SDK (-32020) before. Nothing of a
caller's HTTP request but the JSON-RPC body goes on: no header is passed through.

The gateway is transport only. Who may call what, budgets and recovery are interceptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.runner import modern_error_data
from mcp.shared.dispatcher import coerce_request_id
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import x_mcp_header_map
from mcp.shared.jsonrpc_dispatcher import cancelled_request_id_from_params
from mcp_types import methods
from mcp_types.version import LATEST_HANDSHAKE_VERSION, MODERN_PROTOCOL_VERSIONS

from heliograph import __version__
from heliograph.agents.core.aggregate import listed, listen, merged_capabilities, reshaped, rounds
from heliograph.agents.core.envelope import CARRIER, Envelope, Meta
from heliograph.agents.core.guard import GuardedLink, asked, guards_of, hello, told
from heliograph.agents.core.identity import Principal
from heliograph.agents.core.inbound import Inbound, Outbound, Session
from heliograph.agents.core.interceptor import Chain, Interceptor, Rejected
from heliograph.agents.core.links import LOST_CODE, TOO_LARGE_CODE, Call, Link, LinkInfo, LinkLost, ResponseTooLarge
from heliograph.agents.core.namespace import LISTS, Namespace
from heliograph.agents.core.upstream import Caller, Upstream, UpstreamSpec
from heliograph.clock import Clock, WallClock
from heliograph.errors import BadInput

__all__ = ["CallContext", "Gateway", "Observation", "current_call"]

logger = logging.getLogger(__name__)

_SINGLE = frozenset(
    {
        "tools/call",
        "prompts/get",
        "resources/read",
        "resources/subscribe",
        "resources/unsubscribe",
        "completion/complete",
    }
)
_OWN = frozenset({"ping", "initialize", "server/discover"})


@dataclass(frozen=True)
class CallContext:
    """What interceptors may want to know beyond the envelope.

    Attributes:
        principal: the authenticated caller; None without authentication.
        session: id of the caller's session; "" in the stateless era.
        version: of the protocol that the caller speaks.
        upstream: the server that the body names; "" for requests to all.
        ask_client: sends a request to the caller (elicitation, for example); raises MCPError where it cannot.
    """

    principal: Principal | None
    session: str
    version: str
    upstream: str
    ask_client: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


_CURRENT: ContextVar[CallContext | None] = ContextVar("heliograph_call", default=None)
_WAY_BACK: ContextVar[Outbound | None] = ContextVar("heliograph_way_back", default=None)
"""Of the request that runs; what a server says meanwhile is taken in a copy of its context."""


def current_call() -> CallContext | None:
    """The request that the running interceptor handles; None outside the gateway."""
    return _CURRENT.get()


@dataclass(frozen=True)
class Observation:
    """One finished request, for metrics.

    Attributes:
        upstream, method: of it.
        outcome: "ok", "tool_error", "error", "rejected", "timeout", "lost", "too_large" or "cancelled".
        seconds: from arrival to answer.
    """

    upstream: str
    method: str
    outcome: str
    seconds: float


class Gateway:
    """Relays MCP between callers and servers.

    Args:
        upstreams: servers by name; a text stands for a URL.
        interceptors: see every request, the first outermost.
        name: that callers see.
        separator: between a server's name and its tool's, where there are several servers.
        clock: for the delays between connections.
        principal_of: finds the authenticated caller of an HTTP request; the HTTP front sets it.

    Raises:
        BadInput: no upstream, or bad names.
    """

    def __init__(
        self,
        upstreams: Mapping[str, UpstreamSpec | str],
        interceptors: Iterable[Interceptor] = (),
        *,
        name: str = "heliograph",
        separator: str = ".",
        clock: Clock | None = None,
        principal_of: Callable[[Any], Principal | None] = lambda _: None,
    ) -> None:
        self._clock = clock or WallClock()
        self._separator = separator
        specs = _specs(upstreams)
        self.upstreams = {name: Upstream(name, spec, clock=self._clock) for name, spec in specs.items()}
        self.namespace = Namespace(tuple(specs), separator=separator)
        self.chain = Chain(interceptors)
        self.guards = guards_of(self.chain.interceptors)
        self.principal_of = principal_of
        self.observers: list[Callable[[Observation], None]] = []
        self.in_flight = 0
        self.draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._sessions: WeakKeyDictionary[Any, Session] = WeakKeyDictionary()
        self._by_id: dict[str, Session] = {}
        self._serial = itertools.count(1)
        self._schemas: dict[str, dict[str, Any]] = {}
        self._header_maps: dict[str, Mapping[tuple[str, ...], str]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self.server: Server[Any] = Server(
            name, version=__version__, lifespan=self._lifespan, get_tool_input_schema=self._schemas.get
        )
        self.server.middleware.append(self._middleware)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Server[Any]) -> AsyncIterator[dict[str, Any]]:
        try:
            yield {}
        finally:
            await self.close()

    async def close(self) -> None:
        """Closes all connections to servers."""
        await asyncio.gather(*(upstream.close() for upstream in self.upstreams.values()))

    async def drain(self, timeout_s: float) -> bool:
        """Refuses new requests and waits for those in flight; False if some were left when the time was over."""
        self.draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def reconfigure(
        self, upstreams: Mapping[str, UpstreamSpec | str], interceptors: Iterable[Interceptor] | None = None
    ) -> None:
        """Takes over a new set of servers and interceptors, whole or not at all; sessions and unchanged servers stay.

        Raises:
            BadInput: the new set is refused; the old one stays.
        """
        specs = _specs(upstreams)
        namespace = Namespace(tuple(specs), separator=self._separator)
        chain = self.chain if interceptors is None else Chain(interceptors)
        kept = {n: u for n, u in self.upstreams.items() if specs.get(n) == u.spec}
        new = {n: kept.get(n) or Upstream(n, spec, clock=self._clock) for n, spec in specs.items()}
        gone = [upstream for n, upstream in self.upstreams.items() if n not in kept]
        self.upstreams, self.namespace, self.chain = new, namespace, chain
        self.guards = guards_of(chain.interceptors)
        self._schemas.clear()
        self._header_maps.clear()
        for session in list(self._sessions.values()):
            for kind in ("tools", "prompts", "resources"):
                with contextlib.suppress(Exception):
                    await session.connection.notify(f"notifications/{kind}/list_changed", None)
        for upstream in gone:
            self._later(self._retire(upstream))

    async def _retire(self, upstream: Upstream) -> None:
        for _ in range(int(upstream.spec.timeout_s * 10)):  # what it still works on may end
            if upstream.gate._value >= upstream.spec.max_concurrency:
                break
            await asyncio.sleep(0.1)
        await upstream.close()

    def _later(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _middleware(self, ctx: Any, call_next: Any) -> Any:
        method = ctx.method
        if ctx.request_id is None:
            if method == "notifications/roots/list_changed":
                await self._tell_all(Inbound.of(ctx), method)
            elif method == "notifications/cancelled":
                self._cancel(ctx)
            return await call_next(ctx)
        if method == "initialize":
            return await self._initialize(ctx, call_next)
        if method == "server/discover":
            return await self._discover(ctx, call_next)
        if not self.relays(method, ctx.protocol_version):
            return await call_next(ctx)
        if not ctx.session._connection.initialize_accepted:
            raise MCPError(types.INVALID_PARAMS, "Invalid request parameters", "")
        return await self.relay(Inbound.of(ctx))

    def _cancel(self, ctx: Any) -> None:
        """Ends a request that the SDK's server does not know, as it does with its own."""
        session = self._sessions.get(ctx.session._connection)
        number = cancelled_request_id_from_params(ctx.params)
        if session is not None and number is not None:
            abandon = session.exchanges.get(coerce_request_id(number))
            if abandon is not None:
                abandon(cancelled=True)

    def session(self, session_id: str) -> Session | None:
        """A caller's session over HTTP; None if there is none of this id."""
        return self._by_id.get(session_id)

    @property
    def spans(self) -> Any:
        """The SDK's middleware for spans; None if there are others beside it and the gateway's own."""
        before = self.server.middleware[:-1]
        return before[0] if len(before) == 1 and self.server.middleware[-1] == self._middleware else None

    def relays(self, method: str, version: str) -> bool:
        """Whether a method is for the servers, and not for the gateway itself or for nobody."""
        if method in _OWN:
            return False
        if (method, version) in methods.CLIENT_REQUESTS:
            return True
        return self.namespace.bare and method not in methods.SPEC_CLIENT_METHODS

    async def relay(self, ctx: Inbound) -> dict[str, Any]:
        """Sends a request through the chain to its server, and returns the result.

        Raises:
            MCPError: the answer is an error.
        """
        if self.draining:
            raise MCPError(LOST_CODE, "the gateway is shutting down", {"retryable": True})
        params = dict(ctx.params or {})
        meta = params.get("_meta")
        if isinstance(meta, Mapping) and CARRIER in meta:  # says who sent it, and a caller must not
            params["_meta"] = {key: value for key, value in meta.items() if key != CARRIER}
        session = self._session_of(ctx)
        outbound = ctx.outbound
        upstream, _ = self.namespace.route(ctx.method, params)
        principal = self.principal_of(ctx.request)

        async def ask_client(method: str, body: dict[str, Any]) -> dict[str, Any]:
            result: dict[str, Any] = await outbound.send_raw_request(method, body)
            return result

        env = Envelope(
            topic="mcp." + ctx.method.replace("/", "."),
            kind="request",
            sender=principal.subject if principal else self._client_name(ctx, session),
            tenant=principal.tenant if principal else "",
            conv=session.id if session else "",
            payload={"jsonrpc": "2.0", "id": ctx.request_id, "method": ctx.method, "params": params},
            meta=Meta(traceparent=str((meta or {}).get("traceparent", "")) if isinstance(meta, Mapping) else ""),
        )
        token = _CURRENT.set(
            CallContext(principal, session.id if session else "", ctx.protocol_version, upstream, ask_client)
        )
        way_back = _WAY_BACK.set(outbound)
        if session is not None:
            session.in_flight.append(outbound)
        self.in_flight += 1
        self._idle.clear()
        started, outcome = time.perf_counter(), "cancelled"
        try:
            if self.chain.interceptors:
                answer = await self.chain(env, lambda onward: self._handle(ctx, session, onward))
            else:
                answer = await self._handle(ctx, session, env)
            result, outcome = _unpack(answer)
            return result
        except Rejected as refusal:
            outcome = "rejected"
            error = refusal.to_jsonrpc_error()
            raise MCPError(error["code"], error["message"], error.get("data")) from None
        except MCPError as error:
            outcome = _outcome(error)
            raise
        except Exception as error:  # an interceptor's; the SDK would tell callers of a session its text
            outcome = "error"
            raise MCPError.from_error_data(modern_error_data(error)) from None
        finally:
            _CURRENT.reset(token)
            _WAY_BACK.reset(way_back)
            if session is not None:
                session.in_flight.remove(outbound)
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()
            for observe in self.observers:
                observe(Observation(upstream, ctx.method, outcome, time.perf_counter() - started))

    async def _handle(self, ctx: Inbound, session: Session | None, env: Envelope) -> Envelope:
        """The innermost step: to the server, and its answer or error back as an envelope."""
        method, params = str(env.payload["method"]), env.payload.get("params") or {}
        head = {"jsonrpc": "2.0", "id": env.payload.get("id")}
        try:
            if method in LISTS:
                result = await listed(self, ctx, session, method, params, env.meta.deadline_ms)
            elif method == "subscriptions/listen":
                result = await listen(self, ctx, params)
            elif method == "logging/setLevel":
                every = (
                    self.send(u, ctx, session, method, params, env.meta.deadline_ms) for u in self.upstreams.values()
                )
                outcomes = await asyncio.gather(*every, return_exceptions=True)
                if all(isinstance(outcome, BaseException) for outcome in outcomes):
                    raise next(outcome for outcome in outcomes if isinstance(outcome, BaseException))
                result = {}
            else:
                name, inside = self.namespace.route(method, params)
                if name not in self.upstreams:
                    raise MCPError(types.INVALID_PARAMS, f"no server behind this gateway has {_named(params)}")
                upstream = self.upstreams[name]
                result = await self.send(upstream, ctx, session, method, inside, env.meta.deadline_ms)
                result = self.namespace.outward(name, method, result)
        except MCPError as error:
            body = {"code": error.error.code, "message": error.error.message}
            if error.error.data is not None:
                body["data"] = error.error.data
            return env.answer({**head, "error": body}, kind="error", sender="gateway")
        return env.answer({**head, "result": result}, sender="gateway")

    async def send(
        self,
        upstream: Upstream,
        ctx: Inbound,
        session: Session | None,
        method: str,
        params: dict[str, Any],
        deadline_ms: float | None = None,
    ) -> dict[str, Any]:
        """One request to one server, within the caller's time; its failures as JSON-RPC errors.

        Raises:
            MCPError: the server's own error, or a timeout, a lost connection, an answer too long.
        """
        limit_s = min(
            upstream.spec.timeout_s, deadline_ms / 1000 if deadline_ms is not None else upstream.spec.timeout_s
        )
        outbound = ctx.outbound
        namespace = self.namespace

        async def on_notify(name: str, body: dict[str, Any]) -> None:
            passed = await told(self.guards, upstream.name, name, body)
            if passed is not None:
                await outbound.notify(name, namespace.notification(upstream.name, name, passed))

        outer = self.namespace.outer_name(upstream.name, str(params.get("name", "")))
        header_map = self.header_map(method, {"name": outer})
        call = Call(on_notify, header_map)
        caller = self._caller(upstream, ctx, session)
        about = {"upstream": upstream.name}
        try:
            # Lists pass a server that is full of calls: callers of other servers need them too.
            gate = contextlib.nullcontext() if method in LISTS else upstream.gate
            async with asyncio.timeout(limit_s), gate:
                link = await upstream.link(caller)
                try:
                    result = await self._send_once(self._guarded(upstream, link), ctx, session, method, params, call)
                except LinkLost as lost:
                    if not lost.unsent:
                        raise
                    await link.close()
                    link = await upstream.link(caller)
                    result = await self._send_once(self._guarded(upstream, link), ctx, session, method, params, call)
            upstream.calls += 1
        except TimeoutError:
            raise MCPError(
                types.REQUEST_TIMEOUT,
                f"{upstream.name} did not answer within {limit_s * 1000:.0f} ms",
                {**about, "retryable": True, "timeout_ms": round(limit_s * 1000)},
            ) from None
        except LinkLost as lost:
            upstream.lost += 1
            raise MCPError(LOST_CODE, str(lost), {**about, "retryable": True, "unsent": lost.unsent}) from None
        except ResponseTooLarge as error:
            raise MCPError(
                TOO_LARGE_CODE, f"{upstream.name}: {error}", {**about, "limit_bytes": upstream.spec.max_response_bytes}
            ) from None
        if method == "tools/list":
            self._learn(upstream, result)
        return reshaped(method, link.info.version, ctx.protocol_version, result, self.server)

    def _guarded(self, upstream: Upstream, link: Link) -> Link:
        return GuardedLink(upstream.name, link, self.guards) if self.guards else link

    async def _send_once(
        self, link: Link, ctx: Inbound, session: Session | None, method: str, params: dict[str, Any], call: Call
    ) -> dict[str, Any]:
        if link.info.modern == (ctx.protocol_version in MODERN_PROTOCOL_VERSIONS):
            return await link.call(method, params, call)
        return await rounds(link, ctx, session.capabilities if session else {}, method, params, call)

    def _caller(self, upstream: Upstream, ctx: Inbound, session: Session | None) -> Caller:
        if session is None:
            return Caller(None, ctx.protocol_version)
        namespace = self.namespace

        async def on_request(method: str, params: dict[str, Any]) -> dict[str, Any]:
            channel = session.way_back(_WAY_BACK.get()) or session.connection

            async def send(onward: dict[str, Any]) -> dict[str, Any]:
                result: dict[str, Any] = await channel.send_raw_request(method, onward)
                return result

            try:
                return await asked(self.guards, upstream.name, session.id, method, params, send)
            except Rejected as refusal:
                error = refusal.to_jsonrpc_error()
                raise MCPError(error["code"], error["message"], error.get("data")) from None

        async def on_notify(method: str, params: dict[str, Any]) -> None:
            passed = await told(self.guards, upstream.name, method, params)
            if passed is None:
                return
            body = namespace.notification(upstream.name, method, passed)
            # Lists and resources change for the session; anything else was said during a request.
            within = session.way_back(_WAY_BACK.get()) if method == "notifications/message" else None
            await (within or session.connection).notify(method, body)

        return Caller(session, session.version, session.capabilities, session.client_info, on_request, on_notify)

    def _session_of(self, ctx: Inbound) -> Session | None:
        if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
            return None
        connection = ctx.connection
        session = self._sessions.get(connection)
        if session is None:
            session = Session(connection.session_id or f"local-{next(self._serial)}", connection)
            self._sessions[connection] = session
            if connection.session_id:
                self._by_id[connection.session_id] = session

            async def end() -> None:
                self._by_id.pop(connection.session_id, None)
                for abandon in list(session.exchanges.values()):
                    abandon(cancelled=False)
                ended = [upstream.end_session(session) for upstream in self.upstreams.values()]
                await asyncio.gather(*ended, return_exceptions=True)

            connection.exit_stack.push_async_callback(end)
        return session

    @staticmethod
    def _client_name(ctx: Inbound, session: Session | None) -> str:
        if session is not None:
            return str(session.client_info.get("name", ""))
        meta = (ctx.params or {}).get("_meta") or {}
        info = meta.get(types.CLIENT_INFO_META_KEY) or {}
        return str(info.get("name", "")) if isinstance(info, Mapping) else ""

    async def _initialize(self, ctx: Any, call_next: Any) -> Any:
        params = ctx.params or {}
        result = dict(await call_next(ctx))
        inbound = Inbound.of(ctx)
        session = self._session_of(inbound)
        assert session is not None
        session.version = str(result.get("protocolVersion", LATEST_HANDSHAKE_VERSION))
        session.capabilities = dict(params.get("capabilities") or {})
        session.client_info = dict(params.get("clientInfo") or {})
        return self._described(result, await self._infos(inbound, session))

    async def _discover(self, ctx: Any, call_next: Any) -> Any:
        return self._described(dict(await call_next(ctx)), await self._infos(Inbound.of(ctx), None))

    async def _infos(self, ctx: Inbound, session: Session | None) -> dict[str, LinkInfo]:
        async def one(upstream: Upstream) -> LinkInfo | None:
            try:
                info: LinkInfo | None = (await upstream.link(self._caller(upstream, ctx, session))).info
            except LinkLost as lost:
                logger.warning("%s", lost)
                info = upstream.info
            return None if info is None else await hello(self.guards, upstream.name, info)

        names = list(self.upstreams)
        found = await asyncio.gather(*(one(self.upstreams[name]) for name in names))
        return {name: info for name, info in zip(names, found, strict=True) if info is not None}

    def _described(self, result: dict[str, Any], infos: dict[str, LinkInfo]) -> dict[str, Any]:
        result["capabilities"] = merged_capabilities(list(infos.values()), complete=len(infos) == len(self.upstreams))
        texts = [(name, info.instructions) for name, info in infos.items() if info.instructions]
        if texts:
            bare = self.namespace.bare
            result["instructions"] = texts[0][1] if bare else "\n\n".join(f"{name}: {text}" for name, text in texts)
        return result

    async def _tell_all(self, ctx: Inbound, method: str) -> None:
        session = self._session_of(ctx)
        for upstream in self.upstreams.values():
            with contextlib.suppress(LinkLost):
                await (await upstream.link(self._caller(upstream, ctx, session))).notify(method, {})

    def _learn(self, upstream: Upstream, result: Mapping[str, Any]) -> None:
        """Keeps input schemas: they say which arguments travel as headers too."""
        if len(self._schemas) > 10_000:
            self._schemas.clear()
            self._header_maps.clear()
        for tool in result.get("tools", ()):
            if isinstance(tool, Mapping) and isinstance(tool.get("inputSchema"), dict):
                name = self.namespace.outer_name(upstream.name, str(tool.get("name")))
                self._schemas[name] = tool["inputSchema"]
                self._header_maps[name] = x_mcp_header_map(tool["inputSchema"])

    def header_map(self, method: str, params: Mapping[str, Any]) -> Mapping[tuple[str, ...], str]:
        """Which arguments of a call travel as headers too, and in which; ``params`` are the caller's."""
        return self._header_maps.get(str(params.get("name", "")), {}) if method == "tools/call" else {}


def _specs(upstreams: Mapping[str, UpstreamSpec | str]) -> dict[str, UpstreamSpec]:
    if not upstreams:
        raise BadInput("a gateway needs at least one upstream")
    return {n: UpstreamSpec(url=spec) if isinstance(spec, str) else spec for n, spec in upstreams.items()}


def _named(params: Mapping[str, Any]) -> str:
    ref = params.get("ref") if isinstance(params.get("ref"), Mapping) else {}
    name = params.get("name") or params.get("uri") or ref.get("name") or ref.get("uri")  # type: ignore[union-attr]
    return repr(name) if name else "this method"


def _unpack(answer: Envelope) -> tuple[dict[str, Any], str]:
    payload = answer.payload
    error = payload.get("error")
    if error is not None:
        raise MCPError(int(error["code"]), str(error["message"]), error.get("data"))
    result = payload["result"]
    return result, "tool_error" if result.get("isError") is True else "ok"


def _outcome(error: MCPError) -> str:
    names = {types.REQUEST_TIMEOUT: "timeout", LOST_CODE: "lost", TOO_LARGE_CODE: "too_large"}
    return names.get(error.error.code, "error")
