"""The stages in their order, from options of a configuration file or of a program.

audit, identity, errors, access, rate, replay, budget, breaker, sanitiser, context, catalog, server. The paper's six
stages are here, on the way in or out; each can be left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from heliograph.agents.core.audit import AuditLog
from heliograph.agents.core.interceptor import Interceptor
from heliograph.agents.core.upstream import UpstreamSpec
from heliograph.agents.mcp_broker.access import AccessControl, Rule
from heliograph.agents.mcp_broker.audit import AuditStage
from heliograph.agents.mcp_broker.breaker import CircuitBreaker
from heliograph.agents.mcp_broker.budget import TurnBudget
from heliograph.agents.mcp_broker.context import ContextCarrier
from heliograph.agents.mcp_broker.errors import StructuredErrors
from heliograph.agents.mcp_broker.latency import ToolLatencyModel
from heliograph.agents.mcp_broker.rate import RateLimit
from heliograph.agents.mcp_broker.replay import IdempotentReplay
from heliograph.agents.mcp_broker.sanitize import SECRETS, RecordRule, ResponseSanitizer
from heliograph.agents.mcp_broker.tokens import ReloadingKeys, TokenIdentity
from heliograph.agents.mcp_broker.tools import ToolCatalog
from heliograph.clock import Clock
from heliograph.errors import BadInput

__all__ = ["BrokerOptions", "StdioUpstream", "broker_stages"]

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key that is not known is a mistake."""


class IdentityOptions(_Strict, frozen=True):
    """Who may call; key set, issuer and audience are for tokens inside messages, on a pipe."""

    anonymous: Literal["deny", "allow"] = "deny"
    require_tenant: bool = False
    jwks: str = ""
    issuer: str = ""
    audience: str = ""
    leeway_s: Annotated[float, msgspec.Meta(ge=0)] = 30.0


class BudgetOptions(_Strict, frozen=True):
    """The time of a turn."""

    total_ms: Positive = 8000.0
    policy: Literal["cap", "optimal", "equal", "proportional", "constant"] = "cap"
    kappa: Positive = 1.2
    floor_ms: Positive = 50.0
    retries: Annotated[int, msgspec.Meta(ge=0, le=10)] = 1
    idle_s: Positive = 30.0
    classes: dict[str, str] = {}


class RateOptions(_Strict, frozen=True):
    """How often."""

    per_tool: str = "60/min"
    rules: dict[str, str] = {}


class SanitizeOptions(_Strict, frozen=True):
    """What is taken out of answers."""

    records: list[RecordRule] = []
    max_bytes: Count = 1_000_000
    secrets: tuple[str, ...] = SECRETS


class BreakerOptions(_Strict, frozen=True):
    """When a tool is left alone."""

    failures: Count = 5
    window_s: Positive = 30.0
    open_s: Positive = 30.0


class AuditOptions(_Strict, frozen=True):
    """What is recorded, and where. A gateway with ``heliograph.audit`` has a log already."""

    path: str
    arguments: Literal["hash", "full"] = "hash"
    on_failure: Literal["closed", "open", "writes"] = "closed"
    fsync: Literal["always", "interval", "never"] = "interval"


class BrokerOptions(_Strict, frozen=True):
    """All options; what is None is left out of the chain.

    Attributes:
        access: rules; the empty list, which is the default, denies everything.
        effects: globs of tools to "read", "idempotent" or "write".
        trust_hints: believe the annotations of servers about that.
        alternatives: by tool, tools that can stand in.
        context_secret: signs what servers learn of the caller; 16 characters or more.
    """

    identity: IdentityOptions = IdentityOptions()
    access: list[Rule] = []
    rate: RateOptions | None = RateOptions()
    budget: BudgetOptions | None = BudgetOptions()
    sanitize: SanitizeOptions | None = SanitizeOptions()
    breaker: BreakerOptions | None = BreakerOptions()
    audit: AuditOptions | None = None
    structured_errors: bool = True
    replay_ttl_s: Annotated[float, msgspec.Meta(ge=0)] = 24 * 3600.0
    effects: dict[str, Literal["read", "idempotent", "write"]] = {}
    trust_hints: bool = True
    alternatives: dict[str, list[str]] = {}
    send_context: bool = True
    context_secret: str = ""

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> BrokerOptions:
        """From JSON values.

        Raises:
            BadInput: with the place of the mistake.
        """
        try:
            return msgspec.convert(dict(options), cls)
        except msgspec.ValidationError as error:
            raise BadInput(f"options of the stage broker: {error}") from None


