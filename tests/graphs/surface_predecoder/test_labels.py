"""Labels explain their shots exactly, whatever equivalent form they take; canonical forms stay where they are."""

import numpy as np
import pytest
import stim
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.graphs.surface_predecoder import (
    CircuitNoise,
    DetectorLayout,
    LabelledShots,
    RotatedLattice,
    StimNoise,
    SurfaceMemory,
    canonicalize_spacelike,
    canonicalize_timelike,
    detectors_to_grid,
    logical_frame,
    random_equivalent,
    syndrome_of,
)


def explains(shots, layout):
    same = torch.equal(syndrome_of(shots.data, shots.measured, layout), detectors_to_grid(shots.detectors, layout))
    return same and torch.equal(logical_frame(shots.data, layout), shots.observables)


@pytest.mark.parametrize(("distance", "rounds"), [(3, 1), (3, 2), (5, 4)])
@pytest.mark.parametrize("basis", ["x", "z"])
@pytest.mark.parametrize("noise", [StimNoise.uniform(0.01), CircuitNoise.uniform(0.01)])
def test_labels_explain_detectors_and_observables_in_every_form(distance, rounds, basis, noise):
    experiment = SurfaceMemory(distance, rounds, basis, noise)
    layout = experiment.layout
    raw = experiment.sample_labels(200, seed=1, canonical=False)
    moved = random_equivalent(raw.data, raw.measured, layout, torch.Generator().manual_seed(0))
    other = LabelledShots(raw.detectors, raw.observables, *moved)
    allowed = torch.as_tensor(layout.allowed)
    for shots in (raw, raw.canonical(layout), other, other.canonical(layout)):
        assert explains(shots, layout)
        assert not (torch.cat([shots.data, shots.measured], 1).bool() & ~allowed).any()
    assert (
        raw.canonical(layout).data.sum() + raw.canonical(layout).measured.sum() <= raw.data.sum() + raw.measured.sum()
    )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    distance=st.sampled_from([3, 5]),
    phase=st.integers(0, 1),
    channel=st.integers(0, 1),
    density=st.sampled_from([0.05, 0.2, 0.5]),
)
def test_spacelike_form_is_idempotent_equivalent_and_no_heavier(seed, distance, phase, channel, density):
    lattice = RotatedLattice(distance, phase)
    random = np.random.default_rng(seed)
    frames = (random.random((9, distance, distance)) < density).astype(np.uint8)
    canonical = canonicalize_spacelike(frames, lattice, channel)
    np.testing.assert_array_equal(canonicalize_spacelike(canonical, lattice, channel), canonical)
    assert (canonical.sum((1, 2)) <= frames.sum((1, 2))).all()
    assert _in_span((canonical ^ frames).reshape(9, -1), lattice.check_matrices[1 - channel])


def test_each_local_rule_of_the_spacelike_form():
    lattice = RotatedLattice(3)
    cell = next(c for c in lattice.cells[1] if 0 <= c[0] < 2 and 0 <= c[1] < 2)

    def around(*corners):
        frame = np.zeros((1, 3, 3), dtype=np.uint8)
        for i, j in corners:
            frame[0, cell[0] + i, cell[1] + j] = 1
        return frame

    def form(*corners):
        return canonicalize_spacelike(around(*corners), lattice, 0)

    np.testing.assert_array_equal(form((0, 0), (0, 1), (1, 0), (1, 1)), around())
    np.testing.assert_array_equal(form((0, 0), (0, 1), (1, 0)), form((1, 1)))
    np.testing.assert_array_equal(form((0, 0), (1, 0)), form((0, 1), (1, 1)))
    np.testing.assert_array_equal(form((1, 0), (1, 1)), form((0, 0), (0, 1)))
    np.testing.assert_array_equal(form((0, 0), (1, 1)), form((0, 1), (1, 0)))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31), rounds=st.integers(1, 5), kind=st.integers(0, 1), density=st.sampled_from([0.05, 0.3])
)
def test_timelike_form_is_idempotent_equivalent_and_no_heavier(seed, rounds, kind, density):
    layout = DetectorLayout.standard(RotatedLattice(3), rounds, kind)
    random = np.random.default_rng(seed)
    labels = (random.random((8, 4, *layout.shape[1:])) < density) & layout.allowed
    data, measured = (torch.as_tensor(part.astype(np.uint8)) for part in (labels[:, :2], labels[:, 2:]))
    new_data, new_measured = canonicalize_timelike(data, measured, layout)
    assert torch.equal(syndrome_of(new_data, new_measured, layout), syndrome_of(data, measured, layout))
    assert torch.equal(logical_frame(new_data, layout), logical_frame(data, layout))
    assert (new_data.sum() + new_measured.sum()) <= data.sum() + measured.sum()
    again = canonicalize_timelike(new_data, new_measured, layout)
    assert torch.equal(again[0], new_data)
    assert torch.equal(again[1], new_measured)


