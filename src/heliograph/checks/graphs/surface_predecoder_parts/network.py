"""The trained network: density of what it leaves, logical errors, and the time that matching then takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from heliograph.checks.graphs.surface_predecoder_parts.exactness import make_experiment
from heliograph.graphs.surface_predecoder import (
    Completer,
    LabelledShots,
    NoProposal,
    Pipeline,
    PreDecoder,
    SurfaceMemory,
)
from heliograph.trials.check import Context

__all__ = ["OTHER_LABELS", "measure_latency", "measure_quality", "measure_time"]

OTHER_LABELS = "labels of other shots"
TEST_SEED = 700_000_000
CURVE_POINTS = 60


def measure_quality(context: Context) -> Mapping[str, Any]:
    """By distance: share of detectors left for the global decoder, and shots decoded rightly.

    ``correct`` pools the distances at the workload's noise, one boolean a shot; ``correct_sample`` is distance 7 with 7
    rounds at 0.003. Both bases are tested where the workload names both.
    """
    load, arm = context.workload, context.contender
    network = _train(context) if arm in ("pre-decoder", OTHER_LABELS) else None
    metrics: dict[str, Any] = {}
    pooled: list[bool] = []
    for number, (distance, shots) in enumerate(zip(load["distances"], load["shots"], strict=True)):
        rows, densities = [], []
        for basis in load["bases"]:
            experiment = make_experiment(distance, distance, basis, load["kind"], load["noise"])
            right, density = _decode(context, network, experiment, shots, TEST_SEED + context.seed + number)
            rows.append(right)
            densities.append(density)
        right = np.concatenate(rows)
        metrics[f"density_d{distance}"] = float(np.mean(densities))
        metrics[f"error_rate_d{distance}"] = float(1 - right.mean())
        pooled += right.tolist()
        context.progress(0.9, f"{arm}: d = {distance}")
        context.say(
            f"{arm}, d = {distance}: density {metrics[f'density_d{distance}']:.4f}, "
            f"logical error rate {1 - right.mean():.4f} of {len(right)} shots"
        )
    if load["keep_outcomes"]:
        metrics["correct"] = pooled
        rows = []
        for basis in load["bases"]:
            sample = make_experiment(7, 7, basis, load["kind"], 0.003)
            rows.append(_decode(context, network, sample, load["sample_shots"], TEST_SEED - 1 - context.seed)[0])
        metrics["correct_sample"] = np.concatenate(rows).tolist()
    return metrics


def measure_time(context: Context) -> Mapping[str, Callable[[], Any]]:
    """PyMatching on the same shots, whole and as a briefly trained network leaves them."""
    load = context.workload
    network = _train(context)
    arms: dict[str, Callable[[], Any]] = {}
    for distance in load["distances"]:
        experiment = make_experiment(distance, distance, "x", load["kind"], load["noise"])
        whole = experiment.sample(load["time_shots"], TEST_SEED + context.seed)[0].astype(np.uint8)
        rest = network.propose(whole, experiment.layout).residual.cpu().numpy()
        solve = Completer(experiment.dem).solve
        arms[f"whole, d = {distance}"] = partial(solve, whole)
        arms[f"residual, d = {distance}"] = partial(solve, rest)
        if distance == load["distances"][-1]:
            arms[f"whole, d = {distance}, again"] = partial(solve, whole)
    return arms


def measure_latency(context: Context) -> Mapping[str, Any]:
    """Microseconds a round from detectors to prediction, in batches: the network, then matching on one core."""
    load = context.workload
    network = _train(context)
    distance = load["distances"][-1]
    experiment = make_experiment(distance, distance, "x", load["kind"], load["noise"])
    detectors, _ = experiment.sample(load["batch_shots"], TEST_SEED + context.seed)
    bits = torch.as_tensor(detectors, dtype=torch.uint8)
    completer = Completer(experiment.dem)
    network_s, matching_s = [], []
    for _ in range(load["repeats"] + 2):
        begin = time.perf_counter()
        proposal = network.propose(bits, experiment.layout, bfloat16=context.device == "cuda")
        residual = proposal.residual.cpu().numpy()  # waits for the device
        middle = time.perf_counter()
        completer.solve(residual)
        network_s.append(middle - begin)
        matching_s.append(time.perf_counter() - middle)
    rounds = len(bits) * experiment.rounds
    parts = [1e6 * float(np.median(s[2:])) / rounds for s in (network_s, matching_s)]
    context.say(f"d = {distance}: network {parts[0]:.3g} us a round, matching {parts[1]:.3g} us a round")
    return {"us_per_round": sum(parts), "network_us_per_round": parts[0], "matching_us_per_round": parts[1]}


def _train(context: Context) -> PreDecoder:
    load = context.workload
    network = PreDecoder(load["filters"], seed=context.seed).to(context.device)
    experiments = [
        make_experiment(load["train_distance"], load["train_distance"], basis, load["kind"], load["train_noise"])
        for basis in load["bases"]
    ]
    amount = {"shots": load["train_shots"]} if "train_shots" in load.params else {"seconds": load["train_s"]}
    network.fit(
        experiments,
        batch=load["batch"],
        learning_rate=load["rate"],
        seed=context.seed,
        scale_noise=False,
        labels=partial(_labels_of_other_shots, context.device) if context.contender == OTHER_LABELS else None,
        callback=lambda step, done, loss: context.progress(0.8 * done, f"step {step}, loss {loss:.4f}"),
        **amount,
    )
    report = network.fit_report
    context.say(f"trained on {report.shots:,} shots in {report.seconds:.1f} s")
    every = max(1, len(report.losses) // CURVE_POINTS)
    curve = [float(np.mean(report.losses[i : i + every])) for i in range(0, len(report.losses), every)]
    context.keep("curves", {"training loss": curve})
    return network


def _labels_of_other_shots(device: str, experiment: SurfaceMemory, shots: int, seed: int) -> LabelledShots:
    """The same labels, each given to the next shot: inputs say nothing about them."""
    drawn = experiment.sample_labels(shots, seed, canonical=False).to(device).canonical(experiment.layout)
    return replace(drawn, data=drawn.data.roll(1, 0), measured=drawn.measured.roll(1, 0))


def _decode(
    context: Context, network: PreDecoder | None, experiment: SurfaceMemory, shots: int, seed: int
) -> tuple[np.ndarray, float]:
    """[shots] booleans, rightly decoded; and the density of what the global decoder was given."""
    detectors, observables = experiment.sample(shots, seed)
    correlated = context.contender == "correlated matching"
    pipeline = Pipeline(NoProposal() if network is None else network, experiment, correlated=correlated)
    decoded = pipeline.decode(detectors)
    if decoded.fell_back.any():
        context.say(f"{int(decoded.fell_back.sum())} of {shots} shots fell back to plain matching")
    return (decoded.observables == observables).all(1), float(decoded.residual.mean())
