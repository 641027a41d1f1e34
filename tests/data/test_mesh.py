import json
import warnings

import numpy as np
import pytest

from heliograph.data import mesh
from heliograph.data.flow_solver import HEIGHT, LENGTH, FlowBlewUp, channel_mesh, simulate_channel
from heliograph.data.mesh import INFLOW, NORMAL, OUTFLOW, WALL, cells_from_blocks, edges_of_cells, mesh_trajectory
from heliograph.data.mesh_files import read_h5, read_series
from heliograph.errors import BadInput, MissingExtra

POS = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
CELLS = np.array([[0, 1, 2], [0, 2, 3]])
FIELDS = np.arange(24.0).reshape(3, 4, 2)


def square(**changes):
    return mesh_trajectory(**{"pos": POS, "cells": CELLS, "fields": FIELDS, **changes})


class TestTrajectory:
    def test_edges_go_both_ways_once_sorted_by_target(self):
        assert square().edge_index.T.tolist() == [
            [1, 0], [2, 0], [3, 0], [0, 1], [2, 1], [0, 2], [1, 2], [3, 2], [0, 3], [2, 3],
        ]  # fmt: skip

    def test_tetrahedra_have_six_edges(self):
        assert edges_of_cells(np.array([[0, 1, 2, 3]]), 4).shape == (2, 12)

    def test_equal_meshes_share_a_digest_whatever_their_fields(self):
        assert square().connectivity == square(fields=FIELDS + 1).connectivity
        assert square().connectivity != square(cells=[[0, 1, 3], [1, 2, 3]]).connectivity

    def test_quadrilaterals_of_the_plane_are_cut(self):
        assert len(square(cells=[[0, 1, 2, 3]]).cells) == 2

    def test_other_fields_keep_the_mesh(self):
        one = square()
        other = one.with_fields(FIELDS + 1)
        assert other.edge_index is one.edge_index
        assert other.connectivity == one.connectivity
        assert other.fields.max() == one.fields.max() + 1
        with pytest.raises(BadInput, match="N=4"):
            one.with_fields(FIELDS[:, :3])

    def test_input_width_counts_what_the_model_sees(self):
        schema = square().schema
        assert schema.input_width() == 2 + 9
        assert schema.input_width(history=True, positions=True) == 4 + 2 + 9

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"pos": POS[:, :1]}, "pos must be"),
            ({"pos": POS * np.nan}, "not finite"),
            ({"fields": FIELDS[:1]}, "T of 2 or more"),
            ({"fields": np.where(np.arange(3)[:, None, None] == 1, np.nan, FIELDS)}, "frame 1 has 8 values"),
            ({"cells": [[0, 1, 4]]}, "name vertex 4"),
            ({"cells": [[0, 1, 1]]}, "names a vertex twice"),
            ({"cells": [[0, 1, 2], [0, 2, 3], [0, 2, 1]]}, "lies in 3 triangles"),
            ({"pos": POS[[0, 1, 2, 0]]}, "lie where another one does"),
            ({"node_type": [0, 0, 0, 9]}, "node_type"),
            ({"node_type": [0.5, 0, 0, 0]}, "whole numbers"),
            ({"names": ["u"]}, "1 names for 2 channels"),
            ({"dt": 0.0}, "dt"),
        ],
    )
    def test_bad_arrays_are_refused_with_the_reason(self, changes, message):
        with pytest.raises(BadInput, match=message):
            square(**changes)

    def test_an_isolated_vertex_is_kept_with_a_warning(self):
        with pytest.warns(UserWarning, match="1 of 4 vertices are in no cell"):
            assert square(cells=CELLS[:1]).num_vertices == 4


class TestBlocks:
    def test_mixed_surfaces_become_triangles_and_marks_are_left_out(self):
        cells = cells_from_blocks([("line", [[0, 1]]), ("quad", [[0, 1, 2, 3]]), ("triangle", [[2, 3, 4]])])
        assert sorted(map(sorted, cells.tolist())) == [[0, 1, 2], [0, 2, 3], [2, 3, 4]]

    def test_the_surface_of_a_volume_is_left_out(self):
        assert cells_from_blocks([("triangle", [[0, 1, 2]]), ("tetra", [[0, 1, 2, 3]])]).shape == (1, 4)

    @pytest.mark.parametrize(
        ("blocks", "message"),
        [
            ([("hexahedron", [range(8)])], "hexahedron"),
            ([("triangle", [[4, 5, 6]]), ("tetra", [[0, 1, 2, 3]])], "beside tetra"),
            ([("line", [[0, 1]])], "no triangle"),
        ],
    )
    def test_other_cells_are_named(self, blocks, message):
        with pytest.raises(BadInput, match=message):
            cells_from_blocks(blocks)


