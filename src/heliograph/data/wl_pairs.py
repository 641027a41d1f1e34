"""Named pairs of graphs that some Weisfeiler-Leman test cannot tell apart, built in code as networkx graphs.

Each pair is non-isomorphic. ``atlas_pairs`` are all pairs on at most seven vertices that colour refinement confuses;
the others are classical: strongly regular graphs, Seidel switching, and the pairs of Cai, Fuerer and Immerman (1992).
``read_brec`` takes a user's local copy of the BREC benchmark (arXiv:2304.07702).
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from heliograph.errors import BadInput

__all__ = [
    "GraphPair",
    "atlas_pairs",
    "cfi_pair",
    "chang_pairs",
    "decalin_pair",
    "dodecahedral_pair",
    "named_pairs",
    "prism_pair",
    "read_brec",
    "rook_pair",
]


@dataclass(frozen=True)
class GraphPair:
    """Two graphs and the pair's name."""

    name: str
    first: nx.Graph
    second: nx.Graph


def named_pairs() -> tuple[GraphPair, ...]:
    """Every pair of this module except the atlas, smallest first."""
    pairs = [
        decalin_pair(),
        prism_pair(),
        dodecahedral_pair(),
        rook_pair(),
        *chang_pairs(),
        cfi_pair(nx.cycle_graph(4), "CFI(C4)"),
        cfi_pair(nx.cycle_graph(6), "CFI(C6)"),
        cfi_pair(nx.complete_graph(4), "CFI(K4)"),
        cfi_pair(nx.complete_bipartite_graph(3, 3), "CFI(K3,3)"),
    ]
    return tuple(sorted(pairs, key=lambda pair: len(pair.first)))


@lru_cache(maxsize=1)
def atlas_pairs() -> tuple[GraphPair, ...]:
    """All pairs of distinct graphs on at most 7 vertices with equal stable colourings: 26, of which 20 are connected.

    From networkx's graph atlas (Read and Wilson 1998; every graph up to isomorphism once). Graphs are grouped by degree
    sequence, then by the hash of their refinement, so that only a few hundred graphs are refined at all.
    """
    by_degrees: dict[tuple[int, ...], list[int]] = defaultdict(list)
    atlas = nx.graph_atlas_g()
    for number, graph in enumerate(atlas):
        by_degrees[tuple(sorted(degree for _, degree in graph.degree()))].append(number)
    pairs = []
    for group in by_degrees.values():
        by_hash: dict[str, list[int]] = defaultdict(list)
        for number in group if len(group) > 1 else ():
            # as many rounds as vertices reach the stable colouring
            with (
                warnings.catch_warnings()
            ):  # networkx announces that its hashes changed; they never leave this function
                warnings.simplefilter("ignore", UserWarning)
                colours = nx.weisfeiler_lehman_graph_hash(atlas[number], iterations=len(atlas[number]))
            by_hash[colours].append(number)
        for numbers in by_hash.values():
            pairs += list(combinations(numbers, 2))
    return tuple(GraphPair(f"atlas {a}/{b}", atlas[a], atlas[b]) for a, b in sorted(pairs))


def decalin_pair() -> GraphPair:
    """Two fused six-rings (decalin) and two five-rings joined by a bond (bicyclopentyl): 10 vertices, 11 edges each."""
    fused = nx.cycle_graph(10)
    fused.add_edge(0, 5)
    joined = nx.disjoint_union(nx.cycle_graph(5), nx.cycle_graph(5))
    joined.add_edge(0, 5)
    return GraphPair("decalin/bicyclopentyl", fused, joined)


def prism_pair() -> GraphPair:
    """K(3,3) and the triangular prism: 6 vertices, all of degree 3."""
    return GraphPair("K33/prism", nx.complete_bipartite_graph(3, 3), nx.circular_ladder_graph(3))


def dodecahedral_pair() -> GraphPair:
    """The dodecahedron and the Desargues graph: 20 vertices, all of degree 3."""
    return GraphPair("dodecahedral/Desargues", nx.dodecahedral_graph(), nx.desargues_graph())


def rook_pair() -> GraphPair:
    """The 4 x 4 rook's graph and the Shrikhande graph, both srg(16, 6, 2, 2)."""
    squares = [(row, column) for row in range(4) for column in range(4)]
    rook, shrikhande = nx.Graph(), nx.Graph()
    rook.add_edges_from((a, b) for a, b in combinations(squares, 2) if a[0] == b[0] or a[1] == b[1])
    for row, column in squares:
        for down, right in ((0, 1), (1, 0), (1, 1)):
            shrikhande.add_edge((row, column), ((row + down) % 4, (column + right) % 4))
    return GraphPair("rook/Shrikhande", _plain(rook), _plain(shrikhande))


def chang_pairs() -> tuple[GraphPair, ...]:
    """The triangular graph T(8) against each of the three Chang graphs, all srg(28, 12, 6, 4).

    Chang graphs arise from T(8), the line graph of K8, by Seidel switching at the edges of a perfect matching, of an
    eight-cycle, and of a triangle with a five-cycle.
    """
    triangular = nx.line_graph(nx.complete_graph(8))
    switched_at = (
        [(0, 1), (2, 3), (4, 5), (6, 7)],
        [(v, (v + 1) % 8) for v in range(8)],
        [(0, 1), (1, 2), (0, 2)] + [(3 + v, 3 + (v + 1) % 5) for v in range(5)],
    )
    pairs = []
    for number, edges in enumerate(switched_at, start=1):
        inside = {tuple(sorted(edge)) for edge in edges}
        chang = _switch(triangular, {vertex for vertex in triangular if tuple(sorted(vertex)) in inside})
        pairs.append(GraphPair(f"T(8)/Chang {number}", _plain(triangular), _plain(chang)))
    return tuple(pairs)


