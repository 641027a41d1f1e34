"""Each sampler's output against networkx or the plain definition, and the benchmark's own format."""

from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest

from heliograph.data.algorithms import TASKS, from_clrs, sample_batch
from heliograph.errors import BadInput


def graph_of(batch, number, directed=False):
    adj = batch.edge[number, ..., 0]
    weight = batch.edge[number, ..., 1].astype(float) if batch.edge.shape[-1] > 1 else adj
    graph = nx.empty_graph(len(adj), create_using=nx.DiGraph if directed else nx.Graph)
    graph.add_weighted_edges_from((int(i), int(k), float(weight[i, k])) for i, k in np.argwhere(adj > 0))
    return graph


def instances(task, sizes=(2, 3, 8, 12), count=12):
    for size in sizes:
        batch = sample_batch(task, count, size, seed=size)
        for number in range(count):
            yield batch, number, [target.values[number] for target in batch.targets]


def start_of(batch, number):
    return int(batch.vertex[number, :, 1].argmax())


def test_bfs_parents_are_one_layer_nearer_and_the_lowest_of_them():
    for batch, number, (parent,) in instances("bfs"):
        graph, start = graph_of(batch, number), start_of(batch, number)
        depth = nx.single_source_shortest_path_length(graph, start)
        for vertex in graph:
            if vertex == start or vertex not in depth:
                assert parent[vertex] == vertex
            else:
                assert parent[vertex] == min(u for u in graph[vertex] if depth[u] == depth[vertex] - 1)


@pytest.mark.parametrize("task", ["bellman_ford", "dijkstra"])
def test_predecessors_lie_on_shortest_paths(task):
    for batch, number, (parent,) in instances(task):
        graph, start = graph_of(batch, number), start_of(batch, number)
        previous, _ = nx.dijkstra_predecessor_and_distance(graph, start)
        for vertex in graph:
            expected = previous.get(vertex) or [vertex]
            assert [parent[vertex]] == expected


def test_floyd_warshall_gives_the_vertex_before_the_last():
    for batch, number, (before,) in instances("floyd_warshall"):
        graph = graph_of(batch, number)
        previous, _ = nx.floyd_warshall_predecessor_and_distance(graph)
        for i in graph:
            for k in graph:
                expected = previous.get(i, {}).get(k, i)
                assert before[i, k] == expected


def test_prim_grows_the_minimum_spanning_tree_from_its_start():
    for batch, number, (parent,) in instances("mst_prim"):
        graph, start = graph_of(batch, number), start_of(batch, number)
        reached = graph.subgraph(nx.node_connected_component(graph, start))
        tree = nx.minimum_spanning_tree(reached)
        mine = {frozenset((v, int(parent[v]))) for v in range(len(parent)) if parent[v] != v}
        assert mine == {frozenset(edge) for edge in tree.edges()}
        for vertex in tree:
            if vertex != start:  # parents lead to the start
                assert parent[vertex] == nx.shortest_path(tree, vertex, start)[1]


def test_topological_order_is_the_one_of_depth_first_search():
    for batch, number, (following, head) in instances("topological_sort"):
        graph = graph_of(batch, number, directed=True)
        assert head.sum() == 1
        order = [int(head.argmax())]
        while following[order[-1]] != order[-1]:
            order.append(int(following[order[-1]]))
        place = {vertex: position for position, vertex in enumerate(order)}
        assert sorted(order) == sorted(graph)
        assert all(place[u] < place[v] for u, v in graph.edges())
        graph = nx.DiGraph({v: sorted(graph[v]) for v in sorted(graph)})
        assert order == list(reversed(list(nx.dfs_postorder_nodes(graph))))


def test_insertion_sort_points_to_the_entry_before():
    for batch, number, (before,) in instances("insertion_sort"):
        order = np.argsort(batch.vertex[number, :, 1])
        assert before[order[0]] == order[0]
        assert (before[order[1:]] == order[:-1]).all()


def test_lcs_directions_trace_back_a_longest_common_subsequence():
    def longest(a, b):
        if not a or not b:
            return 0
        if a[-1] == b[-1]:
            return longest(a[:-1], b[:-1]) + 1
        return max(longest(a[:-1], b), longest(a, b[:-1]))

    for batch, number, (direction,) in instances("lcs_length", sizes=(2, 5, 9), count=6):
        text = batch.vertex[number, :, 2:].argmax(axis=1).tolist()
        length = int((batch.vertex[number, :, 1] == 0).sum())
        first, second = text[:length], text[length:]
        assert (direction[:length, length:] >= 0).all()
        assert (direction >= 0).sum() == len(first) * len(second)
        for i in range(len(first)):
            for k in range(len(second)):
                up, left = longest(first[:i], second[: k + 1]), longest(first[: i + 1], second[:k])
                expected = 0 if first[i] == second[k] else 1 if up >= left else 2
                assert direction[i, length + k] == expected


