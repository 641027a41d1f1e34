"""``heliograph serving amd_instinct advise | bench | client``: flags from architecture, load against any server."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from heliograph.errors import BadInput

__all__ = ["app"]

app = typer.Typer(
    help="Flags that follow a model's architecture, and a load benchmark for any OpenAI-compatible server.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@app.command()
def advise(
    model: Annotated[str, typer.Option(help="A config.json or its folder, or a model of the study by name.")],
    device: Annotated[
        str, typer.Option(help="For example mi325x:8, h100:1, cpu, a TOML file, or auto for this machine.")
    ] = "auto",
    engine: Annotated[str, typer.Option(help="Engine and version.")] = "vllm==0.14.1",
    concurrency: Annotated[int, typer.Option(help="Requests at once that are wanted of the host.")] = 1000,
    prompt: Annotated[int, typer.Option(help="Prompt tokens of a usual request.")] = 2048,
    output: Annotated[int, typer.Option(help="Output tokens of a usual request.")] = 512,
    steady: Annotated[
        bool, typer.Option("--steady", help="Even latency matters more than a few percent of rate.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Recommend flags, with the reason of each, a memory plan and the predicted point of saturation."""
    from heliograph.serving.amd_instinct import ServingAdvisor, studied_model, studied_models
    from heliograph.workload import DeviceSpec, LlmShape

    shape = studied_model(model) if model in studied_models() else LlmShape.from_config(model)
    if device == "auto":
        spec = DeviceSpec.detect()
    else:
        spec = DeviceSpec.from_toml(device) if device.endswith(".toml") else DeviceSpec.named(device)
    plan = ServingAdvisor().recommend(
        shape, spec, engine, concurrency=concurrency, prompt=prompt, output=output, steady=steady
    )
    if as_json:
        typer.echo(json.dumps({**plan.to_json(), "command": plan.command()}, indent=2))
        return
    memory = plan.memory
    typer.echo(plan.command())
    servers = f"{plan.replicas} server(s) of {plan.tensor_parallel}"
    typer.echo(f"\n{plan.model}, {plan.attention} attention, {plan.device}: {servers}")
    typer.echo(
        f"a rank: weights {memory.weight_bytes / 2**30:,.1f} GiB, cache {memory.cache_bytes / 2**30:,.1f} GiB, "
        f"{plan.max_concurrency(prompt + output):,} requests of {prompt + output:,} tokens at once"
    )
    bend = plan.saturation(prompt, output)
    typer.echo(f"predicted saturation: {f'about {bend:,.0f} requests' if math.isfinite(bend) else 'none found'}")
    for why in plan.why:
        value = "left out" if why.setting.value is None else why.setting.value
        lost = f" (overruled by {why.overruled_by})" if why.overruled_by else ""
        sure = "" if why.verified else ", not verified for this version"
        typer.echo(f"  {why.rule:<4} {why.setting.name} = {value}{lost}: {why.reason} [{why.evidence}{sure}]")
        if why.alternative:
            typer.echo(f"       untried: {why.alternative}")
    for rejected in plan.rejected:
        typer.echo(f"  tensor parallel {rejected.tensor_parallel}: not chosen: {rejected.reason}")
    for unknown in plan.unknowns:
        typer.echo(f"  unknown: {unknown}")


@app.command()
def bench(
    url: Annotated[str, typer.Option(help="Of the server, for example http://127.0.0.1:8000.")],
    model: Annotated[str, typer.Option(help="Its name there; the first one where empty.")] = "",
    levels: Annotated[str, typer.Option(help="Concurrencies, separated by commas.")] = "1,4,16",
    rates: Annotated[str, typer.Option(help="Requests a second of an open loop, in place of levels.")] = "",
    isl: Annotated[int, typer.Option(help="Prompt tokens.")] = 512,
    osl: Annotated[int, typer.Option(help="Output tokens.")] = 64,
    runs: Annotated[int, typer.Option(help="Independent runs of each level.")] = 5,
    mode: Annotated[str, typer.Option(help="quick, standard or thorough.")] = "standard",
    endpoint: Annotated[str, typer.Option(help="completions (token ids) or chat (words).")] = "completions",
    vocabulary: Annotated[int, typer.Option(help="Size of the vocabulary, for token ids.")] = 32000,
    ramp: Annotated[float, typer.Option(help="Seconds over which the clients of a level start.")] = 0.0,
    warm_prefix: Annotated[int, typer.Option(help="First tokens that all prompts of a run share.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the report as JSON.")] = None,
    compare: Annotated[Path | None, typer.Option(help="A saved report to compare with.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a server in phases, with repeats and intervals."""
    from heliograph.serving.amd_instinct import LoadBenchmark

    if mode not in ("quick", "standard", "thorough") or endpoint not in ("completions", "chat"):
        raise BadInput("--mode takes quick, standard or thorough; --endpoint takes completions or chat")
    bench_ = LoadBenchmark(
        url,
        model,
        endpoint=endpoint,  # type: ignore[arg-type]
        vocabulary=vocabulary,
        warm_prefix_tokens=warm_prefix,
        say=lambda line: typer.echo(line, err=True),
    )
    if rates:
        report = bench_.run_rates(_numbers(rates, float, "--rates"), isl=isl, osl=osl, runs=runs)
    else:
        chosen = [int(level) for level in _numbers(levels, int, "--levels")]
        report = bench_.run(chosen, isl=isl, osl=osl, runs=runs, mode=mode, ramp_s=ramp)  # type: ignore[arg-type]
    if output is not None:
        report.save(output)
    typer.echo(json.dumps(report.to_json(), indent=1) if as_json else report.table())
    if compare is not None:
        for level, difference in report.compare(compare).items():
            typer.echo(f"concurrency {level}, {compare} against this: {difference}", err=as_json)


@app.command()
def client(
    levels: Annotated[str, typer.Option(help="Concurrencies, separated by commas.")] = "1,16,64",
    osl: Annotated[int, typer.Option(help="Output tokens.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Measure the client alone, against a server that answers at once: no server can be measured above this."""
    import asyncio

    from heliograph.serving.amd_instinct.benchmark import client_rate
    from heliograph.serving.load.launch import echo_command, free_port, launch_server

    port = free_port()
    found = {}
    with launch_server(echo_command(port), port) as server:
        for level in _numbers(levels, int, "--levels"):
            found[int(level)] = asyncio.run(client_rate(server.url, int(level), osl))
    if as_json:
        typer.echo(json.dumps([{"concurrency": k, "output_tokens_per_s": v} for k, v in found.items()], indent=1))
        return
    for level, rate in found.items():
        typer.echo(f"concurrency {level:>5}: {rate:10,.0f} tok/s")


def _numbers(text: str, kind: type, option: str) -> list[float]:
    try:
        found = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or min(found) <= 0:
        raise BadInput(f"{option} takes positive numbers separated by commas; got {text!r}")
    return found
