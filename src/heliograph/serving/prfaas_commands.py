"""``heliograph serving prfaas plan | simulate``: threshold and split for two clusters, and what they do under load."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heliograph.errors import BadInput

if TYPE_CHECKING:
    from heliograph.serving.prfaas.service_model import Plan
    from heliograph.serving.prfaas.simulate import SimPrompt

__all__ = ["app"]

app = typer.Typer(
    help="Long prompts computed in another cluster: where to set the threshold, and what it brings.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Profile = Annotated[str, typer.Argument(help="A profile of the two clusters (JSON), or case-study for the paper's.")]
Trace = Annotated[Path | None, typer.Option(help="A request trace; its lengths take the place of the profile's.")]
Mooncake = Annotated[bool, typer.Option("--mooncake", help="The trace is in Mooncake's form.")]


@app.command()
def plan(
    profile: Profile,
    trace: Trace = None,
    mooncake: Mooncake = False,
    gbps: Annotated[float | None, typer.Option(help="Of the link, in place of the profile's.")] = None,
    kv_ratio: Annotated[float | None, typer.Option(help="By which caches are compressed on the way.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find threshold and split, and compare the rate with deployments that do without."""
    from heliograph.serving.prfaas.deployments import DEPLOYMENTS, plan_of
    from heliograph.serving.prfaas.profile_file import read_service, uncached_lengths

    service = read_service(profile)
    model = service.model
    if gbps is not None:
        model = replace(model, egress_gbps=gbps)
    if kv_ratio is not None:
        model = replace(model, kv_ratio=kv_ratio)
    lengths, reused = service.lengths, 0.0
    if trace is not None:
        prompts, block = _prompts(trace, mooncake)
        lengths, reused = uncached_lengths(prompts, block)
        model = replace(model, out_len=sum(p.output_tokens for p in prompts) / len(prompts))
    if lengths is None:
        raise BadInput(f"{profile} has no lengths: add them, or give --trace")
    names = [name for name in DEPLOYMENTS if name != "earliest-finish"]
    with _notes():
        plans = {name: plan_of(name, model, lengths, service.homogeneous_instances) for name in names}
    best, base = plans["prfaas"], plans["homogeneous"]
    if as_json:
        found: dict[str, Any] = {name: p.to_json() for name, p in plans.items()}
        gains = {name: best.rate / p.rate if p.rate else None for name, p in plans.items() if name != "prfaas"}
        typer.echo(
            json.dumps({"plans": found, "gain_over": gains, "mean_tokens": lengths.mean(), "reused": reused}, indent=1)
        )
        return
    typer.echo(f"{service.name}: uncached prompts of {lengths.mean():,.0f} tokens on average, {reused:.0%} reused")
    typer.echo(f"threshold {_tokens(best.t)}; {best.n_p} local instances compute prompts, {best.n_d} decode")
    typer.echo(f"{best.p:.1%} of prompts leave, {best.egress_gbps:.1f} of {model.egress_gbps:g} Gbit/s\n")
    typer.echo(f"{'deployment':<14} {'req/s':>8} {'remote':>8} {'local':>8} {'decode':>8}  N_p:N_d  limited by")
    for name, p in plans.items():
        rates = " ".join(
            f"{rate:8.3f}" if math.isfinite(rate) else f"{'-':>8}" for rate in (p.remote_rate, p.local_rate)
        )
        typer.echo(f"{name:<14} {p.rate:8.3f} {rates} {p.decode_rate:8.3f}  {f'{p.n_p}:{p.n_d}':>7}  {p.bottleneck}")
    if base.rate:
        typer.echo(f"\n{best.rate / base.rate:.2f} times {service.homogeneous_instances} local instances alone")


