"""Random graphs with exact substructure counts for the graph, each vertex and each ordered pair; no torch needed.

Six patterns, counted as subgraphs (not induced): cycles of 3 to 6 vertices; ``chordal4``, a four-cycle with one chord;
``chordal5``, a five-cycle with the two chords from one vertex (a hub joined to a path of four). The count of a pair
(i, k) is the number of copies that contain the edge ik, the vertex count the number that contain the vertex, so that
summing them gives ``vertex_factor`` and ``edge_factor`` times the graph's count (arXiv:2601.19094, counting task).

Shapes: G graphs, N vertices after padding, T patterns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from heliograph.errors import BadInput

__all__ = ["PATTERNS", "CountingGraphs", "Pattern", "PatternCounts", "count_pattern", "random_counting_graphs"]

Array = NDArray[np.int64]


@dataclass(frozen=True)
class Pattern:
    """A pattern's vertices and edges; the factors by which vertex and ordered-pair counts exceed the graph's count."""

    name: str
    vertices: int
    edges: int

    @property
    def vertex_factor(self) -> int:
        """How often the vertex counts of a graph count each copy."""
        return self.vertices

    @property
    def edge_factor(self) -> int:
        """How often the counts of ordered pairs count each copy."""
        return 2 * self.edges


PATTERNS = {
    pattern.name: pattern
    for pattern in (
        Pattern("cycle3", 3, 3),
        Pattern("cycle4", 4, 4),
        Pattern("cycle5", 5, 5),
        Pattern("cycle6", 6, 6),
        Pattern("chordal4", 4, 5),
        Pattern("chordal5", 5, 7),
    )
}


@dataclass(frozen=True)
class PatternCounts:
    """One pattern in one graph: graph is a number, vertex [N], edge [N, N] symmetric and 0 off the edges."""

    graph: int
    vertex: Array
    edge: Array


@dataclass(frozen=True)
class CountingGraphs:
    """Graphs padded to one size with their exact counts.

    Attributes:
        patterns: names, in the order of the last axis.
        adj: [G, N, N] of 0/1; mask: [G, N] bool, real vertices first.
        graph: [G, T]; vertex: [G, N, T]; edge: [G, N, N, T], int64.
    """

    patterns: tuple[str, ...]
    adj: Array
    mask: NDArray[np.bool_]
    graph: Array
    vertex: Array
    edge: Array

    def __len__(self) -> int:
        return len(self.adj)

    def select(self, index: slice | Sequence[int] | Array) -> CountingGraphs:
        """The graphs at these positions, padded to the largest of them only."""
        mask = self.mask[index]
        size = max(1, int(mask.sum(axis=1).max(initial=0)))
        return CountingGraphs(
            self.patterns,
            self.adj[index][:, :size, :size],
            mask[:, :size],
            self.graph[index],
            self.vertex[index][:, :size],
            self.edge[index][:, :size, :size],
        )

    def batches(self, size: int) -> tuple[CountingGraphs, ...]:
        """Batches of graphs of similar size, so that little is padded; the last may be smaller."""
        order = np.argsort(self.mask.sum(axis=1), kind="stable")
        return tuple(self.select(order[start : start + size]) for start in range(0, len(order), size))


def random_counting_graphs(
    count: int,
    max_vertices: int = 14,
    min_vertices: int = 6,
    patterns: Sequence[str] = ("cycle3", "cycle4"),
    seed: int = 0,
) -> CountingGraphs:
    """Draws graphs, half Erdos-Renyi (edge probability 0.2 to 0.5), half random regular (degree 3 to 5), and counts.

    Raises:
        BadInput: an unknown pattern, or sizes that leave no room for a 3-regular graph.
    """
    _refuse_unknown(patterns)
    if count < 1 or not 6 <= min_vertices <= max_vertices:
        raise BadInput(
            f"need count >= 1 and 6 <= min_vertices <= max_vertices; got {count}, {min_vertices}, {max_vertices}"
        )
    random = np.random.default_rng(seed)
    adj = np.zeros((count, max_vertices, max_vertices), dtype=np.int64)
    mask = np.zeros((count, max_vertices), dtype=bool)
    graph = np.zeros((count, len(patterns)), dtype=np.int64)
    vertex = np.zeros((count, max_vertices, len(patterns)), dtype=np.int64)
    edge = np.zeros((count, max_vertices, max_vertices, len(patterns)), dtype=np.int64)
    for number in range(count):
        one = _random_graph(random, int(random.integers(min_vertices, max_vertices + 1)), regular=number % 2 == 1)
        size = len(one)
        adj[number, :size, :size], mask[number, :size] = one, True
        for column, pattern in enumerate(patterns):
            counts = count_pattern(one, pattern)
            graph[number, column] = counts.graph
            vertex[number, :size, column], edge[number, :size, :size, column] = counts.vertex, counts.edge
    return CountingGraphs(tuple(patterns), adj, mask, graph, vertex, edge)


def count_pattern(adj: Array, pattern: str) -> PatternCounts:
    """Counts one pattern exactly in a simple undirected graph [N, N] (symmetric 0/1, zero diagonal).

    Triangles, four-cycles and chordal4 use matrix formulas; the others enumerate simple paths.
    """
    _refuse_unknown([pattern])
    adj = np.asarray(adj, dtype=np.int64)
    if adj.ndim != 2 or (adj != adj.T).any() or adj.diagonal().any() or not np.isin(adj, (0, 1)).all():
        raise BadInput("counting takes simple undirected graphs: symmetric 0/1 without self-loops")
    if pattern == "chordal4":
        return _count_chordal4(adj)
    if pattern == "chordal5":
        return _count_chordal5(adj)
    vertices = PATTERNS[pattern].vertices
    edge = adj * _path_counts(adj, vertices - 1)
    vertex = edge.sum(axis=1) // 2
    return PatternCounts(int(vertex.sum()) // vertices, vertex, edge)


def _path_counts(adj: Array, length: int) -> Array:
    """Number of simple paths of ``length`` edges from i to k (i != k), [N, N]."""
    if length <= 3:
        walks = np.linalg.matrix_power(adj, length)
        if length == 3:  # walks i-a-b-k with a = k or b = i are no paths
            degree = adj.sum(axis=1)
            walks = walks - adj * (degree[:, None] + degree[None, :] - 1)
        np.fill_diagonal(walks, 0)
        return walks
    paths = _simple_paths(adj, length)
    size = len(adj)
    return np.bincount(paths[:, 0] * size + paths[:, -1], minlength=size * size).reshape(size, size)


def _simple_paths(adj: Array, length: int) -> Array:
    """Every simple path of ``length`` edges as a row of length + 1 vertices, each in both directions."""
    tails, heads = np.nonzero(adj)
    degree = adj.sum(axis=1)
    first = np.concatenate([[0], np.cumsum(degree)[:-1]])
    paths = np.stack([tails, heads], axis=1)
    for _ in range(length - 1):
        ends = paths[:, -1]
        repeats = degree[ends]
        grown = np.repeat(paths, repeats, axis=0)
        within = np.arange(len(grown)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        following = heads[np.repeat(first[ends], repeats) + within]
        fresh = (grown != following[:, None]).all(axis=1)
        paths = np.concatenate([grown[fresh], following[fresh, None]], axis=1)
    return paths


def _count_chordal4(adj: Array) -> PatternCounts:
    shared = adj * (adj @ adj)  # common neighbours at each edge
    as_chord = shared * (shared - 1) // 2
    more = adj * np.maximum(shared - 1, 0)  # for a chord uv and an apex a: choices of the other apex
    as_rim = adj * (more @ adj + adj @ more)
    vertex = as_chord.sum(axis=1) + np.einsum("xu,uv,xv->x", adj, more, adj) // 2
    return PatternCounts(int(as_chord.sum()) // 2, vertex, as_chord + as_rim)


def _count_chordal5(adj: Array) -> PatternCounts:
    size = len(adj)
    vertex, edge = np.zeros(size, dtype=np.int64), np.zeros((size, size), dtype=np.int64)
    total = 0
    for hub in range(size):
        around = np.flatnonzero(adj[hub])
        paths = around[_simple_paths(adj[np.ix_(around, around)], 3)]
        total += len(paths)
        vertex[hub] += len(paths)
        members = np.bincount(paths.reshape(-1), minlength=size)
        vertex += members
        edge[hub] += members
        edge[:, hub] += members
        for step in range(3):
            np.add.at(edge, (paths[:, step], paths[:, step + 1]), 1)
            np.add.at(edge, (paths[:, step + 1], paths[:, step]), 1)
    return PatternCounts(total // 2, vertex // 2, edge // 2)  # each path came in both directions


def _random_graph(random: np.random.Generator, size: int, regular: bool) -> Array:
    if not regular:
        upper = np.triu(random.random((size, size)) < random.uniform(0.2, 0.5), 1)
        adj: Array = (upper | upper.T).astype(np.int64)
        return adj
    degree = int(random.integers(3, min(5, size - 1) + 1))
    if degree * size % 2:
        degree += 1 if degree == 3 else -1
    graph = nx.random_regular_graph(degree, size, seed=int(random.integers(2**31)))
    regular_adj: Array = nx.to_numpy_array(graph, nodelist=range(size), dtype=np.int64)
    return regular_adj


def _refuse_unknown(patterns: Sequence[str]) -> None:
    unknown = [pattern for pattern in patterns if pattern not in PATTERNS]
    if unknown or not patterns:
        raise BadInput(f"patterns are a non-empty choice of {sorted(PATTERNS)}; got {list(patterns)}")
