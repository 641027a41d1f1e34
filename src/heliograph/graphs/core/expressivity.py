"""The exact Weisfeiler-Leman oracles: what a network of each kind may and may not separate, decided by refinement.

Two graphs are refined jointly: one colour dictionary serves both, so equal colours mean equal histories. Colours are
dense integers and rows are ranked column by column, so there is no hashing and no chance of a collision. The folklore
variant of the test is meant throughout (k-FWL has the power of (k+1)-WL); source: Cai, Fuerer, Immerman 1992.

Graphs are networkx graphs or square integer arrays; directed edges, self-loops and integer edge labels all count.
NumPy only. Shapes: G graphs refined together, N vertices each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from heliograph.errors import BadInput

__all__ = [
    "colour_pairs",
    "colour_triples",
    "colour_vertices",
    "folklore2_separates",
    "folklore3_separates",
    "refinement_separates",
]

Colours: TypeAlias = NDArray[np.int64]
Graph: TypeAlias = nx.Graph | NDArray[np.generic]

_MAX_TRIPLE_VERTICES = 30


def refinement_separates(first: Graph, second: Graph) -> bool:
    """Whether colour refinement (1-WL) tells the two graphs apart."""
    return _separates(first, second, colour_vertices)


def folklore2_separates(first: Graph, second: Graph) -> bool:
    """Whether 2-FWL refinement of vertex pairs tells the two graphs apart."""
    return _separates(first, second, colour_pairs)


def folklore3_separates(first: Graph, second: Graph) -> bool:
    """Whether 3-FWL refinement of vertex triples tells the two graphs apart; at most 30 vertices.

    Raises:
        BadInput: more than 30 vertices.
    """
    return _separates(first, second, colour_triples)


def colour_vertices(adj_GNN: NDArray[np.int64]) -> Colours:
    """The stable colours of the vertices of G graphs, [G, N]; c(i) <- (c(i), out-multiset, in-multiset)."""
    labels = _rank_rows(adj_GNN.reshape(-1, 1)).reshape(adj_GNN.shape)
    out_in = labels * (labels.max(initial=0) + 1) + labels.transpose(0, 2, 1)  # both directions of a pair at once
    colours = _rank_rows(np.diagonal(labels, axis1=1, axis2=2).reshape(-1, 1)).reshape(adj_GNN.shape[:2])
    off_diagonal = ~np.eye(adj_GNN.shape[1], dtype=bool)
    while True:
        messages = np.where(off_diagonal, out_in * (colours.max(initial=0) + 1) + colours[:, None, :], -1)
        rows = np.concatenate([colours[..., None], np.sort(messages, axis=-1)], axis=-1)
        refined = _rank_rows(rows.reshape(colours.size, rows.shape[-1])).reshape(colours.shape)
        if refined.max(initial=0) == colours.max(initial=0):
            return refined
        colours = refined


def colour_pairs(adj_GNN: NDArray[np.int64]) -> Colours:
    """The stable colours of the ordered pairs of G graphs, [G, N, N].

    c(i, k) <- (c(i, k), multiset over j of (c(i, j), c(j, k))), from edge labels both ways and whether i = k.
    """
    colours = _pair_types(adj_GNN)
    while True:
        count = int(colours.max(initial=0)) + 1
        paths = colours[:, :, None, :] * count + colours.transpose(0, 2, 1)[:, None, :, :]  # [G, i, k, j]
        rows = np.concatenate([colours[..., None], np.sort(paths, axis=-1)], axis=-1)
        refined = _rank_rows(rows.reshape(colours.size, rows.shape[-1])).reshape(colours.shape)
        if refined.max(initial=0) + 1 == count:
            return refined
        colours = refined


def colour_triples(adj_GNN: NDArray[np.int64]) -> Colours:
    """The stable colours of the ordered triples of G graphs, [G, N, N, N].

    c(i, j, k) <- (c(i, j, k), multiset over p of (c(p, j, k), c(i, p, k), c(i, j, p))).
    """
    graphs, size = adj_GNN.shape[:2]
    if size > _MAX_TRIPLE_VERTICES:
        raise BadInput(f"3-FWL refinement takes at most {_MAX_TRIPLE_VERTICES} vertices; got {size}")
    pair = _pair_types(adj_GNN)
    shape = (graphs, size, size, size)
    parts = (pair[:, :, :, None], pair[:, :, None, :], pair[:, None, :, :])
    rows = np.stack([np.broadcast_to(part, shape) for part in parts], axis=-1)
    colours = _rank_rows(rows.reshape(-1, 3)).reshape(shape)
    while True:
        count = int(colours.max(initial=0)) + 1
        replaced_first = colours.transpose(0, 2, 3, 1)[:, None, :, :, :]  # [G, 1, j, k, p]
        replaced_second = colours.transpose(0, 1, 3, 2)[:, :, None, :, :]  # [G, i, 1, k, p]
        replaced_third = colours[:, :, :, None, :]  # [G, i, j, 1, p]
        pivots = (replaced_first * count + replaced_second) * count + replaced_third
        rows = np.concatenate([colours[..., None], np.sort(pivots, axis=-1)], axis=-1)
        refined = _rank_rows(rows.reshape(colours.size, rows.shape[-1])).reshape(shape)
        if refined.max(initial=0) + 1 == count:
            return refined
        colours = refined


def adjacency(graph: Graph) -> NDArray[np.int64]:
    """A graph as an integer array [N, N]: 1 for a networkx edge, or the array's own labels."""
    if isinstance(graph, nx.Graph):
        place = {vertex: position for position, vertex in enumerate(graph)}
        array = np.zeros((len(graph), len(graph)), dtype=np.int64)
        for tail, head in graph.edges():
            array[place[tail], place[head]] = 1
            if not graph.is_directed():
                array[place[head], place[tail]] = 1
        return array
    array = np.asarray(graph)
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise BadInput(f"a graph as an array must be square; got shape {array.shape}")
    whole = array.astype(np.int64)
    if (whole != array).any():
        raise BadInput("a graph as an array must hold integers (0 for no edge, else the edge's label)")
    return whole


def _separates(first: Graph, second: Graph, colour: Callable[[NDArray[np.int64]], Colours]) -> bool:
    adjacencies = [adjacency(first), adjacency(second)]
    if adjacencies[0].shape != adjacencies[1].shape:
        return True
    colours = colour(np.stack(adjacencies)).reshape(2, -1)
    return not np.array_equal(np.sort(colours[0]), np.sort(colours[1]))


def _pair_types(adj_GNN: NDArray[np.int64]) -> Colours:
    same = np.broadcast_to(np.eye(adj_GNN.shape[1], dtype=np.int64), adj_GNN.shape)
    rows = np.stack([adj_GNN, adj_GNN.transpose(0, 2, 1), same], axis=-1)
    return _rank_rows(rows.reshape(-1, 3)).reshape(adj_GNN.shape)


def _rank_rows(rows: NDArray[np.int64]) -> Colours:
    """A dense integer for each distinct row, equal exactly for equal rows; columns folded in one at a time."""
    ranks = np.zeros(len(rows), dtype=np.int64)
    for column in rows.T:
        values, codes = np.unique(column, return_inverse=True)
        ranks = np.unique(ranks * max(1, len(values)) + codes, return_inverse=True)[1]
    return ranks
