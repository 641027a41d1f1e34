"""Every command; each is thin and imports what it needs when it runs, so that ``--help`` is instant."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heliograph import __version__
from heliograph.agents.commands import agents_app, gateway_app
from heliograph.errors import BadInput, HeliographError
from heliograph.graphs.commands import app as graphs_app
from heliograph.serving.commands import app as serving_app
from heliograph.serving.commands import serve

if TYPE_CHECKING:
    from rich.console import Console


__all__ = ["app", "main"]

app = typer.Typer(
    name="heliograph",
    help="Message-passing systems at every scale, each with a check of its paper's headline claim on your machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(graphs_app, name="graphs")
app.add_typer(serving_app, name="serving")
app.add_typer(agents_app, name="agents")
app.add_typer(gateway_app, name="gateway")
app.command()(serve)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
StoreUrl = Annotated[
    str | None, typer.Option("--store", help="sqlite:///PATH or postgresql://...; the default store otherwise.")
]
Preset = Annotated[str, typer.Option(help="smoke (seconds), laptop (2 cores, 3 minutes) or gpu.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file instead.")]


def main() -> None:
    """The command ``heliograph``: an error of ours is one line and its exit code, never a traceback."""
    try:
        code = app(standalone_mode=False)
    except HeliographError as error:
        _say_error(str(error))
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    except Exception as error:
        # Typer's own usage errors carry a message and an exit code; anything else is a defect and keeps its traceback.
        if not hasattr(error, "format_message"):
            raise
        _say_error(f"{error.format_message()}\nSee heliograph --help, or heliograph COMMAND --help.")
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


def _say_error(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)


def _console(*, error: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=error, soft_wrap=False)


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, allow_nan=False))


def _write(path: Path, text: str) -> None:
    """Writes a whole file or nothing."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True) if part.parent.is_dir() else None
        raise BadInput(f"cannot write {path}: {error.strerror}") from None


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"heliograph {__version__}")
        raise typer.Exit


