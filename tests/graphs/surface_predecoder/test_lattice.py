"""Geometry, and detectors on the grid: by coordinates, in any order, there and back."""

import numpy as np
import pytest
import stim
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.graphs.surface_predecoder import (
    DetectorLayout,
    RotatedLattice,
    SurfaceMemory,
    detectors_to_grid,
    grid_to_detectors,
    logical_frame,
    presence,
    read_layout,
    syndrome_of,
)


@pytest.mark.parametrize("distance", [3, 5, 7])
@pytest.mark.parametrize("phase", [0, 1])
def test_checks_commute_and_stand_on_their_own_qubits(distance, phase):
    lattice = RotatedLattice(distance, phase)
    first, second = lattice.check_matrices
    assert first.shape == second.shape == ((distance**2 - 1) // 2, distance**2)
    assert not (first.astype(int) @ second.T % 2).any()
    for kind in (0, 1):
        places = lattice.places[kind]
        assert len(set(places.tolist())) == len(places)
        assert lattice.check_matrices[kind][np.arange(len(places)), places].all()
        for q, row in enumerate(lattice.neighbours[kind]):
            seen = set(places[lattice.check_matrices[kind][:, q] == 1].tolist())
            assert {p for p in row.tolist() if p != distance**2} == seen


@pytest.mark.parametrize("memory_kind", [0, 1])
def test_the_standard_observable_commutes_with_every_check_that_sees_it(memory_kind):
    layout = DetectorLayout.standard(RotatedLattice(5), 3, memory_kind)
    other = layout.lattice.check_matrices[1 - memory_kind].astype(int)
    assert not (other @ layout.observables[0] % 2).any()


@pytest.mark.parametrize(("distance", "rounds"), [(3, 1), (3, 4), (5, 5)])
@pytest.mark.parametrize("basis", ["x", "z"])
def test_a_generated_circuit_fills_the_grid(distance, rounds, basis):
    layout = SurfaceMemory(distance, rounds, basis).layout
    assert layout.shape == (2, rounds + 1, distance, distance)
    assert layout.num_detectors == rounds * (distance**2 - 1)
    assert layout.memory_kind == (0 if basis == "x" else 1)
    standard = DetectorLayout.standard(layout.lattice, rounds, layout.memory_kind)
    assert sorted(layout.cell_of_detector) == standard.cell_of_detector.tolist()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), distance=st.sampled_from([3, 5]), rounds=st.integers(1, 4), kind=st.integers(0, 1))
def test_detectors_survive_the_way_to_the_grid_and_back(seed, distance, rounds, kind):
    layout = DetectorLayout.standard(RotatedLattice(distance), rounds, kind)
    bits = np.random.default_rng(seed).integers(0, 2, (7, layout.num_detectors), dtype=np.uint8)
    grid = detectors_to_grid(bits, layout)
    assert isinstance(grid, np.ndarray)
    assert grid.sum() == bits.sum()
    np.testing.assert_array_equal(grid_to_detectors(grid, layout), bits)
    torch.testing.assert_close(
        grid_to_detectors(detectors_to_grid(torch.as_tensor(bits), layout), layout), torch.as_tensor(bits)
    )


def test_detectors_in_another_order_and_at_other_coordinates_are_found():
    plain = SurfaceMemory(3, 2).layout
    dem = SurfaceMemory(3, 2).dem
    order = np.random.default_rng(0).permutation(dem.num_detectors)
    text = []
    for instruction in dem.flattened():
        targets = [f"D{order[t.val]}" if t.is_relative_detector_id() else str(t) for t in instruction.targets_copy()]
        arguments = instruction.args_copy()
        if instruction.type == "detector":
            arguments = [3 * arguments[0] - 7, 0.5 * arguments[1], 10 * arguments[2] + 4, 99]
        text.append(f"{instruction.type}({', '.join(map(repr, arguments))}) {' '.join(targets)}")
    moved = read_layout(
        stim.DetectorErrorModel("\n".join(text).replace("logical_observable() ", "logical_observable "))
    )
    np.testing.assert_array_equal(moved.cell_of_detector[order], plain.cell_of_detector)
    np.testing.assert_array_equal(moved.observables, plain.observables)


