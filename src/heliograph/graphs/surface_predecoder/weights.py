r"""Matching weights learned from syndrome statistics alone: no error rates, only which detectors an error joins.

For detectors i and j joined by an edge, with x the detector bits,

.. math:: p_{ij} = \tfrac12 - \tfrac12 \sqrt{1 - \frac{4 (\langle x_i x_j \rangle - \langle x_i \rangle \langle x_j
          \rangle)}{1 - 2 \langle x_i \rangle - 2 \langle x_j \rangle + 4 \langle x_i x_j \rangle}}, \qquad
          p_i = \tfrac12 + \frac{\langle x_i \rangle - \frac12}{\prod_j (1 - 2 p_{ij})}

and the weight is log((1 - p) / p). Source: arXiv:2604.12841 states that weights are learned so; this closed form is the
field's correlation method, exact when errors are independent and flip one or two detectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pymatching
import stim

from heliograph.errors import BadInput

__all__ = ["EdgeEstimate", "MatchingGraph", "estimate_edges", "learn_edge_weights"]

SMALLEST, LARGEST = 1e-7, 0.499
_CHUNK = 20_000


@dataclass(frozen=True, eq=False)
class MatchingGraph:
    """Which detectors each error joins, and which observables it flips.

    Attributes:
        num_detectors: vertices.
        num_observables: O.
        edges: [E, 2] detectors, the smaller first; -1 in the second place is the boundary.
        observables: [E, O] booleans.
        probability: [E]; true rates if known, else uniform.
        coordinates: [number of detectors, 3] (x, y, t), or ``None``; lets edges be pooled by translation.
    """

    num_detectors: int
    num_observables: int
    edges: np.ndarray
    observables: np.ndarray
    probability: np.ndarray
    coordinates: np.ndarray | None = None

    @classmethod
    def from_dem(cls, dem: stim.DetectorErrorModel | str) -> MatchingGraph:
        """Reads the edges of an error model; errors of more detectors must come decomposed into pairs.

        Raises:
            BadInput: an error of three or more detectors without decomposition.
        """
        if isinstance(dem, str):
            dem = stim.DetectorErrorModel.from_file(dem)
        merged: dict[tuple[int, int], dict[tuple[int, ...], float]] = {}
        for instruction in dem.flattened():
            if instruction.type != "error":
                continue
            p = instruction.args_copy()[0]
            detectors: list[int] = []
            flips: list[int] = []
            for target in [*instruction.targets_copy(), None]:
                if target is None or target.is_separator():
                    _merge(merged, detectors, flips, p)
                    detectors, flips = [], []
                elif target.is_relative_detector_id():
                    detectors.append(target.val)
                else:
                    flips.append(target.val)
        edges = np.array(sorted(merged), dtype=np.int64).reshape(-1, 2)
        observables = np.zeros((len(edges), dem.num_observables), dtype=bool)
        probability = np.zeros(len(edges))
        for row, (i, j) in enumerate(edges.tolist()):
            parallel = merged[i, j]
            likeliest = max(parallel, key=lambda f: parallel[f])
            observables[row, list(likeliest)] = True
            probability[row] = parallel[likeliest]
        edges = np.where(edges[:, :1] < 0, edges[:, ::-1], edges)
        coordinates = dem.get_detector_coordinates()
        complete = all(len(coordinates.get(i, ())) >= 3 for i in range(dem.num_detectors))
        table = np.array([coordinates[i][:3] for i in range(dem.num_detectors)]) if complete else None
        return cls(dem.num_detectors, dem.num_observables, edges, observables, probability, table)

    def with_probability(self, probability: np.ndarray | float) -> MatchingGraph:
        """The same structure with other rates; one number gives uniform weights."""
        return replace(self, probability=np.broadcast_to(np.asarray(probability, float), (len(self.edges),)).copy())

    def matching(self) -> pymatching.Matching:
        """PyMatching's decoder with weights log((1 - p) / p)."""
        made = pymatching.Matching()
        clipped = np.clip(self.probability, SMALLEST, LARGEST)
        for (i, j), flips, p in zip(self.edges.tolist(), self.observables, clipped, strict=True):
            ids = set(np.flatnonzero(flips).tolist())
            weight = float(np.log((1 - p) / p))
            if j < 0:
                made.add_boundary_edge(i, fault_ids=ids, weight=weight, error_probability=float(p))
            else:
                made.add_edge(i, j, fault_ids=ids, weight=weight, error_probability=float(p))
        made.ensure_num_fault_ids(self.num_observables)
        return made

    def mean_density(self) -> float:
        """Expected share of detectors that fire, if edges were independent."""
        keep = np.zeros(self.num_detectors + 1)
        change = np.log1p(-2 * np.clip(self.probability, 0, LARGEST))
        np.add.at(keep, self.edges[:, 0], change)
        np.add.at(keep, self.edges[:, 1], change)  # the boundary's -1 lands in the spare place
        return float((0.5 * (1 - np.exp(keep[:-1]))).mean())

    @cached_property
    def translation_classes(self) -> np.ndarray:
        """[E]: edges of one class differ by a shift in time alone; slices at either end form classes of their own."""
        if self.coordinates is None:
            raise BadInput(
                "edges can be pooled by translation only with detector coordinates (x, y, t); there are none"
            )
        times = np.unique(self.coordinates[:, 2])
        classes: dict[tuple[Any, ...], int] = {}
        row = np.zeros(len(self.edges), dtype=np.int64)
        for e, (i, j) in enumerate(self.edges.tolist()):
            a = self.coordinates[i]
            b = a if j < 0 else self.coordinates[j]
            span = sorted((float(a[2]), float(b[2])))
            edge_of_time = tuple(t for t in span if t in times[:2] or t in times[-2:])
            spot = sorted([(*map(float, a[:2]), a[2] - span[0]), (*map(float, b[:2]), b[2] - span[0])])
            row[e] = classes.setdefault((j < 0, tuple(spot), edge_of_time), len(classes))
        return row


