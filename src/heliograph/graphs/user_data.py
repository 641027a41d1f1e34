"""The user's own graphs as a supervised task: a PyTorch Geometric ``.pt`` file of graphs with targets.

The file is read with ``weights_only=True`` and an allow-list of PyG's own data classes, so that a hostile file cannot
run code. Shapes: B graphs, N vertices, V E channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from heliograph.errors import BadInput, MissingExtra
from heliograph.graphs.floydnet.algorithms import TaskBatch, TaskTarget

__all__ = ["GraphTask", "check_graph", "load_graphs", "load_task", "read_task"]

TRAIN_SHARE = 0.8
FEWEST = 10
LARGEST_DENSE = 256


@dataclass(frozen=True)
class GraphTask:
    """Graphs with targets of one kind.

    Attributes:
        graphs: PyG ``Data`` objects.
        level: whether ``y`` belongs to the graph or to its vertices.
        classes: number of classes, or 0 for numbers.
        quality: ``score`` (accuracy) or ``error`` (mean absolute error / standard deviation).
    """

    graphs: tuple[Any, ...]
    level: Literal["graph", "vertex"]
    classes: int
    quality: Literal["score", "error"]


def read_task(path: Path) -> GraphTask:
    """Reads and checks a ``.pt`` file.

    Raises:
        BadInput: unreadable, not a list of graphs, too few, without targets, with indices out of range, with values
            that are not finite, with a constant target, or too large for dense networks; the message names the graph.
        MissingExtra: PyTorch Geometric is not installed.
    """
    graphs = load_graphs(path)
    if len(graphs) < FEWEST:
        raise BadInput(f"{path} holds {len(graphs)} graphs; training and testing need at least {FEWEST}")
    for index, graph in enumerate(graphs):
        check_graph(f"{path}, graph {index}", graph, largest=LARGEST_DENSE)
    counts = {graph.y.shape[0] if graph.y.dim() else 1 for graph in graphs}
    vertex = all((g.y.shape[0] if g.y.dim() else 1) == g.num_nodes for g in graphs) and counts != {1}
    if not vertex and counts != {1}:
        raise BadInput(f"{path}: y must hold one target a graph or one a vertex; found {sorted(counts)[:5]} rows")
    values = torch.cat([graph.y.reshape(-1).float() for graph in graphs])
    if bool((values == values[0]).all()):
        raise BadInput(f"{path}: the target is {values[0].item():g} everywhere; there is nothing to learn")
    whole = not graphs[0].y.is_floating_point()
    classes = int(values.max()) + 1 if whole and values.min() >= 0 and values.max() < 100 else 0
    return GraphTask(tuple(graphs), "vertex" if vertex else "graph", classes, "score" if classes else "error")


def load_task(path: Path, batch: int, seed: int) -> tuple[list[TaskBatch], list[TaskBatch], str]:
    """A seeded split of the file's graphs as dense batches: training, test, and the name of the quality."""
    task = read_task(path)
    order = torch.randperm(len(task.graphs), generator=torch.Generator().manual_seed(seed)).tolist()
    kept = round(len(order) * TRAIN_SHARE)
    train = [task.graphs[i] for i in order[:kept]]
    test = [task.graphs[i] for i in order[kept:]]
    values = torch.cat([graph.y.reshape(-1).float() for graph in train])
    centre, scale = (0.0, 1.0) if task.classes else (float(values.mean()), float(values.std().clamp(min=1e-12)))

    def batches(part: Sequence[Any]) -> list[TaskBatch]:
        return [_dense(part[i : i + batch], task, centre, scale) for i in range(0, len(part), batch)]

    return batches(train), batches(test), task.quality


