"""Colour refinement with a label on each pair (GD-WL, arXiv:2301.09505), labels being walks or path lengths, exactly.

Walk probabilities are compared as whole numbers, without rounding: over a common denominator of all degrees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
import numpy as np
import torch
from numpy.typing import NDArray

from heliograph.data.wl_pairs import GraphPair, atlas_pairs, named_pairs
from heliograph.graphs.grit import GRIT
from heliograph.trials.check import Context

__all__ = ["distance_labels", "measure", "refinement_separates", "walk_labels"]

Labels = list[list[tuple[int, ...]]]
TOLD_APART = 1e-6
"""Relative distance of two answers in float64 from walks in float32, above which they count as different."""


def measure(context: Context) -> Mapping[str, Any]:
    """``separated``: what walks separate; ``keeps_equal``: what neither refinement nor network may separate.

    ``separated`` holds one entry for each connected pair of the atlas that 1-WL confuses, one for each pair that path
    lengths separate (walks must, too), and one for whether walks separate any pair that path lengths do not.
    """
    steps = context.workload["walk_steps"]
    atlas = [p for p in atlas_pairs() if nx.is_connected(p.first) and nx.is_connected(p.second)]
    others = [p for p in named_pairs() if len(p.first) <= context.workload["largest"]]
    rook = next(p for p in others if p.name == "rook/Shrikhande")
    rest = [p for p in others if p is not rook]
    by_walks = {p.name: _separates(p, walk_labels, steps) for p in (*atlas, *others)}
    by_lengths = {p.name: _separates(p, distance_labels, steps) for p in (*atlas, *others)}
    model = _network(steps, context.seed)
    by_network = {p.name: _tells_apart(model, p) for p in (*atlas, *others)}
    stronger = [name for name, found in by_walks.items() if found and not by_lengths[name]]
    context.say(
        f"of {len(atlas)} connected pairs of the atlas that 1-WL confuses, walks separate "
        f"{sum(by_walks[p.name] for p in atlas)}, path lengths {sum(by_lengths[p.name] for p in atlas)}, the untrained "
        f"network {sum(by_network[p.name] for p in atlas)}; {len(stronger)} of all pairs are separated by walks alone"
    )
    context.keep("separated", {p.name: [by_walks[p.name], by_lengths[p.name], by_network[p.name]] for p in rest})
    separated = [by_walks[p.name] for p in atlas]
    separated += [by_walks[name] for name, found in by_lengths.items() if found]
    # a network may separate no pair that the refinement with its own encoding cannot
    bounded = [not by_network[name] for name, found in by_walks.items() if not found]
    return {"separated": [*separated, bool(stronger)], "keeps_equal": [not by_walks[rook.name], *bounded]}


def refinement_separates(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Whether refinement tells two graphs apart: c(i) <- the multiset over all j of (label(i, j), c(j)).

    Args:
        first, second: square tables of labels, row i for target i; labels are hashable and can be ordered.
    """
    if len(first) != len(second):
        return True
    colours = [[0] * len(first), [0] * len(second)]
    classes = 1
    while True:
        signatures = [
            [tuple(sorted(zip(row, own, strict=True))) for row in table]
            for table, own in zip((first, second), colours, strict=True)
        ]
        number = {signature: place for place, signature in enumerate(sorted({*signatures[0], *signatures[1]}))}
        colours = [[number[signature] for signature in part] for part in signatures]
        if sorted(colours[0]) != sorted(colours[1]):
            return True
        if len(number) == classes:
            return False
        classes = len(number)


def walk_labels(graphs: Sequence[nx.Graph], steps: int) -> list[Labels]:
    """Powers 0 to K - 1 of each graph's random walk, times L^k for L the common multiple of all degrees: integers."""
    common = math.lcm(*(degree for graph in graphs for _, degree in graph.degree() if degree))
    tables = []
    for graph in graphs:
        adjacency = nx.to_numpy_array(graph, dtype=np.int64)
        degree = adjacency.sum(1, keepdims=True)
        # object arrays hold integers of any size
        walk: NDArray[np.object_] = (adjacency * np.where(degree > 0, common // np.maximum(degree, 1), 0)).astype(
            object
        )
        power: NDArray[np.object_] = np.eye(len(graph), dtype=np.int64).astype(object)
        powers = []
        for _ in range(steps):
            powers.append(power)
            power = power @ walk
        tables.append([[tuple(p[i, j] for p in powers) for j in range(len(graph))] for i in range(len(graph))])
    return tables


def distance_labels(graphs: Sequence[nx.Graph], steps: int) -> list[Labels]:
    """The shortest-path length of each pair, uncapped; a pair without a path gets ``(-1,)``."""
    del steps
    tables: list[Labels] = []
    for graph in graphs:
        lengths = dict(nx.all_pairs_shortest_path_length(graph))
        tables.append([[(lengths[i].get(j, -1),) for j in graph] for i in graph])
    return tables


def _separates(pair: GraphPair, labels: Any, steps: int) -> bool:
    return refinement_separates(*labels((pair.first, pair.second), steps))


def _network(steps: int, seed: int) -> GRIT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GRIT(8, hidden=16, layers=4, heads=2, walk_steps=steps).double().eval()


@torch.no_grad()
def _tells_apart(model: GRIT, pair: GraphPair) -> bool:
    from torch_geometric.utils import from_networkx

    first, second = (model.encode(from_networkx(graph)).sum(0) for graph in (pair.first, pair.second))
    return bool((first - second).abs().max() > TOLD_APART * first.abs().max())