@dataclass(frozen=True, eq=False)
class EdgeEstimate:
    """What syndromes say about each edge.

    Attributes:
        graph: the structure, with the estimated rates.
        relative_error: [E] standard error of each estimate over the estimate, from the number of shots; what
            ``pool`` shares is counted once.
        shots: how many were seen.
        clipped: edges whose estimate fell outside [1e-7, 0.499] and was moved there.
    """

    graph: MatchingGraph
    relative_error: np.ndarray
    shots: int
    clipped: int


def learn_edge_weights(
    graph: MatchingGraph | stim.DetectorErrorModel,
    detectors: np.ndarray,
    *,
    pool: Literal["none", "time"] = "none",
) -> pymatching.Matching:
    """A matching decoder whose weights come from detector samples alone; see :func:`estimate_edges`.

    Args:
        graph: which detectors are joined; its probabilities are not used.
        detectors: [B, number of detectors] of 0 and 1.
        pool: ``time`` averages edges that differ by a shift in time.
    """
    return estimate_edges(graph, detectors, pool=pool).graph.matching()


def estimate_edges(
    graph: MatchingGraph | stim.DetectorErrorModel,
    detectors: np.ndarray,
    *,
    pool: Literal["none", "time"] = "none",
) -> EdgeEstimate:
    """Error rate of every edge by the closed form above, with its relative error.

    Args:
        graph: which detectors are joined; its probabilities are not used.
        detectors: [B, number of detectors] of 0 and 1.
        pool: ``time`` averages edges that differ by a shift in time.

    Raises:
        BadInput: another shape, fewer than two shots, values other than 0 and 1, or an unknown ``pool``.
    """
    if isinstance(graph, stim.DetectorErrorModel):
        graph = MatchingGraph.from_dem(graph)
    if pool not in ("none", "time"):
        raise BadInput(f"pool is 'none' or 'time'; got {pool!r}")
    values = np.asarray(detectors)
    if values.ndim != 2 or values.shape[1] != graph.num_detectors:
        raise BadInput(f"detectors must be [shots, {graph.num_detectors}]; got {list(values.shape)}")
    if len(values) < 2:
        raise BadInput(f"statistics need at least two shots; got {len(values)}")
    if values.dtype != bool and ((values != 0) & (values != 1)).any():
        raise BadInput(f"detectors must hold 0 and 1 alone; got values up to {values.max()}")
    mean, both = _moments(values, graph)
    inner = graph.edges[:, 1] >= 0
    i, j = graph.edges[:, 0], graph.edges[:, 1]
    p = np.zeros(len(graph.edges))
    mi, mj = mean[i], np.where(inner, mean[j], 0.0)
    covariance = both - mi * mj
    base = 1 - 2 * mi - 2 * mj + 4 * both
    with np.errstate(divide="ignore", invalid="ignore"):
        root = 1 - 4 * covariance / base
    # Past saturation (a detector at rate 1/2, or too few shots) the root says nothing but "very noisy".
    p[inner] = np.where(base[inner] > 0, 0.5 - 0.5 * np.sqrt(np.clip(root[inner], 0, None)), LARGEST)
    if pool == "time":
        p = _pooled(p, graph, inner)
    survive = np.zeros(graph.num_detectors)
    factor = np.log1p(-2 * np.clip(p[inner], 0, LARGEST))
    np.add.at(survive, i[inner], factor)
    np.add.at(survive, j[inner], factor)
    p[~inner] = 0.5 + (mean[i[~inner]] - 0.5) / np.exp(survive[i[~inner]])
    if pool == "time":
        p = _pooled(p, graph, ~inner)
    clipped = np.clip(p, SMALLEST, LARGEST)
    shots = len(values)
    # d p / d covariance is about 1 for rare errors; the covariance's own variance is that of a product of bits.
    variance = np.where(inner, both * (1 - both) + (mi * mj) * (mi + mj), mi * (1 - mi)) / shots
    if pool == "time":
        variance = variance / np.bincount(graph.translation_classes)[graph.translation_classes]
    return EdgeEstimate(graph.with_probability(clipped), np.sqrt(variance) / clipped, shots, int((clipped != p).sum()))