def test_a_flip_and_flip_back_with_both_measurements_wrong_is_nothing():
    layout = DetectorLayout.standard(RotatedLattice(3), 3)
    data = torch.zeros(1, *layout.shape, dtype=torch.uint8)
    measured = data.clone()
    data[0, 0, 1:3, 1, 1] = 1
    for place in layout.lattice.neighbours[0][4]:
        measured.view(1, 2, 4, 9)[0, 0, 1, place] = 1
    assert not syndrome_of(data, measured, layout).any()
    form = canonicalize_timelike(data, measured, layout)
    assert not form[0].any()
    assert not form[1].any()


@pytest.mark.parametrize("basis", ["x", "z"])
def test_labelled_shots_have_the_statistics_of_stims_sampler(basis):
    experiment = SurfaceMemory(3, 3, basis, 0.01)
    shots = 60_000
    labelled = experiment.sample_labels(shots, seed=5, canonical=False)
    ours, theirs = labelled.detectors.numpy().astype(float), experiment.sample(shots, 6)[0].astype(float)
    error = np.sqrt(2 * ours.mean() / shots)
    assert abs(ours.mean(0) - theirs.mean(0)).max() < 5 * error
    assert abs(ours.T @ ours - theirs.T @ theirs).max() / shots < 5 * error
    flips = experiment.sample(shots, 6)[1].mean()
    assert abs(labelled.observables.numpy().mean() - flips) < 5 * np.sqrt(2 * flips / shots)


def test_labels_stay_light_in_long_experiments():
    """A check's own frame, left in place, would add one harmless check to the labels in every later round."""
    experiment = SurfaceMemory(3, 30, "x", 0.005)
    weight = experiment.sample_labels(200, seed=0, canonical=False).data.sum((0, 1, 3, 4)).float()
    assert weight[20:30].mean() < 1.3 * weight[2:12].mean()


def test_the_same_seed_gives_the_same_shots_and_another_gives_others():
    experiment = SurfaceMemory(3, 2)
    first, second, third = (experiment.sample_labels(50, seed) for seed in (3, 3, 4))
    assert torch.equal(first.data, second.data)
    assert torch.equal(first.detectors, second.detectors)
    assert not torch.equal(first.detectors, third.detectors)


def test_a_circuit_of_ones_own_is_labelled_like_the_generated_one():
    circuit = SurfaceMemory(3, 3, "z", 0.01).circuit
    experiment = SurfaceMemory.from_stim(circuit)
    assert explains(experiment.sample_labels(100, 0), experiment.layout)
    # X and Z exchanged, by conjugating every gate of the native circuit with Hadamards.
    native = SurfaceMemory(3, 2, "x", CircuitNoise.uniform(0.01)).circuit
    dual = SurfaceMemory.from_stim(_dual(native))
    assert explains(dual.sample_labels(100, 0), dual.layout)


