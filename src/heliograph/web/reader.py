"""Reads the store and the shipped records for the pages, and turns what cannot be read into two plain answers.

A run that does not exist is :class:`NotFound`; a store that cannot be read is :class:`Unreadable`. Findings that an
older version or a damaged file left are checked field by field; those that do not fit are counted, not shown.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
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

__all__ = ["NotFound", "Reader", "Standing", "StoredJudgement", "StoredRun", "Unreadable", "read_judgement"]

MAX_RUNS = 500
T = TypeVar("T")


class NotFound(HeliographError):
    """What the address names does not exist."""


class Unreadable(HeliographError):
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
            Unreadable: the store cannot be read.
        """
        return self._read(lambda store: store.runs(slug, limit))

    def run(self, run: str) -> StoredRun:
        """A run by its id, an unambiguous beginning of it, or ``last``.

        Raises:
            NotFound: no such run, or several.
            Unreadable: the store or the run's entry cannot be read.
        """

        def read(store: Store) -> StoredRun:
            try:
                judged = store.judgements(run)
            except BadInput as error:
                raise NotFound(str(error)) from None
            header, records = store.load(run)
            return StoredRun(header, tuple(records), {slug: read_judgement(data) for slug, data in judged.items()})

        return self._read(read)

    def status(self, run: str, slugs: Sequence[str]) -> RunSummary | None:
        """The summary of a run of these systems by its full id, or ``None`` if it is gone."""
        return next((summary for summary in self.runs(slugs[0] if slugs else None) if summary.run == run), None)

    def latest(self, cards: Iterable[Card]) -> dict[str, dict[str, Standing]]:
        """The latest local finding of each claim, by slug and claim.

        A finding that was declared too small for its preset stands only until a run at a larger preset decides.

        Raises:
            Unreadable: the store cannot be read.
        """
        found: dict[str, dict[str, Standing]] = {card.slug: {} for card in cards}
        wanted = {card.slug: {claim.id for claim in card.claims} for card in cards}

        def open_slugs(summary: RunSummary) -> list[str]:
            judged = {key.partition("/")[0] for key in summary.verdicts}
            return [
                slug
                for slug in summary.slugs
                if slug in judged and wanted.get(slug, set()) - {c for c, s in found[slug].items() if _decided(s)}
            ]

        def read(store: Store) -> None:
            for summary in store.runs(limit=MAX_RUNS):
                if not (slugs := open_slugs(summary)):
                    continue
                judged = store.judgements(summary.run)
                for slug in slugs:
                    judgement = read_judgement(judged.get(slug))
                    source = (summary.run, summary.preset, summary.started_at, summary.machine)
                    for standing in (Standing(f, judgement.controls, *source) for f in judgement.findings):
                        before = found[slug].get(standing.finding.claim)
                        if before is None or (_decided(standing) and not _decided(before)):
                            found[slug][standing.finding.claim] = standing

        self._read(read)
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
        except (NotFound, Unreadable):
            raise
        except HeliographError as error:
            self._forget()
            raise Unreadable(str(error)) from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Unreadable(
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
    judgement, header = read_judgement(dict(result)), result.get("header") or result
    source = ("", str(header.get("preset", "")), str(header.get("started_at", "")), _machine_label(header))
    return [Standing(f, judgement.controls, *source) for f in judgement.findings if f.system == slug]


def _machine_label(header: Mapping[str, Any]) -> str:
    machine = header.get("machine")
    return str(machine.get("label", "")) if isinstance(machine, Mapping) else ""


def _decided(standing: Standing) -> bool:
    return not standing.finding.declared
