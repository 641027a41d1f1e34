"""Attested tool servers: certificates, authenticated messages, origins, and flow control between servers
(arXiv:2601.17549; the paper calls it MCPSec, and AttestMCP in its text).

:class:`SecurityEnforcer` is an interceptor of the gateway, :class:`AttestedServer` and :class:`ClientAuth` are the two
ends of an authenticated link, and :class:`AttackBench` measures what gets through.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from heliograph.agents.core.stages import register_stage
from heliograph.errors import MissingExtra

if TYPE_CHECKING:
    from heliograph.agents.core.interceptor import Interceptor
    from heliograph.agents.mcp_sec.agentdojo import suite_scenarios
    from heliograph.agents.mcp_sec.agents import ChatAgent, LikelihoodAgent, WorstCaseAgent
    from heliograph.agents.mcp_sec.attested import AttestedServer
    from heliograph.agents.mcp_sec.bench import AttackBench
    from heliograph.agents.mcp_sec.certificates import CapabilityCertificate, SecurityError, ToolPin, pins_of
    from heliograph.agents.mcp_sec.client import ClientAuth
    from heliograph.agents.mcp_sec.enforcer import SecurityEnforcer
    from heliograph.agents.mcp_sec.flow import FlowTracker
    from heliograph.agents.mcp_sec.grants import Grant, GrantBook
    from heliograph.agents.mcp_sec.nonces import SharedNonces
    from heliograph.agents.mcp_sec.policy import SecurityPolicy
    from heliograph.agents.mcp_sec.stage import security_stages
    from heliograph.agents.mcp_sec.suite import Scenario, scenarios
    from heliograph.agents.mcp_sec.trust import TrustStore

__all__ = [
    "AttackBench",
    "AttestedServer",
    "CapabilityCertificate",
    "ChatAgent",
    "ClientAuth",
    "FlowTracker",
    "Grant",
    "GrantBook",
    "LikelihoodAgent",
    "Scenario",
    "SecurityEnforcer",
    "SecurityError",
    "SecurityPolicy",
    "SharedNonces",
    "ToolPin",
    "TrustStore",
    "WorstCaseAgent",
    "pins_of",
    "scenarios",
    "security_stages",
    "suite_scenarios",
]

_HOME = {
    "suite_scenarios": "agentdojo",
    **dict.fromkeys(("ChatAgent", "LikelihoodAgent", "WorstCaseAgent"), "agents"),
    "AttestedServer": "attested",
    "AttackBench": "bench",
    **dict.fromkeys(("CapabilityCertificate", "SecurityError", "ToolPin", "pins_of"), "certificates"),
    "ClientAuth": "client",
    "SecurityEnforcer": "enforcer",
    "FlowTracker": "flow",
    **dict.fromkeys(("Grant", "GrantBook"), "grants"),
    "SharedNonces": "nonces",
    "SecurityPolicy": "policy",
    "security_stages": "stage",
    **dict.fromkeys(("Scenario", "scenarios"), "suite"),
    "TrustStore": "trust",
}


def _stage(options: Mapping[str, Any]) -> Sequence[Interceptor]:
    from heliograph.agents.mcp_sec.policy import SecurityPolicy
    from heliograph.agents.mcp_sec.stage import security_stages

    return security_stages(SecurityPolicy.from_mapping(options))


def _schema() -> dict[str, Any]:
    from heliograph.agents.mcp_sec.policy import policy_schema

    return policy_schema()


register_stage("mcpsec", _stage, _schema)


def __getattr__(name: str) -> Any:
    """Imports a public name's module at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"heliograph.agents.mcp_sec.{_HOME[name]}")
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in {"cryptography", "jwt", "mcp", "mcp_types", "rfc8785"}:
            raise MissingExtra(package, "agents") from error
        raise
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
