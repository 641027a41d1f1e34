"""Training labels made canonical: of all corrections with the same effect, one (homological equivalence).

Two corrections of channel k are equivalent if they differ by checks of the other kind in space, or by one qubit flipped
in two consecutive slices together with the measurements between them in time. Neither changes a detector or an
observable, so a network could only guess between them. Source: arXiv:2604.12841 and its code for the idea; moving to a
fixed point in an order that provably ends, and canonical weight-2 checks, are ours.

Shapes: B shots, S slices, D rows and columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from heliograph.errors import BadInput
from heliograph.graphs.surface_predecoder.lattice import Array, DetectorLayout, RotatedLattice, _index, like

__all__ = ["canonicalize_spacelike", "canonicalize_timelike", "random_equivalent"]

# Bits of a check's corners: top left 1, top right 2, bottom left 4, bottom right 8.
_LEFT, _BOTTOM, _MAIN, _ANTI = 1 | 4, 4 | 8, 1 | 8, 2 | 4


def canonicalize_spacelike(frames: Array, lattice: RotatedLattice, channel: int) -> Array:
    """Multiplies data errors by checks until none of the local rules applies.

    Four errors around a check vanish, three become the fourth, two on its left become two on its right, bottom becomes
    top, one diagonal becomes the other (main to anti for channel 0, back for channel 1). On a weight-2 check two vanish
    and one moves right or up. Each rule lowers (weight, distance from the top right corner, its spread), so this ends.

    Args:
        frames: [..., D, D] of 0 and 1: errors of one slice each.
        lattice: the code.
        channel: 0 or 1; the checks that act are those of the other kind.

    Returns:
        The same shape, uint8.
    """
    d = lattice.distance
    values = torch.as_tensor(frames)
    if values.ndim < 2 or tuple(values.shape[-2:]) != (d, d):
        raise BadInput(f"frames must be [..., {d}, {d}] at distance {d}; got {list(values.shape)}")
    if channel not in (0, 1):
        raise BadInput(f"channel is 0 or 1; got {channel}")
    flat = torch.nn.functional.pad(values.reshape(-1, d * d).to(torch.uint8), (0, 1))
    classes = [_spacelike_class(lattice, channel, row_parity, values.device) for row_parity in (0, 1)]
    powers = torch.tensor([1, 2, 4, 8], device=values.device)
    open_rows = torch.arange(len(flat), device=values.device)
    while len(open_rows):
        part = flat[open_rows]
        before = part.clone()
        for corners, tables in classes:
            pattern = (part[:, corners] * powers).sum(-1)
            flip = tables.gather(1, pattern.T).T
            for i in range(4):  # checks of one class share no qubit, so each is written once (the padding aside)
                part[:, corners[:, i]] ^= flip
            part[:, -1] = 0
        flat[open_rows] = part
        open_rows = open_rows[(part != before).any(1)]
    moved: Array = like(flat[:, :-1].reshape(values.shape), frames)
    return moved


def canonicalize_timelike(data: Array, measured: Array, layout: DetectorLayout) -> tuple[Array, Array]:
    """Flips a qubit in slices t and t + 1 and the measurements of round t that see it, where that has fewer ones.

    On a tie the form with more ones in slice t is kept. The pair (0, 1) and the pairs that reach the last slice are
    left alone for the kind whose first and last comparisons do not exist.

    Args:
        data: [B, 2, S, D, D] of 0 and 1, data errors new in each slice.
        measured: [B, 2, S, D, D] of 0 and 1, wrong measurements on the checks' places.
        layout: of the experiment.

    Returns:
        Both, in the same shapes, uint8; each pass lowers (weight, lateness), so the fixed point is reached.
    """
    kinds, slices, d, _ = layout.shape
    values, checks = torch.as_tensor(data), torch.as_tensor(measured)
    if tuple(values.shape[1:]) != layout.shape or values.shape != checks.shape:
        raise BadInput(
            f"labels here are [B, {', '.join(map(str, layout.shape))}] twice; "
            f"got {list(values.shape)} and {list(checks.shape)}"
        )
    flat = values.reshape(-1, kinds, slices, d * d).to(torch.uint8).clone()
    s = torch.nn.functional.pad(checks.reshape(-1, kinds, slices, d * d).to(torch.uint8), (0, 1))
    sites = np.arange(d * d).reshape(d, d)
    for kind in range(kinds):
        known = kind == layout.memory_kind
        first, last = (0, slices - 1) if known else (1, slices - 2)
        open_rows = torch.arange(len(flat), device=flat.device)
        while len(open_rows):
            x, m = flat[open_rows, kind], s[open_rows, kind]
            before = x.clone()
            for corner in range(4):  # qubits two apart share no check
                qubits = sites[corner // 2 :: 2, corner % 2 :: 2].reshape(-1)
                for start in (first, first + 1):
                    _flip_pairs(x, m, np.arange(start, last, 2), qubits, layout.lattice.neighbours[kind])
            flat[open_rows, kind], s[open_rows, kind] = x, m
            open_rows = open_rows[(x != before).flatten(1).any(1)]
    return like(flat.reshape(values.shape), data), like(s[..., :-1].reshape(values.shape), measured)


def random_equivalent(
    data: Tensor, measured: Tensor, layout: DetectorLayout, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Another correction with the same detectors and observables: random checks and random pairs in time are applied.

    Args:
        data: [B, 2, S, D, D] uint8.
        measured: the same.
        generator: draws which; on the CPU.
    """
    kinds, slices, d, _ = layout.shape
    flat = torch.nn.functional.pad(data.reshape(-1, kinds, slices, d * d).clone(), (0, 1))
    s = torch.nn.functional.pad(measured.reshape(-1, kinds, slices, d * d).clone(), (0, 1))

    def draw(*shape: int) -> Tensor:
        return torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8).to(data.device)

    for kind in range(kinds):
        known = kind == layout.memory_kind
        low, high = (0, slices) if known else (1, slices - 1)
        for corners in layout.lattice.corners[1 - kind]:
            flat[:, kind, low:high, corners[corners < d * d]] ^= draw(len(flat), max(0, high - low), 1)
        for t in range(low, high - 1):
            for q in range(d * d):
                flip = draw(len(flat))
                flat[:, kind, t, q] ^= flip
                flat[:, kind, t + 1, q] ^= flip
                for place in layout.lattice.neighbours[kind][q]:
                    s[:, kind, t, place] ^= flip
    return flat[..., :-1].reshape(data.shape), s[..., :-1].reshape(data.shape)


