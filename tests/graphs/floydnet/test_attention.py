"""Pivotal attention: equal to its reference in values and gradients, masks, cap, dropout, budget."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput, MemoryEstimateError
from heliograph.graphs.floydnet.attention import (
    AttentionSize,
    estimate_bytes,
    largest_chunk,
    pivotal_attention,
    pivotal_attention3,
    reference_attention,
    reference_attention3,
)

B, H, D, E = 2, 2, 3, 2


def random_tensors(shapes, seed=0, dtype=torch.float64, requires_grad=True):
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [tensor.requires_grad_(requires_grad) for tensor in tensors]


def pair_inputs(i=4, k=3, j=5, **options):
    shapes = [(B, H, i, k, D), (B, H, i, j, D), (B, H, j, k, D), (B, H, i, j, E), (B, H, j, k, E)]
    return random_tensors(shapes, **options)


def triple_inputs(i=3, j=4, k=2, p=5, **options):
    keys = [(B, H, p, j, k), (B, H, i, p, k), (B, H, i, j, p)]
    shapes = [(B, H, i, j, k, D)] + [(*s, D) for s in keys] + [(*s, E) for s in keys]
    return random_tensors(shapes, **options)


def gradients(out, inputs):
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    return torch.autograd.grad((out * weights).sum(), inputs)


def assert_same(out, expected, inputs):
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)
    for mine, theirs in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-11)


@settings(max_examples=40, deadline=None)
@given(
    i=st.integers(1, 5),
    k=st.integers(1, 4),
    j=st.integers(1, 5),
    chunk=st.one_of(st.none(), st.integers(1, 7)),
    cap=st.sampled_from([None, 0.7, 30.0]),
    masked=st.sampled_from(["none", "bool", "additive", "full"]),
    seed=st.integers(0, 1000),
)
def test_pairs_equal_the_reference_in_values_and_gradients(i, k, j, chunk, cap, masked, seed):
    inputs = pair_inputs(i, k, j, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(B, 1, i, 1, j, generator=generator) > 0.4
    if masked == "full":
        keep = torch.rand(B, H, i, k, j, generator=generator) > 0.4
    mask = {"none": None, "bool": keep, "full": keep}.get(masked)
    if masked == "additive":
        mask = torch.randn(keep.shape, generator=generator, dtype=torch.float64).masked_fill(~keep, -math.inf)
    out = pivotal_attention(*inputs, attn_mask=mask, softmax_cap=cap, chunk=chunk)
    assert_same(out, reference_attention(*inputs, mask, None, cap), inputs)


@settings(max_examples=20, deadline=None)
@given(chunk=st.one_of(st.none(), st.integers(1, 4)), cap=st.sampled_from([None, 0.7]), masked=st.booleans())
def test_triples_equal_the_reference_in_values_and_gradients(chunk, cap, masked):
    inputs = triple_inputs()
    mask = torch.rand(B, 1, 3, 1, 1, 5, generator=torch.Generator().manual_seed(0)) > 0.4 if masked else None
    out = pivotal_attention3(*inputs, attn_mask=mask, softmax_cap=cap, chunk=chunk)
    assert_same(out, reference_attention3(*inputs, mask, None, cap), inputs)


def test_gradients_agree_with_finite_differences():
    inputs = pair_inputs(3, 2, 3)
    bias = torch.randn(1, 1, 3, 1, 3, dtype=torch.float64, requires_grad=True)

    def attend(bias, *tensors):
        return pivotal_attention(*tensors, attn_mask=bias, softmax_cap=2.0, chunk=2)

    assert torch.autograd.gradcheck(attend, [bias, *inputs])


def test_triple_gradients_agree_with_finite_differences():
    inputs = [x[:1, :1].detach().requires_grad_() for x in triple_inputs(2, 2, 2, 2)]
    assert torch.autograd.gradcheck(lambda *tensors: pivotal_attention3(*tensors, chunk=1), inputs)


def test_a_row_without_pivots_gives_zero_and_finite_gradients():
    inputs = pair_inputs()
    for mask in (torch.zeros(4, 1, 5, dtype=torch.bool), torch.full((4, 1, 5), -math.inf, dtype=torch.float64)):
        out = pivotal_attention(*inputs, attn_mask=mask, chunk=2)
        assert (out == 0).all()
        assert all((gradient == 0).all() for gradient in gradients(out, inputs))


def test_boolean_and_additive_masks_agree_under_a_cap():
    inputs = pair_inputs()
    keep = torch.rand(B, 1, 4, 1, 5, generator=torch.Generator().manual_seed(1)) > 0.5
    added = torch.zeros(keep.shape, dtype=torch.float64).masked_fill(~keep, -math.inf)
    one, other = (pivotal_attention(*inputs, attn_mask=m, softmax_cap=1.5) for m in (keep, added))
    torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_no_pivots_at_all_gives_zero():
    assert (pivotal_attention(*pair_inputs(j=0)) == 0).all()


def test_float64_stays_float64_and_sixteen_bits_stay_finite():
    assert pivotal_attention(*pair_inputs()).dtype == torch.float64
    for dtype in (torch.bfloat16, torch.float16):
        inputs = pair_inputs(dtype=dtype)
        out = pivotal_attention(*inputs, scale=100.0)
        assert out.dtype == dtype
        assert out.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients(out, inputs))


def test_sixteen_bit_softmax_runs_in_float32():
    inputs = [x.detach() for x in pair_inputs(dtype=torch.bfloat16)]
    out = pivotal_attention(*inputs)
    exact = reference_attention(*(x.double() for x in inputs))
    assert (out.double() - exact).abs().max() < 0.05


def test_dropout_draws_the_same_noise_in_forward_and_backward():
    inputs = pair_inputs()
    torch.manual_seed(3)
    seed = torch.get_rng_state()

    def attend(*tensors):
        torch.set_rng_state(seed)
        return pivotal_attention(*tensors, dropout=0.5, chunk=2)

    assert torch.autograd.gradcheck(attend, inputs)


def test_dropout_keeps_the_mean():
    inputs = [x.detach() for x in pair_inputs()]
    torch.manual_seed(0)
    mean = torch.stack([pivotal_attention(*inputs, dropout=0.3) for _ in range(3000)]).mean(dim=0)
    assert (mean - pivotal_attention(*inputs)).abs().max() < 0.15


@pytest.mark.parametrize("position", range(1, 5))
def test_a_shape_that_does_not_fit_is_refused_by_shape(position):
    inputs = [x.detach() for x in pair_inputs()]
    inputs[position] = inputs[position][:, :, :, :-1]
    with pytest.raises(BadInput, match=r"must have shape .* got"):
        pivotal_attention(*inputs)


@pytest.mark.parametrize(
    "options",
    [
        {"chunk": 0},
        {"dropout": 1.0},
        {"softmax_cap": -1.0},
        {"attn_mask": torch.ones(7, dtype=torch.bool)},
        {"attn_mask": torch.ones(5, dtype=torch.long)},
    ],
)
def test_a_bad_option_is_refused(options):
    with pytest.raises(BadInput):
        pivotal_attention(*pair_inputs(), **options)


def test_the_budget_is_checked_before_allocation_and_names_the_chunk_that_fits():
    size = AttentionSize(batch=1, heads=1, tuple_axes=(64, 64), pivots=64, channels=4, item_bytes=8)
    budget = estimate_bytes(size, chunk=8)
    assert largest_chunk(size, budget) == 8
    inputs = random_tensors([(1, 1, 64, 64, 4)] * 5)
    with pytest.raises(MemoryEstimateError, match="chunk=8 would fit"):
        pivotal_attention(*inputs, byte_budget=budget)
    assert pivotal_attention(*inputs, byte_budget=budget, chunk=8).shape == (1, 1, 64, 64, 4)


def test_a_budget_that_nothing_fits_says_so():
    with pytest.raises(MemoryEstimateError, match="not even chunk=1"):
        pivotal_attention(*pair_inputs(), byte_budget=10)


def test_an_estimate_above_any_machine_costs_nothing():
    size = AttentionSize(batch=64, heads=64, tuple_axes=(10**5, 10**5), pivots=10**5, channels=64)
    assert estimate_bytes(size, form="five_index") > estimate_bytes(size, chunk=1)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("backward", [False, True])
def test_the_estimate_grows_with_chunk_and_backward(order, backward):
    size = AttentionSize(batch=2, heads=2, tuple_axes=(16,) * order, pivots=16, channels=8)
    estimates = [estimate_bytes(size, chunk, backward=backward) for chunk in (1, 4, 16)]
    assert estimates == sorted(estimates)
    assert estimates[-1] == estimate_bytes(size, None, backward=backward)
    assert estimate_bytes(size, 4, backward=True) > estimate_bytes(size, 4, backward=False)