@pytest.mark.parametrize("task", sorted(TASKS))
def test_batches_have_one_format(task):
    batch = sample_batch(task, 3, 7, seed=1)
    assert len(batch) == 3
    assert batch.vertex.shape[:2] == (3, 7)
    assert batch.edge.shape[:3] == (3, 7, 7)
    assert batch.vertex.dtype == batch.edge.dtype == batch.graph.dtype == np.float32
    assert np.allclose(batch.vertex[:, :, 0], np.arange(7) / 7)
    assert batch.mask.all()
    for target in batch.targets:
        assert target.values.dtype == np.int64
        limit = target.classes or (2 if target.kind.startswith("mask") else 7)
        assert target.values.min() >= -1
        assert target.values.max() < limit
    again, other = sample_batch(task, 3, 7, seed=1), sample_batch(task, 3, 7, seed=2)
    assert (again.edge == batch.edge).all()
    assert (again.vertex == batch.vertex).all()
    assert (other.edge != batch.edge).any() or (other.vertex != batch.vertex).any()


def test_weights_are_between_zero_and_one_symmetric_and_on_edges_only():
    batch = sample_batch("dijkstra", 20, 8)
    adj, weight = batch.edge[..., 0], batch.edge[..., 1]
    assert (weight == weight.transpose(0, 2, 1)).all()
    assert weight.min() >= 0
    assert weight.max() < 1
    assert (weight[adj == 0] == 0).all()


@pytest.mark.parametrize("call", [("quicksort", 2, 4), ("bfs", 0, 4), ("bfs", 2, 1)])
def test_bad_requests_are_refused(call):
    with pytest.raises(BadInput):
        sample_batch(*call)


def point(name, location, kind, data):
    return SimpleNamespace(name=name, location=location, type_=kind, data=np.asarray(data))


def feedback(inputs, outputs):
    return SimpleNamespace(features=SimpleNamespace(inputs=inputs, hints=(), lengths=None), outputs=outputs)


def test_the_benchmarks_own_batches_are_adapted():
    mine = sample_batch("floyd_warshall", 2, 5)
    inputs = [
        point("A", "edge", "scalar", mine.edge[..., 1]),
        point("pos", "node", "scalar", mine.vertex[..., 0]),
        point("adj", "edge", "mask", mine.edge[..., 0]),
    ]
    adapted = from_clrs(feedback(inputs, [point("Pi", "edge", "pointer", mine.targets[0].values)]), "floyd_warshall")
    assert (adapted.vertex == mine.vertex).all()
    assert (adapted.edge == mine.edge).all()
    assert adapted.targets[0].kind == "pair_pointer"
    assert (adapted.targets[0].values == mine.targets[0].values).all()


def test_tasks_without_a_graph_get_the_complete_one_and_categories_keep_their_mask():
    mine = sample_batch("lcs_length", 2, 6)
    wanted = mine.targets[0].values
    classes = np.where(wanted[..., None] >= 0, np.eye(3)[wanted.clip(min=0)], -1)
    inputs = [
        point("string", "node", "mask", mine.vertex[..., 1]),
        point("key", "node", "categorical", mine.vertex[..., 2:]),
        point("pos", "node", "scalar", mine.vertex[..., 0]),
        point("goal", "graph", "scalar", np.zeros(2)),
    ]
    adapted = from_clrs(feedback(inputs, [point("b", "edge", "categorical", classes)]), "lcs_length")
    assert (adapted.vertex == mine.vertex).all()
    assert (adapted.edge == mine.edge).all()
    assert adapted.graph.shape == (2, 1)
    assert adapted.targets[0].kind == "pair_category"
    assert (adapted.targets[0].values == wanted).all()


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [("pointer", [[1, 0]], "pointer"), ("should_be_permutation", [[1, 0]], "pointer"),
     ("permutation_pointer", [[[0, 1], [1, 0]]], "pointer"), ("mask", [[1, 0]], "mask"),
     ("mask_one", [[0, 1]], "mask_one")],
)  # fmt: skip
def test_vertex_outputs_keep_their_kind(kind, data, expected):
    inputs = [point("pos", "node", "scalar", [[0.0, 0.5]])]
    adapted = from_clrs(feedback(inputs, [point("out", "node", kind, data)]), "some_task")
    assert adapted.targets[0].kind == expected
    assert adapted.targets[0].values.shape == (1, 2)


def test_an_output_without_counterpart_is_refused():
    inputs = [point("pos", "node", "scalar", [[0.0, 0.5]])]
    with pytest.raises(BadInput, match="no counterpart"):
        from_clrs(feedback(inputs, [point("d", "node", "scalar", [[0.0, 0.5]])]), "some_task")
