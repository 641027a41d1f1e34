"""The broker's stages: identity, access, a time budget for the turn, machine-readable errors, audit (arXiv:2603.13417).

A caller's request passes the stages on its way to a tool server, and the answer passes them on its way back. Each is an
interceptor of the gateway and works alone; :func:`broker_stages` puts them in order. The paper calls the stages CABP,
the budget ATBA and the errors SERF.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from heliograph.agents.core.stages import register_stage
from heliograph.errors import MissingExtra

if TYPE_CHECKING:
    from heliograph.agents.core.interceptor import Interceptor
    from heliograph.agents.mcp_broker.access import AccessControl, Rule
    from heliograph.agents.mcp_broker.allocation import BudgetPolicy, ToolTimes, make_policy
    from heliograph.agents.mcp_broker.audit import AuditStage
    from heliograph.agents.mcp_broker.breaker import CircuitBreaker
    from heliograph.agents.mcp_broker.budget import TurnBudget
    from heliograph.agents.mcp_broker.context import ContextCarrier, verify_context
    from heliograph.agents.mcp_broker.errors import Category, StructuredError, StructuredErrors
    from heliograph.agents.mcp_broker.latency import ToolLatencyModel
    from heliograph.agents.mcp_broker.pipeline import BrokerOptions, StdioUpstream, broker_stages
    from heliograph.agents.mcp_broker.rate import RateLimit
    from heliograph.agents.mcp_broker.readiness import ChecklistItem, checklist
    from heliograph.agents.mcp_broker.recovery import Action, ErrorRecovery, ToolCall
    from heliograph.agents.mcp_broker.replay import IdempotentReplay
    from heliograph.agents.mcp_broker.sanitize import ResponseSanitizer
    from heliograph.agents.mcp_broker.tokens import TokenIdentity
    from heliograph.agents.mcp_broker.tools import ToolCatalog

__all__ = [
    "AccessControl",
    "Action",
    "AuditStage",
    "BrokerOptions",
    "BudgetPolicy",
    "Category",
    "ChecklistItem",
    "CircuitBreaker",
    "ContextCarrier",
    "ErrorRecovery",
    "IdempotentReplay",
    "RateLimit",
    "ResponseSanitizer",
    "Rule",
    "StdioUpstream",
    "StructuredError",
    "StructuredErrors",
    "TokenIdentity",
    "ToolCall",
    "ToolCatalog",
    "ToolLatencyModel",
    "ToolTimes",
    "TurnBudget",
    "broker_stages",
    "checklist",
    "make_policy",
    "verify_context",
]

_HOME = {
    **dict.fromkeys(("AccessControl", "Rule"), "access"),
    **dict.fromkeys(("BudgetPolicy", "ToolTimes", "make_policy"), "allocation"),
    "AuditStage": "audit",
    "CircuitBreaker": "breaker",
    "TurnBudget": "budget",
    **dict.fromkeys(("ChecklistItem", "checklist"), "readiness"),
    **dict.fromkeys(("ContextCarrier", "verify_context"), "context"),
    **dict.fromkeys(("Category", "StructuredError", "StructuredErrors"), "errors"),
    "ToolLatencyModel": "latency",
    **dict.fromkeys(("BrokerOptions", "StdioUpstream", "broker_stages"), "pipeline"),
    "RateLimit": "rate",
    **dict.fromkeys(("Action", "ErrorRecovery", "ToolCall"), "recovery"),
    "IdempotentReplay": "replay",
    "ResponseSanitizer": "sanitize",
    "TokenIdentity": "tokens",
    "ToolCatalog": "tools",
}


def _stage(options: Mapping[str, Any]) -> Sequence[Interceptor]:
    from heliograph.agents.mcp_broker.pipeline import BrokerOptions, broker_stages

    return broker_stages(BrokerOptions.from_mapping(options))


register_stage("broker", _stage)


def __getattr__(name: str) -> Any:
    """Imports a public name's module at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"heliograph.agents.mcp_broker.{_HOME[name]}")
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in {"cryptography", "jwt", "mcp", "mcp_types", "rfc8785"}:
            raise MissingExtra(package, "agents") from error
        raise
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
