"""Trajectories of fields on a fixed mesh: solved flows, arrays in memory, and their validation.

A trajectory is a mesh (vertices and triangles, or tetrahedra) and what its vertices carry at equally spaced times.
``heliograph.data.mesh_files`` reads the user's own files. NumPy and SciPy only.

Shapes: N vertices in D = 2 or 3 dimensions, F cells, E directed edges, T frames, C channels.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heliograph.data import flow_solver
from heliograph.data.keep import cache_home, read_tables, write_tables
from heliograph.errors import BadInput, MissingExtra

__all__ = [
    "AIRFOIL",
    "CHANNEL_TYPES",
    "HANDLE",
    "INFLOW",
    "NODE_TYPES",
    "NORMAL",
    "OBSTACLE",
    "OUTFLOW",
    "WALL",
    "MeshSchema",
    "MeshSet",
    "MeshTrajectory",
    "cells_from_blocks",
    "cylinder_flow",
    "cylinder_trajectory",
    "edges_of_cells",
    "mesh_set",
    "mesh_trajectory",
]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

NORMAL, OBSTACLE, AIRFOIL, HANDLE, INFLOW, OUTFLOW, WALL = range(7)
NODE_TYPES = 9  # the width of the one-hot code that MeshGraphNet's data sets use; 7 and 8 are free

CHANNEL_TYPES = np.array([NORMAL, INFLOW, OUTFLOW, WALL])  # by the solver's numbers


@dataclass(frozen=True, eq=False)
class MeshTrajectory:
    """Fields on one mesh over time; made by :func:`mesh_trajectory`, which checks them.

    Attributes:
        pos: [N, D] float32, in the user's unit of length.
        cells: [F, 3] or [F, 4] int64: triangles or tetrahedra.
        fields: [T, N, C] float32.
        node_type: [N] int64, below ``NODE_TYPES``: NORMAL 0, OBSTACLE 1, AIRFOIL 2, HANDLE 3, INFLOW 4, OUTFLOW 5,
            WALL 6.
        names: of the C channels.
        dt: time between frames.
        name: for messages.
    """

    pos: Floats
    cells: Ints
    fields: Floats
    node_type: Ints
    names: tuple[str, ...]
    dt: float = 1.0
    name: str = ""

    @property
    def frames(self) -> int:
        """T."""
        return len(self.fields)

    @property
    def num_vertices(self) -> int:
        """N."""
        return len(self.pos)

    @functools.cached_property
    def edge_index(self) -> Ints:
        """[2, E]: both directions of every edge of a cell, sorted by target, then source; no self-loops."""
        return edges_of_cells(self.cells, self.num_vertices)

    @functools.cached_property
    def connectivity(self) -> str:
        """A digest of vertices' number and edges: equal meshes share supports."""
        return hashlib.sha256(f"{self.num_vertices}:".encode() + self.edge_index.tobytes()).hexdigest()[:20]

    def with_fields(self, fields: ArrayLike) -> MeshTrajectory:
        """Other fields [T, N, C] on the same mesh.

        Raises:
            BadInput: a shape that does not fit, or values that are not finite.
        """
        other = replace(self, fields=_check_fields(fields, self.pos, self.name))
        known = {name: getattr(self, name) for name in ("edge_index", "connectivity")}
        other.__dict__.update(known)  # what is known of the mesh need not be found again
        return other

    @property
    def schema(self) -> MeshSchema:
        """What a model must know of trajectories like this one."""
        return MeshSchema(self.names, self.pos.shape[1])


@dataclass(frozen=True)
class MeshSchema:
    """Channels and dimensions that trajectories must share to be used by one simulator."""

    names: tuple[str, ...]
    dimensions: int

    @property
    def channels(self) -> int:
        """C."""
        return len(self.names)

    def input_width(self, *, history: bool = False, positions: bool = False) -> int:
        """Channels of a simulator's input: fields, their last change, coordinates, and the one-hot node type."""
        return self.channels * (2 if history else 1) + (self.dimensions if positions else 0) + NODE_TYPES


