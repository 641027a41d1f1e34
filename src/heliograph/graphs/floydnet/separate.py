"""Which graphs an untrained network tells apart: the protocol behind the claim that order k has the power of k-FWL.

A pair counts as separated when the distance between the two graphs' fingerprints exceeds a multiple of the noise that
relabelling alone produces, in float64 (arXiv:2601.19094; the paired test of BREC, arXiv:2304.07702, is beside it).

Shapes: B graphs, N vertices, S the vertex axes of the state, C channels, R relabellings.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import networkx as nx
import numpy as np
import torch
from torch import Tensor, nn

from heliograph.errors import BadInput
from heliograph.graphs.floydnet.attention import attend_tuples
from heliograph.graphs.floydnet.embedding import StateEmbedding
from heliograph.graphs.floydnet.inputs import batch_graphs

__all__ = ["PivotalProbe", "Separation", "brec_statistic", "measure_separation", "wl_distinguishes"]

Graph: TypeAlias = nx.Graph | np.ndarray | Tensor

BREC_THRESHOLD = 72.34
_ROUNDING = 64 * torch.finfo(torch.float64).eps  # relative; below it a distance is no distance


class PivotalProbe(nn.Module):
    """The untrained, residual-free network of the expressiveness protocol: x <- pivotal(standardise(x)), in float64.

    Standardisation runs over each graph by itself (the paper's code runs it over the batch, which couples graphs).

    Args:
        order: 2 (pairs) or 3 (triples).
        dim, heads, depth: channels, heads, layers; each layer has its own random projections.
        sharpness: scores are multiplied by sharpness / sqrt(channels a head); default 50 at order 2, 5 at order 3.
        seed: of the random weights.
        chunk: rows at a time in the attention.
    """

    def __init__(
        self,
        order: int = 2,
        dim: int = 16,
        heads: int = 2,
        depth: int = 16,
        sharpness: float | None = None,
        seed: int = 0,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        if order not in (2, 3):
            raise BadInput(f"order is 2 (pairs) or 3 (triples); got {order}")
        if dim < 1 or heads < 1 or dim % heads:
            raise BadInput(f"heads must divide dim; got dim={dim}, heads={heads}")
        self.order, self.heads, self.chunk = order, heads, chunk
        self.scale = (sharpness or (50.0 if order == 2 else 5.0)) / math.sqrt(dim // heads)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = StateEmbedding(dim, order, None, None, super_node=False, diffusion=False)
            self.projections = nn.ModuleList(nn.Linear(dim, (2 * order + 1) * dim, bias=False) for _ in range(depth))
            for projection in self.projections:
                nn.init.normal_(projection.weight, std=dim**-0.5)  # type: ignore[arg-type]
        self.double().requires_grad_(False)

    def fingerprint(self, adj: Tensor) -> Tensor:
        """The mean over tuples of the last state, [B, C]; adj [B, N, N]."""
        state_BSC, _ = self.embedding(adj)
        axes = tuple(range(1, state_BSC.dim()))
        for projection in self.projections:
            centred = state_BSC - state_BSC.mean(dim=axes, keepdim=True)
            spread = centred.square().mean(dim=axes, keepdim=True).sqrt()
            parts = projection(centred / spread.clamp(min=1e-12)).chunk(2 * self.order + 1, dim=-1)
            q, *keys_values = (part.unflatten(-1, (self.heads, -1)).movedim(-2, 1) for part in parts)
            keys, values = keys_values[: self.order], keys_values[self.order :]
            gathered_BHSD = attend_tuples(q, keys, values, scale=self.scale, chunk=self.chunk)
            state_BSC = gathered_BHSD.movedim(1, -2).flatten(-2)
        fingerprint_BC: Tensor = state_BSC.flatten(1, -2).mean(dim=1)
        return fingerprint_BC

    forward = fingerprint


@dataclass(frozen=True)
class Separation:
    """How far two graphs' fingerprints are apart, beside what relabelling alone does to a fingerprint.

    Attributes:
        distance: Euclidean distance between the two mean fingerprints.
        noise: largest distance of a relabelled graph's fingerprint from its graph's mean; at least rounding error.
        ratio: what distance / noise has to exceed.
    """

    distance: float
    noise: float
    ratio: float = 100.0

    @property
    def separated(self) -> bool:
        """Whether the distance is more than ``ratio`` times the noise."""
        return self.distance > self.ratio * self.noise


def wl_distinguishes(
    model: nn.Module, g1: Graph, g2: Graph, relabellings: int = 8, ratio: float = 100.0, seed: int = 0
) -> bool:
    """Whether the model gives the two graphs different fingerprints, relabelling noise considered.

    Args:
        model: anything with ``fingerprint(adj [B, N, N]) -> [B, C]``: a :class:`PivotalProbe`, or a ``FloydNet``
            without features (a fresh one is the identity and separates little: train it first). Run as a float64 copy
            in eval mode; the model itself is not touched.
        g1, g2: networkx graphs or square 0/1 arrays.
        relabellings: random vertex orders of each graph.
        ratio: see :class:`Separation`.
        seed: of the vertex orders.
    """
    return measure_separation(model, g1, g2, relabellings, ratio, seed).separated


def measure_separation(
    model: nn.Module, g1: Graph, g2: Graph, relabellings: int = 8, ratio: float = 100.0, seed: int = 0
) -> Separation:
    """The distance and the noise behind :func:`wl_distinguishes`."""
    if relabellings < 2:
        raise BadInput(f"noise needs at least 2 relabellings; got {relabellings}")
    first_RC, second_RC = _relabelled_fingerprints(model, (g1, g2), relabellings, seed)
    means = first_RC.mean(dim=0), second_RC.mean(dim=0)
    spreads = [(p - mean).norm(dim=1).max() for p, mean in zip((first_RC, second_RC), means, strict=True)]
    floor = _ROUNDING * max(means[0].norm().item(), means[1].norm().item(), 1.0)
    noise = max(spreads[0].item(), spreads[1].item(), floor)
    return Separation((means[0] - means[1]).norm().item(), noise, ratio)


def brec_statistic(
    model: nn.Module, g1: Graph, g2: Graph, relabellings: int = 32, outputs: int = 16, seed: int = 0
) -> float:
    """Hotelling's T^2 of BREC's paired test, to be held against ``BREC_THRESHOLD``; g1 = g2 gives its reliability run.

    Fingerprints pass a random linear head to ``outputs`` channels; D = X - Y over paired relabellings; the statistic is
    mean(D)' pinv(cov D) mean(D), without the factor R of the textbook, as BREC computes it. An untrained probe's
    noise is rounding error, which has no distribution to speak of: read this beside :func:`measure_separation`.
    """
    first_RC, second_RC = _relabelled_fingerprints(model, (g1, g2), relabellings, seed)
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(first_RC.shape[1], outputs, generator=generator, dtype=torch.float64) / outputs**0.5
    difference_RO = (first_RC - second_RC) @ head.to(first_RC.device)
    mean = difference_RO.mean(dim=0)
    return float(mean @ torch.linalg.pinv(torch.cov(difference_RO.T)) @ mean)


@torch.no_grad()
def _relabelled_fingerprints(model: nn.Module, graphs: Sequence[Graph], relabellings: int, seed: int) -> list[Tensor]:
    if not hasattr(model, "fingerprint"):
        raise BadInput(f"{type(model).__name__} has no fingerprint(adj) method; use PivotalProbe or FloydNet")
    model = copy.deepcopy(model).double().eval()
    fingerprint: Callable[[Tensor], Tensor] = model.fingerprint  # type: ignore[assignment]
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    prints = []
    for graph in graphs:
        adj = batch_graphs([graph]).adj[0]
        orders = [torch.randperm(len(adj), generator=generator) for _ in range(relabellings)]
        rows = [fingerprint(adj[order][:, order][None].to(device)) for order in orders]
        prints.append(torch.cat(rows))
    return prints
