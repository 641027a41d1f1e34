"""The user's own graphs as a task: PyG files, edge lists with feature tables, SMILES tables, GraphML.

=================== ===============================================================================================
``*.pt``            a PyTorch Geometric ``Data``, ``Batch`` or list of them; only tensors are read, no code is run
``*.graphml``       one graph, or a folder of them (one graph a file); the target is a vertex or graph attribute
``*.csv``           with a SMILES column: one molecule a row, numbers or classes in other columns
meshes              ``*.vtu``, ``*.vtk`` or ``*.msh``, or a folder of them (one graph a file); see :mod:`mesh_inputs`
a folder            ``edges.csv`` (source, target[, graph][, weight, features]) and ``vertices.csv`` ([graph,] features,
                    targets), and for graph targets ``graphs.csv``; ``.parquet`` in place of ``.csv`` wherever it stands
=================== ===============================================================================================

Vertices are numbered from 0 within their graph, in the order of their rows. Everything is checked before work starts.
"""

from __future__ import annotations

import csv
import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data

from heliograph.data import molecules
from heliograph.errors import BadInput, MissingData
from heliograph.graphs.core.splits import murcko_scaffolds, scaffold_split
from heliograph.graphs.core.tasks import GraphTask, TargetSpec, infer_target, molecule_graph, random_split
from heliograph.graphs.mesh_inputs import MESHES, mesh_files, read_meshes
from heliograph.graphs.user_data import check_graph, load_graphs

__all__ = ["ReadGraphs", "make_task", "read_graphs"]

MOST_TYPES = 1000
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class ReadGraphs:
    """What a file held.

    Attributes:
        graphs: ``Data`` with ``y`` where targets were asked for or found.
        columns: names of the targets.
        classes: names of the classes, where they were not numbered.
        vocabulary: kinds of atom by number, for molecules.
        split: the part of each graph, where a column says so.
        scaffolds: of each molecule, where the split shall keep them apart.
        inputs, arrays: of meshes, the names of point data that vertices know and that are learned.
        notes: sentences for the user: rows left out, what was inferred.
    """

    graphs: tuple[Data, ...]
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    vocabulary: tuple[molecules.AtomKind, ...] = ()
    split: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    scaffolds: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()


def read_graphs(
    path: Path,
    target: str = "",
    *,
    split: str = "",
    vocabulary: Sequence[molecules.AtomKind] = (),
    classes: Sequence[str] = (),
    inputs: Sequence[str] | None = None,
    need_target: bool = True,
) -> ReadGraphs:
    """Reads and checks graphs.

    Args:
        path: a file or folder of the table above.
        target: name of the target column or attribute; several separated by commas. ``y`` where empty.
        split: name of the column that says ``train``, ``valid`` or ``test``; "scaffold" for SMILES tables without
            such a column keeps molecules of one Bemis-Murcko scaffold together.
        vocabulary, classes: of the training data, when reading for a model that was trained before.
        inputs: of meshes, the arrays of point data that vertices know; all but the target where None.
        need_target: False reads graphs to predict.

    Raises:
        BadInput: what is wrong, where, with the numbers, and the way out.
        MissingData: the package that reads this format is not installed.
    """
    if not path.exists():
        raise BadInput(f"{path} does not exist")
    names = tuple(name.strip() for name in target.split(",") if name.strip())
    meshes = path.suffix.lower() in MESHES
    if inputs is not None and not (meshes or path.is_dir()):
        raise BadInput(f"{path} is no mesh: --inputs names arrays of point data")
    if path.suffix == ".pt":
        found = _read_pt(path, names)
    elif path.is_dir() and _table_path(path, "edges") is not None:
        found = _read_tables(path, names, split, classes, need_target)
    elif path.suffix == ".graphml" or (path.is_dir() and any(path.glob("*.graphml"))):
        found = _read_graphml(path, names, classes, need_target)
    elif meshes or (path.is_dir() and mesh_files(path)):
        if split:
            raise BadInput(f"{path}: meshes have no column {split!r}; the split is random")
        mesh = read_meshes(path, names, inputs, need_target=need_target)
        found = ReadGraphs(mesh.graphs, mesh.columns, notes=mesh.notes, inputs=mesh.inputs, arrays=names)
    elif path.suffix in (".csv", ".parquet"):
        found = _read_smiles(path, names, split, vocabulary, classes, need_target)
    else:
        raise BadInput(
            f"{path}: cannot tell what this is; expected a .pt file, a .graphml file or folder, a .csv or .parquet "
            "table with a SMILES column, a .vtu, .vtk or .msh mesh or a folder of those, or a folder with edges.csv "
            "and vertices.csv"
        )
    for place, graph in enumerate(found.graphs):
        check_graph(f"{path}, graph {place}", graph, need_target=need_target)
    return found


