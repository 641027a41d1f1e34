"""The arms of the check: GRIT, its ablations, a plain transformer, GPS and GatedGCN+, at equal parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from heliograph.graphs.core.aggregate import segment_sum
from heliograph.graphs.core.attend import attend
from heliograph.graphs.core.baselines import GPS
from heliograph.graphs.core.blocks import EdgeStem, NodeStem, halving_head, mlp_head
from heliograph.graphs.core.encodings import RWSE, Encoding
from heliograph.graphs.core.message_passing import count_parameters, match_width
from heliograph.graphs.core.states import MaskedBatchNorm
from heliograph.graphs.core.support import Support, complete_support
from heliograph.graphs.core.tasks import GraphTask
from heliograph.graphs.gnn_plus import GNNPlus
from heliograph.graphs.grit import GRIT

__all__ = ["ABLATIONS", "PlainTransformer", "build_arm", "encoding_of"]

TOLERANCE = 0.05
MULTIPLES = {"plain": 4, "gps": 2, "gatedgcn+": 1}  # of the width, where heads must divide it
ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "walks at vertices only": {"positions": "rwse"},
    "distances for walks": {"positions": "distance"},
    "frozen pairs": {"update_pairs": False},
    "no degree scaler": {"degree_scaler": False},
}


class PlainTransformer(nn.Module):
    """Dot-product attention over all vertices of a graph, with bond embeddings and a walk encoding of vertices.

    A bond's embedding becomes one number a head that is added to the pair's score. Norms, feed-forward parts, stems,
    pooling and heads are those of GRIT; what is missing are walks between vertices, pair states and degrees.
    """

    def __init__(
        self, out_dim: int, *, layers: int, hidden: int, heads: int, pe: RWSE, pool: str | None, **inputs: Any
    ) -> None:
        super().__init__()
        self.stem = NodeStem(hidden, inputs.get("node_types"), inputs.get("in_dim", 0), pe)
        self.edge_stem = EdgeStem(hidden, inputs.get("edge_types"), inputs.get("edge_dim", 0))
        self.layers = nn.ModuleList(_PlainLayer(hidden, heads) for _ in range(layers))
        self.head = halving_head(hidden, out_dim) if pool is not None else mlp_head(hidden, out_dim)
        self.pool = pool

    def forward(self, data: Any) -> Tensor:
        """[B, out_dim] or [N, out_dim]."""
        x, edge = self.stem(data), self.edge_stem(data)
        batch = data.get("batch")
        batch = torch.zeros(len(x), dtype=torch.long, device=x.device) if batch is None else batch
        support = complete_support(len(x), batch)
        source, target = data.edge_index
        bonds = support.offsets[target] + support.place[source]
        for layer in self.layers:
            x = layer(x, edge, bonds, support)
        if self.pool is not None:
            x = segment_sum(x, batch, int(getattr(data, "num_graphs", 1)))
        out: Tensor = self.head(x)
        return out


class _PlainLayer(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mix, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.bias = nn.Linear(hidden, heads, bias=False)
        self.norm, self.feed_forward_norm = MaskedBatchNorm(hidden), MaskedBatchNorm(hidden)
        self.feed_forward = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, hidden))

    def forward(self, x: Tensor, edge: Tensor, bonds: Tensor, support: Support) -> Tensor:
        q, k, v = self.mix(x).unflatten(-1, (3, self.heads, -1)).unbind(1)
        bias = x.new_zeros((support.num_edges, self.heads)).index_add(0, bonds, self.bias(edge))
        x = self.norm(x + self.out(attend(support, q, k, v, bias).flatten(1)))
        normed: Tensor = self.feed_forward_norm(x + self.feed_forward(x))
        return normed


def encoding_of(name: str, load: Any) -> Encoding:
    """What an arm knows of where a vertex is."""
    if name in ("plain", "gps", "gatedgcn+"):
        return RWSE(load["walk_steps"], dim=load["walk_dim"])
    with torch.device("meta"):
        return GRIT(1, hidden=1, heads=1, layers=1, **_options(name, load)).encoding


def build_arm(name: str, task: GraphTask, load: Any, seed: int) -> nn.Module:
    """An untrained arm.

    Args:
        name: "grit", an ablation, "plain", "gps" or "gatedgcn+"; the last three are widened or narrowed until they have
            the number of parameters of "grit" within 5 %.
        task: what it is for.
        load: ``layers``, ``hidden``, ``heads``, ``walk_steps`` and ``walk_dim``.
        seed: of the weights.
    """
    pooling = "sum" if task.target.level == "graph" else None
    common: dict[str, Any] = {**task.inputs(), "layers": load["layers"], "pool": pooling}

    def grit(arm: str) -> nn.Module:
        return GRIT(**common, hidden=load["hidden"], heads=load["heads"], attention_dropout=0.0, **_options(arm, load))

    builders: dict[str, Callable[[int], nn.Module]] = {
        "plain": lambda width: PlainTransformer(
            hidden=width,
            heads=_heads(width, load["heads"]),
            pe=RWSE(load["walk_steps"], dim=load["walk_dim"]),
            **common,
        ),
        "gps": lambda width: GPS(hidden=width, pe=RWSE(load["walk_steps"], dim=load["walk_dim"]), **common),
        "gatedgcn+": lambda width: GNNPlus(
            conv="gatedgcn", hidden=width, pe=RWSE(load["walk_steps"], dim=load["walk_dim"]), **common
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name not in builders:
            return grit(name)
        with torch.device("meta"):
            parameters = count_parameters(grit("grit"))
        least = load["walk_dim"] + 4  # no narrower than the encoding beside the inputs

        def sized(width: int) -> nn.Module:
            return builders[name](max(width, least))

        return sized(match_width(sized, parameters, TOLERANCE, multiple=MULTIPLES[name], largest=1024))


def _heads(width: int, wanted: int) -> int:
    return next(heads for heads in range(wanted, 0, -1) if width % heads == 0)


def _options(name: str, load: Any) -> dict[str, Any]:
    if name != "grit" and name not in ABLATIONS:
        raise KeyError(name)
    return {"walk_steps": load["walk_steps"], **ABLATIONS.get(name, {})}
