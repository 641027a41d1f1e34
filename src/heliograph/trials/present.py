"""What commands show beside a running check: a card, a dry run, a comparison, an attempt to break a claim."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from heliograph.catalog.card import FAMILIES, Card
from heliograph.catalog.registry import check_ref, committed_results, load_cards
from heliograph.errors import BadInput, HeliographError, StoreError
from heliograph.statistics import simultaneous_level, smallest_detectable_effect
from heliograph.trials.check import Check, Exact
from heliograph.trials.compare import (
    Comparison,
    comparison_rows,
    comparison_trials,
    parse_budget,
)
from heliograph.trials.judge import LEVEL, Judgement, judge
from heliograph.trials.plan import Plan, load_check
from heliograph.trials.record import RunHeader, TrialRecord, read_records
from heliograph.trials.report import guarding, paper_value
from heliograph.trials.run import pick_device
from heliograph.trials.sentences import axis_chart, figure_text, here_text, sentence
from heliograph.trials.session import CheckOptions, make_executor, plan_systems
from heliograph.trials.store import Store
from heliograph.trials.watch import VERDICT_STYLES, duration_text

__all__ = [
    "break_systems",
    "dry_run_json",
    "judge_records",
    "latest_here",
    "load_run",
    "print_card",
    "print_comparison",
    "print_dry_run",
    "print_judgements",
    "run_comparison",
]


def load_run(run: str, store_url: str | None) -> tuple[RunHeader, list[TrialRecord]]:
    """A run from the store, or from a record file.

    Raises:
        BadInput: neither.
    """
    path = Path(run)
    if path.is_file():
        return read_records(path)
    if path.suffix in (".json", ".jsonl"):
        raise BadInput(f"there is no record file {run}")
    return Store(store_url).load(run)


def judge_records(
    header: RunHeader, records: Sequence[TrialRecord]
) -> tuple[dict[str, Judgement], dict[str, Check], dict[str, Card]]:
    """Judges a run by today's rules.

    Raises:
        HeliographError: a check of the run is not installed.
    """
    cards = {slug: card for slug, card in load_cards().items() if slug in header.slugs}
    refs = {slug: check_ref(cards[slug]) if slug in cards else None for slug in header.slugs}
    missing = [slug for slug, ref in refs.items() if ref is None]
    if missing:
        raise BadInput(f"the run checked {missing[0]}, which this installation does not know")
    checks = {slug: load_check(ref) for slug, ref in refs.items() if ref is not None}
    planned = header.settings.get("planned", ())
    judgements = {slug: judge(check, cards[slug], header.preset, records, planned) for slug, check in checks.items()}
    return judgements, checks, cards


def print_judgements(
    console: Console, judgements: Mapping[str, Judgement], checks: Mapping[str, Check], cards: Mapping[str, Card]
) -> None:
    """Findings as lines, charts and sentences."""
    for slug, judgement in judgements.items():
        for finding in judgement.findings:
            row = finding.to_json()
            console.print(
                Text.assemble((f"{finding.claim}: ", "bold"), (finding.verdict, VERDICT_STYLES[finding.verdict]))
            )
            paper = paper_value(finding, checks[slug], cards.get(slug))
            for line in axis_chart(row, guarding(checks[slug], finding.claim, judgement.controls), paper):
                console.print(Text(f"  {line}"))
            console.print(Text(sentence(row, checks[slug].tuning)))
            console.print()


def latest_here(slug: str, store_url: str | None) -> dict[str, Any] | None:
    """The newest finished run of a system in the local store, as its findings and controls; ``None`` without one."""
    try:
        store = Store(store_url)
        for summary in store.runs(slug):
            judged = store.judgements(summary.run).get(slug)
            if judged:
                return {"run": summary.run, "preset": summary.preset, "machine": summary.machine, **judged}
    except StoreError:
        return None
    return None


def print_card(
    console: Console, card: Card, elsewhere: Sequence[Mapping[str, Any]], here: Mapping[str, Any] | None
) -> None:
    """A card: the claims, the committed records of other machines, and this machine's."""
    console.print(f"[bold]{escape(card.title)}[/]", highlight=False)
    facts = [card.family, str(card.year), f"arXiv:{card.arxiv}" if card.arxiv else "", card.status]
    code = (
        f"code: github.com/{card.code}" + (f" ({card.code_licence})" if card.code_licence else "") if card.code else ""
    )
    console.print(" · ".join(filter(None, [*facts, code])), style="bright_black", highlight=False)
    console.print(" ".join(card.summary.split()), highlight=False)
    public = _importable(card)
    if public:
        console.print(f"from heliograph.{card.family} import {', '.join(public)}", style="cyan", highlight=False)
    for claim in card.claims:
        console.print()
        console.print(f"[bold]{claim.id}[/]  {escape(claim.statement)}", highlight=False)
        origin = {"paper": "paper", "code": "official code", "ours": "not in the paper; our claim"}[claim.source]
        console.print(f"  {origin}: {escape(claim.paper)} | {escape(claim.metric)}", highlight=False)
        console.print(f"  against: {escape(claim.baseline)} | on: {escape(claim.workload)}", highlight=False)
        for record in elsewhere:
            machine = record["header"]["machine"].get("label", "unnamed machine")
            _print_claim_row(console, f"{machine}, {record['header']['preset']}", record["findings"], claim.id)
        if here is None:
            console.print("  here: not run", highlight=False)
        else:
            _print_claim_row(console, f"here, {here['preset']}", here["findings"], claim.id)


