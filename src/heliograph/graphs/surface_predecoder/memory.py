"""Memory experiments: circuits, detector samples, and labels that say which errors made them.

Labels come from Pauli frames that Stim tracks: with c_t the data frame after round t and m_t the flipped measurements,
the data label is c_t xor c_(t-1) and the measurement label s_t = m_t xor H c_t. Then det_t = H (c_t xor c_(t-1)) xor
s_t xor s_(t-1) holds identically; the last slice compares the final data measurement with round T - 1.

Shapes: B shots, S = T + 1 slices, D rows and columns, O observables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import stim
import torch
from torch import Tensor

from heliograph.errors import BadInput
from heliograph.graphs.surface_predecoder.circuits import LARGEST_CHANNEL, Noise, StimNoise, make_circuit
from heliograph.graphs.surface_predecoder.labels import canonicalize_spacelike, canonicalize_timelike
from heliograph.graphs.surface_predecoder.lattice import (
    DetectorLayout,
    Signatures,
    detectors_to_grid,
    logical_frame,
    syndrome_of,
)
from heliograph.graphs.surface_predecoder.weights import MatchingGraph

__all__ = ["LabelledShots", "SurfaceMemory", "read_layout"]

_SELF_TEST_SHOTS = 64
_MEASUREMENTS = {"M", "MZ", "MX", "MY", "MR", "MRZ", "MRX", "MRY"}


@dataclass(frozen=True)
class LabelledShots:
    """Simulated shots with the errors behind them.

    Attributes:
        detectors: [B, number of detectors] uint8.
        observables: [B, O] uint8, true flips.
        data: [B, 2, S, D, D] uint8, data errors new in each slice.
        measured: [B, 2, S, D, D] uint8, wrong measurements.
    """

    detectors: Tensor
    observables: Tensor
    data: Tensor
    measured: Tensor

    def canonical(self, layout: DetectorLayout) -> LabelledShots:
        """The same shots with canonical labels: in space, in time, and in space again."""
        data = _spacelike(self.data, layout)
        data, measured = canonicalize_timelike(data, self.measured, layout)
        return LabelledShots(self.detectors, self.observables, _spacelike(data, layout), measured)

    def select(self, rows: slice) -> LabelledShots:
        """Some of the shots."""
        return LabelledShots(self.detectors[rows], self.observables[rows], self.data[rows], self.measured[rows])

    def to(self, device: Any) -> LabelledShots:
        """The same shots on another device."""
        return LabelledShots(*(v.to(device) for v in (self.detectors, self.observables, self.data, self.measured)))


class SurfaceMemory:
    """One memory experiment of a rotated surface code: its circuit, layout, error model and samples.

    Args:
        distance: D, odd and at least 3.
        rounds: T, at least 1; D where ``None``.
        basis: of the logical state, ``x`` or ``z``.
        noise: one probability for all four of Stim's arguments, a :class:`StimNoise`, or a :class:`CircuitNoise`.

    Raises:
        BadInput: an even or too small distance, no rounds, or rates that are no probabilities.
    """

    def __init__(
        self,
        distance: int = 5,
        rounds: int | None = None,
        basis: Literal["x", "z"] = "x",
        noise: float | Noise = 0.006,
    ) -> None:
        rounds = distance if rounds is None else rounds
        if distance < 3 or distance % 2 == 0:
            raise BadInput(f"the distance of a rotated surface code here is odd and at least 3; got {distance}")
        if rounds < 1:
            raise BadInput(f"a memory experiment has at least 1 round; got {rounds}")
        if basis not in ("x", "z"):
            raise BadInput(f"basis is 'x' or 'z'; got {basis!r}")
        self.noise: Noise | None = StimNoise.uniform(float(noise)) if isinstance(noise, int | float) else noise
        self._set_up(make_circuit(distance, rounds, basis, self.noise))

    def _set_up(self, circuit: stim.Circuit) -> None:
        self.circuit = circuit
        self.dem = _error_model(circuit)
        self.layout = read_layout(self.dem)

    @classmethod
    def from_stim(cls, circuit: stim.Circuit | str | Path) -> SurfaceMemory:
        """Takes your circuit (or ``.stim`` file): any rotated memory experiment whose detectors have coordinates.

        Checks and data qubits are found by coordinates; observables, detectors' order and noise are yours.

        Raises:
            BadInput: not a rotated memory experiment of odd distance, or without coordinates; the message says which.
        """
        if not isinstance(circuit, stim.Circuit):
            try:
                circuit = stim.Circuit.from_file(str(circuit))
            except (OSError, ValueError) as error:
                raise BadInput(f"{circuit} cannot be read as a Stim circuit: {error}") from None
        made = cls.__new__(cls)
        made.noise = None
        made._set_up(circuit)
        return made

    @property
    def distance(self) -> int:
        """D."""
        return self.layout.lattice.distance

    @property
    def rounds(self) -> int:
        """T."""
        return self.layout.rounds

    @cached_property
    def graph(self) -> MatchingGraph:
        """The matching graph of the error model, with its true probabilities."""
        return MatchingGraph.from_dem(self.dem)

    def sample(self, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Detectors [shots, number of detectors] and observables [shots, O] as booleans, from Stim's sampler."""
        sampler = self.circuit.compile_detector_sampler(seed=seed)
        detectors, observables = sampler.sample(shots, separate_observables=True)
        return detectors, observables

    def sample_labels(self, shots: int, seed: int, *, canonical: bool = True) -> LabelledShots:
        """Shots with the errors that made them; the same seed on the same machine gives the same shots.

        Raises:
            BadInput: a circuit whose frames do not explain its detectors (checks not measured qubit by qubit).
        """
        if shots < 1:
            raise BadInput(f"need at least one shot; got {shots}")
        made = self._labeller.sample(shots, seed)
        return made.canonical(self.layout) if canonical else made

    def with_noise(self, noise: float | Noise) -> SurfaceMemory:
        """The same generated experiment at other rates.

        Raises:
            BadInput: an experiment that came from a circuit: its noise is the circuit's.
        """
        if self.noise is None:
            raise BadInput("this experiment came from a circuit; change the noise there and use from_stim again")
        basis: Literal["x", "z"] = "x" if self.layout.memory_kind == 0 else "z"
        return SurfaceMemory(self.distance, self.rounds, basis, noise)

    def for_training(self, largest: float = LARGEST_CHANNEL) -> SurfaceMemory:
        """The same experiment with all rates scaled so that the largest is ``largest``: dense syndromes teach faster.

        An experiment that is noisier already, silent, or from a circuit stays as it is.
        """
        if self.noise is None or self.noise.largest >= largest or self.noise.largest == 0:
            return self
        return self.with_noise(self.noise.scaled(largest / self.noise.largest))

    def with_measured_noise(self, detectors: np.ndarray, *, tolerance: float = 1e-4) -> SurfaceMemory:
        """The same experiment with its rates scaled so that its mean detector density is that of ``detectors``.

        This closes the loop: syndromes of a drifting machine set the noise on which the next network is trained.

        Args:
            detectors: [B, number of detectors] of 0 and 1, as measured.
            tolerance: relative error of the scale.

        Raises:
            BadInput: another shape, or a density that no scale up to a largest rate of 0.2 reaches.
        """
        if self.noise is None or self.noise.largest == 0:
            raise BadInput("only an experiment built with noise rates can scale them; this one has none")
        values = np.asarray(detectors)
        if values.ndim != 2 or values.shape[1] != self.layout.num_detectors or not len(values):
            raise BadInput(f"detectors must be [shots, {self.layout.num_detectors}]; got {list(values.shape)}")
        wanted = float(values.mean())
        low, high = 0.0, 0.2 / self.noise.largest
        if not 0 < wanted < self.with_noise(self.noise.scaled(high)).graph.mean_density():
            raise BadInput(f"a mean density of {wanted:.4g} is not that of this circuit at rates up to 0.2")
        while high - low > tolerance * high:
            middle = (low + high) / 2
            denser = self.with_noise(self.noise.scaled(middle)).graph.mean_density() > wanted
            low, high = (low, middle) if denser else (middle, high)
        return self.with_noise(self.noise.scaled((low + high) / 2))

    @cached_property
    def _labeller(self) -> _Labeller:
        labeller = _Labeller(self.circuit, self.layout)
        labeller.check()
        return labeller


