r"""How a false claim spreads among agents that reuse each other's messages (arXiv:2603.04474, section on dynamics).

.. math:: s_i(t+1) = (1-\delta)\, s_i(t) + (1 - s_i(t))\, f_i(t), \qquad
          f_i = 1 - \prod_j (1 - \beta\, a_{ij} s_j(t))

``adjacency[i, j]`` is 1 where agent i hears agent j. Shapes: R runs, T rounds, N agents, G settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heliograph.errors import BadInput

__all__ = [
    "FRAMEWORKS",
    "Form",
    "Indicators",
    "exact_coverage",
    "indicators",
    "predict_cascade",
    "simulate_cascade",
    "topology",
]

Form = Literal["product", "poisson", "logistic"]
Topology = Literal["star", "chain", "layered", "mesh", "cumulative"]

FRAMEWORKS: Mapping[str, tuple[Topology, float, float]] = {
    "AutoGen": ("mesh", 0.363, 0.002),
    "CAMEL": ("mesh", 0.270, 0.010),
    "CrewAI": ("star", 0.220, 0.020),
    "LangChain": ("chain", 0.985, 0.002),
    "LangGraph": ("star", 0.470, 0.0),
    "MetaGPT": ("chain", 0.593, 0.0),
}
"""The paper's fits on attack traces: topology, transmission, recovery."""


def topology(name: Topology, agents: int, seed: int = 0, p_back: float = 0.3) -> NDArray[np.float64]:
    """A named communication graph, [N, N].

    Args:
        name: star (agent 0 talks with all), chain (each hears the one before), layered (a chain in which some hear the
            next one too), mesh (all hear all), cumulative (each hears all before).
        agents: N.
        seed: draws the backward edges of layered.
        p_back: probability of each.

    Raises:
        BadInput: another name, or fewer than 2 agents.
    """
    if agents < 2:
        raise BadInput(f"a communication graph needs 2 agents or more; got {agents}")
    a = np.zeros((agents, agents))
    if name == "star":
        a[0, 1:] = a[1:, 0] = 1
    elif name in ("chain", "layered"):
        a[np.arange(1, agents), np.arange(agents - 1)] = 1
        if name == "layered":
            a[np.arange(agents - 1), np.arange(1, agents)] = np.random.default_rng(seed).random(agents - 1) < p_back
    elif name == "mesh":
        a = 1 - np.eye(agents)
    elif name == "cumulative":
        a = np.tril(np.ones((agents, agents)), -1)
    else:
        raise BadInput(f"topology is star, chain, layered, mesh or cumulative; got {name!r}")
    return a


def checked_adjacency(adjacency: ArrayLike, rounds: int = 0) -> NDArray[np.float64]:
    """[N, N], or [T-1, N, N] where the graph changes from round to round.

    Raises:
        BadInput: another shape, or entries outside [0, 1].
    """
    a = np.asarray(adjacency, dtype=float)
    if a.ndim not in (2, 3) or a.shape[-1] != a.shape[-2] or a.shape[-1] < 1:
        raise BadInput(f"adjacency is [N, N], or [T-1, N, N] for one graph a step; got shape {a.shape}")
    if not np.all(np.isfinite(a)) or a.min(initial=0) < 0 or a.max(initial=0) > 1:
        raise BadInput("adjacency holds weights between 0 and 1; 1 where the row's agent hears the column's")
    if a.ndim == 3 and rounds and len(a) < rounds - 1:
        raise BadInput(f"{rounds} rounds have {rounds - 1} steps, but adjacency has {len(a)} graphs")
    return a


def checked_rates(beta: float, delta: float, form: Form = "product") -> None:
    """Refuses rates that are none."""
    high = np.inf if form == "poisson" else 1.0
    if not 0 <= beta <= high or not 0 <= delta <= 1:
        raise BadInput(f"beta lies in [0, {high:g}] and delta in [0, 1]; got {beta} and {delta}")


