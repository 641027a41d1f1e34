"""Neighbourhood tokens: what walks of each length reach, drawn once as a transform, and three ways to encode them.

For each vertex and each length r from 1 to m there are s tokens; a token is what M walks of length r have visited
(arXiv:2402.08678, section 4.1). Token (r, j) has row (r - 1) s + j.

Shapes: N vertices, E edges, T = m s tokens a vertex, M walks a token, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from heliograph.errors import BadInput, MemoryEstimateError
from heliograph.graphs.core.aggregate import segment_max, segment_mean
from heliograph.graphs.core.blocks import GatedGCNMixer
from heliograph.graphs.core.encodings import Encoding
from heliograph.graphs.core.sampled_walks import EdgeLookup, sample_walks

__all__ = ["SetEncoder", "SubgraphEncoder", "WalkEncoder", "WalkTokens", "make_encoder"]

WINDOW = 8
"""How many steps back a walk's structure is described, as in CRaWl (arXiv:2102.08786)."""
INDUCED_BUDGET_BYTES = 2 * 2**30


@dataclass(frozen=True, repr=True)
class WalkTokens(Encoding):
    """Draws the walks of all tokens: ``walks`` [N, T, M, m + 1], int32.

    Numbers are vertices of the walk's own graph; -1 follows the end of a walk shorter than m. Draw them after a graph
    has its final vertices: a subgraph taken later numbers its vertices anew.

    Args:
        m: the longest walk, 1 or more.
        walks: M.
        samples: s, tokens of each length.
        seed: of the draw; None draws anew at each call, from torch's global generator.
    """

    m: int = 2
    walks: int = 8
    samples: int = 4
    seed: int | None = 0
    adds: ClassVar[tuple[str, ...]] = ("walks",)

    def __post_init__(self) -> None:
        """Refuses sizes below 1."""
        if min(self.m, self.walks, self.samples) < 1:
            raise BadInput(
                f"WalkTokens needs m, walks and samples of 1 or more; got {self.m}, {self.walks} and {self.samples} "
                "(a model with m=0 needs no walks)"
            )

    def compute(self, data: Any) -> dict[str, Tensor]:
        """The walks of one graph or one batch."""
        return {"walks": self.draw(data, fresh_seed() if self.seed is None else self.seed)}

    def draw(self, data: Any, seed: int) -> Tensor:
        """The walks from a given seed."""
        size, batch = int(data.num_nodes), data.get("batch")
        count = self.m * self.samples
        found = sample_walks(data.edge_index, size, count * self.walks, self.m, seed, batch)
        if batch is not None:
            sizes = torch.bincount(batch)
            found -= (sizes.cumsum(0) - sizes)[batch].to(found.dtype)[:, None, None]
        found = found.view(size, count, self.walks, self.m + 1)
        length = torch.arange(count, device=found.device) // self.samples + 1
        beyond = torch.arange(self.m + 1, device=found.device) > length[:, None]
        return found.masked_fill(beyond[None, :, None, :], -1)


def fresh_seed() -> int:
    """A seed from torch's global generator."""
    return int(torch.randint(2**62, ()))


def make_encoder(name: str, dim: int, m: int, edges: bool) -> nn.Module:
    """``encoder(x [N, C], walks [N, T, M, m + 1] with numbers of the batch, samples, lookup, edge_index, edge)``.

    Raises:
        BadInput: an unknown name.
    """
    if name == "walk":
        return WalkEncoder(dim, m, edges)
    if name == "mpnn":
        return SubgraphEncoder(dim, edges)
    if name == "set":
        return SetEncoder(dim)
    raise BadInput(f"encoder is walk, mpnn or set; got {name!r}")


class WalkEncoder(nn.Module):
    """Walk features: a convolution over three steps of each walk, then the mean over steps and walks.

    A step's features are the vertex, the edge that led there, and for each of the last ``window`` steps whether the
    walk is back at that vertex and whether an edge leads here from it.
    """

    def __init__(self, dim: int, m: int, edges: bool) -> None:
        super().__init__()
        self.window = min(WINDOW, m)
        # applied before vertices are gathered: a vertex is on many walks
        self.vertex = nn.Linear(dim, 3 * dim)
        self.edge = nn.Linear(dim, 3 * dim, bias=False) if edges else None
        self.structure = nn.Linear(2 * self.window, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, walks: Tensor, samples: int, lookup: EdgeLookup, _: Tensor, edge: Tensor | None = None
    ) -> Tensor:
        """[N, T, C]."""
        size, tokens, _walks, longest = walks.shape
        vertex = self.vertex(x)
        led = None if self.edge is None or edge is None else self.edge(edge)
        encoded = []
        for length in range(1, longest):
            own = walks[:, (length - 1) * samples : length * samples, :, : length + 1]
            parts = vertex[own]
            bits, arrived = self._structure(own, lookup)
            parts = parts + self.structure(bits.to(parts.dtype))
            if led is not None and len(led):
                parts = parts + led[arrived.clamp(min=0)] * (arrived >= 0).unsqueeze(-1)
            before, here, after = parts.chunk(3, dim=-1)
            hidden = here + nn.functional.pad(before[..., :-1, :], (0, 0, 1, 0))
            hidden = hidden + nn.functional.pad(after[..., 1:, :], (0, 0, 0, 1))
            encoded.append(torch.relu(hidden).mean((2, 3)))
        out: Tensor = self.out(torch.cat(encoded, dim=1) if encoded else x.new_zeros(size, tokens, x.shape[1]))
        return out

    def _structure(self, walks: Tensor, lookup: EdgeLookup) -> tuple[Tensor, Tensor]:
        """Bits [..., L + 1, 2 window], and the edge by which each step was reached, -1 for none."""
        back, joined = [], []
        arrived = torch.full_like(walks, -1)
        for lag in range(1, self.window + 1):
            same, edge = torch.zeros_like(walks), torch.full_like(walks, -1)
            if lag < walks.shape[-1]:
                past, now = walks[..., :-lag], walks[..., lag:]
                same[..., lag:] = (past == now).long()
                edge[..., lag:] = lookup.find(past.contiguous(), now.contiguous())
            if lag == 1:
                arrived = edge
            back.append(same > 0)
            joined.append(edge >= 0)
        return torch.stack(back + joined, dim=-1), arrived


