"""Scenarios and their benign twins in one arm, AgentDojo's suites, and one compromised server among five."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from heliograph.agents.mcp_sec.agentdojo import census, suite_scenarios
from heliograph.agents.mcp_sec.agents import BenchAgent, LikelihoodAgent, WorstCaseAgent
from heliograph.agents.mcp_sec.bench import BenchReport, Outcome, first_of_each_task, play
from heliograph.agents.mcp_sec.suite import Scenario, multi_server, scenarios
from heliograph.statistics import wilson
from heliograph.trials.check import Context

__all__ = ["ARMS", "measure", "measure_cross", "measure_likelihood", "measure_multi", "measure_suites"]

ARMS = {
    "without protocol": ("twin", "off"),
    "plain": ("mcp", "off"),
    "warned": ("mcp+prompt", "off"),
    "allow-list": ("mcp+allow-list", "off"),
    "enforced": ("mcpsec", "context"),
    "enforced by value": ("mcpsec", "value"),
}
"""Contender to arm and isolation."""
STOPPED = ("V1", "V2", "replay", "tamper", "downgrade")
"""Families that a protocol can stop altogether."""
TWINNED = ("plain", "enforced", "enforced by value")
"""Contenders whose benign twins are played."""


def _run(context: Context, cases: list[Scenario], agent: BenchAgent, attacks: tuple[bool, ...]) -> list[Outcome]:
    arm, isolation = ARMS[context.contender]
    chosen = [one for one in cases if arm != "twin" or not one.protocol_only]
    found: list[Outcome] = []

    async def everything() -> None:
        for number, scenario in enumerate(chosen):
            for attack in attacks:
                found.append(await play(scenario, arm, agent, attack=attack, isolation=isolation))  # type: ignore[arg-type]
            context.progress((number + 1) / len(chosen), scenario.id)

    asyncio.run(everything())
    return found


def _percent(flags: list[bool]) -> float:
    return 100.0 * sum(flags) / len(flags) if flags else 0.0


def measure(context: Context) -> Mapping[str, Any]:
    """Success of attacks by family, the user's task in benign runs, and refusals there."""
    cases = scenarios(context.workload["counts"], seed=context.seed)
    twins = context.contender in TWINNED
    found = _run(context, cases, WorstCaseAgent(), (True, False) if twins else (True,))
    attacked, benign = [o for o in found if o.attack], [o for o in found if not o.attack]
    report = BenchReport(tuple(found), "slim world")
    context.keep("attack success", report.table())
    context.keep("kinds", dict(Counter(f"{o.family}, {o.kind}" for o in attacked if o.success)))
    context.keep("refusals", dict(Counter(reason for o in attacked for reason in o.denied)))
    # Plain messages carry no mark that a downgrade could take away, so its predicate says nothing there.
    telling = [o for o in benign if o.family != "downgrade" or o.arm == "mcpsec"]
    cross = [o.success for o in attacked if o.family == "V3"]
    residual = [o.success for o in attacked if o.family == "residual"]
    sampling = [o.success for o in attacked if o.kind in ("sampling spoof", "uncertified sampling")]
    measured: dict[str, Any] = {
        "stopped": [not o.success for o in attacked if o.family in STOPPED] or [True],
        "success_percent": _percent([o.success for o in attacked]),
        "cross_percent": _percent(cross),
        "residual_percent": _percent(residual),
        "sampling_percent": _percent(sampling),
    }
    if twins:
        measured["useful_percent"] = _percent([o.useful for o in benign])
        measured["refused_percent"] = _percent([bool(o.denied) for o in benign])
        measured["silent"] = [not o.success for o in telling]
        measured["quiet"] = [not o.denied for o in benign]
    return measured


def measure_cross(context: Context) -> Mapping[str, Any]:
    """Success of cross-server attacks, by kind."""
    found = _run(context, scenarios(context.workload["counts"], seed=context.seed), WorstCaseAgent(), (True,))
    context.keep("kinds", dict(Counter(o.kind for o in found if o.success)))
    return {"cross_percent": _percent([o.success for o in found])}


def measure_suites(context: Context) -> Mapping[str, Any]:
    """Success of AgentDojo's attacks by family, the user's task in benign runs, and refusals there.

    A block plays one of ``parts`` equal parts of a shuffled order, so that blocks of one run share no scenario; each
    part has its share of each suite and kind.
    """
    order = suite_scenarios(context.workload["version"])
    random.Random(f"suites {context.seed - context.block}").shuffle(order)
    order.sort(key=lambda case: (case.family, case.kind))
    cases = order[context.block % context.workload["parts"] :: context.workload["parts"]]
    agent = WorstCaseAgent()
    found = _run(context, cases, agent, (True,))
    twins = first_of_each_task(cases) if context.contender in TWINNED else set()
    benign = _run(context, [one for one in cases if one.id in twins], agent, (False,))
    context.keep("attack success", BenchReport(tuple(found), "AgentDojo").table())
    context.keep("played", {"all": len(cases), **census(cases)})
    context.keep("kinds", dict(Counter(f"{o.family}, {o.kind}" for o in found if o.success)))
    context.keep("refusals", dict(Counter(reason for o in found for reason in o.denied)))
    context.keep("reached all the same", [o.scenario for o in found if o.success and o.denied])
    measured: dict[str, Any] = {
        "success_percent": _percent([o.success for o in found]),
        "cross_percent": _percent([o.success for o in found if o.family == "V3"]),
        "residual_percent": _percent([o.success for o in found if o.family == "residual"]),
        "played": len(found),
        "unread": sum(o.family == "unread" for o in found),
    }
    if benign:
        measured["useful_percent"] = _percent([o.useful for o in benign])
        measured["silent"] = [not o.success for o in benign]
        measured["quiet"] = [not o.denied for o in benign]
    return measured


def measure_multi(context: Context) -> Mapping[str, Any]:
    """One compromised server among five: how often it reaches another, and two or more."""
    found = _run(context, multi_server(context.workload["runs"], context.seed), WorstCaseAgent(), (True,))
    able = [o for o in found if o.success]
    cascade = [o.spread >= 2 for o in found]
    reached = wilson(len(able), len(found))
    context.keep("success", {"runs": len(found), "low": reached.low, "high": reached.high})
    return {"success_percent": _percent([o.success for o in found]), "cascade_percent": _percent(cascade)}


def measure_likelihood(context: Context) -> Mapping[str, Any]:
    """The same for a language model that picks the likeliest call."""
    load = context.workload
    from heliograph.agents.mcp_sec.prefix import PrefixScorer
    from heliograph.data.language_models import smollm2_file
    from heliograph.lm.core.load import load_model

    scorer = PrefixScorer(model=load_model(smollm2_file(), device=context.device))
    agent = LikelihoodAgent(
        scorer, distractors=load["distractors"], describe=load["describe"], max_calls=load["max_calls"]
    )
    cases = scenarios(load["counts"], seed=context.seed)
    twins = _run(context, cases[-load["twins"] :], agent, (False,))
    found = _run(context, cases, agent, (True,))
    context.keep("runs", [[o.scenario, o.kind, o.success, o.useful] for o in found])
    return {
        "success_percent": _percent([o.success for o in found]),
        "cross_percent": _percent([o.success for o in found if o.family == "V3"]),
        "indirect_percent": _percent([o.success for o in found if o.family == "residual"]),
        "useful_percent": _percent([o.useful for o in found]),
        "silent": [not o.success for o in twins],
    }
