"""Cascades drawn from the exact process, and what the equations and indicators make of them.

Everything here is simulated: rates are inputs, and the question is whether fits find them and indicators foretell who
ends up with the claim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliograph.agents.error_cascade.dynamics import FRAMEWORKS, Topology, indicators, simulate_cascade, topology
from heliograph.agents.error_cascade.fit import fit_cascade
from heliograph.trials.check import Context

__all__ = ["auc", "measure_fits", "measure_frameworks", "measure_mesh", "measure_warning"]

AGENTS, ROUNDS = 5, 5
RATES = ((0.2, 0.0), (0.3, 0.05), (0.4, 0.1), (0.5, 0.02), (0.7, 0.02), (0.9, 0.0))
GRAPHS: tuple[Topology, ...] = ("star", "chain", "layered", "mesh")
FULL, LONG = 0.9, 10


def measure_fits(context: Context) -> Mapping[str, Any]:
    """Four topologies and six pairs of rates, each fitted in five ways."""
    runs = context.workload["cascades"]
    rows = []
    for number, graph in enumerate(GRAPHS):
        a = topology(graph, AGENTS, seed=context.seed)
        for place, (beta, delta) in enumerate(RATES):
            seed = context.seed * 1000 + number * 10 + place
            x = simulate_cascade(a, beta, delta, 0, ROUNDS, runs, seed)
            row: dict[str, Any] = {"graph": graph, "beta": beta, "delta": delta}
            for form in ("product", "poisson", "logistic"):
                row[form] = fit_cascade(x, a, form=form, init="homogeneous", draws=0).mse
            paper = fit_cascade(x, a, init="homogeneous", draws=0)
            seeded = fit_cascade(x, a, init="seeded", draws=0)
            own = fit_cascade(x, a)
            row |= {"paper_beta": paper.beta, "seeded_beta": seeded.beta, "likelihood_beta": own.beta}
            row |= {"seeded_mse": seeded.mse, "likelihood_delta": own.delta}
            assert own.beta_interval is not None
            row["covered"] = own.beta_interval[0] <= beta <= own.beta_interval[1]
            rows.append(row)
        context.progress((number + 1) / len(GRAPHS))
    context.keep("fits", rows)

    def error(name: str) -> float:
        return float(np.mean([abs(row[name] - row["beta"]) for row in rows]))

    still = simulate_cascade(topology("mesh", AGENTS), 0.0, 0.0, 0, ROUNDS, runs, context.seed)
    return {
        "product_mse": float(np.median([row["product"] for row in rows])),
        "poisson_mse": float(np.median([row["poisson"] for row in rows])),
        "logistic_mse": float(np.median([row["logistic"] for row in rows])),
        "poisson_ties": float(np.mean([row["poisson"] <= row["product"] * 1.1 for row in rows])),
        "paper_error": error("paper_beta"),
        "seeded_error": error("seeded_beta"),
        "likelihood_error": error("likelihood_beta"),
        "covered": float(np.mean([row["covered"] for row in rows])),
        "still": [bool(still[:, :, 1:].sum() == 0), fit_cascade(still, topology("mesh", AGENTS)).beta == 0.0],
    }


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """The chance that a random positive scores above a random negative, ties half."""
    s, y = np.asarray(scores), np.asarray(labels, dtype=bool)
    if y.all() or not y.any():
        return float("nan")
    above = (s[y][:, None] > s[~y][None]).mean()
    return float(above + (s[y][:, None] == s[~y][None]).mean() / 2)


def _random_graph(noise: np.random.Generator, agents: int, *, ordered: bool) -> NDArray[np.float64]:
    a = (noise.random((agents, agents)) < noise.uniform(0.1, 0.6)).astype(float)
    np.fill_diagonal(a, 0)
    return np.tril(a) if ordered else a


def measure_warning(context: Context) -> Mapping[str, Any]:
    """Random directed graphs, half of them without cycles: which indicator foretells a majority after 20 rounds?"""
    noise = np.random.default_rng(context.seed)
    margins, gains, labels, ordered = [], [], [], []
    for number in range(context.workload["graphs"]):
        a = _random_graph(noise, int(noise.integers(4, 9)), ordered=bool(number % 2))
        beta, delta = float(noise.uniform(0.05, 0.9)), float(noise.uniform(0.0, 0.4))
        found = indicators(a, beta, delta, horizon=20)
        x = simulate_cascade(a, beta, delta, found.best_seed, 21, context.workload["cascades"], noise)
        margins.append(found.margin)
        gains.append(found.gain)
        labels.append(bool(x[:, -1].mean() > 0.5))
        ordered.append(bool(number % 2))
    cyclic = [not flag for flag in ordered]

    def part(scores: Sequence[float], chosen: Sequence[bool]) -> float:
        return auc(
            [s for s, c in zip(scores, chosen, strict=True) if c], [y for y, c in zip(labels, chosen, strict=True) if c]
        )

    context.keep(
        "area under the curve",
        {
            "margin, with cycles": part(margins, cyclic),
            "gain, with cycles": part(gains, cyclic),
            "margin, without": part(margins, ordered),
            "gain, without": part(gains, ordered),
        },
    )
    score = {"finite-horizon gain": gains, "spectral margin": margins}[context.contender]
    missed = [y and m <= 0 for y, m in zip(labels, margins, strict=True)]
    return {"auc": auc(score, labels), "missed_by_margin": float(np.mean(missed))}


def _final(a: NDArray[np.float64], beta: float, delta: float, seed: int, runs: int, noise: int, rounds: int) -> float:
    return float(simulate_cascade(a, beta, delta, seed, rounds + 1, runs, noise)[:, -1].mean())


def measure_frameworks(context: Context) -> Mapping[str, Any]:
    """Four agents on each framework's topology with the rates that the paper fitted to its attack traces."""
    runs, agents = context.workload["cascades"], 4
    final, factor, polluted = {}, {}, {}
    for number, (name, (graph, beta, delta)) in enumerate(FRAMEWORKS.items()):
        a, noise = topology(graph, agents), context.seed * 100 + number
        final[name] = _final(a, beta, delta, 0, runs, noise, LONG)
        leaf = _final(a, beta, delta, agents - 1, runs, noise, ROUNDS)
        factor[name] = _final(a, beta, delta, 0, runs, noise, ROUNDS) / max(leaf, 1e-9)
        x = simulate_cascade(a, beta, delta, 0, 7, runs, noise)
        coverage = x.mean(axis=(0, 2))
        polluted[name] = {stop: float(coverage[:stop].sum()) for stop in (2, 4, 6)}
    context.keep("final coverage after 10 rounds", final)
    context.keep("hub over leaf after 5 rounds", factor)
    context.keep(
        "polluted rounds before an intervention", {k: {str(t): v for t, v in p.items()} for k, p in polluted.items()}
    )
    return {
        "amplified": float(sum(value >= FULL for value in final.values())),
        "impact": min(factor[name] for name in ("CrewAI", "LangGraph")),
        "inertia": min(p[6] - p[2] for p in polluted.values()),
    }


def measure_mesh(context: Context) -> Mapping[str, Any]:
    """Where all agents are alike, the seed is no matter."""
    seed = 0 if context.contender == "first agent" else 3
    a, runs = topology("mesh", 4), context.workload["cascades"]
    return {"final": _final(a, 0.27, 0.1, seed, runs, context.seed, 2)}
