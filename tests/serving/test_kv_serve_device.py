"""Frames made on a device are those of the host; where there is no GPU, Triton's interpreter runs the kernels."""

import importlib.util
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from heliograph.errors import BadInput
from heliograph.serving.core.frames import Pace
from heliograph.serving.kv_serve import (
    METHODS,
    CompressionController,
    CompressionPoint,
    CompressionProfile,
    DeviceFrame,
    DeviceKVPipeline,
    DeviceLink,
    FrameDamaged,
    KVPipeline,
    parts,
    restore,
    restore_on_device,
)
from heliograph.serving.kv_serve.quantizers import _down, _up

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HAS_TRITON = importlib.util.find_spec("triton") is not None


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    monkeypatch.setattr(parts, "MOST_NUMBERS", 1024)  # small caches take the kernels, as large ones do


def cache(layers=2, tokens=40, heads=2, dim=32, dtype=torch.bfloat16, seed=0):
    draw = torch.Generator().manual_seed(seed)
    offsets = 3 * torch.randn(layers, 2, 1, heads, dim, generator=draw)
    return (torch.randn(layers, 2, tokens, heads, dim, generator=draw) + offsets).to(dtype)


POINTS = {
    "plain": CompressionPoint(codec="bitpack"),
    "rotated": CompressionPoint(transform="hadamard", codec="bitpack"),
    "three digits": CompressionPoint(
        transform="hadamard", key_high=6, key_low=6, value_high=6, value_low=6, codec="bitpack"
    ),
    "wide words": CompressionPoint(key_high=12, key_low=12, value_high=20, value_low=20, codec="bitpack"),
    "bytes": CompressionPoint(key_high=256, key_low=256, value_high=100, value_low=100, codec="none"),
    "kivi": replace(METHODS["kivi"], keep_recent=8),
    "quarot": replace(METHODS["quarot"], group=16),
    "heads apart": CompressionPoint(
        transform="hadamard", key_high=16, key_low=6, value_high=12, value_low=4, hybrid_ratio=0.5, codec="bitpack"
    ),
    "absmax": CompressionPoint(quantizer="absmax", codec="bitpack"),
    "cachegen": replace(METHODS["cachegen"], codec="bitpack"),
    "affine": CompressionPoint(transform="affine", codec="bitpack"),
    "both by token": CompressionPoint(transform="hadamard", key_axis="token", value_axis="token", codec="bitpack"),
}
SCORES = torch.rand(2, 2, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", POINTS)
def test_a_frame_of_the_device_is_read_by_the_host_within_its_bound_and_the_other_way_round(name, fused):
    point = POINTS[name]
    formats = ((torch.bfloat16, 40), (torch.float32, 33), (torch.float16, 64))
    for dtype, tokens in formats if name in ("rotated", "kivi") else formats[:1]:  # the interpreter is slow
        kv = cache(tokens=tokens, dtype=dtype)
        made = DeviceKVPipeline(point, scores=SCORES, fused=fused).compress(kv.to(DEVICE))
        assert not made.header.why_raw
        there = restore(made.to_bytes(), with_bound=True)
        assert bool(((there.kv.float() - kv.float()).abs() <= there.bound).all())
        host = KVPipeline(point, scores=SCORES).compress(kv)
        assert len(made.to_bytes()) == len(host)
        unit = max(2 * torch.finfo(dtype).eps, 4e-6)  # last rounding (to zero in the interpreter), order of sums
        for frame in (made, host, made.to_bytes()):
            back = restore_on_device(frame, DEVICE, fused=fused).cpu()
            assert bool(((back.float() - kv.float()).abs() <= there.bound + unit * (1 + kv.float().abs())).all())
        # the receiver's two ways differ by what a sum's order and the last rounding differ by
        assert torch.allclose(
            restore_on_device(host, DEVICE, fused=fused).cpu().float(), restore(host).kv.float(), atol=unit, rtol=unit
        )


@pytest.mark.parametrize("name", ["plain", "kivi", "bytes", "wide words"])
def test_without_a_rotation_the_bytes_are_the_same(name):
    kv = cache(tokens=72)
    made = DeviceKVPipeline(POINTS[name]).compress(kv.to(DEVICE), request="r", attempt=2).to_bytes()
    assert made == KVPipeline(POINTS[name]).compress(kv, request="r", attempt=2)


@pytest.mark.parametrize("tokens", [32, 33, 47])
def test_levels_of_a_rotation_differ_at_ties_alone(tokens):
    kv = cache(tokens=tokens, heads=4, dim=64)
    point = replace(POINTS["rotated"], codec="none")
    one = DeviceKVPipeline(point).compress(kv.to(DEVICE)).body.cpu()
    other = DeviceKVPipeline(point, fused=False).compress(kv.to(DEVICE)).body.cpu()
    assert int((one != other).sum()) <= 1e-4 * len(one) + 2


def test_odd_head_sizes_and_one_token_take_the_plain_way():
    for kv in (cache(dim=20), cache(tokens=1), cache(dim=8)):
        for point in (POINTS["plain"], POINTS["rotated"]):
            made = DeviceKVPipeline(point).compress(kv.to(DEVICE))
            back = restore_on_device(made).cpu()
            bound = restore(made.to_bytes(), with_bound=True).bound
            assert bound is None or bool(((back.float() - kv.float()).abs() <= bound + 2e-2).all())


def test_numbers_that_are_not_finite_travel_as_they_are():
    for bad in (math.nan, math.inf, -math.inf):
        kv = cache()
        kv[1, 0, 5, 1, 3] = bad
        for point in (POINTS["plain"], POINTS["rotated"], POINTS["quarot"]):
            made = DeviceKVPipeline(point).compress(kv.to(DEVICE))
            assert made.header.why_raw == "not finite"
            back = restore_on_device(made).cpu()
            assert torch.equal(back.view(torch.int16), kv.view(torch.int16))
            assert torch.equal(restore(made.to_bytes()).kv.view(torch.int16), kv.view(torch.int16))


def test_a_frame_that_was_coded_on_the_host_is_read_too():
    kv = cache()
    for name in ("lossless", "cachegen"):
        frame = KVPipeline(METHODS[name]).compress(kv)
        assert torch.equal(restore_on_device(frame, DEVICE).cpu(), restore(frame).kv)


def test_what_does_not_fit_is_refused():
    with pytest.raises(BadInput, match="runs on the host"):
        DeviceKVPipeline("lossless")
    made = DeviceKVPipeline(POINTS["rotated"], fingerprint="a").compress(cache().to(DEVICE))
    with pytest.raises(BadInput, match="which one"):
        restore_on_device(made.to_bytes())
    with pytest.raises(FrameDamaged, match="model"):
        restore_on_device(made, fingerprint="b")
    with pytest.raises(FrameDamaged, match="expected"):
        restore_on_device(made, layout=replace(made.header.layout, tokens=3))
    with pytest.raises(FrameDamaged, match="at most"):
        restore_on_device(made, max_bytes=10)
    assert not made.header.why_raw
    with pytest.raises(FrameDamaged, match="follow from the layout"):
        restore_on_device(DeviceFrame(made.header, made.body[:-1]))
    with pytest.raises(FrameDamaged, match="version"):
        restore_on_device(DeviceFrame(replace(made.header, signs=1), made.body))
    table = b"\1\0" * (len(made.header.levels) // 2)
    with pytest.raises(FrameDamaged, match="levels"):
        restore_on_device(DeviceFrame(replace(made.header, levels=table), made.body))
    worse = made.body.clone()
    worse[: made.header.meta_bytes] ^= 0x55
    with pytest.raises(FrameDamaged, match="differs"):
        restore_on_device(DeviceFrame(made.header, worse))
    with pytest.raises(FrameDamaged):
        restore_on_device(made.to_bytes()[:-4], DEVICE)


def test_16_bits_are_rounded_outwards_as_numpy_does():
    x = torch.cat([torch.randn(4000) * 10.0 ** torch.arange(-9, 7).repeat(250), torch.tensor([0.0, -0.0, 1e6, -1e6])])
    with np.errstate(over="ignore"):
        near = x.numpy().astype(np.float16)
        lower = np.where(near.astype(np.float32) > x.numpy(), np.nextafter(near, np.float16(-np.inf)), near)
    assert np.array_equal(_down(x).numpy(), lower)
    assert torch.equal(_up(x), -_down(-x))


def test_a_link_carries_frames_in_chunks_and_tells_the_controller():
    kv = cache(tokens=64).to(DEVICE)
    profile = CompressionProfile("light", POINTS["rotated"], (64,), (3.5,), (1e9,), (1e9,))
    controller = CompressionController([profile], epsilon=0)
    slow = DeviceLink(DEVICE, controller, pace=Pace(2e5), chunk_bytes=1000)
    slow.send(kv)  # bandwidth is not known yet
    found, delivery = slow.send(kv)
    assert delivery.arrived
    assert delivery.decision.profile.id == "light"
    assert delivery.taken.sent_bytes < kv.nbytes / 3
    assert delivery.taken.send_s >= 0.8 * delivery.taken.sent_bytes / 2e5
    assert slow.raw_bytes == 2 * kv.nbytes
    assert torch.allclose(found.float(), restore_on_device(DeviceKVPipeline(POINTS["rotated"]).compress(kv)).float())
    exact, _ = DeviceLink(DEVICE, METHODS["none"], chunk_bytes=777).send(kv)
    assert torch.equal(exact, kv)
    with pytest.raises(BadInput, match="chunk"):
        DeviceLink(DEVICE, METHODS["none"], chunk_bytes=0)


@pytest.mark.skipif(
    DEVICE == "cuda" or not HAS_TRITON, reason="a GPU runs the kernels in the tests above, or no triton"
)
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the interpreter")
def test_the_same_with_kernels_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}  # read when triton is imported, and by the engine's attention
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