def make_task(
    read: ReadGraphs, name: str, *, seed: int = 0, valid: float = 0.1, test: float = 0.1, mask_single: bool = True
) -> GraphTask:
    """Splits the graphs (as their column says, else at random) and works out what inputs and targets are.

    A single graph with a target a vertex is split by vertices: three copies, each with the others' targets unknown.

    Raises:
        BadInput: nothing to learn, classes that only testing has, or too few graphs.
    """
    graphs = list(read.graphs)
    target = replace(infer_target(graphs, name), columns=read.columns)
    notes = list(read.notes)
    if read.split:
        parts = tuple([g for g, s in zip(graphs, read.split, strict=True) if s == which] for which in SPLITS)
        if not parts[0] or not parts[2]:
            raise BadInput(
                f"{name}: the split has {len(parts[0])} training and {len(parts[2])} test rows; both need some"
            )
    elif read.scaffolds:
        dealt = scaffold_split(read.scaffolds, valid, test)
        parts = tuple([graphs[place] for place in places] for places in dealt)
        notes.append(f"{len(set(read.scaffolds))} scaffolds, dealt whole, the largest to training")
    elif len(graphs) == 1 and target.level == "vertex" and mask_single:
        parts = _split_vertices(graphs[0], target, seed, valid, test)
        notes.append("one graph: its vertices are split, and all three parts see all edges (transductive)")
    else:
        parts = random_split(graphs, seed, valid, test)
    if target.kind == "class":
        seen = set(target.targets(parts[0]).tolist())
        unseen = sorted(set(target.targets([*parts[1], *parts[2]]).tolist()) - seen - {-1})
        if unseen:
            raise BadInput(f"{name}: class {unseen[0]} has no training example; use another --seed or give a split")
    values = target.targets(parts[0])
    if target.kind == "value" and bool((values == values[0]).all()):
        raise BadInput(f"{name}: the target is constant over the training part; use another --seed or more data")
    train, held, last = (tuple(part) for part in parts)
    return GraphTask(name, train, held, last, target.fitted(train), notes=tuple(notes), **_inputs(graphs, read))


def _inputs(graphs: Sequence[Data], read: ReadGraphs) -> dict[str, Any]:
    """node_types, in_dim, edge_types and edge_dim of these graphs."""
    out: dict[str, Any] = {}
    for name, types, width in (("x", "node_types", "in_dim"), ("edge_attr", "edge_types", "edge_dim")):
        tables = [graph[name] for graph in graphs if graph.get(name) is not None]
        if not tables:
            continue
        if len(tables) != len(graphs):
            raise BadInput(f"{name} is there in {len(tables)} of {len(graphs)} graphs; give it to all or none")
        columns = {1 if table.dim() == 1 else table.shape[1] for table in tables}
        if len(columns) > 1:
            raise BadInput(f"{name} has {sorted(columns)} columns in different graphs; one number is expected")
        if tables[0].is_floating_point():
            out[width] = columns.pop()
        else:
            whole = torch.cat([table.unsqueeze(-1) if table.dim() == 1 else table for table in tables])
            if whole.numel() and int(whole.min()) < 0:
                raise BadInput(f"whole-number {name} holds {int(whole.min())}; types are numbered from 0")
            sizes = tuple(int(whole[:, c].max()) + 1 if len(whole) else 1 for c in range(whole.shape[1]))
            if max(sizes) > MOST_TYPES:
                raise BadInput(
                    f"whole-number {name} reaches {max(sizes) - 1}; up to {MOST_TYPES} types are embedded. "
                    "If these are measurements, store them as floating point"
                )
            out[types] = sizes
    if read.vocabulary:
        out["node_types"], out["edge_types"] = len(read.vocabulary) + 1, molecules.BOND_TYPES
    return out


def _split_vertices(
    graph: Data, target: TargetSpec, seed: int, valid: float, test: float
) -> tuple[list[Data], list[Data], list[Data]]:
    if target.kind == "labels" or (target.kind == "value"):
        raise BadInput("one graph with numbers at its vertices cannot be split; give several graphs, or classes")
    known = (graph.y >= 0).nonzero().reshape(-1)
    order = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))]
    n_valid, n_test = max(1, round(valid * len(order))), max(1, round(test * len(order)))
    if len(order) <= n_valid + n_test:
        raise BadInput(f"{len(order)} vertices have a class; too few to train, validate and test")
    out = []
    for chosen in (order[n_valid + n_test :], order[:n_valid], order[n_valid : n_valid + n_test]):
        copy = graph.clone()
        copy.y = torch.full_like(graph.y, -1)
        copy.y[chosen] = graph.y[chosen]
        out.append([copy])
    return out[0], out[1], out[2]


