"""Counts against networkx's subgraph enumeration."""

from itertools import combinations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.data.counting import PATTERNS, count_pattern, random_counting_graphs
from heliograph.errors import BadInput

SHAPES = {f"cycle{length}": nx.cycle_graph(length) for length in (3, 4, 5, 6)}
SHAPES["chordal4"] = nx.Graph([(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)])
SHAPES["chordal5"] = nx.Graph([(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (0, 2), (0, 3)])


def brute_force(graph, shape):
    """Every set of edges of the graph that forms the shape, found as monomorphisms."""
    matcher = nx.isomorphism.GraphMatcher(graph, shape)
    copies = set()
    for mapping in matcher.subgraph_monomorphisms_iter():
        back = {small: large for large, small in mapping.items()}
        copies.add(frozenset(frozenset((back[u], back[v])) for u, v in shape.edges()))
    vertex, edge = np.zeros(len(graph), dtype=int), np.zeros((len(graph), len(graph)), dtype=int)
    for copy in copies:
        for corner in set().union(*copy):
            vertex[corner] += 1
        for u, v in copy:
            edge[u, v] += 1
            edge[v, u] += 1
    return len(copies), vertex, edge


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 7), probability=st.floats(0.2, 1.0), seed=st.integers(0, 10_000))
def test_counts_equal_brute_force(pattern, size, probability, seed):
    graph = nx.gnp_random_graph(size, probability, seed=seed)
    counts = count_pattern(nx.to_numpy_array(graph, dtype=int), pattern)
    total, vertex, edge = brute_force(graph, SHAPES[pattern])
    assert counts.graph == total
    assert counts.vertex.tolist() == vertex.tolist()
    assert counts.edge.tolist() == edge.tolist()


def test_patterns_know_their_vertices_and_edges():
    for name, pattern in PATTERNS.items():
        assert (pattern.vertices, pattern.edges) == (len(SHAPES[name]), SHAPES[name].number_of_edges())


def test_levels_sum_to_the_automorphism_factors():
    graphs = random_counting_graphs(30, 12, patterns=sorted(PATTERNS), seed=2)
    for column, name in enumerate(graphs.patterns):
        pattern = PATTERNS[name]
        assert (graphs.vertex[..., column].sum(axis=1) == pattern.vertex_factor * graphs.graph[:, column]).all()
        assert (graphs.edge[..., column].sum(axis=(1, 2)) == pattern.edge_factor * graphs.graph[:, column]).all()
    assert (graphs.graph.sum(axis=0) > 0).all()


def test_the_same_seed_draws_the_same_graphs():
    one, same, other = (random_counting_graphs(6, 10, seed=seed) for seed in (1, 1, 2))
    assert (one.adj == same.adj).all()
    assert (one.adj != other.adj).any()


def test_half_of_the_graphs_are_regular_and_padding_is_empty():
    graphs = random_counting_graphs(20, 10)
    for number in range(1, 20, 2):
        degrees = graphs.adj[number].sum(axis=1)[graphs.mask[number]]
        assert len(set(degrees.tolist())) == 1
    outside = ~graphs.mask
    assert (graphs.adj[outside] == 0).all()
    assert (graphs.vertex[outside] == 0).all()


def test_a_selection_keeps_graphs_and_counts_together_and_drops_padding():
    graphs = random_counting_graphs(20, 12)
    smallest = int(graphs.mask.sum(axis=1).argmin())
    part = graphs.select([smallest])
    size = int(graphs.mask[smallest].sum())
    assert part.adj.shape == (1, size, size)
    assert part.mask.all()
    assert (part.edge[0] == graphs.edge[smallest, :size, :size]).all()
    assert (part.vertex[0] == graphs.vertex[smallest, :size]).all()
    assert (part.graph[0] == graphs.graph[smallest]).all()


def test_batches_hold_every_graph_once_by_size():
    graphs = random_counting_graphs(21, 12)
    batches = graphs.batches(8)
    assert [len(batch) for batch in batches] == [8, 8, 5]
    assert sum(batch.graph.sum() for batch in batches) == graphs.graph.sum()
    widths = [batch.adj.shape[1] for batch in batches]
    assert widths == sorted(widths)


@pytest.mark.parametrize(
    "call",
    [
        lambda: count_pattern(np.eye(3, dtype=int), "cycle3"),
        lambda: count_pattern(np.triu(np.ones((3, 3), dtype=int), 1), "cycle3"),
        lambda: count_pattern(np.zeros((3, 3), dtype=int), "cycle7"),
        lambda: random_counting_graphs(3, 4),
        lambda: random_counting_graphs(0),
        lambda: random_counting_graphs(3, patterns=()),
    ],
)
def test_bad_requests_are_refused(call):
    with pytest.raises(BadInput):
        call()


def test_a_complete_graph_has_the_textbook_counts():
    adj = 1 - np.eye(7, dtype=int)
    triangles = sum(1 for _ in combinations(range(7), 3))
    assert count_pattern(adj, "cycle3").graph == triangles
    assert count_pattern(adj, "cycle6").graph == 7 * 60  # 7 choose 6 times 5!/2
