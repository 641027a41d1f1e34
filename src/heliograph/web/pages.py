"""What each page shows, as plain data for its template."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from heliograph.catalog.card import FAMILIES, Card, ClaimCard
from heliograph.catalog.registry import check_ref, get_card
from heliograph.catalog.search import search
from heliograph.errors import UnknownSystem
from heliograph.trials.check import Check
from heliograph.trials.judge import ControlResult, Finding
from heliograph.trials.plan import load_check
from heliograph.trials.record import RunHeader, TrialRecord
from heliograph.trials.report import contender_table, guarding, paper_value
from heliograph.trials.sentences import here_text
from heliograph.trials.store import RunSummary
from heliograph.web.figures import Figures
from heliograph.web.reader import (
    MAX_RUNS,
    NotFoundError,
    Reader,
    Standing,
    StoredJudgement,
    UnreadableError,
    machine_label,
)

__all__ = ["FAMILY_LINES", "VERDICTS", "Pages"]

FAMILY_LINES = {
    "agents": "agents and tools exchange messages",
    "serving": "requests and stages exchange KV cache",
    "graphs": "vertices exchange features",
    "lm": "tokens exchange state inside a model",
    "ranks": "processes exchange tensors",
    "chips": "memory and compute exchange bytes, on simulated hardware",
}
VERDICTS = {
    "holds": "the whole interval reaches our threshold",
    "weaker": "better than no effect, but the threshold is not wholly reached",
    "fails": "the threshold is excluded",
    "undecided": "the interval contains both no effect and the threshold: the data cannot tell",
    "void": "a control misbehaved, trials are missing, or the preset is too small for this claim",
    "not run": "no run of this claim is known here",
}
MAX_QUERY = 200
RUNS_SHOWN = 50
RUNS_OF_A_SYSTEM = 10


@dataclass(frozen=True)
class SystemRow:
    """One line of the catalog; ``counts`` maps a verdict to how many of the claims have it."""

    card: Card
    counts: Mapping[str, int]
    here: bool
    matched: tuple[str, ...] = ()


@dataclass(frozen=True)
class CatalogPage:
    """The catalog after search and filters; ``groups`` is one group without a title when it is ranked by a query."""

    query: str
    family: str
    verdict: str
    groups: tuple[tuple[str, tuple[SystemRow, ...]], ...]
    shown: int
    total: int
    trouble: str = ""


@dataclass(frozen=True)
class FindingView:
    """A finding ready to be shown; charts are empty where they cannot be drawn."""

    row: Mapping[str, Any]
    statement: str
    here: str
    chart: Markup
    arms: Markup
    on_card: ClaimCard | None


@dataclass(frozen=True)
class ClaimRow:
    """A claim of the card beside the latest finding of this machine and what other machines found."""

    claim: ClaimCard
    finding: FindingView | None
    standing: Standing | None
    elsewhere: tuple[Standing, ...]


@dataclass(frozen=True)
class SystemPage:
    """A system: its claims, its findings and its runs."""

    card: Card
    claims: tuple[ClaimRow, ...]
    runs: tuple[RunSummary, ...]
    imports: str
    trouble: str = ""


@dataclass(frozen=True)
class RunsPage:
    """The list of runs; ``more`` is how many to ask for to see older ones, or 0."""

    runs: tuple[RunSummary, ...]
    slug: str
    more: int


@dataclass(frozen=True)
class SystemInRun:
    """One system of a run; ``damaged`` says what could not be read."""

    slug: str
    card: Card | None
    findings: tuple[FindingView, ...]
    controls: tuple[ControlResult, ...]
    said: tuple[str, ...]
    drawings: tuple[Markup, ...]
    curves: tuple[Markup, ...]
    table: Sequence[Sequence[str]]
    damaged: str
    tuning: str


@dataclass(frozen=True)
class RunPage:
    """A run: its findings, charts, trials, and how to repeat it."""

    header: RunHeader
    status: str
    machine: str
    systems: tuple[SystemInRun, ...]
    environment: str
    records: tuple[TrialRecord, ...]


@dataclass
class Pages:
    """Builds the pages.

    Attributes:
        reader: where findings come from.
        cards: the systems, by slug.
        figures: draws the charts.
    """

    reader: Reader
    cards: Mapping[str, Card]
    figures: Figures = field(default_factory=Figures)

    def catalog(self, query: str = "", family: str = "", verdict: str = "") -> CatalogPage:
        """The systems that match; an unknown family or verdict filters nothing."""
        query = " ".join(query.split())[:MAX_QUERY]
        family, verdict = family if family in FAMILIES else "", verdict if verdict in VERDICTS else ""
        latest, trouble = self._latest(self.cards.values())
        if query:
            hits = [(hit.card, hit.matched) for hit in search(query, self.cards)]
        else:
            hits = [(card, ()) for card in self.cards.values()]
        rows = [self._row(card, latest.get(card.slug, {}), matched) for card, matched in hits]
        rows = [row for row in rows if family in ("", row.card.family) and (not verdict or row.counts.get(verdict))]
        families = [""] if query else FAMILIES
        groups = [(name, tuple(r for r in rows if not name or r.card.family == name)) for name in families]
        return CatalogPage(
            query,
            family,
            verdict,
            tuple((name, group) for name, group in groups if group),
            len(rows),
            len(self.cards),
            trouble,
        )

    def _row(self, card: Card, here: Mapping[str, Standing], matched: tuple[str, ...]) -> SystemRow:
        shipped = _best_by_claim(self.reader.shipped(card.slug))
        found = [(here.get(c.id) or shipped.get(c.id)) for c in card.claims]
        counts = Counter(s.finding.verdict if s else "not run" for s in found)
        return SystemRow(card, {v: counts[v] for v in VERDICTS if counts[v]}, bool(here), matched)

    def system(self, slug: str) -> SystemPage:
        """A system's page.

        Raises:
            NotFoundError: no system has this slug.
        """
        if slug not in self.cards:
            try:
                get_card(slug)
            except UnknownSystem as error:
                raise NotFoundError(str(error)) from None
            raise NotFoundError(f"no system is called {slug[:60]!r}")
        card = self.cards[slug]
        latest, trouble = self._latest([card])
        check = _load_check(card) if latest.get(slug) or self.reader.shipped(slug) else None
        runs: list[RunSummary] = [] if trouble else self.reader.runs(slug, RUNS_OF_A_SYSTEM)
        claims = tuple(self._claim_row(claim, card, check, latest.get(slug, {})) for claim in card.claims)
        imports = f"from heliograph.{card.family} import {', '.join(card.public)}" if card.public else ""
        return SystemPage(card, claims, tuple(runs), imports, trouble)

    def _claim_row(self, claim: ClaimCard, card: Card, check: Check | None, here: Mapping[str, Standing]) -> ClaimRow:
        standing = here.get(claim.id)
        finding = None
        if standing is not None:
            finding = self._finding(standing.finding, standing.controls, check, card)
        elsewhere = tuple(s for s in self.reader.shipped(card.slug) if s.finding.claim == claim.id)
        return ClaimRow(claim, finding, standing, elsewhere)

    def runs(self, slug: str = "", limit: int = RUNS_SHOWN) -> RunsPage:
        """The latest runs, of one system or of all.

        Raises:
            UnreadableError: the store cannot be read.
        """
        limit = max(1, min(limit, MAX_RUNS))
        runs = self.reader.runs(slug or None, min(limit + 1, MAX_RUNS))
        more = min(4 * limit, MAX_RUNS) if len(runs) > limit else 0
        return RunsPage(tuple(runs[:limit]), slug, more)

    def run(self, run: str) -> RunPage:
        """A run's page.

        Raises:
            NotFoundError: no such run.
            UnreadableError: the store or this run cannot be read.
        """
        stored = self.reader.run(run)
        header = stored.header
        status = self.reader.status(stored)
        systems = tuple(
            self._system_in_run(
                slug,
                stored.judgements.get(slug),
                tuple(r for r in stored.records if r.slug == slug),
                header.run,
                status,
            )
            for slug in header.slugs
        )
        facts = {"machine": header.machine, "versions": header.versions, "resume key": header.key}
        return RunPage(header, status, machine_label(header), systems, json.dumps(facts, indent=2), stored.records)

    def _system_in_run(
        self, slug: str, judgement: StoredJudgement | None, own: tuple[TrialRecord, ...], run: str, status: str
    ) -> SystemInRun:
        card = self.cards.get(slug)
        check = _load_check(card) if card and judgement else None
        damaged = ""
        if judgement is None and status == "finished":
            damaged = "This system has no findings in the store"
        elif judgement is not None and judgement.damaged:
            some = "1 entry" if judgement.damaged == 1 else f"{judgement.damaged} entries"
            damaged = f"{some} of this system's findings cannot be read"
        judgement = judgement or StoredJudgement((), ())
        return SystemInRun(
            slug,
            card,
            tuple(self._finding(f, judgement.controls, check, card, own, run) for f in judgement.findings),
            judgement.controls,
            tuple(dict.fromkeys(line for r in own for line in r.said)),
            self.figures.drawings(own, run, slug),
            self.figures.curves(own, run, slug),
            _table(own),
            damaged,
            check.tuning if check else "",
        )

    def _finding(
        self,
        finding: Finding,
        controls: Sequence[ControlResult],
        check: Check | None,
        card: Card | None,
        records: Sequence[TrialRecord] = (),
        run: str = "",
    ) -> FindingView:
        row = finding.to_json()
        on_card = next((c for c in card.claims if c.id == finding.claim), None) if card else None
        claim = next((c for c in check.claims if c.claim == finding.claim), None) if check else None
        guards = guarding(check, finding.claim, controls) if check else []
        paper = paper_value(finding, check, card) if check else None
        arms = self.figures.arms(row, records, claim.experiment, claim.metric, run) if claim and records else Markup()
        return FindingView(
            row,
            on_card.statement if on_card else finding.claim,
            here_text(row),
            self.figures.interval(row, guards, paper),
            arms,
            on_card,
        )

    def _latest(self, cards: Iterable[Card]) -> tuple[dict[str, dict[str, Standing]], str]:
        """The latest local findings, or none of them and why."""
        try:
            return self.reader.latest(list(cards)), ""
        except UnreadableError as error:
            return {}, str(error)


def _best_by_claim(standings: Iterable[Standing]) -> dict[str, Standing]:
    """By claim, the first standing that was not declared too small, else the first."""
    best: dict[str, Standing] = {}
    for standing in standings:
        before = best.get(standing.finding.claim)
        if before is None or (before.finding.declared and not standing.finding.declared):
            best[standing.finding.claim] = standing
    return best


def _load_check(card: Card) -> Check | None:
    """The check, for what only it knows of its charts; ``None`` where it cannot be imported here."""
    try:
        return load_check(check_ref(card))
    except (Exception, SystemExit):  # an import runs foreign code, which may raise anything
        return None


def _table(records: Sequence[TrialRecord]) -> list[list[str]]:
    try:
        return contender_table(records)
    except (AttributeError, TypeError, ValueError):
        return []
