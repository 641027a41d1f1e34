import json

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput, MemoryEstimateError
from heliograph.graphs.mesh_transformer import supports
from heliograph.graphs.mesh_transformer.supports import (
    MeshSupport,
    SupportCache,
    adjacency,
    dilated,
    edge_set,
    farthest_points,
    global_nodes,
    join_supports,
    khop,
    parse_support,
    random_edges,
)
from tests.graphs.core.graphs_for_tests import odd_batches, odd_graphs

RECIPES = [adjacency(), khop(2), dilated(5, 2), dilated(4, 3, 1), random_edges(0.5), global_nodes(2)]
IDS = ["mesh", "khop", "dilated", "dilated capped", "random", "global"]


def pairs(support):
    return list(zip(support.source.tolist(), support.target.tolist(), strict=True))


def grid(wide, high):
    graph = nx.convert_node_labels_to_integers(nx.grid_2d_graph(wide, high))
    return torch.tensor(list(graph.edges)).t(), wide * high


@pytest.mark.parametrize("recipe", [*RECIPES, khop(2) | global_nodes(1) | random_edges(0.3)], ids=[*IDS, "union"])
@settings(max_examples=20, deadline=None)
@given(sample=odd_graphs(), seed=st.integers(0, 3))
def test_a_support_is_symmetric_loop_free_sorted_and_holds_the_mesh(recipe, sample, seed):
    edges, size = sample
    made = recipe.build(edges, size, torch.rand(size, 2), seed=seed)
    found = pairs(made)
    assert len(set(found)) == len(found)
    assert [(t, s) for s, t in found] == sorted((t, s) for s, t in found)
    assert all(s != t and (t, s) in set(found) for s, t in found)
    mesh = {(u, v) for u, v in edges.t().tolist() if u != v}
    assert mesh <= set(found)
    assert set(found) == set(pairs(recipe.build(edges, size, torch.rand(size, 2), seed=seed))) or recipe.needs_positions


@settings(max_examples=20, deadline=None)
@given(sample=odd_graphs(), hops=st.integers(1, 4))
def test_hops_are_those_of_a_breadth_first_search(sample, hops):
    edges, size = sample
    graph = nx.Graph(edges.t().tolist())
    graph.add_nodes_from(range(size))
    far = dict(nx.all_pairs_shortest_path_length(graph))
    wanted = {(u, v) for u in range(size) for v, d in far[u].items() if 0 < d <= hops}
    assert set(pairs(khop(hops).build(edges, size))) == wanted
    wanted = {(u, v) for u in range(size) for v, d in far[u].items() if d in range(1, hops + 1, 2)}
    assert set(pairs(dilated(hops, 2, size).build(edges, size))) == wanted


def test_a_capped_shell_is_bounded_and_the_same_every_time():
    edges, size = grid(8, 8)
    mesh = set(pairs(adjacency().build(edges, size)))
    made = pairs(dilated(5, 2, 2).build(edges, size))
    further = [target for source, target in made if (source, target) not in mesh]
    assert further
    assert max(np.bincount(further)) <= 2 * 2  # two shells
    assert made == pairs(dilated(5, 2, 2).build(edges.flip(0), size))


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
@settings(max_examples=15, deadline=None)
@given(sample=odd_batches())
def test_a_mesh_of_a_batch_gets_the_edges_it_gets_alone(recipe, sample):
    edges, batch, parts = sample
    pos = torch.rand(len(batch), 2)
    together = recipe.build(edges, len(batch), pos, batch=batch)
    alone, begin = [], 0
    for own, size in parts:
        alone.append(recipe.build(own, size, pos[begin : begin + size]))
        begin += size
    joined = join_supports(alone)
    assert pairs(together) == pairs(joined)
    assert torch.equal(together.batch, joined.batch)


def test_random_edges_depend_on_the_seed_and_are_as_many_as_asked_at_most():
    edges, size = grid(10, 10)
    one, two = (random_edges(0.5).build(edges, size, seed=seed) for seed in (0, 1))
    assert pairs(one) != pairs(two)
    assert 2 * edges.shape[1] < one.num_edges <= 3 * edges.shape[1]


def test_global_vertices_lie_on_the_boundary_where_types_say_so():
    edges, size = grid(6, 6)
    types = torch.zeros(size, dtype=torch.long)
    types[:6] = 6
    pos = torch.stack([torch.arange(size) // 6, torch.arange(size) % 6], 1).float()
    made = global_nodes(2).build(edges, size, pos, types)
    degree = torch.bincount(made.target, minlength=size)
    assert set((degree == size - 1).nonzero().flatten().tolist()) == {0, 5}
    assert made.num_edges >= 2 * 2 * (size - 2)
    with pytest.raises(BadInput, match="give pos"):
        global_nodes(2).build(edges, size)


def test_farthest_points_spread():
    line = np.stack([np.arange(11.0), np.zeros(11)], 1)
    assert sorted(farthest_points(line, 3).tolist()) == [0, 5, 10]
    assert len(farthest_points(line[:2], 5)) == 2


def test_the_given_edges_as_a_set_keep_directions_and_loops():
    edges = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    assert pairs(edge_set(edges, 2)) == [(1, 0), (0, 1), (1, 1)]


def test_too_many_edges_are_refused_with_their_number_before_they_are_made(monkeypatch):
    monkeypatch.setattr(supports, "EDGE_BUDGET_BYTES", 48 * 200)
    edges, size = grid(6, 6)
    for recipe in (khop(5), dilated(6, 1), global_nodes(8)):
        with pytest.raises(MemoryEstimateError, match="N = 36 vertices would have E = "):
            recipe.build(edges, size, torch.rand(size, 2))


def test_recipes_come_back_from_words_and_from_json():
    recipe = parse_support("khop=2, global=16,dilated=7:3:6,random=0.25")
    assert recipe == khop(2) | global_nodes(16) | dilated(7, 3, 6) | random_edges(0.25)
    assert MeshSupport.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert parse_support("mesh") == adjacency()
    for bad in ("hops=2", "khop", "khop=two", "khop=0", "dilated=3"):
        with pytest.raises(BadInput):
            parse_support(bad)


@pytest.mark.parametrize(
    "make", [lambda: khop(0), lambda: random_edges(0.0), lambda: dilated(2, 0), lambda: global_nodes(0)]
)
def test_bad_recipes_are_refused(make):
    with pytest.raises(BadInput):
        make()


def test_the_cache_builds_once_a_mesh_and_forgets_the_oldest():
    cache, built = SupportCache(size=2), []

    def build(name):
        return lambda: built.append(name) or edge_set(torch.zeros(2, 0, dtype=torch.long), 1)

    for name in ("a", "a", "b", "c", "a"):
        cache.get(khop(2), name, 0, build(name))
    assert built == ["a", "b", "c", "a"]
    cache.get(random_edges(0.5), "a", 0, build("random 0"))
    cache.get(random_edges(0.5), "a", 1, build("random 1"))
    assert built[-2:] == ["random 0", "random 1"]


def test_two_hops_of_many_vertices_take_seconds_not_minutes():
    edges, size = grid(150, 150)
    made = (khop(2) | dilated(5, 2) | global_nodes(4) | random_edges(0.1)).build(edges, size, torch.rand(size, 2))
    assert made.num_vertices == size