def _read_pt(path: Path, names: Sequence[str]) -> ReadGraphs:
    graphs = []
    name = names[0] if names else "y"
    if len(names) > 1:
        raise BadInput(f"a .pt file keeps its targets in one attribute; got {', '.join(names)}")
    for graph in load_graphs(path):
        if name != "y" and graph.get(name) is not None:
            graph.y = graph[name]
        graphs.append(graph)
    return ReadGraphs(tuple(graphs), (name,))


def _read_graphml(path: Path, names: Sequence[str], classes: Sequence[str], need_target: bool) -> ReadGraphs:
    """GraphML as networkx reads it: number attributes become features, the named attribute the target."""
    files = sorted(path.glob("*.graphml")) if path.is_dir() else [path]
    name = names[0] if names else "y"
    parsed: list[Any] = []
    for file in files:
        try:
            parsed.append(nx.read_graphml(file))
        except Exception as error:
            raise BadInput(f"cannot read {file} as GraphML: {str(error).splitlines()[0][:200]}") from None
    at_vertex = [v.get(name) for g in parsed for v in g.nodes.values()]
    at_graph = [g.graph.get(name) for g in parsed]
    raw = at_vertex if any(value is not None for value in at_vertex) else at_graph
    if need_target and any(value is None for value in raw):
        missing = sum(value is None for value in raw)
        raise BadInput(f"{path}: {missing} of {len(raw)} have no attribute {name!r}; name the target with --target")
    y, labels = _targets({name: [str(v) for v in raw]}, classes, str(path)) if need_target else (None, ())
    graphs, start = [], 0
    for number, (file, graph) in enumerate(zip(files, parsed, strict=True)):
        place = {vertex: i for i, vertex in enumerate(graph)}
        both = [(place[u], place[v]) for u, v in graph.edges()]
        weights = _attributes([d for *_, d in graph.edges(data=True)], (), f"{file}: edges")
        if not graph.is_directed():
            both += [(v, u) for u, v in both]
            weights = None if weights is None else torch.cat([weights, weights])
        data = Data(
            x=_attributes(list(graph.nodes.values()), (name,), f"{file}: vertices"),
            edge_index=torch.tensor(both, dtype=torch.long).reshape(-1, 2).t().contiguous(),
            edge_attr=weights,
            num_nodes=len(graph),
        )
        if y is not None:
            data.y = y[start : start + len(graph)] if raw is at_vertex else y[number : number + 1]
        start += len(graph)
        graphs.append(data)
    return ReadGraphs(tuple(graphs), (name,), labels)


def _attributes(rows: Sequence[Mapping[str, Any]], without: Sequence[str], where: str) -> Tensor | None:
    names = sorted({n for row in rows for n, v in row.items() if isinstance(v, int | float) and n not in without})
    if not names or not rows:
        return None
    for number, row in enumerate(rows):
        for name in names:
            if not isinstance(row.get(name), int | float):
                raise BadInput(f"{where}: row {number} has no number {name!r}, which others have")
    return torch.tensor([[float(row[name]) for name in names] for row in rows])


def _read_smiles(
    path: Path,
    names: Sequence[str],
    split: str,
    vocabulary: Sequence[molecules.AtomKind],
    classes: Sequence[str],
    need_target: bool,
) -> ReadGraphs:
    table = _read_table(path)
    column = next((name for name in table if name.lower() == "smiles"), None)
    if column is None:
        raise BadInput(
            f"{path} has no column 'smiles' among {', '.join(table)}; for a graph, give the folder with edges.csv"
        )
    if need_target and not names:
        others = [name for name in table if name not in (column, split)]
        if len(others) != 1:
            raise BadInput(
                f"{path}: name the target column with --target; there are {', '.join(others) or 'no others'}"
            )
        names = others
    found, note = molecules.read_smiles(table[column])
    kept = [place for place, mol in enumerate(found) if mol is not None]
    mols = [mol for mol in found if mol is not None]
    if not mols:
        raise BadInput(f"{path}: none of {len(found)} SMILES can be read; the first is {table[column][0]!r}")
    kinds = tuple(vocabulary) or molecules.atom_kinds(mols)
    graphs = [molecule_graph(mol, kinds) for mol in mols]
    labels: tuple[str, ...] = ()
    if need_target:
        columns = _select(table, names, path)
        y, labels = _targets({n: [v[place] for place in kept] for n, v in columns.items()}, classes, str(path))
        for graph, row in zip(graphs, y, strict=True):
            graph.y = row.unsqueeze(0)
    notes = (note,) if note else ()
    if split == "scaffold" and split not in table:
        scaffolds = tuple(murcko_scaffolds([mol.smiles for mol in mols]))
        return ReadGraphs(tuple(graphs), tuple(names), labels, kinds, (), notes, scaffolds)
    parts = _split_column(table, split, path, kept)
    return ReadGraphs(tuple(graphs), tuple(names), labels, kinds, parts, notes)


