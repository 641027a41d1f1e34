"""Classical tours beside the network's: local search under a time budget, exact solvers, and TSPLIB files.

Exact answers come from Held and Karp's dynamic programme (N <= 13) and from HiGHS with subtour cuts added as they are
violated (N <= 30); beyond that, ``elkai`` (LKH) is the best known tour, not a proven one. LKH is stronger than Linkern,
the heuristic that the paper compares with.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from heliograph.errors import BadInput, MissingExtra
from heliograph.graphs.floydnet.tours import tour_length

__all__ = ["LabelledTour", "best_known_tour", "held_karp", "highs_tour", "lkh_tour", "local_search", "read_tsplib"]

Distances = NDArray[Any]

_MAX_HELD_KARP = 13
_MAX_HIGHS = 30


@dataclass(frozen=True)
class LabelledTour:
    """A tour, its length, where it comes from, and whether it is proven optimal; restarts for local search."""

    tour: tuple[int, ...]
    length: float
    source: str
    proven: bool
    restarts: int = 0


def best_known_tour(dist: Distances) -> LabelledTour:
    """The strongest answer at hand: Held-Karp up to 13 cities, HiGHS up to 30 (symmetric), else LKH marked unproven."""
    dist = _check(dist)
    if len(dist) <= _MAX_HELD_KARP:
        return held_karp(dist)
    if len(dist) <= _MAX_HIGHS and (dist == dist.T).all():
        return highs_tour(dist)
    return lkh_tour(dist)


def held_karp(dist: Distances) -> LabelledTour:
    """The shortest tour by dynamic programming over subsets; asymmetric distances allowed; 3 to 13 cities."""
    dist = _check(dist)
    size = len(dist)
    if size > _MAX_HELD_KARP:
        raise BadInput(f"Held-Karp takes at most {_MAX_HELD_KARP} cities here; got {size}: use highs_tour or lkh_tour")
    others = size - 1  # city 0 is the start; bit b stands for city b + 1
    cost = np.full((1 << others, others), np.inf)
    parent = np.zeros((1 << others, others), dtype=np.int64)
    for last in range(others):
        cost[1 << last, last] = dist[0, last + 1]
    between = dist[1:, 1:]
    for subset in range(1, 1 << others):
        for last in range(others):
            before = subset & ~(1 << last)
            if subset >> last & 1 and before:
                reach = cost[before] + between[:, last]
                parent[subset, last] = np.argmin(reach)
                cost[subset, last] = reach[parent[subset, last]]
    subset = (1 << others) - 1
    last = int(np.argmin(cost[subset] + dist[1:, 0]))
    order = []
    while subset:
        order.append(last + 1)
        subset, last = subset & ~(1 << last), int(parent[subset, last])
    tour = (0, *reversed(order))
    return LabelledTour(tour, tour_length(dist, tour), "Held-Karp", proven=True)


def highs_tour(dist: Distances, time_limit_s: float = 120.0) -> LabelledTour:
    """The shortest symmetric tour by integer programming, one cut for each subtour that a solution contains.

    Raises:
        BadInput: asymmetric distances or more than 30 cities.
        TimeoutError: not proven optimal within the limit.
        MissingExtra: highspy is absent.
    """
    dist = _check(dist)
    size = len(dist)
    if size > _MAX_HIGHS or (dist != dist.T).any():
        raise BadInput(f"highs_tour takes up to {_MAX_HIGHS} cities with symmetric distances; got {size} cities")
    highspy = _import("highspy")
    pairs = [(i, k) for i in range(size) for k in range(i + 1, size)]
    column = {pair: number for number, pair in enumerate(pairs)}
    solver = highspy.Highs()
    solver.silent()
    deadline = time.monotonic() + time_limit_s
    for i, k in pairs:
        solver.addCol(float(dist[i, k]), 0.0, 1.0, 0, [], [])
    solver.changeColsIntegrality(
        len(pairs), np.arange(len(pairs), dtype=np.int32), np.array([highspy.HighsVarType.kInteger] * len(pairs))
    )
    for city in range(size):
        columns = np.array([column[min(city, o), max(city, o)] for o in range(size) if o != city], dtype=np.int32)
        solver.addRow(2.0, 2.0, len(columns), columns, np.ones(len(columns)))
    while True:
        solver.setOptionValue("time_limit", max(0.01, deadline - time.monotonic()) + solver.getRunTime())
        solver.run()
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            raise TimeoutError(f"HiGHS did not prove a tour of {size} cities optimal in {time_limit_s} s")
        values = solver.getSolution().col_value
        graph = nx.Graph([pair for pair, value in zip(pairs, values, strict=True) if value > 0.5])
        parts = sorted(nx.connected_components(graph), key=len)
        if len(parts) == 1:
            tour = tuple(nx.dfs_preorder_nodes(graph, 0))
            return LabelledTour(tour, tour_length(dist, tour), "HiGHS", proven=True)
        for part in parts if len(parts) > 2 else parts[:1]:
            inside = np.array([column[i, k] for i, k in pairs if i in part and k in part], dtype=np.int32)
            solver.addRow(-highspy.kHighsInf, len(part) - 1.0, len(inside), inside, np.ones(len(inside)))


def lkh_tour(dist: Distances, runs: int = 10) -> LabelledTour:
    """The tour of LKH-3 through ``elkai``: best known, never proven. Distances must be integers there.

    Raises:
        MissingExtra: elkai is absent. BadInput: distances that are not integers.
    """
    dist = _check(dist)
    if (np.asarray(dist, dtype=np.int64) != dist).any():
        raise BadInput("elkai takes integer distances; scale and round them first, and say so beside the result")
    elkai = _import("elkai")
    closed = elkai.DistanceMatrix(np.asarray(dist, dtype=np.int64).tolist()).solve_tsp(runs=runs)
    tour = tuple(int(city) for city in closed[:-1])
    return LabelledTour(tour, tour_length(dist, tour), "LKH (elkai), best known", proven=False)


def local_search(
    dist: Distances,
    seconds: float | None = None,
    restarts: int | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> LabelledTour:
    """Nearest neighbour from each start in turn, then 2-opt and Or-opt to a local optimum, until the budget is spent.

    After the N nearest-neighbour starts, restarts begin at random tours. Symmetric distances.

    Args:
        seconds: wall-clock budget; the descent under way when it runs out is finished.
        restarts: number of descents; with ``seconds`` too, whichever ends first. At least one descent is made.
        clock: what ``seconds`` is read from.
    """
    dist = _check(dist)
    if (dist != dist.T).any():
        raise BadInput("local_search reverses segments, so distances must be symmetric")
    if seconds is None and restarts is None:
        raise BadInput("give local_search a budget: seconds, restarts or both")
    random = np.random.default_rng(seed)
    rows: list[list[float]] = dist.astype(float).tolist()  # plain lists: scalar reads are ten times faster than numpy's
    starts = random.permutation(len(dist))
    end = None if seconds is None else clock() + seconds
    best: list[int] = []
    best_length, done = np.inf, 0
    while done == 0 or ((restarts is None or done < restarts) and (end is None or clock() < end)):
        if done < len(starts):
            tour = _nearest_neighbour(dist, int(starts[done]))
        else:
            tour = random.permutation(len(dist)).tolist()
        while _two_opt(tour, rows) or _or_opt(tour, rows):
            pass
        length = tour_length(dist, tour)
        if length < best_length:
            best, best_length = list(tour), length
        done += 1
    turn = best.index(0)
    return LabelledTour(tuple(best[turn:] + best[:turn]), float(best_length), "2-opt + Or-opt", False, done)


def read_tsplib(path: str | Path) -> Distances:
    """The distance matrix of a TSPLIB file, through ``tsplib95`` or ``vrplib``, whichever is installed.

    Raises:
        MissingExtra: neither is. BadInput: no such file, or one that they cannot read.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path} does not exist; expected a TSPLIB file")
    try:
        tsplib95 = importlib.import_module("tsplib95")
    except ImportError:
        tsplib95 = None
    try:
        if tsplib95 is not None:
            problem = tsplib95.load(path)
            cities = list(problem.get_nodes())
            return _check(np.array([[problem.get_weight(i, k) if i != k else 0 for k in cities] for i in cities]))
        vrplib = _import("vrplib")
        instance = vrplib.read_instance(path)
        return _check(np.asarray(instance["edge_weight"]))
    except (MissingExtra, BadInput):
        raise
    except Exception as error:  # both readers raise whatever their parsing meets
        raise BadInput(f"{path} cannot be read as TSPLIB: {error}") from error


