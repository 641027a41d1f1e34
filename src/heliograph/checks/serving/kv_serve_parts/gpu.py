"""The same on a GPU: keys and values of an 8B-shape model with random weights, compressed and restored where they lie.

Points come from a search with SmolLM2, among those that a GPU packs by itself; what they do to an 8B model's answers is
not measured. CacheGen goes without its arithmetic coder, which no GPU library here has; so does everybody else.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from heliograph.checks.serving.kv_serve_parts.caches import Calibration, best_static, space_of
from heliograph.lm.core.config import DecoderConfig, RopeSpec
from heliograph.lm.core.load import LanguageModel, random_model
from heliograph.serving.kv_serve.controller import CompressionController, TransferContext
from heliograph.serving.kv_serve.device import DeviceFrame, DeviceKVPipeline, restore_on_device
from heliograph.serving.kv_serve.device_link import DeviceLink
from heliograph.serving.kv_serve.frame import KVLayout
from heliograph.serving.kv_serve.link import SteadyPace
from heliograph.serving.kv_serve.pipeline import KVPipeline, restore
from heliograph.serving.kv_serve.point import METHODS, CompressionPoint
from heliograph.serving.kv_serve.profile import NO_COMPRESSION, UNIFIED, CompressionProfile, ProfileSet
from heliograph.serving.kv_serve.profiling import measure_device_point
from heliograph.serving.kv_serve.search import SearchSettings
from heliograph.trials.check import Context

__all__ = ["measure_codec", "measure_frames", "measure_pool", "measure_prediction", "measure_transfer"]

SHAPE = DecoderConfig("llama", 128256, 32, 4096, 14336, 32, 8, 128, 65536, 1e-5, RopeSpec(5e5, 128))
CACHEGEN = replace(METHODS["cachegen"], codec="bitpack")
ROTATED = CompressionPoint(transform="hadamard", codec="bitpack")


def random_cache(tokens: int, *, layers: int = SHAPE.layers, seed: int = 0, device: str = "cuda") -> Tensor:
    """[L, 2, T, 8, 128] of bfloat16: noise around offsets that differ by channel, as keys have them."""
    noise = torch.Generator(device).manual_seed(seed)
    shape = (layers, 2, tokens, SHAPE.kv_heads, SHAPE.head_dim)
    kv = torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(generator=noise)
    offsets = torch.randn(layers, 2, 1, SHAPE.kv_heads, SHAPE.head_dim, generator=noise, device=device)
    return kv.add_(3 * offsets.bfloat16())


def found_point(load: Mapping[str, Any]) -> tuple[CompressionPoint, float]:
    """What a search with SmolLM2 finds among points that a GPU packs; and its relative score."""
    calibration = Calibration(load, space_of(load))
    found = calibration.search(
        SearchSettings(min_quality=load["min_quality"], max_evals=load["max_evals"]), load["search_seed"]
    )
    if found.best is None:
        raise RuntimeError("the search has found no feasible point")
    return calibration.points[found.best.index], found.best.quality


def _front(load: Mapping[str, Any], kv: Tensor) -> list[CompressionProfile]:
    """Profiles measured here and now on the GPU: what the search found, and 256 levels, which lose next to nothing."""
    point, quality = found_point(load)
    fine = CompressionPoint(key_high=256, key_low=256, value_high=256, value_low=256, codec="none")
    profiles = []
    for one, score in ((point, quality), (fine, 1.0)):
        measured = measure_device_point(one, kv)
        profiles.append(
            CompressionProfile(
                one.name, one, (kv.shape[2],), (measured.ratio,), (measured.compress_rate,), (measured.restore_rate,),
                score,
            )
        )  # fmt: skip
    return profiles


def _pace(bytes_per_s: float) -> SteadyPace:
    return SteadyPace(bytes_per_s or None)


def measure_transfer(context: Context) -> Mapping[str, Callable[[], Any]]:
    """A function for each way of sending: compressing, carrying through pinned memory and restoring, all on one GPU."""
    load = context.workload
    kv = random_cache(load["link_tokens"], seed=context.seed)
    profiles = _front(load.params, kv)
    static = best_static(profiles, load["link_tokens"], [b or 1e11 for b in load["sweep"]])
    controller = CompressionController(ProfileSet("8B shape", "", {UNIFIED: tuple(profiles)}), seed=context.seed)
    asked = TransferContext(kv.nbytes, load["link_tokens"], min_quality=load["min_quality"])
    arms: dict[str, CompressionController | CompressionPoint] = {
        "KVServe": controller,
        "none": METHODS["none"],
        "KIVI": METHODS["kivi"],
        "CacheGen": CACHEGEN,
        "best static": static.point,
        "none, again": METHODS["none"],
    }
    arms = {name: arms[name] for name in load["arms"]}
    links = {name: DeviceLink("cuda", chooser, pace=_pace(load["bytes_per_s"])) for name, chooser in arms.items()}

    def send(link: DeviceLink) -> int:
        found, delivery = link.send(kv, context=asked)
        if not delivery.arrived or found.shape != kv.shape:
            raise RuntimeError(f"keys and values did not arrive: {delivery.reason}")
        return delivery.taken.sent_bytes

    for _ in range(load["learning"]):  # goodput is learnt, not told
        send(links["KVServe"])
    context.keep("static", static.id)
    context.keep("chosen so far", dict(controller.chosen))
    context.keep(
        "profiles", {p.id: [p.ratios[0], p.compress_rates[0], p.restore_rates[0], p.quality] for p in profiles}
    )
    return {name: partial(send, link) for name, link in links.items()}


def measure_prediction(context: Context) -> Mapping[str, Any]:
    """``error``: median over bandwidths of how far a transfer is from the formula, relative to it."""
    load = context.workload
    kv = random_cache(load["link_tokens"], seed=context.seed)
    smallest = max(_front(load.params, kv), key=lambda each: each.ratios[0])
    errors = {}
    for profile in (NO_COMPRESSION, smallest):
        for bytes_per_s in load["sweep"]:
            link = DeviceLink("cuda", profile.point, pace=_pace(bytes_per_s))
            times = [link.send(kv)[1].taken.seconds for _ in range(4)][1:]
            expected = profile.seconds(kv.nbytes, load["link_tokens"], bytes_per_s)
            errors[f"{profile.id} at {bytes_per_s:.2e}"] = abs(sorted(times)[1] / expected - 1)
    context.keep("errors", errors)
    return {"error": statistics.median(errors.values())}


@functools.cache
def _model() -> LanguageModel:
    return random_model(SHAPE, None, device="cuda", dtype=torch.bfloat16)  # type: ignore[arg-type]


def measure_pool(context: Context) -> Mapping[str, Callable[[], Any]]:
    """A function for each way to the first token: a compressed prefix, an uncompressed one, or the prompt again."""
    from heliograph.serving.prfaas.windowed import WindowedKV, prefill

    load = context.workload
    model, count = _model(), load["link_tokens"]
    windows = (None,) * SHAPE.layers
    noise = torch.Generator().manual_seed(context.seed)
    prompt = torch.randint(SHAPE.vocabulary, (count + 1,), generator=noise).tolist()

    @torch.inference_mode()
    def computed(tokens: list[int], kv: WindowedKV) -> int:
        return prefill(model, tokens, kv)

    whole = WindowedKV(windows)
    computed(prompt[:-1], whole)
    cache = torch.stack([torch.stack(pair) for pair in zip(whole.keys, whole.values, strict=True)])
    profiles = _front(load.params, cache)
    writer = min(profiles, key=lambda each: each.seconds(cache.nbytes, count, load["bytes_per_s"]))
    stored = {}
    for name, point in (("compressed", writer.point), ("uncompressed", METHODS["none"])):
        frame = DeviceKVPipeline(point).compress(cache)
        stored[name] = DeviceFrame(frame.header, frame.body.cpu().pin_memory())
    link = DeviceLink("cuda", METHODS["none"], pace=_pace(load["bytes_per_s"]))

    def fetched(name: str) -> int:
        kv = restore_on_device(DeviceFrame(stored[name].header, link.carry(stored[name].body)))
        keys, values = kv[:, 0].unbind(), kv[:, 1].unbind()
        return computed(prompt[-1:], WindowedKV.filled(windows, list(keys), list(values), count))

    context.keep("written with", writer.id)
    context.keep("bytes", {name: frame.nbytes for name, frame in stored.items()})
    return {
        "compressed": partial(fetched, "compressed"),
        "uncompressed": partial(fetched, "uncompressed"),
        "recomputed": lambda: computed(prompt, WindowedKV(windows)),
    }


def measure_codec(context: Context) -> Mapping[str, Callable[[], Any]]:
    """A function for each way to rotate, quantise and pack: fused kernels, or plain tensor operations."""
    load = context.workload
    kv = random_cache(load["tokens"], seed=context.seed)
    point = replace(ROTATED, key_axis=load["axis"], value_axis=load["axis"])

    def compress(pipeline: DeviceKVPipeline) -> int:
        frame = pipeline.compress(kv)
        torch.cuda.synchronize()
        return frame.nbytes

    plain = DeviceKVPipeline(point, fused=False)
    return {
        "fused": partial(compress, DeviceKVPipeline(point)),
        "step by step": partial(compress, plain),
        "step by step, again": partial(compress, plain),
    }


def measure_frames(context: Context) -> Mapping[str, Any]:
    """``device_frames``: frames made on one side and read on the other, within the bound that follows from them;
    ``notices``: one with four levels instead of sixteen is further away.
    """
    load, same, notices = context.workload, [], []
    for tokens in load["lengths"]:
        kv = random_cache(tokens, layers=load["layers"], seed=context.seed, device=context.device)
        points = [*(replace(METHODS[name], keep_recent=load["recent"]) for name in ("kivi", "quarot")), CACHEGEN]
        points += [ROTATED, replace(ROTATED, key_high=12, key_low=12, value_high=6, value_low=6)]
        for point in points:
            host = kv.cpu()
            made = DeviceKVPipeline(point).compress(kv)
            found = restore(made.to_bytes(), with_bound=True)
            assert found.bound is not None
            same.append(bool(((found.kv.float() - host.float()).abs() <= found.bound).all()))
            frame = KVPipeline(point).compress(host)
            same.append(len(frame) == len(made.to_bytes()))
            there, here = restore_on_device(frame, context.device).cpu().float(), restore(frame).kv.float()
            unit = 2 * torch.finfo(torch.bfloat16).eps
            same.append(bool(((there - here).abs() <= unit * (1e-3 + here.abs())).all()))
        exact = DeviceKVPipeline("none").compress(kv)
        same.append(torch.equal(restore_on_device(exact).view(torch.int16), kv.view(torch.int16)))
        error = {levels: _distance(kv, levels) for levels in (16, 4)}
        notices.append(error[4] > 2 * error[16])
        context.keep(f"mean error of {tokens} tokens by levels", {str(k): v for k, v in error.items()})
    layout = KVLayout.of(kv)
    context.keep("bits a number", 8 * made.nbytes / math.prod(layout.shape))
    return {"device_frames": same, "notices": notices}


def _distance(kv: Tensor, levels: int) -> float:
    """Mean error of a rotation with so many levels."""
    point = replace(ROTATED, key_high=levels, key_low=levels, value_high=levels, value_low=levels)
    return float((restore_on_device(DeviceKVPipeline(point).compress(kv)).float() - kv.float()).abs().mean())
