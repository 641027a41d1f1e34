"""A run as one HTML file that needs no network and no script, as JSON, as a badge, and as a citation."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import jinja2

from heliograph.catalog.card import Card, ClaimCard
from heliograph.trials.check import Check
from heliograph.trials.judge import ControlResult, Finding, Judgement
from heliograph.trials.record import FORMAT, RunHeader, TrialRecord
from heliograph.trials.sentences import figure_text, sentence

__all__ = [
    "badge_svg",
    "citation",
    "contender_table",
    "curve_svgs",
    "drawing_svgs",
    "guarding",
    "paper_value",
    "render_report",
    "result_json",
]


def result_json(
    header: RunHeader, judgements: Mapping[str, Judgement], records: Sequence[TrialRecord] | None = None
) -> dict[str, Any]:
    """The run as ``check --json`` prints it; with ``records``, complete enough to be judged again.

    Args:
        header: the run.
        judgements: findings and controls by system.
        records: the trials, for a file; left out on standard output.
    """
    data: dict[str, Any] = {
        "run": header.run,
        "preset": header.preset,
        "machine": header.machine,
        "findings": [f.to_json() for j in judgements.values() for f in j.findings],
        "controls": [c.to_json() for j in judgements.values() for c in j.controls],
    }
    if records is not None:
        data["header"] = {"format": FORMAT, **header.to_json()}
        data["trials"] = [r.to_json() for r in records]
    return data


def paper_value(finding: Finding, check: Check, card: Card | None) -> float | None:
    """The paper's figure, where it is in the unit of the finding's effect."""
    claim = next((c for c in check.claims if c.claim == finding.claim), None)
    on_card = _on_card(card, finding.claim)
    shown = claim is not None and (
        claim.comparable == "effect" or (claim.comparable == "value" and finding.kind == "bound")
    )
    return on_card.value if shown and on_card is not None else None


def _on_card(card: Card | None, claim_id: str) -> ClaimCard | None:
    return next((c for c in card.claims if c.id == claim_id), None) if card else None


def guarding(check: Check, claim_id: str, controls: Sequence[ControlResult]) -> list[dict[str, Any]]:
    """The results of the controls that guard a claim, as plain data."""
    names = {c.name for c in check.controls if claim_id in check.guards_of(c)}
    return [c.to_json() for c in controls if c.name in names]


def render_report(
    header: RunHeader,
    records: Sequence[TrialRecord],
    judgements: Mapping[str, Judgement],
    checks: Mapping[str, Check],
    cards: Mapping[str, Card],
) -> str:
    """The whole run as one self-contained HTML page, light and dark."""
    from heliograph.trials.charts import VERDICT_COLOURS

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    systems = [
        _system(slug, judgement, records, checks[slug], cards.get(slug)) for slug, judgement in judgements.items()
    ]
    facts = {"machine": header.machine, "versions": header.versions, "key": header.key}
    return environment.get_template("report.html").render(
        header=header,
        systems=systems,
        trials=records,
        colours=VERDICT_COLOURS,
        environment=json.dumps(facts, indent=2),
    )


def _system(
    slug: str, judgement: Judgement, records: Sequence[TrialRecord], check: Check, card: Card | None
) -> dict[str, Any]:
    own = [r for r in records if r.slug == slug]
    return {
        "slug": slug,
        "title": card.title if card else slug,
        "summary": " ".join(card.summary.split()) if card else "",
        "arxiv": card.arxiv if card else "",
        "claims": [_claim(f, judgement, own, check, card, i) for i, f in enumerate(judgement.findings)],
        "controls": [c.to_json() for c in judgement.controls],
        "said": list(dict.fromkeys(line for r in own for line in r.said)),
        "drawings": drawing_svgs(own),
        "curves": curve_svgs(own),
        "table": contender_table(own),
    }


def _claim(
    finding: Finding,
    judgement: Judgement,
    records: Sequence[TrialRecord],
    check: Check,
    card: Card | None,
    index: int,
) -> dict[str, Any]:
    from heliograph.trials.charts import arms_chart, findings_chart, unique_ids

    row, on_card = finding.to_json(), _on_card(card, finding.claim)
    claim = next(c for c in check.claims if c.claim == finding.claim)
    chart = findings_chart(row, guarding(check, finding.claim, judgement.controls), paper_value(finding, check, card))
    return {
        "row": row,
        "statement": on_card.statement if on_card else finding.claim,
        "sentence": sentence(row, check.tuning),
        "chart": unique_ids(chart, f"{check.slug}-f{index}"),
        "arms": unique_ids(arms_chart(row, records, claim.experiment, claim.metric), f"{check.slug}-a{index}"),
        "paper_workload": on_card.workload if on_card else "not stated",
        "paper_baseline": on_card.baseline if on_card else "not stated",
    }


def drawing_svgs(records: Sequence[TrialRecord]) -> list[str]:
    """What the trials drew, as SVG."""
    from heliograph.trials.charts import draw_graphs

    return [draw_graphs(row) for r in records for row in r.detail.get("drawings", ())]


def curve_svgs(records: Sequence[TrialRecord]) -> list[str]:
    """The curves that the first block's trials kept, one chart an experiment, workload and name."""
    from heliograph.trials.charts import curves_chart, unique_ids

    merged: dict[str, dict[str, Any]] = defaultdict(dict)
    for record in records:
        if record.block == 0:
            for name, points in record.detail.get("curves", {}).items():
                title = f"{record.experiment}, {record.workload}: {name}"
                merged[title][record.contender or name] = points
    return [unique_ids(curves_chart(title, curves), f"c{i}") for i, (title, curves) in enumerate(merged.items())]


