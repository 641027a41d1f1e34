import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch_geometric.data import Batch, Data
from torch_geometric.transforms import AddRandomWalkPE, Compose

from heliograph.errors import BadInput, MemoryEstimateError
from heliograph.graphs.core import encodings
from heliograph.graphs.core.encodings import (
    RRWP,
    RWSE,
    CacheWarning,
    DegreeEncoding,
    LaplacianEncoding,
    ShortestPathEncoding,
    cached,
    clear_cache,
)

from .graphs_for_tests import odd_batches, odd_graphs

ALL = (RWSE(5), RRWP(4), LaplacianEncoding(3), DegreeEncoding(), ShortestPathEncoding(4))


def ring(size):
    here = torch.arange(size)
    there = (here + 1) % size
    return Data(edge_index=torch.stack([torch.cat([here, there]), torch.cat([there, here])]), num_nodes=size)


@pytest.mark.parametrize("encoding", ALL, ids=repr)
@settings(max_examples=15, deadline=None)
@given(sample=odd_batches())
def test_a_batch_is_encoded_as_its_graphs_are_alone(encoding, sample):
    graphs = [Data(edge_index=edges, num_nodes=size) for edges, size in sample[2]]
    together = encoding(Batch.from_data_list(graphs))
    for name in encoding.adds:
        alone = torch.cat([encoding(graph)[name] for graph in graphs])
        torch.testing.assert_close(together[name], alone, atol=1e-5, rtol=1e-5)


def test_rwse_agrees_with_pyg_where_pyg_is_right():
    ours, theirs = RWSE(8)(ring(7)).rwse, AddRandomWalkPE(8, attr_name="rwse")(ring(7)).rwse
    torch.testing.assert_close(ours, theirs)


def test_weights_count_unless_told_otherwise():
    graph = ring(4)
    graph.edge_weight = torch.rand(8)
    assert not torch.allclose(RWSE(4)(graph).rwse, RWSE(4, weighted=False)(graph).rwse)
    torch.testing.assert_close(RWSE(4, weighted=False)(graph).rwse, RWSE(4)(ring(4)).rwse)


def test_transforms_compose_and_leave_the_input_alone():
    graph = ring(5)
    out = Compose([RWSE(3), DegreeEncoding()])(graph)
    assert "rwse" not in graph
    torch.testing.assert_close(out.log_degree, torch.full((5, 1), 3.0).log())


@settings(max_examples=20, deadline=None)
@given(odd_graphs())
def test_distances_equal_networkx(sample):
    edges, size = sample
    graph = nx.DiGraph()
    graph.add_nodes_from(range(size))
    graph.add_edges_from(edges.t().tolist())
    found = ShortestPathEncoding(3)(Data(edge_index=edges, num_nodes=size)).distance.reshape(size, size)
    lengths = dict(nx.all_pairs_shortest_path_length(graph))
    for target in range(size):
        for source in range(size):
            assert found[target, source] == min(lengths[source].get(target, 4), 4)


@pytest.mark.parametrize("size", [12, 400])
def test_laplacian_vectors_are_eigenvectors_with_a_fixed_sign_and_the_same_bits_twice(size):
    edges = torch.tensor(list(nx.random_labeled_tree(size, seed=3).edges)).t()
    graph = Data(edge_index=torch.cat([edges, edges.flip(0)], dim=1), num_nodes=size)
    first, second = LaplacianEncoding(4)(graph), LaplacianEncoding(4)(graph)
    assert torch.equal(first.laplacian, second.laplacian)
    adjacency = torch.zeros(size, size, dtype=torch.float64)
    adjacency[edges[0], edges[1]] = adjacency[edges[1], edges[0]] = 1
    root = adjacency.sum(0).rsqrt()
    laplacian = torch.eye(size, dtype=torch.float64) - root[:, None] * adjacency * root
    smallest = torch.linalg.eigvalsh(laplacian)[1:5]
    vectors = first.laplacian.double()
    torch.testing.assert_close(laplacian @ vectors, vectors * smallest, atol=1e-5, rtol=1e-4)
    leading = vectors.abs().argmax(0)
    assert bool((vectors[leading, range(4)] > 0).all())