class TestSolver:
    @pytest.mark.parametrize("vertices", [100, 250, 900])
    def test_a_mesh_is_one_channel_with_one_hole(self, vertices):
        for seed in range(4):
            made = channel_mesh(vertices, np.random.default_rng(seed))
            edges = edges_of_cells(made.triangles, len(made.points)).shape[1] // 2
            assert len(made.points) - edges + len(made.triangles) == 0
            assert len(np.unique(made.triangles)) == len(made.points)
            a, b, c = (made.points[made.triangles[:, k]] for k in range(3))
            area = 0.5 * ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0])
            assert area.min() > 0
            hole = LENGTH * HEIGHT - area.sum()
            assert hole == pytest.approx(np.pi * made.radius**2, rel=0.05)

    def test_a_flow_keeps_its_boundary_and_its_mass(self):
        pytest.importorskip("skfem")
        flow = simulate_channel(300, 20, 40, np.random.default_rng(0))
        x, y = flow.mesh.points.T
        wall = flow.mesh.part == 3
        assert np.abs(flow.velocity[:, wall]).max() == 0
        entry = flow.mesh.part == 1
        parabola = 4 * flow.inflow * y[entry] * (HEIGHT - y[entry]) / HEIGHT**2
        np.testing.assert_allclose(flow.velocity[-1, entry, 0], parabola, atol=1e-12)
        inflow = 2 / 3 * flow.inflow * HEIGHT
        leaves = x == LENGTH
        order = np.argsort(y[leaves])
        outflow = np.trapezoid(flow.velocity[-1, leaves, 0][order], y[leaves][order])
        assert outflow == pytest.approx(inflow, rel=0.05)
        assert np.abs(flow.velocity).max() < 3 * flow.inflow

    def test_a_flow_that_blows_up_is_drawn_again_and_given_up_in_the_end(self, monkeypatch):
        pytest.importorskip("skfem")
        monkeypatch.setattr("heliograph.data.flow_solver.SPEED_LIMIT", 0.5)
        with pytest.raises(FlowBlewUp, match="step 0"):
            simulate_channel(100, 2, 0, np.random.default_rng(0), attempts=2)


