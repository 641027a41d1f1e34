"""The user's meshes as graphs, and predictions written back to them; files that meshio reads.

Vertices are the mesh's points, and every edge of an element is an edge both ways with four numbers: the position of its
source as seen from its target (x, y, z; 0 for a coordinate that the file does not have) and its length, in the mesh's
unit. Midpoints of quadratic elements lie between the corners of their edge. Points that are in no element stay, without
edges. What a vertex knows, and what is to be learned of it, are arrays of point data; vectors count a column a
component, but a target on flat meshes none for a third component that is 0 everywhere, as file formats add it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data

from heliograph.errors import BadInput, MissingExtra

__all__ = ["MESHES", "MeshGraphs", "mesh_files", "read_meshes", "write_meshes"]

MESHES = (".vtu", ".vtk", ".msh")
_TETRA = ((0, 1), (1, 2), (2, 0), (0, 3), (1, 3), (2, 3))
_SQUARE = ((0, 1), (1, 2), (2, 3), (3, 0))
EDGES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "vertex": (),
    "line": ((0, 1),),
    "triangle": ((0, 1), (1, 2), (2, 0)),
    "quad": _SQUARE,
    "tetra": _TETRA,
    "pyramid": (*_SQUARE, (0, 4), (1, 4), (2, 4), (3, 4)),
    "wedge": ((0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3), (0, 3), (1, 4), (2, 5)),
    "hexahedron": (*_SQUARE, (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)),
    "line3": ((0, 2), (2, 1)),
    "triangle6": ((0, 3), (3, 1), (1, 4), (4, 2), (2, 5), (5, 0)),
    "quad8": ((0, 4), (4, 1), (1, 5), (5, 2), (2, 6), (6, 3), (3, 7), (7, 0)),
    "tetra10": tuple(end for place, (a, b) in enumerate(_TETRA) for end in ((a, 4 + place), (4 + place, b))),
}
"""Edges of each kind of element, by the places of its points (VTK's order)."""


@dataclass(frozen=True)
class MeshGraphs:
    """Graphs of meshes; ``inputs`` names the arrays in ``x``, ``columns`` those of ``y``."""

    graphs: tuple[Data, ...]
    inputs: tuple[str, ...]
    columns: tuple[str, ...]
    notes: tuple[str, ...] = ()


def mesh_files(path: Path) -> list[Path]:
    """The mesh file, or the mesh files of a folder by name; none where there are none."""
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in found if file.suffix.lower() in MESHES]


def read_meshes(
    path: Path, target: Sequence[str], inputs: Sequence[str] | None = None, *, need_target: bool = True
) -> MeshGraphs:
    """Reads meshes as graphs with one target a vertex.

    Args:
        path: a file, or a folder with one mesh a file.
        target: arrays of point data to be learned.
        inputs: arrays of point data that vertices know; all others that every mesh has where None.
        need_target: False leaves ``y`` away.

    Raises:
        BadInput: unreadable files, no elements, arrays that are missing, of cells or fields, or hold NaN or infinity.
        MissingExtra: meshio is absent.
    """
    files = mesh_files(path)
    meshes = [_read(file) for file in files]
    if need_target and not target:
        arrays = ", ".join(meshes[0].point_data) or "none"
        raise BadInput(f"{path}: name the point data to learn with --target; {files[0].name} has {arrays}")
    if inputs is None:
        shared = [name for name in meshes[0].point_data if all(name in mesh.point_data for mesh in meshes)]
        inputs = [name for name in shared if name not in target and _is_measured(name, meshes[0].point_data[name])]
        chosen = f"vertex inputs: {', '.join(inputs) or 'none'} (all point data but the target; --inputs chooses)"
        notes = [chosen]
    else:
        notes = []
    both = sorted(set(inputs) & set(target))
    if both:
        raise BadInput(f"{path}: {both[0]!r} is both input and target")
    widths = {name: _width(meshes, name) for name in target} if need_target else {}
    graphs, loose = [], 0
    for file, mesh in zip(files, meshes, strict=True):
        graph = _graph(file, mesh)
        if inputs:
            graph.x = torch.cat([_array(file, mesh, name).float() for name in inputs], dim=1)
        if need_target:
            y = torch.cat([_array(file, mesh, name)[:, : widths[name]] for name in target], dim=1)
            graph.y = y.reshape(-1) if y.shape[1] == 1 and not y.is_floating_point() else y
        loose += int(graph.num_nodes) - len(graph.edge_index.unique())
        graphs.append(graph)
    if loose:
        notes.append(f"{loose} points of {len(files)} meshes are in no element and have no neighbours")
    columns = _columns(widths) if need_target else tuple(target)
    return MeshGraphs(tuple(graphs), tuple(inputs), columns, tuple(notes))