def read_layout(dem: stim.DetectorErrorModel) -> DetectorLayout:
    """Where the detectors of an error model stand, by their coordinates; this is all that sinter hands over.

    Raises:
        BadInput: they do not form the detectors of a rotated memory experiment.
    """
    signatures: dict[frozenset[int], dict[tuple[int, ...], float]] = {}
    for instruction in dem.flattened():
        if instruction.type == "error":
            for detectors, observables in _parts(instruction):
                flips = signatures.setdefault(detectors, {})
                flips[observables] = flips.get(observables, 0.0) + instruction.args_copy()[0]
    read: Signatures = signatures
    return DetectorLayout.from_coordinates(dem.get_detector_coordinates(), dem.num_detectors, read, dem.num_observables)


def _parts(instruction: Any) -> Iterator[tuple[frozenset[int], tuple[int, ...]]]:
    """The graph-like components of one error of a decomposed model."""
    detectors: set[int] = set()
    observables: set[int] = set()
    for target in instruction.targets_copy():
        if target.is_separator():
            yield frozenset(detectors), tuple(sorted(observables))
            detectors, observables = set(), set()
        elif target.is_relative_detector_id():
            detectors ^= {target.val}
        else:
            observables ^= {target.val}
    yield frozenset(detectors), tuple(sorted(observables))


