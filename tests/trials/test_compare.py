from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from heliograph.checks.graphs import COMPARE
from heliograph.errors import BadInput
from heliograph.trials.compare import comparison_rows, comparison_trials, parse_budget
from heliograph.trials.record import TrialRecord

REF = "heliograph.checks.graphs:COMPARE"


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("5min", 300), ("1.5m", 90), ("1h", 3600)])
def test_budget_is_read_as_a_time(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-5", "soon", "5 parsecs", "1e3s"])
def test_budget_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="budget"):
        parse_budget(text)


def test_every_contender_gets_the_same_seconds_alone_on_the_machine() -> None:
    trials = comparison_trials(COMPARE, REF, COMPARE.workload("bfs"), ["floydnet", "gin"], 60, seeds=3)
    assert {t.workload["budget_s"] for t in trials} == {10.0}
    assert all(t.exclusive for t in trials)
    assert [t.contender for t in trials] == ["floydnet", "gin"] * 3


@pytest.mark.parametrize(
    ("names", "budget", "words"),
    [(["nobody"], 60, "choose from"), (["gin", "gin"], 60, "once"), ([], 60, "once"), (["gin"], 0.1, "give --budget")],
)
def test_bad_comparison_is_refused(names: list[str], budget: float, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        comparison_trials(COMPARE, REF, COMPARE.workload("bfs"), names, budget)


def test_unknown_task_suggests_the_nearest() -> None:
    with pytest.raises(BadInput, match="did you mean counting"):
        COMPARE.workload("countin")


def _record(arm: str, block: int, quality: float, status: str = "ok") -> TrialRecord:
    metrics = {arm: {"quality": quality, "parameters": 100, "steps": 5, "peak_bytes": 2**20}} if status == "ok" else {}
    return TrialRecord(f"{arm}{block}", "c", "compare", "w", block, block, arm, status, metrics=metrics)  # type: ignore[arg-type]


def test_rows_pair_seeds_with_the_reference_and_count_failures() -> None:
    records = [_record("a", b, 1.0 + b) for b in range(4)] + [_record("b", b, 1.5 + b) for b in range(3)]
    records.append(_record("b", 3, 0.0, "crashed"))
    first, second = comparison_rows(records, ["a", "b"])
    assert first.difference is None
    assert second.difference == pytest.approx(0.5)
    assert (second.seeds, second.failed) == (3, 1)


def test_comparison_runs_on_a_built_in_task(heliograph: list[str], tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    command = [*heliograph, "compare", "bfs", "--contenders", "gin,mpnn", "--budget", "4s", "--seeds", "2", "--json"]
    result = subprocess.run([*command, "-o", str(page)], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    rows = {row["contender"]: row for row in json.loads(result.stdout)["rows"]}
    assert abs(rows["gin"]["parameters"] - rows["mpnn"]["parameters"]) <= 0.1 * rows["gin"]["parameters"]
    assert rows["gin"]["train_s"] >= 1.0
    assert "<svg" in page.read_text()


def test_comparison_runs_on_own_graphs(heliograph: list[str], tmp_path: Path) -> None:
    import torch
    from torch_geometric.data import Data

    random = torch.Generator().manual_seed(0)
    own = [
        Data(edge_index=torch.randint(5, (2, 8), generator=random), y=torch.tensor(i % 2), num_nodes=5)
        for i in range(20)
    ]
    torch.save(own, tmp_path / "own.pt")
    command = [
        *heliograph,
        "compare",
        str(tmp_path / "own.pt"),
        "--contenders",
        "gin",
        "--budget",
        "2s",
        "--seeds",
        "2",
    ]
    result = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["quality"] == "accuracy"


def test_contender_that_does_not_take_the_task_is_refused() -> None:
    with pytest.raises(BadInput, match="mpnn does not take the task minesweeper"):
        comparison_trials(COMPARE, REF, COMPARE.workload("minesweeper"), ["mpnn"], 60)
    with pytest.raises(BadInput, match="grit does not take the task bfs"):
        comparison_trials(COMPARE, REF, COMPARE.workload("bfs"), ["gin", "grit"], 60)
    with pytest.raises(BadInput, match="--target is for your own data"):
        COMPARE.workload("bfs", "y")


def test_comparison_runs_on_a_task_of_graphs_with_equal_parameters(heliograph: list[str]) -> None:
    command = [*heliograph, "compare", "minesweeper", "--contenders", "gnn_plus,gps,mlp", "--budget", "6s"]
    result = subprocess.run([*command, "--seeds", "1", "--json"], capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    rows = {row["contender"]: row for row in found["rows"]}
    assert found["quality"] == "balanced accuracy"
    for row in rows.values():
        assert abs(row["parameters"] - rows["gnn_plus"]["parameters"]) <= 0.05 * rows["gnn_plus"]["parameters"]
        assert row["train_s"] >= 2.0
