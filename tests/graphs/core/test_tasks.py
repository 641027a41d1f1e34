import math

import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from heliograph.data import communities, molecules
from heliograph.data.tu import read_tu
from heliograph.errors import BadInput, MissingData
from heliograph.graphs.core.tasks import TASKS, TargetSpec, infer_target, load_task, random_split

NEEDS = {"molecules.zinc": ("moses", "rdkit"), "tu.mutag": ("grakel",), "peptides": ("modlamp", "rdkit")}
SMALL = {"train": 12, "valid": 4, "test": 12}


def load(name, **sizes):
    try:
        return load_task(name, **sizes)
    except MissingData as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", TASKS)
def test_labels_fed_as_answers_score_perfectly(name):
    task = load(name, **SMALL)
    y = torch.cat([graph.y for graph in task.test])
    metrics = task.target.score(task.target.oracle(y), y)
    for score, value in metrics.values.items():
        assert value == (0.0 if score in ("mae", "rmse") else 1.0)
    assert [len(part) for part in (task.train, task.valid, task.test)] == [12, 4, 12]
    for graph in (*task.train, *task.test):
        assert int(graph.x.max()) < (task.node_types if isinstance(task.node_types, int) else math.inf)
        assert graph.edge_index.numel() == 0 or int(graph.edge_index.max()) < graph.num_nodes


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_the_same_for_the_same_seed_only(name):
    first, again, other = (load(name, seed=seed, **SMALL) for seed in (1, 1, 2))
    for one, two in zip(first.train, again.train, strict=True):
        assert torch.equal(one.x, two.x)
        assert torch.equal(one.edge_index, two.edge_index)
        assert torch.equal(one.y, two.y)
    same = [a.x.shape == b.x.shape and torch.equal(a.x, b.x) for a, b in zip(first.train, other.train, strict=True)]
    assert not all(same)


def test_zinc_targets_are_the_published_combination():
    pytest.importorskip("rdkit")
    task = load("molecules.zinc", train=40, valid=0, test=10)
    train, test = molecules.zinc(40, 10, 0)
    parts = molecules.penalised_log_p([m.smiles for m in train.molecules])
    z = (parts - parts.mean(0)) / np.where(parts.std(0) > 0, parts.std(0), 1)
    np.testing.assert_allclose(train.targets, z[:, 0] - z[:, 1] - z[:, 2])
    np.testing.assert_allclose([float(g.y) for g in task.test], test.targets, rtol=1e-6)
    again, _ = molecules.zinc(40, 10, 0)  # from the cache
    np.testing.assert_array_equal(again.targets, train.targets)
    assert [m.smiles for m in again.molecules] == [m.smiles for m in train.molecules]


def test_molecules_are_kekulised_heavy_atom_graphs():
    pytest.importorskip("rdkit")
    benzene = molecules.molecule("c1ccccc1")
    assert benzene.kinds == (("C", 0, 1),) * 6
    assert sorted(benzene.bonds.tolist()) == [1] * 6 + [2] * 6
    assert molecules.molecule("[NH4+]").kinds == (("N", 1, 4),)
    assert molecules.molecule("[NH4+]").edge_index.shape == (2, 0)
    found, note = molecules.read_smiles(["CCO", "no molecule", "", "C"])
    assert [mol is None for mol in found] == [False, True, True, False]
    assert note.startswith("2 of 4 SMILES cannot be read")
    assert "row 2: 'no molecule'" in note


def test_communities_follow_their_definitions():
    for graph in communities.cluster(5, seed=3):
        for community in range(6):
            marked = graph.features[graph.labels == community]
            assert sorted(marked)[-1] == community + 1
            assert (marked > 0).sum() == 1
    for graph in communities.pattern(5, seed=3):
        assert graph.labels.sum() == 20
    for graph in (*communities.cluster(2), *communities.pattern(2)):
        edges = set(map(tuple, graph.edge_index.T.tolist()))
        assert all((v, u) in edges and u != v for u, v in edges)


def test_minesweeper_numbers_count_the_mines_around():
    board = communities.minesweeper(1, size=6, seed=1)[0]
    graph = nx.Graph(board.edge_index.T.tolist())
    mines = set(np.flatnonzero(board.labels == 1).tolist())
    for cell in np.flatnonzero(board.labels == -1):
        assert board.features[cell] == len(mines & set(graph[int(cell)]))
    assert (board.features[board.labels >= 0] == 9).all()


