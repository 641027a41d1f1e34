"""Circuits and their noise: Stim's generated memory experiments, and a native one with 25 separate error rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any, Literal

import stim

from heliograph.errors import BadInput

__all__ = ["CircuitNoise", "Noise", "StimNoise", "make_circuit"]

LARGEST_CHANNEL = 6e-3
_PAULIS = ("X", "Y", "Z")
_PAIRS = tuple(a + b for a in "IXYZ" for b in "IXYZ")[1:]


@dataclass(frozen=True)
class StimNoise:
    """The four arguments of ``stim.Circuit.generated``; one number sets all four.

    Raises:
        BadInput: a probability outside [0, 1/2], or a depolarising one above 3/4 of its kind.
    """

    after_clifford_depolarization: float = 0.0
    before_round_data_depolarization: float = 0.0
    before_measure_flip_probability: float = 0.0
    after_reset_flip_probability: float = 0.0

    def __post_init__(self) -> None:
        """Refuses what is no probability."""
        for field in fields(self):
            _check(field.name, getattr(self, field.name), 0.5)

    @classmethod
    def uniform(cls, p: float) -> StimNoise:
        """``p`` everywhere."""
        return cls(p, p, p, p)

    @property
    def largest(self) -> float:
        """The largest rate."""
        return float(max(astuple(self)))

    def scaled(self, factor: float) -> StimNoise:
        """Every rate times ``factor``."""
        return StimNoise(*(factor * rate for rate in astuple(self)))


@dataclass(frozen=True)
class CircuitNoise:
    """25 rates: preparation and measurement flips, idling Paulis, and the 15 Pauli pairs after a CNOT.

    Attributes:
        prepare_x: a wrong state after preparing |+>; ``prepare_z``: after |0>.
        measure_x: a wrong result of an X measurement; ``measure_z``: of a Z measurement.
        idle_cnot: X, Y, Z on a qubit that waits during a CNOT layer.
        idle_spam: X, Y, Z on a data qubit during measurement and preparation of the checks.
        cnot: by pair, IX to ZZ in alphabetical order.
    """

    prepare_x: float = 0.0
    prepare_z: float = 0.0
    measure_x: float = 0.0
    measure_z: float = 0.0
    idle_cnot: tuple[float, float, float] = (0.0, 0.0, 0.0)
    idle_spam: tuple[float, float, float] = (0.0, 0.0, 0.0)
    cnot: tuple[float, ...] = (0.0,) * 15

    def __post_init__(self) -> None:
        """Refuses what is no set of probabilities."""
        for name, size in (("idle_cnot", 3), ("idle_spam", 3), ("cnot", 15)):
            rates = getattr(self, name)
            if len(rates) != size:
                raise BadInput(f"{name} has {size} rates; got {len(rates)}")
            _check(f"the sum of {name}", sum(rates), 1.0)
        for name, rate in self._named():
            _check(name, rate, 0.5)

    @classmethod
    def uniform(cls, p: float) -> CircuitNoise:
        """Circuit-level depolarising noise: what a flip of 2p/3, p/3 a Pauli and p/15 a pair make of one number p."""
        spam = 2 * p / 3 - 4 * p * p / 9
        return cls(*(2 * p / 3,) * 4, (p / 3,) * 3, (spam,) * 3, (p / 15,) * 15)

    @property
    def largest(self) -> float:
        """The largest channel: a flip, or the sum of a Pauli channel's rates."""
        flips = (self.prepare_x, self.prepare_z, self.measure_x, self.measure_z)
        return max(*flips, sum(self.idle_cnot), sum(self.idle_spam), sum(self.cnot))

    def scaled(self, factor: float) -> CircuitNoise:
        """Every rate times ``factor``."""
        values = (
            tuple(factor * r for r in v) if isinstance(v, tuple) else factor * v
            for v in (getattr(self, f.name) for f in fields(self))
        )
        return CircuitNoise(*values)  # type: ignore[arg-type]

    def _named(self) -> list[tuple[str, float]]:
        pairs: list[tuple[str, float]] = []
        for name, value in asdict(self).items():
            rates = value if isinstance(value, tuple | list) else (value,)
            pairs += [(name if len(rates) == 1 else f"{name}[{i}]", rate) for i, rate in enumerate(rates)]
        return pairs


