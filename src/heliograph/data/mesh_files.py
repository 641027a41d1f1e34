"""The user's own mesh trajectories: HDF5 files in MeshGraphNet's layout, and series that meshio reads.

h5py and meshio are needed only when a file of theirs is read.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heliograph.data.mesh import MeshTrajectory, cells_from_blocks, mesh_trajectory
from heliograph.errors import BadInput, MissingExtra

__all__ = ["read_h5", "read_series"]


def read_h5(
    path: Path | str, fields: Sequence[str] = ("velocity",), *, limit: int | None = None
) -> list[MeshTrajectory]:
    """Trajectories of an HDF5 file in MeshGraphNet's layout: one group each.

    A group holds ``cells`` [F, 3 or 4], ``mesh_pos`` [N, D], ``node_type`` [N] or [N, 1] (each of these also with a
    leading axis of T, along which it must not change) and every field [T, N, C] or [T, N]. A ``meta.json`` beside the
    file may give ``dt``.

    Args:
        path: the file.
        fields: names of the fields to read, in this order.
        limit: read the first so many trajectories only.

    Raises:
        BadInput: no such file, a missing name (those present are listed), a mesh that changes between frames (the
            frame is named), and all that :func:`heliograph.data.mesh.mesh_trajectory` refuses.
        MissingExtra: h5py is absent.
    """
    h5py = _package("h5py")
    path = Path(path)
    dt = _time_step(path.with_name("meta.json"))
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise BadInput(f"{path} is no readable HDF5 file: {error}") from None
    with file:
        keys = sorted((key for key in file if isinstance(file[key], h5py.Group)), key=_natural)[:limit]
        if not keys:
            raise BadInput(f"{path} holds no group; MeshGraphNet's layout has one a trajectory")
        return [_read_group(file[key], f"{path.name}:{key}", fields, dt) for key in keys]


def read_series(
    paths: Path | str | Sequence[Path | str],
    fields: Sequence[str],
    *,
    node_type: str | None = "node_type",
    dimensions: int | None = None,
    dt: float | None = None,
    name: str = "",
) -> MeshTrajectory:
    """One trajectory from files that meshio reads: a time series (.xdmf), or one file a frame (.vtu and others).

    Args:
        paths: the .xdmf file, or the files in the order of time.
        fields: names of point data, in this order; vectors count one channel a component.
        node_type: name of the point data with vertex types; all NORMAL where None or where the files have none.
        dimensions: 2 to drop the third coordinate; by itself where the mesh is flat.
        dt: time between frames; from the .xdmf file, or 1, where None.
        name: for messages.

    Raises:
        BadInput: unreadable files, missing names, a mesh that changes between frames (the frame is named), cells of a
            kind that cannot be used, times that are not equally spaced.
        MissingExtra: meshio is absent.
    """
    meshio = _package("meshio")
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(p) for p in paths]
    if not files:
        raise BadInput("there are no files to read")
    label = name or files[0].name
    points: Any = None
    cells: Any = None
    types: NDArray[Any] | None = None
    frames, times = [], []
    for number, (time, corner_points, blocks, data) in enumerate(_frames(meshio, files)):
        if points is None:
            points, cells = corner_points, cells_from_blocks(blocks, label)
        elif not np.array_equal(points, corner_points) or not np.array_equal(cells, cells_from_blocks(blocks, label)):
            raise BadInput(f"{label}: the mesh changes at frame {number}; a trajectory has one mesh")
        missing = [field for field in fields if field not in data]
        if missing:
            raise BadInput(
                f"{label}: frame {number} has no point data {missing[0]!r}; it has {', '.join(data) or 'none'}"
            )
        frames.append([np.asarray(data[field], dtype=np.float64).reshape(len(points), -1) for field in fields])
        times.append(time)
        if types is None and node_type is not None and node_type in data:
            types = np.asarray(data[node_type]).reshape(len(points))
    flat = points.shape[1] == 3 and np.ptp(points[:, 2]) == 0
    if dimensions == 2 or (dimensions is None and flat and cells.shape[1] == 3):
        points = points[:, :2]
        frames = [[part[:, :2] if part.shape[1] == 3 else part for part in frame] for frame in frames]
    if dt is None:
        dt = _spacing(times, label)
    names = [
        field if part.shape[1] == 1 else f"{field}_{'xyz'[axis] if part.shape[1] <= 3 else axis}"
        for field, part in zip(fields, frames[0], strict=True)
        for axis in range(part.shape[1])
    ]
    table = np.stack([np.concatenate(frame, axis=1) for frame in frames])
    return mesh_trajectory(points, cells, table, types, names=names, dt=dt, name=label)


def _frames(meshio: Any, files: Sequence[Path]) -> Iterator[tuple[float | None, Any, list[tuple[str, Any]], Any]]:
    """(time, points, blocks of cells, point data) of each frame."""
    try:
        if len(files) == 1 and files[0].suffix in (".xdmf", ".xmf"):
            with meshio.xdmf.TimeSeriesReader(str(files[0])) as reader:
                points, cells = reader.read_points_cells()
                blocks = [(block.type, block.data) for block in cells]
                for step in range(reader.num_steps):
                    time, data, _ = reader.read_data(step)
                    yield float(time), points, blocks, data
            return
        for file in files:
            mesh = meshio.read(str(file))
            yield None, mesh.points, [(block.type, block.data) for block in mesh.cells], mesh.point_data
    except (OSError, ValueError, KeyError, meshio.ReadError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"meshio cannot read {files[0]}: {error}") from None
    except SystemExit:  # meshio ends the program where a file is missing or of no known kind
        raise BadInput(f"meshio cannot read {files[0]}: no such file, or no format that it knows") from None


def _read_group(group: Any, label: str, fields: Sequence[str], dt: float) -> MeshTrajectory:
    present = ", ".join(group)
    for wanted in ("cells", "mesh_pos", *fields):
        if wanted not in group:
            raise BadInput(f"{label} has no {wanted!r}; it has {present}")
    cells = _constant(np.asarray(group["cells"]), 2, label, "cells")
    pos = _constant(np.asarray(group["mesh_pos"]), 2, label, "mesh_pos")
    types = None
    if "node_type" in group:
        raw = np.asarray(group["node_type"])
        raw = raw.reshape(raw.shape[:-1]) if raw.ndim > 1 and raw.shape[-1] == 1 else raw
        types = _constant(raw, 1, label, "node_type")
    parts: list[NDArray[Any]] = []
    names: list[str] = []
    for field in fields:
        values = np.asarray(group[field])
        values = values[..., None] if values.ndim == 2 else values
        if values.ndim != 3 or len(values) != (len(parts[0]) if parts else len(values)):
            raise BadInput(
                f"{label}: {field} must be [T, N, C] with the same T for all fields; got {list(values.shape)}"
            )
        parts.append(values)
        width = values.shape[2]
        names += [field] if width == 1 else [f"{field}_{'xyz'[a] if width <= 3 else a}" for a in range(width)]
    try:
        table = np.concatenate(parts, axis=2)
    except ValueError as error:
        raise BadInput(f"{label}: the fields do not have the same vertices: {error}") from None
    return mesh_trajectory(pos, cells, table, types, names=names, dt=dt, name=label)


def _constant(values: NDArray[Any], axes: int, label: str, what: str) -> NDArray[Any]:
    """Without the leading axis of frames, along which nothing may change."""
    if values.ndim != axes + 1:
        return values
    moved = np.flatnonzero((values != values[:1]).reshape(len(values), -1).any(1))
    if len(moved):
        raise BadInput(f"{label}: {what} changes at frame {int(moved[0])}; a trajectory has one mesh")
    first: NDArray[Any] = values[0]
    return first


def _time_step(meta: Path) -> float:
    if not meta.is_file():
        return 1.0
    try:
        return float(json.loads(meta.read_text(encoding="utf-8")).get("dt", 1.0))
    except (ValueError, AttributeError, TypeError) as error:
        raise BadInput(f"{meta} is no readable description: {error}") from None


def _spacing(times: Sequence[float | None], label: str) -> float:
    known = [time for time in times if time is not None]
    if len(known) < 2 or len(known) < len(times):
        return 1.0
    steps = np.diff(known)
    if not steps[0] > 0 or not np.allclose(steps, steps[0], rtol=1e-3):
        raise BadInput(f"{label}: frames are not equally spaced ({steps.min():g} to {steps.max():g}); resample them")
    return float(steps[0])


def _natural(key: str) -> tuple[int, str]:
    return (int(key), "") if key.isdigit() else (2**62, key)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(name, "graphs") from error
