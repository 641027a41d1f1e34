import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput, MemoryEstimateError
from heliograph.graphs.core import support as module
from heliograph.graphs.core.support import (
    complete_support,
    ego_support,
    given_support,
    global_support,
    khop_support,
    random_support,
)

from .graphs_for_tests import odd_batches, odd_graphs


def pairs(support):
    return list(zip(support.source.tolist(), support.target.tolist(), strict=True))


def check_order(support):
    keys = support.target * support.num_vertices + support.source
    assert bool((keys[1:] >= keys[:-1]).all())
    assert bool((support.batch[support.source] == support.batch[support.target]).all())
    for vertex in range(support.num_vertices):
        run = support.target[support.offsets[vertex] : support.offsets[vertex + 1]]
        assert bool((run == vertex).all())
    assert int(support.offsets[-1]) == support.num_edges


@settings(max_examples=30, deadline=None)
@given(odd_batches())
def test_given_edges_are_kept_as_they_are_and_lead_back_to_their_rows(sample):
    edge_index, batch, _ = sample
    support = given_support(edge_index, len(batch), batch)
    check_order(support)
    assert sorted(pairs(support)) == sorted(map(tuple, edge_index.t().tolist()))
    assert torch.equal(edge_index[:, support.edge_id], torch.stack([support.source, support.target]))


@settings(max_examples=30, deadline=None)
@given(odd_graphs(), st.integers(1, 3), st.booleans())
def test_khop_equals_shortest_paths(sample, hops, include_self):
    edge_index, size = sample
    graph = nx.DiGraph()
    graph.add_nodes_from(range(size))
    graph.add_edges_from(edge_index.t().tolist())
    support = khop_support(edge_index, size, hops, include_self=include_self)
    check_order(support)
    expected = {
        (source, target)
        for source, lengths in nx.all_pairs_shortest_path_length(graph, cutoff=hops)
        for target in lengths
        if source != target or include_self
    }
    assert set(pairs(support)) == expected
    assert len(pairs(support)) == len(expected)
    near = {tuple(edge) for edge in edge_index.t().tolist()}
    assert all((edge_id >= 0) == (pair in near) for pair, edge_id in zip(pairs(support), support.edge_id, strict=True))


def test_ego_networks_hear_both_directions_and_themselves():
    support = ego_support(torch.tensor([[0], [1]]), 3)
    assert pairs(support) == [(0, 0), (1, 0), (0, 1), (1, 1), (2, 2)]
    assert support.edge_id.tolist() == [-1, -1, 0, -1, -1]


@settings(max_examples=20, deadline=None)
@given(odd_batches(), st.booleans())
def test_complete_support_has_all_pairs_of_each_graph_and_no_others(sample, include_self):
    _, batch, _ = sample
    support = complete_support(len(batch), batch, include_self=include_self)
    check_order(support)
    expected = {(i, j) for i in range(len(batch)) for j in range(len(batch)) if batch[i] == batch[j]}
    expected = expected if include_self else {pair for pair in expected if pair[0] != pair[1]}
    assert set(pairs(support)) == expected
    assert support.num_edges == len(expected)


def test_random_support_is_seeded_distinct_and_stays_within_graphs():
    batch = torch.tensor([0] * 6 + [1] + [2] * 3)
    first, again, other = (random_support(10, 3, seed, batch) for seed in (1, 1, 2))
    check_order(first)
    assert pairs(first) == pairs(again) != pairs(other)
    assert len(set(pairs(first))) == first.num_edges == 6 * 3 + 0 + 3 * 2
    assert all(source != target for source, target in pairs(first))


def test_global_vertices_exchange_with_their_own_graph_only():
    support = global_support([0], 4, torch.tensor([0, 0, 0, 1]))
    assert set(pairs(support)) == {(0, 0), (1, 0), (2, 0), (0, 1), (0, 2)}


@settings(max_examples=30, deadline=None)
@given(odd_graphs(), st.integers(0, 9))
def test_union_is_a_set_and_keeps_given_rows(sample, seed):
    edge_index, size = sample
    edges, random = given_support(edge_index, size), random_support(size, 2, seed)
    union, swapped = edges | random, random | edges
    check_order(union)
    assert set(pairs(union)) == set(pairs(edges)) | set(pairs(random))
    assert len(set(pairs(union))) == union.num_edges
    assert pairs(union) == pairs(swapped)
    assert torch.equal(union.edge_id, swapped.edge_id)
    assert set(pairs(edges)) == {p for p, i in zip(pairs(union), union.edge_id.tolist(), strict=True) if i >= 0}


def test_gather_orders_edge_rows_and_fills_the_others():
    edge_index, features = torch.tensor([[1, 0], [0, 1]]), torch.tensor([[5.0], [7.0]])
    union = given_support(edge_index, 2) | complete_support(2)
    assert pairs(union) == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert union.gather(features).flatten().tolist() == [0.0, 5.0, 7.0, 0.0]
    assert union.gather(features[:0]).shape == (4, 1)


@pytest.mark.parametrize(
    ("edges", "batch", "text"),
    [
        ([[0, 5], [1, 0]], None, "holds 5; vertices are numbered 0 to 3"),
        ([[0, -1], [1, 0]], None, "holds -1"),
        ([[0, 0], [1, 3]], [0, 0, 1, 1], "edge 1 joins two graphs"),
        ([[0], [1]], [0, 1, 0, 1], "must ascend"),
        ([[0], [1]], [0, 0], "2 entries for 4 vertices"),
    ],
)
def test_bad_edges_are_refused(edges, batch, text):
    with pytest.raises(BadInput, match=text):
        given_support(torch.tensor(edges), 4, None if batch is None else torch.tensor(batch))


def test_too_many_pairs_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr(module, "EDGE_BUDGET_BYTES", 1000)
    with pytest.raises(MemoryEstimateError, match="largest graph: 20 vertices"):
        complete_support(20)


def test_a_union_of_different_vertices_is_refused():
    with pytest.raises(BadInput, match="same vertices"):
        complete_support(2) | complete_support(3)
