"""Which point compresses most while the quality stays: a search that evaluates few points.

The compression ratio of every point is measured first, which is cheap; the quality is modelled by a Gaussian process
and evaluated where ratio times the chance of being good enough, and what the model does not know yet, are largest
(arXiv:2605.13734; constants from the official code). Points that differ in the codec alone have the same quality and
are evaluated once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from heliograph.errors import BadInput, MissingExtra
from heliograph.serving.kv_serve.point import CompressionPoint
from heliograph.serving.kv_serve.space import embed

__all__ = ["Evaluated", "SearchResult", "SearchSettings", "pareto_front", "random_search", "search_points"]


@dataclass(frozen=True)
class SearchSettings:
    """How the search goes; the defaults are those of the official code.

    Attributes:
        min_quality: a point is feasible from here on.
        max_evals: evaluations at most.
        cold_start: first points, evenly spaced in ratio.
        tolerance: below ``min_quality`` by this much, points that compress more are given up too.
        eps: of the compression ratio, in pruning and stopping.
        exploration: weight of what the model does not know, at first.
        prune: whether points are given up at all.
        model: whether quality is modelled; otherwise the largest ratio that is left is tried.
    """

    min_quality: float = 0.97
    max_evals: int = 80
    cold_start: int = 3
    tolerance: float = 0.03
    eps: float = 0.2
    exploration: float = 1.0
    prune: bool = True
    model: bool = True

    def __post_init__(self) -> None:
        """Refuses a search without evaluations."""
        if self.max_evals < 1 or self.cold_start < 1 or self.eps <= 0 or self.tolerance < 0:
            raise BadInput(f"a search evaluates at least one point, with eps above 0; got {self}")


@dataclass(frozen=True)
class Evaluated:
    """A point that was evaluated.

    Attributes:
        index: among the candidates; of those that differ in the codec alone, the one that compresses most.
        ratio, quality: of it.
    """

    index: int
    ratio: float
    quality: float


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        evaluated: in order.
        best: the feasible one that compresses most; None where none is feasible.
        feasible: all that are.
        stopped: why it ended: budget, range (what is left differs little in ratio) or empty (nothing is left).
    """

    evaluated: tuple[Evaluated, ...]
    best: Evaluated | None
    feasible: tuple[Evaluated, ...]
    stopped: str


def search_points(
    points: Sequence[CompressionPoint],
    ratios: Sequence[float],
    evaluate: Callable[[int], float],
    settings: SearchSettings = SearchSettings(),
    *,
    seed: int = 0,
    progress: Callable[[int, Evaluated], object] | None = None,
) -> SearchResult:
    """The feasible point that compresses most.

    Args:
        points: candidates.
        ratios: compression ratio of each.
        evaluate: relative quality of a candidate, by its number.
        settings: of the search.
        seed: of the model's restarts.
        progress: told after each evaluation.

    Raises:
        BadInput: no candidates. MissingExtra: scikit-learn is not installed.
    """
    chosen, ratio = _best_codecs(points, ratios)
    features = embed([points[number] for number in chosen])
    axis = np.array([hash((points[n].key_axis, points[n].value_axis)) for n in chosen])
    spread = max(max(p.key_high, p.value_high) for p in points) - min(min(p.key_low, p.value_low) for p in points)
    state = _State(ratio, axis)
    process = _Process(features, seed) if settings.model else None
    budget, threshold = settings.max_evals, settings.min_quality
    failures, evaluated = 0, []
    stopped = "budget"

    def observe(place: int) -> float:
        found = Evaluated(chosen[place], float(ratio[place]), float(evaluate(chosen[place])))
        evaluated.append(found)
        state.seen[place], state.quality[place] = True, found.quality
        if progress is not None:
            progress(len(evaluated), found)
        return found.quality

    order = np.argsort(ratio, kind="stable")
    for place in np.unique(np.linspace(0, len(order) - 1, min(settings.cold_start, budget)).round().astype(int)):
        observe(int(order[place]))
    for step in range(budget - len(evaluated)):
        open_ = ~state.seen & ~state.given_up
        if not open_.any():
            stopped = "empty"
            break
        early = step < budget / 5
        if settings.prune and np.ptp(ratio[open_]) <= 2.5 * settings.eps and failures > budget / 10:
            stopped = "range"
            break
        weight = max(0.1, settings.exploration * 0.99**step) * (1 if early else 0.5)
        place = _next(process, state, open_, threshold, weight)
        quality = observe(place)
        same = axis == axis[place]
        if quality >= threshold:
            failures = 0
            if settings.prune and not early:
                state.given_up |= same & (ratio <= ratio[place] - settings.eps / 2)
        else:
            failures += 1
            if settings.prune and quality <= threshold - settings.tolerance and (spread < 8 or step > budget / 2):
                state.given_up |= same & (ratio >= ratio[place] + 2 * settings.eps)
    return _result(evaluated, threshold, stopped)