Noise = StimNoise | CircuitNoise


def make_circuit(distance: int, rounds: int, basis: Literal["x", "z"], noise: Noise) -> stim.Circuit:
    """The memory experiment of a rotated code; the layout of checks and detectors is Stim's for both kinds of noise."""
    task = f"surface_code:rotated_memory_{basis}"
    if isinstance(noise, StimNoise):
        return stim.Circuit.generated(task, distance=distance, rounds=rounds, **asdict(noise))
    plain = stim.Circuit.generated(task, distance=distance, rounds=rounds)
    return _native_circuit(plain, rounds, basis, noise)


def _native_circuit(plain: stim.Circuit, rounds: int, basis: str, noise: CircuitNoise) -> stim.Circuit:
    """The generated circuit's qubits, CNOT layers and detectors, with |+> checks prepared and measured directly."""
    flat = plain.flattened()
    first: Mapping[str, list[list[int]]] = {"H": [], "CX": [], "MR": []}
    for instruction in flat:
        if instruction.name in first and len(first["MR"]) == 0:
            first[instruction.name].append([t.value for t in instruction.targets_copy()])
    x_checks, checks, layers = set(first["H"][0]), first["MR"][0], first["CX"]
    z_checks = [q for q in checks if q not in x_checks]
    x_list = [q for q in checks if q in x_checks]
    data = next([t.value for t in i.targets_copy()] for i in reversed(list(flat)) if i.name in ("M", "MX"))
    everyone = [*checks, *data]
    circuit = stim.Circuit()
    for instruction in flat:
        if instruction.name == "QUBIT_COORDS":
            circuit.append(instruction)
    prepare, measure = ("RX", "MX") if basis == "x" else ("R", "M")
    circuit.append(prepare, data)
    _flip(circuit, data, basis, noise.prepare_x if basis == "x" else noise.prepare_z)
    annotations = _annotations_by_round(flat)
    for t in range(rounds):
        circuit.append("RX", x_list)
        circuit.append("R", z_checks)
        _flip(circuit, x_list, "x", noise.prepare_x)
        _flip(circuit, z_checks, "z", noise.prepare_z)
        circuit.append("TICK", [])
        for layer in layers:
            circuit.append("CX", layer)
            circuit.append("PAULI_CHANNEL_2", layer, noise.cnot)
            busy = set(layer)
            _channel(circuit, [q for q in everyone if q not in busy], noise.idle_cnot)
            circuit.append("TICK", [])
        _flip(circuit, x_list, "x", noise.measure_x)
        _flip(circuit, z_checks, "z", noise.measure_z)
        # One measurement after another in the order of the generated circuit, so that its detectors stay valid.
        for q in checks:
            circuit.append("MX" if q in x_checks else "M", [q])
        if t + 1 < rounds:
            _channel(circuit, data, noise.idle_spam)
        for instruction in annotations[t]:
            circuit.append(instruction)
        circuit.append("TICK", [])
    _flip(circuit, data, basis, noise.measure_x if basis == "x" else noise.measure_z)
    circuit.append(measure, data)
    for instruction in annotations[rounds]:
        circuit.append(instruction)
    return circuit


def _annotations_by_round(flat: stim.Circuit) -> list[list[Any]]:
    """Detectors, observables and coordinate shifts that follow each measurement of the checks, and the final one."""
    groups: list[list[Any]] = []
    for instruction in flat:
        if instruction.name in ("MR", "M", "MX"):
            groups.append([])
        elif instruction.name in ("DETECTOR", "OBSERVABLE_INCLUDE", "SHIFT_COORDS"):
            groups[-1].append(instruction)
    return groups


def _flip(circuit: stim.Circuit, qubits: list[int], basis: str, rate: float) -> None:
    if rate and qubits:
        circuit.append("Z_ERROR" if basis == "x" else "X_ERROR", qubits, rate)


def _channel(circuit: stim.Circuit, qubits: list[int], rates: tuple[float, float, float]) -> None:
    if sum(rates) and qubits:
        circuit.append("PAULI_CHANNEL_1", qubits, rates)


def _check(name: str, rate: float, most: float) -> None:
    if not 0 <= rate <= most:
        raise BadInput(f"{name} is a probability from 0 to {most}; got {rate}")
