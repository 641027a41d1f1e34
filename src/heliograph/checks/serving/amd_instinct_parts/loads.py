"""What a running server shows: where it saturates, what the client alone can do, a thousand streams at once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

from heliograph.checks.serving.amd_instinct_parts.servers import open_server
from heliograph.serving.amd_instinct.capacity import CapacityModel, fitted_saturation, measure_rates
from heliograph.serving.load.client import CompletionClient, LoadRequest
from heliograph.serving.load.drive import LoadRun, run_closed_loop
from heliograph.serving.load.echo import FAULTS
from heliograph.serving.load.prompts import make_requests
from heliograph.serving.load.summary import summarise
from heliograph.trials.check import Context, Workload
from heliograph.workload.config_reader import read_shape

__all__ = ["measure_faults", "measure_robustness", "measure_saturation"]

EXPECTED = {
    "drop": "truncated",
    "no_end": "truncated",
    "no_finish": "truncated",
    "short": "wrong_length",
    "error_event": "protocol",
    "garbage": "protocol",
    "http_500": "http",
    "refuse": "refused",
    "refuse_bare": "http",
}


def measure_saturation(context: Context) -> Mapping[str, Any]:
    """The point of saturation at two lengths, measured and predicted, and the client's own rate beside the server's.

    At each level the lengths take turns, one of them twice, so that whatever else the machine does meets all alike.
    Points above twice the highest level, measured or predicted, count as that.
    """
    load = context.workload
    levels = tuple(load["levels"])
    last = 2 * levels[-1]
    with open_server(load) as server:
        rates, token_s = asyncio.run(_sweep(server.url, load, levels, context))
    echo = Workload("echo", {**load.params, "server": "echo", "flags": [], "short": [8, load["short"][1]]})
    with open_server(echo) as server:
        alone, _ = asyncio.run(_sweep(server.url, echo, levels[-1:], context, ("short",)))
    points = {name: min(fitted_saturation(found), last) for name, found in rates.items()}
    predicted = _predicted(load, token_s, last, context.device)
    both = ("short", "long")
    context.keep("rates", {name: {str(level): rate for level, rate in found.items()} for name, found in rates.items()})
    context.keep("predicted", predicted)
    return {
        "short_over_long": points["short"] / points["long"],
        "factor": max(_factor(points[name], predicted[name]) for name in both),
        "naive_factor": max(_factor(points[name], predicted["naive"]) for name in both),
        "headroom": alone["short"][levels[-1]] / max(max(found.values()) for found in rates.values()),
        "same": [1 / load["twin_margin"] <= points["short"] / points["short, again"] <= load["twin_margin"]],
        **{f"saturation, {name}": point for name, point in points.items()},
    }


NAMES = ("short", "long", "short, again")


async def _sweep(
    url: str, load: Workload, levels: Sequence[int], context: Context, names: Sequence[str] = NAMES
) -> tuple[dict[str, dict[int, float]], float]:
    """Output tokens a second by length and level, one wave of requests each; and the time a token at concurrency 1."""
    rates: dict[str, dict[int, float]] = {name: {} for name in names}
    token_s, salt = math.nan, 1000 * context.seed
    async with CompletionClient(url, connections=max(levels)) as client:
        await run_closed_loop(client, _requests(load, 2, load["short"][0], load["short"][1], salt), 1)  # warm-up
        for place, level in enumerate(levels):
            if load["warm_levels"]:  # a size of step that is new compiles and records for a while
                salt += 1
                prompt = load[names[0].removesuffix(", again")][0]
                await run_closed_loop(client, _requests(load, level, prompt, 4, salt), level)
            order = names if place % 2 == 0 else names[::-1]
            for name in order:
                salt += 1
                prompt, output = load[name.removesuffix(", again")]
                count = max(level, load["least_requests"])
                run = await run_closed_loop(client, _requests(load, count, prompt, output, salt), level)
                summary = _all_succeeded(run)
                rates[name][level] = summary.output_token_rate
                if level == 1 and name == "short":
                    token_s = summary.at("tpot_s", 0.5)
            context.progress((place + 1) / len(levels), f"concurrency {level}")
    return rates, token_s


def _requests(load: Workload, count: int, prompt: int, output: int, salt: int) -> Any:
    return make_requests(count, prompt_tokens=prompt, output_tokens=output, salt=salt, vocabulary=load["vocabulary"])


def _all_succeeded(run: LoadRun) -> Any:
    summary = summarise(run)
    if summary.failures:
        raise RuntimeError(f"requests failed where none may: {summary.failures}")
    return summary


def _predicted(load: Workload, token_s: float, last: float, device: str) -> dict[str, float]:
    """From the model's shape and rates of this device; the empty step from the time a token at concurrency 1."""
    shape = read_shape(load["config"])
    (prompt, output), (long_prompt, long_output) = load["short"], load["long"]
    number_bytes = 4.0 if device == "cpu" else 2.0
    model = CapacityModel(shape, measure_rates(device=device), kv_number_bytes=number_bytes)
    model = model.calibrated(token_s, prompt + output // 2)
    short = model.saturation(prompt + output // 2, prompt, output)
    long = model.saturation(long_prompt + long_output // 2, long_prompt, long_output)
    return {"short": min(short, last), "long": min(long, last), "naive": min(model.by_active_parameters(), last)}


def _factor(measured: float, predicted: float) -> float:
    return max(measured / predicted, predicted / measured)


def measure_robustness(context: Context) -> Mapping[str, Any]:
    """Of many streams at once: ``succeeded``, and ``handled``, which counts honest refusals in."""
    load = context.workload

    async def flood(url: str) -> LoadRun:
        async with CompletionClient(url, connections=load["streams"], timeout_s=load["limit_s"]) as client:
            requests = _requests(load, load["streams"], load["prompt"], load["output"], context.seed)
            return await run_closed_loop(client, requests, load["streams"], ramp_s=load["ramp_s"])

    with open_server(load) as server:
        run = asyncio.run(flood(server.url))
    summary = summarise(run)
    context.keep("summary", summary.to_json())
    context.say(f"{summary.succeeded} of {summary.requests} succeeded, {summary.refused} refused; {summary.failures}")
    return {
        "handled": [record.handled for record in run.records],
        "succeeded": [record.ok for record in run.records],
        "success_percent": 100 * summary.success_share,
        "duration_s": run.duration_s,
    }


def measure_faults(context: Context) -> Mapping[str, Any]:
    """``told``: each planted fault ends as its own kind; ``counted``: tokens and gaps as the server sent them."""
    load = context.workload

    async def send(url: str) -> tuple[list[bool], list[bool]]:
        told, counted = [], []
        async with CompletionClient(url, connections=16) as client:
            for round_ in range(load["rounds"]):
                requests = [
                    LoadRequest((1, 2, 3 + round_), 6, 3, extra={"echo_fault": fault} if fault else {}, tag=fault)
                    for fault in ("", *FAULTS, "")
                ]
                run = await run_closed_loop(client, requests, len(requests))
                for record in run.records:
                    told.append(record.failure == EXPECTED.get(record.tag, ""))
                    if not record.tag:
                        counted += [record.output_tokens == 6, record.prompt_tokens == 3, len(record.itl_s()) == 5]
                counted.append(summarise(run).succeeded == 2)
        return told, counted

    with open_server(load) as server:
        told, counted = asyncio.run(send(server.url))
    return {"told": told, "counted": counted}
