"""FloydNet on PyTorch Geometric graphs: one state for each ordered pair of vertices, answers a graph or a vertex.

Shapes: B graphs, N vertices of all graphs, M of the largest, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heliograph.errors import BadInput, MemoryEstimateError
from heliograph.graphs.core.blocks import EdgeStem, NodeStem, halving_head, mlp_head
from heliograph.graphs.core.states import pack
from heliograph.graphs.floydnet.algorithms import FloydReasoner

__all__ = ["LARGEST_GRAPH", "FloydGraphs"]

LARGEST_GRAPH = 256


class FloydGraphs(nn.Module):
    """FloydNet (arXiv:2601.19094) behind the same inputs and heads as the other models.

    Args:
        out_dim: numbers an answer has.
        node_types, in_dim, edge_types, edge_dim: what the graphs hold, as in :class:`~heliograph.graphs.GNNPlus`.
        layers, hidden: blocks, and channels of a pair; ``hidden`` is a multiple of the heads.
        heads: attention heads; 4, or 2 or 1 where those divide ``hidden``, if None.
        pool: anything but None for an answer a graph (the sum over all pairs), None for an answer a vertex.

    Raises:
        MemoryEstimateError: in ``forward``, a graph of more than ``LARGEST_GRAPH`` vertices.
    """

    def __init__(
        self,
        out_dim: int,
        *,
        node_types: int | Sequence[int] | None = None,
        in_dim: int = 0,
        edge_types: int | Sequence[int] | None = None,
        edge_dim: int = 0,
        layers: int = 6,
        hidden: int = 32,
        heads: int | None = None,
        pool: Literal["sum", "mean", "max"] | None = "mean",
    ) -> None:
        super().__init__()
        if heads is None:
            heads = next(count for count in (4, 2, 1) if hidden % count == 0)
        self.arguments = {
            "out_dim": out_dim,
            "node_types": node_types,
            "in_dim": in_dim,
            "edge_types": edge_types,
            "edge_dim": edge_dim,
            "layers": layers,
            "hidden": hidden,
            "heads": heads,
            "pool": pool,
        }
        self.stem, self.edge_stem = NodeStem(hidden, node_types, in_dim), EdgeStem(hidden, edge_types, edge_dim)
        self.network = FloydReasoner(hidden, 1 + hidden, 0, dim=hidden, heads=heads, depth=layers)
        self.norm = nn.LayerNorm(hidden)  # sums over pairs grow with the graph
        self.head = halving_head(hidden, out_dim) if pool is not None else mlp_head(hidden, out_dim)
        self.pool = pool

    def forward(self, data: Any) -> Tensor:
        """[B, out_dim] or [N, out_dim] for a ``Data`` or ``Batch``; parallel edges add up."""
        x_NC = self.stem(data)
        batch = data.get("batch")
        batch = data.edge_index.new_zeros(len(x_NC)) if batch is None else batch
        graphs = int(getattr(data, "num_graphs", 1))
        x_BMC, mask_BM = pack(x_NC, batch, graphs)
        size = mask_BM.shape[1]
        if size > LARGEST_GRAPH:
            raise MemoryEstimateError(
                f"a graph has {size} vertices; FloydNet holds a state for every pair and takes at most "
                f"{LARGEST_GRAPH}: use gnn_plus, gps or graph_mamba"
            )
        sizes = mask_BM.sum(1)
        place = torch.arange(len(batch), device=batch.device) - (sizes.cumsum(0) - sizes)[batch]
        source, target = data.edge_index
        edge_EC = self.edge_stem(data)
        rows = torch.cat([edge_EC.new_ones(len(edge_EC), 1), edge_EC], dim=1)
        at = (batch[source], place[source], place[target])
        edge_BMMC = rows.new_zeros((graphs, size, size, rows.shape[1])).index_put(at, rows, accumulate=True)
        states = self.network(x_BMC, edge_BMMC, x_BMC.new_zeros((graphs, 0)), mask_BM)
        out: Tensor = self.head(self.norm(states.graph if self.pool is not None else states.vertex[mask_BM]))
        return out

    def describe(self) -> dict[str, Any]:
        """The arguments as JSON-ready data, which :meth:`from_description` takes."""
        return dict(self.arguments)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> FloydGraphs:
        """The untrained model of a description.

        Raises:
            BadInput: an argument that is none.
        """
        try:
            return cls(**description)
        except TypeError as error:
            raise BadInput(f"no description of FloydNet: {error}") from None
