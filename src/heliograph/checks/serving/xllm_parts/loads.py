"""Requests and limits of the service experiments, derived from the cost model by rules that were fixed beforehand.

Lengths are the same on every machine. Rates are a share of what the instances can do by the formula, and limits are
multiples of its step times, so that a slow and a fast machine see the same queue in their own seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heliograph.errors import BadInput
from heliograph.random import CounterRng
from heliograph.serving.core.cost_model import CostModel
from heliograph.serving.core.sim_cluster import SimRequest, Slo
from heliograph.trials.check import Workload
from heliograph.workload.requests import read_trace

__all__ = ["Phase", "adopt", "limits", "online_requests", "swing", "tidal"]

BATCH = 16


@dataclass(frozen=True)
class Phase:
    """A stretch of time with one kind of request.

    Attributes:
        prompt, output: shortest and longest, in tokens.
        load: share of the capacity of all instances.
    """

    prompt: tuple[int, int]
    output: tuple[int, int]
    load: float

    def demand_s(self, cost: CostModel) -> float:
        """Seconds of an instance that a request takes, decoding in a batch of 16."""
        prompt, output = sum(self.prompt) / 2, sum(self.output) / 2
        step = cost.decode_seconds(BATCH, BATCH * (prompt + output / 2))
        return cost.prefill_seconds(round(prompt)) + output * step / BATCH


def limits(cost: CostModel, longest_prompt: int) -> Slo:
    """First token: twice the longest prompt alone. Later ones: 1.25 steps of 16 requests of 256 tokens of context."""
    return Slo(2 * cost.prefill_seconds(longest_prompt), 1.25 * cost.decode_seconds(BATCH, BATCH * 256))


def swing(
    phases: Sequence[Phase], cost: CostModel, instances: int, phase_s: float, most: int, seed: int
) -> tuple[list[SimRequest], float]:
    """Poisson arrivals, phase after phase, and the seconds until the last phase ends.

    Args:
        phases: in order.
        cost: of a step.
        instances: that share the load.
        phase_s: of each phase; less where more than ``most`` requests would come.
        most: requests of a phase, on average.
        seed: of arrivals and lengths.
    """
    found: list[SimRequest] = []
    start = 0.0
    for number, phase in enumerate(phases):
        rate = phase.load * instances / phase.demand_s(cost)
        length = min(phase_s, most / rate)
        draws = CounterRng(seed).at(item=number).uniform(3 * 4 * most)
        at = start
        for index in range(4 * most):
            at += -float(_log1p(-draws[3 * index])) / rate
            if at >= start + length:
                break
            prompt, output = _between(phase.prompt, draws[3 * index + 1]), _between(phase.output, draws[3 * index + 2])
            found.append(SimRequest(f"r{len(found)}", at, range(prompt), output))
        start += length
    return found, start


def online_requests(load: Workload, cost: CostModel, seed: int) -> tuple[list[SimRequest], float, Slo]:
    """Online requests of a workload, drawn or from the user's trace; until when they come; and their limits."""
    if load.path:
        return _from_trace(load, cost)
    phases = [Phase(tuple(p["prompt"]), tuple(p["output"]), p["load"]) for p in load["phases"]]
    requests, end = swing(phases, cost, load["instances"], load["phase_s"], load["most"], seed)
    return requests, end, limits(cost, max(phase.prompt[1] for phase in phases))


def tidal(load: Workload, cost: CostModel, seed: int) -> tuple[list[SimRequest], list[SimRequest], float, Slo]:
    """Online requests in ebb and flood, an offline backlog that is there from the start, the end, and the limits."""
    online, end, slo = online_requests(load, cost, seed)
    draws = CounterRng(seed).at(item=1000).uniform(2 * load["offline"]) if load["offline"] else ()
    offline = [
        SimRequest(
            f"o{i}",
            0.0,
            range(_between(load["offline_prompt"], draws[2 * i])),
            _between(load["offline_output"], draws[2 * i + 1]),
            priority=1,
        )
        for i in range(load["offline"])
    ]
    return online, offline, end, slo


def adopt(path: Path, preset: str, loads: Mapping[str, Workload]) -> Mapping[str, Workload]:  # noqa: ARG001
    """The user's request trace in the place of drawn requests, by experiment.

    Raises:
        BadInput: it cannot be read, has turns that wait for answers, or lengths are missing.
    """
    trace = read_trace(path)
    requests = list(trace)
    wrong = next((n for n, r in enumerate(requests, 1) if r.arrival_s is None or r.prompt_length is None), None)
    if wrong is not None or not requests:
        raise BadInput(
            f"{path}, request {wrong or 0}: this check takes requests that come at stated times (arrival_s) with "
            "prompt_tokens or prompt_token_ids"
        )
    return {name: Workload("your trace", load.params, str(path)) for name, load in loads.items()}


def _from_trace(load: Workload, cost: CostModel) -> tuple[list[SimRequest], float, Slo]:
    requests = [
        SimRequest(
            f"r{n}", r.arrival_s or 0.0, range(r.prompt_length or 1), r.output_tokens, max(1024, r.output_tokens)
        )
        for n, r in enumerate(read_trace(load.path))
        if r.priority <= 0
    ]
    if not requests:
        raise BadInput(f"{load.path} has no online request (priority 0 or less)")
    demand = sum(
        cost.prefill_seconds(len(r.prompt))
        + r.output_tokens * cost.decode_seconds(BATCH, BATCH * len(r.prompt)) / BATCH
        for r in requests
    )
    # a trace of another machine: its times are stretched so that it loads these instances as the drawn one does
    share = sum(p["load"] for p in load["phases"]) / len(load["phases"])
    end = demand / (share * load["instances"])
    scale = end / max(max(r.arrival_s for r in requests), 1e-9)
    scaled = [SimRequest(r.id, r.arrival_s * scale, r.prompt, r.output_tokens, r.max_tokens) for r in requests]
    return scaled, end, limits(cost, max(len(r.prompt) for r in requests))


def _between(ends: Sequence[int], uniform: Any) -> int:
    return min(int(ends[0] + uniform * (ends[1] - ends[0] + 1)), ends[1])


def _log1p(value: Any) -> float:
    import math

    return math.log1p(max(float(value), -1 + 1e-12))
