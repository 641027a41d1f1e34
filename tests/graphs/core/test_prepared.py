"""Tasks kept as files: the same graphs back, and what happens where the packages that make them are absent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data

from heliograph.errors import MissingData
from heliograph.graphs.core import prepared
from heliograph.graphs.core.prepared import keep_task, read_task, task_path, write_task
from heliograph.graphs.core.tasks import GraphTask, TargetSpec

SIZES = {"train": 2, "valid": 0, "test": 1}


def make_graph(vertices: int, edges: int, seed: int, **changes: object) -> Data:
    random = torch.Generator().manual_seed(seed)
    parts: dict[str, object] = {
        "x": torch.randint(300, (vertices,), generator=random),
        "edge_index": torch.randint(vertices, (2, edges), generator=random),
        "edge_attr": torch.randint(4, (edges,), generator=random),
        "y": torch.randn(1, generator=random),
    }
    return Data(**{name: value for name, value in (parts | changes).items() if value is not None})


def make_task(**changes: object) -> GraphTask:
    graphs = [make_graph(5, 8, 0), make_graph(200, 0, 1), make_graph(1, 3, 2)]
    target = TargetSpec("graph", "value", 1).fitted(graphs)
    task = GraphTask("molecules.zinc", tuple(graphs[:2]), (), tuple(graphs[2:]), target, node_types=300, edge_types=4)
    return replace(task, **changes)  # type: ignore[arg-type]


def same(first: GraphTask, second: GraphTask) -> bool:
    def content(task: GraphTask) -> list[dict[str, list[object]]]:
        return [
            {name: [value.dtype, value.tolist()] for name, value in graph.to_dict().items()}
            for graph in (*task.train, *task.valid, *task.test)
        ]

    facts = ("name", "target", "node_types", "in_dim", "edge_types", "edge_dim")
    return content(first) == content(second) and all(getattr(first, n) == getattr(second, n) for n in facts)


def test_a_file_gives_the_same_task_back(tmp_path: Path) -> None:
    task = make_task(notes=("as drawn",), node_types=(300, 2))
    write_task(tmp_path / "task.tab", task, {"rdkit": "1"})
    found = read_task(tmp_path / "task.tab")
    assert found is not None
    assert same(found[0], task)
    assert found[0].notes == ("as drawn",)
    assert found[1] == {"rdkit": "1"}


def test_graphs_without_vertex_or_edge_inputs_keep_their_number_of_vertices(tmp_path: Path) -> None:
    bare = [make_graph(4, 3, seed, x=None, edge_attr=None, num_nodes=4) for seed in range(2)]
    write_task(tmp_path / "task.tab", make_task(train=tuple(bare), test=()), {})
    found = read_task(tmp_path / "task.tab")
    assert found is not None
    assert [graph.num_nodes for graph in found[0].train] == [4, 4]
    assert found[0].test == ()


def test_a_kept_task_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "_versions", lambda _: {"rdkit": "1"})
    made = []

    def make() -> GraphTask:
        made.append(1)
        return make_task()

    first = keep_task("molecules.zinc", 0, SIZES, make)
    second = keep_task("molecules.zinc", 0, SIZES, make)
    keep_task("molecules.zinc", 1, SIZES, make)
    assert same(first, second)
    assert len(made) == 2  # one a seed


def test_another_version_of_the_package_makes_the_graphs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "_versions", lambda _: {"rdkit": "1"})
    keep_task("molecules.zinc", 0, SIZES, make_task)
    monkeypatch.setattr(prepared, "_versions", lambda _: {"rdkit": "2"})
    again = keep_task("molecules.zinc", 0, SIZES, lambda: make_task(node_types=301))
    assert again.node_types == 301


def test_without_the_package_the_file_serves_and_the_task_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "_versions", lambda _: {"rdkit": "2026.3", "molsets": "0.3"})
    keep_task("molecules.zinc", 0, SIZES, make_task)

    def refuse() -> GraphTask:
        raise MissingData("rdkit", "pip install rdkit")

    monkeypatch.setattr(prepared, "_versions", lambda _: {"rdkit": "", "molsets": ""})
    task = keep_task("molecules.zinc", 0, SIZES, refuse)
    assert same(task, make_task())
    assert "rdkit 2026.3" in task.notes[-1]
    with pytest.raises(MissingData):
        keep_task("molecules.zinc", 1, SIZES, refuse)


def test_another_form_of_the_code_has_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    before = task_path("peptides", 0, SIZES)
    prepared._code_version.cache_clear()
    monkeypatch.setattr(prepared, "FORMAT", prepared.FORMAT + 1)
    after = task_path("peptides", 0, SIZES)
    prepared._code_version.cache_clear()
    assert before != after
