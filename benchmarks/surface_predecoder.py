"""Matching on whole and residual syndromes, one shot at a time and in batches, and the network's own time a round.

All arms decode the same shots, interleaved in one process. Run it with
``OMP_NUM_THREADS=1 python benchmarks/surface_predecoder.py``; ``--help`` names the sizes.

What bounds each: matching grows with the number of lit detectors, the network with the number of sites and the square
of its width. On one core the network costs far more than matching saves; the column "network" says how much.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pymatching

from heliograph.graphs import PreDecoder, SurfaceMemory


def interleaved(arms: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each arm; each runs once before the first measurement."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for run in arms.values():
        run()
    for _ in range(repeats):
        for name, run in arms.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def one_by_one(matching: pymatching.Matching, shots: np.ndarray) -> None:
    for shot in shots:
        matching.decode(shot)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--distances", type=int, nargs="+", default=[5, 7, 9])
    parser.add_argument("--noise", type=float, default=0.003)
    parser.add_argument("--training-shots", type=int, default=7_000)
    parser.add_argument("--shots", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    network = PreDecoder((24, 24)).to(options.device)
    network.fit(SurfaceMemory(5, noise=0.006), shots=options.training_shots, batch=32, learning_rate=3e-3)
    print(f"p = {options.noise}, T = d, {options.shots} shots, {network.filters} on {options.device}, us per round")
    print(f"{'d':>3} {'':>8} {'whole':>8} {'residual':>9} {'ratio':>6} {'twin':>6} {'network':>8} {'density':>16}")
    for distance in options.distances:
        experiment = SurfaceMemory(distance, noise=options.noise)
        whole = experiment.sample(options.shots, 1)[0].astype(np.uint8)
        rest = network.reduce(whole, experiment)[0]
        matching = pymatching.Matching.from_detector_error_model(experiment.dem)
        forms: dict[str, Callable[[np.ndarray], Any]] = {
            "batch": matching.decode_batch,
            "one shot": lambda shots, m=matching: one_by_one(m, shots),
        }
        for form, solve in forms.items():
            arms = {
                "whole": lambda s=solve, x=whole: s(x),
                "residual": lambda s=solve, x=rest: s(x),
                "twin": lambda s=solve, x=whole: s(x),
            }
            if form == "batch":
                arms["network"] = lambda e=experiment, x=whole: network.reduce(x, e)
            found = interleaved(arms, options.repeats)
            us = {name: 1e6 * s / (options.shots * experiment.rounds) for name, s in found.items()}
            line = f"{distance:>3} {form:>8} {us['whole']:>8.2f} {us['residual']:>9.2f}"
            line += f" {us['whole'] / us['residual']:>6.2f} {us['twin'] / us['whole']:>6.2f}"
            line += f" {us.get('network', float('nan')):>8.1f}"
            print(line + f" {whole.mean():>7.4f}->{rest.mean():.4f}")


if __name__ == "__main__":
    main()
