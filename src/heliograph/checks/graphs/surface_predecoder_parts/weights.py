"""Matching weights: learned from syndromes, true, uniform, and correlated, on the same test shots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import stim

from heliograph.errors import BadInput
from heliograph.graphs.surface_predecoder import Completer, EdgeEstimate, MatchingGraph, SurfaceMemory, estimate_edges
from heliograph.trials.check import Context, Workload

__all__ = ["adopt", "measure"]

SHUFFLED = "learned, other detectors"
UNIFORM_RATE = 0.01
TEST_SEED = 500_000_000


def measure(context: Context) -> Mapping[str, Any]:
    """Logical error rate of one way to weigh the edges; the rate is that of any observable being wrong."""
    load, arm = context.workload, context.contender
    circuit = stim.Circuit.from_file(load.path) if load.path else _generated(load)
    dem = circuit.detector_error_model(decompose_errors=True, approximate_disjoint_errors=True)
    graph = MatchingGraph.from_dem(dem)
    detectors, observables = _sample(circuit, load["test_shots"], TEST_SEED + context.seed)
    uniform = Completer(dem, graph.with_probability(UNIFORM_RATE).matching())
    if arm.startswith("learned"):
        completer = Completer(dem, _learn(graph, circuit, context).graph.matching())
    elif arm == "uniform weights":
        completer = uniform
    else:
        completer = Completer(dem, correlated=arm == "correlated matching")
    rate = _error_rate(completer, detectors, observables)
    metrics = {"error_rate": rate, "shots": len(detectors)}
    if arm == SHUFFLED:
        return metrics | {"no_better": rate >= _error_rate(uniform, detectors, observables)}
    if not rate:
        raise BadInput(f"no logical error in {len(detectors)} shots: a ratio needs some; use more shots or more noise")
    return metrics


def _error_rate(completer: Completer, detectors: np.ndarray, observables: np.ndarray) -> float:
    found, _ = completer.solve(detectors)
    return float((found != observables).any(1).mean())


def adopt(path: Path, preset: str) -> Mapping[str, Workload]:
    """The user's circuit as the workload of this part."""
    try:
        dem = stim.Circuit.from_file(str(path)).detector_error_model(
            decompose_errors=True, approximate_disjoint_errors=True
        )
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{path} is no Stim circuit with a decomposable error model: {reason}") from None
    if not dem.num_observables:
        raise BadInput(f"{path} declares no observable (OBSERVABLE_INCLUDE); there is nothing to get wrong")
    MatchingGraph.from_dem(dem)
    shots = {"smoke": 500, "laptop": 50_000}.get(preset, 200_000)
    params = {"train_shots": shots, "test_shots": shots}
    return {"weights": Workload(path.name.replace("/", " "), params, str(path))}


def _generated(load: Workload) -> stim.Circuit:
    return SurfaceMemory(load["distance"], load["distance"], "x", load["noise"]).circuit


def _learn(graph: MatchingGraph, circuit: stim.Circuit, context: Context) -> EdgeEstimate:
    seen, _ = _sample(circuit, context.workload["train_shots"], context.seed)
    if context.contender == SHUFFLED:
        # Each detector's own rate stays; which detectors fire together does not.
        random = np.random.default_rng(context.seed)
        seen = random.permuted(seen, axis=0)
    estimate = estimate_edges(graph, seen)
    context.keep("relative error of an edge, median", float(np.median(estimate.relative_error)))
    return estimate


def _sample(circuit: stim.Circuit, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    detectors, observables = circuit.compile_detector_sampler(seed=seed).sample(shots, separate_observables=True)
    return detectors, observables
