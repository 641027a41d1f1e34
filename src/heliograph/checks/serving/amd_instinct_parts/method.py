"""Does the ablation find what is there, and nothing else? Drawn measurements with known means, spreads and drift."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from heliograph.random import CounterRng
from heliograph.serving.amd_instinct.ablation import ablate_flag
from heliograph.serving.load.compare import compare_runs, power
from heliograph.trials.check import Context

__all__ = ["measure"]


def measure(context: Context) -> Mapping[str, Any]:
    """Shares of repeats in which a difference was found, by arm.

    "planted" has a gain and a larger variance; "same flag twice" has neither; "blocked order" has neither and measures
    all of one value before the other, so that drift looks like an effect.
    """
    load = context.workload
    if context.contender == "nothing":
        return {"mean_effect": 0.0}
    planted = context.contender == "planted"
    gain = load["gain"] if planted else 0.0
    ratio = math.sqrt(load["variance_ratio"]) if planted else 1.0
    found, mean_found, spread_found, effects = [], [], [], []
    for repeat in range(load["repeats"]):
        noise = CounterRng(context.seed).at(step=repeat).normal(8 * load["runs"])
        draw = _Machine(noise, load["variation"], gain, ratio, load["drift"])
        if context.contender == "blocked order":
            rows = [[draw(value) for _ in range(2 * load["runs"])] for value in ("off", "on")]
            off, on = ([math.sqrt(a * b) for a, b in zip(row[::2], row[1::2], strict=True)] for row in rows)
            result = compare_runs(off, on)
        else:
            seed = context.seed + repeat
            result = ablate_flag("flag", ("off", "on"), draw, repeats=load["runs"], seed=seed).compare()
        found.append(result.differs)
        mean_found.append(result.mean_differs)
        spread_found.append(result.spread_differs)
        effects.append(math.log(result.ratio.estimate))
    # a repeat averages two runs, which shrinks the spread
    expected = power(load["variation"] / math.sqrt(2), load["gain"], load["runs"], math.sqrt(load["variance_ratio"]))
    context.keep("power of the mean, by formula", expected)
    return {
        "no_difference": 1 - float(np.mean(found)),
        "found": float(np.mean(mean_found)),
        "spread_found": float(np.mean(spread_found)),
        "mean_effect": float(np.mean(effects)),
    }


class _Machine:
    """Throughput with noise and a drift over the measurements, whatever is measured."""

    def __init__(self, noise: Any, variation: float, gain: float, ratio: float, drift: float) -> None:
        self.noise, self.variation, self.gain, self.ratio, self.drift = noise, variation, gain, ratio, drift
        self.count = 0

    def __call__(self, value: str) -> float:
        on = value == "on"
        spread = self.variation * (self.ratio if on else 1.0)
        drift = 1 + self.drift * self.count
        number = 1000.0 * (1 + (self.gain if on else 0.0)) * drift * math.exp(spread * float(self.noise[self.count]))
        self.count += 1
        return number
