"""Transfers over a paced link, measured: who is fastest at which bandwidth, and whether the formula says so."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from heliograph.checks.serving.kv_serve_parts import gpu
from heliograph.checks.serving.kv_serve_parts.caches import (
    BASELINES,
    best_static,
    language_model,
    long_cache,
    measured_front,
)
from heliograph.checks.serving.kv_serve_parts.exact import EnginePair
from heliograph.lm.core.decoder import CachedAttention, KVCache
from heliograph.lm.core.load import LanguageModel
from heliograph.serving.kv_serve.controller import CompressionController, TransferContext
from heliograph.serving.kv_serve.link import CompressedLink, KVReceiver, PacedLink, SteadyPace
from heliograph.serving.kv_serve.pipeline import KVPipeline, restore
from heliograph.serving.kv_serve.point import METHODS, CompressionPoint
from heliograph.serving.kv_serve.profile import NO_COMPRESSION, UNIFIED, CompressionProfile, ProfileSet
from heliograph.serving.kv_serve.profiling import long_prompt
from heliograph.trials.check import Context, Workload

__all__ = ["measure_decisions", "measure_jobs", "measure_pool", "measure_prediction", "measure_transfer"]


class OverSocket:
    """A compressed link over a paced socket to a receiver in a thread."""

    def __init__(self, chooser: CompressionController | CompressionPoint, bytes_per_s: float, **settings: Any) -> None:
        here, there = socket.socketpair()
        for end in (here, there):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**18)
        self.arrived: list[torch.Tensor] = []
        receiver = KVReceiver(there, lambda _, __, ___, kv: self.arrived.append(kv))
        receiver.start()
        pace = SteadyPace(bytes_per_s if math.isfinite(bytes_per_s) else None)
        self.link = CompressedLink(PacedLink(here, pace), chooser, **settings)

    def send(self, kv: torch.Tensor, context: TransferContext | None = None) -> Any:
        """Returns once the receiver has restored everything."""
        self.arrived.clear()
        delivery = self.link.send(kv, context=context)
        if not delivery.arrived or tuple(self.arrived[0].shape) != tuple(kv.shape):
            raise RuntimeError(f"keys and values did not arrive: {delivery.reason}")
        return delivery


def _bandwidth(load: Workload) -> float:
    return float(load["bytes_per_s"]) if load["bytes_per_s"] else math.inf


def measure_transfer(context: Context) -> Mapping[str, Callable[[], Any]]:
    """A function for each way of sending: compressing, sending and restoring are all inside."""
    if context.device == "cuda":
        return gpu.measure_transfer(context)
    load = context.workload
    kv = long_cache(load["model"], load["link_tokens"])
    profiles, heads = measured_front(load.params, kv)
    bandwidth = _bandwidth(load)
    static = best_static(profiles, load["link_tokens"], [b or 1e11 for b in load["sweep"]])
    table = tuple(tuple(row) for row in heads.tolist())
    controller = CompressionController(ProfileSet(load["model"], "", {UNIFIED: tuple(profiles)}, table))
    asked = TransferContext(kv.nbytes, load["link_tokens"], min_quality=load["min_quality"])
    arms: dict[str, CompressionController | CompressionPoint] = {
        "KVServe": controller,
        "none": METHODS["none"],
        "KIVI": BASELINES["KIVI"],
        "CacheGen": BASELINES["CacheGen"],
        "best static": static.point,
        "none, again": METHODS["none"],
    }
    arms = {name: arms[name] for name in load["arms"]}
    links = {name: OverSocket(chooser, bandwidth, scores=heads) for name, chooser in arms.items()}
    for _ in range(load["learning"]):  # goodput is learnt, not told
        links["KVServe"].send(kv, asked)
    context.keep("static", static.id)
    context.keep("chosen so far", dict(controller.chosen))
    context.keep(
        "profiles", {p.id: [p.ratios[0], p.compress_rates[0], p.restore_rates[0], p.quality] for p in profiles}
    )
    return {name: partial(link.send, kv, asked) for name, link in links.items()}


def measure_prediction(context: Context) -> Mapping[str, Any]:
    """``error``: median over bandwidths of how far a transfer is from the formula, relative to it."""
    if context.device == "cuda":
        return gpu.measure_prediction(context)
    load = context.workload
    kv = long_cache(load["model"], load["link_tokens"])
    profiles, heads = measured_front(load.params, kv, repeats=5)
    smallest = max(profiles, key=lambda each: each.ratios[0])
    errors = {}
    for profile in (NO_COMPRESSION, smallest):
        for bytes_per_s in load["sweep"]:
            link = OverSocket(profile.point, bytes_per_s, scores=heads)
            times = [link.send(kv).taken.seconds for _ in range(3)]
            expected = profile.seconds(kv.nbytes, load["link_tokens"], bytes_per_s)
            errors[f"{profile.id} at {bytes_per_s:.2e}"] = abs(sorted(times)[1] / expected - 1)
    context.keep("errors", errors)
    ordered = sorted(errors.values())
    return {"error": ordered[len(ordered) // 2]}


def measure_decisions(context: Context) -> Mapping[str, Any]:
    """``decision_ms``: a choice and its observation, the mean of many, with as many profiles as a front has at most."""
    load = context.workload
    points = [METHODS["lossless"]] * load["profiles"]
    profiles = [
        CompressionProfile(f"p{n}", point, (64, 512), (1.5 + n, 2.0 + n), (1e9 / (n + 1),) * 2, (1e9,) * 2)
        for n, point in enumerate(points)
    ]
    controller = CompressionController(profiles, seed=context.seed)
    asked = [TransferContext(10**7 + n, 32 + 17 * n % 1000, bytes_per_s=1e6 * (1 + n % 97)) for n in range(1000)]
    begin = time.perf_counter()
    for each in asked:
        decision = controller.select(each)
        controller.observe(decision, decision.t_hat)
    return {"decision_ms": (time.perf_counter() - begin) / len(asked) * 1e3}


def measure_pool(context: Context) -> Mapping[str, Callable[[], Any]]:
    """A function for each way to the first token: a compressed prefix, an uncompressed one, or the prompt again."""
    if context.device == "cuda":
        return gpu.measure_pool(context)
    load = context.workload
    model = language_model(load["model"])
    kv = long_cache(load["model"], load["link_tokens"])
    profiles, heads = measured_front(load.params, kv, repeats=2)
    bandwidth = _bandwidth(load)
    writer = min(profiles, key=lambda each: each.seconds(kv.nbytes, load["link_tokens"], bandwidth))
    stored = {
        "compressed": KVPipeline(writer.point, scores=heads).compress(kv),
        "uncompressed": KVPipeline("none").compress(kv),
    }
    links = {name: _Fetch(bandwidth) for name in stored}

    def fetched(name: str) -> Callable[[], Any]:
        return lambda: _first_token(model, restore(links[name].bring(stored[name])).kv)

    context.keep("written with", writer.id)
    return {
        "compressed": fetched("compressed"),
        "uncompressed": fetched("uncompressed"),
        "recomputed": lambda: _first_token(model, long_prompt(model, load["link_tokens"])),
    }


class _Fetch:
    """Brings stored bytes at the pace of a link."""

    def __init__(self, bytes_per_s: float) -> None:
        here, there = socket.socketpair()
        self._link = PacedLink(here, SteadyPace(bytes_per_s if math.isfinite(bytes_per_s) else None))
        self._end = _Keeper(there, lambda *_: None)
        self._end.start()

    def bring(self, data: bytes) -> bytes | bytearray:
        self._link.call({}, data)
        return self._end.kept


class _Keeper(KVReceiver):
    """Keeps a frame as it came; whoever asked for it restores it."""

    kept: bytes | bytearray = b""

    def take(self, header: Mapping[str, Any], body: bytes | bytearray) -> dict[str, Any]:  # noqa: ARG002
        self.kept = body
        return {}


@torch.inference_mode()
def _first_token(model: LanguageModel, kv: torch.Tensor) -> int:
    """The token after a prefix and one more token, as a request that hits the pool draws it."""
    wide = kv.to(model.decoder.embedding.weight.dtype)
    cache = KVCache(model.fingerprint, [one[0][None] for one in wide], [one[1][None] for one in wide])
    hidden = model.decoder(
        model.decoder.embed(torch.tensor([[1]])), torch.tensor([[kv.shape[2]]]), CachedAttention(cache=cache)
    )
    return int(model.decoder.logits(hidden[0, -1]).argmax())


def measure_jobs(context: Context) -> Mapping[str, Callable[[], Any]]:
    """A function for each way of handing a prompt over from one engine to another: prompt, transfer and answer."""
    load = context.workload
    model = language_model(load["model"], context.seed)
    kv = long_cache(load["model"], load["link_tokens"])
    profiles, heads = measured_front(load.params, kv, repeats=2)
    table = tuple(tuple(row) for row in heads.tolist())
    found = ProfileSet(load["model"], model.fingerprint, {UNIFIED: tuple(profiles)}, table)
    bandwidth = _bandwidth(load)
    pairs, serial = {}, [0]
    for name, chosen in (("KVServe", found), ("none", ProfileSet("", "", {UNIFIED: ()}))):
        controller = CompressionController(chosen, seed=context.seed, bytes_per_s=bandwidth)
        pairs[name] = EnginePair(
            model, controller, pace=SteadyPace(bandwidth), dtype="bfloat16", tokens=2 * load["link_tokens"]
        )

    def job(pair: EnginePair) -> Any:
        serial[0] += 1  # each prompt is new, so that no prefix is found again
        text = f"{serial[0]} {context.seed} "
        prompt = model.tokenizer.encode(
            text + "A cache leaves one machine and goes on at another. " * load["link_tokens"]
        )
        before = sum(pair.fetch.failures.values())
        answer = asyncio.run(pair.answer(prompt[: load["link_tokens"]], tokens=load["answer"]))
        if sum(pair.fetch.failures.values()) > before or len(answer) != load["answer"]:
            raise RuntimeError(f"a transfer has failed: {pair.fetch.failures}")
        return pair.fetch.profiles

    return {name: partial(job, pair) for name, pair in pairs.items()}