def cfi_pair(base: nx.Graph, name: str | None = None) -> GraphPair:
    """The even and the odd Cai-Fuerer-Immerman graph over a connected base graph.

    Vertex v of the base becomes one vertex for each even subset of its edges; a base edge uv joins the subsets of u and
    of v that agree on it. In the second graph one edge is twisted: it joins those that disagree. Which edge is twisted
    makes no difference up to isomorphism, two twists cancel.

    Raises:
        BadInput: the base is empty, not connected, directed or has self-loops, or has no edge to twist.
    """
    if base.is_directed() or nx.number_of_selfloops(base) or not base.number_of_edges() or not nx.is_connected(base):
        raise BadInput("the base of a CFI pair must be a connected undirected graph with an edge and no self-loops")
    twisted = next(iter(base.edges()))
    graphs = [_cfi_graph(base, twist) for twist in (None, frozenset(twisted))]
    return GraphPair(name or f"CFI({len(base)} vertices, {base.number_of_edges()} edges)", *graphs)


def read_brec(path: str | Path) -> tuple[GraphPair, ...]:
    """Reads the 400 pairs of a local ``brec_v3.npy`` (graph6 strings), or any even array of graph6 strings.

    The published file repeats each pair under relabellings and then the same again for its reliability test; of those
    51,200 entries the first of every pair is taken. An object array is stored as a pickle, which can run code when it
    is loaded by numpy; here a reader admits numpy arrays of bytes or strings and refuses everything else.

    Raises:
        BadInput: no such file, not a .npy file, a pickle that asks for anything else, entries that are not graph6.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path} does not exist; get brec_v3.npy from GraphPKU/BREC and give its path")
    entries = _load_strings(path).reshape(-1)
    if len(entries) % 2 or not len(entries):
        raise BadInput(f"{path} must hold an even, positive number of graphs (pairs in a row); got {len(entries)}")
    step = 64 if len(entries) == 51_200 else 2
    pairs = []
    for start in range(0, len(entries) // 2 if step == 64 else len(entries), step):
        pairs.append(GraphPair(f"BREC {start // step}", _graph6(entries[start]), _graph6(entries[start + 1])))
    return tuple(pairs)


def _cfi_graph(base: nx.Graph, twist: frozenset[Any] | None) -> nx.Graph:
    graph = nx.Graph()
    subsets: dict[Any, list[frozenset[Any]]] = {}
    for vertex in base:
        edges = [frozenset(edge) for edge in base.edges(vertex)]
        subsets[vertex] = [frozenset(c) for size in range(0, len(edges) + 1, 2) for c in combinations(edges, size)]
        graph.add_nodes_from((vertex, subset) for subset in subsets[vertex])
    for u, v in base.edges():
        edge = frozenset((u, v))
        for at_u in subsets[u]:
            for at_v in subsets[v]:
                if ((edge in at_u) == (edge in at_v)) != (edge == twist):
                    graph.add_edge((u, at_u), (v, at_v))
    return _plain(graph)


def _switch(graph: nx.Graph, inside: set[Any]) -> nx.Graph:
    """Seidel switching: edges and non-edges between ``inside`` and the rest change places."""
    switched = graph.copy()
    for u in inside:
        for v in set(graph) - inside:
            if graph.has_edge(u, v):
                switched.remove_edge(u, v)
            else:
                switched.add_edge(u, v)
    return switched


def _plain(graph: nx.Graph) -> nx.Graph:
    return nx.convert_node_labels_to_integers(graph)


def _graph6(entry: Any) -> nx.Graph:
    raw = entry.encode("ascii", errors="replace") if isinstance(entry, str) else bytes(entry)
    try:
        return nx.from_graph6_bytes(raw.strip())
    except (nx.NetworkXError, ValueError, IndexError) as error:
        raise BadInput(f"{raw[:40]!r} is not a graph6 string: {error}") from error


def _load_strings(path: Path) -> np.ndarray[Any, Any]:
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            _, _, dtype = read_header[version](file)
        except (ValueError, KeyError) as error:
            raise BadInput(f"{path} is not a .npy file of graph6 strings: {error}") from error
        if not dtype.hasobject:
            array = np.load(path, allow_pickle=False)
        else:
            try:
                array = _StringArrayUnpickler(io.BytesIO(file.read())).load()
            except BadInput:
                raise
            except Exception as error:  # a broken pickle raises almost anything
                raise BadInput(f"{path}: its pickled object array cannot be read: {error}") from error
    if not isinstance(array, np.ndarray) or not all(isinstance(entry, (bytes, str)) for entry in array.reshape(-1)):
        raise BadInput(f"{path} must hold graph6 strings (bytes or str)")
    return array


class _StringArrayUnpickler(pickle.Unpickler):
    """Admits what a pickled numpy array of bytes or strings consists of, and nothing else."""

    _ADMITTED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "scalar"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ADMITTED:
            raise BadInput(
                f"the file's pickle asks for {module}.{name}; only numpy arrays of bytes or strings are admitted, "
                "because loading a pickle can run code. Save the graph6 strings as a plain bytes array instead"
            )
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
