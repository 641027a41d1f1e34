from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Batch, Data

from heliograph.checks.graphs.graph_tasks import adopt_graphs
from heliograph.errors import BadInput
from heliograph.graphs.core.tasks import GraphTask
from heliograph.graphs.inputs import make_task, read_graphs


def read_task(path: Path, seed: int = 0) -> GraphTask:
    return make_task(read_graphs(path), "graphs", seed=seed)


def graphs(count: int = 12, **changes: object) -> list[Data]:
    random = torch.Generator().manual_seed(0)
    made = []
    for index in range(count):
        size = 3 + index % 4
        edges = torch.randint(size, (2, 6), generator=random)
        data = Data(
            x=torch.randn(size, 2, generator=random),
            edge_index=edges,
            edge_attr=torch.randn(6, 1, generator=random),
            y=torch.tensor([float(index)]),
            num_nodes=size,
        )
        for name, value in changes.items():
            data[name] = value(index, data) if callable(value) else value
        made.append(data)
    return made


def saved(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "graphs.pt"
    torch.save(content, path)
    return path


def test_numbers_a_graph_become_a_regression(tmp_path: Path) -> None:
    path = saved(tmp_path, graphs())
    task = read_task(path)
    assert (task.target.level, task.target.kind) == ("graph", "value")
    assert len(task.train) + len(task.valid) + len(task.test) == 12
    assert (task.in_dim, task.edge_dim) == (2, 1)
    assert adopt_graphs(path).params["quality"] == "mae"


def test_whole_numbers_a_vertex_become_classes(tmp_path: Path) -> None:
    own = graphs(y=lambda i, d: torch.arange(d.num_nodes) % 3)
    task = read_task(saved(tmp_path, own))
    assert (task.target.level, task.target.kind, task.target.outputs) == ("vertex", "class", 3)


def test_batch_object_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="to_data_list"):
        read_task(saved(tmp_path, Batch.from_data_list(graphs())))


def test_split_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    path = saved(tmp_path, graphs())
    first, second, other = ([float(g.y) for g in read_task(path, seed).train] for seed in (1, 1, 2))
    assert first == second
    assert first != other


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y": lambda i, d: torch.tensor([1.0])}, "nothing to learn"),
        ({"y": None}, "no target"),
        ({"x": lambda i, d: torch.full((d.num_nodes, 2), float("nan"))}, "NaN"),
        ({"x": lambda i, d: torch.zeros(d.num_nodes + 1, 2)}, "rows of x for"),
        ({"edge_attr": lambda i, d: torch.zeros(2, 1)}, "rows of edge_attr"),
        ({"edge_index": torch.tensor([[0], [99]])}, r"indices in \[0"),
        ({"edge_index": torch.tensor([[0], [-1]])}, r"indices in \[0"),
        ({"y": lambda i, d: torch.zeros(2 + i % 2)}, "one a graph or one a vertex"),
    ],
)
def test_bad_graphs_are_refused_naming_what_is_wrong(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        read_task(saved(tmp_path, graphs(**changes)))


def test_too_few_graphs_to_compare_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="at least 10"):
        adopt_graphs(saved(tmp_path, graphs(4)))


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/heliograph-was-here"),))


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_hostile_file_is_refused_and_runs_nothing(tmp_path: Path, protocol: str) -> None:
    path = tmp_path / "graphs.pt"
    if protocol == "torch":
        torch.save([Evil()], path)
    else:
        path.write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(BadInput, match="cannot read"):
        read_task(path)
    assert not Path("/tmp/heliograph-was-here").exists()


@pytest.mark.parametrize("cut", [0, 10, 500])
def test_truncated_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = saved(tmp_path, graphs())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BadInput, match="cannot read"):
        read_task(path)
