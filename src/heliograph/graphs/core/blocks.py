"""Graph networks from parts: a stem reads the graph, blocks mix vertices, a head answers; every part is a plain module.

A *mixer* is any module ``mixer(x, edge_index, edge) -> x`` or ``-> (x, edge)``: the three here, or a layer of PyTorch
Geometric in :class:`PyGMixer`. :class:`NodeBlock` wraps it in normalisation, dropout, a residual and a feed-forward
part, each of which can be left out.

Shapes: N vertices, E edges, B graphs, C channels.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heliograph.errors import BadInput
from heliograph.graphs.core.aggregate import segment_max, segment_mean, segment_sum
from heliograph.graphs.core.encodings import RWSE
from heliograph.graphs.core.states import MaskedBatchNorm

__all__ = [
    "EdgeStem",
    "GCNMixer",
    "GINMixer",
    "GatedGCNMixer",
    "GraphModel",
    "NodeBlock",
    "NodeStem",
    "PyGMixer",
    "halving_head",
    "mlp_head",
]

Norm = Literal["batch", "layer"] | None
Pool = Literal["sum", "mean", "max"] | None
GATE_FLOOR = 1e-6


class GCNMixer(nn.Module):
    r"""Graph convolution (arXiv:1609.02907); with edge features as in GNN+ (arXiv:2502.09263).

    Without edge features, self-loops added and existing ones replaced, d the in-degree with its loop:

    .. math:: y_v = b + \sum_{u \to v} \frac{W x_u}{\sqrt{d_u d_v}} + \frac{W x_v}{d_v}

    With edge features, no loops are added and nothing is divided unless ``degree_norm`` says so:

    .. math:: y_v = b + \sum_{u \to v} \mathrm{relu}(W x_u + e_{uv})

    Args:
        dim: channels C.
        edge_features: which of the two.
        degree_norm: divide by the root of both degrees; None means yes without edge features and no with them.
    """

    def __init__(self, dim: int, edge_features: bool = False, degree_norm: bool | None = None) -> None:
        super().__init__()
        self.edge_features = edge_features
        self.degree_norm = not edge_features if degree_norm is None else degree_norm
        self.linear = nn.Linear(dim, dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, x: Tensor, edge_index: Tensor, edge: Tensor | None = None) -> Tensor:
        """x [N, C]; edge_index [2, E]; edge [E, C] where edge features are on."""
        source, target = edge_index
        size, mapped = len(x), self.linear(x)
        if self.edge_features:
            message = torch.relu(mapped[source] + _need_edges(edge, self))
            if self.degree_norm:
                degree = segment_sum(torch.ones_like(source, dtype=x.dtype), target, size).clamp(min=1)
                message = message * (degree[source] * degree[target]).rsqrt().unsqueeze(-1)
            return segment_sum(message, target, size) + self.bias
        counts = (source != target).to(x.dtype)
        if not self.degree_norm:
            summed = segment_sum(mapped[source] * counts.unsqueeze(-1), target, size)
            return summed + self.bias + mapped  # type: ignore[no-any-return]
        root = (segment_sum(counts, target, size) + 1).rsqrt()
        share = (counts * root[source] * root[target]).unsqueeze(-1)
        summed = segment_sum(mapped[source] * share, target, size)
        return summed + self.bias + mapped * root.square().unsqueeze(-1)  # type: ignore[no-any-return]


class GINMixer(nn.Module):
    r"""Graph isomorphism layer (arXiv:1810.00826), with edges as GINE (arXiv:1905.12265).

    .. math:: y_v = \mathrm{MLP}\Big((1 + \epsilon) x_v + \sum_{u \to v} \mathrm{relu}(x_u + e_{uv})\Big)

    Without edge features the message is :math:`x_u` itself.

    Args:
        dim: channels C.
        edge_features: whether messages carry e.
        epsilon: the fixed weight of the vertex itself.
    """

    def __init__(self, dim: int, edge_features: bool = False, epsilon: float = 0.0) -> None:
        super().__init__()
        self.edge_features, self.epsilon = edge_features, epsilon
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor, edge_index: Tensor, edge: Tensor | None = None) -> Tensor:
        """x [N, C]; edge_index [2, E]; edge [E, C] where edge features are on."""
        source, target = edge_index
        message = torch.relu(x[source] + _need_edges(edge, self)) if self.edge_features else x[source]
        out: Tensor = self.mlp((1 + self.epsilon) * x + segment_sum(message, target, len(x)))
        return out


class GatedGCNMixer(nn.Module):
    r"""Gated graph convolution (arXiv:1711.07553, arXiv:2003.00982), which also renews edge states.

    .. math:: \hat e_{uv} = C e_{uv} + D x_v + E x_u, \qquad g_{uv} = \sigma(\hat e_{uv}), \qquad
              y_v = A x_v + \frac{\sum_{u \to v} g_{uv} \odot B x_u}{\sum_{u \to v} g_{uv} + 10^{-6}}

    Without edge features the term C e is left out and no edge state is returned.
    """

    def __init__(self, dim: int, edge_features: bool = False) -> None:
        super().__init__()
        self.edge_features = edge_features
        self.own, self.sent = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.gate_target, self.gate_source = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.gate_edge = nn.Linear(dim, dim) if edge_features else None

    def forward(self, x: Tensor, edge_index: Tensor, edge: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """x [N, C]; edge_index [2, E]; edge [E, C] where edge features are on."""
        source, target = edge_index
        renewed = self.gate_target(x)[target] + self.gate_source(x)[source]
        if self.gate_edge is not None:
            renewed = renewed + self.gate_edge(_need_edges(edge, self))
        gate, size = torch.sigmoid(renewed), len(x)
        total = segment_sum(gate * self.sent(x)[source], target, size)
        mixed = self.own(x) + total / (segment_sum(gate, target, size) + GATE_FLOOR)
        return (mixed, renewed) if self.edge_features else mixed


class PyGMixer(nn.Module):
    """Any layer of PyTorch Geometric as a mixer; edge states are passed as ``edge_attr`` if the layer takes them."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.edge_features = "edge_attr" in inspect.signature(conv.forward).parameters

    def forward(self, x: Tensor, edge_index: Tensor, edge: Tensor | None = None) -> Tensor:
        """x [N, C]; edge_index [2, E]; edge [E, C] or None."""
        takes = {"edge_attr": edge} if self.edge_features and edge is not None else {}
        out: Tensor = self.conv(x, edge_index, **takes)
        return out


