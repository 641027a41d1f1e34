"""The arms of the check: Graph Mamba and its ablations, a residual GCN, and GPS, at equal parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from heliograph.graphs.core.aggregate import segment_mean
from heliograph.graphs.core.blocks import EdgeStem, NodeStem, halving_head, mlp_head
from heliograph.graphs.core.encodings import RWSE
from heliograph.graphs.core.message_passing import count_parameters, match_width
from heliograph.graphs.gnn_plus import GNNPlus
from heliograph.graphs.graph_mamba import GraphMamba

__all__ = ["ABLATIONS", "GPS", "TOLERANCE", "build_arm"]

TOLERANCE = 0.05
ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "graph_mamba, m=0": {"m": 0},
    "one direction": {"bidirectional": False},
    "no messages": {"mpnn": None},
    "ppr order": {"order": "ppr"},
    "no encoding": {"pe": None},
}


class GPS(nn.Module):
    """The graph transformer GPS (arXiv:2205.12454) by PyG's ``GPSConv``: gated convolution beside attention.

    Four attention heads, or two where four do not divide the width.

    Args:
        store_scores: compute attention as the formula stands, so that all pairs' weights are kept for the backward
            pass; False leaves it to torch, which picks a fused kernel where it has one.
        inputs: ``node_types``, ``in_dim``, ``edge_types`` and ``edge_dim``.
    """

    def __init__(
        self,
        out_dim: int,
        *,
        layers: int,
        hidden: int,
        pe: RWSE | None = None,
        pool: str | None = None,
        store_scores: bool = False,
        **inputs: Any,
    ) -> None:
        from torch_geometric.nn import GPSConv, ResGatedGraphConv

        super().__init__()
        self.pool, self.store_scores = pool, store_scores
        self.stem = NodeStem(hidden, inputs.get("node_types"), inputs.get("in_dim", 0), pe)
        edges = inputs.get("edge_types") is not None or inputs.get("edge_dim", 0) > 0
        self.edge_stem = EdgeStem(hidden, inputs.get("edge_types"), inputs.get("edge_dim", 0)) if edges else None
        heads = 4 if hidden % 4 == 0 else 2
        self.layers = nn.ModuleList(
            GPSConv(hidden, ResGatedGraphConv(hidden, hidden, edge_dim=hidden if edges else None), heads)
            for _ in range(layers)
        )
        self.head = halving_head(hidden, out_dim) if pool is not None else mlp_head(hidden, out_dim)

    def forward(self, data: Any) -> Tensor:
        """[B, out_dim] or [N, out_dim]."""
        x = self.stem(data)
        given = {} if self.edge_stem is None else {"edge_attr": self.edge_stem(data)}
        batch = data.get("batch")
        batch = torch.zeros(len(x), dtype=torch.long, device=x.device) if batch is None else batch
        with sdpa_kernel(SDPBackend.MATH) if self.store_scores else nullcontext():
            for layer in self.layers:
                x = layer(x, data.edge_index, batch, **given)
        if self.pool is not None:
            x = segment_mean(x, batch, int(getattr(data, "num_graphs", 1)))
        out: Tensor = self.head(x)
        return out


def build_arm(name: str, inputs: Mapping[str, Any], load: Any, seed: int) -> nn.Module:
    """An untrained arm.

    Args:
        name: "graph_mamba", one of :data:`ABLATIONS`, "gcn" or "gps". All but the first are widened or narrowed until
            they have its number of parameters within 5 %.
        inputs: ``out_dim``, ``pool`` and what ``x`` and ``edge_attr`` hold.
        load: ``hidden``, ``layers``, ``global_layers``, ``state``, ``m``, ``walks``, ``samples``, ``pe_steps`` and
            ``pe_dim``.
        seed: of the weights.
    """
    pe = RWSE(load["pe_steps"], dim=load["pe_dim"])

    def mamba(hidden: int, **changes: Any) -> nn.Module:
        options = {
            "mpnn_layers": load["layers"],
            **{key: load[key] for key in ("m", "walks", "samples", "state", "global_layers")},
            "pe": pe,
            **changes,
        }
        return GraphMamba(hidden=hidden, **inputs, **options)

    def gcn(hidden: int) -> nn.Module:
        return GNNPlus(hidden=hidden, **inputs, conv="gcn", layers=load["layers"], edge_features=False, pe=pe)

    def gps(hidden: int) -> nn.Module:
        return GPS(hidden=hidden, **inputs, layers=load["layers"], pe=pe)

    builders: dict[str, Callable[..., nn.Module]] = {"gcn": gcn, "gps": gps} | {
        arm: functools.partial(mamba, **changes) for arm, changes in ABLATIONS.items()
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "graph_mamba":
            return mamba(load["hidden"])
        with torch.device("meta"):
            parameters = count_parameters(mamba(load["hidden"]))
        multiple = 2 if name == "gps" else 1  # heads divide the width
        least = (load["pe_dim"] // multiple + 1) * multiple  # the encoding takes a part of the width

        def sized(hidden: int) -> nn.Module:
            return builders[name](max(hidden, least))

        return sized(match_width(sized, parameters, TOLERANCE, multiple, largest=1024))
