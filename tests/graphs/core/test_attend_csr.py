"""The Triton kernel against the edge list: on a GPU as compiled, elsewhere by Triton's interpreter."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from heliograph.errors import BadInput
from heliograph.graphs.core.attend import GritScore, attend, choose_backend
from heliograph.graphs.core.support import given_support

HAS_TRITON = importlib.util.find_spec("triton") is not None
COMPARE = """
import torch
from heliograph.graphs.core.attend import attend
from heliograph.graphs.core.support import given_support

device = "cuda" if torch.cuda.is_available() else "cpu"
for heads, dim, edges, size, dtype in [
    (2, 3, 40, 12, torch.float32),
    (4, 16, 90, 9, torch.float32),
    (1, 5, 0, 4, torch.float32),
    (1, 1, 1, 1, torch.float32),
    (3, 8, 120, 5, torch.float32),
    (4, 16, 90, 9, torch.bfloat16),
]:
    random = torch.Generator().manual_seed(edges)
    edge_index = torch.randint(size, (2, edges), generator=random).to(device)  # with loops and parallel edges
    edge_index[1][edge_index[1] == size - 1] = 0  # and a vertex that hears nobody
    support = given_support(edge_index, size)
    for biased in (False, True):
        shapes = [(size, heads, dim)] * 3 + [(edges, heads)] * biased
        inputs = [torch.randn(*s, generator=random).to(device, dtype).requires_grad_() for s in shapes]
        slope = torch.randn(size, heads, dim, generator=random).to(device, dtype)
        found = []
        for backend in ("edges", "csr", "csr"):
            out = attend(support, *inputs, backend=backend)
            found.append([out, *torch.autograd.grad(out, inputs, slope, allow_unused=True)])
        wide = dtype == torch.bfloat16
        for plain, first, again in zip(*found):
            assert first is not None and first.dtype == dtype
            plain = torch.zeros_like(first) if plain is None else plain
            torch.testing.assert_close(plain, first, atol=6e-2 if wide else 2e-6, rtol=6e-2 if wide else 1e-4)
            assert torch.equal(first, again)
        if size > 1:
            assert not found[1][0][size - 1].any()
print("equal")
"""


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_kernel_equals_the_edge_list_in_values_and_gradients():
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run([sys.executable, "-c", COMPARE], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "equal", done.stderr[-3000:]


def test_kernel_is_refused_on_a_cpu_and_for_other_scores():
    support = given_support(torch.tensor([[0, 1], [1, 0]]), 2)
    q = torch.randn(2, 1, 4)
    with pytest.raises(BadInput, match="does not apply here"):
        attend(support, q, q, q, torch.randn(2, 1, 8), GritScore(1, 4), backend="csr")
    with pytest.raises(BadInput, match="one shape and one type"):
        attend(support, q, q, torch.randn(2, 1, 3), backend="csr")
    with pytest.raises(BadInput, match=r"runs on a GPU|triton is not installed"):
        attend(support, q, q, q, backend="csr")
    wide = torch.randn(2, 8, 200)
    with pytest.raises(BadInput, match="exceed 1024"):
        attend(support, wide, wide, wide, backend="csr")


def test_a_large_support_that_the_edge_list_cannot_hold_is_given_to_the_kernel(monkeypatch):
    from heliograph.graphs.core import attend as module

    support = given_support(torch.randint(2000, (2, 20_000), generator=torch.Generator().manual_seed(0)), 2000)
    assert choose_backend(support, 4, 16, csr=True) == "csr"
    assert choose_backend(support, 4, 16) == "edges"
    monkeypatch.setattr(module, "ATTEND_BUDGET_BYTES", 2**20)
    assert choose_backend(support, 4, 16, csr=True) == "csr"
