"""The model: tokens of each neighbourhood through a local scan, messages, then a scan over all vertices of each graph.

Source: arXiv:2402.08678, algorithms 1 and 2. Shapes: N vertices, E edges, B graphs, T tokens a vertex, C channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heliograph.errors import BadInput
from heliograph.graphs.core.aggregate import segment_sum
from heliograph.graphs.core.blocks import (
    EdgeStem,
    GatedGCNMixer,
    GCNMixer,
    GINMixer,
    GraphModel,
    NodeBlock,
    NodeStem,
    halving_head,
    mlp_head,
)
from heliograph.graphs.core.encodings import RWSE, Encoding
from heliograph.graphs.core.sampled_walks import EdgeLookup
from heliograph.graphs.graph_mamba.ssm import BidirectionalSSM, Borders
from heliograph.graphs.graph_mamba.tokens import WalkTokens, fresh_seed, make_encoder

__all__ = ["GraphMamba", "GraphMambaConfig", "SampledAnswers"]

Order = Literal["degree", "ppr"] | Callable[[Any], Tensor]
WALK_SEED = 0
RESTART, RANK_STEPS = 0.15, 30


@dataclass(frozen=True)
class GraphMambaConfig:
    """All arguments of a :class:`GraphMamba` but an ``order`` of one's own; JSON-ready."""

    out_dim: int
    node_types: int | tuple[int, ...] | None = None
    in_dim: int = 0
    edge_types: int | tuple[int, ...] | None = None
    edge_dim: int = 0
    hidden: int = 64
    m: int = 2
    walks: int = 8
    samples: int = 4
    local_layers: int = 1
    global_layers: int = 2
    state: int = 16
    expand: int = 1
    bidirectional: bool = True
    encoder: str = "walk"
    mpnn: str | None = "gatedgcn"
    mpnn_layers: int = 1
    order: str = "degree"
    pe: RWSE | None = None
    dropout: float = 0.0
    pool: str | None = None
    resample: bool = False
    eval_samples: int = 1


@dataclass(frozen=True, eq=False)
class SampledAnswers:
    """Answers over several draws of walks, tokens' order and ties.

    Attributes:
        mean: over the draws, [rows, outputs].
        spread: standard deviation over the draws (not of the mean), [rows, outputs].
    """

    mean: Tensor
    spread: Tensor