def _nearest_neighbour(dist: Distances, start: int) -> list[int]:
    tour, left = [start], np.ones(len(dist), dtype=bool)
    left[start] = False
    while left.any():
        nearest = int(np.argmin(np.where(left, dist[tour[-1]], np.inf)))
        tour.append(nearest)
        left[nearest] = False
    return tour


def _two_opt(tour: list[int], rows: list[list[float]]) -> bool:
    """Reverses segments in place until no reversal shortens the tour; whether any did."""
    size, improved, again = len(tour), False, True
    while again:
        again = False
        for i in range(size - 2):
            for j in range(i + 2, size - (i == 0)):
                a, b, c, d = tour[i], tour[i + 1], tour[j], tour[(j + 1) % size]
                if rows[a][c] + rows[b][d] < rows[a][b] + rows[c][d] - 1e-9:
                    tour[i + 1 : j + 1] = tour[i + 1 : j + 1][::-1]
                    improved = again = True
    return improved


def _or_opt(tour: list[int], rows: list[list[float]]) -> bool:
    """Moves one run of up to three cities, either way round, to where it shortens the tour; whether it found one."""
    size = len(tour)
    for length in range(1, min(3, size - 3) + 1):
        for start in range(size):
            turned = tour[start:] + tour[:start]
            run, rest = turned[:length], turned[length:]
            gain = rows[rest[-1]][run[0]] + rows[run[-1]][rest[0]] - rows[rest[-1]][rest[0]]
            for place in range(len(rest) - 1):
                a, b = rest[place], rest[place + 1]
                for piece in (run, run[::-1]):
                    if rows[a][piece[0]] + rows[piece[-1]][b] - rows[a][b] < gain - 1e-9:
                        tour[:] = rest[: place + 1] + piece + rest[place + 1 :]
                        return True
    return False


def _check(dist: Distances) -> Distances:
    dist = np.asarray(dist)
    if dist.ndim != 2 or dist.shape[0] != dist.shape[1]:
        raise BadInput(f"distances must be a square matrix; got shape {dist.shape}")
    if len(dist) < 3:
        raise BadInput(f"a tour needs at least 3 cities; got {len(dist)}")
    if not np.isfinite(dist).all():
        raise BadInput("distances must be finite: give a missing road a large number")
    return dist


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtra(package, "graphs") from error
