"""Attention within a window: both ways of computing it equal the whole matrix of scores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from heliograph.serving.prfaas.windowed import windowed_attention


def whole(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> torch.Tensor:
    at = torch.arange(len(k) - len(q), len(k))[:, None]
    back = at - torch.arange(len(k))
    queries, keys, values = (part.transpose(0, 1)[None] for part in (q, k, v))
    allowed = (back >= 0) & (back < window)
    heard = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed, enable_gqa=True)
    return heard[0].transpose(0, 1)


@pytest.mark.parametrize("at_once", [True, False])
@given(
    tokens=st.integers(1, 300),
    past=st.integers(0, 200),
    window=st.integers(1, 150),
    groups=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_each_token_hears_its_window_and_no_more(
    at_once: bool, tokens: int, past: int, window: int, groups: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(tokens, 4, 8, generator=draw)
    k, v = torch.randn(2, past + tokens, groups, 8, generator=draw)
    heard = windowed_attention(q, k, v, window, at_once=at_once)
    torch.testing.assert_close(heard, whole(q, k, v, window), rtol=1e-4, atol=1e-5)