def _importable(card: Card) -> list[str]:
    """Those public names of a card that its family exports today."""
    if card.check_package or importlib.util.find_spec(f"heliograph.{card.family}") is None:
        return []
    exported = getattr(importlib.import_module(f"heliograph.{card.family}"), "__all__", ())
    return [name for name in card.public if name in exported]


def _print_claim_row(console: Console, where: str, findings: Sequence[Mapping[str, Any]], claim: str) -> None:
    for finding in findings:
        if finding["claim"] == claim:
            text = Text(f"  {where}: ")
            text.append(finding["verdict"], VERDICT_STYLES[finding["verdict"]])
            text.append(f"  {here_text(finding)}")
            console.print(text)
            return
    console.print(f"  {escape(where)}: not checked", highlight=False)


def dry_run_json(slugs: Sequence[str], options: CheckOptions) -> list[dict[str, Any]]:
    """What a check would do: trials, minutes, memory, and the smallest effect that each claim could detect.

    Seconds, memory and spread come from this machine's newest run of the same preset, else from a committed record,
    else from the check's own estimate.
    """
    plans, _ = plan_systems(slugs, options)
    workers = getattr(make_executor(plans, options), "workers", 1)
    rows = []
    for plan in plans:
        slug = plan.check.slug
        known = _known_record(slug, options)
        measured = {t["trial"]: t for t in known.get("trials", ())}
        seconds = sum(
            float(measured.get(t.id, {}).get("wall_s", t.estimate_s)) / (1 if t.exclusive else workers)
            for t in plan.trials
        )
        memory = max((int(t.get("peak_bytes", 0)) for t in measured.values()), default=0)
        rows.append(
            {
                "system": slug,
                "preset": plan.preset,
                "trials": len(plan.trials),
                "seconds": seconds,
                "memory_bytes": memory or None,
                "memory_limit_bytes": max(t.memory_limit_bytes for t in plan.trials),
                "based_on": known.get("where", "the check's own estimate"),
                "experiments": _experiment_rows(plan),
                "claims": [_claim_power(plan, claim, known) for claim in plan.check.claims],
            }
        )
    return rows


def _known_record(slug: str, options: CheckOptions) -> dict[str, Any]:
    try:
        store = Store(options.store_url)
        for summary in store.runs(slug):
            if summary.preset == options.preset and summary.status == "finished":
                judged = store.judgements(summary.run).get(slug, {})
                records = [r.to_json() for r in store.load(summary.run)[1] if r.slug == slug]
                return {"where": f"run {summary.run} here", "trials": records, **judged}
    except HeliographError:
        pass
    for record in committed_results(slug):
        if record["header"]["preset"] == options.preset:
            machine = record["header"]["machine"].get("label", "another machine")
            return {"where": f"the committed record of {machine}", "findings": record["findings"]}
    return {}


def _experiment_rows(plan: Plan) -> list[dict[str, Any]]:
    rows = []
    for name in dict.fromkeys(t.experiment for t in plan.trials):
        own = [t for t in plan.trials if t.experiment == name]
        experiment = plan.check.experiment(name)
        rows.append(
            {
                "name": name,
                "title": experiment.title,
                "contenders": [c.name for c in experiment.contenders],
                "workloads": list(dict.fromkeys(t.workload.name for t in own)),
                "blocks": len({t.block for t in own}),
                "trials": len(own),
            }
        )
    return rows


