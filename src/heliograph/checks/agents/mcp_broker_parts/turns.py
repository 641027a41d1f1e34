"""Turns of several tool calls in virtual time: which way of splitting a turn's budget completes most of them?

Every policy sees the same latencies, drawn beforehand, learns online from its own calls, and may repeat a call once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliograph.agents.mcp_broker.allocation import BudgetPolicy, PlannedCall, make_policy
from heliograph.agents.mcp_broker.latency import ToolLatencyModel
from heliograph.clock import VirtualClock
from heliograph.statistics import mcnemar_p_value
from heliograph.trials.check import Context

__all__ = [
    "POLICIES",
    "Family",
    "Ran",
    "best_constant",
    "constant_share",
    "draw",
    "families",
    "measure",
    "measure_one",
    "run_turns",
    "wins",
]

STALL_MS = 60_000.0
FLOOR_MS = 50.0
POLICIES = ("constant", "equal", "proportional", "cap", "optimal")
HINDSIGHT_MS = (100.0, 200.0, 400.0, 700.0, 1000.0, 1500.0, 2500.0, 4000.0)


@dataclass(frozen=True)
class Family:
    """A chain of tools with log-normal latencies, some of which stall.

    Attributes:
        name: of the chain.
        median_ms, sigma, stalls: a tool each: median, spread of the logarithm, share of calls that take a minute.
    """

    name: str
    median_ms: tuple[float, ...]
    sigma: tuple[float, ...]
    stalls: tuple[float, ...]


def families() -> dict[str, Family]:
    """Five like tools, five unlike ones, and the paper's example: four tools and the planner."""
    stalls = (0.0, 0.01, 0.02, 0.03, 0.05)
    made = (
        Family("like", (300.0,) * 5, (0.5,) * 5, stalls),
        Family("unlike", (50.0, 150.0, 400.0, 800.0, 1200.0), (0.3, 0.8, 0.5, 0.4, 0.6), stalls),
        Family("paper", (200.0, 150.0, 300.0, 400.0, 500.0), (0.4,) * 5, stalls),
    )
    return {family.name: family for family in made}


def draw(family: Family, turns: int, seed: int, *, stalls: bool, attempts: int = 2) -> NDArray[np.float64]:
    """Latencies in ms, [turns, tools, attempts], the same for every policy."""
    noise = np.random.default_rng(seed)
    shape = (turns, len(family.median_ms), attempts)
    spread = noise.standard_normal(shape) * np.array(family.sigma)[None, :, None]
    latency = np.array(family.median_ms)[None, :, None] * np.exp(spread)
    hit = noise.random(shape) < np.array(family.stalls)[None, :, None]
    return np.where(hit, STALL_MS, latency) if stalls else latency


@dataclass(frozen=True)
class Ran:
    """What a policy made of the turns.

    Attributes:
        completed: a turn each.
        spent_ms: a turn each, at most the budget.
        wasted_ms: in calls that were given up, a turn each.
        late: grants that would have run past their turn's end; must be 0.
    """

    completed: NDArray[np.bool_]
    spent_ms: NDArray[np.float64]
    wasted_ms: NDArray[np.float64]
    late: int


def run_turns(
    policy: BudgetPolicy,
    latency: NDArray[np.float64],
    budget_ms: float,
    *,
    censoring: bool = True,
    refresh: int = 50,
) -> Ran:
    """Runs all turns one after the other, in virtual time.

    Args:
        policy: that splits.
        latency: [turns, tools, attempts].
        budget_ms: of a turn.
        censoring: of the latency model.
        refresh: samples between two looks of the model at its distributions.
    """
    clock = VirtualClock()
    model = ToolLatencyModel(censoring=censoring, refresh=refresh, clock=clock)
    turns, tools, attempts = latency.shape
    names = [f"tool{number}" for number in range(tools)]
    completed, spent, wasted, late = np.zeros(turns, bool), np.zeros(turns), np.zeros(turns), 0
    for turn in range(turns):
        used, done = 0.0, 0
        for place, name in enumerate(names):
            later = [PlannedCall(model.times(other), attempts - 1) for other in names[place + 1 :]]
            ended = False
            for attempt in range(attempts):
                remaining = budget_ms - used
                if remaining < FLOOR_MS:
                    break
                limit = policy.limit_ms(remaining, [PlannedCall(model.times(name), attempts - 1 - attempt), *later])
                late += limit > remaining * (1 + 1e-12) or not limit > 0
                took = float(latency[turn, place, attempt])
                ended = took <= limit
                passed = min(took, limit)
                used += passed
                clock.sleep(passed / 1000)
                model.observe(name, passed, censored=not ended)
                if ended:
                    break
                wasted[turn] += passed
            if not ended:
                break
            done += 1
        completed[turn], spent[turn] = done == tools, used
    return Ran(completed, spent, wasted, late)


