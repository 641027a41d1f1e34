import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput, MemoryEstimateError
from heliograph.graphs.core import walks
from heliograph.graphs.core.walks import return_probabilities, walk_powers

from .graphs_for_tests import odd_batches

K = 6


def oracle(edge_index, size, weight, steps):
    """Dense float64 powers 0 .. steps, from the definition."""
    adjacency = np.zeros((size, size))
    for edge, (source, target) in enumerate(edge_index.t().tolist()):
        adjacency[source, target] += 1.0 if weight is None else float(weight[edge])
    degree = adjacency.sum(1, keepdims=True)
    walk = np.divide(adjacency, degree, out=np.zeros_like(adjacency), where=degree > 0)
    return np.stack([np.linalg.matrix_power(walk, k) for k in range(steps + 1)], axis=-1)


def weights(count, seed):
    # exact zeros and very different sizes
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.choice([0.0, 1e-6, 0.3, 2.0, 1e5], size=count))


@settings(max_examples=40, deadline=None)
@given(sample=odd_batches(), seed=st.integers(0, 99), weighted=st.booleans())
def test_both_forms_equal_the_dense_oracle_graph_by_graph(sample, seed, weighted):
    edge_index, batch, parts = sample
    weight = weights(edge_index.shape[1], seed) if weighted else None
    diagonal = return_probabilities(edge_index, len(batch), K, weight, batch)
    pairs = walk_powers(edge_index, len(batch), K, weight, batch)
    assert bool(((diagonal >= 0) & (diagonal <= 1)).all())
    assert bool(((pairs >= 0) & (pairs <= 1)).all())
    edge, vertex, pair = 0, 0, 0
    for own, size in parts:
        share = None if weight is None else weight[edge : edge + own.shape[1]]
        expected = oracle(own, size, share, K)
        edge += own.shape[1]
        found = pairs[pair : pair + size * size].reshape(size, size, K)
        np.testing.assert_allclose(found, expected[..., :K], atol=1e-6)
        rows = np.diagonal(expected[..., 1:], axis1=0, axis2=1).T
        np.testing.assert_allclose(diagonal[vertex : vertex + size], rows, atol=1e-6)
        sums = found.sum(1)
        assert bool(((sums - 1).abs().lt(1e-5) | sums.lt(1 + 1e-5)).all())
        vertex, pair = vertex + size, pair + size * size


def test_rows_add_to_one_or_zero():
    edge_index = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 2, 3]])
    pairs = walk_powers(edge_index, 5, 4).reshape(5, 5, 4)
    torch.testing.assert_close(pairs.sum(1)[:4], torch.ones(4, 4))
    assert pairs[4].sum(0).tolist() == [1, 0, 0, 0]  # an isolated vertex stays for zero steps only


def test_the_pair_of_target_i_and_source_j_carries_the_walk_from_i_to_j():
    pairs = walk_powers(torch.tensor([[0], [1]]), 2, 2).reshape(2, 2, 2)
    assert pairs[0, 1, 1] == 1
    assert pairs[1, 0, 1] == 0


@pytest.mark.parametrize("weighted", [False, True])
def test_large_graphs_take_the_sparse_path_to_the_same_numbers(monkeypatch, weighted):
    edge_index = torch.randint(0, 60, (2, 200), generator=torch.Generator().manual_seed(0))
    batch = (torch.arange(60) >= 45).long()
    edge_index = edge_index[:, batch[edge_index[0]] == batch[edge_index[1]]]
    weight = weights(edge_index.shape[1], 3) if weighted else None
    dense = return_probabilities(edge_index, 60, K, weight, batch)
    monkeypatch.setattr(walks, "DENSE_VERTICES", 20)
    monkeypatch.setattr(walks, "BLOCK_BYTES", 16 * 45 * 7)
    shares = []
    torch.testing.assert_close(return_probabilities(edge_index, 60, K, weight, batch, shares.append), dense)
    assert len(shares) > 3
    assert shares[-1] == 1.0


def test_graphs_of_unlike_size_are_not_padded_together():
    starts = np.array([0, 200, 203, 206])
    assert [len(group) for group in walks._buckets(starts)] == [1, 2]


def test_all_pairs_of_a_large_graph_are_refused_with_the_bytes(monkeypatch):
    monkeypatch.setattr(walks, "WALK_BUDGET_BYTES", 1000)
    with pytest.raises(MemoryEstimateError, match="largest graph: 50 vertices"):
        walk_powers(torch.zeros(2, 0, dtype=torch.long), 50, 4)


@pytest.mark.parametrize(
    ("edges", "weight", "steps", "text"),
    [
        ([[0], [3]], None, 3, "holds 3; vertices are numbered 0 to 2"),
        ([[0], [1]], [-1.0], 3, "edge 0 weighs -1.0"),
        ([[0], [1]], [float("nan")], 3, "edge 0 weighs nan"),
        ([[0], [1]], [1.0, 1.0], 3, "2 weights for 1 edges"),
        ([[0], [1]], None, 0, "steps"),
    ],
)
def test_bad_input_is_refused(edges, weight, steps, text):
    values = None if weight is None else torch.tensor(weight)
    for function in (return_probabilities, walk_powers):
        with pytest.raises(BadInput, match=text):
            function(torch.tensor(edges), 3, steps, values)
