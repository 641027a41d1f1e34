"""From a user's graphs (networkx, adjacency arrays, ragged PyG batches) to FloydNet's dense, padded batches.

Shapes: B graphs, N vertices after padding, F features of an edge, V features of a vertex.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from heliograph.errors import BadInput

__all__ = ["DenseBatch", "batch_graphs", "batch_pyg"]


@dataclass(frozen=True)
class DenseBatch:
    """Graphs padded to one size, directed as given.

    Attributes:
        adj: [B, N, N] long, 1 where an edge i -> k is, self-loops included.
        mask: [B, N] bool, True on real vertices, which come first.
        edge_attr: [B, N, N, F] long, 0 where no edge is; None without edge features.
        node_attr: [B, N, V] long; None without vertex features.
    """

    adj: Tensor
    mask: Tensor
    edge_attr: Tensor | None = None
    node_attr: Tensor | None = None

    def to(self, device: torch.device | str) -> DenseBatch:
        """The same batch on another device."""
        moved = (None if x is None else x.to(device) for x in (self.adj, self.mask, self.edge_attr, self.node_attr))
        return DenseBatch(*moved)  # type: ignore[arg-type]


def batch_graphs(
    graphs: Sequence[nx.Graph | np.ndarray | Tensor],
    edge_feature: str | None = None,
    node_feature: str | None = None,
) -> DenseBatch:
    """Pads networkx graphs or N x N adjacency arrays (0/1) to one dense batch.

    Args:
        graphs: networkx graphs (directed ones stay directed; vertices in the graph's own order) or square arrays.
        edge_feature, node_feature: names of integer attributes of networkx edges and vertices.

    Raises:
        BadInput: no graphs, a non-square array, a missing attribute, parallel edges that disagree.
    """
    if not graphs:
        raise BadInput("batch_graphs needs at least one graph; got none")
    size = max(1, max(len(g) for g in graphs))
    adj = torch.zeros(len(graphs), size, size, dtype=torch.long)
    mask = torch.zeros(len(graphs), size, dtype=torch.bool)
    edge_attr = torch.zeros(len(graphs), size, size, 1, dtype=torch.long) if edge_feature else None
    node_attr = torch.zeros(len(graphs), size, 1, dtype=torch.long) if node_feature else None
    for number, graph in enumerate(graphs):
        count = len(graph)
        mask[number, :count] = True
        if not isinstance(graph, nx.Graph):
            array = torch.as_tensor(np.asarray(graph))
            if array.dim() != 2 or array.shape[0] != array.shape[1]:
                raise BadInput(f"graph {number}: an adjacency array must be square; got shape {tuple(array.shape)}")
            adj[number, :count, :count] = array.long()
            continue
        place = {vertex: position for position, vertex in enumerate(graph)}
        for tail, head, data in graph.edges(data=True):
            ends = [(place[tail], place[head])]
            if not graph.is_directed():
                ends.append((place[head], place[tail]))
            for i, k in ends:
                if edge_attr is not None:
                    value = _attribute(data, edge_feature, f"graph {number}, edge {tail}-{head}")
                    _refuse_conflict(adj[number, i, k], edge_attr[number, i, k, 0], value, number, i, k)
                    edge_attr[number, i, k, 0] = value
                adj[number, i, k] = 1
        if node_attr is not None:
            for vertex, data in graph.nodes(data=True):
                node_attr[number, place[vertex], 0] = _attribute(data, node_feature, f"graph {number}, vertex {vertex}")
    return DenseBatch(adj, mask, edge_attr, node_attr)


def batch_pyg(batch: Any) -> DenseBatch:
    """Pads a PyG ``Data`` or ``Batch``: ``edge_index``, integer ``edge_attr`` [E] or [E, F] and ``x`` [n] or [n, V].

    Duplicate edges are merged when their attributes agree and refused when they do not. Floating ``x`` or ``edge_attr``
    are refused: FloydNet looks features up in tables.
    """
    edge_index = batch.edge_index
    device = edge_index.device
    vertex_graph = getattr(batch, "batch", None)
    if vertex_graph is None:
        vertex_graph = torch.zeros(batch.num_nodes, dtype=torch.long, device=device)
    graphs = int(getattr(batch, "num_graphs", 0) or (int(vertex_graph.max()) + 1 if len(vertex_graph) else 1))
    counts = torch.bincount(vertex_graph, minlength=graphs)
    size = max(1, int(counts.max()))
    place = torch.arange(len(vertex_graph), device=device) - (counts.cumsum(0) - counts)[vertex_graph]
    mask = torch.arange(size, device=device) < counts[:, None]

    tails, heads = edge_index
    where = (vertex_graph[tails], place[tails], place[heads])
    if bool((vertex_graph[tails] != vertex_graph[heads]).any()):
        raise BadInput("edge_index joins vertices of two different graphs of the batch")
    adj = torch.zeros(graphs, size, size, dtype=torch.long, device=device)
    adj[where] = 1
    edge_attr = node_attr = None
    if getattr(batch, "edge_attr", None) is not None:
        values = _integer_columns(batch.edge_attr, "edge_attr")
        edge_attr = torch.zeros(graphs, size, size, values.shape[1], dtype=torch.long, device=device)
        edge_attr[where] = values
        differing = (edge_attr[where] != values).any(dim=1).nonzero().flatten()
        if len(differing):
            edge = int(differing[0])
            raise BadInput(
                f"edge {int(tails[edge])} -> {int(heads[edge])} occurs more than once with different edge_attr; "
                "merge such edges (torch_geometric.utils.coalesce) first"
            )
    if getattr(batch, "x", None) is not None:
        values = _integer_columns(batch.x, "x")
        node_attr = torch.zeros(graphs, size, values.shape[1], dtype=torch.long, device=device)
        node_attr[vertex_graph, place] = values
    return DenseBatch(adj, mask, edge_attr, node_attr)


def _integer_columns(values: Tensor, name: str) -> Tensor:
    if values.is_floating_point():
        raise BadInput(f"{name} must hold integers to look up in an embedding; got {values.dtype}: quantise it first")
    return values.long().reshape(len(values), -1)


def _attribute(data: dict[str, Any], name: str | None, where: str) -> int:
    if name not in data:
        raise BadInput(f"{where} has no attribute {name!r}; it has {sorted(data)}")
    value = data[name]
    if int(value) != value:
        raise BadInput(f"{where}: attribute {name!r} must be an integer; got {value!r}")
    return int(value)


def _refuse_conflict(present: Tensor, known: Tensor, value: int, number: int, i: int, k: int) -> None:
    if int(present) and int(known) != value:
        raise BadInput(f"graph {number}: parallel edges {i} -> {k} carry different values {int(known)} and {value}")