def _read_tables(
    folder: Path, names: Sequence[str], split: str, classes: Sequence[str], need_target: bool
) -> ReadGraphs:
    edges_path, vertices_path, graphs_path = (_table_path(folder, n) for n in ("edges", "vertices", "graphs"))
    assert edges_path is not None
    if vertices_path is None:
        raise BadInput(f"{folder} has edges but no vertices.csv; one row a vertex is needed, with features or empty")
    edges, vertices = _read_table(edges_path), _read_table(vertices_path)
    graph_table = _read_table(graphs_path) if graphs_path is not None else {}
    for needed in ("source", "target"):
        if needed not in edges:
            raise BadInput(f"{edges_path} has no column {needed!r} among {', '.join(edges)}")
    vertex_graph = _whole(vertices["graph"], vertices_path, "graph") if "graph" in vertices else None
    count = len(next(iter(vertices.values()))) if vertices else 0
    owner = np.zeros(count, dtype=np.int64) if vertex_graph is None else vertex_graph
    if (np.diff(owner) < 0).any():
        raise BadInput(f"{vertices_path}: rows must be sorted by graph")
    numbers = np.unique(owner)
    edge_owner = (
        _whole(edges["graph"], edges_path, "graph") if "graph" in edges else np.zeros(len(edges["source"]), np.int64)
    )
    stray = sorted(set(edge_owner.tolist()) - set(numbers.tolist()))
    if stray:
        raise BadInput(f"{edges_path} names graph {stray[0]}, of which {vertices_path.name} has no vertex")
    asked = list(names) or ["y"]
    where, targets = (graphs_path, graph_table) if any(n in graph_table for n in asked) else (vertices_path, vertices)
    x = _features(vertices, {"graph", "id", split, *asked}, vertices_path)
    edge_attr = _features(edges, {"graph", "source", "target", "weight"}, edges_path)
    weight = _numbers(edges["weight"], edges_path, "weight") if "weight" in edges else None
    labels: tuple[str, ...] = ()
    y = None
    if need_target:
        assert where is not None
        columns = _select(targets, asked, where)
        y, labels = _targets(columns, classes, str(where))
        expected = len(numbers) if where == graphs_path else count
        if len(y) != expected:
            raise BadInput(
                f"{where} has {len(y)} rows for {expected} {'graphs' if where == graphs_path else 'vertices'}"
            )
    ends = np.stack([_whole(edges[n], edges_path, n) for n in ("source", "target")])
    graphs = []
    for place, number in enumerate(numbers):
        mine, inside = owner == number, edge_owner == number
        size = int(mine.sum())
        own = ends[:, inside]
        if own.size and not 0 <= own.min() <= own.max() < size:
            row = int(np.flatnonzero(inside)[((own < 0) | (own >= size)).any(0)][0])
            wrong = own.max() if own.max() >= size else own.min()
            raise BadInput(
                f"{edges_path}, row {row}: vertex {wrong} of graph {number}, which has {size} vertices numbered from 0"
            )
        data = Data(
            x=None if x is None else x[torch.from_numpy(mine)],
            edge_index=torch.from_numpy(own.copy()),
            edge_attr=None if edge_attr is None else edge_attr[torch.from_numpy(inside)],
            num_nodes=size,
        )
        if weight is not None:
            data.edge_weight = torch.from_numpy(weight[inside]).float()
        if y is not None:
            data.y = y[place : place + 1] if where == graphs_path else y[torch.from_numpy(mine)]
        graphs.append(data)
    parts = _split_column(graph_table, split, folder, range(len(numbers)))
    return ReadGraphs(tuple(graphs), tuple(asked), labels, (), parts)


