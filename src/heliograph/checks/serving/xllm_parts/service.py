"""Service policies in virtual time: roles that follow load, admission without eviction, offline work in the gaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heliograph.checks.serving.xllm_parts.costs import fitted_cost
from heliograph.checks.serving.xllm_parts.loads import Phase, online_requests, swing, tidal
from heliograph.serving.core.cluster import LeastOutstanding, RoundRobin, Router
from heliograph.serving.core.cost_model import CostModel
from heliograph.serving.core.scheduler import AdmitAll, SchedulerConfig
from heliograph.serving.core.sim_cluster import InstanceSpec, SimCluster, SimReport, SimRequest, Slo
from heliograph.serving.xllm.admission import ZeroEvictAdmission
from heliograph.serving.xllm.colocation import ColocationPolicy
from heliograph.serving.xllm.predictor import TimePredictor
from heliograph.serving.xllm.routing import SloAwareRouter
from heliograph.trials.check import Context, Workload

__all__ = ["measure_admission", "measure_colocation", "measure_roles"]

BATCH = 16


def measure_roles(context: Context) -> Mapping[str, Any]:
    """Attainment and goodput of one way to share the instances between prompts and answers."""
    load = context.workload
    cost = fitted_cost(load, context.device)
    requests, end, slo = online_requests(load, cost, context.seed)
    if context.contender == "best static ratio":
        found = {p: _fixed(load, cost, slo, p, requests) for p in load["ratios"]}
        best = max(found, key=lambda p: (found[p].attainment(slo), found[p].goodput(slo, end)))
        context.keep("attainment by prefill instances", {str(p): r.attainment(slo) for p, r in found.items()})
        return _facts(found[best], slo, end) | {"prefill_instances": best}
    if context.contender == "roles that follow":
        router = _router(cost, slo, flips=True)
        specs = _split(load["instances"] // 2, load["instances"])
        cluster = SimCluster(specs, router, cost, controller=router, admission=AdmitAll)
        report = cluster.run(requests)
        cluster.check()
        return _facts(report, slo, end) | {"role_changes": len(report.roles), "lent": router.lent}
    mixed: Router = RoundRobin() if context.contender == "round robin" else LeastOutstanding()
    cluster = SimCluster([InstanceSpec(f"m{i}") for i in range(load["instances"])], mixed, cost)
    return _facts(cluster.run(requests), slo, end)


def measure_admission(context: Context) -> Mapping[str, Any]:
    """One instance with too little memory and too many requests, with and without the simulation before admission."""
    load = context.workload
    cost = fitted_cost(load, context.device)
    phase = Phase(tuple(load["prompt"]), tuple(load["output"]), load["overload"])
    requests, _ = swing([phase], cost, 1, 1e9, load["requests"], context.seed)
    mean = (sum(phase.prompt) + sum(phase.output)) / 2
    blocks = round(load["pool"] * BATCH * mean / 16)
    spec = InstanceSpec("one", num_blocks=blocks, limits=SchedulerConfig(max_sequences=BATCH))
    zero = context.contender == "zero-evict"
    cluster = SimCluster(
        [spec], RoundRobin(), cost, admission=(lambda: ZeroEvictAdmission(phase.output[1])) if zero else AdmitAll
    )
    report = cluster.run(requests)
    cluster.check()
    records = report.records
    return {
        "tpot_s": sum(r.tpot_s for r in records) / len(records),
        "ttft_s": sum(r.ttft_s for r in records) / len(records),
        "tokens_per_s": sum(r.tokens for r in records) / report.seconds,
        "recomputed_tokens": report.recomputed_tokens,
        "evictions": report.preemptions,
        "no_eviction": [report.preemptions == 0, all(r.completed for r in records)],
        "evicts": [report.preemptions > 0],
    }


def measure_colocation(context: Context) -> Mapping[str, Any]:
    """Online attainment, and offline tokens that were drawn until the online requests stopped coming."""
    load = context.workload
    cost = fitted_cost(load, context.device)
    online, offline, end, slo = tidal(load, cost, context.seed)
    until = end * load["drain"]
    if context.contender == "separate pools":
        return _separate(load, cost, slo, online, offline, until)
    specs = _split(load["instances"] // 2, load["instances"])
    router = _router(cost, slo, flips=False)
    requests = online if context.contender == "online alone" else [*online, *offline]
    if context.contender == "colocation":
        predictor = TimePredictor.from_cost_model(cost)
        policy = ColocationPolicy(router, predictor, tpot_ms=slo.tpot_s * 1e3)
        cluster = SimCluster(specs, policy, cost, policy=policy, admission=lambda: policy)
    elif context.contender == "priority only":
        mixed = [InstanceSpec(f"m{i}") for i in range(load["instances"])]
        cluster = SimCluster(mixed, LeastOutstanding(), cost)
    else:
        cluster = SimCluster(specs, router, cost)
    report = cluster.run(requests, until)
    cluster.check()
    facts = _shares(report, slo, until)
    if context.contender == "colocation":
        facts |= {"pulled": policy.pulled, "pushed": policy.pushed, "broken_steps": report.broken_steps}
    return facts


def _separate(
    load: Workload,
    cost: CostModel,
    slo: Slo,
    online: list[SimRequest],
    offline: list[SimRequest],
    until: float,
) -> dict[str, Any]:
    """One instance does offline work only; the others online work only, split as serves best in hindsight."""
    others = load["instances"] - 1
    found = [SimCluster(_split(p, others), _router(cost, slo, flips=False), cost) for p in range(1, others)]
    best = max((cluster.run(online, until) for cluster in found), key=lambda report: report.attainment(slo))
    alone = SimCluster([InstanceSpec("offline")], LeastOutstanding(), cost).run(offline, until)
    return _shares(best, slo, until) | {"offline_tokens_per_s": sum(r.tokens for r in alone.records) / until}


def _shares(report: SimReport, slo: Slo, until: float) -> dict[str, Any]:
    offline = [r.tokens for r in report.records if r.request.priority > 0]
    return {"online_attainment": report.attainment(slo), "offline_tokens_per_s": sum(offline) / until}


def _facts(report: SimReport, slo: Slo, end: float) -> dict[str, Any]:
    met = [r for r in report.records if r.completed]
    return {
        "attainment": report.attainment(slo),
        "goodput": report.goodput(slo, end),
        "median_ttft_s": sorted(r.ttft_s for r in met)[len(met) // 2],
        "median_tpot_s": sorted(r.tpot_s for r in met)[len(met) // 2],
    }


def _fixed(load: Workload, cost: CostModel, slo: Slo, prefill: int, requests: list[SimRequest]) -> SimReport:
    return SimCluster(_split(prefill, load["instances"]), _router(cost, slo, flips=False), cost).run(requests)


def _split(prefill: int, instances: int) -> list[InstanceSpec]:
    return [InstanceSpec(f"m{i}", "prefill" if i < prefill else "decode") for i in range(instances)]


def _router(cost: CostModel, slo: Slo, *, flips: bool) -> SloAwareRouter:
    predictor = TimePredictor.from_cost_model(cost)
    return SloAwareRouter(predictor, ttft_ms=slo.ttft_s * 1e3, tpot_ms=slo.tpot_s * 1e3, flips=flips)
