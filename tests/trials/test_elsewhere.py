"""The same plan on Ray, and the store on a real PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from heliograph.errors import StoreError
from heliograph.trials.header import new_header
from heliograph.trials.local import LocalExecutor
from heliograph.trials.plan import make_plan
from heliograph.trials.record import TrialRecord
from heliograph.trials.runner import Run
from heliograph.trials.store import Store

pytestmark = pytest.mark.integration
HERE = "tests.trials.synthetic"
ENGINE = {"seconds", "peak_bytes", "memory_bytes", "peak_device_bytes"}


def measurements(executor, attribute: str) -> dict[str, tuple]:
    records: list[TrialRecord] = []
    plan = make_plan(f"{HERE}:{attribute}", "laptop")
    executor.run(plan.trials, lambda e: records.append(e.record) if e.record else None)
    return {
        r.trial: (r.status, {k: v for k, v in r.metrics.get(r.contender, {}).items() if k not in ENGINE})
        for r in records
    }


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.mark.parametrize("attribute", ["CHECK", "RAISES", "HANGS", "SEGFAULTS"])
def test_ray_gives_the_measurements_of_the_local_executor(cluster, attribute: str) -> None:
    from heliograph.trials.ray_executor import RayExecutor

    assert measurements(RayExecutor((HERE,)), attribute) == measurements(LocalExecutor((HERE,)), attribute)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str]]]:
    """A PostgreSQL server of our own on a free loopback port; yields its URL and the command that stops it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found and shutil.which("initdb") is None:
        pytest.fail("no PostgreSQL server is installed; on Debian: apt-get install postgresql")
    programs = found[-1].parent if found else Path(shutil.which("initdb") or "").parent
    folder = tmp_path_factory.mktemp("postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    prefix: list[str] = []
    if os.getuid() == 0:  # the server refuses to run as root
        prefix = ["runuser", "-u", "postgres", "--"]
        for place in (folder, *folder.parents[:3]):
            place.chmod(0o755)
        shutil.chown(folder, "postgres")
    data = str(folder / "data")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": True, "cwd": "/"}
    subprocess.run([*prefix, str(programs / "initdb"), "-D", data, "-U", "heliograph", "-A", "trust"], **quiet)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    control = [*prefix, str(programs / "pg_ctl"), "-D", data, "-w", "-m", "immediate"]
    subprocess.run([*control, "-o", options, "-l", str(folder / "log"), "start"], **quiet)
    yield f"postgresql://heliograph@127.0.0.1:{port}/postgres", [*control, "stop"]
    subprocess.run([*control, "stop"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, cwd="/")


def _run(store: Store, tmp_path: Path, on_event=lambda _: None):
    plan = make_plan(f"{HERE}:CHECK", "laptop")
    header = new_header([plan], "heliograph check synthetic", {})
    return Run(header, [plan], {}).execute(LocalExecutor((HERE,)), store, tmp_path / "spool", on_event)


def test_postgres_keeps_a_run_like_sqlite_does(server, tmp_path: Path) -> None:
    url, _ = server
    outcomes = []
    for store in (Store(url), Store(f"sqlite:///{tmp_path / 'runs.sqlite'}")):
        outcome = _run(store, tmp_path)
        header, records = store.load(outcome.header.run)
        assert header == outcome.header
        assert {r.trial: r for r in records} == {r.trial: r for r in outcome.records}
        outcomes.append(dict(store.runs()[0].verdicts))
        assert store.runs()[0].status == "finished"
    assert outcomes[0] == outcomes[1] == {"synthetic/agreement": "holds", "synthetic/better_score": "holds"}


def test_postgres_refuses_a_second_record_of_a_trial(server, tmp_path: Path) -> None:
    store = Store(server[0])
    outcome = _run(store, tmp_path)
    with pytest.raises(StoreError, match="already"):
        store.append(outcome.header.run, outcome.records[0])


def test_server_gone_in_mid_run_loses_nothing(server, tmp_path: Path) -> None:
    url, stop = server
    store = Store(url)
    seen = 0

    def pull_the_plug(event) -> None:
        nonlocal seen
        seen += event.record is not None
        if event.record is not None and seen == 4:
            subprocess.run(stop, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, cwd="/")

    outcome = _run(store, tmp_path, pull_the_plug)
    assert len(outcome.records) == 19
    assert {f.verdict for f in outcome.judgements["synthetic"].findings} == {"holds"}
    (spool,) = (tmp_path / "spool").glob("*.jsonl")
    assert len(spool.read_text().splitlines()) == 1 + 19 - 4
    assert any("--import" in w for w in outcome.warnings)
    rest = Store(f"sqlite:///{tmp_path / 'other.sqlite'}")
    from heliograph.trials.session import import_record

    header = import_record(spool, rest)
    assert len(rest.load(header.run)[1]) == 15
    rest.append(header.run, replace(outcome.records[0], trial=outcome.records[0].trial))
