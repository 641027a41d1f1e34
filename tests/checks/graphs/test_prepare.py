"""The graphs of a check written for another machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliograph.checks.graphs import prepare as module
from heliograph.checks.graphs.prepare import draws_of, main, prepare
from heliograph.graphs.core import prepared, tasks
from heliograph.graphs.core.tasks import GraphTask
from tests.graphs.core.test_prepared import make_task, same

DRAW = ("molecules.zinc", 3, (("test", 1), ("train", 2), ("valid", 0)))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(seed: int, **_: int) -> GraphTask:
        return make_task(node_types=300 + seed)

    monkeypatch.setattr(tasks, "TASKS", {**tasks.TASKS, "molecules.zinc": make})
    monkeypatch.setattr(module, "draws_of", lambda *_: [DRAW])


def test_the_gpu_preset_of_each_check_draws_eight_seeds_of_every_size() -> None:
    found = draws_of(["grit", "gnn_plus", "graph_mamba"], "gpu")
    by_size: dict[tuple[str, tuple[tuple[str, int], ...]], set[int]] = {}
    for name, seed, sizes in found:
        by_size.setdefault((name, sizes), set()).add(seed)
    assert {name for name, _ in by_size} == {"molecules.zinc", "peptides"}
    assert all(seeds == set(range(8)) for seeds in by_size.values())


@pytest.mark.usefixtures("made")
def test_a_machine_without_the_packages_reads_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = prepare(["grit"], "gpu", tmp_path / "carried")
    assert file.is_relative_to(tmp_path / "carried" / "cache" / "tasks")
    monkeypatch.setenv("HELIOGRAPH_HOME", str(tmp_path / "carried"))
    monkeypatch.setattr(prepared, "_versions", lambda _: {"rdkit": ""})
    found = prepared.keep_task(DRAW[0], DRAW[1], dict(DRAW[2]), lambda: pytest.fail("it was made again"))
    assert same(found, make_task(node_types=303))


@pytest.mark.usefixtures("made")
def test_the_command_says_how_much_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grit", "--output", str(tmp_path / "carried")]) == 0
    assert "1 files" in capsys.readouterr().out


def test_a_check_that_reads_no_kept_graphs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["floydnet", "--preset", "smoke", "--output", str(tmp_path / "carried")]) == 2
    assert "floydnet at preset smoke" in capsys.readouterr().err
