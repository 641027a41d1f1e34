"""The paper's two clusters: by the model, against its table, and in virtual time, each deployment at its own best."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from heliograph.serving.prfaas.deployments import DeploymentName, Options, build, plan_of
from heliograph.serving.prfaas.profile import OutsideProfile
from heliograph.serving.prfaas.router import HybridRouter
from heliograph.serving.prfaas.service_model import CASE_LENGTHS, Plan, PrefillServiceModel, case_study
from heliograph.serving.prfaas.simulate import ServiceReport, ServiceSimulation, SimPrompt
from heliograph.trials.check import Context
from heliograph.workload.arrivals import LogNormalLengths, arrival_times

__all__ = ["ARMS", "measure_above_all", "measure_deployments", "measure_fluctuation", "measure_table"]

ARMS: dict[str, DeploymentName] = {
    "threshold": "prfaas",
    "homogeneous": "homogeneous",
    "naive": "naive",
    "least loaded": "least-loaded",
    "earliest finish": "earliest-finish",
}
HOMOGENEOUS = 12  # local instances of the cluster without remote ones: 96 devices
LENGTHS = LogNormalLengths(*CASE_LENGTHS)


def measure_table(context: Context) -> Mapping[str, Any]:
    """``table``: each printed rate, share and split against the model; ``egress_gbps`` at the best plan;
    ``notices``: with bytes and seconds of the profile exchanged the table is missed."""
    tolerance = context.workload["tolerance"]

    def rows(model: PrefillServiceModel) -> list[bool]:
        alone = model.homogeneous(LENGTHS, n_local=HOMOGENEOUS)
        paper = model.at(LENGTHS, 19_400, 3)
        best, naive = model.optimise(LENGTHS), model.naive(LENGTHS)
        printed = {
            "share that leaves": (paper.p, 0.496),
            "remote rate": (paper.remote_rate, 1.61),
            "local rate": (paper.local_rate, 1.64),
            "decode rate": (paper.decode_rate, 3.91),
            "rate": (paper.rate, 3.24),
            "homogeneous prefill": (alone.local_rate, 2.11),
            "homogeneous decode": (alone.decode_rate, 2.35),
            "naive prefill": (naive.remote_rate, 2.45),
            "naive decode": (naive.decode_rate, 6.25),
            "best threshold": (best.t, 19_400),
            "gain": (best.rate / alone.rate, 1.54),
        }
        context.keep("ours and printed", {name: list(pair) for name, pair in printed.items()})
        context.keep("best plan", best.to_json())
        same = [abs(ours / theirs - 1) <= tolerance for ours, theirs in printed.values()]
        return [*same, alone.n_p == 9, best.n_p == 3, best.n_d == 5]

    model = case_study()
    slow = replace(model, local=replace(model.local, prefill_s=tuple(2 * s for s in model.local.prefill_s)))
    wrong = rows(slow)
    right = rows(model)
    best = model.optimise(LENGTHS)
    least = model.least_loaded(LENGTHS)
    context.keep("least loaded by the model", least.to_json())
    return {"table": right, "notices": [not all(wrong)], "egress_gbps": best.egress_gbps}


def _prompts(count: int, rate: float, seed: int, out_len: float) -> list[SimPrompt]:
    times, tokens = arrival_times(count, rate, seed=seed), LENGTHS.sample(count, seed)
    return [SimPrompt(float(at), int(n), round(out_len)) for at, n in zip(times, tokens, strict=True)]


def _run(simulation: ServiceSimulation, prompts: list[SimPrompt], context: Context) -> ServiceReport:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutsideProfile)  # one prompt in four hundred is shorter than the first point
        return simulation.run(prompts, context.progress)


def measure_deployments(context: Context) -> Mapping[str, Any]:
    """``throughput``, ``ttft_mean``, ``ttft_p90``, ``egress_gbps``; ``agrees``: with the model within 5 %."""
    load, model = context.workload, case_study()
    name = ARMS[context.contender]
    plan = plan_of(name, model, LENGTHS, HOMOGENEOUS)
    limit = model.homogeneous(LENGTHS, n_local=HOMOGENEOUS).rate if load["of"] == "homogeneous" else plan.rate
    prompts = _prompts(load["requests"], load["load"] * limit, context.seed, model.out_len)
    report = _run(build(name, model, plan, Options(pieces=load["pieces"])), prompts, context)
    waited = report.ttft_s
    throughput = report.throughput()
    context.keep("plan", plan.to_json())
    found: dict[str, Any] = {
        "throughput": throughput,
        "ttft_mean": float(waited.mean()),
        "ttft_p90": float(np.quantile(waited, 0.9)),
        "ttft_p99": float(np.quantile(waited, 0.99)),
        "remote_share": float(report.remote.mean()),
        "egress_gbps": report.egress_gbps(),
    }
    if load["load"] > 1:
        found["agrees"] = [abs(throughput / plan.rate - 1) <= 0.05]
    return found


def measure_above_all(context: Context) -> Mapping[str, Any]:
    """``same``: with a threshold above every length each time is that of the homogeneous cluster;
    ``notices``: with the solved threshold it is not."""
    load, model = context.workload, case_study()
    alone = model.homogeneous(LENGTHS, n_local=HOMOGENEOUS)
    prompts = _prompts(load["requests"], 0.95 * alone.rate, context.seed, model.out_len)
    plain = _run(build("homogeneous", model, alone), prompts, context)

    def beside(t: float) -> ServiceReport:
        plan: Plan = replace(alone, t=t, n_remote=model.n_remote)
        return _run(ServiceSimulation(model, plan, HybridRouter(plan)), prompts, context)

    above = beside(CASE_LENGTHS[3] + 1.0)
    other = beside(model.optimise(LENGTHS).t)
    pairs = ((plain.first_token_s, above.first_token_s), (plain.finished_s, above.finished_s))
    return {
        "same": [bool(np.array_equal(a, b)) for a, b in pairs] + [not above.remote.any(), above.sent_bytes == 0],
        "notices": [not np.array_equal(plain.first_token_s, other.first_token_s)],
    }


def measure_fluctuation(context: Context) -> Mapping[str, Any]:
    """``ttft_p99`` and ``queue_mib``, the largest send queue, where bandwidth falls for a while, or does not."""
    load = context.workload
    model = replace(case_study(), egress_gbps=load["gbps"])
    name: DeploymentName = "least-loaded" if context.contender == "least loaded" else "prfaas"
    plan = plan_of(name, model, LENGTHS, HOMOGENEOUS)
    prompts = _prompts(load["requests"], load["load"] * plan.rate, context.seed, model.out_len)
    begin, lasts = load["begin_s"], load["lasts_s"]
    changes = ((begin, load["gbps"] * load["falls_to"]), (begin + lasts, load["gbps"])) if lasts else ()
    options = Options(adaptive=context.contender == "adaptive", bandwidth=changes, pieces=load["pieces"])
    report = _run(build(name, model, plan, options), prompts, context)
    context.keep("thresholds", [[when, t if math.isfinite(t) else None] for when, t in report.thresholds])
    return {
        "ttft_p99": float(np.quantile(report.ttft_s, 0.99)),
        "ttft_mean": float(report.ttft_s.mean()),
        "queue_mib": report.most_queued_bytes / 2**20,
        "switches": report.switches,
    }