def constant_share(latency: NDArray[np.float64], budget_ms: float, limit_ms: float) -> float:
    """The share that a constant limit completes, all turns at once: it learns nothing, so their order is no matter."""
    used, alive = np.zeros(len(latency)), np.ones(len(latency), bool)
    for tool in range(latency.shape[1]):
        done = np.zeros_like(alive)
        for attempt in range(latency.shape[2]):
            sent = alive & ~done & (budget_ms - used >= FLOOR_MS)
            limit = np.minimum(limit_ms, budget_ms - used)
            took = latency[:, tool, attempt]
            used = np.where(sent, used + np.minimum(took, limit), used)
            done |= sent & (took <= limit)
        alive &= done
    return float(alive.mean())


def best_constant(latency: NDArray[np.float64], budget_ms: float) -> float:
    """The share that the best of some constant limits completes, chosen with hindsight: an upper mark, not a rival."""
    return max(constant_share(latency, budget_ms, limit) for limit in HINDSIGHT_MS)


def _run(name: str, latency: NDArray[np.float64], budget_ms: float) -> Ran:
    return run_turns(make_policy(name, total_ms=budget_ms, floor_ms=FLOOR_MS), latency, budget_ms)


def _row(ran: Ran) -> dict[str, float]:
    return {
        "completed": float(ran.completed.mean()),
        "p99_ms": float(np.quantile(ran.spent_ms, 0.99)),
        "wasted_ms": float(ran.wasted_ms.mean()),
    }


def wins(first: NDArray[np.bool_], second: NDArray[np.bool_], level: float = 0.95) -> bool:
    """Whether the first completes more of the same turns, beyond chance (exact McNemar)."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return only_first > only_second and mcnemar_p_value(only_first, only_second) < 1 - level


def measure(context: Context) -> Mapping[str, Any]:
    """All cells: in how many do ``cap`` and ``optimal`` both complete more turns than both baselines?"""
    load = context.workload
    table: dict[str, dict[str, dict[str, float]]] = {}
    won, late, cells = 0, 0, [(name, factor) for name in load["families"] for factor in load["budgets"]]
    for number, (name, factor) in enumerate(cells):
        family = families()[name]
        budget_ms = factor * sum(family.median_ms)
        latency = draw(family, load["turns"], context.seed * 1000 + number, stalls=True)
        ran = {policy: _run(policy, latency, budget_ms) for policy in POLICIES}
        late += sum(each.late for each in ran.values())
        rivals: Sequence[str] = ("constant", "equal")
        won += all(wins(ran[a].completed, ran[b].completed) for a in ("cap", "optimal") for b in rivals)
        rows = {policy: _row(each) for policy, each in ran.items()}
        raw = make_policy("proportional", total_ms=budget_ms, floor_ms=FLOOR_MS)
        rows["proportional, stalls taken for latencies"] = _row(run_turns(raw, latency, budget_ms, censoring=False))
        rows["best constant, with hindsight"] = {"completed": best_constant(latency, budget_ms)}
        table[f"{name}, {budget_ms:.0f} ms"] = rows
        context.progress((number + 1) / len(cells), f"{won} of {number + 1} cells")
    context.keep("turns", table)
    return {"cells_won": won, "in_time": late == 0}


def measure_one(context: Context) -> Mapping[str, Any]:
    """One policy on every cell: the mean share of turns completed."""
    load, shares = context.workload, []
    for number, name in enumerate(load["families"]):
        family = families()[name]
        for place, factor in enumerate(load["budgets"]):
            budget_ms = factor * sum(family.median_ms)
            latency = draw(family, load["turns"], context.seed * 1000 + 10 * number + place, stalls=load["stalls"])
            shares.append(float(_run(context.contender, latency, budget_ms).completed.mean()))
    return {"completed": float(np.mean(shares))}
