"""Recipes for who hears whom on a mesh: its edges, and more hops, dilated shells, random edges or global vertices.

A recipe is data; ``recipe.build(edge_index, N)`` makes the :class:`~heliograph.graphs.core.support.Support`. Recipes
compose by ``|``. What is built always holds the mesh's own edges, is symmetric and without self-loops, has each edge
once, and depends on nothing but the arguments, so that training and roll-out agree. In a batch each graph is built by
itself. Source: arXiv:2508.18051; how dilated shells and global vertices are chosen is ours.

Shapes: N vertices, E edges, D dimensions.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sparse
import torch
from numpy.typing import NDArray
from torch import Tensor

from heliograph.errors import BadInput, MemoryEstimateError
from heliograph.graphs.core.support import EDGE_BUDGET_BYTES, Support, given_support

__all__ = [
    "MeshSupport",
    "SupportCache",
    "adjacency",
    "dilated",
    "edge_set",
    "farthest_points",
    "global_nodes",
    "join_supports",
    "khop",
    "parse_support",
    "random_edges",
]

Ints = NDArray[np.int64]
BYTES_AN_EDGE = 48  # int64 source, target and edge_id, and as much again while they are sorted


@dataclass(frozen=True)
class _Part:
    kind: str
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class MeshSupport:
    """A recipe: parts whose union, with the mesh's own edges, is the support. Made by the functions of this module."""

    parts: tuple[_Part, ...] = ()

    def __or__(self, other: MeshSupport) -> MeshSupport:
        """Both recipes' edges."""
        return MeshSupport(tuple(dict.fromkeys((*self.parts, *other.parts))))

    @property
    def random(self) -> bool:
        """Whether ``seed`` matters, so that training may redraw it for every sample."""
        return any(part.kind == "random" for part in self.parts)

    @property
    def needs_positions(self) -> bool:
        """Whether ``pos`` must be given."""
        return any(part.kind == "global" for part in self.parts)

    def build(
        self,
        edge_index: Tensor,
        num_vertices: int,
        pos: Tensor | None = None,
        node_type: Tensor | None = None,
        batch: Tensor | None = None,
        seed: int = 0,
    ) -> Support:
        """The support of a mesh, or of a batch of meshes.

        Args:
            edge_index: [2, E], in one or both directions.
            num_vertices: N.
            pos: [N, D]; only global vertices need it.
            node_type: [N]; global vertices are then chosen among those that are not 0 (normal).
            batch: [N], ascending.
            seed: of random edges.

        Raises:
            BadInput: edges out of range or between graphs; positions missing.
            MemoryEstimateError: the support would exceed the budget; N, E and bytes are named.
        """
        given = given_support(edge_index, num_vertices, batch)
        ends = (given.sizes.cumsum(0)).tolist()
        source, target = given.source.cpu().numpy(), given.target.cpu().numpy()
        places = None if pos is None else pos.detach().cpu().numpy().astype(np.float64)
        types = None if node_type is None else node_type.detach().cpu().numpy()
        pairs, begin = [], 0
        for end in ends:
            own = slice(*np.searchsorted(target, [begin, end]))
            mesh = _Mesh(
                _matrix(source[own] - begin, target[own] - begin, end - begin),
                None if places is None else places[begin:end],
                None if types is None else types[begin:end],
                seed,
            )
            pairs.append([side + begin for side in _pairs(self._union(mesh))])
            begin = end
        rows = [np.concatenate([pair[side] for pair in pairs] or [np.zeros(0, np.int64)]) for side in range(2)]
        device = given.batch.device
        to, sent = (torch.from_numpy(row).to(device) for row in rows)
        return Support(sent, to, torch.full_like(sent, -1), given.batch, given.num_graphs)

    def _union(self, mesh: _Mesh) -> sparse.csr_matrix:
        found = mesh.step
        for part in self.parts:
            more = _BUILDERS[part.kind](mesh, *part.values)
            mesh.guard(found.nnz + more.nnz, part.kind)
            found = _pattern(found + more)
        return found

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data, which :meth:`from_json` takes."""
        return [{"kind": part.kind, "values": list(part.values)} for part in self.parts]

    @classmethod
    def from_json(cls, data: list[Mapping[str, Any]]) -> MeshSupport:
        """The recipe of :meth:`to_json`.

        Raises:
            BadInput: an unknown kind.
        """
        recipe = cls()
        for part in data:
            if part["kind"] not in _MAKERS:
                raise BadInput(f"unknown support {part['kind']!r}; known are {', '.join(_MAKERS)}")
            recipe = recipe | _MAKERS[part["kind"]](*part["values"])
        return recipe


def adjacency() -> MeshSupport:
    """The mesh's own edges, both ways."""
    return MeshSupport()


