"""Graph Mamba: tokens of sampled neighbourhoods, and all vertices of a graph, pass state along selective scans.

Source: arXiv:2402.08678. ``tokens`` draws neighbourhood tokens and encodes them, ``ssm`` holds the bidirectional scan
with its borders between packed graphs, ``model`` the network. The scan itself is ``heliograph.lm.selective_scan``.
"""

from __future__ import annotations

from heliograph.graphs.graph_mamba.model import GraphMamba, GraphMambaConfig, SampledAnswers
from heliograph.graphs.graph_mamba.ssm import BidirectionalSSM, Borders, SelectiveSSM
from heliograph.graphs.graph_mamba.tokens import WalkTokens

__all__ = [
    "BidirectionalSSM",
    "Borders",
    "GraphMamba",
    "GraphMambaConfig",
    "SampledAnswers",
    "SelectiveSSM",
    "WalkTokens",
]
