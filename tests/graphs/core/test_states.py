import pytest
import torch
from hypothesis import given, settings

from heliograph.errors import BadInput, MemoryEstimateError
from heliograph.graphs.core import states
from heliograph.graphs.core.states import MaskedBatchNorm, PairBatch, pack, unpack
from heliograph.graphs.core.support import complete_support, khop_support

from .graphs_for_tests import odd_batches


@settings(max_examples=20, deadline=None)
@given(odd_batches())
def test_unpack_inverts_pack(sample):
    _, batch, parts = sample
    rows = torch.randn(len(batch), 3, 2)
    block, mask = pack(rows, batch, num_graphs=len(parts) + 1)  # the last graph is empty
    assert block.shape == (len(parts) + 1, max(size for _, size in parts), 3, 2)
    assert mask.sum(1).tolist() == [size for _, size in parts] + [0]
    assert bool((block[~mask] == 0).all())
    assert torch.equal(unpack(block, mask), rows)


@settings(max_examples=20, deadline=None)
@given(odd_batches())
def test_pair_rows_survive_the_dense_form(sample):
    _, batch, _ = sample
    support = complete_support(len(batch), batch)
    x, pair = torch.randn(len(batch), 4), torch.randn(support.num_edges, 3)
    dense = PairBatch.from_rows(x, pair, support)
    back_x, back_pair = dense.masked().to_rows()
    assert torch.equal(back_x, x)
    assert torch.equal(back_pair, pair)
    again = dense.support()
    assert torch.equal(again.source, support.source)
    assert torch.equal(again.target, support.target)


def test_a_pair_belongs_to_target_then_source():
    support = khop_support(torch.tensor([[2], [0]]), 3, 1)
    dense = PairBatch.from_rows(torch.zeros(3, 1), torch.ones(1, 1), support)
    assert dense.e[0, 0, 2] == 1
    assert dense.e.sum() == 1


def test_dense_pairs_above_the_budget_are_refused(monkeypatch):
    monkeypatch.setattr(states, "PAIR_BUDGET_BYTES", 10)
    with pytest.raises(MemoryEstimateError, match="largest: 4 vertices"):
        PairBatch.from_rows(torch.zeros(4, 1), torch.zeros(16, 1), complete_support(4))


def test_masked_norm_ignores_what_is_padded():
    norm, plain = MaskedBatchNorm(3), torch.nn.BatchNorm1d(3)
    block, mask = torch.randn(2, 4, 3), torch.tensor([[True, True, False, False], [True, True, True, True]])
    out = norm(block, mask)
    torch.testing.assert_close(out[mask], plain(block[mask]))
    assert bool((out[~mask] == 0).all())
    wide = torch.cat([block, torch.full((2, 5, 3), 1e6)], dim=1)
    norm.reset_running_stats()
    wider = norm(wide, torch.cat([mask, torch.zeros(2, 5, dtype=torch.bool)], dim=1))
    torch.testing.assert_close(wider[:, :4], out)


def test_masked_norm_of_one_entry_uses_running_statistics():
    norm = MaskedBatchNorm(2)
    rows = torch.tensor([[[3.0, -1.0]]])
    torch.testing.assert_close(norm(rows), rows / (1 + norm.eps) ** 0.5)


def test_batch_vectors_that_do_not_fit_are_refused():
    with pytest.raises(BadInput, match="ascend"):
        pack(torch.zeros(2, 1), torch.tensor([1, 0]))
    with pytest.raises(BadInput, match="2 rows for 3"):
        pack(torch.zeros(2, 1), torch.tensor([0, 0, 0]))
