import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.graphs.core import aggregate

REDUCE = {
    "sum": (aggregate.segment_sum, lambda rows: rows.sum(0)),
    "mean": (aggregate.segment_mean, lambda rows: rows.mean(0)),
    "max": (aggregate.segment_max, lambda rows: rows.amax(0)),
    "std": (aggregate.segment_std, lambda rows: rows.std(0, unbiased=False)),
}


@pytest.mark.parametrize("name", REDUCE)
@settings(max_examples=25, deadline=None)
@given(index=st.lists(st.integers(0, 5), max_size=12), seed=st.integers(0, 99))
def test_each_reduction_equals_a_loop_over_segments(name, index, seed):
    reduce, oracle = REDUCE[name]
    place = torch.tensor(index, dtype=torch.long)
    values = torch.randn(len(index), 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = reduce(values, place, 6)
    assert found.shape == (6, 2, 3)
    for segment in range(6):
        rows = values[place == segment]
        expected = oracle(rows) if len(rows) else torch.zeros(2, 3, dtype=torch.float64)
        torch.testing.assert_close(found[segment], expected, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sorted_and_indexed_sums_agree(dtype):
    values, index = torch.randn(40, 5).to(dtype), torch.randint(0, 9, (40,))
    first = aggregate.segment_sum(values, index, 11, "indexed")
    second = aggregate.segment_sum(values, index, 11, "sorted")
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(first, second, atol=tolerance, rtol=tolerance)
    assert first.dtype == second.dtype == dtype


@pytest.mark.parametrize("method", ["indexed", "sorted"])
@pytest.mark.parametrize("reduce", [aggregate.segment_sum, aggregate.segment_mean, aggregate.segment_softmax])
def test_gradients(reduce, method):
    values = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([0, 3, 3, 0, 1, 1, 1])
    assert torch.autograd.gradcheck(lambda v: reduce(v, index, 5, method), (values,))


@pytest.mark.parametrize("reduce", [aggregate.segment_max, aggregate.segment_std])
def test_gradients_of_maximum_and_deviation(reduce):
    values = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: reduce(v, torch.tensor([0, 3, 3, 0, 1, 1, 1]), 5), (values,))


def test_deviation_of_a_single_row_has_a_finite_gradient():
    values = torch.randn(1, 2, requires_grad=True)
    aggregate.segment_std(values, torch.tensor([0]), 1).sum().backward()
    assert values.grad.isfinite().all()


def test_softmax_weights_of_a_segment_add_to_one_and_survive_large_logits():
    logits = torch.tensor([1e4, -1e4, 1e4, 3.0])
    weights = aggregate.segment_softmax(logits, torch.tensor([0, 0, 0, 2]), 3)
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.0, 0.5, 1.0]))


def test_softmax_of_a_segment_that_is_masked_out_is_zero():
    weights = aggregate.segment_softmax(torch.tensor([-torch.inf, -torch.inf, 0.0]), torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.0, 1.0]))


def test_softmax_of_16_bit_logits_is_computed_in_float32():
    logits = torch.randn(300).bfloat16()
    index = torch.zeros(300, dtype=torch.long)
    exact = logits.float().softmax(0).bfloat16()
    assert torch.equal(aggregate.segment_softmax(logits, index, 1), exact)


def test_the_same_bits_twice():
    values, index = torch.randn(500, 8), torch.randint(0, 20, (500,))
    for method in ("indexed", "sorted"):
        assert torch.equal(*(aggregate.segment_sum(values, index, 20, method) for _ in range(2)))
