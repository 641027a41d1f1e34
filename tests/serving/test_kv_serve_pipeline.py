"""Keys and values through transform, quantiser and codec: bit by bit, or within the bound that the frame implies."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.serving.kv_serve import METHODS, CompressionPoint, KVPipeline, parts, restore
from heliograph.serving.kv_serve.codecs import CODECS, CodecError, make_codec, pack_levels, unpack_levels
from heliograph.serving.kv_serve.point import level_table, sliced
from heliograph.serving.kv_serve.quantizers import AbsMaxQuantizer, MinMaxQuantizer
from heliograph.serving.kv_serve.transforms import hadamard, make_transform, signs

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def cache(layers=2, tokens=24, heads=3, dim=16, dtype=torch.bfloat16, seed=0):
    draw = torch.Generator().manual_seed(seed)
    offsets = 3 * torch.randn(layers, 2, 1, heads, dim, generator=draw)
    return (torch.randn(layers, 2, tokens, heads, dim, generator=draw) + offsets).to(dtype)


def bits(x):
    return x.contiguous().view(torch.uint8)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_levels_come_back_from_every_codec(data):
    base = data.draw(st.integers(2, 256))
    levels = np.array(data.draw(st.lists(st.integers(0, base - 1), max_size=70)), dtype=np.uint8)
    for name in CODECS:
        codec = make_codec(name)
        assert np.array_equal(codec.decode(codec.encode(levels, base), len(levels), base), levels)


@pytest.mark.parametrize("base", [2, 3, 4, 5, 6, 8, 10, 12, 16, 32, 100, 256])
def test_packing_comes_close_to_the_logarithm_of_the_base(base):
    levels = np.random.default_rng(0).integers(0, base, 4800).astype(np.uint8)
    packed = pack_levels(levels, base)
    assert np.array_equal(unpack_levels(packed, len(levels), base), levels)
    assert len(packed) * 8 / len(levels) <= np.log2(base) * 1.25


@pytest.mark.parametrize("name", CODECS)
def test_bytes_that_no_codec_wrote_are_refused(name):
    codec = make_codec(name)
    good = codec.encode(np.arange(60, dtype=np.uint8) % 6, 6)
    for bad in (good[:-1], good + b"\xff", b""):
        with pytest.raises(CodecError):
            codec.decode(bad, 60, 6)


def test_a_byte_above_the_base_is_refused():
    with pytest.raises(CodecError, match="above"):
        unpack_levels(np.array([255], dtype=np.uint8), 3, 6, 1)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_without_a_quantiser_every_bit_comes_back(data):
    shape = [data.draw(st.integers(1, n)) for n in (3, 9, 3, 9)]
    dtype = data.draw(st.sampled_from(DTYPES))
    count = int(np.prod(shape)) * 2
    raw = np.frombuffer(data.draw(st.binary(min_size=count * 4, max_size=count * 4)), np.uint8).copy()
    kv = torch.from_numpy(raw).view(dtype)[:count].view(shape[0], 2, *shape[1:])  # NaN, infinities and -0 included
    codec = data.draw(st.sampled_from(CODECS))
    point = CompressionPoint(quantizer="none", codec=codec)
    assert torch.equal(bits(restore(KVPipeline(point).compress(kv)).kv), bits(kv))


POINTS = st.builds(
    lambda transform, quantizer, high, low, axes, group, recent, ratio, codec: CompressionPoint(
        transform=transform,
        quantizer=quantizer,
        key_high=max(high, low),
        key_low=low,
        value_high=max(high, low),
        value_low=low,
        key_axis=axes[0],
        value_axis=axes[1],
        group=group,
        keep_recent=recent,
        hybrid_ratio=ratio,
        codec=codec,
    ),
    st.sampled_from(["none", "delta", "affine", "hadamard"]),
    st.sampled_from(["minmax", "absmax"]),
    st.integers(4, 40),
    st.integers(4, 40),
    st.tuples(st.sampled_from(["channel", "token"]), st.sampled_from(["channel", "token"])),
    st.sampled_from([0, 4, 7]),
    st.sampled_from([0, 3, 100]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from(CODECS),
)


@given(POINTS, st.integers(1, 25), st.sampled_from([1, 5, 16]), st.sampled_from(DTYPES), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_every_error_lies_within_its_bound(point, tokens, dim, dtype, seed):
    kv = cache(tokens=tokens, dim=dim, dtype=dtype, seed=seed)
    pipeline = KVPipeline(point, scores=torch.arange(6.0).view(2, 3))
    found = restore(pipeline.compress(kv), with_bound=True)
    assert found.kv.dtype == dtype
    assert bool(((found.kv.float() - kv.float()).abs() <= found.bound).all())
    recent = kv[:, :, max(0, tokens - point.keep_recent) :] if point.keep_recent else kv[:, :, :0]
    assert torch.equal(found.kv[:, :, tokens - recent.shape[2] :], recent)


@pytest.mark.parametrize("quantizer", [MinMaxQuantizer("channel"), MinMaxQuantizer("token", 4)])
def test_the_bound_of_a_quantiser_is_half_its_step(quantizer):
    x = torch.randn(12, 2, 8, generator=torch.Generator().manual_seed(1))
    q, meta = quantizer.forward(x, 6)
    bound = quantizer.bound(meta, 6, (12, 2, 8))
    error = (quantizer.inverse(q.reshape(-1), meta, 6, (12, 2, 8)) - x).abs()
    assert bool((error <= bound).all())
    assert float(error.max()) > 0.9 * float(bound.max()) / 1.2  # not a bound that anything would keep
    assert float(bound.max()) <= float((x.amax() - x.amin()) / 10) * 1.01


def test_the_quantiser_equals_the_formula():
    x = torch.randn(9, 1, 4, generator=torch.Generator().manual_seed(2))
    q, (low, step) = MinMaxQuantizer("channel").forward(x, 8)
    plain = ((x[:, 0] - low.float()) / step.float()).round().clamp(0, 7)
    assert torch.equal(q[0].float(), plain)
    q, (largest,) = AbsMaxQuantizer("token").forward(x, 8)
    assert torch.equal(q[:, :, 0].float(), (x[:, 0] * 3 / largest.float() + 3).round())


def test_constant_and_zero_channels_come_back_exactly():
    kv = torch.zeros(1, 2, 10, 2, 8).bfloat16()
    kv[:, 0] = 1.5
    for point in (CompressionPoint(), CompressionPoint(quantizer="absmax"), CompressionPoint(transform="affine")):
        found = restore(KVPipeline(point).compress(kv.expand(8, -1, -1, -1, -1))).kv
        assert torch.allclose(found.float(), kv.float().expand_as(found), atol=1e-2)
    assert torch.equal(restore(KVPipeline(CompressionPoint()).compress(kv)).kv, kv)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_numbers_that_levels_cannot_hold_travel_as_they_are(value):
    kv = cache(tokens=64)
    kv[1, 0, 3, 1, 2] = value
    for point in METHODS.values():
        found = restore(KVPipeline(point).compress(kv))
        assert torch.equal(bits(found.kv), bits(kv))
        assert found.header.why_raw in ("", "not finite", "larger")


def test_what_compression_would_make_larger_goes_out_raw():
    found = restore(KVPipeline("cachegen").compress(cache(tokens=1)))
    assert found.header.why_raw == "larger"
    small = restore(KVPipeline(CompressionPoint(min_compress_size=10**6)).compress(cache()))
    assert small.header.why_raw == "small"
    assert torch.equal(small.kv, cache())


def test_the_ratio_counts_every_byte_and_grows_with_length():
    ratios = []
    for tokens in (8, 64, 512):
        kv = cache(tokens=tokens)
        ratios.append(kv.nbytes / len(KVPipeline(CompressionPoint(key_axis="channel")).compress(kv)))
    assert ratios == sorted(ratios)
    assert ratios[-1] < 16 / np.log2(16) * 1.4


def test_more_levels_lose_less():
    kv, errors = cache(tokens=60), []
    for levels in (4, 8, 16, 64):
        point = CompressionPoint(key_high=levels, key_low=levels, value_high=levels, value_low=levels)
        errors.append(float((restore(KVPipeline(point).compress(kv)).kv.float() - kv.float()).norm()))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("size", [1, 2, 64, 256])
def test_the_hadamard_matrix_is_its_own_inverse(size):
    assert torch.allclose(hadamard(size) @ hadamard(size), torch.eye(size), atol=1e-5)


def test_signs_depend_on_seed_layer_kind_and_head():
    one = signs(0, 1, 0, 2, 64)
    assert set(one.tolist()) == {-1.0, 1.0}
    assert torch.equal(one, signs(0, 1, 0, 2, 64))
    for other in (signs(1, 1, 0, 2, 64), signs(0, 2, 0, 2, 64), signs(0, 1, 1, 2, 64), signs(0, 1, 0, 3, 64)):
        assert not torch.equal(one, other)


@pytest.mark.parametrize("name", ["none", "delta", "affine", "hadamard"])
@pytest.mark.parametrize("dim", [8, 12])
def test_a_transform_is_undone_by_its_inverse(name, dim):
    x = torch.randn(23, 2, dim, generator=torch.Generator().manual_seed(3))
    transform = make_transform(name, dim, 5, 0, [(1, 0), (1, 2)])
    y, meta = transform.forward(x)
    assert [tuple(m.shape) for m in meta] == transform.meta_shapes(23, 2)
    assert torch.allclose(transform.inverse(y, meta), x, atol=1e-4)


def test_a_rotation_shared_by_queries_and_keys_leaves_their_products():
    q, k = (torch.randn(5, 1, 16, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    rotate = make_transform("hadamard", 16, 0, 0, [(0, 0)])
    products = (rotate.forward(q)[0] * rotate.forward(k)[0]).sum(-1)
    assert torch.allclose(products, (q * k).sum(-1), atol=1e-4)


def test_heads_with_low_scores_get_low_levels():
    point = CompressionPoint(key_high=16, key_low=4, value_high=8, value_low=3, hybrid_ratio=0.5)
    table = level_table(point, 2, 2, torch.tensor([[0.9, 0.1], [0.2, 0.8]]))
    assert table[0].tolist() == [[16, 4], [4, 16]]
    assert table[1].tolist() == [[8, 3], [3, 8]]
    assert sliced(table, [1])[0].tolist() == [[4], [16]]


def test_layers_can_be_told_apart_by_depth():
    by_layer = CompressionPoint(key_high=16, key_low=4, hybrid_ratio=1 / 3, split="layer")
    assert level_table(by_layer, 3, 1)[0].flatten().tolist() == [16, 16, 4]
    keys, values = level_table(METHODS["cachegen"], 30, 1)
    assert sorted(set(keys.flatten().tolist())) == [12, 16, 32]
    assert values.flatten().tolist() == [32] * 4 + [16] * 26


def test_ranks_of_a_tensor_parallel_group_send_what_one_would():
    point = CompressionPoint(transform="hadamard", key_high=16, key_low=6, value_high=16, value_low=6, hybrid_ratio=0.5)
    kv, scores = cache(heads=4, tokens=40), torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    point = replace(point, value_axis="channel")  # statistics of one token would span all heads
    whole = restore(KVPipeline(point, scores=scores).compress(kv)).kv
    parts = [
        restore(KVPipeline(point, scores=scores, heads=heads).compress(kv[:, :, :, list(heads)].contiguous())).kv
        for heads in ((0, 1), (2, 3))
    ]
    assert torch.equal(torch.cat(parts, 3), whole)


def test_frames_of_single_layers_hold_what_one_frame_holds():
    point = CompressionPoint(transform="hadamard", key_high=16, key_low=6, hybrid_ratio=0.5)
    kv, scores = cache(layers=4), torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    pipeline = KVPipeline(point, scores=scores)
    parts = [restore(frame) for frame in pipeline.frames(kv, 3)]
    assert [part.header.first_layer for part in parts] == [0, 3]
    assert torch.equal(torch.cat([part.kv for part in parts]), restore(pipeline.compress(kv)).kv)


@pytest.mark.parametrize("axes", [("channel", "token"), ("token", "channel")])
def test_layers_that_go_together_give_what_each_gives_alone(monkeypatch, axes):
    point = CompressionPoint("delta", key_low=8, value_low=6, hybrid_ratio=0.5, key_axis=axes[0], value_axis=axes[1])
    kv, scores = cache(layers=5, tokens=31), torch.rand(5, 3, generator=torch.Generator().manual_seed(1))
    together = restore(KVPipeline(point, scores=scores).compress(kv), with_bound=True)
    monkeypatch.setattr(parts, "MOST_NUMBERS", 1)
    alone = restore(KVPipeline(point, scores=scores).compress(kv), with_bound=True)
    assert torch.equal(together.kv, alone.kv)
    assert together.bound is not None
    assert torch.allclose(together.bound, alone.bound, atol=1e-4)


def test_layers_come_as_a_mapping_too():
    kv = cache()
    mapping = {layer + 3: (kv[layer, 0], kv[layer, 1]) for layer in range(2)}
    found = restore(KVPipeline("lossless").compress(mapping))
    assert found.header.first_layer == 3
    assert torch.equal(found.kv, kv)
    with pytest.raises(BadInput, match="gaps"):
        KVPipeline("lossless").compress({0: mapping[3], 2: mapping[4]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transform": "fourier"}, "transform is one of"),
        ({"key_high": 300}, "from 2 to 256"),
        ({"key_high": 4, "key_low": 8}, "at most the high"),
        ({"quantizer": "none", "transform": "delta"}, "without a quantiser"),
        ({"hybrid_ratio": 1.5}, "share"),
        ({"group": -1}, "0 or more"),
    ],
)
def test_settings_that_do_not_exist_are_refused(settings, message):
    with pytest.raises(BadInput, match=message):
        CompressionPoint(**settings)


def test_heads_told_apart_without_scores_are_refused():
    with pytest.raises(BadInput, match="retrieval_scores"):
        KVPipeline(CompressionPoint(hybrid_ratio=0.5)).compress(cache())


@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (2, 2, 4, 5), (1, 2, 0, 2, 4)])
def test_tensors_of_another_shape_are_refused(shape):
    with pytest.raises(BadInput, match="keys and values"):
        KVPipeline("lossless").compress(torch.zeros(shape).bfloat16())


def test_a_point_is_what_its_json_says():
    for point in METHODS.values():
        assert CompressionPoint.from_json(point.to_json()) == point
    with pytest.raises(BadInput, match="no setting"):
        CompressionPoint.from_json({"colour": 3})
