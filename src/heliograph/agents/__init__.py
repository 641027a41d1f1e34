"""Agents and tools exchange messages: envelopes, interceptors, a bus, a gateway before MCP servers, audit, identity."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from heliograph.errors import MissingExtra

if TYPE_CHECKING:
    from heliograph.agents.core.audit import AuditInterceptor, AuditLog
    from heliograph.agents.core.bus import Bus, MemoryBus
    from heliograph.agents.core.envelope import Envelope, Meta
    from heliograph.agents.core.gateway import Gateway
    from heliograph.agents.core.identity import Identity, NonceStore, Principal, TokenVerifier
    from heliograph.agents.core.interceptor import Chain, Interceptor, Rejected
    from heliograph.agents.core.limits import CallRate, RateLimiter
    from heliograph.agents.core.lm import LM, LocalGGUF, OpenAICompatible, Scripted, StaticEmbedding
    from heliograph.agents.core.nats_bus import NatsBus
    from heliograph.agents.core.tcp_bus import TcpBus, TcpBusServer
    from heliograph.agents.core.upstream import UpstreamSpec
    from heliograph.agents.error_cascade import (
        CascadeRisk,
        ExactJudge,
        Governor,
        LineageGraph,
        LMClaims,
        LMJudge,
        RegexClaims,
        StructuredClaims,
        fit_cascade,
        plot_coverage,
        simulate_cascade,
    )
    from heliograph.agents.gwa import (
        EntropyDrive,
        GlobalWorkspace,
        GlobalWorkspaceAgent,
        GWAConfig,
        TickSnapshot,
        WorkspaceNode,
    )
    from heliograph.agents.mcp_broker import (
        AccessControl,
        AuditStage,
        ErrorRecovery,
        RateLimit,
        ResponseSanitizer,
        StdioUpstream,
        StructuredErrors,
        TokenIdentity,
        ToolLatencyModel,
        TurnBudget,
    )
    from heliograph.agents.mcp_sec import (
        AttackBench,
        AttestedServer,
        CapabilityCertificate,
        ChatAgent,
        ClientAuth,
        LikelihoodAgent,
        SecurityEnforcer,
        TrustStore,
        WorstCaseAgent,
    )
    from heliograph.agents.mod_x import (
        A2aAgent,
        Capability,
        CapabilityIndex,
        CentralHub,
        ConversationState,
        DeviceAgent,
        HumanAgent,
        LegacyAgent,
        McpAgent,
        MessageCodec,
        ModXPeer,
        NeuralAgent,
        NotaryLedger,
        RuleAgent,
        SymbolicAgent,
        WorkflowEngine,
        serve_a2a,
        serve_mcp,
    )

__all__ = [
    "LM",
    "A2aAgent",
    "AccessControl",
    "AttackBench",
    "AttestedServer",
    "AuditInterceptor",
    "AuditLog",
    "AuditStage",
    "Bus",
    "CallRate",
    "Capability",
    "CapabilityCertificate",
    "CapabilityIndex",
    "CascadeRisk",
    "CentralHub",
    "Chain",
    "ChatAgent",
    "ClientAuth",
    "ConversationState",
    "DeviceAgent",
    "EntropyDrive",
    "Envelope",
    "ErrorRecovery",
    "ExactJudge",
    "GWAConfig",
    "Gateway",
    "GlobalWorkspace",
    "GlobalWorkspaceAgent",
    "Governor",
    "HumanAgent",
    "Identity",
    "Interceptor",
    "LMClaims",
    "LMJudge",
    "LegacyAgent",
    "LikelihoodAgent",
    "LineageGraph",
    "LocalGGUF",
    "McpAgent",
    "MemoryBus",
    "MessageCodec",
    "Meta",
    "ModXPeer",
    "NatsBus",
    "NeuralAgent",
    "NonceStore",
    "NotaryLedger",
    "OpenAICompatible",
    "Principal",
    "RateLimit",
    "RateLimiter",
    "RegexClaims",
    "Rejected",
    "ResponseSanitizer",
    "RuleAgent",
    "Scripted",
    "SecurityEnforcer",
    "StaticEmbedding",
    "StdioUpstream",
    "StructuredClaims",
    "StructuredErrors",
    "SymbolicAgent",
    "TcpBus",
    "TcpBusServer",
    "TickSnapshot",
    "TokenIdentity",
    "TokenVerifier",
    "ToolLatencyModel",
    "TrustStore",
    "TurnBudget",
    "UpstreamSpec",
    "WorkflowEngine",
    "WorkspaceNode",
    "WorstCaseAgent",
    "fit_cascade",
    "plot_coverage",
    "serve_a2a",
    "serve_mcp",
    "simulate_cascade",
]

_HOME = {
    **dict.fromkeys(("AuditInterceptor", "AuditLog"), "audit"),
    **dict.fromkeys(("Bus", "MemoryBus"), "bus"),
    **dict.fromkeys(("Envelope", "Meta"), "envelope"),
    "Gateway": "gateway",
    **dict.fromkeys(("Identity", "NonceStore", "Principal", "TokenVerifier"), "identity"),
    **dict.fromkeys(("Chain", "Interceptor", "Rejected"), "interceptor"),
    **dict.fromkeys(("CallRate", "RateLimiter"), "limits"),
    **dict.fromkeys(("LM", "LocalGGUF", "OpenAICompatible", "Scripted", "StaticEmbedding"), "lm"),
    "NatsBus": "nats_bus",
    **dict.fromkeys(("TcpBus", "TcpBusServer"), "tcp_bus"),
    "UpstreamSpec": "upstream",
}
_SYSTEMS = {
    **dict.fromkeys(
        (
            "CascadeRisk",
            "ExactJudge",
            "Governor",
            "LMClaims",
            "LMJudge",
            "LineageGraph",
            "RegexClaims",
            "StructuredClaims",
            "fit_cascade",
            "plot_coverage",
            "simulate_cascade",
        ),
        "error_cascade",
    ),
    **dict.fromkeys(
        ("EntropyDrive", "GWAConfig", "GlobalWorkspace", "GlobalWorkspaceAgent", "TickSnapshot", "WorkspaceNode"),
        "gwa",
    ),
    **dict.fromkeys(
        (
            "AccessControl",
            "AuditStage",
            "ErrorRecovery",
            "RateLimit",
            "ResponseSanitizer",
            "StdioUpstream",
            "StructuredErrors",
            "TokenIdentity",
            "ToolLatencyModel",
            "TurnBudget",
        ),
        "mcp_broker",
    ),
    **dict.fromkeys(
        (
            "AttackBench",
            "AttestedServer",
            "CapabilityCertificate",
            "ChatAgent",
            "ClientAuth",
            "LikelihoodAgent",
            "SecurityEnforcer",
            "TrustStore",
            "WorstCaseAgent",
        ),
        "mcp_sec",
    ),
    **dict.fromkeys(
        (
            "A2aAgent",
            "Capability",
            "CapabilityIndex",
            "CentralHub",
            "ConversationState",
            "DeviceAgent",
            "HumanAgent",
            "LegacyAgent",
            "McpAgent",
            "MessageCodec",
            "ModXPeer",
            "NeuralAgent",
            "NotaryLedger",
            "RuleAgent",
            "SymbolicAgent",
            "WorkflowEngine",
            "serve_a2a",
            "serve_mcp",
        ),
        "mod_x",
    ),
}
_EXTRA = {"cryptography", "httpx2", "jwt", "mcp", "mcp_types", "nats", "prometheus_client", "rfc8785", "uvicorn"}


def __getattr__(name: str) -> Any:
    """Imports a public name's module at its first use, so that importing this package costs nothing."""
    if name not in _HOME and name not in _SYSTEMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"core.{_HOME[name]}" if name in _HOME else _SYSTEMS[name]
    try:
        module = importlib.import_module(f"heliograph.agents.{home}")
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in _EXTRA:
            raise MissingExtra(package, "agents") from error
        raise
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