def write_meshes(path: Path, output: Path, arrays: Sequence[Mapping[str, NDArray[Any]]]) -> list[Path]:
    """Writes the meshes of ``path`` with more point data; whole files or none.

    Args:
        path: as in :func:`read_meshes`.
        output: the file to write; a folder where ``path`` is one, whose files keep their names.
        arrays: for each mesh, names and values [points, ...].

    Raises:
        BadInput: ``output`` is of no known kind or cannot be written.
    """
    files = mesh_files(path)
    places = [output / file.name for file in files] if path.is_dir() else [output]
    if any(place.suffix.lower() not in MESHES for place in places):
        raise BadInput(f"{output}: predictions on a mesh are written to {', '.join(MESHES)} or .csv")
    meshio = _meshio()
    for file, place, more in zip(files, places, arrays, strict=True):
        mesh = _read(file)
        mesh.point_data.update(more)
        part = place.with_name(f".part-{place.name}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            meshio.write(part, mesh)
            part.replace(place)
        except (OSError, meshio.WriteError, KeyError, ValueError) as error:
            part.unlink(missing_ok=True)
            raise BadInput(f"cannot write {place}: {error}") from None
    return places


def _read(file: Path) -> Any:
    meshio = _meshio()
    try:
        return meshio.read(file)
    except SystemExit:  # meshio ends the program where no reader of its own succeeds
        raise BadInput(f"meshio cannot read {file}: damaged, or of another kind than its name says") from None
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise BadInput(f"meshio cannot read {file}: {reason}") from None


def _graph(file: Path, mesh: Any) -> Data:
    unknown = sorted({block.type for block in mesh.cells} - set(EDGES))
    if unknown:
        raise BadInput(f"{file} has elements of kind {unknown[0]!r}; known are {', '.join(EDGES)}")
    pairs = [np.asarray(block.data)[:, list(edge)] for block in mesh.cells for edge in EDGES[block.type]]
    if not sum(len(part) for part in pairs):
        raise BadInput(f"{file} has no elements with edges; points alone are no mesh")
    ends = np.sort(np.concatenate(pairs).astype(np.int64), axis=1)
    if ends.min() < 0 or ends.max() >= len(mesh.points):
        raise BadInput(f"{file}: an element names point {ends.max()} of {len(mesh.points)}")
    one = np.unique(ends[ends[:, 0] != ends[:, 1]], axis=0).T
    edges = np.concatenate([one, one[::-1]], axis=1)
    points = np.zeros((len(mesh.points), 3))
    points[:, : mesh.points.shape[1]] = mesh.points
    if not np.isfinite(points).all():
        raise BadInput(f"{file}: point {int((~np.isfinite(points)).any(1).argmax())} holds NaN or infinity")
    offset = points[edges[0]] - points[edges[1]]
    features = np.concatenate([offset, np.linalg.norm(offset, axis=1, keepdims=True)], axis=1)
    return Data(edge_index=torch.from_numpy(edges), edge_attr=torch.from_numpy(features).float(), num_nodes=len(points))


def _array(file: Path, mesh: Any, name: str) -> Tensor:
    """[points, components] of one array of point data."""
    if name not in mesh.point_data:
        here = ", ".join(mesh.point_data) or "none"
        for kind, other in (("cell data", mesh.cell_data), ("field data", mesh.field_data)):
            if name in other:
                raise BadInput(
                    f"{file}: {name!r} is {kind}, and graphs have vertices at points; turn it into point data first "
                    f"(point data here: {here})"
                )
        raise BadInput(f"{file} has no point data {name!r} among {here}")
    values = np.asarray(mesh.point_data[name])
    if not _is_number(values):
        raise BadInput(f"{file}: point data {name!r} holds {values.dtype}, not numbers")
    values = values.reshape(len(mesh.points), -1)
    wrong = ~np.isfinite(values)
    if wrong.any():
        raise BadInput(f"{file}: point data {name!r} holds NaN or infinity at point {int(wrong.any(1).argmax())}")
    return torch.from_numpy(values.astype(np.int64 if values.dtype.kind in "iu" else np.float32))


def _width(meshes: Sequence[Any], name: str) -> int:
    """Components to be learned of an array; 0 where a mesh lacks it, which is refused where it is read."""
    arrays = [np.asarray(mesh.point_data[name]) for mesh in meshes if name in mesh.point_data]
    if len(arrays) < len(meshes):
        return 0
    widths = {int(np.prod(values.shape[1:], dtype=int)) for values in arrays}
    if len(widths) > 1:
        raise BadInput(
            f"point data {name!r} has {sorted(widths)} components in different meshes; one number is expected"
        )
    width = widths.pop()
    flat = all(mesh.points.shape[1] == 2 or np.ptp(mesh.points[:, 2]) == 0 for mesh in meshes)
    if width == 3 and flat and all(not values[:, 2].any() for values in arrays):
        return 2
    return width


def _columns(widths: Mapping[str, int]) -> tuple[str, ...]:
    out: list[str] = []
    for name, width in widths.items():
        out += [name] if width == 1 else [f"{name}_{'xyz'[c] if width <= 3 else c}" for c in range(width)]
    return tuple(out)


def _is_measured(name: str, values: Any) -> bool:
    """Whether an array tells something about points, and not where a mesh generator has them from."""
    return _is_number(values) and not name.startswith("gmsh:")


def _is_number(values: Any) -> bool:
    return np.asarray(values).dtype.kind in "iuf"


def _meshio() -> Any:
    try:
        return importlib.import_module("meshio")
    except ImportError as error:
        raise MissingExtra("meshio", "graphs") from error
