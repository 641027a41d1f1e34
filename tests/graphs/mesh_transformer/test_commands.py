"""The verbs on files of one's own: train, score, roll out; and what they refuse."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from heliograph.errors import BadInput
from heliograph.graphs.mesh_commands import app

h5py = pytest.importorskip("h5py")


@pytest.fixture
def flows(tmp_path):
    row, column = np.divmod(np.arange(20), 5)
    corner = (np.arange(3)[:, None] * 5 + np.arange(4)).ravel()
    cells = np.concatenate(
        [np.stack([corner, corner + 1, corner + 6], 1), np.stack([corner, corner + 6, corner + 5], 1)]
    )
    path = tmp_path / "flows.h5"
    with h5py.File(path, "w") as file:
        for number in range(3):
            group = file.create_group(str(number))
            wave = np.sin(column - 0.3 * np.arange(8)[:, None] + number)
            group["velocity"] = np.stack([wave, 0 * wave], axis=-1).astype(np.float32)
            group["cells"], group["mesh_pos"] = cells, np.stack([column, row], 1).astype(np.float32)
            group["node_type"] = np.where(column == 0, 4, 0)[:, None]
    return path


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True)
    if isinstance(result.exception, BadInput):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("model", ["mesh_transformer", "mesh_graph_net"])
def test_simulator_is_trained_scored_and_rolled_out(flows, tmp_path, model):
    folder, frames = tmp_path / "sim", tmp_path / "frames.npz"
    size = ["--hidden", 8, "--layers", 1, "--seconds", 0.5, "--held-out", 1, "--json"]
    fitted = json.loads(run("fit", flows, "-o", folder, "--model", model, "--support", "khop=2", *size))
    assert fitted["steps"] > 0
    assert fitted["all_rollout_rmse"] > 0
    assert not list(tmp_path.glob(".*"))
    scored = json.loads(run("score", flows, "--simulator", folder, "--json"))
    assert scored["persistence_rmse"] > 0
    run("rollout", flows, "--simulator", folder, "-o", frames, "--trajectory", 2, "--steps", 3)
    found = np.load(frames)
    assert found["frames"].shape == (3, 20, 2)
    with pytest.raises(BadInput, match="exists already"):
        run("fit", flows, "-o", folder, *size)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--model", "gnn"], "mesh_transformer or mesh_graph_net"),
        (["--support", "hops=2"], "is no support"),
        (["--fields", "pressure"], "pressure"),
        (["--fields", ","], "at least one field"),
        (["--held-out", "3"], "leaves none"),
        (["--seconds", "0"], "above 0"),
    ],
)
def test_bad_choices_leave_nothing_behind(flows, tmp_path, changes, words):
    with pytest.raises(BadInput, match=words):
        run("fit", flows, "-o", tmp_path / "sim", "--hidden", 8, "--layers", 1, "--seconds", 0.2, *changes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flows.h5"]


def test_rollout_of_an_absent_trajectory_is_refused(flows, tmp_path):
    folder = tmp_path / "sim"
    run("fit", flows, "-o", folder, "--hidden", 8, "--layers", 1, "--seconds", 0.2)
    with pytest.raises(BadInput, match="counts from 0 to 2"):
        run("rollout", flows, "--simulator", folder, "-o", tmp_path / "f.npz", "--trajectory", 3)
