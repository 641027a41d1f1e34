"""Stochastic block models with a label for each vertex: PATTERN and CLUSTER (arXiv:2003.00982), and minesweeper boards.

Generated from their published definitions; NumPy only. Shapes of one graph: n vertices, E directed edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heliograph.errors import BadInput

__all__ = ["LabelledGraph", "cluster", "minesweeper", "pattern"]

Ints = NDArray[np.int64]

PATTERN_VERTICES, PATTERNS = 20, 100
SMALLEST, LARGEST = 5, 35


@dataclass(frozen=True)
class LabelledGraph:
    """features [n] int64, edge_index [2, E] in both directions, labels [n]; hidden vertices have label -1."""

    features: Ints
    edge_index: Ints
    labels: Ints


def pattern(count: int, seed: int = 0) -> list[LabelledGraph]:
    """PATTERN: which vertices belong to a pattern that was planted in a graph of five communities.

    Communities of 5 to 35 vertices (p_in 0.5, p_out 0.35), features uniform in 0 to 2; the pattern has 20 vertices
    (p 0.5 within, one of 100 fixed patterns with features of its own) and is joined to the rest with p 0.5. Vertices
    are shuffled. Label 1 for the pattern's vertices.
    """
    fixed = np.random.default_rng(2020)  # the patterns are part of the task, not of the draw
    half = np.full((PATTERN_VERTICES, PATTERN_VERTICES), 0.5)
    patterns = [(_undirected(fixed, half), fixed.integers(3, size=PATTERN_VERTICES)) for _ in range(PATTERNS)]
    random = np.random.default_rng(seed)
    graphs = []
    for _ in range(count):
        block = np.repeat(np.arange(5), random.integers(SMALLEST, LARGEST + 1, size=5))
        size = len(block) + PATTERN_VERTICES
        chance = np.full((size, size), 0.5)
        chance[: len(block), : len(block)] = np.where(block[:, None] == block, 0.5, 0.35)
        adjacency = _undirected(random, chance)
        planted, signal = patterns[int(random.integers(PATTERNS))]
        adjacency[len(block) :, len(block) :] = planted
        features = np.concatenate([random.integers(3, size=len(block)), signal])
        labels = (np.arange(size) >= len(block)).astype(np.int64)
        graphs.append(_shuffled(random, adjacency, features, labels))
    return graphs


def cluster(count: int, seed: int = 0) -> list[LabelledGraph]:
    """CLUSTER: to which of six communities each vertex belongs, from one labelled vertex a community.

    Communities of 5 to 35 vertices, p_in 0.55, p_out 0.25; one vertex of community c has feature c + 1, all others 0.
    """
    random = np.random.default_rng(seed)
    graphs = []
    for _ in range(count):
        labels = np.repeat(np.arange(6), random.integers(SMALLEST, LARGEST + 1, size=6))
        adjacency = _undirected(random, np.where(labels[:, None] == labels, 0.55, 0.25))
        features = np.zeros(len(labels), dtype=np.int64)
        for community in range(6):
            features[random.choice(np.flatnonzero(labels == community))] = community + 1
        graphs.append(_shuffled(random, adjacency, features, labels))
    return graphs


def minesweeper(
    count: int, size: int = 12, seed: int = 0, mines: float = 0.2, hidden: float = 0.5
) -> list[LabelledGraph]:
    """Square boards with 8 neighbours a cell (arXiv:2302.11640): which cells are mines.

    Features: the number of mines around a shown cell (0 to 8), 9 for a hidden one; a mine is never shown. Hidden are
    all mines and a share ``hidden`` of the other cells. Labels: 1 for a mine, 0 for a hidden cell without one, -1 for
    shown cells, which are no question.
    """
    if count < 1 or size < 2 or not 0 < mines < 1 or not 0 <= hidden <= 1:
        raise BadInput(f"need count >= 1, size >= 2 and shares in (0, 1); got {count}, {size}, {mines}, {hidden}")
    random = np.random.default_rng(seed)
    row, column = np.divmod(np.arange(size * size), size)
    near = np.maximum(abs(row[:, None] - row), abs(column[:, None] - column)) == 1
    edges = np.argwhere(near).T.copy()
    boards = []
    for _ in range(count):
        mine = random.random(size * size) < mines
        covered = mine | (random.random(size * size) < hidden)
        features = np.where(covered, 9, (near & mine).sum(1))
        labels = np.where(covered, mine.astype(np.int64), -1)
        boards.append(LabelledGraph(features.astype(np.int64), edges, labels))
    return boards


def _undirected(random: np.random.Generator, chance: NDArray[np.float64]) -> NDArray[np.bool_]:
    upper = np.triu(random.random(chance.shape) < chance, k=1)
    return np.asarray(upper | upper.T)


def _shuffled(random: np.random.Generator, adjacency: NDArray[np.bool_], features: Ints, labels: Ints) -> LabelledGraph:
    order = random.permutation(len(labels))
    edges = np.argwhere(adjacency[np.ix_(order, order)]).T.astype(np.int64).copy()
    return LabelledGraph(features[order].astype(np.int64), edges, labels[order].astype(np.int64))
