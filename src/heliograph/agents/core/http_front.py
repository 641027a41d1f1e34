"""The gateway's HTTP side: bearer tokens, health, metrics, graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import uvicorn
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types.methods import SPEC_CLIENT_METHODS
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from heliograph.agents.core.config import Listen
from heliograph.agents.core.gateway import Gateway, Observation
from heliograph.agents.core.http_exchange import ExchangeFront
from heliograph.agents.core.identity import IdentityError, Principal
from heliograph.errors import BadInput

__all__ = ["DrainingServer", "HttpFront", "Verifier", "is_loopback"]

logger = logging.getLogger(__name__)

_PRINCIPAL = "heliograph.principal"


class Verifier(Protocol):
    """Checks bearer tokens."""

    def verify(self, token: str) -> Principal:
        """The caller of a token; raises IdentityError."""
        ...


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class HttpFront:
    """An ASGI application around a gateway.

    Args:
        gateway: to serve.
        listen: where, and with which limits.
        verifier: of bearer tokens; may be exchanged while running, but not taken away.

    Raises:
        BadInput: a host beyond loopback without a verifier.
    """

    def __init__(self, gateway: Gateway, listen: Listen | None = None, verifier: Verifier | None = None) -> None:
        self.gateway, self.listen, self.verifier = gateway, listen or Listen(), verifier
        if verifier is None and not is_loopback(self.listen.host):
            raise BadInput(
                f"{self.listen.host} is reachable by other machines: add heliograph.auth to the configuration, or "
                "listen on 127.0.0.1"
            )
        gateway.principal_of = lambda request: None if request is None else request.scope.get(_PRINCIPAL)
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "heliograph_requests", "Finished requests.", ["upstream", "method", "outcome"], registry=self.registry
        )
        self._seconds = Histogram(
            "heliograph_request_seconds",
            "From a request's arrival to its answer.",
            ["upstream"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=self.registry,
        )
        self.registry.register(_State(gateway))
        gateway.observers.append(self._observe)
        security = self._transport_security()
        self._sdk = gateway.server.streamable_http_app(
            streamable_http_path=self.listen.path,
            max_request_body_size=self.listen.max_body_bytes,
            max_sessions=self.listen.max_sessions,
            transport_security=security,
            host=self.listen.host,
            custom_starlette_routes=[Route("/health", self._health), Route("/metrics", self._metrics)],
        )
        self._inner = ExchangeFront(gateway, self._to_sdk, self.listen, security, _user_of)

    def _transport_security(self) -> TransportSecuritySettings | None:
        listen = self.listen
        if is_loopback(listen.host):
            names = ["127.0.0.1:*", "localhost:*", "[::1]:*"]
            origins = [f"http://{name}" for name in names]
            return TransportSecuritySettings(
                enable_dns_rebinding_protection=True,
                allowed_hosts=[*names, *listen.allowed_hosts],
                allowed_origins=[*origins, *listen.allowed_origins],
            )
        if not listen.allowed_hosts:  # tokens are needed there, and a page in a browser has none
            return TransportSecuritySettings(enable_dns_rebinding_protection=False)
        return TransportSecuritySettings(
            enable_dns_rebinding_protection=True,
            allowed_hosts=list(listen.allowed_hosts),
            allowed_origins=list(listen.allowed_origins),
        )

    def _observe(self, seen: Observation) -> None:
        # A caller chooses the method's name; only known ones may become a label.
        method = seen.method if seen.method in SPEC_CLIENT_METHODS else "other"
        self._requests.labels(seen.upstream, method, seen.outcome).inc()
        self._seconds.labels(seen.upstream).observe(seen.seconds)

    async def _health(self, _: Request) -> Response:
        upstreams = {
            name: "connected" if upstream.info else "failing" if upstream.last_error else "idle"
            for name, upstream in self.gateway.upstreams.items()
        }
        status = "draining" if self.gateway.draining else "ok"
        return JSONResponse({"status": status, "upstreams": upstreams}, 503 if self.gateway.draining else 200)

    async def _metrics(self, _: Request) -> Response:
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._sdk(scope, receive, send)
            return
        if scope["path"] != "/health" and self.verifier is not None:
            principal = self._caller(scope, self.verifier)
            if isinstance(principal, str):
                await _refuse(principal, send)
                return
            scope = {**scope, _PRINCIPAL: principal}
        await self._inner(scope, receive, send)

    async def _to_sdk(self, scope: Any, receive: Any, send: Any) -> None:
        user = _user_of(scope)
        if user is not None:
            scope = {**scope, "user": user}
        await self._sdk(scope, receive, send)

    @staticmethod
    def _caller(scope: Any, verifier: Verifier) -> Principal | str:
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        if len(given) != 1 or given[0][:7].lower() != b"bearer ":
            return "a bearer token is needed"
        try:
            return verifier.verify(given[0][7:].decode("latin-1").strip())
        except IdentityError as error:
            return str(error)


def _user_of(scope: Any) -> AuthenticatedUser | None:
    """For the SDK, which binds a session to whoever opened it. It gets no token."""
    principal = scope.get(_PRINCIPAL)
    if principal is None:
        return None
    token = AccessToken(token="", client_id=f"{principal.tenant}/{principal.subject}", scopes=sorted(principal.scopes))
    return AuthenticatedUser(token)


async def _refuse(why: str, send: Any) -> None:
    body = json.dumps({"error": "invalid_token", "error_description": why}).encode()
    quoted = why.replace("\\", "").replace('"', "'")
    challenge = f'Bearer error="invalid_token", error_description="{quoted}"'.encode("ascii", "replace")
    headers = [(b"content-type", b"application/json"), (b"www-authenticate", challenge)]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _State(Collector):
    """What is read when somebody asks for the metrics."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def collect(self) -> Any:
        """Gauges."""
        yield GaugeMetricFamily("heliograph_in_flight", "Requests in flight.", value=self._gateway.in_flight)
        up = GaugeMetricFamily("heliograph_upstream_up", "1 if connected.", labels=["upstream"])
        sessions = GaugeMetricFamily("heliograph_upstream_sessions", "Sessions.", labels=["upstream"])
        opened = GaugeMetricFamily("heliograph_upstream_connections", "Connections made.", labels=["upstream"])
        for name, upstream in self._gateway.upstreams.items():
            up.add_metric([name], 1.0 if upstream.info else 0.0)
            sessions.add_metric([name], upstream.sessions)
            opened.add_metric([name], upstream.opened)
        yield up
        yield sessions
        yield opened


class DrainingServer(uvicorn.Server):
    """Ends in two steps: finishes what is in flight, then closes. A second signal ends at once.

    Args:
        config: of uvicorn.
        gateway: to drain.
        drain_s: seconds that requests in flight may take.
        on_start: called once it listens.
    """

    def __init__(
        self, config: uvicorn.Config, gateway: Gateway, drain_s: float, on_start: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(config)
        self._gateway, self._drain_s, self._on_start = gateway, drain_s, on_start
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: Any = None) -> None:
        """Listens."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            self._on_start()

    def handle_exit(self, sig: int, _: FrameType | None) -> None:
        """Starts to drain."""
        if self._loop is None or self._draining is not None or self._gateway.draining:
            self.should_exit = True
            if sig == signal.SIGINT:
                self.force_exit = True
            return
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        async def drain() -> None:
            with contextlib.suppress(Exception):
                if not await self._gateway.drain(self._drain_s):
                    logger.warning("%d requests were still in flight", self._gateway.in_flight)
            self.should_exit = True

        self._draining = asyncio.get_running_loop().create_task(drain())

    @property
    def port(self) -> int:
        """The real port, once it listens."""
        return int(self.servers[0].sockets[0].getsockname()[1])
