"""The user's own graphs from a PyTorch Geometric ``.pt`` file, and what every graph must satisfy.

The file is read with ``weights_only=True`` and an allow-list of PyG's own data classes, so that a hostile file cannot
run code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from heliograph.errors import BadInput, MissingExtra

__all__ = ["check_graph", "load_graphs"]


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


def check_graph(where: str, graph: Any, *, need_target: bool = True) -> None:
    """Refuses a graph that no network can use, with the numbers.

    Args:
        where: file and graph, for the message.
        graph: a ``Data``.
        need_target: whether ``y`` must be there.

    Raises:
        BadInput: what is wrong.
    """
    size = graph.num_nodes
    if size is None or size < 1 or graph.edge_index is None:
        raise BadInput(f"{where}: has no vertices or no edge_index")
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
