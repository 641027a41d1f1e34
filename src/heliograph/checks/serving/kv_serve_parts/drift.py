"""A service whose codecs slow down and whose bandwidth swings: who follows, in simulated time with stated profiles."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from heliograph.serving.kv_serve.controller import CompressionController, TransferContext, Transferred
from heliograph.serving.kv_serve.point import METHODS
from heliograph.serving.kv_serve.profile import NO_COMPRESSION, CompressionProfile
from heliograph.trials.check import Context

__all__ = ["measure"]


def _profiles(load: Mapping[str, Any]) -> list[CompressionProfile]:
    return [
        CompressionProfile(name, METHODS["lossless"], (1,), (ratio,), (compress,), (restored,))
        for name, ratio, compress, restored in load["profiles"]
    ]


def measure(context: Context) -> Mapping[str, Any]:
    """``latency``: mean seconds of transfers over a trace.

    Each phase has a true bandwidth and a true slowdown of the codecs, which nobody is told; every transfer's stages
    vary by a tenth. Requests come in order, one at a time, the same ones for every contender.
    """
    load = context.workload
    profiles = _profiles(load.params)
    draw = random.Random(context.seed)
    trace = []
    for _ in range(load["cycles"]):
        for bandwidth, slowdown in load["phases"]:
            for _ in range(load["requests"]):
                tokens = int(2 ** draw.uniform(*load["octaves"]))
                noise = [draw.lognormvariate(0, load["noise"]) for _ in range(2)]
                trace.append((bandwidth, slowdown, tokens, noise))
    if context.contender == "no controller":
        rates = [bandwidth for bandwidth, _ in load["phases"]]
        static = min(
            [NO_COMPRESSION, *profiles], key=lambda p: sum(math.log(p.seconds(1, 512, rate)) for rate in rates)
        )
        controller = None
        context.keep("static", static.id)
    else:
        static, learn = NO_COMPRESSION, context.contender == "KVServe"
        controller = CompressionController(
            profiles, epsilon=load["epsilon"] if learn else 0.0, learn=learn, seed=context.seed
        )
    total = 0.0
    for bandwidth, slowdown, tokens, (codec_noise, link_noise) in trace:
        nbytes = tokens * load["bytes_per_token"]
        decision = None if controller is None else controller.select(TransferContext(nbytes, tokens))
        chosen = static if decision is None else decision.profile
        sent = nbytes / chosen.ratio(tokens)
        taken = Transferred(
            chosen.compress_seconds(nbytes, tokens) * slowdown * codec_noise,
            sent / bandwidth * link_noise,
            chosen.restore_seconds(nbytes, tokens) * slowdown * codec_noise,
            int(sent),
        )
        if controller is not None and decision is not None:
            controller.observe(decision, taken)
        total += taken.seconds
    if controller is not None:
        context.keep("chosen", dict(controller.chosen))
        context.keep("reasons", dict(controller.reasons))
    return {"latency": total / len(trace)}