def broker_stages(
    options: BrokerOptions | None = None, *, log: AuditLog | None = None, clock: Clock | None = None
) -> tuple[Interceptor, ...]:
    """The interceptors of a broker, the first outermost.

    Args:
        options: what to build; the defaults let nobody in and nothing through.
        log: an open audit log in place of ``options.audit.path``.
        clock: of everything that waits or counts; wall time by default.

    Raises:
        BadInput: an option that cannot be, with its name.
    """
    wanted = options or BrokerOptions()
    catalog = ToolCatalog(dict(wanted.effects), trust_hints=wanted.trust_hints)
    stages: list[Interceptor] = []
    if log is None and wanted.audit is not None:
        log = AuditLog(wanted.audit.path, fsync=wanted.audit.fsync, clock=clock)
    if log is not None:
        settings = wanted.audit or AuditOptions("")
        stages.append(
            AuditStage(log, arguments=settings.arguments, on_failure=settings.on_failure, catalog=catalog, clock=clock)
        )
    stages.append(_identity(wanted.identity, clock))
    if wanted.structured_errors:
        others = {tool: tuple(names) for tool, names in wanted.alternatives.items()}
        stages.append(StructuredErrors(catalog, alternatives=others))
    stages.append(AccessControl(wanted.access, catalog=catalog))
    if wanted.rate is not None:
        stages.append(RateLimit(wanted.rate.per_tool, rules=wanted.rate.rules, clock=clock))
    if wanted.replay_ttl_s:
        stages.append(IdempotentReplay(wanted.replay_ttl_s, clock=clock))
    if wanted.budget is not None:
        own = wanted.budget
        stages.append(
            TurnBudget(
                own.total_ms,
                own.policy,
                model=ToolLatencyModel(own.classes, clock=clock),
                catalog=catalog,
                retries=own.retries,
                floor_ms=own.floor_ms,
                idle_s=own.idle_s,
                kappa=own.kappa,
                clock=clock,
            )
        )
    if wanted.breaker is not None:
        own_breaker = wanted.breaker
        stages.append(
            CircuitBreaker(own_breaker.failures, window_s=own_breaker.window_s, open_s=own_breaker.open_s, clock=clock)
        )
    if wanted.sanitize is not None:
        clean = wanted.sanitize
        stages.append(
            ResponseSanitizer(clean.records, max_bytes=clean.max_bytes, secrets=clean.secrets, catalog=catalog)
        )
    stages.append(ContextCarrier(wanted.context_secret.encode(), carry=wanted.send_context))
    stages.append(catalog)
    return tuple(stages)


def _identity(options: IdentityOptions, clock: Clock | None) -> TokenIdentity:
    verifier = None
    if options.jwks:
        verifier = ReloadingKeys(
            options.jwks, audience=options.audience, issuer=options.issuer, leeway_s=options.leeway_s, clock=clock
        )
    return TokenIdentity(
        verifier,
        anonymous=options.anonymous,
        require_tenant=options.require_tenant,
        leeway_s=options.leeway_s,
    )


def StdioUpstream(  # noqa: N802 - reads as the constructor that it is
    command: str, *args: str, env: Mapping[str, str] | None = None, cwd: str = "", **limits: Any
) -> UpstreamSpec:
    """A tool server that is a program: the gateway starts it and talks over its standard input and output.

    Args:
        command: the program.
        args: of it.
        env: variables beside the few that every program needs.
        cwd: folder that it runs in.
        limits: further fields of :class:`~heliograph.agents.UpstreamSpec`, such as ``timeout_s``.

    Raises:
        BadInput: no command, or a limit that cannot be.
    """
    return UpstreamSpec(command=command, args=args, env=dict(env or {}), cwd=cwd, **limits)