def _flip_pairs(x: Tensor, m: Tensor, times: np.ndarray, qubits: np.ndarray, neighbours: np.ndarray) -> None:
    """One class of moves, in place, on data [B, S, D * D] and measurements [B, S, D * D + 1]."""
    if not len(times):
        return
    t, q = torch.as_tensor(times, device=x.device)[:, None], _index(qubits, x.device)
    left, right = (_index(neighbours[qubits, i], x.device) for i in (0, 1))
    none = m.shape[-1] - 1
    count = (left != none).to(torch.int8) + (right != none).to(torch.int8)
    early, late = x[:, t, q].to(torch.int8), x[:, t + 1, q].to(torch.int8)
    seen = m[:, t, left].to(torch.int8) + m[:, t, right].to(torch.int8)
    weight, other = early + late + seen, 2 + count - early - late - seen
    earlier, other_earlier = early + seen, 1 + count - early - seen
    flip = ((other < weight) | ((other == weight) & (other_earlier > earlier))).to(torch.uint8)
    x[:, t, q] ^= flip
    x[:, t + 1, q] ^= flip
    m[:, t, left] ^= flip
    m[:, t, right] ^= flip
    m[..., none] = 0


def _spacelike_class(lattice: RotatedLattice, channel: int, row_parity: int, device: Any) -> tuple[Tensor, Tensor]:
    """Corners [C, 4] and tables [C, 16] (1 where the check is applied) of the checks in rows of one parity."""
    kind = 1 - channel
    rows = np.array([r for r, _ in lattice.cells[kind]])
    chosen = lattice.corners[kind][rows % 2 == row_parity]
    none = lattice.distance**2
    tables = np.zeros((len(chosen), 16), dtype=np.uint8)
    for table, corners in zip(tables, chosen, strict=True):
        there = [1 << i for i in range(4) if corners[i] != none]
        if len(there) == 4:
            moved = {_LEFT, _BOTTOM, _MAIN if channel == 0 else _ANTI}
            for pattern in range(16):
                table[pattern] = pattern.bit_count() >= 3 or pattern in moved
        else:
            first, second = there  # top before bottom, left before right
            vertical = (first, second) in ((1, 4), (2, 8))
            table[[first | second, second if vertical else first]] = 1
    return _index(chosen, device), torch.as_tensor(tables, device=device)
