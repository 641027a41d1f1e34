"""Proposals are checked, residuals completed, and sinter runs the pipeline as it is."""

import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pymatching
import pytest
import sinter
import stim
import torch

from heliograph.errors import BadInput
from heliograph.graphs.surface_predecoder import (
    Completer,
    NoProposal,
    Pipeline,
    PreDecoder,
    Proposal,
    SurfaceMemory,
    learn_edge_weights,
    sinter_decoders,
    verify,
)
from heliograph.graphs.surface_predecoder.proposal import unpack_bits


class Labels:
    """Proposes the simulated errors."""

    def __init__(self, shots):
        self.shots = shots

    def propose(self, detectors, layout):
        return Proposal.of(detectors, self.shots.data, self.shots.measured, layout)


class Spoiled(Labels):
    """The same, with a wrong frame in the first half of the shots."""

    def propose(self, detectors, layout):
        good = super().propose(detectors, layout)
        frame = good.frame.clone()
        frame[: len(frame) // 2] ^= 1
        return replace(good, frame=frame)


def lively(seed=0):
    network = PreDecoder((6, 6), seed=seed).eval()
    with torch.no_grad():
        list(network.parameters())[-1].zero_()
    return network


@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize("basis", ["x", "z"])
def test_without_proposals_the_pipeline_is_pymatching_bit_for_bit(basis, correlated):
    experiment = SurfaceMemory(5, 4, basis, 0.02)
    detectors, _ = experiment.sample(1_000, 0)
    matching = pymatching.Matching.from_detector_error_model(experiment.dem, enable_correlations=correlated)
    expected = matching.decode_batch(detectors, enable_correlations=correlated)
    for proposer in (NoProposal(), PreDecoder((4,))):  # an untrained network says no everywhere
        pipe = Pipeline(proposer, experiment, correlated=correlated)
        np.testing.assert_array_equal(pipe.decode_batch(detectors), expected)


@pytest.mark.parametrize("canonical", [False, True])
def test_the_oracle_leaves_nothing_and_is_never_wrong(canonical):
    experiment = SurfaceMemory(5, 5, "z", 0.01)
    shots = experiment.sample_labels(500, 0, canonical=canonical)
    decoded = Pipeline(Labels(shots), experiment).decode(shots.detectors)
    assert not decoded.residual.any()
    assert not decoded.fell_back.any()
    np.testing.assert_array_equal(decoded.observables, shots.observables.numpy())


def test_any_verified_proposal_decodes_the_same_syndrome():
    """Correction and matched residual together must have exactly the original syndrome."""
    experiment = SurfaceMemory(5, 4, "x", 0.02)
    layout = experiment.layout
    detectors, _ = experiment.sample(200, 0)
    proposal = lively().propose(detectors, layout)
    assert proposal.residual.numpy().sum() != detectors.sum()
    assert verify(detectors, proposal).all()
    # Independent of the code under test: check matrices, shot by shot.
    size = layout.lattice.distance**2
    explained = np.zeros((200, 2, layout.rounds + 1, size), dtype=int)
    for kind in (0, 1):
        data = proposal.data[:, kind].reshape(200, -1, size).numpy()
        places = layout.lattice.places[kind]
        explained[:, kind][:, :, places] = data @ layout.lattice.check_matrices[kind].T.astype(int) % 2
    s = proposal.measured.reshape(200, 2, -1, size).numpy()
    explained ^= s
    explained[:, :, 1:] ^= s[:, :, :-1]
    total = explained.reshape(200, -1)[:, layout.cell_of_detector] ^ proposal.residual.numpy()
    np.testing.assert_array_equal(total, detectors)
    decoded = lively().pipeline(experiment).decode(detectors)
    matched = pymatching.Matching.from_detector_error_model(experiment.dem).decode_batch(proposal.residual.numpy())
    np.testing.assert_array_equal(decoded.observables, matched ^ proposal.frame.numpy())


def test_shots_whose_proposal_does_not_verify_fall_back_to_plain_matching():
    experiment = SurfaceMemory(3, 3, "x", 0.02)
    shots = experiment.sample_labels(100, 0)
    decoded = Pipeline(Spoiled(shots), experiment).decode(shots.detectors)
    plain = Completer(experiment.dem).solve(shots.detectors.numpy())[0]
    assert decoded.fell_back.tolist() == [True] * 50 + [False] * 50
    np.testing.assert_array_equal(decoded.observables[:50], plain[:50])
    np.testing.assert_array_equal(decoded.observables[50:], shots.observables.numpy()[50:])


def test_residuals_without_solution_fall_back_shot_by_shot():
    experiment = SurfaceMemory(3, 2, "x", 0.02)

    class Picky:
        """Matching that finds no answer when detector 3 is lit."""

        def __init__(self):
            self.matching = pymatching.Matching.from_detector_error_model(experiment.dem)

        def decode_batch(self, shots):
            if shots[:, 3].any():
                raise ValueError("no perfect matching")
            return self.matching.decode_batch(shots)

    class Lights3:
        """Proposes one wrong measurement, which lights detector 3 in the residual of every second shot."""

        def propose(self, detectors, layout):
            empty = NoProposal().propose(detectors, layout)
            cell = layout.cell_of_detector[3]
            measured = empty.measured.clone()
            measured.reshape(len(measured), -1)[::2, cell] = 1
            return Proposal.of(detectors, empty.data, measured, layout)

    detectors, _ = experiment.sample(300, 0)
    detectors = detectors[~detectors[:, 3]]
    decoded = Pipeline(Lights3(), experiment, Picky()).decode(detectors)
    assert decoded.fell_back.tolist() == [i % 2 == 0 for i in range(len(detectors))]
    np.testing.assert_array_equal(decoded.observables[::2], Picky().decode_batch(detectors)[::2])


def test_proposals_that_touch_what_does_not_exist_are_not_verified():
    layout = SurfaceMemory(3, 2, "x").layout
    bits = torch.zeros(2, layout.num_detectors, dtype=torch.uint8)
    measured = torch.zeros(2, *layout.shape, dtype=torch.uint8)
    measured[0, 0, -1, 0, 0] = 1  # the last slice is no measurement of a check
    assert verify(bits, Proposal.of(bits, torch.zeros_like(measured), measured, layout)).tolist() == [False, True]


def test_bit_packed_shots_decode_alike():
    experiment = SurfaceMemory(3, 3, "x", 0.02)
    detectors, _ = experiment.sample(200, 0)
    packed = np.packbits(detectors, axis=1, bitorder="little")
    pipe = lively().pipeline(experiment)
    expected = pipe.decode_batch(detectors)
    np.testing.assert_array_equal(pipe.decode_batch(packed, bit_packed_shots=True), expected)
    compiled = pipe.compile_decoder_for_dem(dem=experiment.dem)
    answer = compiled.decode_shots_bit_packed(bit_packed_detection_event_data=packed)
    np.testing.assert_array_equal(np.unpackbits(answer, axis=1, count=1, bitorder="little"), expected)
    with pytest.raises(BadInput, match=r"\[shots, 3\] uint8 for 24 detectors; got \[2, 5\]"):
        unpack_bits(np.zeros((2, 5), dtype=np.uint8), 24)


def test_learned_weights_serve_as_the_global_decoder():
    experiment = SurfaceMemory(3, 3, "x", 0.02)
    detectors, _ = experiment.sample(3_000, 0)
    learned = learn_edge_weights(experiment.graph, detectors)
    pipe = Pipeline(NoProposal(), experiment, learned)
    np.testing.assert_array_equal(pipe.decode_batch(detectors), learned.decode_batch(detectors))


def test_bad_calls_are_refused_with_the_reason():
    experiment = SurfaceMemory(3, 2)
    with pytest.raises(BadInput, match="no experiment"):
        PreDecoder((4,)).pipeline().decode_batch(np.zeros((1, 16)))
    with pytest.raises(BadInput, match="'union-find'"):
        Completer(experiment.dem, "union-find")
    with pytest.raises(BadInput, match="needs global_decoder='pymatching'"):
        Completer(experiment.dem, experiment.graph.matching(), correlated=True)
    with pytest.raises(BadInput, match=r"\[shots, 16\]; got \[1, 17\]"):
        lively().pipeline(experiment).decode_batch(np.zeros((1, 17)))
    lonely = stim.DetectorErrorModel(str(experiment.dem)).flattened()
    silent = experiment.circuit.detector_error_model(decompose_errors=True)
    assert lonely.num_detectors == silent.num_detectors


def test_sinter_collects_with_the_pipeline_unmodified():
    task = sinter.Task(circuit=SurfaceMemory(3, 3, "x", 0.02).circuit, json_metadata={"d": 3})
    stats = sinter.collect(
        num_workers=1, tasks=[task], decoders=["nothing", "pymatching"], max_shots=2_000,
        custom_decoders={"nothing": Pipeline(NoProposal())},
    )  # fmt: skip
    rates = {s.decoder: s.errors / s.shots for s in stats}
    assert rates.keys() == {"nothing", "pymatching"}
    assert abs(rates["nothing"] - rates["pymatching"]) < 0.05


def test_the_sinter_command_finds_the_checkpoint(tmp_path, monkeypatch):
    PreDecoder((4,)).save(tmp_path / "net")
    with pytest.raises(BadInput, match="set HELIOGRAPH_PREDECODER"):
        sinter_decoders()
    monkeypatch.setenv("HELIOGRAPH_PREDECODER", str(tmp_path / "net"))
    SurfaceMemory(3, 2, "z", 0.02).circuit.to_file(str(tmp_path / "own.stim"))
    command = [
        sys.executable,
        "-m",
        "sinter",
        "collect",
        "--circuits",
        str(tmp_path / "own.stim"),
        "--decoders",
        "predecoder",
    ]
    command += ["--custom_decoders_module_function", "heliograph.graphs.surface_predecoder:sinter_decoders"]
    command += ["--max_shots", "200", "--processes", "1", "--quiet"]
    if subprocess.run([sys.executable, "-c", "import sinter.__main__"], capture_output=True, check=False).returncode:
        command[:3] = [str(__import__("pathlib").Path(sys.executable).parent / "sinter")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "predecoder" in done.stdout


def test_a_pipeline_travels_to_a_worker():
    experiment = SurfaceMemory(3, 2)
    detectors, _ = experiment.sample(50, 0)
    pipe = lively().pipeline(experiment)
    moved = pickle.loads(pickle.dumps(pipe)).compile_decoder_for_dem(dem=experiment.dem)
    np.testing.assert_array_equal(moved.decode(detectors).observables, pipe.decode_batch(detectors))
