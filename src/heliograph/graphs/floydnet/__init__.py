"""FloydNet: every ordered pair of vertices collects messages from all two-step paths through every pivot vertex.

The state of a graph is a dense tensor over pairs (order 2) or triples (order 3); each layer weighs the pivots by a
softmax, a learned and differentiable Floyd-Warshall relaxation. Source: arXiv:2601.19094.

``attention`` holds the operator in chunked and plain form, ``network`` the model, ``inputs`` the way from networkx,
PyG or arrays to its dense batches, ``separate`` the untrained test of expressive power, ``tours`` and ``tour_solvers``
travelling-salesman tours by diffusion and by classical means, ``algorithms`` the heads for supervised tasks.
"""

from __future__ import annotations

from heliograph.graphs.floydnet.attention import (
    estimate_bytes,
    pivotal_attention,
    pivotal_attention3,
    reference_attention,
    reference_attention3,
)
from heliograph.graphs.floydnet.inputs import DenseBatch, batch_graphs, batch_pyg
from heliograph.graphs.floydnet.network import FloydNet, FloydOutput, PivotalAttentionBlock
from heliograph.graphs.floydnet.separate import PivotalProbe, Separation, measure_separation, wl_distinguishes
from heliograph.graphs.floydnet.tours import DiffusionTour, TourAnswer

__all__ = [
    "DenseBatch",
    "DiffusionTour",
    "FloydNet",
    "FloydOutput",
    "PivotalAttentionBlock",
    "PivotalProbe",
    "Separation",
    "TourAnswer",
    "batch_graphs",
    "batch_pyg",
    "estimate_bytes",
    "measure_separation",
    "pivotal_attention",
    "pivotal_attention3",
    "reference_attention",
    "reference_attention3",
    "wl_distinguishes",
]