def test_a_tu_folder_is_read_and_a_broken_one_refused(tmp_path):
    folder = tmp_path / "TINY"
    folder.mkdir()
    for name, text in (
        ("A", "1, 2\n2, 1\n3, 4\n"),
        ("graph_indicator", "1\n1\n2\n2\n"),
        ("graph_labels", "-1\n1\n"),
        ("node_labels", "5\n7\n5\n5\n"),
    ):
        (folder / f"TINY_{name}.txt").write_text(text)
    first, second = read_tu(folder)
    assert first.edge_index.tolist() == [[0, 1], [1, 0]]
    assert second.edge_index.tolist() == [[0], [1]]
    assert first.node_labels.tolist() == [0, 1]
    assert (first.target, second.target) == (0, 1)
    (folder / "TINY_node_labels.txt").write_text("5\n")
    with pytest.raises(BadInput, match="labels do not fit 4 vertices"):
        read_tu(folder)
    (folder / "TINY_A.txt").unlink()
    with pytest.raises(BadInput, match="does not exist"):
        read_tu(folder)


def test_a_missing_package_is_named_with_its_install_line(monkeypatch):
    import importlib.util

    from heliograph.data import peptides, tu

    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    molecules.zinc_smiles.cache_clear()
    for call, line in (
        (lambda: molecules.zinc_smiles("train"), "pip install --no-deps molsets"),
        (tu.mutag, "pip install grakel"),
        (peptides.amp_sequences, "pip install --no-deps modlamp"),
    ):
        with pytest.raises(MissingData, match=line):
            call()


def graphs(*targets, size=3):
    return [Data(x=torch.ones(size, 1), edge_index=torch.zeros(2, 0, dtype=torch.long), y=y) for y in targets]


def test_targets_are_inferred():
    t = torch.tensor
    assert infer_target(graphs(t([0.5]), t([1.0]))) == TargetSpec("graph", "value", 1)
    assert infer_target(graphs(t([0]), t([2]))) == TargetSpec("graph", "class", 3)
    assert infer_target(graphs(t([0, 1, 1]), t([0, 0, 3]))) == TargetSpec("vertex", "class", 4)
    assert infer_target(graphs(t([[0.0, 1.0]]), t([[1.0, 0.0]]))) == TargetSpec("graph", "labels", 2)
    assert infer_target(graphs(t([[0.5, 1.0]]), t([[1.0, 0.0]]))) == TargetSpec("graph", "value", 2)


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        ((torch.tensor([1.0]), torch.tensor([1.0])), "1 everywhere"),
        ((torch.tensor([1.0]), torch.tensor([math.nan])), "row 1 holds NaN"),
        ((torch.tensor([1.0]), torch.tensor([1.0, 2.0])), "graph 1 has 2 rows"),
        ((torch.tensor([1.0]), None), "graph 1 has no target"),
    ],
)
def test_targets_that_cannot_be_learned_are_refused(targets, text):
    with pytest.raises(BadInput, match=text):
        infer_target(graphs(*targets))


def test_rare_classes_weigh_as_the_paper_says_and_unknown_ones_not_at_all():
    spec = TargetSpec("vertex", "class", 2, weighted=True).fitted(graphs(torch.tensor([0, 0, 1])))
    assert spec.class_weights == pytest.approx((1 / 3, 2 / 3))
    answer = torch.randn(4, 2)
    y = torch.tensor([0, 1, 1, -1])
    expected = (
        torch.nn.functional.cross_entropy(answer[:3], y[:3], reduction="none") * torch.tensor([1, 2, 2]) / 3
    ).mean()
    torch.testing.assert_close(spec.loss(answer, y), expected)
    metrics = spec.score(torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]]), y)
    assert metrics.balanced_accuracy == pytest.approx(0.75)


def test_metrics_equal_their_definitions():
    spec = TargetSpec("graph", "value", 1, mean=(2.0,), deviation=(3.0,))
    answer, y = torch.tensor([[0.0], [1.0]]), torch.tensor([2.0, 3.0])
    metrics = spec.score(spec.decode(answer), y)
    assert metrics.values == pytest.approx({"mae": 1.0, "rmse": 2**0.5, "r2": 1 - 4 / 0.5})
    assert metrics.quality == metrics.mae
    with pytest.raises(AttributeError, match="no accuracy"):
        _ = metrics.accuracy
    assert TargetSpec.from_json(spec.to_json()) == spec


def test_splits_are_seeded_and_complete():
    items = list(range(20))
    parts = random_split(items, 1, 0.1, 0.2)
    assert [len(part) for part in parts] == [14, 2, 4]
    assert sorted([*parts[0], *parts[1], *parts[2]]) == items
    assert parts == random_split(items, 1, 0.1, 0.2) != random_split(items, 2, 0.1, 0.2)
    with pytest.raises(BadInput, match="2 graphs"):
        random_split([1, 2], 0)


def test_an_unknown_task_names_the_others():
    with pytest.raises(BadInput, match=r"tu\.mutag"):
        load_task("zinc")