class TestCylinderFlow:
    def test_equal_parameters_give_equal_flows_and_the_second_time_nothing_is_solved(self, monkeypatch):
        pytest.importorskip("skfem")
        first = mesh.cylinder_flow(2, 1, vertices=100, frames=3, warmup=1, seed=3)
        monkeypatch.setattr("heliograph.data.flow_solver.simulate_channel", None)
        second = mesh.cylinder_flow(1, 1, vertices=100, frames=3, warmup=1, seed=3)
        np.testing.assert_array_equal(first.train[0].fields, second.train[0].fields)
        np.testing.assert_array_equal(first.train[1].fields, second.test[0].fields)
        assert set(np.unique(first.train[0].node_type)) == {NORMAL, INFLOW, OUTFLOW, WALL}
        assert first.in_dim == 11

    def test_other_parameters_are_another_flow(self):
        pytest.importorskip("skfem")
        one, two = (mesh.cylinder_trajectory(0, vertices=100, frames=2, warmup=0, seed=s) for s in (0, 1))
        assert one.fields.shape != two.fields.shape or not np.array_equal(one.fields, two.fields)

    @pytest.mark.parametrize("bad", [{"vertices": 10}, {"frames": 1}, {"dt": 0.0}, {"warmup": -1}, {"n": 0}])
    def test_sizes_that_make_no_sense_are_refused(self, bad):
        with pytest.raises(BadInput):
            mesh.cylinder_flow(**{"n": 1, "test": 0, "vertices": 100, "frames": 2, "warmup": 0, **bad})

    def test_a_missing_solver_says_how_to_install_it(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(MissingExtra, match=r"heliograph\[graphs\]"):
            mesh.cylinder_trajectory(0, vertices=100, frames=2, warmup=0, seed=9)

    def test_trajectories_of_one_set_have_one_schema(self):
        with pytest.raises(BadInput, match="same named fields"):
            mesh.mesh_set([square(), square(names=["u", "v"])])


class TestH5:
    def write(self, path, **changes):
        h5py = pytest.importorskip("h5py")
        tables = {
            "cells": np.repeat(CELLS[None], 3, 0),
            "mesh_pos": np.repeat(POS[None], 3, 0),
            "node_type": np.zeros((3, 4, 1), dtype=np.int32),
            "velocity": FIELDS,
            "pressure": FIELDS[..., :1],
            **changes,
        }
        with h5py.File(path, "w") as file:
            for key in ("10", "2"):
                for name, values in tables.items():
                    if values is not None:
                        file.create_dataset(f"{key}/{name}", data=values)
        return path

    def test_a_file_in_the_layout_of_meshgraphnet_is_read_in_the_order_of_its_numbers(self, tmp_path):
        path = self.write(tmp_path / "flow.h5")
        (tmp_path / "meta.json").write_text(json.dumps({"dt": 0.01}))
        found = read_h5(path, ["velocity", "pressure"])
        assert [one.name for one in found] == ["flow.h5:2", "flow.h5:10"]
        assert found[0].names == ("velocity_x", "velocity_y", "pressure")
        assert found[0].dt == 0.01
        np.testing.assert_array_equal(found[0].fields[..., :2], FIELDS.astype(np.float32))
        assert len(read_h5(path, limit=1)) == 1

    def test_a_mesh_that_changes_is_refused_with_the_frame(self, tmp_path):
        moved = np.repeat(CELLS[None], 3, 0).copy()
        moved[2, 0] = [1, 2, 3]
        with pytest.raises(BadInput, match="cells changes at frame 2"):
            read_h5(self.write(tmp_path / "flow.h5", cells=moved))

    def test_missing_names_are_answered_with_those_present(self, tmp_path):
        with pytest.raises(BadInput, match="has no 'speed'; it has cells"):
            read_h5(self.write(tmp_path / "flow.h5"), ["speed"])

    def test_another_file_is_refused(self, tmp_path):
        pytest.importorskip("h5py")
        (tmp_path / "no.h5").write_text("nothing")
        with pytest.raises(BadInput, match="no readable HDF5"):
            read_h5(tmp_path / "no.h5")


class TestSeries:
    def frames(self, tmp_path, fields=FIELDS, cells=None):
        meshio = pytest.importorskip("meshio")
        paths = []
        for number, values in enumerate(fields):
            made = meshio.Mesh(
                np.column_stack([POS, np.zeros(4)]),
                cells or [("triangle", CELLS)],
                point_data={"velocity": np.column_stack([values, np.zeros(4)]), "node_type": np.array([0, 4, 5, 6])},
            )
            paths.append(tmp_path / f"frame{number}.vtu")
            made.write(paths[-1])
        return paths

    def test_one_file_a_frame_becomes_a_plane_trajectory(self, tmp_path):
        found = read_series(self.frames(tmp_path), ["velocity"], dt=0.5)
        assert found.pos.shape == (4, 2)
        assert found.names == ("velocity_x", "velocity_y")
        assert found.node_type.tolist() == [0, 4, 5, 6]
        np.testing.assert_allclose(found.fields, FIELDS)

    def test_an_xdmf_series_brings_its_own_times(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)  # meshio writes the arrays of a series into the working folder
        meshio = pytest.importorskip("meshio")
        pytest.importorskip("h5py")
        path = tmp_path / "flow.xdmf"
        with meshio.xdmf.TimeSeriesWriter(str(path)) as writer:
            writer.write_points_cells(np.column_stack([POS, np.zeros(4)]), [("triangle", CELLS)])
            for number, values in enumerate(FIELDS):
                writer.write_data(0.25 * number, point_data={"heat": values[:, 0]})
        found = read_series(path, ["heat"])
        assert found.dt == 0.25
        np.testing.assert_allclose(found.fields[..., 0], FIELDS[..., 0])

    def test_a_missing_field_or_file_or_cell_is_named(self, tmp_path):
        paths = self.frames(tmp_path)
        with pytest.raises(BadInput, match="no point data 'heat'"):
            read_series(paths, ["heat"])
        with pytest.raises(BadInput, match="cannot read"):
            read_series(tmp_path / "none.vtu", ["velocity"])
        with pytest.raises(BadInput, match="no files"):
            read_series([], ["velocity"])

    def test_no_warning_on_a_sound_mesh(self, tmp_path):
        paths = self.frames(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            read_series(paths, ["velocity"])