def _step(a: NDArray[np.float64], step: int) -> NDArray[np.float64]:
    return a[step] if a.ndim == 3 else a


def simulate_cascade(
    adjacency: ArrayLike,
    beta: float,
    delta: float,
    seeds: int | Sequence[int] | ArrayLike,
    rounds: int,
    runs: int,
    rng: int | np.random.Generator = 0,
) -> NDArray[np.bool_]:
    """Draws cascades: who has adopted the claim in which round, [R, T, N].

    Args:
        adjacency: [N, N], or [T-1, N, N].
        beta: probability that one infected neighbour infects in one round.
        delta: probability of recovering in one round.
        seeds: one agent, several, or a boolean [R, N] of them; infected in round 0.
        rounds: T, the seeded round included.
        runs: R.
        rng: seed or generator.

    Raises:
        BadInput: a rate, shape or agent that does not exist.
    """
    a = checked_adjacency(adjacency, rounds)
    checked_rates(beta, delta)
    n = a.shape[-1]
    if rounds < 1 or runs < 1:
        raise BadInput(f"rounds and runs are 1 or more; got {rounds} and {runs}")
    noise = rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)
    x = np.zeros((runs, rounds, n), dtype=bool)
    start = np.asarray(seeds)
    if start.dtype == bool:
        if start.shape != (runs, n):
            raise BadInput(f"a table of seeds is [{runs}, {n}]; got shape {start.shape}")
        x[:, 0] = start
    else:
        if start.size and (start.min() < 0 or start.max() >= n):
            raise BadInput(f"seeds are agents 0 to {n - 1}; got {start.tolist()}")
        x[:, 0, np.atleast_1d(start).astype(int)] = True
    for t in range(rounds - 1):
        now = x[:, t]
        escape = np.ones((runs, n))
        step = _step(a, t)
        for j in range(n):
            escape *= 1 - beta * step[:, j] * now[:, j, None]
        draw = noise.random((runs, n))
        x[:, t + 1] = np.where(now, draw >= delta, draw < 1 - escape)
    return x


def exact_coverage(
    adjacency: ArrayLike, beta: float, delta: float, seeds: int | Sequence[int], rounds: int
) -> NDArray[np.float64]:
    """The probability of each agent's adoption in each round, [T, N], from all 2**N states of the chain.

    Raises:
        BadInput: more than 12 agents.
    """
    a = checked_adjacency(adjacency, rounds)
    checked_rates(beta, delta)
    n = a.shape[-1]
    if n > 12:
        raise BadInput(f"2**{n} states are too many; simulate more than 12 agents with simulate_cascade")
    states = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    p = np.zeros(2**n)
    p[int((1 << np.atleast_1d(np.asarray(seeds, dtype=int))).sum())] = 1.0
    out = [p @ states]
    for t in range(rounds - 1):
        escape = np.prod(1 - beta * _step(a, t)[None] * states[:, None, :], axis=2)
        on = np.where(states == 1, 1 - delta, 1 - escape)
        fresh = np.zeros(2**n)
        for state in np.nonzero(p)[0]:
            weight = np.ones(1)
            for i in range(n):  # the least significant agent varies fastest
                weight = np.concatenate([weight * (1 - on[state, i]), weight * on[state, i]])
            fresh += p[state] * weight
        p = fresh
        out.append(p @ states)
    return np.asarray(out)


