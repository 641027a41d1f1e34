"""The initial state of FloydNet: table look-ups for adjacency, edge and vertex features, and the noise of diffusion.

Shapes: B graphs, N vertices (M = N + 1 with the super-node), C channels, F edge features, V vertex features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heliograph.errors import BadInput

__all__ = ["NoiseEmbedding", "StateEmbedding"]

_TRIPLE_PAIRS = ((0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1))  # the ordered pairs of positions within a triple
_PLAIN, _SUPER_ROW, _SUPER_COLUMN, _SUPER_SELF = range(4)


class NoiseEmbedding(nn.Module):
    """A noisy pair matrix as Linear(1 -> C) (weight 1, bias 0) plus its noise level through a zero-initialised Linear.

    The level is log10(signal / noise); sine and cosine of level / 60 x (0 .. C/2 - 1) enter the second Linear.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 2:
            raise BadInput(f"the noise embedding needs an even number of channels; got {dim}")
        self.value, self.level = nn.Linear(1, dim), nn.Linear(dim, dim)
        nn.init.ones_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        nn.init.zeros_(self.level.weight)
        nn.init.zeros_(self.level.bias)

    def forward(self, noisy_BNN: Tensor, log_snr_B: Tensor) -> Tensor:
        """Returns [B, N, N, C]; log_snr_B is log10 of signal over noise."""
        half = self.level.in_features // 2
        angle = log_snr_B[:, None] / 60 * torch.arange(half, device=log_snr_B.device, dtype=log_snr_B.dtype)
        level_BC = self.level(torch.cat([angle.sin(), angle.cos()], dim=-1))
        state_BNNC: Tensor = self.value(noisy_BNN.unsqueeze(-1)) + level_BC[:, None, None]
        return state_BNNC