@dataclass(frozen=True, eq=False)
class MeshSet:
    """Trajectories for training and for testing, of one schema."""

    train: tuple[MeshTrajectory, ...]
    test: tuple[MeshTrajectory, ...]

    @property
    def schema(self) -> MeshSchema:
        """Shared by all."""
        return (self.train or self.test)[0].schema

    @property
    def in_dim(self) -> int:
        """Channels of a simulator's input without history and positions."""
        return self.schema.input_width()


def mesh_set(train: Sequence[MeshTrajectory], test: Sequence[MeshTrajectory] = ()) -> MeshSet:
    """Trajectories as one set.

    Raises:
        BadInput: there are none, or their channels or dimensions differ.
    """
    every = [*train, *test]
    if not every:
        raise BadInput("a set needs at least one trajectory")
    for trajectory in every:
        if trajectory.schema != every[0].schema:
            raise BadInput(
                f"trajectory {trajectory.name or '?'} has {trajectory.schema}, the first one {every[0].schema}; "
                "read the same named fields from all"
            )
    return MeshSet(tuple(train), tuple(test))


def mesh_trajectory(
    pos: ArrayLike,
    cells: ArrayLike,
    fields: ArrayLike,
    node_type: ArrayLike | None = None,
    *,
    names: Sequence[str] = (),
    dt: float = 1.0,
    name: str = "",
) -> MeshTrajectory:
    """A checked trajectory from arrays in memory.

    Args:
        pos: [N, 2] or [N, 3].
        cells: [F, 3] triangles or [F, 4] tetrahedra (in two dimensions four corners are a quadrilateral, which is cut
            in two). Mixed cells go through :func:`cells_from_blocks` first.
        fields: [T, N, C], two frames or more.
        node_type: [N] whole numbers below ``NODE_TYPES``; all NORMAL where None.
        names: of the channels; ``field0`` and so on where empty.
        dt, name: see :class:`MeshTrajectory`.

    Raises:
        BadInput: shapes that do not fit, corners out of range or repeated, an edge in three triangles of a plane mesh,
            two vertices in one place, or values that are not finite (the frame and their number are named).

    Warns of vertices in no cell; they are kept, and hear nobody.
    """
    where = f"trajectory {name!r}: " if name else ""
    pos = np.asarray(pos, dtype=np.float32)
    if pos.ndim != 2 or pos.shape[1] not in (2, 3) or not len(pos):
        raise BadInput(f"{where}pos must be [N, 2] or [N, 3] with N of 1 or more; got {list(pos.shape)}")
    if not np.isfinite(pos).all():
        raise BadInput(f"{where}{int((~np.isfinite(pos)).any(1).sum())} vertices have a position that is not finite")
    fields = _check_fields(fields, pos, name)
    types = np.zeros(len(pos), dtype=np.int64) if node_type is None else _whole_numbers(node_type, f"{where}node_type")
    if types.shape != (len(pos),) or types.min(initial=0) < 0 or types.max(initial=0) >= NODE_TYPES:
        raise BadInput(f"{where}node_type must be [{len(pos)}] whole numbers from 0 to {NODE_TYPES - 1}")
    labels = tuple(names) or tuple(f"field{i}" for i in range(fields.shape[2]))
    if len(labels) != fields.shape[2]:
        raise BadInput(f"{where}{len(labels)} names for {fields.shape[2]} channels")
    if not dt > 0:
        raise BadInput(f"{where}dt is the time between frames and must be positive; got {dt}")
    checked = _check_cells(_whole_numbers(cells, f"{where}cells"), pos, where)
    return MeshTrajectory(pos, checked, fields, types, labels, float(dt), name)