def test_syndromes_are_those_of_the_check_matrices():
    layout = SurfaceMemory(5, 3, "z").layout
    generator = torch.Generator().manual_seed(0)
    data, measured = (torch.randint(0, 2, (6, *layout.shape), generator=generator, dtype=torch.uint8) for _ in "ab")
    measured &= torch.as_tensor(layout.allowed[2:], dtype=torch.uint8)
    found = grid_to_detectors(syndrome_of(data, measured, layout), layout).numpy()
    expected = np.zeros((6, 2, 4, 25), dtype=int)
    for kind in (0, 1):
        seen = data[:, kind].reshape(6, 4, 25).numpy() @ layout.lattice.check_matrices[kind].T.astype(int) % 2
        expected[:, kind][:, :, layout.lattice.places[kind]] = seen
    s = measured.reshape(6, 2, 4, 25).numpy()
    expected ^= s
    expected[:, :, 1:] ^= s[:, :, :-1]
    np.testing.assert_array_equal(found, expected.reshape(6, -1)[:, layout.cell_of_detector])
    parity = data[:, layout.memory_kind].numpy().sum(1).reshape(6, -1) @ layout.observables.T.astype(int) % 2
    np.testing.assert_array_equal(logical_frame(data, layout).numpy(), parity)


def test_presence_tells_bulk_from_edge_from_nothing():
    layout = SurfaceMemory(3, 3, "x").layout
    there = presence(layout)
    assert set(there.unique().tolist()) == {0.0, 0.5, 1.0}
    assert int((there > 0).sum()) == layout.num_detectors
    assert not there[1, 0].any()
    assert not there[1, -1].any()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: RotatedLattice(4), "odd and at least 3; got 4"),
        (lambda: RotatedLattice(1), "got 1"),
        (lambda: RotatedLattice(3, 2), "phase is 0 or 1; got 2"),
        (lambda: SurfaceMemory(6), "got 6"),
        (lambda: SurfaceMemory(3, 0), "at least 1 round; got 0"),
        (lambda: SurfaceMemory(3, 1, "y"), "got 'y'"),
        (lambda: detectors_to_grid(np.zeros((2, 5)), SurfaceMemory(3, 1).layout), r"\[shots, 8\]; got \[2, 5\]"),
        (lambda: detectors_to_grid(np.full((1, 8), 2), SurfaceMemory(3, 1).layout), "values up to 2"),
        (lambda: grid_to_detectors(np.zeros((2, 2, 2, 5, 5)), SurfaceMemory(3, 1).layout), r"\[B, 2, 2, 3, 3\]"),
        (lambda: syndrome_of(*[torch.zeros(1, 2, 2, 3, 5)] * 2, SurfaceMemory(3, 1).layout), r"got \[1, 2, 2, 3, 5\]"),
    ],
)
def test_wrong_shapes_are_refused_with_the_numbers(build, words):
    with pytest.raises(BadInput, match=words):
        build()


def test_circuits_that_are_no_rotated_memory_are_refused_with_the_reason():
    def generated(task, distance=3):
        return stim.Circuit.generated(task, distance=distance, rounds=2, after_clifford_depolarization=0.01)

    with pytest.raises(BadInput, match=r"time slice|columns|positions"):
        SurfaceMemory.from_stim(generated("surface_code:unrotated_memory_x"))
    with pytest.raises(BadInput, match="6 of 6 detectors have no"):
        SurfaceMemory.from_stim(generated("repetition_code:memory"))
    with pytest.raises(BadInput, match="it must be odd"):
        SurfaceMemory.from_stim(generated("surface_code:rotated_memory_x", 4))
    with pytest.raises(BadInput, match="16 of 16 detectors have no"):
        SurfaceMemory.from_stim(_without_coordinates(generated("surface_code:rotated_memory_x")))
    with pytest.raises(BadInput, match="no error mechanism flips the data qubit"):
        SurfaceMemory.from_stim(stim.Circuit.generated("surface_code:rotated_memory_x", distance=3, rounds=2))


def _without_coordinates(circuit):
    out = stim.Circuit()
    for instruction in circuit.flattened():
        arguments = [] if instruction.name == "DETECTOR" else instruction.gate_args_copy()
        out.append(instruction.name, instruction.targets_copy(), arguments)
    return out