def contender_table(records: Sequence[TrialRecord]) -> list[list[str]]:
    """Mean, least and most of each contender's metrics over the blocks, as text."""
    cells: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for record in records:
        for arm, metrics in record.metrics.items():
            for name, value in metrics.items():
                numbers = value if isinstance(value, list) else [value]
                if numbers and not (name == "peak_device_bytes" and value == 0):
                    mean = sum(map(float, numbers)) / len(numbers)
                    cells[record.experiment, record.workload, arm, name].append(mean)
    return [
        [*key, figure_text(sum(v) / len(v)), figure_text(min(v)), figure_text(max(v)), str(len(v))]
        for key, v in cells.items()
    ]


def badge_svg(findings: Sequence[Mapping[str, Any]], slug: str) -> str:
    """A badge for a README: how many of a system's judged claims came out how."""
    from heliograph.trials.charts import VERDICT_COLOURS

    judged = [f["verdict"] for f in findings if f["system"] == slug and not f.get("declared")]
    order = ("holds", "weaker", "undecided", "fails", "void")
    counts = [f"{judged.count(v)} {v}" for v in order if v in judged] or ["not run"]
    worst = next((v for v in ("fails", "void", "undecided", "weaker", "holds") if v in judged), "void")
    left, right = f"heliograph {slug}", ", ".join(counts)
    a, b = 12 + 6.6 * len(left), 12 + 6.6 * len(right)
    text = 'font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" fill="#fff"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{a + b:.0f}" height="20" role="img" '
        f'aria-label="{escape(left)}: {escape(right)}"><title>{escape(left)}: {escape(right)}</title>'
        f'<rect width="{a:.0f}" height="20" fill="#444b52"/>'
        f'<rect x="{a:.0f}" width="{b:.0f}" height="20" fill="{VERDICT_COLOURS[worst]}"/>'
        f'<text x="6" y="14" {text} textLength="{a - 12:.0f}">{escape(left)}</text>'
        f'<text x="{a + 6:.0f}" y="14" {text} textLength="{b - 12:.0f}">{escape(right)}</text></svg>\n'
    )


def citation(card: Card, header: RunHeader, version: str) -> str:
    """BibTeX of the paper and of this run."""
    paper = (
        f"@misc{{{card.slug}{card.year},\n  title = {{{card.title}}},\n  year = {{{card.year}}},\n"
        + (f"  eprint = {{{card.arxiv}}},\n  archivePrefix = {{arXiv}},\n" if card.arxiv else "")
        + "}\n"
    )
    run = (
        f"@misc{{heliograph_{header.run.replace('-', '_')},\n"
        f"  title = {{heliograph {version}: check of {card.slug}, preset {header.preset}}},\n"
        f"  year = {{{header.started_at[:4]}}},\n"
        f"  note = {{Run {header.run} on {header.machine.get('label', 'an unnamed machine')}}},\n}}\n"
    )
    return paper + "\n" + run
