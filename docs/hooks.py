"""What mkdocs builds from the catalog: a page for each system and family, the index of systems, and the reference.

The pages are virtual: they are made at build time and stand in no folder. ``docs/notes/<slug>.md`` is the hand-written
part of a system's page.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from heliograph.catalog.card import FAMILIES, Card, ClaimCard
from heliograph.catalog.registry import committed_results, load_cards
from heliograph.trials.sentences import figure_text, here_text

DOCS = Path(__file__).parent
NOTES = DOCS / "notes"
REFERENCE = {
    "trials-check": ("Checks", "heliograph.trials.check"),
    "trials-judge": ("Judging", "heliograph.trials.judge"),
    "statistics": ("Statistics", "heliograph.statistics"),
    "random": ("Random numbers", "heliograph.random"),
    "clock": ("Clocks", "heliograph.clock"),
    "devices": ("Machines", "heliograph.devices"),
    "errors": ("Errors", "heliograph.errors"),
}
SOURCES = {"paper": "paper", "code": "official code", "ours": "ours; the paper does not claim it"}
GLYPHS = {"holds": "✓", "weaker": "◐", "fails": "✗", "undecided": "?", "void": "–"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the generated pages into the navigation, where ``mkdocs.yml`` names their sections."""
    config.nav = [expand(entry) for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    for path, text in generated_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def generated_pages() -> dict[str, str]:
    """Every generated page: its path below ``docs`` and its Markdown."""
    cards = built_in_cards()
    pages = {"systems/index.md": index_page(cards)}
    pages |= {f"systems/{card.slug}.md": system_page(card) for card in cards}
    pages |= {f"families/{family}.md": family_page(family, cards) for family in FAMILIES}
    return pages | {f"api/{name}.md": f"# {title}\n\n::: {module}\n" for name, (title, module) in REFERENCE.items()}


def built_in_cards() -> list[Card]:
    """The cards of heliograph itself, by family; those of plug-ins have documentation of their own."""
    return [card for card in load_cards().values() if not card.check_package]


def system_page(card: Card) -> str:
    """Facts, results, claims, notes and reference of one system."""
    parts = [f"# {card.slug}", f"*{card.title}*", _one_line(card.summary), _facts(card), "## Results", _results(card)]
    parts += ["## Claims", _claims(card)]
    note = NOTES / f"{card.slug}.md"
    if note.is_file():
        parts.append(note.read_text(encoding="utf-8").partition("\n")[2].strip())  # its first line is its title
    module = f"heliograph.{card.family}.{card.slug}"
    if _exists(module):
        parts += ["## Reference", f"::: {module}"]
    return "\n\n".join(parts) + "\n"


def family_page(family: str, cards: Sequence[Card]) -> str:
    """The hand-written introduction of a family and the list of its systems."""
    own = [card for card in cards if card.family == family]
    intro = (NOTES / "families" / f"{family}.md").read_text(encoding="utf-8").strip()
    return f"{intro}\n\n## Systems\n\n{_systems_table(own)}\n"


def index_page(cards: Sequence[Card]) -> str:
    """All systems by family."""
    working = sum(card.status == "working" for card in cards)
    parts = [
        "# Systems",
        f"The catalog holds {len(cards)} published systems. Each has a card that states what its paper claims. "
        f"{working} of them {'is' if working == 1 else 'are'} marked working: component, check, tests, a page and a "
        "recorded run exist. A planned system has its card only.",
    ]
    for family in FAMILIES:
        own = [card for card in cards if card.family == family]
        parts += [f"## [{family}](../families/{family}.md)", _systems_table(own)]
    return "\n\n".join(parts) + "\n"


class DocstringMarkup(griffe.Extension):
    """Turns what docstrings hold of reST (``.. math::`` and roles) into Markdown."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **_: Any) -> None:
        """Rewrites the docstring of one object."""
        if not obj.is_alias and obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """A docstring with its formulas as blocks of TeX and its roles as code."""

    def block(match: re.Match[str]) -> str:
        margin = match["margin"]
        formula = re.sub(r"\s+", " ", match["formula"]).strip()
        return f"{margin}```tex\n{margin}{formula}\n{margin}```\n"

    pattern = r"^(?P<margin> *)\.\. math::(?P<formula>.*(?:\n(?P=margin) +\S.*)*)\n?"
    text = re.sub(pattern, block, docstring, flags=re.MULTILINE)
    return re.sub(r":(?:class|func|meth|mod|attr|data|math):`~?([^`]+)`", r"`\1`", text)


def expand(entry: Any) -> Any:
    """An entry of the navigation with the generated pages below it."""
    if entry == {"Systems": "systems/index.md"}:
        return {"Systems": ["systems/index.md", *_family_sections()]}
    if entry == {"Reference": "api"}:
        return {"Reference": [{title: f"api/{name}.md"} for name, (title, _) in REFERENCE.items()]}
    return entry


def _family_sections() -> Iterator[dict[str, list[Any]]]:
    cards = built_in_cards()
    for family in FAMILIES:
        own = [{card.slug: f"systems/{card.slug}.md"} for card in cards if card.family == family]
        yield {family: [f"families/{family}.md", *own]}


def _facts(card: Card) -> str:
    licence = f" ({card.code_licence})" if card.code_licence else ""
    rows = {
        "Family": f"[{card.family}](../families/{card.family}.md)",
        "Year": str(card.year),
        "Paper": f"[arXiv:{card.arxiv}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else "no arXiv id",
        "Official code": f"[{card.code}](https://github.com/{card.code}){licence}" if card.code else "none known",
        "Status": card.status,
    }
    family = f"heliograph.{card.family}"
    exported = getattr(importlib.import_module(family), "__all__", ()) if _exists(family) else ()
    if names := [name for name in card.public if name in exported]:
        rows["Import"] = f"`from {family} import {', '.join(names)}`"
    return "\n".join(f"- **{name}**: {value}" for name, value in rows.items())


def _claims(card: Card) -> str:
    rows = ["| claim | metric | the source's figure | against | on |", "|---|---|---|---|---|"]
    for claim in card.claims:
        figure = f"{claim.paper} ({SOURCES[claim.source]})"
        cells = (f"`{claim.id}`: {claim.statement}", claim.metric, figure, claim.baseline, claim.workload)
        rows.append(_row(cells))
    return "\n".join(rows)


def _results(card: Card) -> str:
    records = committed_results(card.slug)
    if not records:
        if card.status == "working" or _exists(f"heliograph.checks.{card.family}.{card.slug}"):
            return f"Not checked yet on any recorded machine. `heliograph check {card.slug}` runs the check on yours."
        return "Not checked yet: this system is planned, and its check is not written."
    return "\n\n".join(_record(card, record) for record in records)


def _record(card: Card, record: Mapping[str, Any]) -> str:
    header, known = record["header"], {claim.id: claim for claim in card.claims}
    rows = ["| claim | verdict | measured here | our threshold | the source's figure | blocks | provenance |"]
    rows.append("|---|---|---|---|---|---|---|")
    rows += [_finding(finding, known.get(finding["claim"])) for finding in record["findings"]]
    reasons = [
        f"- `{f['claim']}`: {_cell(f['note'])}. This scale cannot show {_cell(f['cannot_show'])}."
        for f in record["findings"]
    ]
    words = {True: "behaved", False: "misbehaved", None: "was not judged"}
    controls = [f"- {c['name']} {words[c['passed']]}: {_cell(c['note'])}" for c in record["controls"]]
    title = f"### Preset {header['preset']} on {header['machine']['label']}"
    when = f"Recorded {header['started_at'][:10]}. To repeat it: `{header.get('command', '')}`"
    return "\n\n".join([title, when, "\n".join(rows), "\n".join(reasons), "Controls:", "\n".join(controls)])


def _finding(finding: Mapping[str, Any], claim: ClaimCard | None) -> str:
    verdict = f"{GLYPHS[finding['verdict']]} {finding['verdict']}"
    if finding["declared"]:
        verdict += " (not decided in this run)"
    threshold = figure_text(finding["threshold"], finding["unit"])
    paper = claim.paper if claim else finding["paper"]
    cells = (f"`{finding['claim']}`", verdict, here_text(finding), threshold, paper, str(finding["blocks"]))
    return _row((*cells, finding["provenance"]))


def _systems_table(cards: Sequence[Card]) -> str:
    rows = ["| system | title | year | status |", "|---|---|---|---|"]
    rows += [_row((f"[{c.slug}](../systems/{c.slug}.md)", c.title, str(c.year), c.status)) for c in cards]
    return "\n".join(rows)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return _one_line(text).replace("|", "\\|").replace("<", "&lt;")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _exists(module: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
        return spec is not None and spec.origin is not None  # a bare folder has a spec, too
    except ModuleNotFoundError:
        return False