def khop(hops: int) -> MeshSupport:
    """All vertices within ``hops`` steps."""
    if hops < 1:
        raise BadInput(f"hops counts steps and must be 1 or more; got {hops}")
    return MeshSupport((_Part("khop", (int(hops),)),))


def random_edges(ratio: float) -> MeshSupport:
    """``ratio`` times as many random undirected edges as the mesh has, drawn from the seed of ``build``.

    Draws that hit an edge of the mesh, each other or one vertex twice are lost, so that small meshes get fewer.
    """
    if not 0 < ratio <= 1:
        raise BadInput(f"ratio is a share of the mesh's edges and must lie in (0, 1]; got {ratio}")
    return MeshSupport((_Part("random", (float(ratio),)),))


def dilated(hops: int, rate: int, fanout: int = 0) -> MeshSupport:
    """Vertices at exactly 1, 1 + rate, 1 + 2 rate, ... steps, up to ``hops``.

    Of each further shell a vertex keeps at most ``fanout`` vertices: an edge stays where both of its ends rank it among
    their ``fanout`` first by a fixed hash. Edges grow with the number of shells, the reach with ``hops``.

    Args:
        hops: the farthest shell's distance.
        rate: steps between shells.
        fanout: 0 for the mesh's mean degree, rounded up.
    """
    if hops < 1 or rate < 1 or fanout < 0:
        raise BadInput(f"need hops and rate of 1 or more and fanout of 0 or more; got {hops}, {rate} and {fanout}")
    return MeshSupport((_Part("dilated", (int(hops), int(rate), int(fanout))),))


def global_nodes(count: int = 16) -> MeshSupport:
    """``count`` vertices exchange with all others, both ways: 2 count N edges.

    They are chosen by :func:`farthest_points` among the vertices whose type is not normal where types are known and
    enough of them, else among all.
    """
    if count < 1:
        raise BadInput(f"count is a number of vertices and must be 1 or more; got {count}")
    return MeshSupport((_Part("global", (int(count),)),))


def parse_support(text: str) -> MeshSupport:
    """A recipe from words, ``"khop=2,global=16"`` or ``"dilated=7:3:6"``; ``"mesh"`` for the edges alone.

    Raises:
        BadInput: an unknown name or values that do not fit; the known names are listed.
    """
    recipe = adjacency()
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, _, values = word.partition("=")
        if name == "mesh" and not values:
            continue
        try:
            made = _MAKERS[name](*(float(v) if name == "random" else int(v) for v in values.split(":") if v))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, BadInput):
                raise
            known = "mesh, khop=HOPS, random=RATIO, dilated=HOPS:RATE[:FANOUT], global=COUNT"
            raise BadInput(f"{word!r} is no support; use {known}, joined by commas") from None
        recipe = recipe | made
    return recipe


