from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings

from heliograph.errors import BadInput, MemoryEstimateError
from heliograph.graphs.core import sampled_walks as module
from heliograph.graphs.core.sampled_walks import EdgeLookup, sample_walks
from tests.graphs.core.graphs_for_tests import odd_batches, odd_graphs


@settings(max_examples=40, deadline=None)
@given(graph=odd_graphs())
def test_every_step_follows_an_edge_or_stays_where_none_leads_out(graph):
    edges, size = graph
    walks = sample_walks(edges, size, 3, 4, seed=1).long()
    assert walks.shape == (size, 3, 5)
    assert torch.equal(walks[:, :, 0], torch.arange(size).unsqueeze(1).expand(-1, 3))
    pairs = {tuple(pair) for pair in edges.t().tolist()}
    sources = {source for source, _ in pairs}
    for walk in walks.flatten(0, 1).tolist():
        for here, there in pairwise(walk):
            assert (here, there) in pairs or (here not in sources and here == there)


def test_outgoing_edges_are_equally_likely_and_parallel_ones_add_up():
    edges = torch.tensor([[0, 0, 0, 0], [1, 2, 2, 0]])
    ends = sample_walks(edges, 3, 40_000, 1, seed=0)[0, :, 1].long()
    shares = torch.bincount(ends, minlength=3) / 40_000
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.25, 0.5]), atol=0.02, rtol=0)


@settings(max_examples=30, deadline=None)
@given(sample=odd_batches())
def test_a_graph_is_walked_in_a_batch_as_alone_and_in_any_order_of_its_edges(sample):
    edges, batch, parts = sample
    whole = sample_walks(edges, len(batch), 2, 3, seed=5, batch=batch)
    start = 0
    for own, size in parts:
        alone = sample_walks(own[:, torch.randperm(own.shape[1])], size, 2, 3, seed=5)
        assert torch.equal(whole[start : start + size], alone + start)
        start += size


def test_the_seed_decides():
    edges = torch.randint(50, (2, 300), generator=torch.Generator().manual_seed(0))
    first, again, other = (sample_walks(edges, 50, 4, 5, seed=s) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == torch.int32


@settings(max_examples=40, deadline=None)
@given(graph=odd_graphs())
def test_edges_are_found_by_their_ends(graph):
    edges, size = graph
    ends = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    found = EdgeLookup(edges, size).find(ends[:, 0], ends[:, 1])
    listed = [tuple(pair) for pair in edges.t().tolist()]
    for (source, target), edge in zip(ends.tolist(), found.tolist(), strict=True):
        assert edge == (listed.index((source, target)) if (source, target) in listed else -1)


def test_no_vertices_and_no_steps():
    none = torch.zeros(2, 0, dtype=torch.long)
    assert sample_walks(none, 0, 2, 3, seed=0).shape == (0, 2, 4)
    assert sample_walks(none, 2, 1, 0, seed=0).tolist() == [[[0]], [[1]]]
    assert sample_walks(none, 2, 1, 2, seed=0).tolist() == [[[0, 0, 0]], [[1, 1, 1]]]


def test_bad_input_and_too_much_memory_are_refused(monkeypatch):
    edges = torch.tensor([[0], [3]])
    with pytest.raises(BadInput, match="edge_index holds 3"):
        sample_walks(edges, 3, 1, 1, seed=0)
    with pytest.raises(BadInput, match="walks >= 1"):
        sample_walks(edges, 4, 0, 1, seed=0)
    with pytest.raises(BadInput, match="batch vector"):
        sample_walks(edges, 4, 1, 1, seed=0, batch=torch.zeros(3, dtype=torch.long))
    monkeypatch.setattr(module, "SAMPLE_BUDGET_BYTES", 1000)
    with pytest.raises(MemoryEstimateError, match="fewer or shorter walks"):
        sample_walks(edges, 4, 10, 10, seed=0)
