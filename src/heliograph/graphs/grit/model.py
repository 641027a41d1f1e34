"""GRIT as a model: random-walk encodings of vertices and pairs, layers of pair attention, pooling and a head.

Shapes: N vertices, P ordered pairs of the same graph, E edges, B graphs, C channels, K walk powers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from heliograph.errors import BadInput
from heliograph.graphs.core.blocks import EdgeStem, GraphModel, NodeStem, halving_head, mlp_head
from heliograph.graphs.core.encodings import RRWP, RWSE, DegreeEncoding, Encoding, ShortestPathEncoding
from heliograph.graphs.core.support import Support, complete_support
from heliograph.graphs.grit.layer import GRITLayer
from heliograph.graphs.grit.pairs import Backend, PairLayout

__all__ = ["GRIT", "GRITConfig"]

Positions = Literal["rrwp", "rwse", "distance"]


@dataclass(frozen=True)
class GRITConfig:
    """All arguments of a :class:`GRIT`; JSON-ready."""

    out_dim: int
    node_types: int | tuple[int, ...] | None = None
    in_dim: int = 0
    edge_types: int | tuple[int, ...] | None = None
    edge_dim: int = 0
    hidden: int = 64
    layers: int = 10
    heads: int = 8
    walk_steps: int = 21
    positions: str = "rrwp"
    dropout: float = 0.0
    attention_dropout: float = 0.2
    clamp: float | None = 5.0
    update_pairs: bool = True
    degree_scaler: bool = True
    pool: str | None = "sum"
    pair_outputs: bool = False
    backend: str = "auto"


class GRIT(GraphModel):
    r"""A graph transformer without message passing (arXiv:2305.17589).

    With M the random walk's matrix and P_ij = [I, M, M^2, ..., M^(K-1)]_ij, vertices and pairs begin as

    .. math:: x_i = \mathrm{embed}(i) + W_a P_{ii}, \qquad e_{ij} = W_r P_{ij} + \mathrm{embed}(j \to i)

    where the embedding of a pair that is no edge is 0 and parallel edges add up. :class:`GRITLayer` does the rest. The
    last layer does not renew pair states unless ``pair_outputs`` asks for them.

    Self-loops of the input count in the walk, in degrees and as edges of a pair (i, i); ``edge_weight``, where there is
    one, counts in the walk only.

    Args:
        out_dim: numbers an answer has.
        node_types: vocabulary of whole-number ``x``, one a column; or ``in_dim``, channels of floating-point ``x``;
            neither for graphs without ``x``.
        edge_types, edge_dim: the same for ``edge_attr``; neither gives all edges one learned vector.
        hidden, layers, heads: channels C, depth, attention heads.
        walk_steps: K, at least 2. Encodings are computed in ``forward`` unless the graph holds them.
        positions: "rrwp"; or, to compare, "rwse" (return probabilities at vertices, nothing at pairs) or "distance"
            (shortest-path length at pairs, one of K classes, nothing at vertices).
        dropout, attention_dropout, clamp, update_pairs, degree_scaler: of every layer.
        pool: "sum", "mean" or "max" for an answer a graph; None for an answer a vertex.
        pair_outputs: whether :meth:`encode_pairs` shall work.
        backend: "dense" (padded blocks of graphs of similar size), "edges" (a row a pair), or "auto" by bytes.

    Attributes:
        encoding: the transform that computes what ``positions`` needs; apply it once to save the time in ``forward``.

    Shapes:
        ``model(data)`` takes a ``Data`` or ``Batch`` and returns [B, out_dim] or [N, out_dim].

    Raises:
        BadInput: sizes below 1, heads that do not divide hidden, walk_steps below 2, an unknown option.
        MemoryEstimateError: in ``forward``, where the pairs of a batch will not fit into memory.
    """

    def __init__(
        self,
        out_dim: int,
        *,
        node_types: int | Sequence[int] | None = None,
        in_dim: int = 0,
        edge_types: int | Sequence[int] | None = None,
        edge_dim: int = 0,
        hidden: int = 64,
        layers: int = 10,
        heads: int = 8,
        walk_steps: int = 21,
        positions: Positions = "rrwp",
        dropout: float = 0.0,
        attention_dropout: float = 0.2,
        clamp: float | None = 5.0,
        update_pairs: bool = True,
        degree_scaler: bool = True,
        pool: Literal["sum", "mean", "max"] | None = "sum",
        pair_outputs: bool = False,
        backend: Backend = "auto",
    ) -> None:
        if min(out_dim, layers, hidden) < 1:
            raise BadInput(f"out_dim, layers and hidden must be 1 or more; got {out_dim}, {layers} and {hidden}")
        if backend not in ("auto", "dense", "edges"):
            raise BadInput(f"backend is auto, dense or edges; got {backend!r}")
        encoding = _encoding(positions, walk_steps)
        blocks = [
            GRITLayer(
                hidden,
                heads,
                dropout=dropout,
                attention_dropout=attention_dropout,
                clamp=clamp,
                update_pairs=update_pairs and (pair_outputs or number < layers - 1),
                degree_scaler=degree_scaler,
            )
            for number in range(layers)
        ]
        super().__init__(
            NodeStem(hidden, node_types, in_dim),
            blocks,
            halving_head(hidden, out_dim) if pool is not None else mlp_head(hidden, out_dim),
            EdgeStem(hidden, edge_types, edge_dim),
            pool,
        )
        self.encoding, self.backend, self.hidden = encoding, backend, hidden
        self.absolute = nn.Linear(walk_steps, hidden, bias=False) if positions != "distance" else None
        self.relative = nn.Linear(walk_steps, hidden, bias=False) if positions != "rwse" else None
        for linear in filter(None, (self.absolute, self.relative)):
            nn.init.xavier_uniform_(linear.weight)
        self.config = GRITConfig(
            out_dim,
            _tuple(node_types),
            in_dim,
            _tuple(edge_types),
            edge_dim,
            hidden,
            layers,
            heads,
            walk_steps,
            positions,
            dropout,
            attention_dropout,
            clamp,
            update_pairs,
            degree_scaler,
            pool,
            pair_outputs,
            backend,
        )

    def encode(self, data: Any) -> Tensor:
        """The vertex states after the last layer, [N, C]."""
        return self._exchange(data)[0]

    def encode_pairs(self, data: Any) -> tuple[Tensor, Tensor]:
        """The states of vertices [N, C] and pairs [P, C] after the last layer; pairs in ``complete_support`` order.

        Raises:
            BadInput: the model was made without ``pair_outputs=True``.
        """
        if not self.config.pair_outputs:
            raise BadInput("this model's last layer keeps no pair states; make it with pair_outputs=True")
        x, e, _ = self._exchange(data)
        return x, e

    @torch.no_grad()
    def attention_maps(self, data: Any) -> list[Tensor]:
        """The attention weights of one graph, a [H, n, n] each layer: entry (h, i, j) is what target i takes from j.

        Raises:
            BadInput: a batch of several graphs.
        """
        if int(getattr(data, "num_graphs", 1)) > 1:
            raise BadInput(f"attention maps are made for one graph; got a batch of {data.num_graphs}")
        training = self.training
        self.eval()
        try:
            _, _, weights = self._exchange(data, keep_weights=True)
        finally:
            self.train(training)
        size = int(data.num_nodes)
        return [rows.t().reshape(-1, size, size) for rows in weights]

    def with_options(self, **changes: Any) -> GRIT:
        """A new, untrained model with some arguments changed, ``degree_scaler=False`` for instance."""
        config = replace(self.config, **changes)
        options = {name: getattr(config, name) for name in config.__dataclass_fields__}
        return GRIT(options.pop("out_dim"), **options)

    def describe(self) -> dict[str, Any]:
        """The arguments as JSON-ready data, which :meth:`from_description` takes."""
        return asdict(self.config)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> GRIT:
        """The untrained model of a description."""
        options = dict(description)
        return cls(options.pop("out_dim"), **options)

    def _exchange(self, data: Any, keep_weights: bool = False) -> tuple[Tensor, Tensor, list[Tensor]]:
        if data.edge_index is None:
            raise BadInput("the graph has no edge_index; a graph without edges has one of shape [2, 0]")
        x: Tensor = self.stem(data)
        batch = data.get("batch")
        batch = torch.zeros(len(x), dtype=torch.long, device=x.device) if batch is None else batch
        support = complete_support(len(x), batch)
        bonded = _pairs_of_edges(data.edge_index, support)
        layout = PairLayout.of(
            support,
            self.backend,
            hidden=self.hidden,
            layers=len(self.blocks),
            element_size=x.element_size(),
        )
        at_vertices, at_pairs = self._positions(data, support)
        if self.absolute is not None and at_vertices is not None:
            x = x + self.absolute(at_vertices.to(self.absolute.weight.dtype))
        e = x.new_zeros((support.num_edges, self.hidden))
        if self.relative is not None and at_pairs is not None:
            e = self.relative(at_pairs.to(self.relative.weight.dtype))
        assert self.edge_stem is not None
        edge: Tensor = self.edge_stem(data)
        if len(edge) != len(bonded):
            raise BadInput(f"edge_attr has {len(edge)} rows for {len(bonded)} edges")
        e = e.index_add(0, bonded, edge.to(e.dtype))
        log_degree = DegreeEncoding().compute(data)["log_degree"].to(x.dtype)
        kept = []
        for layer in cast("list[GRITLayer]", list(self.blocks)):
            x, e, weights = layer.exchange(x, e, layout, log_degree, keep_weights=keep_weights)
            kept += [] if weights is None else [weights]
        return x, e, kept

    def _positions(self, data: Any, support: Support) -> tuple[Tensor | None, Tensor | None]:
        """What is known of vertices [N, K] and of pairs [P, K] before the first layer."""
        steps = self.config.walk_steps
        found = {name: data.get(name) for name in self.encoding.adds}
        # distances have no column a step: one row is one number
        if any(values is None or (values.dim() > 1 and values.shape[-1] != steps) for values in found.values()):
            with torch.no_grad():
                found = self.encoding.compute(data)
        vertices = found.get("rrwp_diagonal", found.get("rwse"))
        pairs = found.get("rrwp", found.get("distance"))
        for values, rows in ((vertices, support.num_vertices), (pairs, support.num_edges)):
            if values is not None and len(values) != rows:
                raise BadInput(
                    f"the graph holds {len(values):,} rows of its encoding ({', '.join(found)}) where {rows:,} are "
                    "needed; remove them, or apply the model's encoding to the graph as it is now"
                )
        if pairs is not None and pairs.dim() == 1:
            pairs = nn.functional.one_hot(pairs.clamp(max=steps - 1), steps)
        vertices, pairs = (None if part is None else part.to(support.batch.device) for part in (vertices, pairs))
        return vertices, pairs


def _encoding(positions: str, steps: int) -> Encoding:
    if positions == "rrwp":
        return RRWP(steps)
    if positions == "rwse":
        return RWSE(steps)
    if positions == "distance":
        if steps < 3:
            raise BadInput(f"distances of {steps} classes tell nothing apart but a vertex from others; give 3 or more")
        return ShortestPathEncoding(steps - 2)  # one class is for all that is farther
    raise BadInput(f"positions is rrwp, rwse or distance; got {positions!r}")


def _pairs_of_edges(edge_index: Tensor, support: Support) -> Tensor:
    """The pair that each edge stands for, [E]: its target is i, its source j."""
    if edge_index.dim() != 2 or len(edge_index) != 2:
        raise BadInput(f"edge_index must be [2, E]; got {list(edge_index.shape)}")
    if edge_index.numel():
        low, high = int(edge_index.min()), int(edge_index.max())
        if low < 0 or high >= support.num_vertices:
            wrong = low if low < 0 else high
            raise BadInput(f"edge_index holds {wrong}; vertices are numbered 0 to {support.num_vertices - 1}")
    source, target = edge_index
    if bool((support.batch[source] != support.batch[target]).any()):
        raise BadInput("an edge joins two graphs of the batch")
    return support.offsets[target] + support.place[source]


def _tuple(types: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    return types if types is None or isinstance(types, int) else tuple(types)