def test_repeated_eigenvalues_are_told_and_missing_columns_are_zero():
    out = LaplacianEncoding(4)(ring(4))  # eigenvalues 0, 1, 1, 2
    assert out.laplacian_repeats[0].tolist() == [True, True, False, False]
    assert bool((out.laplacian[:, 3] == 0).all())
    single = LaplacianEncoding(2)(Data(edge_index=torch.zeros(2, 0, dtype=torch.long), num_nodes=1))
    assert single.laplacian.tolist() == [[0.0, 0.0]]


def test_the_cache_answers_without_computing_and_gives_the_same(tmp_path, monkeypatch):
    graphs = [ring(4), ring(6)]
    first = cached(graphs, ALL, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == len(ALL)
    assert "rwse" not in graphs[0]
    for encoding in ALL:
        monkeypatch.setattr(type(encoding), "compute", lambda *_: pytest.fail("computed again"))
    second = cached(graphs, ALL, folder=tmp_path)
    for one, two in zip(first, second, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for encoding in ALL for name in encoding.adds)


def test_another_parameter_graph_weight_or_program_is_another_entry(tmp_path, monkeypatch):
    graph = ring(5)
    assert cached([graph], [RWSE(4)], folder=tmp_path)[0].rwse.shape == (5, 4)
    assert cached([graph], [RWSE(16)], folder=tmp_path)[0].rwse.shape == (5, 16)
    keys = {encodings._cache_key([graph], RWSE(4)), encodings._cache_key([ring(6)], RWSE(4))}
    keys.add(encodings._cache_key([graph], RRWP(4)))
    keys.add(encodings._cache_key([graph], RWSE(4, weighted=False)))
    weighted = ring(5)
    weighted.edge_weight = torch.ones(10)
    keys.add(encodings._cache_key([weighted], RWSE(4)))
    monkeypatch.setattr(encodings, "_code_version", lambda source: "another")
    keys.add(encodings._cache_key([graph], RWSE(4)))
    assert len(keys) == 6


@pytest.mark.parametrize("keep", [0, 20, 0.5])
def test_a_file_cut_short_is_noticed_and_made_again(tmp_path, keep):
    expected = cached([ring(5)], [RWSE(4)], folder=tmp_path)[0].rwse
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.warns(CacheWarning, match="damaged"):
        found = cached([ring(5)], [RWSE(4)], folder=tmp_path)[0].rwse
    assert torch.equal(found, expected)
    assert path.read_bytes()[:40] == whole[:40]


def test_a_flipped_bit_is_noticed(tmp_path):
    cached([ring(5)], [RWSE(4)], folder=tmp_path)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.warns(CacheWarning):
        cached([ring(5)], [RWSE(4)], folder=tmp_path)


def test_the_cache_can_be_left_out_and_cleared(tmp_path):
    cached([ring(5)], [RWSE(4)], folder=tmp_path, use_cache=False)
    assert list(tmp_path.iterdir()) == []
    cached([ring(5)], [RWSE(4), RRWP(4)], folder=tmp_path)
    assert clear_cache(tmp_path) == 2
    assert list(tmp_path.iterdir()) == []


def test_bad_parameters_and_large_graphs_are_refused(monkeypatch):
    for make in (lambda: RWSE(0), lambda: RRWP(1), lambda: LaplacianEncoding(0), lambda: ShortestPathEncoding(0)):
        with pytest.raises(BadInput):
            make()
    with pytest.raises(BadInput, match="edge_index"):
        RWSE(2)(Data(num_nodes=3))
    monkeypatch.setattr(encodings, "DISTANCE_BUDGET_BYTES", 10)
    with pytest.raises(MemoryEstimateError, match="largest graph: 5"):
        ShortestPathEncoding(2)(ring(5))


def test_progress_reaches_one(tmp_path):
    shares = []
    cached([ring(4), ring(5)], [RWSE(2), RRWP(2)], folder=tmp_path, progress=shares.append)
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.75, 1.0])
