"""The rotated surface code on a D x D grid: which check looks at which data qubits, and where a detector stands.

A code has checks of two kinds. Kind 0 has its weight-2 checks at the top and bottom (Stim's X checks), kind 1 at the
left and right (Stim's Z checks); a circuit with the letters exchanged is the same code. Checks of kind k see data
errors of channel k. A memory experiment of T rounds has S = T + 1 slices: slice t < T compares round t with round
t - 1, slice T compares the final data measurement with the last round. The kind that is random at first has no
detectors in slices 0 and T.

Shapes: B shots, S slices, D rows and columns, K = (D * D - 1) / 2 checks of a kind, O observables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from heliograph.errors import BadInput

__all__ = [
    "DetectorLayout",
    "RotatedLattice",
    "as_bits",
    "detectors_to_grid",
    "grid_to_detectors",
    "like",
    "logical_frame",
    "presence",
    "syndrome_of",
]

BOUNDARY_PRESENCE = 0.5
Array = TypeVar("Array", Tensor, np.ndarray)
Signatures = Mapping[frozenset[int], Mapping[tuple[int, ...], float]]


@dataclass(frozen=True)
class RotatedLattice:
    """A rotated surface code of odd distance.

    A check stands on the cell (row, column) between four data qubits; cells run from -1 to D - 1, so that the weight-2
    checks have cells too.

    Attributes:
        distance: D, odd, at least 3.
        phase: cells with (row + column) % 2 == phase hold kind 0; 1 is Stim's layout, 0 its mirror image.
    """

    distance: int
    phase: int = 1

    def __post_init__(self) -> None:
        """Refuses what is no rotated code."""
        if self.distance < 3 or self.distance % 2 == 0:
            raise BadInput(f"the distance of a rotated surface code here is odd and at least 3; got {self.distance}")
        if self.phase not in (0, 1):
            raise BadInput(f"phase is 0 or 1; got {self.phase}")

    @cached_property
    def cells(self) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
        """Cells of each kind, row by row."""
        inner, outer = range(self.distance - 1), (-1, self.distance - 1)
        bulk = [(r, c) for r in inner for c in inner]
        kinds: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
        for r, c in bulk:
            kinds[(r + c + self.phase) % 2].append((r, c))
        kinds[0].extend((r, c) for r in outer for c in inner if (r + c + self.phase) % 2 == 0)
        kinds[1].extend((r, c) for r in inner for c in outer if (r + c + self.phase) % 2 == 1)
        return tuple(sorted(kinds[0])), tuple(sorted(kinds[1]))

    @cached_property
    def corners(self) -> tuple[np.ndarray, np.ndarray]:
        """Per kind [K, 4]: the data sites of each check, top left, top right, bottom left, bottom right.

        A site is row * D + column; where a weight-2 check has no qubit stands D * D.
        """
        d = self.distance

        def site(r: int, c: int) -> int:
            return r * d + c if 0 <= r < d and 0 <= c < d else d * d

        return tuple(  # type: ignore[return-value]
            np.array([[site(r + i, c + j) for i in (0, 1) for j in (0, 1)] for r, c in cells]) for cells in self.cells
        )

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Per kind [K]: the data site on which each check stands in the grid, always one of its own.

        Kind 0 takes the top left qubit, kind 1 the top right one; a vertical pair its top, a horizontal pair its left
        (kind 0) or right (kind 1).
        """
        none = self.distance**2
        preferred = ((0, 1, 2, 3), (1, 0, 3, 2))
        return tuple(  # type: ignore[return-value]
            np.array([next(row[i] for i in order if row[i] != none) for row in corners])
            for corners, order in zip(self.corners, preferred, strict=True)
        )

    @cached_property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Per kind [K]: 2 or 4 qubits."""
        return tuple((corners != self.distance**2).sum(1) for corners in self.corners)

    @cached_property
    def neighbours(self) -> tuple[np.ndarray, np.ndarray]:
        """Per kind [D * D, 2]: the places of the one or two checks that see each data qubit; D * D where none."""
        none = self.distance**2
        table = np.full((2, none, 2), none)
        for kind, corners in enumerate(self.corners):
            filled = np.zeros(none, dtype=int)
            for place, row in zip(self.places[kind], corners, strict=True):
                for q in row[row != none]:
                    table[kind, q, filled[q]] = place
                    filled[q] += 1
        return table[0], table[1]

    @cached_property
    def check_matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """Per kind [K, D * D] of 0 and 1: which qubits each check sees."""
        return tuple(
            (corners[:, :, None] == np.arange(self.distance**2)).any(1).astype(np.uint8) for corners in self.corners
        )


@dataclass(frozen=True, eq=False)
class DetectorLayout:
    """Where each detector of a memory experiment stands in the grid [2, S, D, D], and which qubits an observable reads.

    Attributes:
        lattice: the code.
        rounds: T.
        memory_kind: the kind of check that is known from the start; its data errors flip the observables.
        cell_of_detector: [number of detectors] flat index into [2, S, D, D].
        observables: [O, D * D] of 0 and 1.
        origin: (x, y) of the cell in row -1 and column -1.
        step: from one cell to the next in x and y.
    """

    lattice: RotatedLattice
    rounds: int
    memory_kind: int
    cell_of_detector: np.ndarray
    observables: np.ndarray
    origin: tuple[float, float] = (0.0, 0.0)
    step: tuple[float, float] = (2.0, 2.0)

    @property
    def num_detectors(self) -> int:
        """2 T K for a complete experiment."""
        return len(self.cell_of_detector)

    @property
    def num_observables(self) -> int:
        """O."""
        return len(self.observables)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(2, S, D, D)."""
        return 2, self.rounds + 1, self.lattice.distance, self.lattice.distance

    @classmethod
    def standard(cls, lattice: RotatedLattice, rounds: int, memory_kind: int = 0) -> DetectorLayout:
        """The complete experiment in grid order, with one observable along the edge where this kind's errors end."""
        if rounds < 1:
            raise BadInput(f"a memory experiment has at least 1 round; got {rounds}")
        d = lattice.distance
        exists = _existing(lattice, rounds, memory_kind)
        sites = np.arange(d * d).reshape(d, d)
        support = np.zeros((1, d * d), dtype=np.uint8)
        support[0, sites[:, 0] if memory_kind == 0 else sites[0]] = 1
        return cls(lattice, rounds, memory_kind, np.flatnonzero(exists.reshape(-1)), support)

    @classmethod
    def from_coordinates(
        cls,
        coordinates: Mapping[int, Sequence[float]],
        num_detectors: int,
        signatures: Signatures | None = None,
        num_observables: int = 1,
    ) -> DetectorLayout:
        """Reads code, rounds and places from detectors' coordinates (x, y, t, ...), whatever their order.

        Args:
            coordinates: by detector index.
            num_detectors: how many there are.
            signatures: for each set of detectors, the observables that errors lighting just these may flip, with
                probabilities; tells which qubits an observable reads.
            num_observables: O.

        Raises:
            BadInput: coordinates are missing, or do not form the detectors of a rotated code of odd distance.
        """
        missing = [i for i in range(num_detectors) if len(coordinates.get(i, ())) < 3]
        if missing or not num_detectors:
            raise BadInput(
                f"{len(missing)} of {num_detectors} detectors have no (x, y, t) coordinates (first: "
                f"{missing[:3]}); add DETECTOR(x, y, t) arguments: the grid is read from them"
            )
        table = np.array([tuple(coordinates[i])[:3] for i in range(num_detectors)], dtype=float)
        (xs, col), (ys, row), (ts, slice_) = (np.unique(table[:, a], return_inverse=True) for a in (0, 1, 2))
        # One round alone shows one kind of check, which does not reach two of the edges.
        only = 0 if len(xs) == len(ys) - 2 else 1 if len(ys) == len(xs) - 2 else None
        row, col = row + (only == 1), col + (only == 0)
        lattice = _lattice_of(xs, ys, {*zip((row - 1).tolist(), (col - 1).tolist(), strict=True)}, only)
        d, phase = lattice.distance, lattice.phase
        step = (float(xs[1] - xs[0]), float(ys[1] - ys[0]))
        origin = (float(xs[0] - step[0] * (only == 0)), float(ys[0] - step[1] * (only == 1)))
        rounds = len(ts) - 1
        if rounds < 1:
            raise BadInput(f"detectors lie in {len(ts)} time slice; a memory experiment of T rounds has T + 1")
        boundary_row, boundary_col = (np.isin(v, (0, d)) for v in (row, col))
        kind = np.where(boundary_row, 0, np.where(boundary_col, 1, (row + col + phase) % 2))
        first = np.unique(kind[slice_ == 0])
        if len(first) != 1:
            raise BadInput("the first time slice holds detectors of both kinds; a memory experiment knows one at first")
        memory_kind = int(first[0])
        place = np.full((2, d + 1, d + 1), -1)
        for k in (0, 1):
            for (r, c), site in zip(lattice.cells[k], lattice.places[k], strict=True):
                place[k, r + 1, c + 1] = site
        flat = (kind * (rounds + 1) + slice_) * d * d + place[kind, row, col]
        expected = np.flatnonzero(_existing(lattice, rounds, memory_kind).reshape(-1))
        if len(np.unique(flat)) != len(flat) or not np.array_equal(np.sort(flat), expected):
            raise BadInput(
                f"{len(flat)} detectors do not fill {rounds} rounds at distance {d}, which have {len(expected)}, "
                "one for each check and slice"
            )
        unread = np.zeros((num_observables, d * d), dtype=np.uint8)
        layout = cls(lattice, rounds, memory_kind, flat, unread, origin, step)
        if signatures is None:
            return layout
        return replace(layout, observables=_read_observables(layout, signatures, num_observables))

    @cached_property
    def detector_slices(self) -> np.ndarray:
        """[number of detectors]: the time slice of each."""
        size = self.lattice.distance**2
        return np.asarray(self.cell_of_detector // size % (self.rounds + 1))

    @cached_property
    def detector_kinds(self) -> np.ndarray:
        """[number of detectors]: the kind of check of each."""
        return np.asarray(self.cell_of_detector // (self.lattice.distance**2 * (self.rounds + 1)))

    @cached_property
    def allowed(self) -> np.ndarray:
        """[4, S, D, D] of booleans: which corrections can be meant; channels as in the network's output."""
        kinds, slices, d, _ = self.shape
        data = np.zeros((2, slices, d, d), dtype=bool)
        measured = np.zeros((2, slices, d * d), dtype=bool)
        for kind in range(kinds):
            known = kind == self.memory_kind
            # Errors before the random kind's first comparison, and after its last, leave no trace.
            data[kind, 0 if known else 1 : None if known else slices - 1] = True
            if known or self.rounds > 1:
                measured[kind, : slices - 1, self.lattice.places[kind]] = True
        return np.concatenate([data, measured.reshape(2, slices, d, d)])

    def same_shape_as(self, other: DetectorLayout) -> bool:
        """Whether both describe the same detectors in the same order."""
        return (
            self.shape == other.shape
            and self.lattice == other.lattice
            and np.array_equal(self.cell_of_detector, other.cell_of_detector)
            and np.array_equal(self.observables, other.observables)
        )


def detectors_to_grid(detectors: Array, layout: DetectorLayout) -> Array:
    """Places detector bits [B, number of detectors] on the grid [B, 2, S, D, D] (uint8); 0 where there is none.

    Raises:
        BadInput: the second axis is not the layout's number of detectors, or a value is not 0 or 1.
    """
    bits_BN = as_bits(detectors, layout.num_detectors, "detectors")
    flat = bits_BN.new_zeros(len(bits_BN), int(np.prod(layout.shape)))
    flat[:, _index(layout.cell_of_detector, bits_BN.device)] = bits_BN
    grid: Array = like(flat.reshape(-1, *layout.shape), detectors)
    return grid


def grid_to_detectors(grid: Array, layout: DetectorLayout) -> Array:
    """Reads detector bits [B, number of detectors] back from the grid [B, 2, S, D, D]; the inverse of placing them."""
    values = torch.as_tensor(grid)
    if tuple(values.shape[1:]) != layout.shape:
        raise BadInput(f"a grid here is [B, {', '.join(map(str, layout.shape))}]; got {list(values.shape)}")
    detectors: Array = like(values.reshape(len(values), -1)[:, _index(layout.cell_of_detector, values.device)], grid)
    return detectors


def presence(layout: DetectorLayout, device: Any = None) -> Tensor:
    """[2, S, D, D] float: 1.0 where a weight-4 check has a detector, 0.5 a weight-2 one, 0 where there is none."""
    kinds, slices, d, _ = layout.shape
    weight = np.zeros((kinds, d * d), dtype=np.float32)
    for kind in range(kinds):
        weight[kind, layout.lattice.places[kind]] = np.where(layout.lattice.weights[kind] == 4, 1.0, BOUNDARY_PRESENCE)
    there = np.zeros(int(np.prod(layout.shape)), dtype=np.float32)
    there[layout.cell_of_detector] = 1
    grid = there.reshape(kinds, slices, d * d) * weight[:, None]
    return torch.as_tensor(grid.reshape(layout.shape), device=device)


def syndrome_of(data: Tensor, measured: Tensor, layout: DetectorLayout) -> Tensor:
    r"""Detectors [B, 2, S, D, D] that the corrections flip.

    .. math:: \mathrm{det}_t = H\,(c_t \oplus c_{t-1}) \oplus s_t \oplus s_{t-1}

    Args:
        data: [B, 2, S, D, D] uint8, data errors new in each slice.
        measured: [B, 2, S, D, D] uint8, wrong measurements, on the checks' places.
    """
    kinds, slices, d, _ = layout.shape
    if tuple(data.shape[1:]) != layout.shape or data.shape != measured.shape:
        raise BadInput(
            f"corrections here are [B, {', '.join(map(str, layout.shape))}]; "
            f"got {list(data.shape)} and {list(measured.shape)}"
        )
    flat = torch.nn.functional.pad(data.reshape(-1, kinds, slices, d * d), (0, 1))
    out = measured.reshape(-1, kinds, slices, d * d).clone()
    out[:, :, 1:] ^= measured.reshape(-1, kinds, slices, d * d)[:, :, :-1]
    for kind in range(kinds):
        corners = _index(layout.lattice.corners[kind], data.device)
        seen = flat[:, kind, :, corners[:, 0]]
        for i in (1, 2, 3):
            seen = seen ^ flat[:, kind, :, corners[:, i]]
        out[:, kind, :, _index(layout.lattice.places[kind], data.device)] ^= seen
    exists = torch.zeros(int(np.prod(layout.shape)), dtype=out.dtype, device=data.device)
    exists[_index(layout.cell_of_detector, data.device)] = 1
    return (out.reshape(len(out), -1) * exists).reshape(-1, *layout.shape)


def logical_frame(data: Tensor, layout: DetectorLayout) -> Tensor:
    """Observables [B, O] (uint8) that the data corrections flip: the parity of the qubits they read, all slices."""
    total = data[:, layout.memory_kind].sum(1, dtype=torch.int64).reshape(len(data), -1) & 1
    support = torch.as_tensor(layout.observables.astype(np.int64), device=data.device)
    return ((total[:, None] * support).sum(-1) & 1).to(torch.uint8)


def as_bits(bits: Any, width: int, name: str) -> Tensor:
    """[B, width] uint8 of 0 and 1, from numpy or torch, booleans or integers.

    Raises:
        BadInput: another shape, or other values.
    """
    values = torch.as_tensor(bits)
    if values.ndim != 2 or values.shape[1] != width:
        raise BadInput(f"{name} must be [shots, {width}]; got {list(values.shape)}")
    if values.dtype != torch.bool and values.numel() and bool(((values != 0) & (values != 1)).any()):
        raise BadInput(f"{name} must hold 0 and 1 alone; got values up to {values.max().item()}")
    return values.to(torch.uint8)


def like(result: Tensor, model: Any) -> Any:
    """``result`` as the kind of array that ``model`` is."""
    return result if isinstance(model, Tensor) else result.cpu().numpy()


@lru_cache(maxsize=256)
def _cached_index(values: bytes, shape: tuple[int, ...], device: str) -> Tensor:
    return torch.as_tensor(np.frombuffer(values, dtype=np.int64).reshape(shape).copy(), device=device)


def _index(values: np.ndarray, device: Any) -> Tensor:
    return _cached_index(np.ascontiguousarray(values, dtype=np.int64).tobytes(), values.shape, str(device))


def _existing(lattice: RotatedLattice, rounds: int, memory_kind: int) -> np.ndarray:
    """[2, S, D * D] of booleans: where a complete experiment has detectors."""
    exists = np.zeros((2, rounds + 1, lattice.distance**2), dtype=bool)
    for kind in (0, 1):
        known = kind == memory_kind
        exists[kind, 0 if known else 1 : None if known else rounds, lattice.places[kind]] = True
    return exists


def _lattice_of(xs: np.ndarray, ys: np.ndarray, cells: set[tuple[int, int]], only: int | None) -> RotatedLattice:
    if only is None and len(xs) != len(ys):
        raise BadInput(f"the checks fill {len(xs)} columns and {len(ys)} rows; only square codes are supported")
    for values in (xs, ys):
        steps = np.diff(values)
        if len(steps) and not np.allclose(steps, steps[0]):
            raise BadInput(f"the checks' coordinates are not evenly spaced: {values.tolist()}")
    distance = max(len(xs), len(ys)) - 1
    if distance < 3 or distance % 2 == 0:
        raise BadInput(f"the checks fill {distance + 1} columns: distance {distance}; it must be odd and at least 3")
    for phase in (1, 0):
        kinds = RotatedLattice(distance, phase).cells
        if cells == set(kinds[0] + kinds[1] if only is None else kinds[only]):
            return RotatedLattice(distance, phase)
    raise BadInput(
        f"{len(cells)} check positions do not form a rotated surface code of distance {distance}, which has "
        f"{distance**2 - 1}: four qubits a check inside, every second pair on each edge"
    )


def _read_observables(layout: DetectorLayout, signatures: Signatures, num_observables: int) -> np.ndarray:
    """Which data qubits each observable reads, from what an error on one qubit alone would light and flip."""
    _, slices, d, _ = layout.shape
    kind, none = layout.memory_kind, d * d
    detector_at = {int(cell): i for i, cell in enumerate(layout.cell_of_detector)}
    support = np.zeros((num_observables, none), dtype=np.uint8)
    for q in range(none):
        places = [int(p) for p in layout.lattice.neighbours[kind][q] if p != none]
        flips: dict[tuple[int, ...], float] = {}
        for t in range(slices):
            key = frozenset(detector_at.get((kind * slices + t) * none + place, -1) for place in places)
            for observables, probability in signatures.get(key, {}).items():
                flips[observables] = flips.get(observables, 0.0) + probability
        if not flips:
            raise BadInput(
                f"no error mechanism flips the data qubit in row {q // d}, column {q % d} alone, so it cannot be told "
                "whether an observable reads it; give the circuit some data noise"
            )
        # Hooks of two qubits may share a signature with the other side of the code; they are the rarer ones.
        likeliest = max(flips, key=flips.__getitem__)
        support[list(likeliest), q] = 1
    return support
