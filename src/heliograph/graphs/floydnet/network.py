"""FloydNet: a dense state of all pairs (or triples) of vertices refined by pivotal attention (arXiv:2601.19094).

Shapes: B graphs, N vertices (M = N + 1 with the super-node), C channels, H heads, S the vertex axes of the state
(M, M at order 2; M, M, M at order 3), F edge features, V vertex features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from heliograph.errors import BadInput
from heliograph.graphs.floydnet.attention import attend_tuples
from heliograph.graphs.floydnet.embedding import StateEmbedding
from heliograph.graphs.floydnet.inputs import batch_pyg

__all__ = ["FloydNet", "FloydOutput", "PivotalAttentionBlock", "PivotalStack", "sum_to_vertices", "tuple_mask_of"]

LEVELS = ("graph", "vertex", "edge")
_ACTIVATIONS = {"silu": nn.SiLU, "relu": nn.ReLU, "gelu": nn.GELU}


class AffineNorm(nn.Module):
    """Scale and shift per channel without any statistics: the identity at start."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, state_BSC: Tensor) -> Tensor:
        """Any shape with the channels last."""
        return state_BSC * self.weight + self.bias


_NORMS = {"affine": AffineNorm, "layer": nn.LayerNorm}


class PivotalAttentionBlock(nn.Module):
    r"""One layer: mix with the transposed state, attend over pivots, then a feed-forward part.

    .. math:: x \leftarrow x + W_o\,\mathrm{pivotal}(\mathrm{norm}_1(x + W_{mix} x^T)), \qquad
              x \leftarrow x + g\,\mathrm{FFN}(\mathrm{norm}_2(x))

    :math:`W_{mix}`, :math:`W_o` and the last feed-forward matrix start at 0, so a fresh block is the identity (up to
    the norm when ``prenorm`` is off); g is a learned scalar that starts at 1. At order 3 the mix has one matrix for
    each of the two swaps of neighbouring axes.

    Args:
        dim, heads: channels C and heads H; H divides C.
        order: 2 for pairs, 3 for triples.
        norm: "affine" (scale and shift only, as the paper's experiments) or "layer".
        feed_forward, ffn_ratio, activation: the second half, its width over C, and "silu", "relu" or "gelu".
        dropout, attention_dropout: on the block's outputs and on the weights; both act in training mode only.
        softmax_cap, chunk, byte_budget: passed to the attention.
        prenorm: norm before each half, else after its residual sum.

    Raises:
        BadInput: ``dim % heads != 0`` or an unknown option.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        order: int = 2,
        norm: str = "affine",
        feed_forward: bool = True,
        ffn_ratio: int = 4,
        activation: str = "silu",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        softmax_cap: float | None = None,
        bias: bool = False,
        prenorm: bool = True,
        chunk: int | None = None,
        byte_budget: int | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or dim < 1 or dim % heads:
            raise BadInput(f"heads must divide dim; got dim={dim}, heads={heads}")
        if order not in (2, 3):
            raise BadInput(f"order is 2 (pairs) or 3 (triples); got {order}")
        if norm not in _NORMS:
            raise BadInput(f"norm is one of {sorted(_NORMS)}; got {norm!r}")
        if activation not in _ACTIVATIONS:
            raise BadInput(f"activation is one of {sorted(_ACTIVATIONS)}; got {activation!r}")
        self.dim, self.heads, self.order, self.prenorm = dim, heads, order, prenorm
        self.chunk, self.byte_budget, self.softmax_cap = chunk, byte_budget, softmax_cap
        self.attention_dropout = attention_dropout
        self.norm1 = _NORMS[norm](dim)
        self.mix = nn.Linear((order - 1) * dim, dim, bias=bias)
        self.qkv = nn.Linear(dim, (2 * order + 1) * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.ffn: nn.Sequential | None = None
        if feed_forward:
            self.norm2 = _NORMS[norm](dim)
            self.ffn = nn.Sequential(
                nn.Linear(dim, ffn_ratio * dim, bias=bias),
                _ACTIVATIONS[activation](),
                nn.Dropout(dropout),
                nn.Linear(ffn_ratio * dim, dim, bias=bias),
            )
            self.gate = nn.Parameter(torch.ones(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform for each projection and the first feed-forward matrix, 0 for what closes a residual."""
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.out.weight)
        for projection in self.qkv.weight.chunk(2 * self.order + 1):
            nn.init.xavier_uniform_(projection)
        if self.ffn is not None:
            nn.init.xavier_uniform_(self.ffn[0].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.ffn[3].weight)  # type: ignore[arg-type]
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, state_BSC: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Refines [B, N, N, C] (or [B, N, N, N, C]); ``attn_mask`` broadcasts to [B, H, *S, pivots]."""
        swaps = [state_BSC.transpose(axis, axis + 1) for axis in range(1, self.order)]
        mixed = state_BSC + self.mix(torch.cat(swaps, dim=-1))
        if self.prenorm:
            state_BSC = state_BSC + self.dropout(self._attend(self.norm1(mixed), attn_mask))
        else:
            state_BSC = self.norm1(state_BSC + self.dropout(self._attend(mixed, attn_mask)))
        if self.ffn is None:
            return state_BSC
        if self.prenorm:
            refined: Tensor = state_BSC + self.gate * self.dropout(self.ffn(self.norm2(state_BSC)))
        else:
            refined = self.norm2(state_BSC + self.gate * self.dropout(self.ffn(state_BSC)))
        return refined

    def _attend(self, state_BSC: Tensor, attn_mask: Tensor | None) -> Tensor:
        parts = self.qkv(state_BSC).chunk(2 * self.order + 1, dim=-1)
        q, *keys_values = (part.unflatten(-1, (self.heads, -1)).movedim(-2, 1) for part in parts)  # [B, H, *S, D]
        gathered_BHSD = attend_tuples(
            q,
            keys_values[: self.order],
            keys_values[self.order :],
            attn_mask,
            softmax_cap=self.softmax_cap,
            chunk=self.chunk,
            dropout=self.attention_dropout if self.training else 0.0,
            byte_budget=self.byte_budget,
        )
        out_BSC: Tensor = self.out(gathered_BHSD.movedim(1, -2).flatten(-2))
        return out_BSC


class PivotalStack(nn.Module):
    """Blocks in a row on a given state; padded tuples are 0 after every block and never serve as pivots.

    Args:
        depth: number of blocks.
        checkpoint_blocks: recompute each block in the backward pass, keeping only its input.
        block_options: of :class:`PivotalAttentionBlock`.
    """

    def __init__(self, depth: int, checkpoint_blocks: bool = False, **block_options: Any) -> None:
        super().__init__()
        if depth < 0:
            raise BadInput(f"depth is a number of blocks; got {depth}")
        self.checkpoint_blocks = checkpoint_blocks
        self.order: int = block_options.get("order", 2)
        self.blocks = nn.ModuleList(PivotalAttentionBlock(**block_options) for _ in range(depth))

    def forward(self, state_BSC: Tensor, vertex_mask_BM: Tensor | None = None) -> Tensor:
        """Refines [B, *S, C]; vertex_mask_BM is True on real vertices (None: all are)."""
        tuple_mask = attn_mask = None
        if vertex_mask_BM is not None and not bool(vertex_mask_BM.all()):
            tuple_mask = tuple_mask_of(vertex_mask_BM, self.order).unsqueeze(-1)
            rows = vertex_mask_BM[:, None, :, *([None] * self.order)]
            pivots = vertex_mask_BM[:, None, *([None] * self.order), :]
            attn_mask = rows & pivots
            state_BSC = state_BSC * tuple_mask
        for block in self.blocks:
            if self.checkpoint_blocks and torch.is_grad_enabled():
                state_BSC = checkpoint(block, state_BSC, attn_mask, use_reentrant=False)
            else:
                state_BSC = block(state_BSC, attn_mask)
            if tuple_mask is not None:
                state_BSC = state_BSC * tuple_mask
        return state_BSC


@dataclass(frozen=True)
class FloydOutput:
    """What the chosen read-outs gave; the others are None. Padded vertices and pairs hold 0.

    Attributes:
        graph: [B, out_dim]; vertex: [B, N, out_dim]; edge: [B, N, N, out_dim].
    """

    graph: Tensor | None = None
    vertex: Tensor | None = None
    edge: Tensor | None = None


class FloydNet(nn.Module):
    r"""A stack of :class:`PivotalAttentionBlock` between table look-ups and read-outs (arXiv:2601.19094).

    The initial state of pair (i, k) sums table rows for its adjacency bit, its edge features and whether i = k.
    With vertex features a super-node is put before the vertices, and the features enter on its row and column.
    Read-outs: pair R[i, k]; vertex :math:`\sum_k R[k, i] + R[i, k]`; graph :math:`\sum_{ik} R[i, k]`.

    Args:
        edge_vocab: number of values of each edge feature: an int for one, a sequence for several, None for none.
        node_vocab: the same for vertices; turns the super-node on.
        dim, heads, depth, order: channels, heads, number of blocks, 2 (pairs) or 3 (triples).
        levels: any of "graph", "vertex", "edge".
        out_dim: channels of each read-out; default ``dim``.
        head_layers: 1 gives a linear head that starts as the identity, more give width 4 C, SiLU, last layer 0.
        super_node: add the super-node even without vertex features.
        readout_adjacency: read only pairs that are edges (the paper's counting task); pairs only.
        diffusion: accept a noisy pair matrix and its noise level (see DiffusionTour); pairs only.
        chunk, byte_budget, softmax_cap, norm, feed_forward, ffn_ratio, activation, dropout, attention_dropout, bias,
            prenorm: see :class:`PivotalAttentionBlock`.
        checkpoint_blocks: recompute each block in the backward pass, keeping only its input.

    Raises:
        BadInput: an option or a combination that does not exist; see also :meth:`forward`.
    """

    def __init__(
        self,
        edge_vocab: int | Sequence[int] | None = None,
        node_vocab: int | Sequence[int] | None = None,
        dim: int = 96,
        heads: int = 4,
        depth: int = 16,
        order: int = 2,
        levels: Sequence[str] = ("graph",),
        out_dim: int | None = None,
        head_layers: int = 1,
        norm: str = "affine",
        feed_forward: bool = True,
        ffn_ratio: int = 4,
        activation: str = "silu",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        softmax_cap: float | None = None,
        bias: bool = False,
        prenorm: bool = True,
        super_node: bool = False,
        readout_adjacency: bool = False,
        diffusion: bool = False,
        chunk: int | None = None,
        byte_budget: int | None = None,
        checkpoint_blocks: bool = False,
    ) -> None:
        super().__init__()
        unknown = [level for level in levels if level not in LEVELS]
        if unknown or not levels:
            raise BadInput(f"levels are a non-empty choice of {LEVELS}; got {tuple(levels)}")
        if order != 2 and (diffusion or readout_adjacency):
            raise BadInput("diffusion and readout_adjacency exist for pairs only: use order=2")
        self.dim, self.order, self.levels = dim, order, tuple(levels)
        self.readout_adjacency = readout_adjacency
        self.embedding = StateEmbedding(dim, order, edge_vocab, node_vocab, super_node, diffusion)
        self.stack = PivotalStack(
            depth,
            checkpoint_blocks,
            dim=dim,
            heads=heads,
            order=order,
            norm=norm,
            feed_forward=feed_forward,
            ffn_ratio=ffn_ratio,
            activation=activation,
            dropout=dropout,
            attention_dropout=attention_dropout,
            softmax_cap=softmax_cap,
            bias=bias,
            prenorm=prenorm,
            chunk=chunk,
            byte_budget=byte_budget,
        )
        self.heads = nn.ModuleDict({level: _head(dim, out_dim or dim, head_layers) for level in self.levels})

    @property
    def has_super_node(self) -> bool:
        """Whether a vertex is put before the graph's own."""
        return self.embedding.has_super_node

    def forward(
        self,
        adj: Tensor,
        edge_attr: Tensor | None = None,
        node_attr: Tensor | None = None,
        mask: Tensor | None = None,
        noisy: Tensor | None = None,
        log_snr: Tensor | None = None,
    ) -> FloydOutput:
        """Runs on a dense batch.

        Args:
            adj: [B, N, N] of 0 and 1 (any dtype), directed; self-loops on the diagonal.
            edge_attr: [B, N, N] or [B, N, N, F] integers below the vocabulary.
            node_attr: [B, N] or [B, N, V] integers below the vocabulary.
            mask: [B, N] bool, True on real vertices; None: all are.
            noisy, log_snr: [B, N, N] and [B], with ``diffusion`` only.

        Raises:
            BadInput: adj not square or not 0/1, shapes that disagree, a value outside its vocabulary (named with its
                place), features without a table for them, or tables without features.
            MemoryEstimateError: the estimate of one attention exceeds ``byte_budget``.
        """
        state_BSC, vertex_mask_BM = self.embedding(adj, edge_attr, node_attr, mask, noisy, log_snr)
        state_BSC = self.stack(state_BSC, vertex_mask_BM)
        return self._read(state_BSC, vertex_mask_BM, adj)

    def forward_pyg(self, batch: Any) -> FloydOutput:
        """Runs on a ragged PyG ``Batch`` (or one ``Data``): padded inside; vertex rows come back in the batch's order.

        Returns:
            graph [B, out_dim]; vertex [n, out_dim] over all real vertices; edge [E, out_dim] along ``edge_index``.
        """
        dense = batch_pyg(batch)
        out = self(dense.adj, dense.edge_attr, dense.node_attr, dense.mask)
        vertex = None if out.vertex is None else out.vertex[dense.mask]
        edge = None
        if out.edge is not None:
            counts = dense.mask.sum(dim=1)
            graph_of = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
            place = torch.arange(len(graph_of), device=counts.device) - (counts.cumsum(0) - counts)[graph_of]
            tails, heads = batch.edge_index
            edge = out.edge[graph_of[tails], place[tails], place[heads]]
        return FloydOutput(out.graph, vertex, edge)

    def fingerprint(self, adj: Tensor) -> Tensor:
        """The mean of the final state over all tuples, [B, C]: what :func:`wl_distinguishes` compares."""
        state_BSC, vertex_mask_BM = self.embedding(adj)
        refined_BSC: Tensor = self.stack(state_BSC, vertex_mask_BM)
        return refined_BSC.flatten(1, -2).mean(dim=1)

    def _read(self, state_BSC: Tensor, vertex_mask_BM: Tensor, adj: Tensor) -> FloydOutput:
        first = int(self.has_super_node)
        vertex_mask_BN = vertex_mask_BM[:, first:]
        if self.readout_adjacency:
            edges = torch.zeros(state_BSC.shape[:-1], dtype=torch.bool, device=state_BSC.device)
            edges[:, first:, first:] = adj.bool()
            state_BSC = state_BSC * edges.unsqueeze(-1)
        out: dict[str, Tensor] = {}
        if "graph" in self.levels:
            out["graph"] = self.heads["graph"](state_BSC.flatten(1, -2).sum(dim=1))
        if "vertex" in self.levels:
            vertex = self.heads["vertex"](sum_to_vertices(state_BSC, self.order)[:, first:])
            out["vertex"] = vertex * vertex_mask_BN.unsqueeze(-1)
        if "edge" in self.levels:
            pair = self.heads["edge"](sum_to_pairs(state_BSC, self.order)[:, first:, first:])
            out["edge"] = pair * tuple_mask_of(vertex_mask_BN, 2).unsqueeze(-1)
        return FloydOutput(**out)


def sum_to_vertices(state_BSC: Tensor, order: int) -> Tensor:
    """[B, N, C]: for each vertex the sum over all tuples that have it, once for every position it takes."""
    axes = range(1, order + 1)
    return sum(state_BSC.sum(dim=[other for other in axes if other != axis]) for axis in axes)  # type: ignore[return-value]


def sum_to_pairs(state_BSC: Tensor, order: int) -> Tensor:
    """[B, N, N, C]: the state itself for pairs; for triples the sum over the third member in every position."""
    if order == 2:
        return state_BSC
    return sum(state_BSC.sum(dim=axis) for axis in (1, 2, 3))  # type: ignore[return-value]


def tuple_mask_of(vertex_mask_BN: Tensor, order: int) -> Tensor:
    """[B, N, ..., N] with ``order`` vertex axes: True where every member is a real vertex."""
    mask = vertex_mask_BN
    for _ in range(order - 1):
        mask = mask.unsqueeze(-1) & vertex_mask_BN[:, *([None] * (mask.dim() - 1)), :]
    return mask


def _head(dim: int, out_dim: int, layers: int) -> nn.Sequential:
    if layers < 1:
        raise BadInput(f"head_layers must be at least 1; got {layers}")
    if layers == 1:
        linear = nn.Linear(dim, out_dim)
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
        return nn.Sequential(linear)
    widths = [dim] + [4 * dim] * (layers - 1) + [out_dim]
    parts: list[nn.Module] = []
    for before, after in pairwise(widths):
        parts += [nn.Linear(before, after), nn.SiLU()]
    last = parts[-2]
    nn.init.zeros_(last.weight)  # type: ignore[arg-type]
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return nn.Sequential(*parts[:-1])
