"""How fast claims spread in a user's own runs, and from whom a false one would reach furthest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heliograph.agents.error_cascade.claims import Claim, ClaimSource, EveryClaim, TooManyClaims
from heliograph.agents.error_cascade.dynamics import Form, Indicators, as_plain, indicators
from heliograph.agents.error_cascade.fit import CascadeFit, fit_cascade
from heliograph.agents.error_cascade.judges import ExactJudge, Judge
from heliograph.agents.error_cascade.logs import MessageLog, read_log
from heliograph.errors import BadInput

__all__ = ["CascadeRisk", "Traces", "traces"]

MAX_CELLS = 50_000_000


@dataclass(frozen=True)
class Traces:
    """What a log shows of the spread of claims.

    Attributes:
        agents: names, [N].
        claims: one a cascade, [R].
        runs: of each cascade, [R].
        adoption: who held the claim in which round, [R, T, N].
        adjacency: who heard whom, [R, T-1, N, N].
    """

    agents: tuple[str, ...]
    claims: tuple[Claim, ...]
    runs: tuple[str, ...]
    adoption: NDArray[np.bool_]
    adjacency: NDArray[np.float64]


def traces(
    log: MessageLog,
    *,
    claims: ClaimSource | None = None,
    judge: Judge | None = None,
    keep: Callable[[Claim], bool] | None = None,
) -> Traces:
    """Cascades of a log: each claim of each run is one.

    An agent has adopted a claim from the round in which it passes it on, until it says what contradicts it.

    Args:
        log: to read.
        claims: takes messages apart; data and texts by default.
        judge: says what is the same and what contradicts.
        keep: which claims count; all by default.

    Raises:
        BadInput: fewer than two agents or rounds, or no claim that is passed on.
    """
    source, compare = claims or EveryClaim(), judge or ExactJudge()
    agents = log.agents
    place = {agent: n for n, agent in enumerate(agents)}
    rounds = max(m.round for m in log.messages) + 1
    n = len(agents)
    if n < 2 or rounds < 2:
        raise BadInput(f"a cascade needs two agents and two rounds; the log has {n} and {rounds}")
    chosen: list[tuple[str, Claim, NDArray[np.bool_]]] = []
    heard: dict[str, NDArray[np.float64]] = {}
    for run in log.runs:
        mine = [m for m in log.messages if m.run == run]
        links = heard[run] = np.zeros((rounds - 1, n, n))
        present = {m.sender for m in mine} | {r for m in mine for r in m.recipients}
        said: list[tuple[int, str, Claim]] = []
        for m in mine:
            for to in m.recipients or present:
                if to != m.sender and m.round < rounds - 1:
                    links[m.round, place[to], place[m.sender]] = 1
            try:
                atoms = source.split(m.payload, run).atoms
            except TooManyClaims:
                continue
            said += [(m.round, m.sender, atom.claim) for atom in atoms if atom.claim.stance != "quoted"]
        by_key: dict[tuple[str, str, str], list[tuple[int, str, Claim]]] = {}
        for one in said:
            by_key.setdefault(one[2].key, []).append(one)
        for about in by_key.values():
            done: list[Claim] = []
            for _, _, claim in about:
                if claim.stance != "asserted" or any(compare(old, claim) == "entails" for old in done):
                    continue
                done.append(claim)
                if keep is None or keep(claim):
                    chosen.append((run, claim, _adoption(claim, about, rounds, place, compare)))
    chosen = [one for one in chosen if one[2][:-1].any()]
    if not chosen:
        raise BadInput("no claim of this log was said before its last round; there is nothing to fit")
    if len(chosen) * rounds * n * n > MAX_CELLS:
        raise BadInput(f"{len(chosen)} cascades of {rounds} rounds and {n} agents are too many; choose claims or runs")
    return Traces(
        agents,
        tuple(claim for _, claim, _ in chosen),
        tuple(run for run, _, _ in chosen),
        np.stack([x for _, _, x in chosen]),
        np.stack([heard[run] for run, _, _ in chosen]),
    )


def _adoption(
    claim: Claim, about: list[tuple[int, str, Claim]], rounds: int, place: dict[str, int], judge: Judge
) -> NDArray[np.bool_]:
    x = np.zeros((rounds, len(place)), dtype=bool)
    for round_, sender, other in about:  # in order of rounds
        if other.id == claim.id or judge(other, claim) == "entails":
            x[round_:, place[sender]] = True
        elif judge(claim, other) == "contradicts":
            x[round_:, place[sender]] = False
    return x


@dataclass(frozen=True)
class CascadeRisk:
    """The rates of a communication graph, and what they mean for it.

    Attributes:
        agents: names.
        fit: rates, with their intervals where they come from data.
        indicators: of the mean graph.
        cascades: how many were fitted; 0 if the rates were given.
    """

    agents: tuple[str, ...]
    fit: CascadeFit | None
    beta: float
    delta: float
    indicators: Indicators
    cascades: int

    @classmethod
    def from_log(
        cls,
        log: MessageLog | str | Path,
        *,
        claims: ClaimSource | None = None,
        judge: Judge | None = None,
        keep: Callable[[Claim], bool] | None = None,
        form: Form = "product",
        horizon: int = 20,
    ) -> CascadeRisk:
        """Fits the rates to a log, by likelihood over single steps.

        Raises:
            BadInput: the log cannot be read, or shows no spread at all.
        """
        found = traces(read_log(log) if not isinstance(log, MessageLog) else log, claims=claims, judge=judge, keep=keep)
        fit = fit_cascade(found.adoption, found.adjacency, form=form)
        if not np.isfinite(fit.beta):
            raise BadInput("nobody who heard a claim could have adopted it later; the log is too short to tell a rate")
        return cls._of(
            found.agents, fit, fit.beta, fit.delta, found.adjacency.mean(axis=(0, 1)), horizon, len(found.claims)
        )

    @classmethod
    def from_graph(
        cls, adjacency: ArrayLike, beta: float, delta: float, *, agents: tuple[str, ...] = (), horizon: int = 20
    ) -> CascadeRisk:
        """For a graph and rates that are known."""
        a = np.asarray(adjacency, dtype=float)
        names = agents or tuple(str(n) for n in range(a.shape[-1]))
        if len(names) != a.shape[-1]:
            raise BadInput(f"{a.shape[-1]} agents need as many names; got {len(names)}")
        return cls._of(names, None, beta, delta, a, horizon, 0)

    @classmethod
    def _of(
        cls,
        agents: tuple[str, ...],
        fit: CascadeFit | None,
        beta: float,
        delta: float,
        a: NDArray[np.float64],
        horizon: int,
        cascades: int,
    ) -> CascadeRisk:
        capped = min(beta, 1.0)  # a Poisson rate may exceed 1
        return cls(agents, fit, beta, delta, indicators(a, capped, delta, horizon), cascades)

    def seeds(self) -> tuple[tuple[str, float, float], ...]:
        """Agents by how far a claim from them goes: name, gain, expected final coverage."""
        rows = zip(self.agents, self.indicators.gains, self.indicators.expected, strict=True)
        return tuple(sorted(rows, key=lambda row: -row[1]))

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        fit = None if self.fit is None else {k: v for k, v in asdict(self.fit).items() if v == v}
        seeds = [{"agent": agent, "gain": gain, "coverage": coverage} for agent, gain, coverage in self.seeds()]
        return {"agents": list(self.agents), "beta": self.beta, "delta": self.delta, "cascades": self.cascades,
                "fit": fit, "indicators": as_plain(self.indicators), "seeds": seeds}  # fmt: skip
