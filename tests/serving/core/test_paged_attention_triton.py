"""The CUDA kernels against plain torch: on a GPU as compiled, elsewhere by Triton's interpreter."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
COMPARE = """
import torch
from heliograph.serving.core.paged_attention import BlockCache, PagedAttention, PagedBatch, attend_rows

device = "cuda" if torch.cuda.is_available() else "cpu"
for heads, groups, width, size, counts, contexts, dtype, window in [
    (4, 2, 16, 4, (1, 1, 1), (1, 7, 33), torch.float32, None),
    (3, 1, 16, 16, (1, 5, 40), (70, 5, 61), torch.float32, None),
    (2, 2, 32, 1, (3,), (3,), torch.float32, None),
    (8, 2, 16, 16, (1, 1, 34), (5, 40, 34), torch.bfloat16, None),
    (4, 2, 16, 4, (1, 1, 40, 70), (9, 75, 90, 70), torch.float32, 7),
    (2, 1, 16, 16, (1, 5), (60, 61), torch.float32, 40),
]:
    if dtype == torch.bfloat16 and device == "cpu":
        continue  # the interpreter has no products of bfloat16
    torch.manual_seed(0)
    blocks = [-(-c // size) for c in contexts]
    order = torch.randperm(sum(blocks)).split(blocks)
    cache = BlockCache(1, sum(blocks), size, groups, width, dtype, device)
    cache.data.normal_()
    tables = torch.zeros(len(contexts), max(blocks), dtype=torch.int32)
    slots = []
    for row, (count, context, own) in enumerate(zip(counts, contexts, order)):
        tables[row, : len(own)] = own
        slots += [int(own[t // size]) * size + t % size for t in range(context - count, context)]
    whole = torch.randn(sum(counts), heads + 2 * groups, width).to(device, dtype)
    q, k, v = whole.split([heads, groups, groups], dim=1)
    decodes = sum(1 for c in counts if c == 1)
    batch = PagedBatch(
        torch.tensor(slots, device=device), tables.to(device), torch.tensor(contexts, dtype=torch.int32, device=device),
        counts, decodes,
    )
    before = cache.data.clone()
    plain = PagedAttention(cache, batch, compiled=False)
    wanted = plain.attend(0, q, k, v, window=window)
    kept = cache.data.clone()
    cache.data.copy_(before)
    fast = PagedAttention(cache, batch)
    assert fast.kernels is not None
    found = fast.attend(0, q, k, v, window=window)
    assert torch.equal(cache.data, kept)
    wide = dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, atol=3e-2 if wide else 1e-5, rtol=3e-2 if wide else 1e-4)
print("equal")
"""


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_kernels_equal_plain_attention_over_blocks() -> None:
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run([sys.executable, "-c", COMPARE], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "equal", done.stderr[-3000:]