class SetEncoder(nn.Module):
    """A token as the set of its vertices: the mean of their maps (arXiv:1703.06114), blind to edges."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.vertex, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, walks: Tensor, *_: Any) -> Tensor:
        """[N, T, C]."""
        token, vertex, _keys = _members(walks, len(x))
        mapped = torch.relu(self.vertex(x))
        count = walks.shape[0] * walks.shape[1]
        out: Tensor = self.out(segment_mean(mapped[vertex], token, count))
        return out.view(walks.shape[0], walks.shape[1], -1)


class SubgraphEncoder(nn.Module):
    """A token as the subgraph induced by its vertices: one GatedGCN layer, then mean and maximum over vertices."""

    def __init__(self, dim: int, edges: bool) -> None:
        super().__init__()
        self.mixer = GatedGCNMixer(dim, edges)
        self.out = nn.Linear(2 * dim, dim)

    def forward(
        self,
        x: Tensor,
        walks: Tensor,
        samples: int,  # noqa: ARG002 - one signature for all encoders
        lookup: EdgeLookup,  # noqa: ARG002
        edge_index: Tensor,
        edge: Tensor | None = None,
    ) -> Tensor:
        """[N, T, C].

        Raises:
            MemoryEstimateError: the subgraphs' candidate edges exceed ``INDUCED_BUDGET_BYTES``.
        """
        token, vertex, keys = _members(walks, len(x))
        inner, which = _induced_edges(vertex, token, keys, edge_index, len(x))
        given = edge[which] if edge is not None and self.mixer.edge_features else None
        mixed = self.mixer(x[vertex], inner, given)
        mixed = torch.relu(mixed[0] if isinstance(mixed, tuple) else mixed)
        count = walks.shape[0] * walks.shape[1]
        pooled = torch.cat([segment_mean(mixed, token, count), segment_max(mixed, token, count)], dim=-1)
        out: Tensor = self.out(pooled)
        return out.view(walks.shape[0], walks.shape[1], -1)


def _members(walks: Tensor, num_vertices: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token and vertex of every membership, each pair once, and the sorted keys token N + vertex."""
    number = torch.arange(walks.shape[0] * walks.shape[1], device=walks.device).view(*walks.shape[:2], 1, 1)
    keys: Tensor = torch.unique((number * num_vertices + walks)[walks >= 0])
    return keys // max(1, num_vertices), keys % max(1, num_vertices), keys


def _induced_edges(
    vertex: Tensor, token: Tensor, keys: Tensor, edge_index: Tensor, num_vertices: int
) -> tuple[Tensor, Tensor]:
    """Edges between memberships of one token, [2, F], and which edge of the graph each is."""
    by_source = edge_index[0].argsort(stable=True)
    degree = torch.bincount(edge_index[0], minlength=num_vertices)
    first = degree.cumsum(0) - degree
    count = degree[vertex]
    total = int(count.sum())
    need = 40 * total
    if need > INDUCED_BUDGET_BYTES:
        raise MemoryEstimateError(
            f"finding the edges within {len(vertex):,} token members takes {need / 2**30:.1f} GiB, above the budget of "
            f"{INDUCED_BUDGET_BYTES / 2**30:.1f} GiB; use encoder='walk' or 'set', smaller batches or fewer samples"
        )
    source = torch.arange(len(vertex), device=vertex.device).repeat_interleave(count)
    offset = torch.arange(total, device=vertex.device) - (count.cumsum(0) - count)[source]
    edge = by_source[first[vertex[source]] + offset]
    wanted = token[source] * num_vertices + edge_index[1][edge]
    target = torch.searchsorted(keys, wanted).clamp(max=max(0, len(keys) - 1))
    inside = keys[target] == wanted if len(keys) else torch.zeros_like(wanted, dtype=torch.bool)
    return torch.stack([source[inside], target[inside]]), edge[inside]