def _table_path(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / f"{name}.csv", folder / f"{name}.parquet") if p.is_file()), None)


def _read_table(path: Path) -> dict[str, list[str]]:
    if path.suffix == ".parquet":
        try:
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise MissingData("pyarrow", "pip install pyarrow") from error
        try:
            columns = parquet.read_table(path).to_pydict()
        except Exception as error:
            raise BadInput(f"cannot read {path} as Parquet: {str(error).splitlines()[0][:200]}") from None
        return {name: ["" if v is None else str(v) for v in values] for name, values in columns.items()}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"cannot read {path} as CSV: {error}") from None
    if not rows:
        raise BadInput(f"{path} is empty; a first line with column names is expected")
    head = [name.strip() for name in rows[0]]
    body = [row for row in rows[1:] if row]
    for number, row in enumerate(body, start=2):
        if len(row) != len(head):
            raise BadInput(f"{path}, line {number}: {len(row)} fields, but the first line names {len(head)} columns")
    return {name: [row[place].strip() for row in body] for place, name in enumerate(head)}


def _select(table: Mapping[str, list[str]], names: Sequence[str], path: Path) -> dict[str, list[str]]:
    for name in names:
        if name not in table:
            raise BadInput(
                f"{path} has no column {name!r} among {', '.join(table) or 'none'}; name the target with --target"
            )
    return {name: table[name] for name in names}


def _split_column(table: Mapping[str, list[str]], split: str, path: Path, kept: Sequence[int]) -> tuple[str, ...]:
    if not split:
        return ()
    if split not in table:
        raise BadInput(f"{path} has no column {split!r} for the split among {', '.join(table) or 'none'}")
    parts = [table[split][place] for place in kept]
    wrong = next((part for part in parts if part not in SPLITS), None)
    if wrong is not None:
        raise BadInput(f"{path}: the split column holds {wrong!r}; expected train, valid or test")
    return tuple(parts)


def _targets(columns: Mapping[str, list[str]], classes: Sequence[str], where: str) -> tuple[Tensor, tuple[str, ...]]:
    """Targets as whole numbers (classes, [rows]) or floating point ([rows, columns]), and the names of classes."""
    if classes or (len(columns) == 1 and not all(_is_number(v) for v in next(iter(columns.values())))):
        values = next(iter(columns.values()))
        blank = next((row for row, value in enumerate(values) if not value), None)
        if blank is not None:
            raise BadInput(f"{where}: row {blank} has no target; leave it out or fill it in")
        names = tuple(classes) or tuple(sorted(set(values)))
        unknown = next((v for v in values if v not in names), None)
        if unknown is not None:
            raise BadInput(f"{where}: class {unknown!r} was not there in training ({', '.join(names[:8])})")
        if len(names) > 100:
            raise BadInput(f"{where}: the target has {len(names)} different texts; numbers or at most 100 classes work")
        return torch.tensor([names.index(v) for v in values]), names
    table = np.stack([_numbers(values, where, name) for name, values in columns.items()], axis=1)
    whole = bool((table == np.round(table)).all()) and not any(
        "." in v or "e" in v.lower() for c in columns.values() for v in c
    )
    if whole and table.shape[1] == 1 and table.min(initial=0) >= 0 and len(np.unique(table)) <= 20:
        return torch.from_numpy(table[:, 0].astype(np.int64)), ()
    return torch.from_numpy(table).float(), ()


def _features(table: Mapping[str, list[str]], without: set[str], path: Path) -> Tensor | None:
    columns = [_numbers(values, path, name) for name, values in table.items() if name not in without]
    return torch.from_numpy(np.stack(columns, axis=1)).float() if columns else None


def _numbers(values: Sequence[str], path: Path | str, name: str) -> NDArray[np.float64]:
    out = np.empty(len(values))
    for row, value in enumerate(values):
        if not _is_number(value):
            raise BadInput(f"{path}: column {name!r}, row {row} holds {value!r}, not a number")
        out[row] = float(value)
        if not math.isfinite(out[row]):
            raise BadInput(f"{path}: column {name!r}, row {row} holds {value}; leave the row out or fill it in")
    return out


def _whole(values: Sequence[str], path: Path, name: str) -> NDArray[np.int64]:
    numbers = _numbers(values, path, name)
    if (numbers != np.round(numbers)).any():
        raise BadInput(
            f"{path}: column {name!r} must hold whole numbers; got {numbers[numbers != np.round(numbers)][0]:g}"
        )
    return numbers.astype(np.int64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