class StateEmbedding(nn.Module):
    """Builds [B, M, M, C] (order 2) or [B, M, M, M, C] (order 3); every table starts as N(0, 1).

    Order 2: adjacency table (2 rows) + a table telling i = k from i != k + one table an edge feature. The paper's code
    has no table for i = k; ours separates a self-loop from an edge. Order 3: the six adjacency bits of a triple in one
    table (64 rows), its equality pattern (8 rows), and the sum over its six ordered pairs of linear maps of what order
    2 would add for features. With vertex features the super-node is vertex 0.
    """

    def __init__(
        self,
        dim: int,
        order: int,
        edge_vocab: int | Sequence[int] | None,
        node_vocab: int | Sequence[int] | None,
        super_node: bool,
        diffusion: bool,
    ) -> None:
        super().__init__()
        self.dim, self.order = dim, order
        edge_sizes, node_sizes = _sizes(edge_vocab, "edge_vocab"), _sizes(node_vocab, "node_vocab")
        self.has_super_node = super_node or bool(node_sizes)
        self.adjacency = nn.Embedding(2 if order == 2 else 64, dim)
        self.equality = nn.Embedding(2 if order == 2 else 8, dim)
        self.edge_tables = nn.ModuleList(nn.Embedding(size, dim) for size in edge_sizes)
        self.node_row_tables = nn.ModuleList(nn.Embedding(size, dim) for size in node_sizes)
        self.node_column_tables = nn.ModuleList(nn.Embedding(size, dim) for size in node_sizes)
        self.kind = nn.Embedding(4, dim) if self.has_super_node else None
        self.noise = NoiseEmbedding(dim) if diffusion else None
        lifted = order == 3 and (edge_sizes or self.has_super_node)
        self.lift = nn.Linear(dim, 6 * dim, bias=False) if lifted else None

    def forward(
        self,
        adj: Tensor,
        edge_attr: Tensor | None = None,
        node_attr: Tensor | None = None,
        mask: Tensor | None = None,
        noisy: Tensor | None = None,
        log_snr: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns the state and the mask over its vertices, [B, M]."""
        adj, mask = _check_graph(adj, mask)
        pair_mask = mask[:, :, None] & mask[:, None, :]
        adj = _look_up_safe(adj, 2, pair_mask, "adj")
        features_BNNC = self._edge_features(adj, edge_attr, pair_mask)
        if (noisy is None) != (self.noise is None) or (noisy is None) != (log_snr is None):
            raise BadInput("noisy and log_snr go together, with a model built with diffusion=True and only there")
        if self.noise is not None and noisy is not None and log_snr is not None:
            if noisy.shape != adj.shape or log_snr.shape != adj.shape[:1]:
                raise BadInput(
                    f"noisy must be {tuple(adj.shape)} and log_snr {tuple(adj.shape[:1])}; got {tuple(noisy.shape)} "
                    f"and {tuple(log_snr.shape)}"
                )
            features_BNNC = features_BNNC + self.noise(noisy, log_snr)
        if self.order == 2:
            same = torch.eye(adj.shape[1], dtype=torch.long, device=adj.device)
            features_BNNC = features_BNNC + self.adjacency(adj) + self.equality(same)
        state_BMMC, mask_BM = self._add_super_node(features_BNNC, node_attr, mask)
        if self.order == 3:
            return self._triples(adj, state_BMMC), mask_BM
        return state_BMMC, mask_BM

    def _edge_features(self, adj: Tensor, edge_attr: Tensor | None, pair_mask: Tensor) -> Tensor:
        weight = self.adjacency.weight
        total = weight.new_zeros((*adj.shape, self.dim))
        values = _feature_columns(edge_attr, adj.shape, len(self.edge_tables), "edge_attr", "edge_vocab")
        for number, (table, column) in enumerate(zip(self.edge_tables, values, strict=True)):
            total = total + table(_look_up_safe(column, table.num_embeddings, pair_mask, f"edge_attr[..., {number}]"))
        return total

    def _add_super_node(self, features_BNNC: Tensor, node_attr: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
        columns = _feature_columns(node_attr, mask.shape, len(self.node_row_tables), "node_attr", "node_vocab")
        if self.kind is None:
            return features_BNNC, mask
        state = nn.functional.pad(features_BNNC, (0, 0, 1, 0, 1, 0))
        size = state.shape[1]
        kind = torch.full((size, size), _PLAIN, device=mask.device)
        kind[0, :], kind[:, 0], kind[0, 0] = _SUPER_ROW, _SUPER_COLUMN, _SUPER_SELF
        state = state + self.kind(kind)
        for number, column in enumerate(columns):
            row_table, column_table = self.node_row_tables[number], self.node_column_tables[number]
            column = _look_up_safe(column, row_table.num_embeddings, mask, f"node_attr[..., {number}]")
            state[:, 0, 1:] = state[:, 0, 1:] + row_table(column)
            state[:, 1:, 0] = state[:, 1:, 0] + column_table(column)
        return state, nn.functional.pad(mask, (1, 0), value=True)

    def _triples(self, adj: Tensor, pair_BMMC: Tensor) -> Tensor:
        size = pair_BMMC.shape[1]
        adj = nn.functional.pad(adj, (size - adj.shape[2], 0, size - adj.shape[1], 0))
        same = torch.eye(size, dtype=torch.long, device=adj.device)[None]
        bits = sum(_spread(adj, pair) << place for place, pair in enumerate(_TRIPLE_PAIRS))
        equal = sum(_spread(same, pair) << place for place, pair in enumerate(((0, 1), (0, 2), (1, 2))))
        state: Tensor = self.adjacency(bits) + self.equality(equal)
        if self.lift is not None:
            for part, pair in zip(self.lift(pair_BMMC).chunk(6, dim=-1), _TRIPLE_PAIRS, strict=True):
                state = state + _spread(part, pair)
        return state


def _spread(pair: Tensor, positions: tuple[int, int]) -> Tensor:
    """Pair values [B, N, N, ...] as seen by each triple at two of its positions; broadcast over the third."""
    if positions[0] > positions[1]:
        pair = pair.transpose(1, 2)
    missing = ({0, 1, 2} - set(positions)).pop()
    sizes = list(pair.shape)
    sizes.insert(1 + missing, pair.shape[1])
    return pair.unsqueeze(1 + missing).expand(sizes)


def _sizes(vocab: int | Sequence[int] | None, name: str) -> tuple[int, ...]:
    sizes = () if vocab is None else (vocab,) if isinstance(vocab, int) else tuple(vocab)
    if any(size < 1 for size in sizes):
        raise BadInput(f"{name} counts the values of a feature and must be at least 1; got {vocab}")
    return sizes


def _check_graph(adj: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if adj.dim() != 3 or adj.shape[1] != adj.shape[2]:
        raise BadInput(f"adj must be [B, N, N], square; got {tuple(adj.shape)}")
    if mask is None:
        return adj, torch.ones(adj.shape[:2], dtype=torch.bool, device=adj.device)
    if mask.dtype != torch.bool or mask.shape != adj.shape[:2]:
        raise BadInput(f"mask must be bool {tuple(adj.shape[:2])} for this adj; got {mask.dtype} {tuple(mask.shape)}")
    return adj, mask


def _feature_columns(values: Tensor | None, lead: torch.Size, tables: int, name: str, option: str) -> list[Tensor]:
    if values is None:
        if tables:
            raise BadInput(f"the model was built with {option}, so it needs {name}; got None")
        return []
    if values.shape == lead:
        values = values.unsqueeze(-1)
    if values.shape[:-1] != lead:
        raise BadInput(f"{name} must be {tuple(lead)} or {(*lead, 'features')}; got {tuple(values.shape)}")
    if values.shape[-1] != tables:
        raise BadInput(f"{name} has {values.shape[-1]} features, the model has tables for {tables}: set {option}")
    return list(values.unbind(-1))


def _look_up_safe(values: Tensor, size: Any, real: Tensor, name: str) -> Tensor:
    """Integers for a table: what is padded becomes 0, what is outside the table (or no integer) is refused by value."""
    values = torch.where(real, values, torch.zeros_like(values))
    whole = values.long()
    wrong = (whole < 0) | (whole >= size)
    if values.is_floating_point():
        wrong = wrong | (whole != values)
    if bool(wrong.any()):
        place = tuple(int(p) for p in wrong.nonzero()[0])
        raise BadInput(f"{name} holds {values[place].item()} at {place}; expected an integer from 0 to {size - 1}")
    return whole