def random_search(
    points: Sequence[CompressionPoint],
    ratios: Sequence[float],
    evaluate: Callable[[int], float],
    settings: SearchSettings = SearchSettings(),
    *,
    seed: int = 0,
) -> SearchResult:
    """The same from points drawn at random, with the same sharing between codecs: what a search has to beat."""
    chosen, ratio = _best_codecs(points, ratios)
    order = np.random.default_rng(seed).permutation(len(chosen))[: settings.max_evals]
    evaluated = [Evaluated(chosen[n], float(ratio[n]), float(evaluate(chosen[n]))) for n in order]
    return _result(evaluated, settings.min_quality, "budget" if len(order) < len(chosen) else "empty")


def pareto_front(rows: Sequence[Sequence[float]]) -> list[int]:
    """Numbers of the rows that no other row beats: at least as large everywhere, and larger somewhere."""
    table = np.asarray(rows, dtype=float).reshape(len(rows), -1)
    keep = []
    for number, row in enumerate(table):
        beaten = (table >= row).all(1) & (table > row).any(1)
        same_before = (table[:number] == row).all(1).any()
        if not beaten.any() and not same_before:
            keep.append(number)
    return keep


@dataclass
class _State:
    ratio: NDArray[np.float64]
    axis: NDArray[np.int64]

    def __post_init__(self) -> None:
        self.seen = np.zeros(len(self.ratio), dtype=bool)
        self.given_up = np.zeros(len(self.ratio), dtype=bool)
        self.quality = np.full(len(self.ratio), np.nan)


def _best_codecs(points: Sequence[CompressionPoint], ratios: Sequence[float]) -> tuple[list[int], NDArray[np.float64]]:
    """One candidate for each way of losing bits, the one that compresses most; and their ratios."""
    if not points or len(points) != len(ratios):
        raise BadInput(f"a search needs candidates and a ratio for each; got {len(points)} and {len(ratios)}")
    best: dict[CompressionPoint, int] = {}
    for number, point in enumerate(points):
        own = point.lossy_part
        if own not in best or ratios[number] > ratios[best[own]]:
            best[own] = number
    chosen = list(best.values())
    return chosen, np.array([ratios[number] for number in chosen], dtype=float)


def _next(process: _Process | None, state: _State, open_: NDArray[np.bool_], threshold: float, weight: float) -> int:
    """Where ratio times the chance of feasibility, plus what is unknown, is largest."""
    places = np.flatnonzero(open_)
    if process is None:
        return int(places[np.argmax(state.ratio[places])])
    mean, deviation = process.predict(state.seen, state.quality, places)
    chance = ndtr((mean - threshold) / np.maximum(deviation, 1e-9))
    unknown = deviation / max(float(deviation.max()), 1e-12)
    return int(places[np.argmax(state.ratio[places] * chance + weight * unknown * state.ratio.mean())])


class _Process:
    """A Gaussian process over the candidates, fitted again after each evaluation.

    The kernel's settings are searched from several starts at first and at every eighth fit, and from the last ones
    in between.
    """

    def __init__(self, features: NDArray[np.float64], seed: int) -> None:
        try:
            from sklearn.gaussian_process import GaussianProcessRegressor
            from sklearn.gaussian_process.kernels import Matern, WhiteKernel
        except ModuleNotFoundError as error:
            raise MissingExtra("scikit-learn", "serving") from error
        self._make: Any = GaussianProcessRegressor
        self._kernel: Any = Matern(length_scale=1.0, nu=1.5) + WhiteKernel(1e-4, (1e-6, 1e-1))
        self._features, self._seed, self._fits = features, seed, 0

    def predict(
        self, seen: NDArray[np.bool_], quality: NDArray[np.float64], places: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and deviation of the quality at some candidates."""
        restarts = 5 if self._fits % 8 == 0 else 0
        model = self._make(self._kernel, n_restarts_optimizer=restarts, normalize_y=True, random_state=self._seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a setting at the edge of its range is no fault
            model.fit(self._features[seen], quality[seen])
            mean, deviation = model.predict(self._features[places], return_std=True)
        self._kernel, self._fits = model.kernel_, self._fits + 1
        return mean, deviation


def _result(evaluated: Sequence[Evaluated], threshold: float, stopped: str) -> SearchResult:
    feasible = tuple(each for each in evaluated if each.quality >= threshold)
    best = max(feasible, key=lambda each: each.ratio, default=None)
    return SearchResult(tuple(evaluated), best, feasible, stopped)
