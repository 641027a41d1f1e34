"""Transmission and recovery from observed cascades: the paper's grid over coverage curves, or by likelihood.

Shapes: R runs, T rounds, N agents, G settings of the grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.special import chdtri

from heliograph.agents.error_cascade.dynamics import Form, checked_adjacency, predict_cascade
from heliograph.errors import BadInput

__all__ = ["CascadeFit", "Init", "fit_cascade"]

Init = Literal["homogeneous", "seeded", "transitions"]


@dataclass(frozen=True)
class CascadeFit:
    """Fitted rates.

    Attributes:
        beta, delta: transmission and recovery.
        mse: mean squared error of the coverage curve that they predict.
        beta_interval, delta_interval: confidence intervals; None where they were not asked for or nothing tells.
        curve: predicted coverage by round, from round 1 on (homogeneous) or 0 (else).
        observed: mean observed coverage by round, [T].
        form, init: how it was fitted.
        runs: R.
    """

    beta: float
    delta: float
    mse: float
    beta_interval: tuple[float, float] | None
    delta_interval: tuple[float, float] | None
    curve: tuple[float, ...]
    observed: tuple[float, ...]
    form: Form
    init: Init
    runs: int


def fit_cascade(
    adoption: ArrayLike,
    adjacency: ArrayLike,
    *,
    form: Form = "product",
    init: Init | None = None,
    level: float = 0.95,
    draws: int = 200,
    seed: int = 0,
) -> CascadeFit:
    """Fits the two rates.

    Args:
        adoption: [R, T, N] booleans, who has adopted when; or [R, T] coverage, round 0 first.
        adjacency: [N, N]; [T-1, N, N]; or, for transitions, [R, T-1, N, N] where each run had graphs of its own.
        form: product, poisson, or logistic.
        init: "homogeneous", the paper's: every agent starts at the coverage of round 1, which biases the rates;
            "seeded": the equations start from the observed round 0; "transitions": maximum likelihood over the observed
            steps, which needs [R, T, N] and does not treat agents as independent. By default the last where it can.
        level: of the intervals: from the likelihood, or from resampled runs.
        draws: resamplings; 0 for no intervals on a grid.
        seed: of the resampling.

    Raises:
        BadInput: shapes that do not fit, or an init that needs more than was given.
    """
    x = np.asarray(adoption, dtype=float)
    if x.ndim not in (2, 3) or x.shape[0] < 1 or x.shape[1] < 2:
        raise BadInput(f"adoption is [R, T, N] or coverage [R, T] with 2 rounds or more; got shape {x.shape}")
    if not np.all(np.isfinite(x)) or x.min() < 0 or x.max() > 1:
        raise BadInput("adoption lies between 0 and 1")
    own = np.asarray(adjacency, dtype=float)
    if own.ndim == 4 and (len(own) != len(x) or own.shape[1] < x.shape[1] - 1):
        raise BadInput(f"graphs of each run are [R, T-1, N, N]; got {own.shape} for adoption {x.shape}")
    a = checked_adjacency(own.mean(axis=0) if own.ndim == 4 and len(own) else own, x.shape[1])
    if x.ndim == 3 and x.shape[2] != a.shape[-1]:
        raise BadInput(f"adoption has {x.shape[2]} agents, adjacency {a.shape[-1]}")
    init = init or ("transitions" if x.ndim == 3 and form != "logistic" else "homogeneous")
    if init not in ("homogeneous", "seeded", "transitions") or form not in ("product", "poisson", "logistic"):
        raise BadInput(
            f"init is homogeneous, seeded or transitions, form product, poisson or logistic; got {init}, {form}"
        )
    if not 0 < level < 1 or draws < 0:
        raise BadInput(f"level lies in (0, 1) and draws is 0 or more; got {level} and {draws}")
    if init != "homogeneous" and x.ndim == 2:
        raise BadInput(f"init={init!r} needs to know which agents adopted: give [R, T, N] instead of coverage")
    if init == "transitions":
        return _by_likelihood(x, own, a, form, level)
    return _by_grid(x, a, form, init, level, draws, seed)


def _by_grid(
    x: NDArray[np.float64], a: NDArray[np.float64], form: Form, init: Init, level: float, draws: int, seed: int
) -> CascadeFit:
    coverage = x.mean(axis=2) if x.ndim == 3 else x
    n, rounds = a.shape[-1], x.shape[1]
    if init == "homogeneous" and rounds < 3:
        raise BadInput("the homogeneous start is round 1, so a fit needs 3 rounds or more")

    def paths(beta: NDArray[np.float64], delta: NDArray[np.float64], rows: NDArray[np.intp]) -> NDArray[np.float64]:
        if init == "homogeneous":
            later = a[1:] if a.ndim == 3 else a
            start = np.full(n, coverage[rows, 1].mean())
            curves = predict_cascade(later, beta, delta, start, rounds - 1, form).mean(axis=2)
        else:
            curves = predict_cascade(a, beta, delta, x[rows, 0].mean(axis=0), rounds, form).mean(axis=2)
        return np.asarray(curves)

    def best(rows: NDArray[np.intp]) -> tuple[float, float, float]:
        target = coverage[rows].mean(axis=0)[1 if init == "homogeneous" else 0 :][1:]

        def search(betas: NDArray[np.float64], deltas: NDArray[np.float64]) -> tuple[float, float, float]:
            b, d = (grid.ravel() for grid in np.meshgrid(betas, deltas, indexing="ij"))
            error = ((paths(b, d, rows)[:, 1:] - target) ** 2).mean(axis=1)
            at = int(np.argmin(error))
            return float(b[at]), float(d[at]), float(error[at])

        coarse = np.linspace(0, 1, 21)
        beta, delta, _ = search(coarse, coarse)
        fine = np.linspace(-0.05, 0.05, 11)
        return search(np.unique(np.clip(beta + fine, 0, 1)), np.unique(np.clip(delta + fine, 0, 1)))

    everything = np.arange(len(x))
    beta, delta, mse = best(everything)
    intervals: list[tuple[float, float] | None] = [None, None]
    if draws and len(x) > 1:
        noise = np.random.default_rng(seed)
        found = np.asarray([best(noise.integers(0, len(x), len(x)))[:2] for _ in range(draws)])
        tails = [(1 - level) / 2, (1 + level) / 2]
        intervals = [(float(low), float(high)) for low, high in np.quantile(found, tails, axis=0).T]
    curve = paths(np.asarray([beta]), np.asarray([delta]), everything)[0]
    return CascadeFit(
        beta, delta, mse, intervals[0], intervals[1], tuple(curve.tolist()), tuple(coverage.mean(axis=0).tolist()),
        form, init, len(x),
    )  # fmt: skip


def _by_likelihood(
    x: NDArray[np.float64], own: NDArray[np.float64], a: NDArray[np.float64], form: Form, level: float
) -> CascadeFit:
    if form == "logistic":
        raise BadInput("the logistic form has no likelihood of single agents; fit it with init='seeded'")
    if not np.all((x == 0) | (x == 1)):
        raise BadInput("transitions need true or false for every agent and round")
    if not np.all((own == 0) | (own == 1)):
        raise BadInput("transitions need an adjacency of zeros and ones")
    before, after = x[:, :-1], x[:, 1:]
    steps = before.shape[1]
    if own.ndim == 4:
        exposed = np.rint(np.einsum("rtij,rtj->rti", own[:, :steps], before)).astype(int)
    else:
        links = own[:steps] if own.ndim == 3 else np.broadcast_to(own, (steps, *own.shape))
        exposed = np.rint(np.einsum("tij,rtj->rti", links, before)).astype(int)
    open_to = (before == 0) & (exposed > 0)
    size = a.shape[-1] + 1
    tried = np.bincount(exposed[open_to], minlength=size).astype(float)
    caught = np.bincount(exposed[open_to & (after == 1)], minlength=size).astype(float)
    held, left = float((before == 1).sum()), float(((before == 1) & (after == 0)).sum())
    k = np.arange(size, dtype=float)

    def log_likelihood(rate: float) -> float:
        """Of the hazard: an agent with k infected neighbours stays free with probability exp(-k rate)."""
        with np.errstate(divide="ignore"):
            got = np.log(-np.expm1(-k[1:] * rate))
        return float((np.where(caught[1:] > 0, caught[1:] * got, 0) - (tried - caught)[1:] * k[1:] * rate).sum())

    as_beta: Callable[[float], float] = (lambda h: float(-np.expm1(-h))) if form == "product" else (lambda h: h)
    most, half = 40.0, chdtri(1, 1 - level) / 2
    if tried.sum() == 0:
        beta, interval = float("nan"), None
    else:
        if caught.sum() == 0:
            rate = 0.0
        elif caught.sum() == tried.sum():
            rate = most
        else:
            rate = float(minimize_scalar(lambda h: -log_likelihood(h), bounds=(1e-9, most), method="bounded",
                                         options={"xatol": 1e-10}).x)  # fmt: skip
        floor = (log_likelihood(rate) if rate > 0 else 0.0) - half

        def above(h: float) -> float:
            return float(log_likelihood(h) - floor)

        low = 0.0 if rate == 0 or above(1e-12) > 0 else float(brentq(above, 1e-12, rate))
        high = most if rate == most or above(most) > 0 else float(brentq(above, max(rate, 1e-12), most))
        beta, interval = as_beta(rate), (as_beta(low), as_beta(high))
    delta, delta_interval = (left / held, _binomial(left, held, half)) if held else (float("nan"), None)
    mse, curve = float("nan"), x.mean(axis=(0, 2))
    if np.isfinite(beta) and np.isfinite(delta):
        curve = predict_cascade(a, beta, delta, x[:, 0].mean(axis=0), x.shape[1], form).mean(axis=1)
        mse = float(((curve - x.mean(axis=(0, 2)))[1:] ** 2).mean())
    return CascadeFit(
        beta, delta, mse, interval, delta_interval, tuple(curve.tolist()), tuple(x.mean(axis=(0, 2)).tolist()), form,
        "transitions", len(x),
    )  # fmt: skip


def _binomial(hits: float, trials: float, half: float) -> tuple[float, float]:
    """Likelihood interval of a share."""

    def log_likelihood(p: float) -> float:
        return float((hits * np.log(p) if hits else 0.0) + ((trials - hits) * np.log1p(-p) if hits < trials else 0.0))

    share = hits / trials
    top = log_likelihood(share) if 0 < hits < trials else 0.0
    tiny = 1e-12

    def above(p: float) -> float:
        return log_likelihood(p) - top + half

    low = 0.0 if hits == 0 else float(brentq(above, tiny, min(share, 1 - tiny)))
    high = 1.0 if hits == trials else float(brentq(above, max(share, tiny), 1 - tiny))
    return low, high
