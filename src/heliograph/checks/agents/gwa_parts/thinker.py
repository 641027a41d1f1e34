"""A thinker that repeats itself the more it has: the simulated mind in which drives and constants are compared.

Topics gain weight when they are thought of and lose a tenth of it a tick; the next topic is drawn from the softmax of
``gamma weight / T``. All arms of a block see the same draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliograph.agents.gwa import EntropyDrive
from heliograph.trials.check import Context

__all__ = ["ARMS", "Run", "draws", "measure", "measure_constant", "run_arm", "seeds", "think"]

DIMENSIONS, NOISE, DECAY, BASE = 64, 0.3, 0.9, 0.7
STUCK_AFTER = 6
"""Equal topics in a row that make an attractor; those beyond count as stuck."""

DRIVES: Mapping[str, Mapping[str, Any]] = {
    "published drive": {"tau": 0.5},
    "sharp drive": {"tau": 0.1},
    "window drive": {"estimator": "window"},
    "novelty drive": {"estimator": "novelty"},
}
ARMS = (*DRIVES, "constant base", *(f"matched to {name}" for name in DRIVES))


@dataclass(frozen=True)
class Run:
    """One run of the thinker: its topics and the temperatures at which they were drawn."""

    topics: tuple[int, ...]
    temperatures: tuple[float, ...]

    def entropy(self, last: int) -> float:
        """Of the last topics, in nats."""
        shares = np.bincount(self.topics[-last:]) / len(self.topics[-last:])
        return float(-sum(p * math.log(p) for p in shares if p > 0))

    def stuck(self) -> list[bool]:
        """Whether each thought belongs to an attractor, past its first ticks."""
        rows: list[bool] = []
        for _, group in itertools.groupby(self.topics):
            length = len(list(group))
            rows += [place >= STUCK_AFTER for place in range(length)]
        return rows


@dataclass(frozen=True)
class Draws:
    """What all arms share: uniforms of the topics, and noise on the embeddings."""

    uniform: NDArray[np.float64]
    noise: NDArray[np.float64]


def seeds(block: int, runs: int) -> list[int]:
    """Of a block's runs; blocks of neighbouring seeds share none."""
    return [int(seed) for seed in np.random.SeedSequence(block).generate_state(runs)]


def draws(seed: int, ticks: int) -> Draws:
    """Of one run."""
    rng = np.random.default_rng(seed)
    return Draws(rng.uniform(size=ticks), rng.normal(size=(ticks, DIMENSIONS)) * NOISE / math.sqrt(DIMENSIONS))


def think(shared: Draws, gamma: float, topics: int, drive: EntropyDrive | None, constant: float = BASE) -> Run:
    """Runs the thinker under a drive, or at a constant temperature."""
    weight = np.zeros(topics)
    seen, temperatures = [], []
    for uniform, noise in zip(shared.uniform, shared.noise, strict=True):
        temperature = constant if drive is None else drive.temperature()
        logits = gamma * weight / temperature
        chance = np.exp(logits - logits.max())
        topic = min(int(np.searchsorted(np.cumsum(chance / chance.sum()), uniform)), topics - 1)
        if drive is not None:
            thought = noise.copy()
            thought[topic] += 1
            drive.update(thought)
        weight *= DECAY
        weight[topic] += 1
        seen.append(topic)
        temperatures.append(temperature)
    return Run(tuple(seen), tuple(temperatures))


def run_arm(arm: str, seed: int, params: Mapping[str, Any]) -> Run:
    """One run of one arm; a matched arm first runs its drive to learn the mean temperature."""
    shared, gamma, topics = draws(seed, params["ticks"]), params["gamma"], params["topics"]
    if arm in DRIVES:
        return think(shared, gamma, topics, EntropyDrive(base_temperature=BASE, seed=seed, **DRIVES[arm]))
    constant = BASE
    if arm != "constant base":
        constant = float(np.mean(run_arm(arm.removeprefix("matched to "), seed, params).temperatures))
    return think(shared, gamma, topics, None, constant)


def measure(context: Context) -> Mapping[str, Any]:
    """Means over the runs of a block."""
    params = context.workload.params
    runs = [run_arm(context.contender, seed, params) for seed in seeds(context.seed, params["runs"])]
    stuck = [run.stuck() for run in runs]
    free = [
        temperature
        for run, row in zip(runs, stuck, strict=True)
        for temperature, held in zip(run.temperatures, row, strict=True)
        if not held
    ]
    context.keep("topics of the first run", list(runs[0].topics))
    return {
        "topic_entropy": float(np.mean([run.entropy(params["ticks"] // 2) for run in runs])),
        "stuck_share": float(np.mean([np.mean(row) for row in stuck])),
        "temperature": float(np.mean([run.temperatures for run in runs])),
        "temperature_while_free": float(np.mean(free)),
    }


def measure_constant(context: Context) -> Mapping[str, Any]:
    """A drive without strength at temperature T against the constant T: the same topics, run by run."""
    params = context.workload.params
    same = []
    for seed in seeds(context.seed, params["runs"]):
        shared = draws(seed, params["ticks"])
        for options in DRIVES.values():
            drive = EntropyDrive(base_temperature=1.1, alpha=0.0, seed=seed, **options)
            switched_off = think(shared, params["gamma"], params["topics"], drive)
            same.append(switched_off == think(shared, params["gamma"], params["topics"], None, 1.1))
    return {"same": same}
