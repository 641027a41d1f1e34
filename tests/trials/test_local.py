from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from heliograph.trials.local import Event, LocalExecutor
from heliograph.trials.plan import make_plan
from heliograph.trials.record import TrialRecord

HERE = "tests.trials.synthetic"


def run(attribute: str, count: int | None = None, **changes: object) -> tuple[list[TrialRecord], list[Event]]:
    trials = make_plan(f"{HERE}:{attribute}", "laptop").trials[:count]
    events: list[Event] = []
    LocalExecutor((HERE,)).run([replace(t, **changes) for t in trials], events.append)
    return [e.record for e in events if e.record is not None], events


def test_every_trial_ends_with_one_record_and_starts_before_it() -> None:
    records, events = run("CHECK")
    ids = [t.id for t in make_plan(f"{HERE}:CHECK", "laptop").trials]
    assert sorted(r.trial for r in records) == sorted(ids)
    assert all(r.status == "ok" for r in records)
    kinds = [e.kind for e in events if e.trial.id == ids[0]]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert "said" in kinds


def test_same_seed_gives_the_same_numbers() -> None:
    first, second = ({r.trial: r.metrics[r.contender]["score"] for r in run("USELESS")[0]} for _ in range(2))
    assert first == second


def test_exception_is_recorded_with_its_traceback_and_the_run_goes_on() -> None:
    records, _ = run("RAISES")
    by_arm = {r.contender: r for r in records}
    assert by_arm["system"].status == "crashed"
    assert "a deliberate failure" in by_arm["system"].tail
    assert by_arm["baseline"].status == "ok"


def test_segmentation_fault_is_recorded_by_its_name() -> None:
    records, _ = run("SEGFAULTS", 1)
    assert (records[0].status, "SIGSEGV" in records[0].tail) == ("crashed", True)


def test_hanging_trial_is_stopped_at_its_limit() -> None:
    records, _ = run("HANGS", 1, time_limit_s=0.5)
    assert (records[0].status, "limit of 0.5 s" in records[0].tail) == ("timed_out", True)


def test_memory_hog_is_stopped_at_its_limit() -> None:
    records, _ = run("HOARDS", 1)
    assert (records[0].status, "600 MiB" in records[0].tail) == ("out_of_memory", True)


def test_metric_that_is_not_a_number_is_refused() -> None:
    records, _ = run("NANS", 1)
    assert (records[0].status, "finite number" in records[0].tail) == ("crashed", True)


def test_a_gigabyte_of_output_is_counted_and_not_kept() -> None:
    before = psutil.Process().memory_info().rss
    records, _ = run("PRINTS", 1, time_limit_s=120.0)
    assert (records[0].status, records[0].printed_bytes) == ("ok", 2**30)
    assert len(records[0].tail) < 10_000
    assert psutil.Process().memory_info().rss - before < 200 * 2**20


def test_grandchild_dies_with_its_trial() -> None:
    before = {p.pid for p in psutil.process_iter()}
    records, _ = run("FORKS", 1)
    assert records[0].status == "ok"
    left = [
        p for p in psutil.process_iter(["cmdline"]) if p.pid not in before and "forkserver" in str(p.info["cmdline"])
    ]
    _, alive = psutil.wait_procs(left, timeout=5)
    assert not alive


def test_interleaved_arms_are_timed_in_one_process() -> None:
    records, _ = run("TIMED")
    for record in records:
        assert set(record.metrics) == {"system", "baseline"}
        assert len(record.detail["seconds"]["system"]) == 5


def test_timed_trials_run_alone() -> None:
    _, events = run("TIMED")
    running = 0
    for event in events:
        running += {"started": 1, "finished": -1}.get(event.kind, 0)
        assert running <= 1


def test_module_that_cannot_be_imported_is_named() -> None:
    executor = LocalExecutor(("no_such_module_at_all",))
    executor.run(make_plan(f"{HERE}:CHECK", "laptop").trials[:1], lambda event: None)
    assert "no_such_module_at_all" in executor.missing


def test_killed_command_leaves_no_process_behind(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        from heliograph.trials.local import LocalExecutor
        from heliograph.trials.plan import make_plan
        trials = make_plan("{HERE}:HANGS", "laptop").trials[:1]
        from dataclasses import replace
        LocalExecutor().run([replace(trials[0], time_limit_s=60.0)], lambda e: print(e.kind, flush=True))
    """)
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"},
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "started"
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_bound_what_runs_at_a_time(workers: int) -> None:
    running, most = 0, 0

    def watch(event: Event) -> None:
        nonlocal running, most
        running += {"started": 1, "finished": -1}.get(event.kind, 0)
        most = max(most, running)

    LocalExecutor((HERE,), workers).run(make_plan(f"{HERE}:USELESS", "laptop").trials[:6], watch)
    assert most <= workers
