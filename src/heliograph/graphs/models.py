"""Networks by name, for any task of graphs: what ``heliograph graphs fit --model`` and ``heliograph compare`` build."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from heliograph.errors import BadInput

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "ModelKind", "Shape", "build_model"]

WIDEST_ENCODING = 28


@dataclass(frozen=True)
class Shape:
    """The size of a network.

    Attributes:
        layers, hidden: depth and channels.
        dropout: a share below 1, for the networks that have it.
        walk_steps: of the walk encoding, for the networks that have one; 0 for none.
        pool: "sum", "mean" or "max", for an answer a graph.
        conv: "gcn", "gin" or "gatedgcn", for ``gnn_plus``.
        off: techniques of ``gnn_plus`` to leave out.
    """

    layers: int = 4
    hidden: int = 64
    dropout: float = 0.0
    walk_steps: int = 16
    pool: str = "mean"
    conv: str = "gatedgcn"
    off: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses sizes that no network has."""
        if min(self.layers, self.hidden) < 1 or self.walk_steps < 0 or not 0 <= self.dropout < 1:
            raise BadInput(
                f"layers and hidden must be 1 or more, walk steps 0 or more, dropout in [0, 1); got {self.layers}, "
                f"{self.hidden}, {self.walk_steps} and {self.dropout:g}"
            )


@dataclass(frozen=True)
class ModelKind:
    """One entry of :data:`MODELS`.

    Attributes:
        where: ``module:class``.
        note: what it is, in a few words.
        multiple: the width is a multiple of this.
        encoding: the argument that takes a walk encoding, and how: "pe" an ``RWSE``, "walk_steps" a number, or "".
        takes: fields of :class:`Shape` that the class takes, by the names of its arguments.
        fixed: arguments that make the entry what it is.
        edges: whether it takes edge inputs.
    """

    where: str
    note: str
    multiple: int = 1
    encoding: str = ""
    takes: Mapping[str, str] = field(default_factory=lambda: {n: n for n in ("layers", "hidden", "dropout")})
    fixed: Mapping[str, Any] | None = None
    edges: bool = True


def _classic(conv: str) -> ModelKind:
    plain = {"conv": conv, "edge_features": False, "norm": None, "residual": False, "ffn": False, "pe": None}
    return ModelKind("heliograph.graphs.gnn_plus:GNNPlus", f"{conv.upper()} without the six techniques", fixed=plain)


MODELS: Mapping[str, ModelKind] = {
    "gnn_plus": ModelKind(
        "heliograph.graphs.gnn_plus:GNNPlus",
        "GatedGCN (or --conv) with the six techniques of GNN+",
        encoding="pe",
        takes={name: name for name in ("layers", "hidden", "dropout", "conv")},
    ),
    "grit": ModelKind(
        "heliograph.graphs.grit:GRIT",
        "attention over all pairs, which also renews pair states; walk probabilities of pairs",
        multiple=4,
        encoding="walk_steps",
        fixed={"heads": 4},
    ),
    "graph_mamba": ModelKind(
        "heliograph.graphs.graph_mamba:GraphMamba",
        "walks around each vertex, then all vertices, as sequences of a selective state space",
        encoding="pe",
        takes={"global_layers": "layers", "hidden": "hidden", "dropout": "dropout"},
    ),
    "floydnet": ModelKind(
        "heliograph.graphs.floydnet.graph_model:FloydGraphs",
        "a state for each pair of vertices, pivotal attention; up to 256 vertices",
        multiple=2,
        takes={"layers": "layers", "hidden": "hidden"},
    ),
    "gcn": _classic("gcn"),
    "gin": _classic("gin"),
    "gatedgcn": _classic("gatedgcn"),
    "gps": ModelKind(
        "heliograph.graphs.core.baselines:GPS", "PyG's GPSConv: GINE beside attention", multiple=2, encoding="pe"
    ),
    "mlp": ModelKind(
        "heliograph.graphs.core.baselines:VertexMLP", "each vertex by itself: no messages at all", edges=False
    ),
}


def build_model(name: str, inputs: Mapping[str, Any], level: str, shape: Shape = Shape()) -> nn.Module:
    """An untrained network.

    Args:
        name: of :data:`MODELS`.
        inputs: ``GraphTask.inputs()``: what the graphs hold, and the numbers of an answer.
        level: "graph" or "vertex".
        shape: its size.

    Raises:
        BadInput: no such network, or a size that it cannot have.
    """
    if name not in MODELS:
        raise BadInput(f"no model {name!r}; choose from {', '.join(MODELS)}")
    kind = MODELS[name]
    if shape.hidden % kind.multiple:
        raise BadInput(f"{name} needs a width that is a multiple of {kind.multiple}; got {shape.hidden}")
    options = {argument: getattr(shape, name) for argument, name in kind.takes.items()}
    if kind.encoding == "walk_steps":
        options["walk_steps"] = shape.walk_steps
    elif kind.encoding == "pe":
        options["pe"] = _encoding(shape)
    options |= {"pool": shape.pool if level == "graph" else None} | dict(kind.fixed or {}) | dict(inputs)
    if not kind.edges:
        options.pop("edge_types", None), options.pop("edge_dim", None)
    module, _, attribute = kind.where.partition(":")
    model: Any = getattr(importlib.import_module(module), attribute)(**options)
    if shape.off:
        if name != "gnn_plus":
            raise BadInput(f"techniques can be left out of gnn_plus only, not of {name}")
        model = model.ablate(*shape.off)
    return model  # type: ignore[no-any-return]


def _encoding(shape: Shape) -> Any:
    from heliograph.graphs.core.encodings import RWSE

    width = min(WIDEST_ENCODING, max(1, shape.hidden // 2))
    return RWSE(shape.walk_steps, dim=width) if shape.walk_steps and shape.hidden > 1 else None
