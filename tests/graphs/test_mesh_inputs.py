"""Meshes in ``heliograph graphs fit``: real small files, written by meshio and scikit-fem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from heliograph.errors import BadInput
from heliograph.graphs.commands import app
from heliograph.graphs.inputs import make_task, read_graphs
from heliograph.graphs.mesh_inputs import EDGES, write_meshes

meshio = pytest.importorskip("meshio")
skfem = pytest.importorskip("skfem")

FAST = ["--epochs", "2", "--layers", "2", "--hidden", "12", "--walk-steps", "4"]


def call(*arguments: object, error: str = "") -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if error:
        assert isinstance(result.exception, BadInput), result.output
        assert error in str(result.exception)
        return ""
    if result.exception is not None:
        raise result.exception
    return result.stdout


def square(refined: int = 2, shift: float = 0.0, **arrays: Any) -> Any:
    """A triangulated square with its height, a velocity and a region as point data."""
    mesh = skfem.MeshTri().refined(refined)
    points = np.concatenate([mesh.p.T, np.zeros((mesh.p.shape[1], 1))], axis=1)
    data = {
        "height": points[:, 0] + shift,
        "temperature": np.sin(points[:, 0] + shift) + points[:, 1],
        "velocity": np.stack([points[:, 1], -points[:, 0], 0 * points[:, 0]], axis=1),
        "region": (points[:, 0] > 0.5).astype(np.int64),
    } | arrays
    cells = [("triangle", mesh.t.T)]
    return meshio.Mesh(points, cells, point_data=data, cell_data={"pressure": [np.zeros(mesh.t.shape[1])]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "meshes"
    path.mkdir()
    for number in range(6):
        square(1 + number % 2, 0.1 * number).write(path / f"m{number}.vtu")
    return path


def test_points_are_vertices_and_element_edges_go_both_ways_with_offset_and_length(tmp_path: Path) -> None:
    points = np.array([[0.0, 0, 0], [3, 0, 0], [0, 4, 0], [9, 9, 9]])
    mesh = meshio.Mesh(points, [("triangle", [[0, 1, 2]])], point_data={"u": np.arange(4.0)})
    mesh.write(tmp_path / "one.vtu")
    read = read_graphs(tmp_path / "one.vtu", "u")
    (graph,) = read.graphs
    edges = {(int(a), int(b)): values for a, b, values in zip(*graph.edge_index, graph.edge_attr.tolist(), strict=True)}
    assert set(edges) == {(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)}
    assert edges[1, 2] == [3, -4, 0, 5]
    assert edges[2, 1] == [-3, 4, 0, 5]
    assert graph.num_nodes == 4
    assert "1 points" in read.notes[-1]  # the one without an element


@pytest.mark.parametrize("kind", sorted(set(EDGES) - {"vertex"}))
def test_every_kind_of_element_is_connected(kind: str, tmp_path: Path) -> None:
    size = 1 + max(max(edge) for edge in EDGES[kind])
    points = np.random.default_rng(0).random((size, 3))
    mesh = meshio.Mesh(points, [(kind, [list(range(size))])], point_data={"u": np.arange(float(size))})
    mesh.write(tmp_path / "one.vtu")
    (graph,) = read_graphs(tmp_path / "one.vtu", "u").graphs
    assert graph.edge_index.shape[1] == 2 * len(EDGES[kind])
    reached = {0}
    for _ in range(size):
        reached |= {int(b) for a, b in graph.edge_index.T if int(a) in reached}
    assert reached == set(range(size))


@pytest.mark.parametrize("suffix", [".vtu", ".vtk", ".msh"])
def test_files_of_each_format_give_the_same_graph(tmp_path: Path, suffix: str) -> None:
    mesh = square()
    mesh.cell_data.clear()
    mesh.point_data = {"height": mesh.point_data["height"], "temperature": mesh.point_data["temperature"]}
    for name in (suffix, ".vtu"):
        meshio.write(tmp_path / f"one{name}", mesh, **({"file_format": "gmsh"} if name == ".msh" else {}))
    found, expected = (read_graphs(tmp_path / f"one{name}", "temperature").graphs[0] for name in (suffix, ".vtu"))
    assert found.edge_index.tolist() == expected.edge_index.tolist()
    np.testing.assert_allclose(found.x, expected.x)
    np.testing.assert_allclose(found.y, expected.y)


def test_chosen_arrays_are_inputs_and_vectors_count_by_component(folder: Path) -> None:
    read = read_graphs(folder, "velocity", inputs=["height", "region"])
    assert read.graphs[0].x.shape[1] == 2
    assert read.graphs[0].y.shape[1] == 2  # the meshes are flat, and the third component is 0
    task = make_task(read, "meshes", valid=0.2, test=0.2)
    assert (task.target.level, task.target.kind, task.target.outputs) == ("vertex", "value", 2)
    assert task.target.columns == ("velocity_x", "velocity_y")
    assert (task.in_dim, task.edge_dim) == (2, 4)
    assert "height, velocity, region" in read_graphs(folder, "temperature").notes[0]


def test_a_trained_model_writes_its_predictions_back_into_the_meshes(folder: Path, tmp_path: Path) -> None:
    options = ["--target", "velocity", "--inputs", "height", "--valid", "0.2", "--test", "0.2"]
    told = json.loads(call("fit", folder, "-o", tmp_path / "model", "--json", *options, *FAST))
    assert told["target"] == "2 numbers for each vertex"
    assert "metrics" in told
    json.loads(call("evaluate", tmp_path / "model", folder, "--json"))
    new = square(3, 0.7)
    del new.point_data["velocity"]  # what is asked for need not be there
    new.write(tmp_path / "new.vtu")
    call("predict", tmp_path / "model", tmp_path / "new.vtu", "-o", tmp_path / "out.vtu")
    rows = json.loads(call("predict", tmp_path / "model", tmp_path / "new.vtu", "--json"))
    written = meshio.read(tmp_path / "out.vtu")
    assert written.cells[0].data.tolist() == new.cells[0].data.tolist()
    np.testing.assert_allclose(written.point_data["height"], new.point_data["height"])
    expected = [row["velocity_y"] for row in rows]
    np.testing.assert_allclose(written.point_data["velocity_y_predicted"], expected, rtol=1e-6)
    call("predict", tmp_path / "model", folder, "-o", tmp_path / "all")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [f"m{n}.vtu" for n in range(6)]


def test_classes_of_points_are_learned_and_written(folder: Path, tmp_path: Path) -> None:
    options = ["--target", "region", "--inputs", "height", "--valid", "0.2", "--test", "0.2"]
    call("fit", folder, "-o", tmp_path / "model", *options, *FAST)
    call("predict", tmp_path / "model", folder / "m0.vtu", "-o", tmp_path / "out.vtu")
    written = meshio.read(tmp_path / "out.vtu").point_data
    assert set(np.unique(written["region_predicted"])) <= {0.0, 1.0}
    assert (written["probability"] >= 0.5).all()


@pytest.mark.parametrize(
    ("target", "inputs", "text"),
    [
        ("density", None, "no point data 'density' among height"),
        ("temperature", ["depth"], "no point data 'depth'"),
        ("pressure", None, "'pressure' is cell data"),
        ("temperature", ["temperature"], "both input and target"),
        ("", None, "name the point data to learn with --target"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused_by_name(
    folder: Path, target: str, inputs: list[str] | None, text: str
) -> None:
    with pytest.raises(BadInput, match=text):
        read_graphs(folder, target, inputs=inputs)


def test_nan_is_refused_with_array_and_point(tmp_path: Path) -> None:
    mesh = square()
    mesh.point_data["height"][3] = np.nan
    mesh.write(tmp_path / "one.vtu")
    with pytest.raises(BadInput, match="'height' holds NaN or infinity at point 3"):
        read_graphs(tmp_path / "one.vtu", "temperature")


def test_points_alone_unknown_elements_and_damaged_files_are_refused(tmp_path: Path) -> None:
    points = np.random.default_rng(0).random((27, 3))
    for cells, text in (
        ([("vertex", [[0], [1]])], "no elements with edges"),
        ([("hexahedron27", [list(range(27))])], "'hexahedron27'"),
    ):
        meshio.Mesh(points, cells, point_data={"u": np.arange(27.0)}).write(tmp_path / "one.vtu")
        with pytest.raises(BadInput, match=text):
            read_graphs(tmp_path / "one.vtu", "u")
    (tmp_path / "bad.vtu").write_text("<VTKFile")
    with pytest.raises(BadInput, match="meshio cannot read"):
        read_graphs(tmp_path / "bad.vtu", "u")


def test_places_that_meshes_cannot_be_written_to_are_refused_before_work(folder: Path, tmp_path: Path) -> None:
    options = ["--target", "temperature", "--valid", "0.2", "--test", "0.2"]
    call("fit", folder, "-o", tmp_path / "model", *options, *FAST)
    call("predict", tmp_path / "model", folder, "-o", tmp_path / "all.vtu", error="takes a folder")
    call("predict", tmp_path / "model", folder / "m0.vtu", "-o", tmp_path / "x.obj", error="takes .vtu")
    call("predict", tmp_path / "model", folder / "m0.vtu", "-o", folder / "m0.vtu", error="choose another place")
    with pytest.raises(BadInput, match="predictions on a mesh"):
        write_meshes(folder / "m0.vtu", tmp_path / "x.obj", [{}])


def test_options_of_meshes_are_refused_elsewhere_and_the_reverse(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("smiles,y\nC,1\nCC,2\n")
    with pytest.raises(BadInput, match="is no mesh"):
        read_graphs(tmp_path / "a.csv", "y", inputs=["height"])
    with pytest.raises(BadInput, match="the split is random"):
        read_graphs(folder, "temperature", split="part")
