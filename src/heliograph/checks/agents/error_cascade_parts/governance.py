"""Runs of the scripted agents under each arm, and the judge at chance level that must bring nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np

from heliograph.agents.core.envelope import Envelope
from heliograph.agents.error_cascade.claims import Claim
from heliograph.agents.error_cascade.dynamics import FRAMEWORKS, topology
from heliograph.agents.error_cascade.fit import fit_cascade
from heliograph.agents.error_cascade.governor import Governor
from heliograph.checks.agents.error_cascade_parts.society import (
    AGENTS,
    Outcome,
    Setting,
    chance_judge,
    play,
    with_false_green,
)
from heliograph.trials.check import Context

__all__ = ["measure", "measure_chance", "measure_late"]

SWEEP = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)


async def _cell(arm: str, setting: Setting, runs: int, seed: int) -> list[Outcome]:
    return [await play(arm, setting, seed * 10_000 + run) for run in range(runs)]


def _shares(outcomes: list[Outcome]) -> dict[str, float]:
    return {
        "bicr": float(np.mean([not o.infected for o in outcomes])),
        "safe": float(np.mean([o.usable and not o.infected for o in outcomes])),
    }


def measure(context: Context) -> Mapping[str, Any]:
    """One arm on all frameworks and wordings."""
    load, arm = context.workload, context.contender
    cells: dict[str, dict[str, float]] = {}
    everything: list[Outcome] = []
    attacked: list[Outcome] = []
    plan = [(f, p) for f in load["frameworks"] for p in load["packaging"]]
    for number, (framework, packaging) in enumerate(plan):
        setting = Setting(framework, packaging, load["judge"], load["false_green"], load["anchored"])
        outcomes = asyncio.run(_cell(arm, setting, load["runs"], context.seed * 100 + number))
        cells[f"{framework}, {packaging}"] = _shares(outcomes)
        everything += outcomes
        if (framework, packaging) == ("LangGraph", "compliance"):
            attacked = outcomes
        context.progress((number + 1) / len(plan), f"{arm}: {cells[f'{framework}, {packaging}']['safe']:.2f}")
    context.keep("cells", cells)
    if load["sweep"] and arm in ("speed", "strict"):
        base = Setting("LangGraph", "compliance", load["judge"])
        sweep = {}
        for rate in SWEEP:
            sweep[f"{rate:g}"] = _shares(
                asyncio.run(_cell(arm, with_false_green(base, rate), load["sweep"], context.seed))
            )
        for judge in ("exact", "v3-large", "GPT-4o-mini"):
            one = asyncio.run(_cell(arm, Setting("LangGraph", "compliance", judge), load["sweep"], context.seed))
            sweep[judge] = _shares(one)
        context.keep("by false-green rate and by judge", sweep)
    runs = len(everything)
    found: dict[str, Any] = {
        **_shares(everything),
        "messages": sum(o.messages for o in everything) / runs,
        "judged": sum(o.judged for o in everything) / runs,
        "verified": sum(o.verified for o in everything) / runs,
        "utility_loss": sum(o.withheld[0] for o in everything) / max(1, sum(o.withheld[1] for o in everything)),
    }
    if attacked:
        x = np.stack([o.adoption for o in attacked])
        found["beta"] = fit_cascade(x, topology(FRAMEWORKS["LangGraph"][0], AGENTS)).beta
        found["coverage"] = float(x[:, -1].mean())
    return found


def measure_late(context: Context) -> Mapping[str, Any]:
    """The truth becomes known after the third round: who still believes the false claim at the end?"""
    load = context.workload
    believed, infected = [], []
    for number, framework in enumerate(load["frameworks"]):
        setting = Setting(framework, load["packaging"], "exact", late=load["late"])
        outcomes = asyncio.run(_cell(context.contender, setting, load["runs"], context.seed * 100 + number))
        believed += [o.adoption[-1].mean() for o in outcomes]
        infected += [o.infected for o in outcomes]
    return {"believed": float(np.mean(believed)), "bicr": 1 - float(np.mean(infected))}


def measure_chance(context: Context) -> Mapping[str, Any]:
    """A governor whose judge answers at random: how much of what is false, or true, it holds back."""
    value = 2 if context.contender == "false claims" else 1

    async def run() -> list[bool]:
        governor = Governor("speed", judge=chance_judge(context.seed), max_retries=0, hold=0)
        count = context.workload["claims"]
        for number in range(count):
            governor.trust(Claim(f"s{number}", "p", 1, text="known"))

        async def deliver(env: Envelope) -> Envelope:
            return env

        held = []
        for number in range(count):
            # Another operator than the trusted one's, so that a true claim is a claim of its own and is judged.
            claim = {"subject": f"s{number}", "predicate": "p", "object": value, "operator": ">="}
            got = await governor(Envelope(topic="t", sender="a", payload={"claims": [claim]}), deliver)
            held.append(not got.payload["claims"])
        return held

    return {"withheld": float(np.mean(asyncio.run(run())))}
