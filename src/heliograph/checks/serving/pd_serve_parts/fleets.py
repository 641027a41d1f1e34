"""How instances are organised: groups by scenario, one mixed pool, both roles in one; and ratios, fixed or watched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from heliograph.random import CounterRng
from heliograph.serving.core.cluster import Role
from heliograph.serving.core.cost_model import CostModel
from heliograph.serving.core.scheduler import SchedulerConfig
from heliograph.serving.core.sim_cluster import InstanceSpec, SimReport, SimRequest, Slo
from heliograph.serving.pd_serve.fleet import FleetController, FleetRouter, GroupSimulation, RoleController, share_out
from heliograph.serving.pd_serve.ratio import RatioController, ScenarioProfile, balance_ratio
from heliograph.trials.check import Context, Workload

__all__ = ["measure_balance", "measure_control", "measure_organisation"]

LABEL_STEP = 1_000_000
LIMITS = SchedulerConfig(max_tokens_per_step=512, max_sequences=32, context=65536)
NUM_BLOCKS = 4096
DECODE_BATCHES = (1, 2, 4, 8, 16, 32)  # up to the most sequences of a step
SPREAD = 0.5  # of the logarithm of a prompt's length


def _label(prompt: Sequence[int]) -> str:
    """The scenario, by the first token of its template."""
    return f"s{prompt[0] // LABEL_STEP}"


def _requests(
    rates: Sequence[tuple[int, int, Any]], seconds: float, seed: int, begin_s: float = 0.0, first: int = 0
) -> list[SimRequest]:
    """Poisson arrivals thinned to each scenario's rate; log-normal prompts, geometric answers.

    Args:
        rates: of each scenario: mean prompt and answer tokens, and requests a second as a function of time.
        seconds: of arrivals, from ``begin_s``.
        seed: of all draws.
        first: number of the first request.
    """
    found = []
    for scenario, (prompt, output, rate) in enumerate(rates):
        most = max(rate(t) for t in np.linspace(0, seconds, 200))
        uniform = CounterRng(seed).at(item=scenario, step=first).uniform(16 + 8 * math.ceil(2 * most * seconds))
        draws, at, place = uniform.reshape(-1, 4), 0.0, 0
        while True:
            gap, keep, long, answer = draws[place]
            place += 1
            at += -math.log1p(-gap) / most
            if at >= seconds:
                break
            if keep >= rate(at) / most:
                continue
            tokens = max(1, round(prompt * math.exp(SPREAD * float(special.ndtri(long)) - SPREAD**2 / 2)))
            outputs = 1 + int(math.log1p(-answer) / math.log1p(-1 / output)) if output > 1 else 1
            start = 1 + scenario * LABEL_STEP
            found.append((begin_s + at, range(start, start + tokens), outputs))
    found.sort(key=lambda one: one[0])
    return [
        SimRequest(f"r{first + n}", at, prompt, outputs, max_tokens=8192)
        for n, (at, prompt, outputs) in enumerate(found)
    ]


def _profile(cost: CostModel, prompt: int, output: int) -> ScenarioProfile:
    return ScenarioProfile.from_cost(cost, prompt, output, decode_batches=DECODE_BATCHES)


def _profiles(load: Workload, cost: CostModel) -> dict[str, ScenarioProfile]:
    return {f"s{n}": _profile(cost, prompt, output) for n, (prompt, output) in enumerate(load["scenarios"])}


def _specs(roles: Mapping[tuple[str, str], int]) -> tuple[list[InstanceSpec], dict[str, str]]:
    specs, membership = [], {}
    for (group, role), count in roles.items():
        for number in range(count):
            name = f"{group}-{role}-{number}"
            kind: Role = "prefill" if role == "prefill" else "decode" if role == "decode" else "mix"
            specs.append(InstanceSpec(name, kind, NUM_BLOCKS, 16, LIMITS))
            membership[name] = group
    return specs, membership


def measure_organisation(context: Context) -> Mapping[str, Any]:
    """``goodput``: requests a second within both limits, over the time of arrivals."""
    load = context.workload
    cost, slo = CostModel(**load["cost"]), Slo(load["ttft_s"], load["tpot_s"])
    profiles = _profiles(load, cost)
    work = {name: (p.prefill_load_s()[1], p.decode_load_s(slo.tpot_s)[1]) for name, p in profiles.items()}
    share = load["load"] * load["instances"] / len(profiles)
    mean_rate = {name: share / sum(parts) for name, parts in work.items()}

    def rate(number: int) -> Any:
        phase = number / len(profiles)
        mean = mean_rate[f"s{number}"]
        return lambda t: mean * (1 + load["tide"] * math.sin(2 * math.pi * (t / load["period_s"] + phase)))

    scenarios = [(prompt, output, rate(n)) for n, (prompt, output) in enumerate(load["scenarios"])]
    requests = _requests(scenarios, load["seconds"], context.seed)

    def run(roles: Mapping[tuple[str, str], int], adjusted: bool) -> SimReport:
        specs, membership = _specs(roles)
        router = FleetRouter(membership, _label, next(iter(membership.values())))
        controller = (
            FleetController(router, profiles, tpot_s=slo.tpot_s, window_s=load["window_s"]) if adjusted else None
        )
        simulation = GroupSimulation(specs, router, cost, controller=controller)
        simulation.on_finished = None if controller is None else controller.finished
        report = simulation.run(requests)
        simulation.check()
        if controller is not None:
            context.keep("moves", controller.moved)
        return report

    if context.contender == "groups":
        demand = {}
        for name, (prefill, decode) in work.items():
            demand[name, "prefill"], demand[name, "decode"] = prefill * mean_rate[name], decode * mean_rate[name]
        reports = {"groups": run(share_out(demand, load["instances"]), adjusted=True)}
    elif context.contender == "aggregated":
        reports = {"mix": run({("all", "mix"): load["instances"]}, adjusted=False)}
    else:
        prefill = sum(mean_rate[name] * parts[0] for name, parts in work.items())
        whole = sum(mean_rate[name] * sum(parts) for name, parts in work.items())
        middle = round(load["instances"] * prefill / whole)
        tried = {min(max(1, middle + d), load["instances"] - 1) for d in load["searched"]}
        reports = {
            f"{n}:{load['instances'] - n}": run(
                {("all", "prefill"): n, ("all", "decode"): load["instances"] - n}, adjusted=False
            )
            for n in sorted(tried)
        }
    goodputs = {name: report.goodput(slo, load["seconds"]) for name, report in reports.items()}
    best = max(goodputs, key=lambda name: goodputs[name])
    context.keep("goodput", goodputs)
    return {"goodput": goodputs[best], "attainment": reports[best].attainment(slo)}


def measure_balance(context: Context) -> Mapping[str, Any]:
    """``throughput`` of the predicted ratio, of the best one found by trying all, and of the others' mean."""
    load = context.workload
    cost = CostModel(**load["cost"])
    prompt, output = load["scenario"]
    profile = _profile(cost, prompt, output)
    devices = load["instances"]
    predicted = balance_ratio(profile, devices)
    at_once = [(prompt, output, lambda _: load["requests"] / 0.001)]
    requests = _requests(at_once, 0.001, context.seed)
    found = {}
    # a trial simulates what its contender needs; the requests are the same in all of them
    needed = {
        "predicted": [predicted.prefill],
        "best": list(range(1, devices)),
        "others": [n for n in range(1, devices) if n != predicted.prefill],
    }[context.contender]
    for prefill in needed:
        specs, membership = _specs({("s0", "prefill"): prefill, ("s0", "decode"): devices - prefill})
        report = GroupSimulation(specs, FleetRouter(membership, _label, "s0"), cost).run(requests)
        found[prefill] = _steady_rate(report)
    context.keep("requests a second by prefill instances", {str(k): v for k, v in found.items()})
    context.keep("predicted", list(predicted))
    if context.contender == "others":
        return {"throughput": sum(found.values()) / len(found)}
    return {"throughput": max(found.values())}