def _moments(values: np.ndarray, graph: MatchingGraph) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each detector, and of the product at each edge's ends (0 for boundary edges)."""
    i, j = graph.edges[:, 0], graph.edges[:, 1]
    inner = np.flatnonzero(j >= 0)
    both = np.zeros(len(graph.edges))
    # Eight shots a byte: the product of two detectors over all shots is one pass over packed rows.
    packed = np.packbits(values.astype(bool).T, axis=1)
    for start in range(0, len(inner), _CHUNK):
        part = inner[start : start + _CHUNK]
        for e in part:
            both[e] = np.bitwise_count(packed[i[e]] & packed[j[e]]).sum()
    return values.mean(0, dtype=float), both / len(values)


def _pooled(p: np.ndarray, graph: MatchingGraph, which: np.ndarray) -> np.ndarray:
    classes = graph.translation_classes
    total = np.bincount(classes[which], p[which], minlength=classes.max() + 1)
    count = np.bincount(classes[which], minlength=classes.max() + 1)
    out = p.copy()
    out[which] = (total / np.maximum(count, 1))[classes[which]]
    return out


def _merge(
    merged: dict[tuple[int, int], dict[tuple[int, ...], float]], detectors: list[int], flips: list[int], p: float
) -> None:
    if not detectors:
        return  # an error that no detector sees: no matching can help
    if len(detectors) > 2:
        raise BadInput(
            f"an error joins {len(detectors)} detectors {detectors}; build the model with decompose_errors=True"
        )
    i, j = (detectors[0], -1) if len(detectors) == 1 else sorted(detectors)
    parallel = merged.setdefault((i, j), {})
    before = parallel.get(key := tuple(sorted(set(flips))), 0.0)
    parallel[key] = before * (1 - p) + p * (1 - before)