def edge_set(edge_index: Tensor, num_vertices: int, batch: Tensor | None = None) -> Support:
    """The given edges as a set: directions and self-loops as they are, parallel edges once.

    Raises:
        BadInput: as :func:`heliograph.graphs.core.support.given_support`.
    """
    given = given_support(edge_index, num_vertices, batch)
    first = torch.ones(given.num_edges, dtype=torch.bool, device=given.source.device)
    first[1:] = (given.target[1:] != given.target[:-1]) | (given.source[1:] != given.source[:-1])
    kept = (given.source[first], given.target[first], given.edge_id[first])
    return Support(*kept, given.batch, given.num_graphs)


def join_supports(supports: list[Support]) -> Support:
    """The supports of several batches side by side, as one batch of all their graphs."""
    if len(supports) == 1:
        return supports[0]
    source, target, ids, batch = [], [], [], []
    vertices = graphs = edges = 0
    for support in supports:
        source.append(support.source + vertices)
        target.append(support.target + vertices)
        ids.append(torch.where(support.edge_id >= 0, support.edge_id + edges, -1))
        batch.append(support.batch + graphs)
        vertices, graphs = vertices + support.num_vertices, graphs + support.num_graphs
        edges += support.num_edges
    return Support(torch.cat(source), torch.cat(target), torch.cat(ids), torch.cat(batch), graphs)


def farthest_points(pos_ND: NDArray[np.float64], count: int) -> Ints:
    """``count`` rows, each farthest from those before; the first is farthest from the centre. Ties: the lowest row."""
    chosen = [int(np.square(pos_ND - pos_ND.mean(0)).sum(1).argmax())] if len(pos_ND) else []
    distance = np.full(len(pos_ND), np.inf)
    while len(chosen) < min(count, len(pos_ND)):
        distance = np.minimum(distance, np.square(pos_ND - pos_ND[chosen[-1]]).sum(1))
        distance[chosen] = -1.0
        chosen.append(int(distance.argmax()))
    return np.array(chosen, dtype=np.int64)


@dataclass
class SupportCache:
    """Supports by mesh and recipe, the least recently used forgotten first."""

    size: int = 64
    kept: OrderedDict[str, Support] = field(default_factory=OrderedDict)

    def get(self, recipe: MeshSupport, key: str, seed: int, build: Callable[[], Support]) -> Support:
        """The kept support of mesh ``key``, or a new one.

        ``key`` must tell meshes apart in all that the recipe looks at (edges; positions and types where it has global
        vertices).
        """
        whole = hashlib.sha256(f"{recipe}|{key}|{seed if recipe.random else 0}".encode()).hexdigest()
        if whole not in self.kept:
            self.kept[whole] = build()
            while len(self.kept) > self.size:
                self.kept.popitem(last=False)
        self.kept.move_to_end(whole)
        return self.kept[whole]


@dataclass
class _Mesh:
    """One mesh in NumPy: ``step`` is the symmetric adjacency without loops."""

    step: sparse.csr_matrix
    pos: NDArray[np.float64] | None
    node_type: NDArray[Any] | None
    seed: int

    @property
    def size(self) -> int:
        return int(self.step.shape[0])

    def guard(self, edges: int, what: str) -> None:
        """Refuses more edges than the budget holds."""
        need = edges * BYTES_AN_EDGE
        if need > EDGE_BUDGET_BYTES:
            raise MemoryEstimateError(
                f"the support {what!r} on N = {self.size:,} vertices would have E = {edges:,} edges, about "
                f"{need / 2**30:.1f} GiB, above the budget of {EDGE_BUDGET_BYTES / 2**30:.1f} GiB; use fewer hops, "
                "fewer global vertices or a smaller fanout"
            )


def _matrix(source: Ints, target: Ints, size: int) -> sparse.csr_matrix:
    """Both directions of edges, once each, without loops; row target, column source."""
    kept = source != target
    rows = np.concatenate([target[kept], source[kept]])
    columns = np.concatenate([source[kept], target[kept]])
    return _pattern(sparse.csr_matrix((np.ones(len(rows), dtype=np.int32), (rows, columns)), shape=(size, size)))