def _error_model(circuit: stim.Circuit) -> stim.DetectorErrorModel:
    try:
        return circuit.detector_error_model(decompose_errors=True, approximate_disjoint_errors=True)
    except ValueError as error:
        raise BadInput(f"Stim finds no error model of pairs in this circuit: {str(error).splitlines()[0]}") from None


def _spacelike(data: Tensor, layout: DetectorLayout) -> Tensor:
    return torch.stack([canonicalize_spacelike(data[:, k], layout.lattice, k) for k in (0, 1)], 1)


class _Labeller:
    """Runs a circuit in segments, one a round, and reads the frames in between."""

    def __init__(self, circuit: stim.Circuit, layout: DetectorLayout) -> None:
        self.circuit, self.layout = circuit, layout
        flat = circuit.flattened()
        self.data_qubits, check_qubits = _find_qubits(flat, layout)
        self.segments, self.check_records, self.final_records = _segments(flat, layout, self.data_qubits, check_qubits)
        self.x_channel = 0  # the channel of Z errors: of the checks called X

    def sample(self, shots: int, seed: int) -> LabelledShots:
        layout, d = self.layout, self.layout.lattice.distance
        kinds, slices, _, _ = layout.shape
        simulator = stim.FlipSimulator(
            batch_size=shots, disable_stabilizer_randomization=True, num_qubits=self.circuit.num_qubits, seed=seed
        )
        frames = np.zeros((kinds, slices, d * d, shots), dtype=np.uint8)
        t = 0
        for segment in self.segments:
            simulator.do(segment.circuit)
            if not segment.settled and not segment.ends_round:
                continue
            xs, zs, *_ = simulator.to_numpy(output_xs=True, output_zs=True)
            for pauli, flips in (("X", xs), ("Z", zs)):
                qubits = [q for q, basis in segment.settled if basis == pauli]
                if qubits and flips[qubits].any():
                    mask = np.zeros_like(flips)
                    mask[qubits] = flips[qubits]
                    simulator.broadcast_pauli_errors(pauli=pauli, mask=mask)
            if segment.ends_round:
                frames[self.x_channel, t] = zs[self.data_qubits]
                frames[1 - self.x_channel, t] = xs[self.data_qubits]
                t += 1
        _, _, flips, detectors, observables = simulator.to_numpy(
            output_measure_flips=True, output_detector_flips=True, output_observable_flips=True
        )
        known, other = layout.memory_kind, 1 - layout.memory_kind
        frames[known, -1] = flips[self.final_records]
        frames[other, -1] = frames[other, -2]
        measured = np.zeros((kinds, slices, d * d, shots), dtype=np.uint8)
        padded = np.pad(frames, ((0, 0), (0, 0), (0, 1), (0, 0)))
        for kind in (0, 1):
            seen = np.bitwise_xor.reduce(padded[kind][:-1][:, layout.lattice.corners[kind]], axis=2)
            measured[kind, :-1][:, layout.lattice.places[kind]] = seen ^ flips[self.check_records[kind]]
        data = frames
        data[:, 1:] ^= frames[:, :-1].copy()
        data[other, 0] = 0  # nothing tells these errors from the random first result
        if layout.rounds == 1:
            measured[other] = 0
        return LabelledShots(
            torch.from_numpy(np.ascontiguousarray(detectors.T)).to(torch.uint8),
            torch.from_numpy(np.ascontiguousarray(observables.T)).to(torch.uint8),
            torch.from_numpy(np.moveaxis(data, -1, 0).reshape(-1, *layout.shape).copy()),
            torch.from_numpy(np.moveaxis(measured, -1, 0).reshape(-1, *layout.shape).copy()),
        )

    def check(self) -> None:
        """Tries which Paulis belong to channel 0 on a few shots, and refuses a circuit that neither explains."""
        for channel in (0, 1):
            self.x_channel = channel
            shots = self.sample(_SELF_TEST_SHOTS, seed=0)
            explained = syndrome_of(shots.data, shots.measured, self.layout)
            same = torch.equal(explained, detectors_to_grid(shots.detectors, self.layout))
            if same and torch.equal(logical_frame(shots.data, self.layout), shots.observables):
                return
        raise BadInput(
            f"the frames of {_SELF_TEST_SHOTS} simulated shots do not explain this circuit's detectors; labels "
            "need checks that compare consecutive measurements of one ancilla each, and an observable of data qubits"
        )