def cells_from_blocks(blocks: Sequence[tuple[str, ArrayLike]], name: str = "") -> Ints:
    """One kind of cell from blocks of several, as meshio names them.

    Quadrilaterals are cut in two triangles. Vertices and lines are boundary marks and are left out, and so are
    triangles and quadrilaterals that only mark the surface of tetrahedra.

    Raises:
        BadInput: a kind that is neither (named), surfaces beside tetrahedra that are no part of them, or no cells.
    """
    where = f"{name}: " if name else ""
    flat: list[Ints] = []
    solid: list[Ints] = []
    for kind, corners in blocks:
        table = np.asarray(corners, dtype=np.int64)
        if kind in ("vertex", "line") or not len(table):
            continue
        if kind == "triangle":
            flat.append(table)
        elif kind == "quad":
            flat.append(_cut(table))
        elif kind == "tetra":
            solid.append(table)
        else:
            raise BadInput(
                f"{where}cells of kind {kind!r} cannot be used; use triangle, quad or tetra (split the others with "
                "your mesher)"
            )
    if solid:
        volume = np.concatenate(solid)
        if flat and not np.isin(np.concatenate(flat), volume).all():
            raise BadInput(f"{where}triangle or quad cells lie beside tetra cells and not on them; keep one dimension")
        return volume
    if not flat:
        raise BadInput(f"{where}there are no triangle, quad or tetra cells")
    return np.concatenate(flat)