def test_two_observables_are_kept_apart():
    circuit = SurfaceMemory(3, 2, "x", 0.01).circuit.flattened()
    measurements = circuit.num_measurements
    layout = SurfaceMemory(3, 2, "x", 0.01).layout
    column = np.flatnonzero(layout.observables[0])
    shifted = [q + (1 if column[0] + 3 == column[1] else 3) for q in column]
    circuit.append("OBSERVABLE_INCLUDE", [stim.target_rec(int(q) - 9) for q in shifted], 1)
    experiment = SurfaceMemory.from_stim(circuit)
    assert measurements == circuit.num_measurements
    assert experiment.layout.num_observables == 2
    assert explains(experiment.sample_labels(200, 1), experiment.layout)


def test_noise_rates_scale_and_are_checked():
    assert CircuitNoise.uniform(0.003).cnot == (0.003 / 15,) * 15
    experiment = SurfaceMemory(3, 2, noise=0.001).for_training()
    assert experiment.noise == StimNoise.uniform(0.006)
    assert SurfaceMemory(3, 2, noise=0.01).for_training().noise == StimNoise.uniform(0.01)
    with pytest.raises(BadInput, match=r"probability from 0 to 0\.5; got 0\.7"):
        SurfaceMemory(3, 2, noise=0.7)
    with pytest.raises(BadInput, match="has 15 rates; got 2"):
        CircuitNoise(cnot=(0.1, 0.1))
    with pytest.raises(BadInput, match="sum of idle_cnot"):
        CircuitNoise(idle_cnot=(0.4, 0.4, 0.4))
    with pytest.raises(BadInput, match="came from a circuit"):
        SurfaceMemory.from_stim(SurfaceMemory(3, 2).circuit).with_noise(0.1)


def test_noise_is_read_back_from_syndromes():
    seen, _ = SurfaceMemory(5, 5, "x", 0.004).sample(5_000, 0)
    found = SurfaceMemory(5, 5, "x", 0.01).with_measured_noise(seen)
    assert found.noise.largest == pytest.approx(0.004, rel=0.05)
    with pytest.raises(BadInput, match="density"):
        SurfaceMemory(5, 5).with_measured_noise(np.zeros_like(seen))


def test_wrong_shapes_are_refused_with_the_numbers():
    layout = SurfaceMemory(3, 2).layout
    with pytest.raises(BadInput, match=r"\[\.\.\., 3, 3\] at distance 3; got \[2, 5, 5\]"):
        canonicalize_spacelike(np.zeros((2, 5, 5)), layout.lattice, 0)
    with pytest.raises(BadInput, match="channel is 0 or 1; got 2"):
        canonicalize_spacelike(np.zeros((2, 3, 3)), layout.lattice, 2)
    with pytest.raises(BadInput, match=r"got \[1, 2, 4, 3, 3\]"):
        canonicalize_timelike(np.zeros((1, 2, 4, 3, 3)), np.zeros((1, 2, 4, 3, 3)), layout)
    with pytest.raises(BadInput, match="at least one shot; got 0"):
        SurfaceMemory(3, 2).sample_labels(0, 0)


def _in_span(vectors, basis):
    rows = basis.astype(np.uint8).copy()
    vectors = vectors.copy()
    done = 0
    for column in range(rows.shape[1]):
        pivot = next((i for i in range(done, len(rows)) if rows[i, column]), None)
        if pivot is None:
            continue
        rows[[done, pivot]] = rows[[pivot, done]]
        for i in range(len(rows)):
            if i != done and rows[i, column]:
                rows[i] ^= rows[done]
        vectors[vectors[:, column] == 1] ^= rows[done]
        done += 1
    return not vectors.any()


def _dual(circuit):
    names = {"R": "RX", "RX": "R", "M": "MX", "MX": "M", "X_ERROR": "Z_ERROR", "Z_ERROR": "X_ERROR"}
    out = stim.Circuit()
    for instruction in circuit.flattened():
        targets, arguments = instruction.targets_copy(), instruction.gate_args_copy()
        if instruction.name == "CX":  # control and target change places
            targets = [t for a, b in zip(targets[::2], targets[1::2], strict=True) for t in (b, a)]
        out.append(names.get(instruction.name, instruction.name), targets, arguments)
    return out
