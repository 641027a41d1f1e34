"""The stage of a gateway's configuration: the enforcer with the files that its policy names."""

from __future__ import annotations

from heliograph.agents.core.audit import AuditLog
from heliograph.agents.core.identity import Identity
from heliograph.agents.core.interceptor import Interceptor
from heliograph.agents.mcp_sec.enforcer import SecurityEnforcer
from heliograph.agents.mcp_sec.grants import GrantBook
from heliograph.agents.mcp_sec.policy import SecurityPolicy
from heliograph.agents.mcp_sec.trust import TrustStore

__all__ = ["security_stages"]


def security_stages(policy: SecurityPolicy | None = None, *, log: AuditLog | None = None) -> tuple[Interceptor, ...]:
    """The enforcer, in a tuple as stages are.

    Args:
        policy: what to enforce.
        log: audit log for refusals; a gateway with ``heliograph.audit`` gives its own.

    Raises:
        BadInput: a file that cannot be used.
    """
    wanted = policy or SecurityPolicy()
    issuers, pins, key = wanted.path("issuers"), wanted.path("pins"), wanted.path("key")
    trust = TrustStore(pins=pins) if issuers is None else TrustStore.load(issuers, pins=pins)
    identity = Identity.generate() if key is None else Identity.load(key)
    return (SecurityEnforcer(trust, policy=wanted, grants=GrantBook(identity, wanted.path("grants")), log=log),)