def _steady_rate(report: SimReport) -> float:
    """Requests a second between the first tenth of the ends and the eighth: without filling up and running dry."""
    ends = sorted(record.finished_s or 0.0 for record in report.records)
    first, last = len(ends) // 10, 8 * len(ends) // 10
    return (last - first) / (ends[last] - ends[first])


def measure_control(context: Context) -> Mapping[str, Any]:
    """``goodput`` while prompts grow half-way through: ratio watched, as it was at first, or the best in hindsight."""
    load = context.workload
    cost, slo = CostModel(**load["cost"]), Slo(load["ttft_s"], load["tpot_s"])
    devices = load["instances"]
    (before, after), output = load["prompts"], load["output"]
    requests: list[SimRequest] = []
    at = 0.0
    for prompt, seconds in ((before, load["first_s"]), (after, load["then_s"])):
        profile = _profile(cost, prompt, output)
        work = profile.prefill_load_s()[1] + profile.decode_load_s(slo.tpot_s)[1]
        rate = load["load"] * devices / work
        requests += _requests([(prompt, output, lambda _, r=rate: r)], seconds, context.seed, at, len(requests))
        at += seconds
    first = _profile(cost, before, output)
    start = balance_ratio(first, devices, tpot_s=slo.tpot_s).prefill

    def run(prefill: int, watched: bool) -> float:
        specs, membership = _specs({("s0", "prefill"): prefill, ("s0", "decode"): devices - prefill})
        controller = None
        if watched:
            ratio = RatioController(
                *first.end_to_end(tpot_s=slo.tpot_s), window_s=load["window_s"], window_requests=load["window_requests"]
            )
            controller = RoleController(ratio)
        simulation = GroupSimulation(specs, FleetRouter(membership, _label, "s0"), cost, controller=controller)
        simulation.on_finished = None if controller is None else controller.finished
        report = simulation.run(requests)
        if controller is not None:
            context.keep("changes", [[when, role] for when, role in controller.ratio.changes])
        return report.goodput(slo, at)

    if context.contender == "best fixed":
        rates = {n: run(n, False) for n in range(start, min(start + load["searched"], devices - 1) + 1)}
        context.keep("goodput by prefill instances", {str(k): v for k, v in rates.items()})
        return {"goodput": max(rates.values())}
    return {"goodput": run(start, context.contender == "watched")}
