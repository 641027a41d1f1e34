"""Where a vertex is in its graph, as numbers: walk, Laplacian, distance and degree encodings, and a cache for them.

An encoding is called as a transform of PyTorch Geometric is: ``data = RWSE(16)(data)`` adds an attribute and leaves the
rest. It derives from none of theirs, whose import takes seconds. Random walks and Laplacians follow the definitions of
:mod:`walks` and of each class, whatever the size of the graph.

``cached`` keeps what a transform adds on disk under the content of the graphs, the transform, all of its parameters and
the source of this module, so that a changed input, parameter or program is never answered with an old file.

Shapes: n vertices of one graph, K columns.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import scipy.linalg
import scipy.sparse as sparse
import scipy.sparse.csgraph
import scipy.sparse.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from heliograph.data.keep import CacheWarning, cache_home, read_tables, write_tables
from heliograph.errors import BadInput, MemoryEstimateError
from heliograph.graphs.core import sampled_walks, walks
from heliograph.graphs.core.walks import return_probabilities, walk_powers

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = [
    "RRWP",
    "RWSE",
    "CacheWarning",
    "DegreeEncoding",
    "Encoding",
    "LaplacianEncoding",
    "ShortestPathEncoding",
    "cache_folder",
    "cached",
    "clear_cache",
]

DENSE_LAPLACIAN = 256
DISTANCE_BUDGET_BYTES = 2 * 2**30

G = TypeVar("G")


@dataclass(frozen=True)
class Encoding:
    """Base of the encodings: a frozen dataclass whose ``adds`` names the attributes that it writes."""

    adds: ClassVar[tuple[str, ...]] = ()

    def compute(self, data: Data) -> dict[str, Tensor]:
        """The attributes for one graph or one batch."""
        raise NotImplementedError

    def __call__(self, data: G) -> G:
        """A shallow copy of the graph, with the attributes added."""
        return self.forward(copy.copy(data))

    def forward(self, data: G) -> G:
        """The graph itself, with the attributes added."""
        for name, values in self.compute(data).items():
            data[name] = values  # type: ignore[index]
        return data

    def key(self) -> str:
        """Name and all parameters, as text."""
        fields = dataclasses.fields(self)
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in fields)})"


@dataclass(frozen=True, repr=True)
class RWSE(Encoding):
    """Random-walk structural encoding: ``rwse`` [n, K], the probability of being back after 1 to K steps.

    Args:
        steps: K.
        dim: the width to which a model maps it (``GNNPlus`` does); no part of the numbers.
        weighted: whether ``edge_weight`` counts, where the graph has it.
    """

    steps: int = 16
    dim: int = 28
    weighted: bool = True
    adds: ClassVar[tuple[str, ...]] = ("rwse",)

    def __post_init__(self) -> None:
        """Refuses sizes below 1."""
        if self.steps < 1 or self.dim < 1:
            raise BadInput(f"RWSE needs steps >= 1 and dim >= 1; got {self.steps} and {self.dim}")

    def compute(self, data: Data) -> dict[str, Tensor]:
        """The attributes for one graph or one batch."""
        edges, weight = _edges(data, self.weighted)
        return {"rwse": return_probabilities(edges, int(data.num_nodes), self.steps, weight, data.get("batch"))}

    def key(self) -> str:
        """Name and the parameters that change the numbers."""
        return f"RWSE(steps={self.steps}, weighted={self.weighted})"


@dataclass(frozen=True, repr=True)
class RRWP(Encoding):
    """Relative random-walk probabilities (arXiv:2305.17589): ``rrwp`` [n * n, K] and ``rrwp_diagonal`` [n, K].

    Powers 0 to K - 1; pairs by target i, then source j, as in ``complete_support``, carrying the probability of walking
    from i to j.

    Args:
        steps: K.
        weighted: whether ``edge_weight`` counts, where the graph has it.
    """

    steps: int = 16
    weighted: bool = True
    adds: ClassVar[tuple[str, ...]] = ("rrwp", "rrwp_diagonal")

    def __post_init__(self) -> None:
        """Refuses fewer than two powers."""
        if self.steps < 2:
            raise BadInput(f"RRWP needs steps >= 2; got {self.steps}")

    def compute(self, data: Data) -> dict[str, Tensor]:
        """The attributes for one graph or one batch."""
        edges, weight = _edges(data, self.weighted)
        size, batch = int(data.num_nodes), data.get("batch")
        pairs = walk_powers(edges, size, self.steps, weight, batch)
        sizes = torch.tensor([size]) if batch is None else torch.bincount(batch.cpu())
        starts = sizes.square().cumsum(0) - sizes.square()
        places = zip(starts.tolist(), sizes.tolist(), strict=True)
        own = torch.cat([start + torch.arange(n) * (n + 1) for start, n in places])
        return {"rrwp": pairs, "rrwp_diagonal": pairs[own.to(pairs.device)]}


@dataclass(frozen=True, repr=True)
class LaplacianEncoding(Encoding):
    """Eigenvectors of the symmetrically normalised Laplacian after the first: ``laplacian`` [n, K].

    Directed edges count in both directions. Signs are fixed: the entry of largest magnitude (the first, among entries
    within 1e-6 of it) is positive. Where an eigenvalue repeats, its vectors are one basis of many:
    ``laplacian_repeats`` [n, K] is True there. Columns beyond n - 1 are 0. Dense up to 256 vertices, else
    Lanczos from a fixed vector.

    Args:
        columns: K.
    """

    columns: int = 8
    adds: ClassVar[tuple[str, ...]] = ("laplacian", "laplacian_repeats")

    def __post_init__(self) -> None:
        """Refuses fewer than one column."""
        if self.columns < 1:
            raise BadInput(f"LaplacianEncoding needs columns >= 1; got {self.columns}")

    def compute(self, data: Data) -> dict[str, Tensor]:
        """The attributes for one graph or one batch."""
        parts = [self._one(adjacency) for adjacency in _adjacencies(data)]
        vectors = torch.from_numpy(np.concatenate([v for v, _ in parts]).astype(np.float32))
        repeats = torch.from_numpy(np.concatenate([r for _, r in parts]))
        return {"laplacian": vectors, "laplacian_repeats": repeats}

    def _one(self, adjacency: sparse.csr_matrix) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        size = adjacency.shape[0]
        wanted = min(self.columns + 2, size)  # the first is dropped; one more shows whether the last repeats
        laplacian = sparse.csgraph.laplacian((adjacency + adjacency.T) / 2, normed=True)
        if size <= max(DENSE_LAPLACIAN, wanted + 1):
            values, vectors = scipy.linalg.eigh(laplacian.toarray(), subset_by_index=[0, wanted - 1])
        else:
            start = np.random.default_rng(0).standard_normal(size)
            # inverse iteration around a point below the spectrum: the smallest eigenvalues converge first
            values, vectors = sparse.linalg.eigsh(laplacian.tocsc(), k=wanted, sigma=-0.05, v0=start, tol=1e-9)
            order = np.argsort(values, kind="stable")
            values, vectors = values[order], vectors[:, order]
        near = np.abs(np.diff(values)) < 1e-7
        repeated = np.concatenate([[False], near]) | np.concatenate([near, [False]])
        kept = slice(1, min(self.columns + 1, wanted))
        out, flags = np.zeros((size, self.columns)), np.zeros((size, self.columns), dtype=bool)
        chosen = _fix_signs(vectors[:, kept])
        out[:, : chosen.shape[1]] = chosen
        flags[:, : chosen.shape[1]] = repeated[kept]
        return out, flags


@dataclass(frozen=True, repr=True)
class DegreeEncoding(Encoding):
    """``log_degree`` [n, 1]: log(1 + d), d the number of incoming edges (parallel edges and self-loops count)."""

    adds: ClassVar[tuple[str, ...]] = ("log_degree",)

    def compute(self, data: Data) -> dict[str, Tensor]:
        """The attributes for one graph or one batch."""
        edges, _ = _edges(data, weighted=False)
        degree = torch.bincount(edges[1], minlength=int(data.num_nodes)).float()
        return {"log_degree": torch.log1p(degree).unsqueeze(-1)}


@dataclass(frozen=True, repr=True)
class ShortestPathEncoding(Encoding):
    """``distance`` [n * n], int64: steps from source j to target i along the edges, pairs as in ``complete_support``.

    Distances above ``largest`` and pairs without a path are ``largest + 1``.

    Args:
        largest: the largest distance told apart.
    """

    largest: int = 20
    adds: ClassVar[tuple[str, ...]] = ("distance",)

    def __post_init__(self) -> None:
        """Refuses a limit below 1."""
        if self.largest < 1:
            raise BadInput(f"ShortestPathEncoding needs largest >= 1; got {self.largest}")

    def compute(self, data: Data) -> dict[str, Tensor]:
        """The attributes for one graph or one batch."""
        parts = []
        adjacencies = _adjacencies(data)
        need = sum(a.shape[0] ** 2 for a in adjacencies) * 8
        if need > DISTANCE_BUDGET_BYTES:
            raise MemoryEstimateError(
                f"distances of all pairs take {need / 2**30:.1f} GiB (largest graph: "
                f"{max(a.shape[0] for a in adjacencies)} vertices), above the budget of "
                f"{DISTANCE_BUDGET_BYTES / 2**30:.1f} GiB; use smaller graphs or RWSE"
            )
        for adjacency in adjacencies:
            steps = sparse.csgraph.shortest_path(adjacency, unweighted=True)
            steps = np.where(steps > self.largest, self.largest + 1, steps).astype(np.int64)
            parts.append(steps.T.reshape(-1))
        return {"distance": torch.from_numpy(np.concatenate(parts))}


def cached(
    graphs: Sequence[G],
    encodings: Sequence[Encoding],
    *,
    folder: Path | None = None,
    use_cache: bool = True,
    progress: Callable[[float], None] | None = None,
) -> list[G]:
    """The graphs with all encodings added, from disk where the same was computed before.

    Args:
        graphs: single graphs (no batches); they are copied, not changed.
        encodings: which to add, in order.
        folder: where files lie; :func:`cache_folder` where None.
        use_cache: False neither reads nor writes.
        progress: called with the share done while computing.
    """
    out = [graph.clone() for graph in graphs]  # type: ignore[attr-defined]
    home = cache_folder() if folder is None else folder
    for number, encoding in enumerate(encodings):
        path = home / f"{_cache_key(graphs, encoding)}.enc"
        tables = read_tables(path) if use_cache else None
        if tables is None:
            rows = []
            for place, graph in enumerate(out):
                rows.append(encoding.compute(graph))
                if progress is not None:
                    progress((number + (place + 1) / len(out)) / len(encodings))
            tables = {}
            for name in encoding.adds:
                tables[name] = np.concatenate([row[name].numpy() for row in rows]) if rows else np.zeros(0)
                tables[f"{name}.rows"] = np.array([len(row[name]) for row in rows], dtype=np.int64)
            if use_cache:
                write_tables(path, tables)
        for name in encoding.adds:
            ends = tables[f"{name}.rows"].cumsum()
            for graph, end, count in zip(out, ends, tables[f"{name}.rows"], strict=True):
                graph[name] = torch.from_numpy(tables[name][end - count : end].copy())
    return out


def cache_folder() -> Path:
    """Where encodings are kept: ``encodings`` in the cache folder of :mod:`heliograph.data.keep`."""
    return cache_home() / "encodings"


def clear_cache(folder: Path | None = None) -> int:
    """Removes all kept encodings and says how many files there were."""
    files = list((folder or cache_folder()).glob("*.enc"))
    for path in files:
        path.unlink(missing_ok=True)
    return len(files)


def _cache_key(graphs: Sequence[Any], encoding: Encoding) -> str:
    digest = hashlib.sha256(f"{_code_version(inspect.getfile(type(encoding)))}|{encoding.key()}|{len(graphs)}".encode())
    for graph in graphs:
        digest.update(f"|{graph.num_nodes}".encode())
        for name in ("edge_index", "edge_weight"):
            values = graph.get(name)
            if values is not None:
                array = np.ascontiguousarray(values.detach().cpu().numpy())
                digest.update(f"|{name}{array.dtype}{array.shape}".encode())
                digest.update(array.tobytes())
    return digest.hexdigest()[:40]


@functools.cache
def _code_version(source: str) -> str:
    """A digest of the code that makes the numbers, and of the library that does its linear algebra."""
    files = {__file__, str(walks.__file__), str(sampled_walks.__file__), source}
    sources = b"".join(Path(path).read_bytes() for path in sorted(files))
    return hashlib.sha256(sources + scipy.__version__.encode()).hexdigest()


def _edges(data: Data, weighted: bool) -> tuple[Tensor, Tensor | None]:
    if data.edge_index is None:
        raise BadInput("the graph has no edge_index; a graph without edges has one of shape [2, 0]")
    weight = data.get("edge_weight") if weighted else None
    return data.edge_index, weight


def _adjacencies(data: Data) -> list[sparse.csr_matrix]:
    """The adjacency of each graph of a batch, or of the one graph; entry (i, j) counts edges from i to j."""
    edges, _ = _edges(data, weighted=False)
    size = int(data.num_nodes)
    rows, columns = edges.cpu().numpy()
    whole = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(size, size))
    batch = data.get("batch")
    if batch is None:
        return [whole]
    ends = torch.bincount(batch.cpu()).cumsum(0).tolist()
    return [whole[a:b, a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def _fix_signs(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    magnitude = np.abs(vectors)
    leading = (magnitude >= magnitude.max(axis=0, initial=0.0) - 1e-6).argmax(axis=0)
    signs = np.sign(vectors[leading, np.arange(vectors.shape[1])])
    return vectors * np.where(signs == 0, 1.0, signs)
