"""What a new graph network is measured against: GPS, a graph transformer of PyTorch Geometric's layers, and no graph.

Both take the same stems, encodings and heads as the systems, so that a comparison differs in the layers alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from torch import Tensor, nn

from heliograph.errors import BadInput, MissingExtra
from heliograph.graphs.core.blocks import EdgeStem, GraphModel, NodeStem, halving_head, mlp_head
from heliograph.graphs.core.encodings import RWSE

__all__ = ["GPS", "VertexMLP"]

Pool = Literal["sum", "mean", "max"] | None
Types = int | Sequence[int] | None


class GPS(GraphModel):
    """The graph transformer GPS (arXiv:2205.12454) by PyG's ``GPSConv``: GINE beside attention over the whole graph.

    Four attention heads, or two where four do not divide the width.

    Args:
        out_dim: numbers an answer has.
        node_types, in_dim, edge_types, edge_dim: what the graphs hold, as in :class:`~heliograph.graphs.GNNPlus`.
        layers, hidden: depth and channels; ``hidden`` is even.
        dropout: of both parts.
        pe: a walk encoding, or None.
        pool: "sum", "mean" or "max" for an answer a graph; None for an answer a vertex.
    """

    def __init__(
        self,
        out_dim: int,
        *,
        node_types: Types = None,
        in_dim: int = 0,
        edge_types: Types = None,
        edge_dim: int = 0,
        layers: int = 4,
        hidden: int = 64,
        dropout: float = 0.0,
        pe: RWSE | None = None,
        pool: Pool = "mean",
    ) -> None:
        if hidden % 2:
            raise BadInput(f"GPS needs an even number of channels for its heads; got {hidden}")
        try:
            from torch_geometric.nn import GINEConv, GPSConv
        except ImportError as error:
            raise MissingExtra("torch_geometric", "graphs") from error
        heads = 4 if hidden % 4 == 0 else 2

        def local() -> nn.Module:
            conv: nn.Module = GINEConv(nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden)))
            return conv

        super().__init__(
            NodeStem(hidden, node_types, in_dim, pe),
            [_GPSLayer(GPSConv(hidden, local(), heads, dropout)) for _ in range(layers)],
            halving_head(hidden, out_dim) if pool is not None else mlp_head(hidden, out_dim),
            EdgeStem(hidden, edge_types, edge_dim),
            pool,
        )
        self.arguments = {
            "out_dim": out_dim,
            "node_types": node_types,
            "in_dim": in_dim,
            "edge_types": edge_types,
            "edge_dim": edge_dim,
            "layers": layers,
            "hidden": hidden,
            "dropout": dropout,
            "pe": pe,
            "pool": pool,
        }

    def encode(self, data: Any) -> Tensor:
        """The vertex states after the last block, [N, C]; attention needs to know which graph a vertex is of."""
        x: Tensor = self.stem(data)
        edge = self.edge_stem(data) if self.edge_stem is not None else None
        batch = data.get("batch")
        batch = data.edge_index.new_zeros(len(x)) if batch is None else batch
        for block in self.blocks:
            x = block(x, data.edge_index, batch, edge)
        return x

    def describe(self) -> dict[str, Any]:
        """The arguments as JSON-ready data, which :meth:`from_description` takes."""
        return _as_json(self.arguments)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> GPS:
        """The untrained model of a description."""
        return cls(**_from_json(description))


class _GPSLayer(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, edge: Tensor | None) -> Tensor:
        out: Tensor = self.layer(x, edge_index, batch, edge_attr=edge)
        return out


class VertexMLP(GraphModel):
    """The same answer without the graph: each vertex by itself, then the pool. What edges add shows against this.

    Args:
        out_dim, node_types, in_dim, hidden, layers, dropout, pool: as in :class:`GPS`; edge inputs are not used.
        pe: a walk encoding would bring the graph back in, so there is none.
    """

    def __init__(
        self,
        out_dim: int,
        *,
        node_types: Types = None,
        in_dim: int = 0,
        layers: int = 4,
        hidden: int = 64,
        dropout: float = 0.0,
        pool: Pool = "mean",
    ) -> None:
        super().__init__(
            NodeStem(hidden, node_types, in_dim),
            [_Alone(hidden, dropout) for _ in range(layers)],
            halving_head(hidden, out_dim) if pool is not None else mlp_head(hidden, out_dim),
            None,
            pool,
        )
        self.arguments = {
            "out_dim": out_dim,
            "node_types": node_types,
            "in_dim": in_dim,
            "layers": layers,
            "hidden": hidden,
            "dropout": dropout,
            "pool": pool,
        }

    def describe(self) -> dict[str, Any]:
        """The arguments as JSON-ready data, which :meth:`from_description` takes."""
        return _as_json(self.arguments)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> VertexMLP:
        """The untrained model of a description."""
        return cls(**_from_json(description))


class _Alone(nn.Module):
    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim)
        )

    def forward(self, x: Tensor, _: Tensor, edge: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return x + self.mlp(x), edge


def _as_json(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(value) if isinstance(value, RWSE) else value for name, value in arguments.items()}


def _from_json(description: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(description)
    if options.get("pe") is not None:
        options["pe"] = RWSE(**options["pe"])
    return options
