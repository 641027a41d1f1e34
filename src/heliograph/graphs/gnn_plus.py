"""GNN+: neighbours exchange classic GCN, GIN or GatedGCN messages, wrapped in six techniques (arXiv:2502.09263).

The six are independent switches: edge features in messages, normalisation, dropout, residuals, a feed-forward part,
and a random-walk encoding of each vertex. With all of them off a model is the classic network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from torch import nn

from heliograph.errors import BadInput
from heliograph.graphs.core.blocks import (
    EdgeStem,
    GatedGCNMixer,
    GCNMixer,
    GINMixer,
    GraphModel,
    NodeBlock,
    NodeStem,
    PyGMixer,
    halving_head,
    mlp_head,
)
from heliograph.graphs.core.encodings import RWSE

__all__ = ["SWITCHES", "GNNPlus", "GNNPlusConfig"]

SWITCHES = ("edge_features", "norm", "dropout", "residual", "ffn", "pe")

Conv = Literal["gcn", "gin", "gatedgcn"]


@dataclass(frozen=True)
class GNNPlusConfig:
    """All arguments of a :class:`GNNPlus` but a ``conv`` of one's own; JSON-ready."""

    out_dim: int
    node_types: int | tuple[int, ...] | None = None
    in_dim: int = 0
    edge_types: int | tuple[int, ...] | None = None
    edge_dim: int = 0
    conv: str = "gcn"
    layers: int = 6
    hidden: int = 64
    edge_features: bool = True
    norm: str | None = "batch"
    dropout: float = 0.0
    residual: bool = True
    ffn: bool = True
    pe: RWSE | None = None
    pool: str | None = "mean"


class GNNPlus(GraphModel):
    """A classic graph network with the six techniques of GNN+.

    In every layer, as in the official code: convolution, norm, ReLU, dropout, residual; then norm, a feed-forward part
    of width 2 C with its own residual, norm. GIN has no norm right after the convolution, since its own MLP ends
    there; where ``ffn=False`` leaves it no other place, it has.

    Args:
        out_dim: numbers an answer has.
        node_types: vocabulary of whole-number ``x``, one a column; or ``in_dim``, channels of floating-point ``x``;
            neither for graphs without ``x``.
        edge_types, edge_dim: the same for ``edge_attr``; neither gives all edges one learned vector.
        conv: "gcn", "gin", "gatedgcn", or a function from C to a layer of PyTorch Geometric.
        layers, hidden: depth and channels C.
        edge_features, norm, dropout, residual, ffn, pe: the six switches. ``norm`` is "batch", "layer" or None; ``pe``
            is ``RWSE(steps, dim)`` or None. Encodings are computed in ``forward`` unless the graph holds ``rwse``.
        pool: "sum", "mean" or "max" for an answer a graph; None for an answer a vertex.

    Shapes:
        ``model(data)`` takes a ``Data`` or ``Batch`` and returns [B, out_dim] or [N, out_dim].

    Raises:
        BadInput: an unknown conv, norm or pool; sizes below 1; an encoding as wide as the model.
    """

    def __init__(
        self,
        out_dim: int,
        *,
        node_types: int | Sequence[int] | None = None,
        in_dim: int = 0,
        edge_types: int | Sequence[int] | None = None,
        edge_dim: int = 0,
        conv: Conv | Callable[[int], nn.Module] = "gcn",
        layers: int = 6,
        hidden: int = 64,
        edge_features: bool = True,
        norm: Literal["batch", "layer"] | None = "batch",
        dropout: float = 0.0,
        residual: bool = True,
        ffn: bool = True,
        pe: RWSE | None = RWSE(20, dim=28),  # noqa: B008 - frozen
        pool: Literal["sum", "mean", "max"] | None = "mean",
    ) -> None:
        if min(out_dim, layers, hidden) < 1:
            raise BadInput(f"out_dim, layers and hidden must be 1 or more; got {out_dim}, {layers} and {hidden}")
        block = {"norm": norm, "dropout": dropout, "residual": residual, "feed_forward": ffn}
        blocks = []
        for _ in range(layers):
            mixer = _make_mixer(conv, hidden, edge_features)
            after = not isinstance(mixer, GINMixer) or not ffn
            given = bool(getattr(mixer, "edge_features", False)) and edge_features
            blocks.append(NodeBlock(mixer, hidden, edge_features=given, norm_after_mixer=after, **block))  # type: ignore[arg-type]
        super().__init__(
            NodeStem(hidden, node_types, in_dim, pe),
            blocks,
            halving_head(hidden, out_dim) if pool is not None else mlp_head(hidden, out_dim),
            EdgeStem(hidden, edge_types, edge_dim) if any(b.edge_features for b in blocks) else None,
            pool,
        )
        self.conv = conv
        self.config = GNNPlusConfig(
            out_dim,
            _tuple(node_types),
            in_dim,
            _tuple(edge_types),
            edge_dim,
            conv if isinstance(conv, str) else "custom",
            layers,
            hidden,
            edge_features,
            norm,
            dropout,
            residual,
            ffn,
            pe,
            pool,
        )

    def ablate(self, *switches: str) -> GNNPlus:
        """A new, untrained model with these of the six techniques off.

        Raises:
            BadInput: a name that is none of :data:`SWITCHES`.
        """
        off = {"edge_features": False, "norm": None, "dropout": 0.0, "residual": False, "ffn": False, "pe": None}
        for name in switches:
            if name not in off:
                raise BadInput(f"{name!r} is no switch; choose from {', '.join(SWITCHES)}")
        return self.with_options(**{name: off[name] for name in switches})

    def plain(self) -> GNNPlus:
        """A new, untrained model with all six techniques off: the classic network."""
        return self.ablate(*SWITCHES)

    def with_options(self, **changes: Any) -> GNNPlus:
        """A new, untrained model with some arguments changed, ``hidden`` for instance."""
        config = replace(self.config, **changes)
        options = {name: getattr(config, name) for name in config.__dataclass_fields__}
        options["conv"] = changes.get("conv", self.conv)
        return GNNPlus(options.pop("out_dim"), **options)

    def describe(self) -> dict[str, Any]:
        """The arguments as JSON-ready data, which :meth:`from_description` takes.

        Raises:
            BadInput: ``conv`` is a function, which no file can hold.
        """
        if not isinstance(self.conv, str):
            raise BadInput("a model with a conv of your own cannot be described in a file; save its state_dict instead")
        return asdict(self.config)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> GNNPlus:
        """The untrained model of a description."""
        options = dict(description)
        if options.get("pe") is not None:
            options["pe"] = RWSE(**options["pe"])
        return cls(options.pop("out_dim"), **options)


def _make_mixer(conv: Conv | Callable[[int], nn.Module], dim: int, edge_features: bool) -> nn.Module:
    if conv == "gcn":
        return GCNMixer(dim, edge_features)
    if conv == "gin":
        return GINMixer(dim, edge_features)
    if conv == "gatedgcn":
        return GatedGCNMixer(dim, edge_features)
    if callable(conv):
        return PyGMixer(conv(dim))
    raise BadInput(f"conv is gcn, gin, gatedgcn or a function from channels to a layer; got {conv!r}")


def _tuple(types: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    return types if types is None or isinstance(types, int) else tuple(types)
