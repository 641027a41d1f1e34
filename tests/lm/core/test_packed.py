"""The packed decoder and its compiled loops against the plain forms, over shapes, formats and threads."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from heliograph.lm.core import packed as packed_module
from heliograph.lm.core.config import DecoderConfig, RopeSpec
from heliograph.lm.core.decoder import CachedAttention, Decoder, rotate, rotation
from heliograph.lm.core.fused_cpu import add_and_norm, gated_silu, rotate_heads
from heliograph.lm.core.packed import PackedDecoder
from heliograph.lm.core.vector_numba import array, exponential, in_parts, kernel, narrow, wide

LLAMA = DecoderConfig(
    "llama",
    vocabulary=97,
    layers=3,
    hidden=48,
    feed_forward=80,
    heads=6,
    kv_heads=2,
    head_dim=16,
    context=512,
    norm_eps=1e-5,
    rope=RopeSpec(1e4, 16),
)
SHAPES = {
    "llama": LLAMA,
    "pairs of neighbours": replace(LLAMA, rope=RopeSpec(1e4, 16, interleaved=True)),
    "part of the channels turns": replace(LLAMA, rope=RopeSpec(1e4, 10)),
    "tied": replace(LLAMA, tied=True),
    "qwen2": replace(LLAMA, architecture="qwen2", qkv_bias=True),
    "qwen3": replace(LLAMA, architecture="qwen3", qk_norm=True),
    "gemma3": replace(
        LLAMA,
        architecture="gemma3",
        qk_norm=True,
        post_norms=True,
        activation="gelu",
        embed_scale=48**0.5,
        query_scale=24**-0.5,
        window=5,
        global_every=2,
        local_rope=RopeSpec(1e3, 16),
    ),
}
FORMATS = [torch.float32, torch.bfloat16]


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr("heliograph.lm.core.vector_numba.PART", 1)  # parts of single rows too
    yield
    torch.set_num_threads(before)


def made(config, dtype=torch.float32):
    torch.manual_seed(0)
    decoder = Decoder(config).eval()
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            weight.copy_(torch.randn_like(weight) * 0.15 + ("norm" in name))
    return decoder.to(dtype).requires_grad_(False)


class Ragged:
    """One sequence on one axis, as the engine's attention takes it."""

    def __init__(self):
        self.plain = CachedAttention()

    def attend(self, layer, q, k, v, window=None):
        return self.plain.attend(layer, q[None], k[None], v[None], window)[0]


def passed(decoder, tokens):
    with torch.inference_mode():
        positions = torch.arange(len(tokens))
        hidden = decoder(decoder.embed(tokens), positions, Ragged())
        return hidden.float(), decoder.logits(hidden)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 7, 300])  # on both sides of where packed weights are used
