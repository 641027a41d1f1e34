"""Message passing between vertices, the honest peers of richer models: dense max aggregation, and GIN with edges.

Both read the same dense inputs and give states at three levels (vertex, ordered pair, graph), so that the same heads
fit on them and on any other model of this family.

Shapes: B graphs, N vertices, C channels, V E G input channels of a vertex, an ordered pair and the whole graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heliograph.errors import BadInput, MissingExtra

__all__ = [
    "GraphIsomorphismNetwork",
    "LevelStates",
    "MaxMessagePassing",
    "count_parameters",
    "match_width",
]


@dataclass(frozen=True)
class LevelStates:
    """vertex [B, N, C], pair [B, N, N, C], graph [B, C]; what is padded holds anything finite and must be masked."""

    vertex: Tensor
    pair: Tensor
    graph: Tensor


class MaxMessagePassing(nn.Module):
    r"""The message-passing processor of CLRS-30 (arXiv:2205.15659): every vertex hears every other, maximum wins.

    .. math:: m_i = \max_k \mathrm{MLP}(W_1 z_i + W_2 z_k + W_e e_{ki} + W_g g), \qquad
              h_i = \mathrm{norm}(\mathrm{relu}(U_1 z_i + U_2 m_i)), \qquad z_i = [x_i, h_i]

    One set of weights serves all rounds, as there.

    Args:
        vertex_channels, edge_channels, graph_channels: of the inputs; 0 where there are none.
        dim: channels C.
        rounds: number of rounds; None gives each graph as many as it has vertices, which is what the algorithms of that
            benchmark need at most.
    """

    def __init__(
        self, vertex_channels: int, edge_channels: int, graph_channels: int, dim: int, rounds: int | None = None
    ) -> None:
        super().__init__()
        self.dim, self.rounds = dim, rounds
        self.encode = InputEncoder(vertex_channels, edge_channels, graph_channels, dim)
        self.message_target, self.message_source = nn.Linear(2 * dim, dim), nn.Linear(2 * dim, dim)
        self.message_edge, self.message_graph = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.message = nn.Sequential(nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.update_self, self.update_message = nn.Linear(2 * dim, dim), nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.read = LevelReadout(dim)

    def forward(self, vertex_BNV: Tensor, edge_BNNE: Tensor, graph_BG: Tensor, mask_BN: Tensor) -> LevelStates:
        """mask_BN: True on real vertices, bool."""
        vertex_BNC, edge_BNNC, graph_BC = self.encode(vertex_BNV, edge_BNNE, graph_BG)
        fixed_BNNC = self.message_edge(edge_BNNC.transpose(1, 2)) + self.message_graph(graph_BC)[:, None, None]
        silent = ~mask_BN[:, None, :, None]
        sizes_B = mask_BN.sum(dim=1)
        rounds = self.rounds if self.rounds is not None else int(sizes_B.max())
        hidden_BNC = torch.zeros_like(vertex_BNC)
        for number in range(rounds):
            z_BNZ = torch.cat([vertex_BNC, hidden_BNC], dim=-1)
            spoken_BNNC = self.message(
                self.message_target(z_BNZ)[:, :, None] + self.message_source(z_BNZ)[:, None, :] + fixed_BNNC
            )
            # -1e9 and not -inf: a graph without vertices must stay finite
            heard_BNC = spoken_BNNC.masked_fill(silent, -1e9).amax(dim=2) * mask_BN.unsqueeze(-1)
            updated_BNC = self.norm(torch.relu(self.update_self(z_BNZ) + self.update_message(heard_BNC)))
            if self.rounds is None:  # a graph stops after its own number of vertices, whatever it is batched with
                updated_BNC = torch.where((number < sizes_B)[:, None, None], updated_BNC, hidden_BNC)
            hidden_BNC = updated_BNC
        states: LevelStates = self.read(hidden_BNC, edge_BNNC, mask_BN)
        return states


class GraphIsomorphismNetwork(nn.Module):
    r"""GIN with edge features (arXiv:1810.00826, arXiv:1905.12265) by PyG's ``GINEConv``; residuals and layer norm.

    .. math:: h_i \leftarrow h_i + \mathrm{relu}(\mathrm{norm}(\mathrm{MLP}((1 + \epsilon) h_i
              + \sum_{k \to i} \mathrm{relu}(h_k + e_{ki}))))

    Messages run along the pairs whose first edge channel is not 0. Arguments as in :class:`MaxMessagePassing`;
    ``depth`` layers, each with its own weights.

    Raises:
        BadInput: no edge channel, so no adjacency. MissingExtra: torch_geometric is absent.
    """

    def __init__(self, vertex_channels: int, edge_channels: int, graph_channels: int, dim: int, depth: int = 6) -> None:
        super().__init__()
        if edge_channels < 1:
            raise BadInput("GIN needs the adjacency as the first edge channel; got edge_channels=0")
        try:
            from torch_geometric.nn import GINEConv
        except ImportError as error:
            raise MissingExtra("torch_geometric", "graphs") from error
        self.encode = InputEncoder(vertex_channels, edge_channels, graph_channels, dim)
        self.layers = nn.ModuleList(
            GINEConv(nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim)), train_eps=True)
            for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.read = LevelReadout(dim)

    def forward(self, vertex_BNV: Tensor, edge_BNNE: Tensor, graph_BG: Tensor, mask_BN: Tensor) -> LevelStates:
        """mask_BN: True on real vertices, bool."""
        vertex_BNC, edge_BNNC, graph_BC = self.encode(vertex_BNV, edge_BNNE, graph_BG)
        batch, size = mask_BN.shape
        linked = (edge_BNNE[..., 0] != 0) & mask_BN[:, :, None] & mask_BN[:, None, :]
        number, tails, heads = linked.nonzero(as_tuple=True)
        edge_index = torch.stack([number * size + tails, number * size + heads])
        edge_EC = edge_BNNC[number, tails, heads]
        hidden = (vertex_BNC + graph_BC[:, None]).reshape(batch * size, -1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            hidden = hidden + torch.relu(norm(layer(hidden, edge_index, edge_EC)))
        states: LevelStates = self.read(hidden.reshape(batch, size, -1), edge_BNNC, mask_BN)
        return states


class InputEncoder(nn.Module):
    """Linear maps of vertex, edge and graph inputs to C channels; a level without inputs gets a learned constant."""

    def __init__(self, vertex_channels: int, edge_channels: int, graph_channels: int, dim: int) -> None:
        super().__init__()
        # one constant channel beside the inputs, so that a level without any is no special case
        self.vertex = nn.Linear(vertex_channels + 1, dim, bias=False)
        self.edge = nn.Linear(edge_channels + 1, dim, bias=False)
        self.graph = nn.Linear(graph_channels + 1, dim, bias=False)

    def forward(self, vertex_BNV: Tensor, edge_BNNE: Tensor, graph_BG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (
            self.vertex(nn.functional.pad(vertex_BNV, (0, 1), value=1.0)),
            self.edge(nn.functional.pad(edge_BNNE, (0, 1), value=1.0)),
            self.graph(nn.functional.pad(graph_BG, (0, 1), value=1.0)),
        )


class LevelReadout(nn.Module):
    """Vertex states to all three levels: pairs from both ends and their edge, the graph from the sum of vertices."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.tail, self.head, self.edge = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.pair = nn.Sequential(nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, vertex_BNC: Tensor, edge_BNNC: Tensor, mask_BN: Tensor) -> LevelStates:
        ends = self.tail(vertex_BNC)[:, :, None] + self.head(vertex_BNC)[:, None, :]
        graph = (vertex_BNC * mask_BN.unsqueeze(-1)).sum(dim=1)
        return LevelStates(vertex_BNC, self.pair(ends + self.edge(edge_BNNC)), graph)


def count_parameters(model: nn.Module) -> int:
    """The number of trainable numbers."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def match_width(
    build: Callable[[int], nn.Module],
    parameters: int,
    tolerance: float = 0.1,
    multiple: int = 1,
    largest: int = 4096,
) -> int:
    """The width whose model comes closest to a number of parameters.

    Args:
        build: makes the model of a given width; parameters must grow with the width.
        tolerance: relative distance that is still accepted.
        multiple: the width is a multiple of this (a number of heads, for instance).

    Raises:
        BadInput: no width comes within the tolerance; the message names the nearest.
    """

    def size(steps: int) -> int:
        with torch.device("meta"):
            return count_parameters(build(steps * multiple))

    low, high = 1, max(1, largest // multiple)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if size(middle) < parameters else (low, middle)
    nearest = min({max(1, low - 1), low}, key=lambda steps: abs(size(steps) - parameters))
    reached = size(nearest)
    if abs(reached - parameters) > tolerance * parameters:
        raise BadInput(
            f"no width gives {parameters:,} parameters within {tolerance:.0%}; the nearest, {nearest * multiple}, "
            f"gives {reached:,}"
        )
    return nearest * multiple