def _claim_power(plan: Plan, claim: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    blocks = len({t.block for t in plan.trials if t.experiment == claim.experiment})
    decides = plan.preset in claim.presets and (plan.preset != "smoke" or isinstance(claim.kind, Exact))
    found = next((f for f in known.get("findings", ()) if f["claim"] == claim.claim), None)
    smallest: float | None = None
    if decides and not isinstance(claim.kind, Exact) and found and found.get("deviation") is not None:
        level = simultaneous_level(LEVEL, max(1, plan.check.interval_claims(plan.preset)))
        smallest = smallest_detectable_effect(found["deviation"], blocks, level)
        smallest = math.exp(smallest) if claim.effect == "ratio" else smallest
    return {
        "claim": claim.claim,
        "decides": decides,
        "blocks": blocks,
        "exact": isinstance(claim.kind, Exact),
        "smallest_effect": smallest,
        "unit": "x" if claim.effect == "ratio" else claim.unit,
        "cannot_show": claim.cannot_show,
    }


def print_dry_run(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """The dry run as text."""
    for row in rows:
        memory = f"{row['memory_bytes'] / 2**20:.0f} MiB measured, " if row["memory_bytes"] else ""
        console.print(
            f"[bold]{row['system']}[/] at {row['preset']}: {_count(row['trials'], 'trial')}, "
            f"about {duration_text(row['seconds'])}, {memory}limit "
            f"{row['memory_limit_bytes'] / 2**30:.3g} GiB a trial ({row['based_on']})",
            highlight=False,
        )
        for part in row["experiments"]:
            console.print(
                f"  {part['name']}: {escape(part['title'])}; {_count(part['trials'], 'trial')}: "
                f"{_count(part['blocks'], 'block')} of "
                f"{', '.join(part['contenders'])} on {', '.join(part['workloads'])}",
                highlight=False,
            )
        for claim in row["claims"]:
            if not claim["decides"]:
                text = "not decided at this preset"
            elif claim["exact"]:
                text = "exact: one disagreement decides"
            elif claim["smallest_effect"] is None:
                text = "smallest detectable effect unknown until a first run"
            else:
                text = (
                    f"could detect an effect of {figure_text(claim['smallest_effect'], claim['unit'])} in 8 of 10 runs"
                )
            console.print(f"  claim {claim['claim']}: {text}", highlight=False)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def break_systems(
    slugs: Sequence[str], options: CheckOptions, progress: Console, console: Console
) -> list[dict[str, Any]]:
    """Tries to break every claim of some systems; prints where a verdict flips."""
    from heliograph.trials.session import check_systems
    from heliograph.trials.stress import StressPoint, break_claims, flips, stress_trials
    from heliograph.trials.watch import RunWatcher

    results = []
    for slug in slugs:
        with RunWatcher(progress) as watcher:
            outcome, plans, cards = check_systems([slug], options, watcher.start, watcher.event)
        if outcome.interrupted:
            raise KeyboardInterrupt
        plan = plans[0]
        original = outcome.judgements[plan.check.slug].findings
        count = sum(len(v.trials) for v in stress_trials(plan))
        console.print(f"trying to break {plan.check.slug}: {count} more trials", highlight=False)

        def tell(point: StressPoint) -> None:
            for finding in point.findings:
                text = Text(f"  {finding.claim} at {point.axis} {point.value}: ")
                text.append(finding.verdict, VERDICT_STYLES[finding.verdict])
                text.append(f"  {here_text(finding.to_json())}")
                console.print(text)

        executor = make_executor(plans, options)
        points = break_claims(plan, cards.get(plan.check.slug), executor, lambda _: None, tell)
        changed = flips(points, original)
        for line in changed or ["no verdict flipped"]:
            console.print(f"[bold]{escape(line)}[/]", highlight=False)
        results.append(
            {
                "system": plan.check.slug,
                "original": [f.to_json() for f in original],
                "points": [p.to_json() for p in points],
                "flips": changed,
            }
        )
    return results


def load_comparison(family: str) -> tuple[Comparison, str]:
    """What a family registers for ``compare``, and where.

    Raises:
        BadInput: unknown family, or one that registers nothing.
    """
    if family not in FAMILIES:
        raise BadInput(f"unknown family {family!r}; choose one of {', '.join(FAMILIES)}")
    module_name = f"heliograph.checks.{family}"
    try:
        comparison = getattr(importlib.import_module(module_name), "COMPARE", None)
    except ModuleNotFoundError:
        comparison = None
    if not isinstance(comparison, Comparison):
        raise BadInput(f"the family {family} has nothing to compare yet")
    return comparison, f"{module_name}:COMPARE"


def run_comparison(
    console: Console,
    workload: str,
    contenders: Sequence[str],
    family: str,
    budget: str,
    seeds: int,
    seed: int,
    match: bool,
    target: str = "",
) -> tuple[dict[str, Any], str]:
    """Runs a comparison; returns its table as data and an HTML page with the Pareto chart."""
    from heliograph.trials.local import Event, LocalExecutor
    from heliograph.trials.session import RunProgress
    from heliograph.trials.watch import RunWatcher

    comparison, ref = load_comparison(family)
    load = comparison.workload(workload, target)
    names = list(contenders) or list(comparison.contenders_for(load))
    device = pick_device("laptop")
    trials = comparison_trials(
        comparison, ref, load, names, parse_budget(budget), seeds=seeds, seed=seed, match=match, device=device
    )
    executor = LocalExecutor((f"heliograph.checks.{family}", *comparison.preload))
    estimates = {t.id: t.estimate_s for t in trials}
    progress = RunProgress(estimates, dict(estimates), executor.workers)
    records: list[TrialRecord] = []
    from heliograph.trials.header import new_header

    plan = Plan(ref, _as_check(trials[0].slug), "laptop", tuple(trials))
    header = new_header(
        [plan], f"heliograph compare {workload} --contenders {','.join(names)} --budget {budget}", {"seed": seed}
    )
    with RunWatcher(console) as watcher:
        watcher.start(header, progress, 0)

        def watch(event: Event) -> None:
            progress.take(event)
            if event.record is not None:
                records.append(event.record)
            watcher.event(event)

        executor.run(trials, watch)
    quality, direction = comparison.quality_of(load)
    rows = comparison_rows(records, names)
    result = {
        "workload": load.name,
        "quality": quality,
        "direction": direction,
        "train_seconds_each": trials[0].workload["budget_s"],
        "matched": match,
        "reference": names[0],
        "machine": header.machine,
        "seeds": seeds,
        "rows": [row.to_json() for row in rows],
    }
    return result, _comparison_page(result, records)


def _as_check(slug: str) -> Check:
    """A carrier for the header: a comparison decides no claim."""
    check = object.__new__(Check)
    for name, value in {"slug": slug, "sources": (), "experiments": (), "claims": (), "controls": ()}.items():
        object.__setattr__(check, name, value)
    return check


def print_comparison(console: Console, result: Mapping[str, Any]) -> None:
    """The comparison as a table, best quality first, and one sentence."""
    better = -1 if result["direction"] == "higher" else 1
    rows = sorted(
        result["rows"], key=lambda r: better * (r["quality"] if r["quality"] is not None else -better * math.inf)
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in (
        "contender",
        result["quality"],
        f"minus {result['reference']}",
        "parameters",
        "steps",
        "MiB",
        "set-up s",
    ):
        table.add_column(name)
    for row in rows:
        table.add_row(
            row["contender"] + (f" ({row['failed']} failed)" if row["failed"] else ""),
            _with_interval(row["quality"], row["low"], row["high"]),
            _with_interval(row["difference"], row["difference_low"], row["difference_high"]),
            f"{row['parameters']:,}",
            figure_text(row["steps"]),
            f"{row['peak_mib']:.0f}",
            f"{row['setup_s']:.2f}",
        )
    console.print(table)
    console.print(
        f"{result['workload']}: {result['train_seconds_each']:.1f} training seconds for each of "
        f"{result['seeds']} seeds, parameters {'matched within 5 %' if result['matched'] else 'as they are'}; "
        f"{result['direction']} {result['quality']} is better; intervals at 95 %, each by itself.",
        highlight=False,
    )


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "-"
    return f"{figure_text(value)} [{figure_text(low)}, {figure_text(high)}]" if low is not None else figure_text(value)


def _comparison_page(result: Mapping[str, Any], records: Sequence[TrialRecord]) -> str:
    import jinja2

    from heliograph.trials.charts import curves_chart, pareto_chart, unique_ids

    points = [
        {**r, **{end: r["quality"] if r[end] is None else r[end] for end in ("low", "high")}}
        for r in result["rows"]
        if r["quality"] is not None
    ]
    higher = result["direction"] == "higher"
    svgs = [
        pareto_chart(points, cost, title, result["quality"], higher_is_better=higher)
        for cost, title in (("peak_mib", "peak memory, MiB"), ("parameters", "parameters"))
        if points
    ]
    curves = {
        r.contender: r.detail["curves"]["quality"]
        for r in records
        if r.block == 0 and r.status == "ok" and "quality" in r.detail.get("curves", {})
    }
    svgs.append(curves_chart(f"{result['quality']}, first seed", curves, "training seconds") if curves else "")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True
    )
    charts = [unique_ids(svg, f"p{i}") for i, svg in enumerate(svgs) if svg]
    return environment.get_template("compare.html").render(
        result=result, charts=charts, raw=json.dumps(result, indent=2)
    )
