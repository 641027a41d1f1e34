"""Shortest-path lengths read from walk probabilities of pairs by a small network, on graphs it has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import networkx as nx
import torch
from torch import Tensor, nn

from heliograph.graphs.core.encodings import RRWP, RWSE, ShortestPathEncoding
from heliograph.graphs.core.fit import one_cycle, train_supervised
from heliograph.trials.check import Context

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["measure"]

FLOOR = 1e-6
HIDDEN = 64
BLIND = 0.7  # what two ends can tell of their distance without knowing of each other, at most


def measure(context: Context) -> Mapping[str, Any]:
    """``accuracy``: the share of pairs of unseen graphs whose capped distance is read; ``blind``: whether it is low."""
    load = context.workload
    steps = load["walk_steps"]
    graphs = [
        _data(nx.gnp_random_graph(load["vertices"], load["chance"], seed=context.seed * 100_003 + number))
        for number in range(load["train"] + load["test"])
    ]
    pairs = [(_features(graph, context.contender, steps), _distances(graph, steps)) for graph in graphs]
    train, test = pairs[: load["train"]], pairs[load["train"] :]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        network = nn.Sequential(
            nn.Linear(train[0][0].shape[1], HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, steps + 1),
        )
    count = load["epochs"] * len(train)
    train_supervised(
        network,
        train,
        lambda model, pair: nn.functional.cross_entropy(model(pair[0]), pair[1]),
        steps=count,
        learning_rate=load["rate"],
        betas=(0.9, 0.999),
        clip_value=None,
        clip_norm=1.0,
        schedule=one_cycle,
        seed=context.seed,
        callback=lambda step, loss: context.progress(step / count, f"loss {loss:.3g}") if step % 100 == 0 else None,
    )
    with torch.no_grad():
        right = torch.cat([network(features).argmax(-1) == lengths for features, lengths in test])
    accuracy = float(right.double().mean())
    return {"accuracy": accuracy, "blind": accuracy <= BLIND}


def _data(graph: nx.Graph) -> Data:
    from torch_geometric.data import Data

    edges = torch.tensor(list(graph.edges), dtype=torch.long).reshape(-1, 2).t()
    return Data(edge_index=torch.cat([edges, edges.flip(0)], dim=1), num_nodes=len(graph))


def _features(graph: Any, kind: str, steps: int) -> Tensor:
    """A row for each pair: walks between its ends, their logarithms, or only what each end knows of itself."""
    if kind == "both ends":
        own = RWSE(steps)(graph).rwse
        size = len(own)
        return torch.cat([own.repeat_interleave(size, 0), own.repeat(size, 1)], dim=1)
    walks: Tensor = RRWP(steps)(graph).rrwp
    return torch.log(walks + FLOOR) if kind == "log walks" else walks


def _distances(graph: Any, steps: int) -> Tensor:
    """The classes 0 to K: lengths up to K - 1, which K powers can tell apart, and K for all that is farther."""
    lengths: Tensor = ShortestPathEncoding(steps - 1)(graph).distance
    return lengths
