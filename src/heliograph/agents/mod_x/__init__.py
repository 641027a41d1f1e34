"""Unlike agents exchange work without a hub: bus peers with translation, discovery, state, workflows and a ledger
(arXiv:2507.04376).
"""

from __future__ import annotations

from heliograph.agents.mod_x.a2a_edge import serve_a2a
from heliograph.agents.mod_x.adapters import (
    A2aAgent,
    DeviceAgent,
    HumanAgent,
    LegacyAgent,
    McpAgent,
    NeuralAgent,
    Rule,
    RuleAgent,
    SymbolicAgent,
)
from heliograph.agents.mod_x.codec import ClarificationRequest, CodecField, LossReport, MessageCodec
from heliograph.agents.mod_x.discovery import Capability, CapabilityIndex, HashedNgrams, Hit, Trust, Weights
from heliograph.agents.mod_x.edges import serve_mcp
from heliograph.agents.mod_x.ledger import LedgerError, Notary, NotaryLedger, verify_chain, verify_proof
from heliograph.agents.mod_x.membership import SimulatedSwarm, Swim, SwimConfig
from heliograph.agents.mod_x.mesh import MemoryMesh, MemoryNetwork, TcpMesh
from heliograph.agents.mod_x.peer import CallFailed, CentralHub, ModXPeer
from heliograph.agents.mod_x.state import ConversationState, LeaseGroup, LeaseLost
from heliograph.agents.mod_x.wire import Exchange, LossyTranslation, Translated, translate
from heliograph.agents.mod_x.workflow import NoPlan, OnceStore, Outcome, Plan, WorkflowEngine, make_plan

__all__ = [
    "A2aAgent",
    "CallFailed",
    "Capability",
    "CapabilityIndex",
    "CentralHub",
    "ClarificationRequest",
    "CodecField",
    "ConversationState",
    "DeviceAgent",
    "Exchange",
    "HashedNgrams",
    "Hit",
    "HumanAgent",
    "LeaseGroup",
    "LeaseLost",
    "LedgerError",
    "LegacyAgent",
    "LossReport",
    "LossyTranslation",
    "McpAgent",
    "MemoryMesh",
    "MemoryNetwork",
    "MessageCodec",
    "ModXPeer",
    "NeuralAgent",
    "NoPlan",
    "Notary",
    "NotaryLedger",
    "OnceStore",
    "Outcome",
    "Plan",
    "Rule",
    "RuleAgent",
    "SimulatedSwarm",
    "Swim",
    "SwimConfig",
    "SymbolicAgent",
    "TcpMesh",
    "Translated",
    "Trust",
    "Weights",
    "WorkflowEngine",
    "make_plan",
    "serve_a2a",
    "serve_mcp",
    "translate",
    "verify_chain",
    "verify_proof",
]