def test_packed_equals_plain(shape, count, threads):
    decoder = made(SHAPES[shape])
    tokens = torch.randint(97, (count,), generator=torch.Generator().manual_seed(count))
    assert PackedDecoder.fits(decoder)
    for found, wanted in zip(passed(PackedDecoder(decoder), tokens), passed(decoder, tokens), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_packed_bfloat16_is_no_further_from_float32_than_plain_bfloat16(shape):
    decoder = made(SHAPES[shape], torch.bfloat16)
    tokens = torch.randint(97, (40,), generator=torch.Generator().manual_seed(3))
    exact, _ = passed(decoder.float(), tokens)
    decoder = decoder.bfloat16()
    own, plain = ((passed(form, tokens)[0] - exact).square().mean() for form in (PackedDecoder(decoder), decoder))
    assert own < 1.1 * plain
    assert own < 0.01 * exact.square().mean()


@pytest.mark.parametrize("dtype", FORMATS)
def test_without_onednn_it_is_the_same(dtype, monkeypatch):
    decoder = made(LLAMA, dtype)
    tokens = torch.arange(9)
    wanted = passed(PackedDecoder(decoder), tokens)
    monkeypatch.setattr(packed_module, "_packs", lambda dtype: False)
    for found, other in zip(passed(PackedDecoder(decoder), tokens), wanted, strict=True):
        tolerance = 1e-4 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(found, other, atol=tolerance, rtol=tolerance)


def test_copies_are_shared_until_weights_change_and_end_with_the_model():
    known = packed_module._KNOWN
    decoder = made(LLAMA)
    first, second = PackedDecoder(decoder), PackedDecoder(decoder)
    assert first._head._packed is not None
    assert first._head._packed is second._head._packed
    tokens = torch.arange(9)
    with torch.no_grad():
        decoder.head.weight.mul_(2)
    torch.testing.assert_close(passed(PackedDecoder(decoder), tokens)[1], 2 * passed(first, tokens)[1])
    layers = [module for module in decoder.modules() if module in known]
    assert len(layers) == 4 * LLAMA.layers + 1
    before = len(known)
    del decoder, first, second, layers
    gc.collect()
    assert len(known) <= before - 4 * LLAMA.layers - 1


def test_without_copies_it_takes_no_memory_and_is_the_same():
    decoder = made(LLAMA)
    before = len(packed_module._KNOWN)
    bare = PackedDecoder(decoder, copies=False)
    assert len(packed_module._KNOWN) == before
    tokens = torch.arange(9)
    for found, wanted in zip(passed(bare, tokens), passed(decoder, tokens), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_what_it_is_not_made_for():
    assert not PackedDecoder.fits(made(LLAMA, torch.float16))
    assert not PackedDecoder.fits(made(LLAMA).to("meta"))


def test_embeddings_given_are_not_changed():
    decoder = made(LLAMA)
    embeds = decoder.embed(torch.arange(6))
    before = embeds.clone()
    PackedDecoder(decoder)(embeds, torch.arange(6), Ragged())
    assert torch.equal(embeds, before)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("count", [1, 3, 65])
def test_loops_equal_the_plain_operations(dtype, count, threads):
    torch.manual_seed(count)
    x, delta, weight = torch.randn(count, 48), torch.randn(count, 48).to(dtype), torch.randn(48).to(dtype)
    near = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-6, "rtol": 2**-8}  # one rounding
    wanted = x + delta.float()
    normed = functional.rms_norm(wanted, (48,), weight.float(), 1e-5)
    found = add_and_norm(x, delta, weight, 1e-5)
    torch.testing.assert_close(x, wanted)
    torch.testing.assert_close(found.float(), normed, **near)
    again = add_and_norm(x, None, weight, 1e-5)
    torch.testing.assert_close(x, wanted)
    torch.testing.assert_close(again.float(), normed, **near)
    both = (torch.randn(count, 160) * 30).to(dtype)
    gate, up = both.float().chunk(2, dim=-1)
    torch.testing.assert_close(gated_silu(both).float(), functional.silu(gate) * up, **near)
    heads = torch.randn(count, 5, 16).to(dtype)
    for spec in (RopeSpec(1e4, 16), RopeSpec(1e4, 16, interleaved=True), RopeSpec(1e4, 6)):
        turn = rotation(torch.arange(count) * 7, spec)
        found = heads.clone()
        rotate_heads(found, 3, turn, spec.interleaved)
        torch.testing.assert_close(found[:, :3], rotate(heads[:, :3], turn, spec), atol=1e-6, rtol=2**-7)
        assert torch.equal(found[:, 3:], heads[:, 3:])


@kernel
def _rounded(x, out):
    for i in range(len(x)):
        out[i] = narrow(out, x[i])


@kernel
def _widened(x, out):
    for i in range(len(x)):
        out[i] = wide(x[i])


@kernel
def _exponentials(x, out):
    for i in range(len(x)):
        out[i] = exponential(x[i])


def test_rounding_is_that_of_torch_for_any_number():
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    edges = np.array(
        [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF, 1, 0x80000001, 0x3F808000, 0x3F818000]
    )
    halves = np.arange(2**16, dtype=np.uint32) << 16
    x = torch.from_numpy(np.concatenate([bits, edges.astype(np.uint32), halves | 0x8000, halves]).view(np.float32))
    found = torch.empty(len(x), dtype=torch.bfloat16)
    _rounded(x.numpy(), array(found))
    wanted = x.bfloat16()
    number = ~wanted.isnan()
    assert torch.equal(number, ~found.isnan())
    assert torch.equal(found[number].view(torch.int16), wanted[number].view(torch.int16))
    back = torch.empty(len(x))
    _widened(array(found), back.numpy())
    assert torch.equal(back[number], wanted[number].float())


def test_exponential_is_near_and_bounded():
    x = np.concatenate([np.linspace(-87, 88, 100_001), [0.0, -1e-8, 1e-8]]).astype(np.float32)
    found = np.empty_like(x)
    _exponentials(x, found)
    assert np.abs(found / np.exp(x.astype(np.float64)) - 1).max() < 2e-7
    _exponentials(np.array([-np.inf, -1e30, 1e30, np.inf], dtype=np.float32), out := np.empty(4, dtype=np.float32))
    assert np.isfinite(out).all()
    assert (out[:2] < 2e-38).all()


@pytest.mark.parametrize("weights", [None, [0, 0, 0, 0, 9], [9, 0, 0, 0, 0], [1, 5, 1, 5, 1]])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_parts_are_all_rows_once(count, weights, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    seen = []
    in_parts(lambda first, last: seen.append(range(first, last)), 5, 1 << 30, weights)
    assert sorted(row for part in seen for row in part) == list(range(5))


def test_a_part_that_fails_is_heard_of(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def fails(first, last):
        if first:
            raise ValueError("second part")

    with pytest.raises(ValueError, match="second part"):
        in_parts(fails, 4, 1 << 30)
