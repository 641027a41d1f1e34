"""Runs plans: skips what a resumed run has, keeps each result as it comes, and judges at the end.

If the store fails in mid-run, results go to a file beside it and the run goes on; nothing measured is lost.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from heliograph.catalog.card import Card
from heliograph.errors import BadInput, HeliographError, StoreError
from heliograph.trials.judge import Judgement, judge
from heliograph.trials.local import Event, Executor
from heliograph.trials.plan import Plan
from heliograph.trials.record import RecordWriter, RunHeader, TrialRecord

__all__ = ["Keeper", "Outcome", "Run", "RunStore"]


class RunStore(Protocol):
    """Where a run's results go: the part of :class:`~heliograph.trials.store.Store` that running needs."""

    def create_run(self, header: RunHeader) -> None:
        """Registers the run."""

    def append(self, run: str, record: TrialRecord) -> None:
        """Keeps a record."""

    def finish(self, run: str, status: str) -> None:
        """Sets the run's status."""

    def save_judgement(self, run: str, slug: str, judgement: Judgement) -> None:
        """Keeps the findings."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    header: RunHeader
    records: tuple[TrialRecord, ...]
    judgements: Mapping[str, Judgement]
    interrupted: bool
    warnings: tuple[str, ...] = ()


@dataclass
class Keeper:
    """Sends records to the store, or to a file when the store fails.

    Attributes:
        warnings: what the user should be told at the end.
    """

    store: RunStore
    header: RunHeader
    folder: Path
    warnings: list[str] = field(default_factory=list)
    spooled: list[TrialRecord] = field(default_factory=list)
    _writer: RecordWriter | None = None

    def keep(self, record: TrialRecord) -> None:
        """Keeps one record; once the store has failed, the rest goes to the file without waiting for it again."""
        if not self.spooled:
            try:
                self.store.append(self.header.run, record)
                return
            except StoreError as error:
                self.warnings.append(str(error))
        self.spooled.append(record)
        self._spool(record)

    def _spool(self, record: TrialRecord) -> None:
        if self._writer is None:
            self._writer = self._open()
        if self._writer is not None:
            try:
                self._writer.append(record)
            except OSError as error:
                self.warnings.append(f"{self._writer.path} cannot be written either: {error.strerror}")

    def _open(self) -> RecordWriter | None:
        for folder in (self.folder, Path(tempfile.gettempdir()), Path.cwd()):
            try:
                return RecordWriter(folder / f"{self.header.run}.jsonl", self.header)
            except BadInput:
                continue
        self.warnings.append("no folder could be written; the results exist only in what is printed below")
        return None

    def end(self) -> None:
        """Tries the store once more; what it takes leaves the file, what it does not is named with the way out."""
        if not self.spooled:
            return
        try:
            for record in list(self.spooled):
                self.store.append(self.header.run, record)
                self.spooled.remove(record)
        except StoreError:
            pass
        if self._writer is None:
            return
        self._writer.close()
        if not self.spooled:
            self._writer.path.unlink(missing_ok=True)
            self.warnings.append("the store came back; every result is in it")
        else:
            self.warnings.append(
                f"{len(self.spooled)} results are in {self._writer.path}; once the store works, "
                f"`heliograph runs --import {self._writer.path}` adds them"
            )


@dataclass
class Run:
    """One execution of some plans.

    Attributes:
        header: what the run is.
        plans: what to run, in order.
        cards: by slug, for the papers' figures.
        done: records that a resumed run has already.
    """

    header: RunHeader
    plans: Sequence[Plan]
    cards: Mapping[str, Card]
    done: Sequence[TrialRecord] = ()

    def execute(
        self,
        executor: Executor,
        store: RunStore,
        spool: Path,
        on_event: Callable[[Event], None] = lambda _: None,
        *,
        resumed: bool = False,
    ) -> Outcome:
        """Runs what is missing, judges, and keeps everything; Ctrl-C keeps what is finished.

        Raises:
            StoreError: the store cannot be written at the start.
        """
        if not resumed:
            store.create_run(self.header)
        keeper = Keeper(store, self.header, spool)
        records = list(self.done)
        finished = {record.trial for record in records}
        interrupted = False

        def watch(event: Event) -> None:
            if event.record is not None:
                records.append(event.record)
                keeper.keep(event.record)
            on_event(event)

        try:
            for plan in self.plans:
                executor.run([t for t in plan.trials if t.id not in finished], watch)
        except KeyboardInterrupt:
            interrupted = True
        keeper.end()
        judgements = {} if interrupted else self.judge(records)
        self._conclude(store, keeper, judgements, interrupted)
        return Outcome(self.header, tuple(records), judgements, interrupted, tuple(keeper.warnings))

    def judge(self, records: Iterable[TrialRecord]) -> dict[str, Judgement]:
        """Findings of all systems of the run."""
        planned = self.header.settings.get("planned", ())
        rows = list(records)
        return {
            plan.check.slug: judge(plan.check, self.cards.get(plan.check.slug), self.header.preset, rows, planned)
            for plan in self.plans
        }

    def _conclude(
        self, store: RunStore, keeper: Keeper, judgements: Mapping[str, Judgement], interrupted: bool
    ) -> None:
        if keeper.spooled:
            return
        try:
            for slug, judgement in judgements.items():
                store.save_judgement(self.header.run, slug, judgement)
            store.finish(self.header.run, "interrupted" if interrupted else "finished")
        except HeliographError as error:
            keeper.warnings.append(str(error))
