import json

import pytest
import torch
from torch_geometric.data import Data
from typer.testing import CliRunner

from heliograph.errors import BadInput
from heliograph.graphs.commands import app
from heliograph.graphs.core.train import load_model, predict
from heliograph.graphs.inputs import read_graphs

FAST = ["--epochs", "3", "--layers", "2", "--hidden", "12", "--walk-steps", "4"]


def call(*arguments, error=None):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if error is not None:
        assert isinstance(result.exception, BadInput), result.output
        assert error in str(result.exception)
        return ""
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.fixture
def numbers(tmp_path):
    random = torch.Generator().manual_seed(0)
    graphs = []
    for index in range(30):
        size = 2 + index % 5
        edges = torch.randint(size, (2, 8), generator=random)
        graphs.append(Data(x=torch.rand(size, 2, generator=random), edge_index=edges, y=torch.tensor([float(size)])))
    path = tmp_path / "graphs.pt"
    torch.save(graphs, path)
    return path


def test_fit_predict_and_evaluate_from_the_command_line_agree_with_python(numbers, tmp_path):
    model = tmp_path / "model"
    told = json.loads(call("fit", numbers, "-o", model, "--json", *FAST))
    assert told["target"] == "1 number for each graph"
    assert told["graphs"] == {"train": 24, "valid": 3, "test": 3}
    assert set(told["metrics"]) == {"train", "valid", "test"}
    assert sorted(path.name for path in model.iterdir()) == ["curve.svg", "model.json", "weights.pt"]
    assert (model / "curve.svg").read_text().startswith("<svg")
    assert not list(tmp_path.glob(".model*"))
    scored = json.loads(call("evaluate", model, numbers, "--json"))
    assert scored["graphs"] == 30
    rows = call("predict", model, numbers).splitlines()
    assert rows[0] == "graph,y"
    expected = predict(load_model(model), read_graphs(numbers).graphs)
    assert [float(row.split(",")[1]) for row in rows[1:]] == pytest.approx(expected.reshape(-1).tolist(), rel=1e-4)
    call("predict", model, numbers, "-o", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().splitlines() == rows


def test_the_table_names_the_metrics(numbers, tmp_path):
    text = call("fit", numbers, "-o", tmp_path / "m", *FAST)
    assert "mae *" in text
    assert "lower is better" in text
    assert "all 3 epochs done" in text


def test_classes_come_back_by_name_for_unseen_molecules(tmp_path):
    pytest.importorskip("rdkit")
    rows = ["smiles,kind"] + [
        f"{'C' * n}{end},{kind}" for n in range(1, 12) for end, kind in (("", "alkane"), ("O", "alcohol"))
    ]
    data = tmp_path / "a.csv"
    data.write_text("\n".join(rows))
    call(
        "fit",
        data,
        "-o",
        tmp_path / "m",
        "--epochs",
        "8",
        "--hidden",
        "16",
        "--layers",
        "2",
        "--valid",
        "0.2",
        "--test",
        "0.2",
    )
    new = tmp_path / "new.csv"
    new.write_text("smiles\nCCCCO\nCCC\nCCBr\n")
    found = json.loads(call("predict", tmp_path / "m", new, "--json"))
    assert [row["graph"] for row in found] == [0, 1, 2]
    assert {row["kind"] for row in found} <= {"alkane", "alcohol"}
    assert all(0.5 <= row["probability"] <= 1 for row in found)


def test_vertices_of_one_graph_are_classified(tmp_path):
    graph = Data(x=torch.rand(30, 2), edge_index=torch.randint(30, (2, 60)), y=torch.arange(30) % 2)
    torch.save(graph, tmp_path / "one.pt")
    told = json.loads(call("fit", tmp_path / "one.pt", "-o", tmp_path / "m", "--json", *FAST))
    assert told["target"] == "one of 2 classes for each vertex"
    assert any("transductive" in note for note in told["notes"])
    rows = call("predict", tmp_path / "m", tmp_path / "one.pt").splitlines()
    assert rows[0] == "graph,vertex,y,probability"
    assert len(rows) == 31


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--conv", "gat"], "--conv takes gcn, gin, gatedgcn"),
        (["--off", "attention"], "is no switch"),
        (["--epochs", "0"], "epochs"),
        (["--hidden", "0"], "hidden"),
        (["--valid", "0.7", "--test", "0.7"], "shares that leave some"),
        (["--target", "a,b"], "one attribute"),
    ],
)
def test_bad_options_are_refused_and_leave_nothing(numbers, tmp_path, options, text):
    call("fit", numbers, "-o", tmp_path / "m", *options, error=text)
    assert not (tmp_path / "m").exists()


def test_an_existing_model_is_kept_unless_told_otherwise(numbers, tmp_path):
    call("fit", numbers, "-o", tmp_path / "m", *FAST)
    before = (tmp_path / "m" / "weights.pt").read_bytes()
    call("fit", numbers, "-o", tmp_path / "m", *FAST, error="exists already")
    assert (tmp_path / "m" / "weights.pt").read_bytes() == before
    call("fit", numbers, "-o", tmp_path / "m", "--overwrite", "--seed", "3", *FAST)
    assert (tmp_path / "m" / "weights.pt").read_bytes() != before


def test_graphs_of_another_shape_are_refused_by_a_model(numbers, tmp_path):
    call("fit", numbers, "-o", tmp_path / "m", *FAST)
    other = [Data(x=torch.rand(3, 5), edge_index=torch.zeros(2, 0, dtype=torch.long), y=torch.tensor([1.0]))] * 2
    torch.save(other, tmp_path / "other.pt")
    call("predict", tmp_path / "m", tmp_path / "other.pt", error="floating-point x of [N, 2]; got float32 of [6, 5]")
