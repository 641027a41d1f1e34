"""Tasks kept as one small file each, so that graphs made by a heavy package are read where that package is absent.

A file holds the graphs of a :class:`~heliograph.graphs.core.tasks.GraphTask`, split, with its target and vocabulary
sizes; whole numbers take the fewest bytes that hold them. Its name carries the task, the draw, and a digest of the code
that made it. Where the package that makes the graphs is installed, a file of another version is made again; where it is
not, the file is taken as it is and the task says so in its notes.

Files lie in ``tasks`` of the cache folder of :mod:`heliograph.data.keep`. Copy that folder to carry the graphs
elsewhere, and let ``HELIOGRAPH_HOME`` name the folder above ``cache`` there.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heliograph.data import molecules, peptides
from heliograph.data.keep import cache_home, read_tables, write_tables
from heliograph.graphs.core import tasks
from heliograph.graphs.core.tasks import GraphTask, TargetSpec

__all__ = ["MAKERS", "keep_task", "read_task", "task_path", "write_task"]

MAKERS: Mapping[str, tuple[str, ...]] = {
    "molecules.zinc": ("rdkit", "molsets"),
    "peptides": ("rdkit", "modlamp"),
}
"""Distributions that make the graphs of a task; tasks that are not named here are made anew each time."""

FORMAT = 1
SIDES = ("train", "valid", "test")
FIELDS = ("node_types", "in_dim", "edge_types", "edge_dim")


def keep_task(name: str, seed: int, sizes: Mapping[str, int], make: Callable[[], GraphTask]) -> GraphTask:
    """The task from its file, or made and written to it.

    Args:
        name: of :data:`MAKERS`.
        seed, sizes: of the draw.
        make: makes the task.
    """
    path = task_path(name, seed, sizes)
    found = read_task(path)
    here = _versions(name)
    if found is not None:
        task, made_with = found
        if here == made_with:
            return task
        if "" in here.values():
            said = ", ".join(f"{package} {version}" for package, version in made_with.items())
            return replace(task, notes=(*task.notes, f"the graphs were prepared on another machine with {said}"))
    task = make()
    write_task(path, task, here)
    return task


def task_path(name: str, seed: int, sizes: Mapping[str, int]) -> Path:
    """Where the file of a draw lies, whether it is there or not."""
    drawn = "-".join(f"{side}{count}" for side, count in sorted(sizes.items()))
    return cache_home() / "tasks" / f"{name}-{drawn or 'default'}-seed{seed}-{_code_version(name)}.tab"


def write_task(path: Path, task: GraphTask, made_with: Mapping[str, str]) -> None:
    """Writes a task whose graphs hold ``x``, ``edge_index``, ``edge_attr`` and ``y``, those that they have.

    Args:
        path: of the file; its folder is made.
        task: what to write.
        made_with: versions of the packages that made it.
    """
    facts = {
        "name": task.name,
        "target": task.target.to_json(),
        "notes": list(task.notes),
        "made_with": dict(made_with),
        "fields": {field: getattr(task, field) for field in FIELDS},
    }
    tables = {"facts": np.array(json.dumps(facts))}
    for side in SIDES:
        tables |= _to_tables(side, getattr(task, side))
    write_tables(path, tables)


def read_task(path: Path) -> tuple[GraphTask, dict[str, str]] | None:
    """The task of a file and the versions that made it; None where there is no file or a damaged one."""
    tables = read_tables(path)
    if tables is None:
        return None
    facts = json.loads(str(tables["facts"]))
    train, valid, test = (_from_tables(side, tables) for side in SIDES)
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in facts["fields"].items()}
    target = TargetSpec.from_json(facts["target"])
    task = GraphTask(facts["name"], train, valid, test, target, notes=tuple(facts["notes"]), **fields)
    return task, facts["made_with"]


def _to_tables(side: str, graphs: Sequence[Any]) -> dict[str, NDArray[Any]]:
    tables: dict[str, NDArray[Any]] = {f"{side}.vertices": _small(np.array([g.num_nodes for g in graphs], np.int64))}
    if not graphs:
        return tables
    edges = [graph.edge_index.numpy() for graph in graphs]
    tables[f"{side}.edges"] = _small(np.array([edge.shape[1] for edge in edges], np.int64))
    source, target = np.concatenate(edges, axis=1)
    # neighbouring edges start at neighbouring vertices, so differences are small and repeat
    tables[f"{side}.source"] = _small(np.diff(source, prepend=0))
    tables[f"{side}.span"] = _small(target - source)
    for name in ("x", "edge_attr", "y"):
        rows = [graph.get(name) for graph in graphs]
        if rows[0] is None:
            continue
        joined = torch.cat(rows).numpy()
        tables[f"{side}.{name}"] = joined if joined.dtype.kind == "f" else _small(joined)
        tables[f"{side}.{name}.rows"] = _small(np.array([len(row) for row in rows], np.int64))
    return tables


def _from_tables(side: str, tables: Mapping[str, NDArray[Any]]) -> tuple[Any, ...]:
    from torch_geometric.data import Data

    vertices = tables[f"{side}.vertices"].tolist()
    if not vertices:
        return ()
    source = tables[f"{side}.source"].astype(np.int64).cumsum()
    edges = torch.from_numpy(np.stack([source, source + tables[f"{side}.span"]]))
    parts = {"edge_index": torch.split(edges, tables[f"{side}.edges"].tolist(), dim=1)}
    for name in ("x", "edge_attr", "y"):
        if f"{side}.{name}" in tables:
            values = tables[f"{side}.{name}"]
            wide = values if values.dtype.kind == "f" else values.astype(np.int64)
            parts[name] = torch.split(torch.from_numpy(wide), tables[f"{side}.{name}.rows"].tolist())
    out = []
    for place, size in enumerate(vertices):
        graph = Data(**{name: rows[place].clone() for name, rows in parts.items()})
        if "x" not in parts:
            graph.num_nodes = size
        out.append(graph)
    return tuple(out)


def _small(values: NDArray[Any]) -> NDArray[Any]:
    """The same whole numbers in the narrowest type that holds the smallest and the largest."""
    if not values.size:
        return values.astype(np.int8)
    return values.astype(np.promote_types(np.min_scalar_type(values.min()), np.min_scalar_type(values.max())))


def _versions(name: str) -> dict[str, str]:
    """Versions of the packages that make a task; "" for one that is not installed."""
    found = {}
    for package in MAKERS[name]:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = ""
    return found


@functools.cache
def _code_version(name: str) -> str:
    """A digest of what turns the packages' contents into this task's graphs."""
    whole = [Path(str(module.__file__)).read_text(encoding="utf-8") for module in (molecules, peptides)]
    parts = [inspect.getsource(part) for part in (tasks.TASKS[name], tasks.molecule_graph, TargetSpec.fitted)]
    return hashlib.sha256("\0".join([str(FORMAT), *whole, *parts]).encode()).hexdigest()[:16]