def edges_of_cells(cells: Ints, num_vertices: int) -> Ints:
    """[2, E] int64: every pair of corners of a cell in both directions, once, sorted by target, then source."""
    pairs = [(a, b) for a in range(cells.shape[1]) for b in range(cells.shape[1]) if a != b]
    keys = np.sort(np.concatenate([cells[:, b] * num_vertices + cells[:, a] for a, b in pairs]))
    keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]  # np.unique hashes, which takes many times as long
    return np.stack([keys % num_vertices, keys // num_vertices])


def cylinder_flow(
    n: int = 8,
    test: int = 2,
    *,
    vertices: int = 800,
    frames: int = 100,
    warmup: int = 40,
    dt: float = 0.02,
    seed: int = 0,
    workers: int = 1,
) -> MeshSet:
    """Flows past a cylinder in a channel, each with its own mesh, cylinder and inflow; velocity in m/s.

    Solved once (see ``heliograph.data.flow_solver``) and kept on disk by all parameters and the solver's source.

    Args:
        n, test: trajectories for training and for testing.
        vertices: of each mesh, about; 100 or more.
        frames: of each trajectory.
        warmup: steps from the impulsive start to the first frame.
        dt: seconds between frames, which is also the solver's step.
        seed: trajectory k of a seed is the same in every set that has it.
        workers: processes that solve side by side.

    Raises:
        BadInput: sizes that make no sense. MissingExtra: scikit-fem is absent, and something must be solved.
    """
    if n < 1 or test < 0 or workers < 1:
        raise BadInput(f"need n and workers of 1 or more and test of 0 or more; got {n}, {workers} and {test}")
    solve = functools.partial(cylinder_trajectory, vertices=vertices, frames=frames, warmup=warmup, dt=dt, seed=seed)
    if workers == 1:
        solved = [solve(number) for number in range(n + test)]
    else:
        with ProcessPoolExecutor(workers) as pool:
            solved = list(pool.map(solve, range(n + test)))
    return mesh_set(solved[:n], solved[n:])


def cylinder_trajectory(
    number: int, *, vertices: int, frames: int, warmup: int = 40, dt: float = 0.02, seed: int = 0
) -> MeshTrajectory:
    """Trajectory ``number`` of a seed; arguments and errors as for :func:`cylinder_flow`."""
    if vertices < 100 or frames < 2 or warmup < 0 or not 0 < dt <= 0.1 or number < 0 or seed < 0:
        raise BadInput(
            f"a flow needs 100 vertices or more, 2 frames or more, warmup, number and seed of 0 or more and dt in "
            f"(0, 0.1] s; got {vertices}, {frames}, {warmup}, {number}, {seed} and {dt}"
        )
    path = cache_home() / "cylinder_flow" / f"{vertices}-{frames}-{warmup}-{dt:g}-{seed}-{number}-{_solver_code()}.tab"
    found = read_tables(path)
    kept: Mapping[str, NDArray[Any]] = found or {}
    if found is None:
        if importlib.util.find_spec("skfem") is None:
            raise MissingExtra("scikit-fem", "graphs")
        random = np.random.default_rng([seed, number])
        kept = _tables_of(flow_solver.simulate_channel(vertices, frames, warmup, random, dt=dt))
        write_tables(path, kept)
    return mesh_trajectory(
        kept["pos"],
        kept["cells"],
        kept["velocity"],
        kept["node_type"],
        names=("velocity_x", "velocity_y"),
        dt=dt,
        name=f"cylinder flow {seed}.{number}",
    )


def _tables_of(flow: flow_solver.ChannelFlow) -> Mapping[str, NDArray[Any]]:
    return {
        "pos": flow.mesh.points.astype(np.float32),
        "cells": flow.mesh.triangles,
        "velocity": flow.velocity.astype(np.float32),
        "node_type": CHANNEL_TYPES[flow.mesh.part],
    }


@functools.cache
def _solver_code() -> str:
    return hashlib.sha256(Path(str(flow_solver.__file__)).read_bytes()).hexdigest()[:12]


def _check_fields(values: ArrayLike, pos: Floats, name: str) -> Floats:
    where = f"trajectory {name!r}: " if name else ""
    fields: Floats = np.asarray(values, dtype=np.float32)
    if fields.ndim != 3 or fields.shape[0] < 2 or fields.shape[1] != len(pos) or fields.shape[2] < 1:
        raise BadInput(
            f"{where}fields must be [T, N, C] with T of 2 or more, N={len(pos)} and C of 1 or more; "
            f"got {list(fields.shape)}"
        )
    wrong = (~np.isfinite(fields)).sum((1, 2))
    if wrong.any():
        frame = int(np.flatnonzero(wrong)[0])
        raise BadInput(
            f"{where}frame {frame} has {int(wrong[frame])} values that are not finite ({int((wrong > 0).sum())} such "
            f"frames of {len(fields)}); cut the trajectory before it"
        )
    return fields


def _whole_numbers(values: ArrayLike, what: str) -> Ints:
    raw = np.asarray(values)
    numbers = raw.astype(np.int64)
    if raw.dtype.kind not in "iub" and not np.array_equal(raw, numbers):
        raise BadInput(f"{what} must hold whole numbers; got {raw.dtype}")
    return numbers


def _cut(quads: Ints) -> Ints:
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def _check_cells(cells: Ints, pos: Floats, where: str) -> Ints:
    if cells.ndim != 2 or cells.shape[1] not in (3, 4) or not len(cells):
        raise BadInput(f"{where}cells must be [F, 3] or [F, 4] with F of 1 or more; got {list(cells.shape)}")
    if cells.min() < 0 or cells.max() >= len(pos):
        bad = cells.min() if cells.min() < 0 else cells.max()
        raise BadInput(f"{where}cells name vertex {bad}; vertices are numbered 0 to {len(pos) - 1}")
    ordered = np.sort(cells, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(1)
    if twice.any():
        raise BadInput(f"{where}cell {int(np.flatnonzero(twice)[0])} names a vertex twice")
    if cells.shape[1] == 4 and pos.shape[1] == 2:
        cells = _cut(cells)
    if pos.shape[1] == 2:
        sides = np.sort(np.concatenate([cells[:, [0, 1]], cells[:, [1, 2]], cells[:, [2, 0]]]), axis=1)
        unique, count = np.unique(sides, axis=0, return_counts=True)
        if count.max() > 2:
            a, b = unique[int(count.argmax())]
            raise BadInput(f"{where}the mesh is no surface: edge {a}-{b} lies in {int(count.max())} triangles")
    places, count = np.unique(pos, axis=0, return_counts=True)
    if len(places) < len(pos):
        spot = int(count.argmax())
        pair = np.flatnonzero((pos == places[spot]).all(1))[:2]
        raise BadInput(
            f"{where}{len(pos) - len(places)} vertices lie where another one does, {pair[0]} and {pair[1]} for "
            "instance; merge them"
        )
    alone = len(pos) - len(np.unique(cells))
    if alone:
        warnings.warn(f"{where}{alone} of {len(pos)} vertices are in no cell; they hear nobody", stacklevel=4)
    return cells
