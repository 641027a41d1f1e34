"""Inputs and outputs of eight classical algorithms on random graphs, arrays and strings, in one dense batch format.

The tasks and their outputs follow the CLRS-30 benchmark (arXiv:2205.15659): parents or predecessors as pointers,
without the intermediate steps. Graphs are Erdos-Renyi with edge probability from {0.1, ..., 0.9} and weights uniform in
(0, 1). NumPy only; ``from_clrs`` adapts a batch of ``clrs.build_sampler`` where that package is present.

Shapes: B instances, N vertices (of one batch all have the same N, or padded with ``mask``), V E G input channels of a
vertex, an ordered pair and the whole instance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from heliograph.errors import BadInput

__all__ = ["TASKS", "AlgorithmBatch", "OutputKind", "Target", "from_clrs", "sample_batch"]

OutputKind = Literal["pointer", "mask", "mask_one", "pair_pointer", "pair_category"]
Floats = NDArray[np.float32]

IGNORED = -1  # a target that counts neither in the loss nor in the score


@dataclass(frozen=True)
class Target:
    """One output of a task.

    Attributes:
        name: as in the benchmark.
        kind: "pointer": [B, N] vertex numbers. "mask": [B, N] of 0/1. "mask_one": [B, N] of 0/1 with one 1 an instance.
            "pair_pointer": [B, N, N] vertex numbers. "pair_category": [B, N, N] of 0 .. classes - 1.
        values: int64; -1 is not scored (padding, pairs without meaning).
        classes: of "pair_category".
    """

    name: str
    kind: OutputKind
    values: NDArray[np.int64]
    classes: int = 0


@dataclass(frozen=True)
class AlgorithmBatch:
    """Inputs and targets of B instances; channel 0 of ``edge`` is always the adjacency (all ones without a graph).

    Attributes:
        task: name.
        vertex: [B, N, V] float32, channel 0 the position i / N; edge: [B, N, N, E]; graph: [B, G].
        mask: [B, N] bool, real vertices.
        targets: the outputs.
    """

    task: str
    vertex: Floats
    edge: Floats
    graph: Floats
    mask: NDArray[np.bool_]
    targets: tuple[Target, ...]

    def __len__(self) -> int:
        return len(self.vertex)


@dataclass(frozen=True)
class _Instance:
    vertex: Floats
    edge: Floats
    outputs: tuple[Target, ...]


def sample_batch(task: str, batch: int, size: int, seed: int | np.random.Generator = 0) -> AlgorithmBatch:
    """Draws instances of a task with ``size`` vertices (array entries; characters of both strings together).

    Raises:
        BadInput: an unknown task, batch < 1, size < 2.
    """
    if task not in TASKS:
        raise BadInput(f"task is one of {sorted(TASKS)}; got {task!r}")
    if batch < 1 or size < 2:
        raise BadInput(f"need batch >= 1 and size >= 2; got {batch} and {size}")
    random = np.random.default_rng(seed)
    instances = [TASKS[task](random, size) for _ in range(batch)]
    position = np.broadcast_to(np.arange(size, dtype=np.float32) / size, (batch, size))
    targets = tuple(
        replace(outputs[0], values=np.stack([output.values for output in outputs]))
        for outputs in zip(*(instance.outputs for instance in instances), strict=True)
    )
    vertex = np.concatenate([position[..., None], np.stack([i.vertex for i in instances])], axis=-1)
    edge = np.stack([i.edge for i in instances])
    mask = np.ones((batch, size), dtype=bool)
    return AlgorithmBatch(task, vertex, edge, np.zeros((batch, 0), dtype=np.float32), mask, targets)


def from_clrs(feedback: Any, task: str) -> AlgorithmBatch:
    """Adapts a ``Feedback`` of ``clrs.build_sampler(...)``: inputs by location, outputs by type; hints are left.

    Raises:
        BadInput: an output whose location and type have no counterpart here.
    """
    vertex: list[Floats] = []
    edge: list[Floats] = []
    graph: list[Floats] = []
    for point in feedback.features.inputs:
        data = np.asarray(point.data, dtype=np.float32)
        where = _name(point.location)
        lead = {"node": 2, "edge": 3, "graph": 1}[where]
        columns = data.reshape(*data.shape[:lead], -1)
        if where == "edge" and point.name == "adj":
            edge.insert(0, columns)  # channel 0 is the adjacency
        elif where == "node" and point.name == "pos":
            vertex.insert(0, columns)
        else:
            {"node": vertex, "edge": edge, "graph": graph}[where].append(columns)
    batch, size = vertex[0].shape[:2]
    if not any(point.name == "adj" for point in feedback.features.inputs):
        edge.insert(0, _complete(size)[None].repeat(batch, axis=0))
    targets = tuple(_clrs_target(point) for point in feedback.outputs)
    columns = np.concatenate(graph, axis=-1) if graph else np.zeros((batch, 0), dtype=np.float32)
    mask = np.ones((batch, size), dtype=bool)
    return AlgorithmBatch(task, np.concatenate(vertex, axis=-1), np.concatenate(edge, axis=-1), columns, mask, targets)


def _clrs_target(point: Any) -> Target:
    data, where, kind = np.asarray(point.data), _name(point.location), _name(point.type_)
    if where == "node" and kind in ("pointer", "should_be_permutation", "permutation_pointer"):
        values = data if data.ndim == 2 else data.argmax(axis=-1)
        return Target(point.name, "pointer", values.astype(np.int64))
    if where == "node" and kind in ("mask", "mask_one"):
        name: OutputKind = "mask_one" if kind == "mask_one" else "mask"
        return Target(point.name, name, data.astype(np.int64))
    if where == "edge" and kind == "pointer":
        return Target(point.name, "pair_pointer", data.astype(np.int64))
    if where == "edge" and kind == "categorical":
        classes = data.shape[-1]
        values = np.where((data == 1).any(axis=-1), data.argmax(axis=-1), IGNORED)  # the benchmark masks pairs by -1
        return Target(point.name, "pair_category", values.astype(np.int64), classes)
    raise BadInput(f"output {point.name!r} at {where!r} of type {kind!r} has no counterpart here")


def _name(field: Any) -> str:
    return str(getattr(field, "value", field)).lower()


def _bfs(random: np.random.Generator, size: int) -> _Instance:
    """Parents of a breadth-first search; among several, the lowest vertex of the layer before."""
    adj, start = _erdos_renyi(random, size), int(random.integers(size))
    parent, reached, layer = np.arange(size), {start}, [start]
    while layer:
        following = []
        for vertex in sorted(layer):
            for other in np.flatnonzero(adj[vertex]):
                if int(other) not in reached:
                    parent[other] = vertex
                    reached.add(int(other))
                    following.append(int(other))
        layer = following
    return _Instance(_flag(start, size), _channels(adj), (Target("pi", "pointer", parent),))


def _single_source(random: np.random.Generator, size: int) -> _Instance:
    """Predecessors on the shortest paths from a start, by repeated relaxation of every edge."""
    adj, weight, start = *_weighted(random, size), int(random.integers(size))
    distance = np.full(size, np.inf)
    distance[start] = 0.0
    parent = np.arange(size)
    length = np.where(adj > 0, weight, np.inf)
    for _ in range(size - 1):
        reach = distance[:, None] + length
        better = reach.min(axis=0) < distance
        parent = np.where(better, reach.argmin(axis=0), parent)
        distance = np.minimum(distance, reach.min(axis=0))
    return _Instance(_flag(start, size), _channels(adj, weight), (Target("pi", "pointer", parent),))


def _floyd_warshall(random: np.random.Generator, size: int) -> _Instance:
    """For each (i, k) the vertex before k on the shortest path from i; i itself where none exists or i = k."""
    adj, weight = _weighted(random, size)
    distance = np.where(adj > 0, weight, np.inf)
    np.fill_diagonal(distance, 0.0)
    before = np.repeat(np.arange(size)[:, None], size, axis=1)
    for pivot in range(size):
        through = distance[:, pivot, None] + distance[None, pivot, :]
        shorter = through < distance
        before = np.where(shorter, before[pivot][None, :], before)
        distance = np.minimum(distance, through)
    return _Instance(_empty(size), _channels(adj, weight), (Target("Pi", "pair_pointer", before),))


def _mst_prim(random: np.random.Generator, size: int) -> _Instance:
    """Parents in the minimum spanning tree grown from a start; unreached vertices point to themselves."""
    adj, weight, start = *_weighted(random, size), int(random.integers(size))
    key, parent, outside = np.full(size, np.inf), np.arange(size), np.ones(size, dtype=bool)
    key[start] = 0.0
    while outside.any():
        nearest = int(np.argmin(np.where(outside, key, np.inf)))
        if not outside[nearest] or np.isinf(key[nearest]):
            break
        outside[nearest] = False
        closer = (adj[nearest] > 0) & outside & (weight[nearest] < key)
        key, parent = np.where(closer, weight[nearest], key), np.where(closer, nearest, parent)
    return _Instance(_flag(start, size), _channels(adj, weight), (Target("pi", "pointer", parent),))


def _topological_sort(random: np.random.Generator, size: int) -> _Instance:
    """The order of a depth-first search as a linked list: each vertex points to the next, the last to itself."""
    order = random.permutation(size)
    upper = np.triu(random.random((size, size)) < random.choice(_PROBABILITIES), 1)
    adj = np.zeros((size, size), dtype=np.int64)
    adj[np.ix_(order, order)] = upper
    following, head, seen = np.arange(size), -1, np.zeros(size, dtype=bool)

    def finish(vertex: int) -> None:
        nonlocal head
        seen[vertex] = True
        for other in np.flatnonzero(adj[vertex]):
            if not seen[other]:
                finish(int(other))
        following[vertex] = vertex if head < 0 else head
        head = vertex

    for vertex in range(size):
        if not seen[vertex]:
            finish(vertex)
    first = (np.arange(size) == head).astype(np.int64)
    return _Instance(
        _empty(size), _channels(adj), (Target("topo", "pointer", following), Target("topo_head", "mask_one", first))
    )


def _insertion_sort(random: np.random.Generator, size: int) -> _Instance:
    """For each entry the entry before it in sorted order; the smallest points to itself."""
    keys = random.random(size)
    order = np.argsort(keys, kind="stable")
    before = np.empty(size, dtype=np.int64)
    before[order[1:]], before[order[0]] = order[:-1], order[0]
    vertex = keys.astype(np.float32)[:, None]
    return _Instance(vertex, _complete(size), (Target("pred", "pointer", before),))


def _lcs_length(random: np.random.Generator, size: int) -> _Instance:
    """For a character of each string, where the longest common subsequence's table took its value from.

    0: both characters match (diagonal), 1: the row above, 2: the column to the left; ties go to the row above.
    """
    length = size - size // 2
    text = random.integers(4, size=size)
    first, second = text[:length], text[length:]
    table = np.zeros((length + 1, len(second) + 1), dtype=np.int64)
    came_from = np.full((size, size), IGNORED, dtype=np.int64)
    for i, a in enumerate(first, start=1):
        for k, b in enumerate(second, start=1):
            if a == b:
                table[i, k], direction = table[i - 1, k - 1] + 1, 0
            elif table[i - 1, k] >= table[i, k - 1]:
                table[i, k], direction = table[i - 1, k], 1
            else:
                table[i, k], direction = table[i, k - 1], 2
            came_from[i - 1, length + k - 1] = direction
    which = (np.arange(size) >= length).astype(np.float32)[:, None]
    vertex = np.concatenate([which, np.eye(4, dtype=np.float32)[text]], axis=1)
    return _Instance(vertex, _complete(size), (Target("b", "pair_category", came_from, classes=3),))


TASKS: dict[str, Callable[[np.random.Generator, int], _Instance]] = {
    "bfs": _bfs,
    "bellman_ford": _single_source,
    "dijkstra": _single_source,
    "floyd_warshall": _floyd_warshall,
    "mst_prim": _mst_prim,
    "topological_sort": _topological_sort,
    "insertion_sort": _insertion_sort,
    "lcs_length": _lcs_length,
}

_PROBABILITIES: Sequence[float] = tuple(round(0.1 * tenth, 1) for tenth in range(1, 10))


def _erdos_renyi(random: np.random.Generator, size: int) -> NDArray[np.int64]:
    upper = np.triu(random.random((size, size)) < random.choice(_PROBABILITIES), 1)
    adj: NDArray[np.int64] = (upper | upper.T).astype(np.int64)
    return adj


def _weighted(random: np.random.Generator, size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    adj = _erdos_renyi(random, size)
    # what the network reads is float32: the algorithm runs on the same numbers
    upper = np.triu(random.random((size, size)).astype(np.float32).astype(np.float64), 1)
    return adj, adj * (upper + upper.T)


def _channels(adj: NDArray[np.int64], weight: NDArray[np.float64] | None = None) -> Floats:
    planes = [adj] if weight is None else [adj, weight]
    return np.stack(planes, axis=-1).astype(np.float32)


def _flag(vertex: int, size: int) -> Floats:
    flag: Floats = (np.arange(size) == vertex).astype(np.float32)[:, None]
    return flag


def _empty(size: int) -> Floats:
    return np.zeros((size, 0), dtype=np.float32)


def _complete(size: int) -> Floats:
    return np.ones((size, size, 1), dtype=np.float32)