def _find_qubits(flat: stim.Circuit, layout: DetectorLayout) -> tuple[np.ndarray, tuple[list[int], list[int]]]:
    """Data qubits by site, and check qubits by kind, by the circuit's coordinates."""
    lattice, d = layout.lattice, layout.lattice.distance
    where = {tuple(xy[:2]): q for q, xy in flat.get_final_qubit_coordinates().items() if len(xy) >= 2}
    (x0, y0), (step_x, step_y) = layout.origin, layout.step

    def at(row: float, column: float) -> int:
        spot = (x0 + step_x * column, y0 + step_y * row)
        if spot not in where:
            raise BadInput(f"labels need QUBIT_COORDS of every qubit; there is none at {spot}")
        return int(where[spot])

    data = np.array([at(r + 0.5, c + 0.5) for r in range(d) for c in range(d)])
    checks = tuple([at(r + 1, c + 1) for r, c in lattice.cells[kind]] for kind in (0, 1))
    return data, checks  # type: ignore[return-value]


@dataclass
class _Segment:
    """A piece of a circuit, and what to do after it.

    Attributes:
        circuit: the piece.
        settled: (qubit, basis) of checks just measured: the frame's part along that basis acts on nothing, and left in
            place it would be spread over the data as one more harmless check in every later round.
        ends_round: whether the data frame is read here.
    """

    circuit: stim.Circuit
    settled: list[tuple[int, str]]
    ends_round: bool = False


def _segments(
    flat: stim.Circuit, layout: DetectorLayout, data_qubits: np.ndarray, check_qubits: tuple[list[int], list[int]]
) -> tuple[list[_Segment], tuple[np.ndarray, np.ndarray], np.ndarray]:
    """The circuit cut after each round's last check measurement; records [T, K] by kind and [D * D] of the data."""
    checks = {q: (kind, i) for kind in (0, 1) for i, q in enumerate(check_qubits[kind])}
    site_of = {int(q): i for i, q in enumerate(data_qubits)}
    rounds, each = layout.rounds, len(check_qubits[0])
    records = np.full((2, rounds, each), -1)
    final = np.full(len(data_qubits), -1)
    segments, count, done, ended = [_Segment(stim.Circuit(), [])], 0, dict.fromkeys(checks, 0), 0
    for instruction in flat:
        measures = instruction.num_measurements > 0
        qubits = {t.value for t in instruction.targets_copy() if t.is_qubit_target}
        if not measures and any(q in qubits for q, _ in segments[-1].settled):
            segments.append(_Segment(stim.Circuit(), []))
        segments[-1].circuit.append(instruction)
        if measures and instruction.name in _MEASUREMENTS:
            basis = instruction.name[-1] if instruction.name[-1] in "XY" else "Z"
            for i, target in enumerate(instruction.targets_copy()):
                q = target.value
                if q in checks and done[q] < rounds:
                    kind, number = checks[q]
                    records[kind, done[q], number] = count + i
                    done[q] += 1
                    segments[-1].settled.append((q, basis))
                elif q in site_of and final[site_of[q]] < 0:
                    final[site_of[q]] = count + i
                else:
                    raise BadInput(
                        f"qubit {q} is measured more often than {rounds} rounds and one data readout explain"
                    )
            if ended < rounds and min(done.values()) > ended:
                segments[-1].ends_round = True
                ended += 1
                segments.append(_Segment(stim.Circuit(), []))
        elif measures:
            raise BadInput(f"labels need checks measured qubit by qubit; {instruction.name} is not supported")
        count += instruction.num_measurements
    if (records < 0).any() or (final < 0).any():
        raise BadInput(
            f"of {records.size} check and {final.size} data measurements the circuit makes "
            f"{int((records >= 0).sum())} and {int((final >= 0).sum())}"
        )
    return segments, (records[0], records[1]), final
