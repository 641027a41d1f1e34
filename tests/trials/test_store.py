from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import event

from heliograph.devices import this_machine
from heliograph.errors import BadInput, StoreError
from heliograph.trials.header import new_header
from heliograph.trials.judge import judge
from heliograph.trials.plan import make_plan
from heliograph.trials.record import RunHeader, TrialRecord
from heliograph.trials.runner import Keeper
from heliograph.trials.store import Store

PLAN = make_plan("tests.trials.synthetic:CHECK", "laptop")


def header() -> RunHeader:
    return new_header([PLAN], "heliograph check synthetic", {"seed": 0}, this_machine())


def record(number: int, **changes: object) -> TrialRecord:
    trial = PLAN.trials[number]
    base = TrialRecord(
        trial.id, trial.slug, trial.experiment, trial.workload.name, trial.block, trial.seed, trial.contender, "ok",
        metrics={trial.contender: {"score": 1.0, "agrees": True, "control_agrees": True}},
    )  # fmt: skip
    return replace(base, **changes)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"sqlite:///{tmp_path / 'new' / 'runs.sqlite'}")


def test_run_comes_back_as_it_was_in_the_order_of_the_plan(store: Store) -> None:
    first = header()
    store.create_run(first)
    for number in (3, 0, 2):
        store.append(first.run, record(number))
    loaded, records = store.load(first.run)
    assert loaded == first
    assert [r.trial for r in records] == [PLAN.trials[n].id for n in (0, 2, 3)]
    assert records[0] == record(0)


def test_second_record_of_a_trial_is_refused(store: Store) -> None:
    first = header()
    store.create_run(first)
    store.append(first.run, record(0))
    with pytest.raises(StoreError, match="already has"):
        store.append(first.run, record(0))


def test_run_is_found_by_its_beginning_and_as_last(store: Store) -> None:
    older, newer = header(), header()
    older = replace(older, run="aaa-1", started_at="2026-01-01T00:00:00.000+00:00")
    newer = replace(newer, run="abb-2")
    for one in (older, newer):
        store.create_run(one)
    assert store.load("aa")[0].run == "aaa-1"
    assert store.load("last")[0].run == "abb-2"
    with pytest.raises(BadInput, match="beginning of 2 runs"):
        store.load("a")
    with pytest.raises(BadInput, match="no run 'zzz'"):
        store.load("zzz")


def test_judgement_replaces_the_one_before(store: Store) -> None:
    first = header()
    store.create_run(first)
    judged = judge(PLAN.check, None, "laptop", [record(n) for n in range(19)])
    for _ in range(2):
        store.save_judgement(first.run, "synthetic", judged)
    assert len(store.judgements(first.run)["synthetic"]["findings"]) == 2
    (summary,) = store.runs()
    assert summary.verdicts["synthetic/agreement"] == "holds"


def test_unfinished_run_is_the_newest_of_the_same_systems(store: Store) -> None:
    first = header()
    store.create_run(first)
    assert store.latest_unfinished(("synthetic",), "laptop") == first.run
    assert store.latest_unfinished(("synthetic",), "gpu") is None
    store.finish(first.run, "finished")
    assert store.latest_unfinished(("synthetic",), "laptop") is None


def test_full_database_is_a_clear_error_and_keeps_what_was_written(store: Store) -> None:
    first = header()
    store.create_run(first)
    store.append(first.run, record(0))
    event.listen(store._engine, "checkout", lambda connection, *_: connection.execute("PRAGMA max_page_count=1"))

    def fill() -> None:
        for number in range(1, 19):
            store.append(first.run, record(number, tail="x" * 4000))

    with pytest.raises(StoreError, match="full"):
        fill()
    assert store.load(first.run)[1][0].trial == PLAN.trials[0].id


def test_unwritable_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        Store(f"sqlite:///{tmp_path / 'file' / 'runs.sqlite'}")


def test_read_only_database_is_a_clear_error(store: Store) -> None:
    event.listen(store._engine, "checkout", lambda connection, *_: connection.execute("PRAGMA query_only=ON"))
    with pytest.raises(StoreError, match="readonly"):
        store.create_run(header())


def test_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    path.write_bytes(b"this is no database, and longer than a header of one would be" * 20)
    with pytest.raises(StoreError, match="not a database"):
        Store(f"sqlite:///{path}")


@pytest.mark.parametrize("url", ["nonsense", "mysql://host/x", "sqlite:/x"])
def test_unknown_url_is_refused(url: str) -> None:
    with pytest.raises(BadInput, match="database"):
        Store(url)


def test_password_is_never_shown() -> None:
    with pytest.raises(StoreError) as caught:
        Store("postgresql://user:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)


def test_two_writers_lose_nothing(store: Store) -> None:
    first = header()
    store.create_run(first)
    other = Store(store.url)
    for number in range(18):
        (store if number % 2 else other).append(first.run, record(number))
    assert len(store.load(first.run)[1]) == 18


class FlakyStore:
    """A store that fails from the third record on, until told otherwise."""

    def __init__(self) -> None:
        self.kept: list[str] = []
        self.broken = True

    def append(self, run: str, row: TrialRecord) -> None:
        if self.broken and len(self.kept) >= 2:
            raise StoreError("the store has gone")
        self.kept.append(row.trial)


def test_results_go_to_a_file_while_the_store_is_gone(tmp_path: Path) -> None:
    flaky = FlakyStore()
    keeper = Keeper(flaky, header(), tmp_path / "spool")
    for number in range(5):
        keeper.keep(record(number))
    keeper.end()
    (spool,) = (tmp_path / "spool").glob("*.jsonl")
    assert len(spool.read_text().splitlines()) == 1 + 3
    assert any("--import" in warning for warning in keeper.warnings)


def test_results_return_to_the_store_when_it_comes_back(tmp_path: Path) -> None:
    flaky = FlakyStore()
    keeper = Keeper(flaky, header(), tmp_path / "spool")
    for number in range(5):
        keeper.keep(record(number))
    flaky.broken = False
    keeper.end()
    assert len(flaky.kept) == 5
    assert not list((tmp_path / "spool").glob("*.jsonl"))


def test_spool_elsewhere_when_its_folder_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blocked").write_text("a file where the folder should be")
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    keeper = Keeper(FlakyStore(), header(), tmp_path / "blocked")
    for number in range(4):
        keeper.keep(record(number))
    keeper.end()
    assert len(list(elsewhere.glob("*.jsonl"))) == 1


def test_sqlite_file_is_readable_by_sqlite_itself(store: Store) -> None:
    first = header()
    store.create_run(first)
    path = store.url.removeprefix("sqlite:///")
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (1,)