def load_graphs(path: Path) -> list[Any]:
    """The graphs of a ``.pt`` file, without running anything that it holds.

    Raises:
        BadInput: unreadable, or something else than graphs. MissingExtra: PyTorch Geometric is not installed.
    """
    try:
        from torch_geometric.data import Data
        from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
        from torch_geometric.data.storage import EdgeStorage, GlobalStorage, NodeStorage
    except ImportError:
        raise MissingExtra("torch-geometric", "graphs") from None
    allowed = [Data, DataEdgeAttr, DataTensorAttr, GlobalStorage, NodeStorage, EdgeStorage]
    try:
        with torch.serialization.safe_globals(allowed):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if "DynamicInheritance" in str(error):  # a Batch names a class made at run time, which is code to torch.load
            raise BadInput(
                f"{path} holds a Batch; save its graphs instead: torch.save(batch.to_data_list(), ...)"
            ) from None
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise BadInput(f"cannot read {path} as a list of PyTorch Geometric graphs: {reason}") from None
    found = [found] if isinstance(found, Data) else found
    if not isinstance(found, list | tuple) or not all(isinstance(graph, Data) for graph in found):
        raise BadInput(f"{path} holds {type(found).__name__}; expected a list of torch_geometric.data.Data")
    return list(found)


def check_graph(where: str, graph: Any, *, largest: int | None = None, need_target: bool = True) -> None:
    """Refuses a graph that no network can use, with the numbers.

    Args:
        where: file and graph, for the message.
        graph: a ``Data``.
        largest: most vertices, for networks on all pairs.
        need_target: whether ``y`` must be there.

    Raises:
        BadInput: what is wrong.
    """
    size = graph.num_nodes
    if size is None or size < 1 or graph.edge_index is None:
        raise BadInput(f"{where}: has no vertices or no edge_index")
    if largest is not None and size > largest:
        raise BadInput(f"{where}: {size} vertices; networks on all pairs take at most {largest}")
    edges = graph.edge_index
    shaped = edges.dim() == 2 and edges.shape[0] == 2
    if not shaped or (edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < size):
        raise BadInput(f"{where}: edge_index must be [2, E] with indices in [0, {size})")
    if need_target and graph.y is None:
        raise BadInput(f"{where}: has no target y")
    for name in ("x", "edge_attr", "y"):
        value = graph.get(name)
        if value is not None and value.is_floating_point() and not bool(value.isfinite().all()):
            raise BadInput(f"{where}: {name} holds NaN or infinity")
    if graph.x is not None and len(graph.x) != size:
        raise BadInput(f"{where}: {len(graph.x)} rows of x for {size} vertices")
    if graph.edge_attr is not None and len(graph.edge_attr) != edges.shape[1]:
        raise BadInput(f"{where}: {len(graph.edge_attr)} rows of edge_attr for {edges.shape[1]} edges")


def _dense(graphs: Sequence[Any], task: GraphTask, centre: float, scale: float) -> TaskBatch:
    size = max(graph.num_nodes for graph in graphs)
    vertex_channels = max((_columns(g.x) for g in task.graphs), default=0)
    edge_channels = max((_columns(g.edge_attr) for g in task.graphs), default=0)
    count = len(graphs)
    vertex = torch.zeros(count, size, vertex_channels)
    edge = torch.zeros(count, size, size, 1 + edge_channels)
    mask = torch.zeros(count, size, dtype=torch.bool)
    lead = (count,) if task.level == "graph" else (count, size)
    number = torch.full((*lead, 1), torch.nan)
    category = torch.full(lead, -1, dtype=torch.long)
    for row, graph in enumerate(graphs):
        n = graph.num_nodes
        mask[row, :n] = True
        if graph.x is not None:
            vertex[row, :n, : _columns(graph.x)] = _table(graph.x)
        source, target = graph.edge_index
        edge[row, source, target, 0] = 1.0
        if graph.edge_attr is not None:
            edge[row, source, target, 1 : 1 + _columns(graph.edge_attr)] = _table(graph.edge_attr)
        y = graph.y.reshape(-1)
        place = (row,) if task.level == "graph" else (row, slice(0, n))
        if task.classes:
            category[place] = y.long() if task.level == "vertex" else y.long()[0]
        else:
            scaled = ((y.float() - centre) / scale).unsqueeze(-1)
            number[place] = scaled if task.level == "vertex" else scaled[0]
    if task.classes:
        target_out = TaskTarget(f"{task.level}_category", category, task.classes)
    else:
        target_out = TaskTarget(f"{task.level}_value", number, 1)
    return TaskBatch(vertex, edge, torch.zeros(count, 0), mask, (target_out,))


def _columns(values: Tensor | None) -> int:
    return 0 if values is None else (1 if values.dim() == 1 else values.shape[1])


def _table(values: Tensor) -> Tensor:
    return values.float().unsqueeze(-1) if values.dim() == 1 else values.float()