def predict_cascade(
    adjacency: ArrayLike,
    beta: ArrayLike,
    delta: ArrayLike,
    start: ArrayLike,
    rounds: int,
    form: Form = "product",
) -> NDArray[np.float64]:
    """Adoption by the equations, which treat agents as independent: [T, N], or [G, T, N] for G pairs of rates.

    Args:
        adjacency: [N, N], or [T-1, N, N].
        beta, delta: one number each, or [G] of both.
        start: adoption in round 0, [N], or [G, N].
        rounds: T.
        form: product (a cascade in rounds), poisson (a hazard), logistic (everybody mixes with everybody).
    """
    a = checked_adjacency(adjacency, rounds)
    if form not in ("product", "poisson", "logistic"):
        raise BadInput(f"form is product, poisson or logistic; got {form!r}")
    b, d = np.atleast_1d(np.asarray(beta, float)), np.atleast_1d(np.asarray(delta, float))
    s = np.broadcast_to(np.asarray(start, dtype=float), (len(b), a.shape[-1]))
    out = [s]
    for t in range(rounds - 1):
        step = _step(a, t)
        if form == "product":
            f = 1 - np.prod(1 - b[:, None, None] * step[None] * s[:, None, :], axis=2)
        elif form == "poisson":
            f = 1 - np.exp(-b[:, None] * (s @ step.T))
        else:
            f = np.minimum(1.0, b[:, None] * step.sum(1).mean() * s.mean(1, keepdims=True) * np.ones_like(s))
        s = (1 - d[:, None]) * s + (1 - s) * f
        out.append(s)
    path = np.stack(out, axis=1)
    return path[0] if np.ndim(beta) == 0 and np.ndim(delta) == 0 else path


@dataclass(frozen=True)
class Indicators:
    """Will a claim spread? Three answers, since none alone is right for every graph.

    Attributes:
        margin: beta times the spectral radius, less delta. Above 0, the linear equation amplifies without end. In a
            graph without cycles it never is, though a claim may well reach everybody.
        ratio: beta times the spectral radius over delta; None where delta is too small for it to mean anything.
        gain: share of all agents, counted with the times they adopt, that the best seed reaches within the horizon, in
            the linear equation; may exceed 1.
        reproduction: new adoptions that one adoption causes, over its whole time: the spectral radius of the
            next-generation matrix; None without recovery.
        best_seed: agent from which the gain is largest.
        gains: the same for every seed, [N].
        expected: by the product equation: final coverage from each seed, [N].
    """

    margin: float
    ratio: float | None
    gain: float
    reproduction: float | None
    best_seed: int
    gains: tuple[float, ...]
    expected: tuple[float, ...]


def indicators(adjacency: ArrayLike, beta: float, delta: float, horizon: int = 20) -> Indicators:
    r"""The spectral margin, the gain :math:`\max_v \|\sum_{k \le T} M^k e_v\|_1 / n`, and the reproductive number.

    ``M = (1-delta) I + beta A``. Seeds are ranked by what flows *out* of them, columns of the sum; rows, or the right
    eigenvector, rank those who hear most, which differs where edges have a direction.

    Raises:
        BadInput: a rate or shape that does not exist.
    """
    a = checked_adjacency(adjacency)
    checked_rates(beta, delta)
    if a.ndim == 3:
        a = a.mean(axis=0)
    if horizon < 1:
        raise BadInput(f"horizon is 1 or more; got {horizon}")
    n = len(a)
    radius = float(max(abs(np.linalg.eigvals(a)), default=0.0))
    # Without a cycle the radius is 0; eigenvalues of a defective matrix come out near the n-th root of the rounding.
    if not np.any(np.linalg.matrix_power((a > 0).astype(float), n)):
        radius = 0.0
    m = (1 - delta) * np.eye(n) + beta * a
    power, total = np.eye(n), np.eye(n)
    for _ in range(horizon):
        power = m @ power
        total += power
    gains = total.sum(axis=0) / n
    paths = predict_cascade(a, np.full(n, beta), np.full(n, delta), np.eye(n), horizon + 1)
    expected = paths[:, -1].mean(axis=1)
    ratio = beta * radius / delta if delta > 0.01 else None
    return Indicators(
        margin=beta * radius - delta,
        ratio=ratio,
        gain=float(gains.max()),
        reproduction=beta * radius / delta if delta > 0 else None,
        best_seed=int(np.argmax(gains)),
        gains=tuple(float(g) for g in gains),
        expected=tuple(float(e) for e in expected),
    )


def as_plain(found: Indicators) -> dict[str, Any]:
    """For JSON."""
    from dataclasses import asdict

    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(found).items()}
