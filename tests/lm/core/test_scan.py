import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.lm import selective_scan, ssd_scan
from heliograph.lm.core import scan as module
from heliograph.lm.core.scan import associative_scan

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def inputs(rows=2, steps=7, channels=3, state=4, seed=0, dtype=torch.float64, device="cpu"):
    """u, dt, A, B, C and D."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(device, dtype)

    dt = torch.nn.functional.softplus(normal(rows, steps, channels))
    return (
        normal(rows, steps, channels),
        dt,
        -normal(channels, state).exp(),
        normal(rows, steps, state),
        normal(rows, steps, state),
        normal(channels),
    )


def borders(rows, steps, seed=0, share=0.3):
    return torch.rand(rows, steps, generator=torch.Generator().manual_seed(seed)) < share


def with_gradients(call, values, weights):
    values = [value.detach().requires_grad_() for value in values]
    y = call(*values)
    return y, torch.autograd.grad((y * weights).sum(), values)


def agree(first, second, **tolerance):
    torch.testing.assert_close(first[0], second[0], **tolerance)
    for one, other in zip(first[1], second[1], strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 4),
    steps=st.integers(1, 40),
    channels=st.integers(1, 3),
    state=st.integers(1, 4),
    seed=st.integers(0, 10**6),
    reverse=st.booleans(),
    resets=st.booleans(),
    block=st.sampled_from([4, 60, 1 << 20]),
    lanes=st.sampled_from([1, 1 << 15]),
)
def test_chunked_equals_the_loop_in_values_and_gradients(
    rows, steps, channels, state, seed, reverse, resets, block, lanes
):
    values = inputs(rows, steps, channels, state, seed)
    reset = borders(rows, steps, seed) if resets else None
    weights = inputs(rows, steps, channels, state, seed + 1)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_NUMBERS", block)
        patch.setattr(module, "LANES", lanes)
        found = [
            with_gradients(lambda *v, b=b: selective_scan(*v, reset, reverse, b), values, weights)
            for b in ("reference", "chunked")
        ]
    agree(*found, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_are_those_of_finite_differences(backend, reverse):
    values = tuple(value.requires_grad_() for value in inputs(2, 5, 2, 3))
    reset = borders(2, 5)
    assert torch.autograd.gradcheck(lambda *v: selective_scan(*v, reset, reverse, backend), values)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("reverse", [False, True])
def test_packed_sequences_give_what_each_gives_alone(backend, reverse):
    lengths = [3, 1, 6, 2]
    u, dt, A, B, C, D = inputs(1, sum(lengths))
    reset = torch.zeros(1, sum(lengths), dtype=torch.bool)
    ends = torch.tensor(lengths).cumsum(0)
    reset[0, [0, *ends[:-1].tolist()]] = True
    weights = torch.randn_like(u)
    whole = with_gradients(
        lambda *v: selective_scan(v[0], v[1], A, v[2], v[3], D, reset, reverse, backend), (u, dt, B, C), weights
    )
    parts = [slice(int(end) - length, int(end)) for end, length in zip(ends, lengths, strict=True)]
    alone = [
        with_gradients(
            lambda *v: selective_scan(v[0], v[1], A, v[2], v[3], D, None, reverse, backend),
            (u[:, p], dt[:, p], B[:, p], C[:, p]),
            weights[:, p],
        )
        for p in parts
    ]
    joined = (
        torch.cat([one[0] for one in alone], 1),
        [torch.cat(rows, 1) for rows in zip(*(one[1] for one in alone), strict=True)],
    )
    agree(whole, joined)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_a_reverse_scan_is_a_scan_between_two_flips(backend):
    u, dt, A, B, C, D = inputs(2, 9)
    there = selective_scan(u, dt, A, B, C, D, reverse=True, backend=backend)
    flipped = selective_scan(u.flip(1), dt.flip(1), A, B.flip(1), C.flip(1), D, backend=backend)
    torch.testing.assert_close(there, flipped.flip(1))


def test_the_recurrence_by_hand():
    one = torch.ones(1, 3, 1, dtype=torch.float64)
    y = selective_scan(one, one, -torch.ones(1, 1, dtype=torch.float64), one, one, torch.tensor([0.5]).double())
    e = torch.exp(torch.tensor(-1.0, dtype=torch.float64))
    torch.testing.assert_close(y.flatten(), torch.stack([1 + 0 * e, 1 + e, 1 + e + e * e]) + 0.5)


def test_decays_that_underflow_give_finite_values_and_gradients():
    u, dt, A, B, C, D = inputs(1, 2000, 2, 2, dtype=torch.float32)
    values, weights = (u, 200 * dt, 50 * A, B, C, D), torch.randn_like(u)
    found = [
        with_gradients(lambda *v, b=b: selective_scan(*v, backend=b), values, weights) for b in ("reference", "chunked")
    ]
    assert all(value.isfinite().all() for value in (found[1][0], *found[1][1]))
    agree(*found, atol=1e-2, rtol=1e-4)


def test_bfloat16_inputs_keep_a_float32_state():
    u, dt, A, B, C, D = inputs(1, 3000, 2, 2, dtype=torch.float32)
    dt = dt * 0.01
    small = [value.bfloat16() for value in (u, dt, A, B, C, D)]
    y = selective_scan(*small)
    assert y.dtype == torch.bfloat16
    exact = selective_scan(*(value.double() for value in small))
    torch.testing.assert_close(y.double(), exact, atol=2e-2, rtol=1e-2)


def test_saved_bytes_grow_with_the_steps_alone():
    def saved(steps):
        values = [value.requires_grad_() for value in inputs(1, steps, 8, 16, dtype=torch.float32)]
        seen = {}

        def pack(tensor):
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            selective_scan(*values)
        return sum(seen.values())

    states = 4096 * 8 * 16 * 4
    assert saved(4096) < 0.6 * states
    assert saved(4096) == pytest.approx(4 * saved(1024), rel=0.1)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 17, 100])
def test_the_associative_scan_is_the_recurrence(steps, reverse):
    decay, inject = torch.rand(2, steps, 3).double(), torch.randn(2, steps, 3).double()
    start = torch.randn(2, 3).double()
    state, expected = start, torch.empty_like(inject)
    for k in reversed(range(steps)) if reverse else range(steps):
        state = decay[:, k] * state + inject[:, k]
        expected[:, k] = state
    torch.testing.assert_close(associative_scan(decay, inject, start, reverse), expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_one_scalar_a_head_is_a_selective_scan_with_equal_rates(reverse):
    heads, width, state, steps = 2, 3, 4, 6
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, steps, heads, width, generator=random, dtype=torch.float64)
    dt = torch.rand(1, steps, heads, generator=random, dtype=torch.float64)
    A = -torch.rand(heads, generator=random, dtype=torch.float64)
    B, C = (torch.randn(1, steps, state, generator=random, dtype=torch.float64) for _ in range(2))
    D, reset = torch.rand(heads, dtype=torch.float64), borders(1, steps)
    y = ssd_scan(x, dt, A, B, C, D, reset, reverse)
    for head in range(heads):
        many = torch.full((width, state), float(A[head]), dtype=torch.float64)
        alone = selective_scan(
            x[:, :, head], dt[:, :, head, None].expand(-1, -1, width), many, B, C, D[head].expand(width), reset, reverse
        )
        torch.testing.assert_close(y[:, :, head], alone)


def test_no_steps_and_no_rows_give_empty_answers():
    for rows, steps in ((0, 3), (2, 0)):
        u, dt, A, B, C, D = inputs(rows, steps)
        assert selective_scan(u, dt, A, B, C, D).shape == (rows, steps, 3)


def test_bad_input_is_refused():
    u, dt, A, B, C, D = inputs()
    with pytest.raises(BadInput, match="dt must be"):
        selective_scan(u, dt[:, :-1], A, B, C, D)
    with pytest.raises(BadInput, match="B must be"):
        selective_scan(u, dt, A, B[..., :-1], C, D)
    with pytest.raises(BadInput, match="boolean"):
        selective_scan(u, dt, A, B, C, D, torch.zeros(2, 7))
    with pytest.raises(BadInput, match="backend"):
        selective_scan(u, dt, A, B, C, D, backend="parallel")
    with pytest.raises(BadInput, match="triton"):
        selective_scan(u, dt, A, B, C, D, backend="triton")
    with pytest.raises(BadInput, match="ssd_scan needs"):
        ssd_scan(u, dt, A, B, C)


def test_importing_the_family_imports_no_torch_and_its_absence_names_the_install_line():
    def run(code):
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    result = run("import sys, heliograph.lm; assert 'torch' not in sys.modules")
    assert result.returncode == 0, result.stderr
    result = run("import sys; sys.modules['torch'] = None\nfrom heliograph.lm import selective_scan")
    assert "pip install 'heliograph[lm]'" in result.stderr


@needs_gpu
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1000, 64, 16), (300, 5, 48, 16), (3, 130, 7, 5), (2, 65, 33, 64)])
def test_triton_equals_the_loop_in_values_and_gradients(shape, resets, reverse):
    rows, steps = shape[:2]
    values = inputs(*shape, dtype=torch.float32, device="cuda")
    reset = borders(rows, steps, share=0.02).cuda() if resets else None
    weights = torch.randn_like(values[0])
    exact = with_gradients(
        lambda *v: selective_scan(*v, reset, reverse, "chunked"), [v.double() for v in values], weights.double()
    )
    found = with_gradients(lambda *v: selective_scan(*v, reset, reverse, "triton"), values, weights)
    for one, other in zip((found[0], *found[1]), (exact[0], *exact[1]), strict=True):
        scale = max(float(other.detach().abs().max()), 0.01)  # with one step two gradients are 0 but for rounding
        torch.testing.assert_close(one.double() / scale, other / scale, atol=2e-5, rtol=1e-3)


@needs_gpu
def test_triton_gives_the_same_bits_twice_and_takes_bfloat16():
    values = inputs(2, 300, 20, 16, dtype=torch.float32, device="cuda")
    weights = torch.randn_like(values[0])
    first, again = (with_gradients(lambda *v: selective_scan(*v, backend="triton"), values, weights) for _ in range(2))
    agree(first, again, atol=0, rtol=0)
    small = [value.bfloat16() for value in values]
    y = selective_scan(*small, backend="triton")
    exact = selective_scan(*(value.double() for value in small), backend="chunked")
    torch.testing.assert_close(y.double(), exact, atol=0.05, rtol=0.05)
