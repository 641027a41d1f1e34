r"""MeshGraphNet, the message-passing reference: edges and vertices have states, renewed in turn (arXiv:2010.03409).

.. math:: e_{uv} \leftarrow e_{uv} + \mathrm{MLP}_e([e_{uv}, x_v, x_u]), \qquad
          x_v \leftarrow x_v + \mathrm{MLP}_v([x_v, \textstyle\sum_{u \to v} e_{uv}])

Every MLP but the decoder ends in a layer norm. Published size: 15 rounds of 128 channels, two hidden layers an MLP.

Shapes: N vertices, E edges, D dimensions of space, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from heliograph.errors import BadInput
from heliograph.graphs.core.aggregate import segment_sum
from heliograph.graphs.core.support import Support
from heliograph.graphs.mesh_transformer.model import mesh_mlp

__all__ = ["MeshGraphNet", "MeshGraphNetConfig", "edge_geometry"]


@dataclass(frozen=True)
class MeshGraphNetConfig:
    """All arguments of a :class:`MeshGraphNet`; JSON-ready."""

    in_dim: int
    out_dim: int
    hidden: int = 128
    layers: int = 15
    dimensions: int = 2
    mlp_layers: int = 3


class MeshGraphNet(nn.Module):
    """Message passing with edge states on a mesh.

    Args:
        in_dim, out_dim: channels of a vertex, in and out.
        hidden, layers: C and the number of rounds.
        dimensions: D; an edge's input is the relative position of its ends and its length, D + 1 channels.
        mlp_layers: linear layers of each MLP.

    Shapes:
        ``model(x, edge_index, pos)`` takes x [N, in_dim], edge_index [2, E] and pos [N, D] and returns [N, out_dim];
        ``edge_attr`` [E, D + 1] replaces what is made of ``pos``. ``model(data)`` takes a ``Data`` or ``Batch``.

    Raises:
        BadInput: sizes below 1, neither ``pos`` nor ``edge_attr``, inputs that do not fit.
    """

    uses_edge_features = True

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        hidden: int = 128,
        layers: int = 15,
        dimensions: int = 2,
        mlp_layers: int = 3,
    ) -> None:
        super().__init__()
        sizes = (in_dim, out_dim, hidden, layers, dimensions)
        if min(sizes) < 1 or mlp_layers < 2:
            raise BadInput(
                f"in_dim, out_dim, hidden, layers and dimensions must be 1 or more and mlp_layers 2 or more; "
                f"got {sizes} and {mlp_layers}"
            )
        self.config = MeshGraphNetConfig(in_dim, out_dim, hidden, layers, dimensions, mlp_layers)
        self.vertex_encoder = nn.Sequential(mesh_mlp(in_dim, hidden, hidden, mlp_layers), nn.LayerNorm(hidden))
        self.edge_encoder = nn.Sequential(mesh_mlp(dimensions + 1, hidden, hidden, mlp_layers), nn.LayerNorm(hidden))
        self.rounds = nn.ModuleList(MeshRound(hidden, mlp_layers) for _ in range(layers))
        self.decoder = mesh_mlp(hidden, hidden, out_dim, mlp_layers)

    def forward(
        self,
        x: Any,
        edge_index: Tensor | None = None,
        pos: Tensor | None = None,
        batch: Tensor | None = None,
        *,
        edge_attr: Tensor | None = None,
        support: Support | None = None,
    ) -> Tensor:
        """[N, out_dim]; see the class. ``batch`` is not needed; ``support`` replaces ``edge_index``."""
        del batch
        if not isinstance(x, Tensor):
            return self.from_data(x)
        if x.dim() != 2 or x.shape[1] != self.config.in_dim:
            raise BadInput(f"x must be [N, {self.config.in_dim}]; got {list(x.shape)}")
        if support is not None:
            edge_index = torch.stack([support.source, support.target])
        elif edge_index is None or edge_index.dim() != 2 or edge_index.shape[0] != 2:
            raise BadInput("give edge_index [2, E], or a support")
        elif edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < len(x):
            raise BadInput(f"edge_index names vertices outside 0 to {len(x) - 1}")
        wanted = self.config.dimensions
        if edge_attr is None:
            if pos is None or pos.shape != (len(x), wanted):
                found = "none" if pos is None else str(list(pos.shape))
                raise BadInput(f"edges are described by pos [{len(x)}, {wanted}] or by edge_attr; got {found}")
            edge_attr = edge_geometry(pos, edge_index)
        if edge_attr.shape != (edge_index.shape[1], wanted + 1):
            raise BadInput(f"edge_attr must be [{edge_index.shape[1]}, {wanted + 1}]; got {list(edge_attr.shape)}")
        state, edge = self.vertex_encoder(x), self.edge_encoder(edge_attr)
        for one in self.rounds:
            state, edge = one(state, edge, edge_index)
        out: Tensor = self.decoder(state)
        return out

    def from_data(self, data: Any) -> Tensor:
        """The same for a ``Data`` or ``Batch`` with ``x``, ``edge_index`` and ``pos``."""
        return self(data.x, data.edge_index, data.get("pos"), data.get("batch"))  # type: ignore[no-any-return]

    def describe(self) -> dict[str, Any]:
        """The arguments as JSON-ready data, which :meth:`from_description` takes."""
        return asdict(self.config)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> MeshGraphNet:
        """The untrained model of a description."""
        return cls(**description)


class MeshRound(nn.Module):
    """One round: edges from their ends, then vertices from the edges that arrive.

    The first linear layer of an edge's MLP is applied to the three parts of its input one by one, to the ends before
    they are copied to the edges: the same numbers for a third of the multiplications. Sums on a GPU are the fastest
    that PyTorch has; ``torch.use_deterministic_algorithms(True)`` makes them repeatable.
    """

    def __init__(self, dim: int, mlp_layers: int) -> None:
        super().__init__()
        self.from_edge = nn.Linear(dim, dim)
        self.from_ends = nn.Linear(dim, 2 * dim, bias=False)
        self.edge_rest = nn.Sequential(nn.ReLU(), mesh_mlp(dim, dim, dim, mlp_layers - 1), nn.LayerNorm(dim))
        self.vertex = nn.Sequential(mesh_mlp(2 * dim, dim, dim, mlp_layers), nn.LayerNorm(dim))
        # as one layer of 3 C inputs would begin
        for layer in (self.from_edge, self.from_ends):
            nn.init.uniform_(layer.weight, -((3 * dim) ** -0.5), (3 * dim) ** -0.5)
        nn.init.uniform_(self.from_edge.bias, -((3 * dim) ** -0.5), (3 * dim) ** -0.5)

    def forward(self, x: Tensor, edge: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        """x [N, C]; edge [E, C]. Returns both, renewed."""
        source, target = edge_index
        arrives, leaves = self.from_ends(x).chunk(2, dim=-1)
        ends = arrives.index_select(0, target) + leaves.index_select(0, source)
        edge = edge + self.edge_rest(self.from_edge(edge) + ends)
        heard = segment_sum(edge, target, len(x), "indexed")
        return x + self.vertex(torch.cat([x, heard], dim=-1)), edge


def edge_geometry(pos: Tensor, edge_index: Tensor) -> Tensor:
    """Position of the source as seen from the target, and the distance, [E, D + 1]."""
    apart = pos[edge_index[0]] - pos[edge_index[1]]
    return torch.cat([apart, torch.linalg.vector_norm(apart, dim=-1, keepdim=True)], dim=-1)
