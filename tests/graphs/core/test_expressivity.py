"""The refinement oracles on pairs whose answers are known, and against definitions."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.data.wl_pairs import atlas_pairs, cfi_pair, chang_pairs, decalin_pair, named_pairs, rook_pair
from heliograph.errors import BadInput
from heliograph.graphs.core.expressivity import (
    colour_pairs,
    colour_vertices,
    folklore2_separates,
    folklore3_separates,
    refinement_separates,
)

KNOWN = {
    "K33/prism": (False, True, True),
    "CFI(C4)": (False, True, True),
    "CFI(C6)": (False, True, True),
    "CFI(K4)": (False, False, True),
    "CFI(K3,3)": (False, False, True),
    "decalin/bicyclopentyl": (False, True, True),
    "dodecahedral/Desargues": (False, True, True),
    "rook/Shrikhande": (False, False, True),
    **{f"T(8)/Chang {number}": (False, False, True) for number in (1, 2, 3)},
}
ORACLES = (refinement_separates, folklore2_separates, folklore3_separates)


@pytest.mark.parametrize("pair", named_pairs(), ids=lambda pair: pair.name)
def test_known_pairs_get_their_known_answers(pair):
    assert tuple(oracle(pair.first, pair.second) for oracle in ORACLES) == KNOWN[pair.name]


def test_the_order_of_the_two_graphs_does_not_matter():
    pair = decalin_pair()
    for oracle in ORACLES:
        assert oracle(pair.first, pair.second) == oracle(pair.second, pair.first)


def test_atlas_pairs_fool_1_wl_and_not_2_fwl():
    for pair in atlas_pairs():
        assert not refinement_separates(pair.first, pair.second)
        assert folklore2_separates(pair.first, pair.second)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 7), seed=st.integers(0, 10_000), directed=st.booleans(), loops=st.booleans())
def test_isomorphic_graphs_are_never_separated(size, seed, directed, loops):
    random = np.random.default_rng(seed)
    adj = (random.random((size, size)) < 0.4).astype(int)
    if not directed:
        adj = np.triu(adj) | np.triu(adj).T
    if not loops:
        np.fill_diagonal(adj, 0)
    order = random.permutation(size)
    for oracle in ORACLES:
        assert not oracle(adj, adj[np.ix_(order, order)])


@settings(max_examples=40, deadline=None)
@given(size=st.integers(2, 6), seed=st.integers(0, 10_000), directed=st.booleans())
def test_each_test_separates_all_that_the_weaker_one_does(size, seed, directed):
    random = np.random.default_rng(seed)
    pair = [(random.random((size, size)) < 0.4).astype(int) for _ in range(2)]
    if not directed:
        pair = [np.triu(adj, 1) + np.triu(adj, 1).T for adj in pair]
    answers = [oracle(*pair) for oracle in ORACLES]
    assert answers == sorted(answers)


def test_on_small_graphs_2_fwl_is_isomorphism():
    atlas = [g for g in nx.graph_atlas_g() if len(g) == 5]
    for number, first in enumerate(atlas):
        assert not any(not folklore2_separates(first, second) for second in atlas[number + 1 :])


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 7), probability=st.floats(0.1, 0.9), seed=st.integers(0, 10_000))
def test_vertex_colours_partition_as_dictionaries_of_multisets_do(size, probability, seed):
    graph = nx.gnp_random_graph(size, probability, seed=seed)
    colours = dict.fromkeys(graph, 0)
    for _ in range(size):
        signatures = {v: (colours[v], tuple(sorted(colours[u] for u in graph[v]))) for v in graph}
        names = {signature: number for number, signature in enumerate(sorted(set(signatures.values())))}
        colours = {v: names[signatures[v]] for v in graph}
    mine = colour_vertices(nx.to_numpy_array(graph, dtype=np.int64)[None])[0]
    for u in graph:
        for v in graph:
            assert (colours[u] == colours[v]) == (mine[u] == mine[v])


def test_pair_colours_partition_as_dictionaries_of_multisets_do():
    graph = nx.gnp_random_graph(6, 0.4, seed=4, directed=True)
    graph.add_edge(0, 0)
    adj = nx.to_numpy_array(graph, dtype=np.int64)
    pairs = [(i, k) for i in range(6) for k in range(6)]
    colours = {(i, k): (adj[i, k], adj[k, i], i == k) for i, k in pairs}
    for _ in range(36):
        signatures = {
            (i, k): (colours[i, k], tuple(sorted((colours[i, j], colours[j, k]) for j in range(6)))) for i, k in pairs
        }
        names = {signature: number for number, signature in enumerate(sorted(set(signatures.values())))}
        colours = {pair: names[signatures[pair]] for pair in pairs}
    mine = colour_pairs(adj[None])[0]
    assert len(set(colours.values())) == len(np.unique(mine))
    assert len({(colours[pair], int(mine[pair])) for pair in pairs}) == len(np.unique(mine))


def test_direction_counts():
    path = nx.DiGraph([(0, 1), (1, 2)])
    fork = nx.DiGraph([(0, 1), (2, 1)])
    assert all(oracle(path, fork) for oracle in ORACLES)
    cycle, reversed_edge = nx.DiGraph([(0, 1), (1, 2), (2, 0)]), nx.DiGraph([(0, 1), (1, 2), (0, 2)])
    assert all(oracle(cycle, reversed_edge) for oracle in ORACLES)


def test_self_loops_count():
    end, middle = nx.path_graph(3), nx.path_graph(3)
    end.add_edge(0, 0)
    middle.add_edge(1, 1)
    assert all(oracle(end, middle) for oracle in ORACLES)


def test_edge_labels_of_arrays_count():
    one, other = np.zeros((4, 4), dtype=int), np.zeros((4, 4), dtype=int)
    for array, labels in ((one, (1, 1, 2)), (other, (1, 2, 1))):
        for place, label in enumerate(labels):
            array[place, place + 1] = array[place + 1, place] = label
    assert all(oracle(one, other) for oracle in ORACLES)


def test_graphs_of_different_size_are_separated():
    assert all(oracle(nx.path_graph(3), nx.path_graph(4)) for oracle in ORACLES)


def test_the_empty_and_the_one_vertex_graph_are_not_separated_from_themselves():
    for size in (0, 1):
        assert not any(oracle(np.zeros((size, size)), np.zeros((size, size))) for oracle in ORACLES)


def test_triples_beyond_thirty_vertices_are_refused():
    with pytest.raises(BadInput, match="at most 30"):
        folklore3_separates(nx.path_graph(31), nx.path_graph(31))


@pytest.mark.parametrize("array", [np.zeros((2, 3)), np.full((2, 2), 0.5)])
def test_arrays_that_are_no_graph_are_refused(array):
    with pytest.raises(BadInput):
        refinement_separates(array, array)


def test_cfi_over_a_grid_of_treewidth_three_needs_3_fwl():
    pair = cfi_pair(nx.complete_bipartite_graph(3, 3))
    assert not folklore2_separates(pair.first, pair.second)
    assert folklore3_separates(pair.first, pair.second)


def test_all_strongly_regular_pairs_fool_2_fwl():
    assert not any(folklore2_separates(pair.first, pair.second) for pair in (rook_pair(), *chang_pairs()))
