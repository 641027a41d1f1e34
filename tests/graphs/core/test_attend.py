import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput, MemoryEstimateError
from heliograph.graphs.core import attend as module
from heliograph.graphs.core.attend import (
    ConstantScore,
    DotScore,
    GatedScore,
    GritScore,
    L2Score,
    attend,
    attend_with_pairs,
    choose_backend,
)
from heliograph.graphs.core.support import complete_support, given_support, khop_support

from .graphs_for_tests import odd_batches

H, D = 2, 3
SCORES = {
    "dot": (DotScore(), lambda e: (e, H)),
    "l2": (L2Score(), lambda e: (e, H)),
    "constant": (ConstantScore(), lambda e: (e, H)),
    "gated": (GatedScore(), lambda e: (e, H, D)),
    "grit": (GritScore(H, D).double(), lambda e: (e, H, 2 * D)),
}


def states(support, seed, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(support.num_vertices, H, D, generator=random, dtype=dtype) for _ in range(3)]


@pytest.mark.parametrize("aggregate", ["softmax", "ratio", "sum", "mean"])
@pytest.mark.parametrize("name", SCORES)
@settings(max_examples=10, deadline=None)
@given(sample=odd_batches(), seed=st.integers(0, 99), paired=st.booleans())
def test_back_ends_agree_in_values_and_gradients(name, aggregate, sample, seed, paired):
    edge_index, batch, _ = sample
    support = khop_support(edge_index, len(batch), 2, batch, include_self=bool(seed % 2))
    score, shape = SCORES[name]
    inputs = [value.requires_grad_() for value in states(support, seed)]
    if paired or name == "grit":
        inputs.append(torch.randn(*shape(support.num_edges), dtype=torch.float64, requires_grad=True))
    results = []
    for backend in ("edges", "dense"):
        found = attend_with_pairs(support, *inputs, *([None] * (4 - len(inputs))), score, aggregate, backend)
        total = found.out.square().sum()
        total = total if found.pair is None else total + found.pair_out.sum() + found.pair.square().sum()
        grads = torch.autograd.grad(total, inputs, allow_unused=True)
        results.append((found, [torch.zeros(()) if g is None else g for g in grads]))
    (edges, edge_grads), (dense, dense_grads) = results
    for first, second in ((edges.out, dense.out), (edges.pair, dense.pair), (edges.pair_out, dense.pair_out)):
        assert (first is None) == (second is None)
        if first is not None:
            torch.testing.assert_close(first, second)
    for first, second in zip(edge_grads, dense_grads, strict=True):
        torch.testing.assert_close(first, second, check_device=False)


def test_complete_dot_product_attention_equals_torch():
    support = complete_support(5)
    q, k, v = states(support, 0)
    expected = torch.nn.functional.scaled_dot_product_attention(*(t.transpose(0, 1) for t in (q, k, v))).transpose(0, 1)
    for backend in ("edges", "dense"):
        torch.testing.assert_close(attend(support, q, k, v, backend=backend), expected)


def test_gradcheck_through_the_edge_list():
    support = given_support(torch.tensor([[0, 1, 2, 2, 0], [1, 0, 1, 1, 0]]), 4)
    inputs = [value.requires_grad_() for value in states(support, 1)]
    assert torch.autograd.gradcheck(lambda q, k, v: attend(support, q, k, v, backend="edges"), inputs)


def test_a_vertex_that_hears_nobody_gets_zero():
    support = given_support(torch.tensor([[0], [1]]), 3)
    for aggregate in ("softmax", "ratio", "sum", "mean"):
        for backend in ("edges", "dense"):
            out = attend(support, *states(support, 2), aggregate=aggregate, backend=backend)
            assert torch.equal(out[[0, 2]], torch.zeros(2, H, D, dtype=torch.float64))


def test_no_edges_at_all():
    support = given_support(torch.zeros(2, 0, dtype=torch.long), 3)
    for backend in ("edges", "dense"):
        assert attend(support, *states(support, 0), backend=backend).eq(0).all()


def test_a_graph_is_answered_alone_as_in_a_batch():
    edge_index, batch = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 0, 4, 3]]), torch.tensor([0, 0, 0, 1, 1])
    together = given_support(edge_index, 5, batch)
    q, k, v = states(together, 3)
    alone = given_support(edge_index[:, :3], 3)
    for backend in ("edges", "dense"):
        found = attend(together, q, k, v, backend=backend)[:3]
        torch.testing.assert_close(found, attend(alone, q[:3], k[:3], v[:3], backend=backend))


@pytest.mark.parametrize("backend", ["edges", "dense"])
def test_bfloat16_stays_close_to_float32(backend):
    support = complete_support(6)
    q, k, v = states(support, 4, torch.float32)
    small = attend(support, q.bfloat16(), k.bfloat16(), v.bfloat16(), backend=backend)
    assert small.dtype == torch.bfloat16
    torch.testing.assert_close(small.float(), attend(support, q, k, v, backend=backend), atol=0.05, rtol=0.05)


def test_back_end_follows_density_and_parallel_edges():
    assert choose_backend(complete_support(8), H, D) == "dense"
    assert choose_backend(given_support(torch.tensor([[0], [1]]), 100), H, D) == "edges"
    parallel = given_support(torch.tensor([[0, 0], [1, 1]]), 2)
    assert choose_backend(parallel, H, D) == "edges"
    with pytest.raises(BadInput, match="parallel"):
        attend(parallel, *states(parallel, 0), backend="dense")


def test_the_byte_budget_refuses_with_a_number(monkeypatch):
    monkeypatch.setattr(module, "ATTEND_BUDGET_BYTES", 100)
    with pytest.raises(MemoryEstimateError, match="64 pairs"):
        attend(complete_support(8), *states(complete_support(8), 0))


def test_shapes_that_do_not_fit_are_refused():
    support = complete_support(3)
    q, k, v = states(support, 0)
    with pytest.raises(BadInput, match="v must be"):
        attend(support, q, k, v[:2])
    with pytest.raises(BadInput, match="9 edges"):
        attend(support, q, k, v, torch.zeros(4, H, dtype=torch.float64))
    with pytest.raises(BadInput, match="2 D = 6"):
        attend(support, q, k, v, score=GritScore(H, D).double())


def test_grit_states_and_slopes_are_those_of_the_formula_where_z_is_zero_and_where_it_is_not():
    torch.manual_seed(0)
    q = torch.randn(3, 1, H, D, dtype=torch.float64)
    k, scale, shift = (torch.randn(*shape, H, D, dtype=torch.float64) for shape in ((1, 4), (3, 4), (3, 4)))
    scale[0, 0] = 0.0  # z = 0 there
    score = GritScore(H, D, clamp=None).double()
    inputs = [part.requires_grad_() for part in (q, k, scale, shift)]
    found = score(q, k, torch.cat([scale, shift], dim=-1)).pair
    z = (q + k) * scale
    expected = torch.relu(z.sign() * ((z.abs() + 1e-6).sqrt() - 1e-3) + shift)
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=0)
    weight = torch.randn_like(expected)
    slopes = [torch.autograd.grad((out * weight).sum(), inputs) for out in (found, expected)]
    for ours, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
