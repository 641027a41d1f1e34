"""Where runs are kept: SQLite in the user's data folder, or PostgreSQL by URL.

Each result is committed as its trial ends, so a killed run keeps all that was finished.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import platformdirs
from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Engine,
    ForeignKey,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from heliograph.errors import BadInput, MissingExtra, StoreError
from heliograph.trials.judge import Judgement
from heliograph.trials.record import RunHeader, TrialRecord

__all__ = ["RunSummary", "Store", "data_folder", "default_url"]

_METADATA = MetaData()
_RUNS = Table(
    "runs",
    _METADATA,
    Column("id", String(64), primary_key=True),
    Column("slugs", String(2000), nullable=False),
    Column("preset", String(20), nullable=False),
    Column("status", String(20), nullable=False),
    Column("started_at", String(40), nullable=False, index=True),
    Column("header", JSON, nullable=False),
)
_TRIALS = Table(
    "trials",
    _METADATA,
    Column("run", String(64), ForeignKey("runs.id"), primary_key=True),
    Column("trial", String(300), primary_key=True),
    Column("record", JSON, nullable=False),
)
_FINDINGS = Table(
    "findings",
    _METADATA,
    Column("run", String(64), ForeignKey("runs.id"), primary_key=True),
    Column("slug", String(64), primary_key=True),
    Column("judged_at", String(40), nullable=False),
    Column("findings", JSON, nullable=False),
    Column("controls", JSON, nullable=False),
)


@dataclass(frozen=True)
class RunSummary:
    """One line of the list of runs. ``verdicts`` maps ``slug/claim`` to the verdict."""

    run: str
    slugs: tuple[str, ...]
    preset: str
    status: str
    started_at: str
    machine: str
    trials: int
    planned: int
    verdicts: Mapping[str, str]


def data_folder() -> Path:
    """Where heliograph keeps its data; ``HELIOGRAPH_HOME`` overrides the platform's folder."""
    return Path(os.environ.get("HELIOGRAPH_HOME") or platformdirs.user_data_dir("heliograph", appauthor=False))


def default_url() -> str:
    """The store's URL: ``HELIOGRAPH_STORE``, else SQLite in the data folder."""
    return os.environ.get("HELIOGRAPH_STORE") or f"sqlite:///{data_folder() / 'runs.sqlite'}"


