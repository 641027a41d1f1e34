"""Reads the store and the shipped records for the pages, and turns what cannot be read into two plain answers.

A run that does not exist is :class:`NotFoundError`; a store that cannot be read is :class:`UnreadableError`. Findings
that an older version or a damaged file left are checked field by field; those that do not fit are counted, not shown.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from heliograph.catalog.card import Card
from heliograph.catalog.registry import committed_results
from heliograph.errors import BadInput, HeliographError
from heliograph.trials.judge import ControlResult, Finding
from heliograph.trials.record import RunHeader, TrialRecord
from heliograph.trials.store import RunSummary, Store

__all__ = [
    "NotFoundError",
    "Reader",
    "Standing",
    "StoredJudgement",
    "StoredRun",
    "UnreadableError",
    "machine_label",
    "read_judgement",
]

MAX_RUNS = 500
RUNS_SEARCHED = 50
LATEST_KEPT_S = 2.0  # a search as you type asks for the same again and again
T = TypeVar("T")


class NotFoundError(HeliographError):
    """What the address names does not exist."""


class UnreadableError(HeliographError):
    """The store cannot be read now; the message says why and what helps."""


@dataclass(frozen=True)
class StoredJudgement:
    """Findings and controls of one system in one run; ``damaged`` counts the entries that could not be read."""

    findings: tuple[Finding, ...]
    controls: tuple[ControlResult, ...]
    damaged: int = 0


@dataclass(frozen=True)
class StoredRun:
    """A run with all that its trials left."""

    header: RunHeader
    records: tuple[TrialRecord, ...]
    judgements: Mapping[str, StoredJudgement]


@dataclass(frozen=True)
class Standing:
    """A finding and where it comes from; ``run`` is empty for a record that was shipped with heliograph."""

    finding: Finding
    controls: tuple[ControlResult, ...]
    run: str
    preset: str
    started_at: str
    machine: str


@dataclass
class Reader:
    """Opens the store at the first need, and again after it failed.

    Attributes:
        url: of the store; the default store where ``None``.
    """

    url: str | None = None
    _store: Store | None = None
    _shipped: dict[str, tuple[Standing, ...]] = field(default_factory=dict)
    _latest: dict[tuple[str, ...], tuple[float, dict[str, dict[str, Standing]]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def close(self) -> None:
        """Closes the store."""
        with self._lock:
            if self._store is not None:
                self._store.close()
            self._store = None

    def runs(self, slug: str | None = None, limit: int = MAX_RUNS) -> list[RunSummary]:
        """The latest runs first.

        Raises:
            UnreadableError: the store cannot be read.
        """
        return self._read(lambda store: store.runs(slug, limit))

    def run(self, run: str) -> StoredRun:
        """A run by its id, an unambiguous beginning of it, or ``last``.

        Raises:
            NotFoundError: no such run, or several.
            UnreadableError: the store or the run's entry cannot be read.
        """

        def read(store: Store) -> StoredRun:
            try:
                judged = store.judgements(run)
            except BadInput as error:
                raise NotFoundError(str(error)) from None
            header, records = store.load(run)
            return StoredRun(header, tuple(records), {slug: read_judgement(data) for slug, data in judged.items()})

        return self._read(read)

    def status(self, stored: StoredRun) -> str:
        """``running``, ``finished`` or ``interrupted``, as the store has it."""
        first = next(iter(stored.header.slugs), None)
        try:
            recent = self.runs(first, RUNS_SEARCHED)
        except UnreadableError:  # a damaged neighbour must not hide this run
            recent = []
        known = next((summary.status for summary in recent if summary.run == stored.header.run), "")
        return known or ("finished" if stored.judgements else "interrupted")

    def latest(self, cards: Sequence[Card]) -> dict[str, dict[str, Standing]]:
        """The latest local finding of each claim, by slug and claim; up to two seconds old.

        A finding that was declared too small for its preset stands only until a run at a larger preset decides.

        Raises:
            UnreadableError: the store cannot be read.
        """
        slugs_asked = tuple(card.slug for card in cards)
        known = self._latest.get(slugs_asked)
        if known is not None and time.monotonic() - known[0] < LATEST_KEPT_S:
            return known[1]
        found: dict[str, dict[str, Standing]] = {slug: {} for slug in slugs_asked}
        wanted = {card.slug: {claim.id for claim in card.claims} for card in cards}

        def is_open(slug: str, claim: str) -> bool:
            return claim in wanted.get(slug, ()) and (
                claim not in found[slug] or found[slug][claim].finding.declared  # a larger preset may have decided
            )

        def read(store: Store) -> None:
            for summary in store.runs(slugs_asked[0] if len(slugs_asked) == 1 else None, MAX_RUNS):
                slugs = {
                    slug for slug, _, claim in (key.partition("/") for key in summary.verdicts) if is_open(slug, claim)
                }
                judged = store.judgements(summary.run) if slugs else {}
                for slug in slugs:
                    judgement = read_judgement(judged.get(slug))
                    source = (summary.run, summary.preset, summary.started_at, summary.machine)
                    for standing in (Standing(f, judgement.controls, *source) for f in judgement.findings):
                        before = found[slug].get(standing.finding.claim)
                        if before is None or (before.finding.declared and not standing.finding.declared):
                            found[slug][standing.finding.claim] = standing

        self._read(read)
        self._latest[slugs_asked] = (time.monotonic(), found)
        return found

    def shipped(self, slug: str) -> tuple[Standing, ...]:
        """The findings that were shipped with heliograph, latest first."""
        if slug not in self._shipped:
            rows = [standing for result in committed_results(slug) for standing in _standings(result, slug)]
            self._shipped[slug] = tuple(sorted(rows, key=lambda row: row.started_at, reverse=True))
        return self._shipped[slug]

    def _read(self, what: Callable[[Store], T]) -> T:
        try:
            return what(self._opened())
        except (NotFoundError, UnreadableError):
            raise
        except HeliographError as error:
            self._forget()
            raise UnreadableError(str(error)) from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UnreadableError(
                f"The store holds an entry that is not of this version, or is damaged ({type(error).__name__}: "
                f"{str(error)[:200]}). Restore a copy of it, or name another store with --store."
            ) from None

    def _opened(self) -> Store:
        with self._lock:
            if self._store is None:
                self._store = Store(self.url)
            return self._store

    def _forget(self) -> None:
        with suppress(HeliographError):
            self.close()


def read_judgement(data: Any) -> StoredJudgement:
    """Findings and controls from what the store holds; entries that do not fit the schema are counted."""
    findings = _converted(data, "findings", Finding)
    controls = _converted(data, "controls", ControlResult)
    damaged = sum(item is None for item in (*findings, *controls))
    return StoredJudgement(tuple(f for f in findings if f), tuple(c for c in controls if c), damaged)


def _converted(data: Any, key: str, kind: type[T]) -> list[T | None]:
    rows = data.get(key) if isinstance(data, dict) else None
    if not isinstance(rows, list):
        return [None]
    return [_convert(row, kind) for row in rows]


def _convert(row: Any, kind: type[T]) -> T | None:
    try:
        return msgspec.convert(row, kind)
    except msgspec.ValidationError:
        return None


def _standings(result: Mapping[str, Any], slug: str) -> list[Standing]:
    judgement, header = read_judgement(dict(result)), result["header"]
    label = str(header["machine"]["label"])
    source = ("", str(header["preset"]), str(header["started_at"]), label)
    return [Standing(f, judgement.controls, *source) for f in judgement.findings if f.system == slug]


def machine_label(header: RunHeader) -> str:
    """The machine of a run in one line."""
    return str(header.machine.get("label", "")) if isinstance(header.machine, Mapping) else ""