@app.command()
def simulate(
    profile: Profile,
    deployment: Annotated[
        str, typer.Option(help="prfaas, homogeneous, naive, least-loaded, earliest-finish, or all.")
    ] = "all",
    trace: Trace = None,
    mooncake: Mooncake = False,
    rate: Annotated[float | None, typer.Option(help="Requests a second; of a trace, its speed is changed.")] = None,
    load: Annotated[
        float, typer.Option(help="Share of each deployment's own highest rate, where no rate is given.")
    ] = 0.95,
    requests: Annotated[int, typer.Option(help="How many, without a trace.")] = 5000,
    seed: Annotated[int, typer.Option(help="Of arrivals and lengths.")] = 0,
    bandwidth: Annotated[str, typer.Option(help="Changes of the link: SECONDS:GBPS,SECONDS:GBPS.")] = "",
    adaptive: Annotated[bool, typer.Option("--adaptive", help="The threshold follows the bandwidth left.")] = False,
    roles: Annotated[
        bool, typer.Option("--roles", help="Local instances change roles under lasting imbalance.")
    ] = False,
    cache_tokens: Annotated[
        int | None, typer.Option(help="Of prefixes that each cluster keeps; none: no limit.")
    ] = None,
    checkpoint: Annotated[
        int | None, typer.Option(help="Tokens between states that are saved; none: each block.")
    ] = None,
    fallback: Annotated[float | None, typer.Option(help="Seconds a cache may take before it is computed here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run deployments in virtual time on one load."""
    from heliograph.serving.prfaas.deployments import DEPLOYMENTS, Options, build, plan_of
    from heliograph.serving.prfaas.profile_file import read_service, uncached_lengths
    from heliograph.serving.prfaas.simulate import SimPrompt
    from heliograph.workload.arrivals import LogNormalLengths, arrival_times

    chosen = list(DEPLOYMENTS) if deployment == "all" else [deployment]
    if unknown := [name for name in chosen if name not in DEPLOYMENTS]:
        raise BadInput(f"deployment {unknown[0]!r} is not known; there are {', '.join(DEPLOYMENTS)} and all")
    if requests < 1 or not load > 0 or (rate is not None and not rate > 0):
        raise BadInput(f"need requests, load and rate above 0; got {requests}, {load}, {rate}")
    service = read_service(profile)
    model, lengths, block = service.model, service.lengths, 0
    read: list[SimPrompt] = []
    if trace is not None:
        read, block = _prompts(trace, mooncake)
        lengths, _ = uncached_lengths(read, block)
        model = replace(model, out_len=sum(p.output_tokens for p in read) / len(read))
    if lengths is None:
        raise BadInput(f"{profile} has no lengths: add them, or give --trace")
    if trace is None and not isinstance(lengths, LogNormalLengths):
        raise BadInput("requests are made from log-normal lengths; for measured ones give --trace")
    options = Options(
        adaptive, roles, block, cache_tokens // block if cache_tokens and block else None, checkpoint,
        _changes(bandwidth), fallback,
    )  # fmt: skip
    reports = {}
    for name in chosen:
        with _notes():
            found = plan_of(name, model, lengths, service.homogeneous_instances)  # type: ignore[arg-type]
        prompts = read
        if trace is None:
            wanted = load * found.rate if rate is None else rate
            if not wanted > 0:
                raise BadInput(f"{name} can serve nothing by the model, so that a share of it is no load: give --rate")
            assert isinstance(lengths, LogNormalLengths)
            times, tokens = arrival_times(requests, wanted, seed=seed), lengths.sample(requests, seed)
            answer = max(1, round(model.out_len))
            prompts = [SimPrompt(float(a), int(n), answer) for a, n in zip(times, tokens, strict=True)]
        elif rate is not None:
            factor = (len(read) - 1) / max(1e-9, read[-1].arrival_s - read[0].arrival_s) / rate
            prompts = [replace(p, arrival_s=p.arrival_s * factor) for p in read]
        typer.echo(f"{name}: {len(prompts):,} requests, {_shape(found)}", err=True)
        last = [0.0]

        def say(done: float, name: str = name, last: list[float] = last) -> None:
            if done - last[0] >= 0.25:
                last[0] = done
                typer.echo(f"{name}: {done:.0%}", err=True)

        with _notes():
            reports[name] = build(name, model, found, options).run(prompts, say).summary()  # type: ignore[arg-type]
    if as_json:
        typer.echo(json.dumps(reports, indent=1))
        return
    typer.echo(
        f"{'deployment':<16} {'req/s':>7} {'TTFT mean':>10} {'P90':>8} {'P99':>8} "
        f"{'remote':>7} {'Gbit/s':>7} {'queue MiB':>10}"
    )
    for name, r in reports.items():
        cells = [r["throughput_per_s"], r["ttft_mean_s"], r["ttft_p90_s"], r["ttft_p99_s"]]
        times_ = " ".join(
            f"{'-' if cell is None else format(cell, '.2f'):>{width}}"
            for cell, width in zip(cells, (7, 10, 8, 8), strict=True)
        )
        gbit = "-" if r["egress_gbps"] is None else f"{r['egress_gbps']:.1f}"
        line = f"{name:<16} {times_} {r['remote_share']:7.1%} {gbit:>7} {r['most_queued_mib']:10,.0f}"
        typer.echo(line + (f"  {r['unfinished']:,} never ended" if r["unfinished"] else ""))


@contextlib.contextmanager
def _notes() -> Iterator[None]:
    """Warnings as plain lines on standard error."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: typer.echo(f"note: {message}", err=True)
        yield


def _prompts(trace: Path, mooncake: bool) -> tuple[list[SimPrompt], int]:
    """A trace's prompts, and the tokens of the blocks by which they are named."""
    from heliograph.serving.prfaas.simulate import prompts_from_trace
    from heliograph.workload import read_mooncake, read_trace

    read = read_mooncake(trace) if mooncake else read_trace(trace)
    sizes = {request.prefix_block_tokens for request in read if request.prefix_block_ids}
    if len(sizes) > 1:
        raise BadInput(f"{trace} names blocks of {sorted(sizes)} tokens; one size is needed")
    block = sizes.pop() if sizes else 512
    prompts = prompts_from_trace(read, block)
    if not prompts:
        raise BadInput(f"{trace} holds no request")
    return prompts, block


def _changes(text: str) -> tuple[tuple[float, float], ...]:
    found = []
    for part in filter(None, text.split(",")):
        when, _, gbps = part.partition(":")
        try:
            found.append((float(when), float(gbps)))
        except ValueError:
            raise BadInput(f"--bandwidth takes SECONDS:GBPS, separated by commas; got {part!r}") from None
    if any(b[0] < a[0] for a, b in itertools.pairwise(found)) or any(not g >= 0 or not w >= 0 for w, g in found):
        raise BadInput(f"--bandwidth takes times in order and Gbit/s of 0 or more; got {text!r}")
    return tuple(found)


def _tokens(t: float) -> str:
    return "above every length: none leave" if math.isinf(t) else f"{t:,.0f} tokens"


def _shape(plan: Plan) -> str:
    threshold = "no threshold" if math.isnan(plan.t) else f"threshold {_tokens(plan.t)}"
    return f"{plan.n_remote} remote, {plan.n_p} local for prompts, {plan.n_d} for answers, {threshold}"
