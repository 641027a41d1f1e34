"""Who gets a first token in time: prompts offered until somebody is idle, or sent to who reported the least work."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from heliograph.serving.core.cost_model import CostModel
from heliograph.serving.pd_serve.modelled import ForwardingReport, LeastReported, OnDemand, Prompt, simulate_forwarding
from heliograph.serving.pd_serve.ratio import ScenarioProfile
from heliograph.trials.check import Context, Workload
from heliograph.workload.arrivals import LogNormalLengths, arrival_times

__all__ = ["measure", "prompts_of"]


def prompts_of(load: Workload, cost: CostModel, seed: int) -> tuple[list[Prompt], float]:
    """Prompts of log-normal length at the workload's load, and the mean seconds of one."""
    lengths = LogNormalLengths.from_median(load["median"], load["sigma"], 16, load["longest"])
    tokens = [int(n) for n in lengths.sample(load["requests"], seed)]
    mean = statistics.mean(ScenarioProfile.from_cost(cost, n, 1).prefill_s[0][1] for n in tokens)
    times = arrival_times(len(tokens), load["load"] * load["instances"] / mean, seed=seed)
    return [Prompt(float(when), n) for when, n in zip(times, tokens, strict=True)], mean


def measure(context: Context) -> Mapping[str, Any]:
    """``attainment``: share of first tokens in time; ``timeouts``; ``in_vain``: share computed but late."""
    load = context.workload
    cost = CostModel(**load["cost"])
    prompts, mean = prompts_of(load, cost, context.seed)
    period = load["report_period"] * mean
    policy: OnDemand | LeastReported
    if context.contender == "on demand":
        policy = OnDemand(rpc_s=load["rpc_s"])
    else:
        policy = LeastReported(period, own_dispatches=context.contender == "with own dispatches")
    report: ForwardingReport = simulate_forwarding(
        prompts,
        policy,
        cost,
        instances=load["instances"],
        gateways=load["gateways"],
        slo_s=load["slo"] * mean,
        seed=context.seed,
    )
    context.keep("rejected", report.rejected)
    context.keep("accept rate", report.accept_rate)
    return {
        "attainment": report.attainment,
        "timeouts": report.timeouts / len(prompts),
        "in_vain": report.computed_in_vain / len(prompts),
        "offers_per_prompt": report.offers / len(prompts),
    }