def _pattern(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Ones where there is anything, in the order of rows and columns."""
    matrix = sparse.csr_matrix(matrix)
    matrix.sort_indices()
    matrix.data = np.ones(matrix.nnz, dtype=np.int32)
    return matrix


def _pairs(matrix: sparse.csr_matrix) -> tuple[Ints, Ints]:
    """Rows and columns of the entries of a pattern, in order."""
    rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))
    return rows, matrix.indices.astype(np.int64)


def _shells(mesh: _Mesh, hops: int, what: str) -> list[sparse.csr_matrix]:
    """The pairs at exactly 1, 2, ... ``hops`` steps."""
    step_edges = np.diff(mesh.step.indptr)
    shells = [mesh.step]
    seen = _pattern(mesh.step + sparse.identity(mesh.size, dtype=np.int32, format="csr"))
    for _ in range(hops - 1):
        # what the next product may hold, before it is computed
        mesh.guard(seen.nnz + int(step_edges[shells[-1].indices].sum()), what)
        reached = _pattern(shells[-1] @ mesh.step)
        fresh = reached - reached.multiply(seen)
        fresh.eliminate_zeros()
        shells.append(_pattern(fresh))
        seen = _pattern(seen + fresh)
    return shells


def _khop(mesh: _Mesh, hops: float) -> sparse.csr_matrix:
    return _pattern(sum(_shells(mesh, int(hops), "khop")[1:], mesh.step))


def _dilated(mesh: _Mesh, hops: float, rate: float, fanout: float) -> sparse.csr_matrix:
    shells = _shells(mesh, int(hops), "dilated")
    keep = int(fanout) or int(np.ceil(mesh.step.nnz / max(1, mesh.size)))
    chosen = mesh.step
    for distance in range(int(rate), int(hops), int(rate)):
        shell = shells[distance]
        rows, columns = _pairs(shell)
        order = np.lexsort((columns, _hash(np.minimum(rows, columns), np.maximum(rows, columns)), rows))
        rank = np.empty(len(rows), dtype=np.int64)
        rank[order] = np.arange(len(rows)) - shell.indptr[rows[order]]
        own = rank < keep
        wanted = sparse.csr_matrix((np.ones(int(own.sum()), np.int32), (rows[own], columns[own])), shape=shell.shape)
        chosen = chosen + wanted.multiply(wanted.T)  # both ends must want the edge
    return _pattern(chosen)


def _hash(low: Ints, high: Ints) -> NDArray[np.uint64]:
    """A fixed, well-mixed number a pair (the finaliser of SplitMix64)."""
    z = low.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + high.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


def _random(mesh: _Mesh, ratio: float) -> sparse.csr_matrix:
    count = round(ratio * mesh.step.nnz / 2)
    drawn = np.random.default_rng([mesh.seed, mesh.size]).integers(max(1, mesh.size), size=(2, count))
    return _matrix(drawn[0], drawn[1], mesh.size)


def _global(mesh: _Mesh, count: float) -> sparse.csr_matrix:
    if mesh.pos is None:
        raise BadInput("global vertices are chosen by position; give pos")
    hubs = min(int(count), mesh.size)
    mesh.guard(2 * hubs * mesh.size, "global")
    among = np.arange(mesh.size)
    if mesh.node_type is not None and int((mesh.node_type != 0).sum()) >= hubs:
        among = np.flatnonzero(mesh.node_type != 0)
    chosen = among[farthest_points(mesh.pos[among], hubs)] if mesh.size else among
    hub, other = (grid.ravel() for grid in np.meshgrid(chosen, np.arange(mesh.size), indexing="ij"))
    return _matrix(hub, other, mesh.size)


_BUILDERS: dict[str, Callable[..., sparse.csr_matrix]] = {
    "khop": _khop,
    "dilated": _dilated,
    "random": _random,
    "global": _global,
}
_MAKERS: dict[str, Callable[..., MeshSupport]] = {
    "khop": khop,
    "dilated": dilated,
    "random": random_edges,
    "global": global_nodes,
}