@app.command()
def systems(
    query: Annotated[
        list[str] | None, typer.Argument(help="Words to search for, for example: overlap communication.")
    ] = None,
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    status: Annotated[str | None, typer.Option(help="Only planned or working systems.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the 55 systems, or search them."""
    from heliograph.catalog.card import FAMILIES
    from heliograph.catalog.registry import load_cards

    if family is not None and family not in FAMILIES:
        raise BadInput(f"unknown family {family!r}; choose one of {', '.join(FAMILIES)}")
    if status not in (None, "planned", "working"):
        raise BadInput(f"--status takes planned or working; got {status!r}")
    cards = list(load_cards().values())
    if query:
        from heliograph.catalog.search import search

        cards = [hit.card for hit in search(" ".join(query), cards)]
    cards = [c for c in cards if family in (None, c.family) and status in (None, c.status)]
    if as_json:
        _print_json(
            [
                {
                    "slug": c.slug,
                    "title": c.title,
                    "family": c.family,
                    "year": c.year,
                    "status": c.status,
                    "claims": [
                        {"id": k.id, "statement": k.statement, "metric": k.metric, "paper": k.paper} for k in c.claims
                    ],
                }
                for c in cards
            ]
        )
        return
    if not cards:
        print("no system matches; `heliograph systems` lists all")
        return
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("system", "family", "year", "status", "title"):
        table.add_column(name, no_wrap=name != "title")
    for c in cards:
        table.add_row(f"[bold]{c.slug}[/]", c.family, str(c.year), c.status, c.title)
    _console().print(table)


@app.command()
def show(
    slug: Annotated[str, typer.Argument(help="A system, for example floydnet.")],
    store: StoreUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show what a system claims, what was measured elsewhere, and what was measured here."""
    from heliograph.catalog.registry import committed_results, get_card
    from heliograph.trials.present import latest_here, print_card

    card = get_card(slug)
    elsewhere, here = committed_results(card.slug), latest_here(card.slug, store)
    if as_json:
        import msgspec

        _print_json({"card": msgspec.to_builtins(card), "elsewhere": elsewhere, "here": here})
        return
    print_card(_console(), card, elsewhere, here)


@app.command()
def check(
    slugs: Annotated[list[str], typer.Argument(help="One or more systems.")],
    preset: Preset = "laptop",
    seeds: Annotated[
        int | None, typer.Option(help="Independent blocks an experiment; the preset's number otherwise.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Base seed.")] = 0,
    workload: Annotated[Path | None, typer.Option(help="Your own input, for checks that take one.")] = None,
    on: Annotated[str, typer.Option(help="local or ray.")] = "local",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the newest unfinished run of the same systems.")
    ] = False,
    rerun: Annotated[
        bool, typer.Option("--rerun", help="With --resume: start anew where the old run does not match.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would run, how long, and what it could detect.")
    ] = False,
    try_to_break: Annotated[
        bool, typer.Option("--try-to-break", help="Sweep size, seed and noise; report where a verdict flips.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Trials at a time; the number of cores otherwise.")] = None,
    store: StoreUrl = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Measure a system's claims here, against its honest baseline, and say whether they hold."""
    from heliograph.trials.session import CheckOptions, check_systems
    from heliograph.trials.watch import RunWatcher, print_findings

    options = CheckOptions(preset, seeds, seed, workload, on, resume, rerun, store, workers)
    if dry_run:
        from heliograph.trials.present import dry_run_json, print_dry_run

        rows = dry_run_json(slugs, options)
        _print_json(rows) if as_json else print_dry_run(_console(), rows)
        return
    if try_to_break:
        _try_to_break(slugs, options, as_json, output)
        return
    with RunWatcher(_console(error=True)) as watcher:
        outcome, plans, cards = check_systems(slugs, options, watcher.start, watcher.event)
    if outcome.interrupted:
        _say_error(
            f"interrupted; {len(outcome.records)} finished trials are kept. "
            f"Go on with: {options.command(outcome.header.slugs, resume=True)}"
        )
        raise typer.Exit(130)
    from heliograph.trials.judge import exit_code
    from heliograph.trials.report import result_json

    if output is not None:
        data = result_json(outcome.header, outcome.judgements, outcome.records)
        _write(output, json.dumps(data, indent=1, allow_nan=False) + "\n")
    if as_json:
        _print_json(result_json(outcome.header, outcome.judgements))
        for warning in outcome.warnings:
            _say_error(warning)
    else:
        print_findings(_console(), outcome, plans, cards)
    findings = [f for j in outcome.judgements.values() for f in j.findings]
    raise typer.Exit(exit_code(findings))


def _try_to_break(slugs: list[str], options: Any, as_json: bool, output: Path | None) -> None:
    from heliograph.trials.present import break_systems

    results = break_systems(slugs, options, _console(error=True), _console(error=as_json))
    if output is not None:
        _write(output, json.dumps(results, indent=1, allow_nan=False) + "\n")
    if as_json:
        _print_json(results)


@app.command()
def compare(
    workload: Annotated[str, typer.Argument(help="A built-in task, or a path to your own data.")],
    contenders: Annotated[str, typer.Option(help="Names separated by commas; the first is the reference.")] = "",
    target: Annotated[str, typer.Option(help="Target column or attribute of your own data.")] = "",
    family: Annotated[str, typer.Option(help="Whose contenders and tasks.")] = "graphs",
    budget: Annotated[str, typer.Option(help="Training time of the whole comparison, shared equally.")] = "5min",
    seeds: Annotated[int, typer.Option(help="Independent seeds.")] = 5,
    seed: Annotated[int, typer.Option(help="Base seed.")] = 0,
    match: Annotated[str, typer.Option(help="parameters (within 5 %) or none.")] = "parameters",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write an HTML page with the Pareto chart.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Give contenders the same training seconds on your workload, and chart quality against cost."""
    from heliograph.trials.present import run_comparison

    if match not in ("parameters", "none"):
        raise BadInput(f"--match takes parameters or none; got {match!r}")
    names = [name.strip() for name in contenders.split(",") if name.strip()]
    result, page = run_comparison(
        _console(error=True), workload, names, family, budget, seeds, seed, match == "parameters", target
    )
    if output is not None:
        _write(output, page)
    if as_json:
        _print_json(result)
    else:
        from heliograph.trials.present import print_comparison

        print_comparison(_console(), result)
    raise typer.Exit(int(any(row["failed"] for row in result["rows"])))


@app.command()
def runs(
    slug: Annotated[str | None, typer.Argument(help="Only runs of this system.")] = None,
    limit: Annotated[int, typer.Option(help="How many.")] = 20,
    import_file: Annotated[Path | None, typer.Option("--import", help="Add a record file to the store first.")] = None,
    store: StoreUrl = None,
    as_json: AsJson = False,
) -> None:
    """List the runs on this machine."""
    from dataclasses import asdict

    from heliograph.trials.store import Store

    kept = Store(store)
    if import_file is not None:
        from heliograph.trials.session import import_record

        print(f"added {import_record(import_file, kept).run}", file=sys.stderr)
    rows = kept.runs(slug, limit)
    if as_json:
        _print_json([asdict(row) for row in rows])
    elif not rows:
        print("no runs yet; `heliograph check floydnet` makes one")
    else:
        from heliograph.trials.watch import runs_table

        _console().print(runs_table(rows))


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="A run's id or its beginning, last, or a record file.")] = "last",
    output: Output = None,
    badge: Annotated[bool, typer.Option("--badge", help="Also write an SVG badge a system.")] = False,
    cite: Annotated[bool, typer.Option("--cite", help="Print BibTeX of the papers and of this run.")] = False,
    store: StoreUrl = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's report: one HTML file that opens without network, light and dark."""
    from heliograph.trials.present import judge_records, load_run
    from heliograph.trials.report import badge_svg, citation, render_report, result_json

    header, records = load_run(run, store)
    judgements, checks, cards = judge_records(header, records)
    if as_json:
        _print_json(result_json(header, judgements))
        return
    if cite:
        for slug in judgements:
            if slug in cards:
                print(citation(cards[slug], header, __version__))
    path = output or Path(f"{header.run}.html")
    _write(path, render_report(header, records, judgements, checks, cards))
    print(f"report: {path}", file=sys.stderr)
    if badge:
        for slug, judgement in judgements.items():
            place = path.with_name(f"{slug}-badge.svg")
            _write(place, badge_svg([f.to_json() for f in judgement.findings], slug))
            print(f"badge: {place}", file=sys.stderr)


@app.command()
def rejudge(
    run: Annotated[str, typer.Argument(help="A run's id or its beginning, last, or a record file.")],
    output: Output = None,
    store: StoreUrl = None,
    as_json: AsJson = False,
) -> None:
    """Judge the records of a run again, without running anything."""
    from heliograph.trials.judge import exit_code
    from heliograph.trials.present import judge_records, load_run, print_judgements
    from heliograph.trials.report import result_json
    from heliograph.trials.store import Store

    header, records = load_run(run, store)
    judgements, checks, cards = judge_records(header, records)
    if not Path(run).is_file():
        kept = Store(store)
        for slug, judgement in judgements.items():
            kept.save_judgement(header.run, slug, judgement)
    if output is not None:
        _write(output, json.dumps(result_json(header, judgements, records), indent=1, allow_nan=False) + "\n")
    if as_json:
        _print_json(result_json(header, judgements))
    else:
        print_judgements(_console(), judgements, checks, cards)
    raise typer.Exit(exit_code(f for j in judgements.values() for f in j.findings))


@app.command()
def new(
    slug: Annotated[str, typer.Argument(help="The new system's name, for example my_system.")],
    family: Annotated[str, typer.Option(help="agents, serving, graphs, lm, ranks or chips.")],
    into: Annotated[Path, typer.Option(help="A checkout of heliograph, or where to make a plug-in package.")] = Path(),
) -> None:
    """Start a new system: card, component, check and tests that run at once."""
    from heliograph.trials.scaffold import scaffold

    for path in scaffold(slug, family, into):
        print(path)
    print(
        f"next: heliograph check {slug} --preset smoke (in a plug-in folder, first: pip install -e .)", file=sys.stderr
    )


@app.command()
def doctor(store: StoreUrl = None, as_json: AsJson = False) -> None:
    """Say what this machine can run, and the one command that installs what is missing."""
    from heliograph.trials.doctor import diagnose

    rows = diagnose(store)
    if as_json:
        _print_json([row.to_json() for row in rows])
    else:
        console = _console()
        colours = {"ok": "green", "missing": "yellow", "broken": "red"}
        for row in rows:
            console.print(f"[{colours[row.state]}]{row.state:8}[/]{row.what:16}", end="")
            console.print(f"{row.found}" + (f"  ->  {row.remedy}" if row.remedy else ""), markup=False, highlight=False)
    raise typer.Exit(int(any(row.state == "broken" for row in rows)))


@app.command()
def web(
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to bind.")] = 8765,
    open_browser: Annotated[bool, typer.Option("--open", help="Open a browser.")] = False,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Let other machines read the catalog and runs.")
    ] = False,
    store: StoreUrl = None,
) -> None:
    """Serve the catalog, the runs and a running check to a browser (read-only, loopback)."""
    from heliograph.web.serve import serve

    serve(host=host, port=port, store_url=store, open_browser=open_browser, allow_remote=allow_remote)


if __name__ == "__main__":
    main()