class NodeBlock(nn.Module):
    r"""A mixer with what surrounds it in GNN+ (arXiv:2502.09263); every part can be left out independently.

    .. math:: h = x + \mathrm{drop}(\mathrm{relu}(\mathrm{norm}_1(\mathrm{mix}(x, e)))), \qquad
              z = \mathrm{norm}_2(h), \qquad
              y = \mathrm{norm}_3(z + \mathrm{drop}(W_2\,\mathrm{drop}(\mathrm{relu}(W_1 z))))

    Where the mixer renews edge states they get a norm, activation, dropout and residual of their own.

    Args:
        mixer: ``mixer(x, edge_index, edge)``, C channels in and out.
        dim: channels C.
        norm: "batch", "layer" or None, at all places.
        dropout: in [0, 1).
        residual: whether x is added.
        feed_forward: whether the second half is there.
        edge_features: whether the mixer is given edge states.
        norm_after_mixer: False leaves norm 1 out (GIN+ has none, since its own MLP follows the sum).

    Raises:
        BadInput: an unknown norm, or dropout outside [0, 1).
    """

    def __init__(
        self,
        mixer: nn.Module,
        dim: int,
        norm: Norm = "batch",
        dropout: float = 0.0,
        residual: bool = True,
        feed_forward: bool = True,
        edge_features: bool = True,
        norm_after_mixer: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise BadInput(f"dropout is a share and must lie in [0, 1); got {dropout}")
        self.mixer, self.residual, self.edge_features = mixer, residual, edge_features
        self.norm_mixed = _make_norm(norm if norm_after_mixer else None, dim)
        self.dropout = nn.Dropout(dropout)
        renews = isinstance(mixer, GatedGCNMixer) and mixer.edge_features
        self.norm_edge = _make_norm(norm, dim) if renews else None
        self.feed_forward = (
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim))
            if feed_forward
            else None
        )
        self.norm_before = _make_norm(norm, dim) if feed_forward else None
        self.norm_after = _make_norm(norm, dim) if feed_forward else None

    def forward(self, x: Tensor, edge_index: Tensor, edge: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x [N, C]; edge_index [2, E]; edge [E, C] or None. Returns the new x and edge."""
        mixed = self.mixer(x, edge_index, edge if self.edge_features else None)
        if isinstance(mixed, tuple):
            mixed, renewed = mixed
            if self.norm_edge is not None:
                renewed = self.dropout(torch.relu(self.norm_edge(renewed)))
                edge = edge + renewed if self.residual and edge is not None else renewed
        mixed = self.dropout(torch.relu(self.norm_mixed(mixed)))
        x = x + mixed if self.residual else mixed
        if self.feed_forward is not None and self.norm_before is not None and self.norm_after is not None:
            z = self.norm_before(x)
            x = self.norm_after(z + self.dropout(self.feed_forward(z)))
        return x, edge


class NodeStem(nn.Module):
    """Vertex inputs to C channels: an embedding, a linear map or a learned constant, with a walk encoding beside it.

    Args:
        dim: channels C.
        node_types: size of each column's vocabulary, for whole-number ``x`` of [N] or [N, columns].
        in_dim: channels of floating-point ``x``; 0, with no ``node_types``, for graphs without ``x``.
        encoding: a walk encoding: its K numbers are normalised, mapped to ``encoding.dim`` channels and take the place
            of that many of the C.

    Raises:
        BadInput: both kinds of input, or an encoding as wide as the model.
    """

    def __init__(
        self, dim: int, node_types: int | Sequence[int] | None = None, in_dim: int = 0, encoding: RWSE | None = None
    ) -> None:
        super().__init__()
        if node_types is not None and in_dim:
            raise BadInput("give node_types for whole-number x or in_dim for floating-point x, not both")
        if encoding is not None and encoding.dim >= dim:
            raise BadInput(
                f"the encoding's {encoding.dim} channels leave no room in {dim}; give RWSE(steps, dim=...) less"
            )
        self.encoding, self.in_dim = encoding, in_dim
        own = dim - (encoding.dim if encoding else 0)
        vocabularies = [] if node_types is None else [node_types] if isinstance(node_types, int) else list(node_types)
        self.embeddings = nn.ModuleList(nn.Embedding(count, own) for count in vocabularies)
        self.linear = nn.Linear(max(1, in_dim), own) if not vocabularies else None
        self.encoding_norm = MaskedBatchNorm(encoding.steps) if encoding else None
        self.encoding_map = nn.Linear(encoding.steps, encoding.dim) if encoding else None

    def forward(self, data: Any) -> Tensor:
        """The vertex states [N, C] of a PyTorch Geometric graph or batch."""
        x = self._own(data)
        if self.encoding is None or self.encoding_norm is None or self.encoding_map is None:
            return x
        walks = data.get("rwse")
        if walks is None or walks.shape[-1] != self.encoding.steps:
            with torch.no_grad():
                walks = self.encoding.compute(data)["rwse"]
        return torch.cat([x, self.encoding_map(self.encoding_norm(walks.to(x.dtype)))], dim=-1)

    def _own(self, data: Any) -> Tensor:
        if self.linear is not None:
            if self.in_dim == 0:
                return self.linear(self.linear.weight.new_ones(int(data.num_nodes), 1))  # type: ignore[no-any-return]
            x = data.x if data.x is not None and data.x.dim() == 2 else None
            if x is None or x.shape[1] != self.in_dim or not x.is_floating_point():
                raise BadInput(f"this model takes floating-point x of [N, {self.in_dim}]; got {_describe(data.x)}")
            return self.linear(x.to(self.linear.weight.dtype))  # type: ignore[no-any-return]
        return _embed(self.embeddings, data.x, "x", "node_types")


class EdgeStem(nn.Module):
    """Edge inputs to C channels: an embedding, a linear map, or one learned vector where the graph has none.

    Args:
        dim: channels C.
        edge_types: size of each column's vocabulary, for whole-number ``edge_attr``.
        edge_dim: channels of floating-point ``edge_attr``.
    """

    def __init__(self, dim: int, edge_types: int | Sequence[int] | None = None, edge_dim: int = 0) -> None:
        super().__init__()
        if edge_types is not None and edge_dim:
            raise BadInput("give edge_types for whole-number edge_attr or edge_dim for floating-point, not both")
        self.edge_dim = edge_dim
        vocabularies = [] if edge_types is None else [edge_types] if isinstance(edge_types, int) else list(edge_types)
        self.embeddings = nn.ModuleList(nn.Embedding(count, dim) for count in vocabularies)
        self.linear = nn.Linear(edge_dim, dim) if edge_dim else None
        self.constant = nn.Parameter(torch.randn(dim) * dim**-0.5) if not vocabularies and not edge_dim else None

    def forward(self, data: Any) -> Tensor:
        """The edge states [E, C] of a PyTorch Geometric graph or batch."""
        edges = data.edge_index.shape[1]
        if self.constant is not None:
            return self.constant.expand(edges, -1)
        values = data.edge_attr
        if self.linear is not None:
            values = None if values is None else values.unsqueeze(-1) if values.dim() == 1 else values
            if values is None or values.shape[1] != self.edge_dim or not values.is_floating_point():
                found = _describe(values)
                raise BadInput(f"this model takes floating-point edge_attr of [E, {self.edge_dim}]; got {found}")
            return self.linear(values.to(self.linear.weight.dtype))  # type: ignore[no-any-return]
        return _embed(self.embeddings, values, "edge_attr", "edge_types")


class GraphModel(nn.Module):
    """Stem, blocks, pooling and head: PyTorch Geometric graphs in, [B, outputs] or [N, outputs] out.

    Args:
        stem: data to vertex states [N, C].
        blocks: each maps (x, edge_index, edge) to (x, edge).
        head: C channels to outputs.
        edge_stem: data to edge states [E, C]; None for a model without edge features.
        pool: "sum", "mean" or "max" over each graph, or None for an answer a vertex. An empty graph pools to 0.
    """

    def __init__(
        self,
        stem: nn.Module,
        blocks: Sequence[nn.Module],
        head: nn.Module,
        edge_stem: nn.Module | None = None,
        pool: Pool = "mean",
    ) -> None:
        super().__init__()
        if pool not in ("sum", "mean", "max", None):
            raise BadInput(f"pool is sum, mean, max or None; got {pool!r}")
        self.stem, self.edge_stem, self.head, self.pool = stem, edge_stem, head, pool
        self.blocks = nn.ModuleList(blocks)

    def forward(self, data: Any) -> Tensor:
        """``data``: a ``Data`` or a ``Batch``."""
        return self.read_out(self.encode(data), data)

    def read_out(self, x: Tensor, data: Any) -> Tensor:
        """Vertex states [N, C], pooled over each graph where the answer is one a graph, through the head."""
        if self.pool is not None:
            batch = data.get("batch")
            if batch is None:
                batch = torch.zeros(len(x), dtype=torch.long, device=x.device)
            reduce = {"sum": segment_sum, "mean": segment_mean, "max": segment_max}[self.pool]
            x = reduce(x, batch, int(getattr(data, "num_graphs", 1)))
        out: Tensor = self.head(x)
        return out

    def encode(self, data: Any) -> Tensor:
        """The vertex states after the last block, [N, C]."""
        x: Tensor = self.stem(data)
        edge = self.edge_stem(data) if self.edge_stem is not None else None
        for block in self.blocks:
            x, edge = block(x, data.edge_index, edge)
        return x


def halving_head(dim: int, outputs: int) -> nn.Sequential:
    """C to C/2 to C/4 to outputs with ReLU between: the head of graph-level models."""
    half, quarter = max(1, dim // 2), max(1, dim // 4)
    return nn.Sequential(
        nn.Linear(dim, half), nn.ReLU(), nn.Linear(half, quarter), nn.ReLU(), nn.Linear(quarter, outputs)
    )


def mlp_head(dim: int, outputs: int, layers: int = 3, dropout: float = 0.0) -> nn.Sequential:
    """``layers`` linear maps with ReLU and dropout before each but the first: the head of vertex-level models."""
    parts: list[nn.Module] = []
    for _ in range(layers - 1):
        parts += [nn.Linear(dim, dim), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*parts, nn.Linear(dim, outputs))


class WarnedBatchNorm(MaskedBatchNorm):
    """Batch norm that says when a batch was too small for statistics of its own."""

    def forward(self, block: Tensor, mask: Tensor | None = None) -> Tensor:
        """As :class:`MaskedBatchNorm`."""
        if self.training and mask is None and block.shape[:-1].numel() == 1:
            warnings.warn("a batch with one row has no variance: running statistics were used instead", stacklevel=2)
        return super().forward(block, mask)


def _make_norm(norm: Norm, dim: int) -> nn.Module:
    makers: dict[Norm, Callable[[int], nn.Module]] = {
        "batch": WarnedBatchNorm,
        "layer": nn.LayerNorm,
        None: lambda _: nn.Identity(),
    }
    if norm not in makers:
        raise BadInput(f"norm is batch, layer or None; got {norm!r}")
    return makers[norm](dim)


def _embed(embeddings: nn.ModuleList, values: Tensor | None, name: str, option: str) -> Tensor:
    columns = None if values is None else values.unsqueeze(-1) if values.dim() == 1 else values
    if columns is None or columns.is_floating_point() or columns.shape[1] != len(embeddings):
        raise BadInput(f"this model takes whole-number {name} of {len(embeddings)} columns; got {_describe(values)}")
    if torch.device(columns.device).type == "cpu" and columns.numel():  # on other devices this would wait for them
        for place, embedding in enumerate(embeddings):
            column, count = columns[:, place], embedding.num_embeddings
            if int(column.min()) < 0 or int(column.max()) >= int(count):  # type: ignore[arg-type]
                wrong = int(column.min()) if int(column.min()) < 0 else int(column.max())
                raise BadInput(f"{name} holds {wrong}; {option}={count} allows 0 to {int(count) - 1}")  # type: ignore[arg-type]
    return torch.stack([embedding(columns[:, place].long()) for place, embedding in enumerate(embeddings)]).sum(0)


def _describe(values: Tensor | None) -> str:
    return "none" if values is None else f"{str(values.dtype).removeprefix('torch.')} of {list(values.shape)}"


def _need_edges(edge: Tensor | None, mixer: nn.Module) -> Tensor:
    if edge is None:
        raise BadInput(f"{type(mixer).__name__}(edge_features=True) needs edge states of [E, C]; got none")
    return edge