class GraphMamba(GraphModel):
    """Graph Mamba network (arXiv:2402.08678).

    Each vertex reads its tokens from the farthest to itself by bidirectional selective scans; messages between
    neighbours are added; then all vertices of a graph, those of most neighbours last, are read by such scans. Time and
    memory are linear in vertices and edges.

    Tokens of one length change places at random in training, and so do vertices of equal rank. In evaluation the order
    is that of the graph, so renumbering its vertices changes an answer by ties and drawn walks, and by nothing else;
    :meth:`sample_answers` says by how much.

    Args:
        out_dim: numbers an answer has.
        node_types, in_dim, edge_types, edge_dim: what ``x`` and ``edge_attr`` hold, as in ``GNNPlus``; edges are read
            only where one of the last two is given.
        hidden: channels C.
        m: length of the longest walk; 0 for vertices as the only tokens.
        walks, samples: walks a token and tokens a length. ``samples=0`` means m = 0, with a warning.
        local_layers, global_layers: scans over tokens (where m >= 1) and over vertices.
        state, expand: of the scans.
        bidirectional: False scans forward only.
        encoder: "walk" (features along walks), "mpnn" (GatedGCN on induced subgraphs) or "set" (blind to edges).
        mpnn: "gatedgcn", "gcn" or "gin", whose ``mpnn_layers`` blocks on the inputs are added before the vertices are
            scanned; None for no messages.
        order: "degree" or "ppr" (PageRank with restart 0.15), ascending, or a function from data to numbers [N].
        pe: ``RWSE(steps, dim)`` or None.
        dropout: of what scans and messages add.
        pool: None for an answer a vertex; "sum", "mean" or "max" for one a graph.
        resample: draw new walks in each training step, even where the graph holds some.
        eval_samples: draws whose mean a model in evaluation answers; 1 for the graph's own walks and order.

    Shapes:
        ``model(data)`` takes a ``Data`` or ``Batch`` and returns [N, out_dim] or [B, out_dim]. Walks are read from
        ``data.walks`` (:class:`WalkTokens`) and drawn from a fixed seed where it has none.

    Raises:
        BadInput: an unknown name or a size below its least; in the call, walks of another shape or inputs that are not
            finite.
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
        m: int = 2,
        walks: int = 8,
        samples: int = 4,
        local_layers: int = 1,
        global_layers: int = 2,
        state: int = 16,
        expand: int = 1,
        bidirectional: bool = True,
        encoder: Literal["walk", "mpnn", "set"] = "walk",
        mpnn: Literal["gatedgcn", "gcn", "gin"] | None = "gatedgcn",
        mpnn_layers: int = 1,
        order: Order = "degree",
        pe: RWSE | None = None,
        dropout: float = 0.0,
        pool: Literal["sum", "mean", "max"] | None = None,
        resample: bool = False,
        eval_samples: int = 1,
    ) -> None:
        if m >= 1 and samples == 0:
            warnings.warn("samples=0 leaves no tokens of walks; the model is built with m=0", stacklevel=2)
            m = 0
        if min(out_dim, hidden, walks, samples + (m == 0), mpnn_layers, eval_samples, local_layers + (m == 0)) < 1:
            raise BadInput(
                "out_dim, hidden, walks, samples, local_layers, mpnn_layers and eval_samples must be 1 or more; got "
                f"{out_dim}, {hidden}, {walks}, {samples}, {local_layers}, {mpnn_layers} and {eval_samples}"
            )
        if m < 0 or global_layers < 0:
            raise BadInput(f"m and global_layers must be 0 or more; got {m} and {global_layers}")
        if not callable(order) and order not in ("degree", "ppr"):
            raise BadInput(f"order is degree, ppr or a function from data to numbers [N]; got {order!r}")
        if mpnn not in ("gatedgcn", "gcn", "gin", None):
            raise BadInput(f"mpnn is gatedgcn, gcn, gin or None; got {mpnn!r}")
        edges = edge_types is not None or edge_dim > 0
        blocks = [_message_block(mpnn, hidden, edges, dropout) for _ in range(mpnn_layers)] if mpnn is not None else []
        super().__init__(
            NodeStem(hidden, node_types, in_dim, pe),
            blocks,
            halving_head(hidden, out_dim) if pool is not None else mlp_head(hidden, out_dim),
            EdgeStem(hidden, edge_types, edge_dim) if edges else None,
            pool,
        )
        self.order = order
        self.config = GraphMambaConfig(
            out_dim,
            _tuple(node_types),
            in_dim,
            _tuple(edge_types),
            edge_dim,
            hidden,
            m,
            walks,
            samples,
            local_layers,
            global_layers,
            state,
            expand,
            bidirectional,
            encoder,
            mpnn,
            mpnn_layers,
            order if isinstance(order, str) else "custom",
            pe,
            dropout,
            pool,
            resample,
            eval_samples,
        )
        self.tokens = WalkTokens(m, walks, samples, WALK_SEED) if m else None
        self.encoder = make_encoder(encoder, hidden, m, edges) if m else None
        self.own = nn.Linear(hidden, hidden)

        def scans(count: int) -> nn.ModuleList:
            return nn.ModuleList(
                BidirectionalSSM(hidden, state, expand, bidirectional=bidirectional, dropout=dropout)
                for _ in range(count)
            )

        self.local_scans = scans(local_layers if m else 0)
        self.global_scans = scans(global_layers)
        self.norm = nn.LayerNorm(hidden)

    @property
    def encodings(self) -> tuple[Encoding, ...]:
        """The transforms whose results the model reads: its walk encoding and its tokens, those that it has."""
        return tuple(e for e in (self.config.pe, self.tokens) if e is not None)

    def forward(self, data: Any) -> Tensor:
        """``data``: a ``Data`` or a ``Batch``."""
        if self.training or self.config.eval_samples == 1:
            return self._answer(data, fresh_seed() if self.training else None)
        return self.sample_answers(data, self.config.eval_samples).mean

    def encode(self, data: Any, draw: int | None = None) -> Tensor:
        """The vertex states before the head, [N, C].

        Args:
            data: a graph or batch.
            draw: seed of tokens' order and of ties, and of walks where the graph has none; None for the order of the
                graph and the fixed walks.
        """
        self._check(data)
        x: Tensor = self.stem(data)
        edge = self.edge_stem(data) if self.edge_stem is not None else None
        batch = data.get("batch")
        batch = torch.zeros(len(x), dtype=torch.long, device=x.device) if batch is None else batch
        generator = None if draw is None else torch.Generator().manual_seed(draw)
        y = self._neighbourhoods(x, edge, data, batch, generator)
        if len(self.blocks):
            heard, state = x, edge
            for block in self.blocks:
                heard, state = block(heard, data.edge_index, state)
            y = y + heard
        if len(self.global_scans) and len(y):
            order = self._arrange(data, batch, generator)
            row, borders = y[order].unsqueeze(0), Borders.of_sizes(torch.bincount(batch))
            for scan in self.global_scans:
                row = scan(row, borders)
            y = torch.empty_like(row[0]).index_copy(0, order, row[0])
        out: Tensor = self.norm(y)
        return out

    @torch.no_grad()
    def sample_answers(self, data: Any, samples: int = 8, seed: int = 0) -> SampledAnswers:
        """Answers in evaluation mode over draws of walks, tokens' order and ties, and how far they spread.

        Raises:
            BadInput: ``samples`` below 2, which have no spread.
        """
        if samples < 2:
            raise BadInput(f"a spread needs 2 draws or more; got {samples}")
        training = self.training
        self.eval()
        drawn = data
        if data.get("walks") is not None:
            drawn = data.clone()
            del drawn.walks
        try:
            answers = torch.stack([self._answer(drawn, seed * 1_000_003 + draw) for draw in range(samples)])
        finally:
            self.train(training)
        return SampledAnswers(answers.mean(0), answers.std(0))

    def with_options(self, **changes: Any) -> GraphMamba:
        """A new, untrained model with some arguments changed."""
        config = replace(self.config, **{k: v for k, v in changes.items() if k != "order"})
        options = {name: getattr(config, name) for name in config.__dataclass_fields__}
        options["order"] = changes.get("order", self.order)
        return GraphMamba(options.pop("out_dim"), **options)

    def describe(self) -> dict[str, Any]:
        """The arguments as JSON-ready data, which :meth:`from_description` takes.

        Raises:
            BadInput: ``order`` is a function, which no file can hold.
        """
        if not isinstance(self.order, str):
            raise BadInput(
                "a model with an order of your own cannot be described in a file; save its state_dict instead"
            )
        return asdict(self.config)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> GraphMamba:
        """The untrained model of a description."""
        options = dict(description)
        if options.get("pe") is not None:
            options["pe"] = RWSE(**options["pe"])
        return cls(options.pop("out_dim"), **options)

    def _answer(self, data: Any, draw: int | None) -> Tensor:
        return self.read_out(self.encode(data, draw), data)

    def _neighbourhoods(
        self, x: Tensor, edge: Tensor | None, data: Any, batch: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """What each vertex makes of its tokens, [N, C]: the state at the last one, the vertex itself."""
        own: Tensor = self.own(x)
        if self.tokens is None or self.encoder is None or not len(x):
            return own
        m, samples = self.config.m, self.config.samples
        walks = self._walks(data, batch, generator)
        lookup = EdgeLookup(data.edge_index, len(x))
        tokens = self.encoder(x, walks, samples, lookup, data.edge_index, edge)
        tokens = tokens.view(len(x), m, samples, -1).flip(1)  # the farthest first
        if generator is not None:
            places = torch.rand(len(x), m, samples, generator=generator).argsort(-1).to(x.device)
            tokens = tokens.gather(2, places.unsqueeze(-1).expand_as(tokens))
        row = torch.cat([tokens.flatten(1, 2), own.unsqueeze(1)], dim=1)
        for scan in self.local_scans:
            row = scan(row)
        return row[:, -1]

    def _walks(self, data: Any, batch: Tensor, generator: torch.Generator | None) -> Tensor:
        """The walks with vertices numbered as in the batch, [N, T, M, m + 1]; -1 after a walk's end."""
        tokens = self.tokens
        assert tokens is not None
        walks = data.get("walks")
        wanted = (len(batch), tokens.m * tokens.samples, tokens.walks, tokens.m + 1)
        if walks is None or (self.training and self.config.resample):
            seed = WALK_SEED if generator is None else int(torch.randint(2**62, (), generator=generator))
            walks = tokens.draw(data, seed)
        elif tuple(walks.shape) != wanted:
            raise BadInput(
                f"the graph's walks are {list(walks.shape)}, the model reads {list(wanted)}; use {tokens!r} or remove "
                "data.walks"
            )
        sizes = torch.bincount(batch)
        start = (sizes.cumsum(0) - sizes)[batch]
        return torch.where(walks >= 0, walks.long() + start[:, None, None, None], -1)

    def _arrange(self, data: Any, batch: Tensor, generator: torch.Generator | None) -> Tensor:
        """The vertices graph by graph, each graph's by ascending rank, [N]."""
        size = len(batch)
        if callable(self.order):
            rank = self.order(data)
            if tuple(rank.shape) != (size,):
                raise BadInput(f"order must give a number for each of {size} vertices; got {list(rank.shape)}")
        elif self.order == "ppr":
            rank = _page_rank(data.edge_index, batch)
        else:
            rank = torch.bincount(data.edge_index[1], minlength=size)
        order = (
            torch.arange(size, device=batch.device)
            if generator is None
            else torch.randperm(size, generator=generator).to(batch.device)
        )
        order = order[rank[order].argsort(stable=True)]
        return order[batch[order].argsort(stable=True)]

    def _check(self, data: Any) -> None:
        batch = data.get("batch")
        if batch is not None and len(batch) and bool((batch[1:] < batch[:-1]).any()):
            raise BadInput("the batch vector must ascend: vertices of one graph lie together")
        for name in ("x", "edge_attr"):
            values = data.get(name)
            if values is not None and values.is_floating_point() and not bool(values.isfinite().all()):
                raise BadInput(f"{name} holds NaN or infinity; a scan would carry it to every vertex of the graph")


def _message_block(mpnn: str, dim: int, edges: bool, dropout: float) -> NodeBlock:
    makers: dict[str, Callable[[int, bool], nn.Module]] = {
        "gatedgcn": GatedGCNMixer,
        "gcn": GCNMixer,
        "gin": GINMixer,
    }
    return NodeBlock(makers[mpnn](dim, edges), dim, dropout=dropout, feed_forward=False, edge_features=edges)


def _page_rank(edge_index: Tensor, batch: Tensor) -> Tensor:
    """PageRank within each graph, [N] in float64; what a vertex without outgoing edges holds goes to all alike."""
    size = len(batch)
    count = torch.bincount(batch).double()[batch]
    source, target = edge_index
    degree = torch.bincount(source, minlength=size)
    graphs = int(batch[-1]) + 1 if size else 0
    rank = 1 / count
    for _ in range(RANK_STEPS):
        sent = segment_sum((rank / degree.clamp(min=1))[source], target, size)
        stuck = segment_sum(torch.where(degree == 0, rank, 0.0), batch, graphs)[batch] / count
        rank = RESTART / count + (1 - RESTART) * (sent + stuck)
    return rank


def _tuple(types: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    return types if types is None or isinstance(types, int) else tuple(types)