class Store:
    """Runs, their trials and their findings.

    Args:
        url: ``sqlite:///path`` or ``postgresql://user@host/database``; the default store where ``None``.

    Raises:
        BadInput: not a URL of a known database.
        MissingExtra: PostgreSQL without its driver.
        StoreError: the database cannot be opened or written.
    """

    def __init__(self, url: str | None = None) -> None:
        self.url = url or default_url()
        self._engine = _open(self.url)
        with self._guard("opened"):
            _METADATA.create_all(self._engine)

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    def create_run(self, header: RunHeader) -> None:
        """Registers a run; its trials can then be appended.

        Raises:
            StoreError: the store is full, read-only or gone.
        """
        with self._begin("written") as connection:
            connection.execute(
                insert(_RUNS).values(
                    id=header.run,
                    slugs=" ".join(header.slugs),
                    preset=header.preset,
                    status="running",
                    started_at=header.started_at,
                    header=header.to_json(),
                )
            )

    def append(self, run: str, record: TrialRecord) -> None:
        """Keeps one record; a second record of the same trial is refused.

        Raises:
            StoreError: the store is full, read-only or gone, or the trial has a record already.
        """
        with self._begin("written") as connection:
            connection.execute(insert(_TRIALS).values(run=run, trial=record.trial, record=record.to_json()))

    def finish(self, run: str, status: str) -> None:
        """Sets a run's status: ``finished`` or ``interrupted``."""
        with self._begin("written") as connection:
            connection.execute(update(_RUNS).where(_RUNS.c.id == run).values(status=status))

    def save_judgement(self, run: str, slug: str, judgement: Judgement) -> None:
        """Replaces the findings of one system in a run."""
        values = {
            "judged_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "findings": [f.to_json() for f in judgement.findings],
            "controls": [c.to_json() for c in judgement.controls],
        }
        with self._begin("written") as connection:
            where = (_FINDINGS.c.run == run) & (_FINDINGS.c.slug == slug)
            connection.execute(_FINDINGS.delete().where(where))
            connection.execute(insert(_FINDINGS).values(run=run, slug=slug, **values))

    def load(self, run: str) -> tuple[RunHeader, list[TrialRecord]]:
        """A run's header and records, in the order of the plan.

        Args:
            run: its id, an unambiguous beginning of it, or ``last``.

        Raises:
            BadInput: no such run, or several.
        """
        with self._begin("read") as connection:
            row = connection.execute(select(_RUNS.c.header).where(_RUNS.c.id == self._resolve(connection, run))).one()
            header = RunHeader.from_json(row.header)
            rows = connection.execute(select(_TRIALS.c.record).where(_TRIALS.c.run == header.run)).all()
        order = {planned["id"]: i for i, planned in enumerate(header.settings.get("planned", ()))}
        records = [TrialRecord.from_json(r.record) for r in rows]
        return header, sorted(records, key=lambda r: (order.get(r.trial, len(order)), r.trial))

    def judgements(self, run: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Findings and controls of a run as plain data, by system."""
        with self._begin("read") as connection:
            query = select(_FINDINGS).where(_FINDINGS.c.run == self._resolve(connection, run))
            return {r.slug: {"findings": r.findings, "controls": r.controls} for r in connection.execute(query).all()}

    def runs(self, slug: str | None = None, limit: int = 50) -> list[RunSummary]:
        """The latest runs first."""
        with self._begin("read") as connection:
            rows = connection.execute(select(_RUNS).order_by(_RUNS.c.started_at.desc(), _RUNS.c.id.desc())).all()
            chosen = [r for r in rows if slug is None or slug in r.slugs.split()][:limit]
            ids = [row.id for row in chosen]
            count = select(_TRIALS.c.run, func.count()).where(_TRIALS.c.run.in_(ids)).group_by(_TRIALS.c.run)
            counts: dict[str, int] = {run: number for run, number in connection.execute(count)}  # noqa: C416
            verdicts: dict[str, dict[str, str]] = {run: {} for run in ids}
            for row in connection.execute(select(_FINDINGS).where(_FINDINGS.c.run.in_(ids))):
                verdicts[row.run] |= {f"{row.slug}/{claim}": verdict for claim, verdict in _verdicts(row.findings)}
            return [_summary(row, counts.get(row.id, 0), verdicts[row.id]) for row in chosen]

    def latest_unfinished(self, slugs: tuple[str, ...], preset: str) -> str | None:
        """The id of the newest run of these systems that was not finished, or ``None``."""
        with self._begin("read") as connection:
            query = (
                select(_RUNS.c.id)
                .where(_RUNS.c.slugs == " ".join(slugs), _RUNS.c.preset == preset, _RUNS.c.status != "finished")
                .order_by(_RUNS.c.started_at.desc(), _RUNS.c.id.desc())
            )
            row = connection.execute(query).first()
        return row.id if row else None

    def _resolve(self, connection: Connection, run: str) -> str:
        query = select(_RUNS.c.id).order_by(_RUNS.c.started_at.desc(), _RUNS.c.id.desc())
        ids = [row.id for row in connection.execute(query).all()]
        if run == "last" and ids:
            return str(ids[0])
        if run in ids:
            return run
        matches = [i for i in ids if i.startswith(run)]
        if len(matches) == 1:
            return str(matches[0])
        if matches:
            raise BadInput(f"{run} is the beginning of {len(matches)} runs: {', '.join(matches[:4])}")
        raise BadInput(f"there is no run {run!r}; `heliograph runs` lists them")

    @contextmanager
    def _begin(self, what: str) -> Iterator[Connection]:
        with self._guard(what), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise StoreError(f"the store already has this entry: {_reason(error)}") from None
        except SQLAlchemyError as error:
            raise StoreError(
                f"the store {hide_password(self.url)} cannot be {what}: {_reason(error)}. "
                "Free space or fix the permissions, or name another store with --store or HELIOGRAPH_STORE."
            ) from None


def _summary(row: Any, trials: int, verdicts: Mapping[str, str]) -> RunSummary:
    return RunSummary(
        run=row.id,
        slugs=tuple(row.slugs.split()),
        preset=row.preset,
        status=row.status,
        started_at=row.started_at,
        machine=row.header.get("machine", {}).get("label", ""),
        trials=trials,
        planned=len(row.header.get("settings", {}).get("planned", ())),
        verdicts=verdicts,
    )


def _verdicts(findings: Any) -> Iterator[tuple[str, str]]:
    """Claims and verdicts of a stored judgement; a damaged entry is left out, for `rejudge` makes it anew."""
    for finding in findings if isinstance(findings, list) else ():
        if isinstance(finding, dict) and "claim" in finding and "verdict" in finding:
            yield finding["claim"], finding["verdict"]


def _open(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise BadInput(f"not a database URL: {url!r}; expected sqlite:///PATH or postgresql://...") from None
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            _make_folder(Path(parsed.database))
        engine = create_engine(parsed, connect_args={"timeout": 30})
        event.listen(engine, "connect", _configure_sqlite)
        return engine
    if backend == "postgresql":
        try:
            return create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                pool_pre_ping=True,
                connect_args={"connect_timeout": 5},
            )
        except (ImportError, NoSuchModuleError):
            raise MissingExtra("psycopg", "postgres") from None
    raise BadInput(f"unknown database {backend!r}; expected sqlite:///PATH or postgresql://...")


def _make_folder(database: Path) -> None:
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(database.parent).free
    except OSError as error:
        raise StoreError(f"the store's folder {database.parent} cannot be made: {error.strerror}") from None
    if free < 2**20:
        raise StoreError(f"the store's disk is full: {free} bytes are free in {database.parent}")


def _configure_sqlite(connection: Any, _: Any) -> None:
    run: Callable[[str], Any] = connection.execute
    run("PRAGMA journal_mode=WAL")
    run("PRAGMA synchronous=NORMAL")
    run("PRAGMA foreign_keys=ON")


def _reason(error: SQLAlchemyError) -> str:
    text = str(error.orig) if isinstance(error, DBAPIError) and error.orig else str(error)
    return " ".join(text.split())[:300]


def hide_password(url: str) -> str:
    """The store's URL as it may be shown."""
    return make_url(url).render_as_string(hide_password=True)


def dump(data: Any) -> str:
    """JSON as the command line prints it."""
    return json.dumps(data, indent=2, allow_nan=False)
