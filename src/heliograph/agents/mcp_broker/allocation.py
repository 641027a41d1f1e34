"""How long the next call of a turn may take, so that the whole turn ends in time.

A turn calls tools one after the other and has ``remaining_ms`` left. Each policy answers with the limit of the next
call. The literal reading of the paper (``proportional``) gives each call a share by its 99th percentile; ``cap``, the
default, gives each its usual worst case and keeps back what the others usually need; ``optimal`` maximises the chance
that all of them end in time, retries included, by dynamic programming over the learned distributions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from heliograph.agents.mcp_broker.latency import ToolTimes
from heliograph.errors import BadInput

__all__ = [
    "POLICIES",
    "BudgetPolicy",
    "Cap",
    "Constant",
    "Equal",
    "Optimal",
    "PlannedCall",
    "Proportional",
    "ToolTimes",
    "make_policy",
]


@dataclass(frozen=True)
class PlannedCall:
    """A call that a turn will make.

    Attributes:
        times: what is known of its tool.
        retries: how often it may be repeated after its limit; 0 for tools that change something.
    """

    times: ToolTimes
    retries: int = 0


class BudgetPolicy(Protocol):
    """Splits what is left of a turn."""

    def limit_ms(self, remaining_ms: float, plan: Sequence[PlannedCall]) -> float:
        """The limit of the first call of ``plan``; more than 0 and at most ``remaining_ms``.

        Args:
            remaining_ms: until the turn must end, above 0.
            plan: the calls that are left, the next one first; at least one.
        """
        ...


def _within(limit_ms: float, floor_ms: float, remaining_ms: float) -> float:
    return min(max(limit_ms, floor_ms), remaining_ms)


@dataclass(frozen=True)
class Constant:
    """The same limit for every call: what clients do by default."""

    limit: float = 30_000.0

    def limit_ms(self, remaining_ms: float, plan: Sequence[PlannedCall]) -> float:  # noqa: ARG002 - that is the point
        """The constant, or what is left."""
        return min(self.limit, remaining_ms)


@dataclass(frozen=True)
class Equal:
    """The same share for every call that is left."""

    floor_ms: float = 50.0

    def limit_ms(self, remaining_ms: float, plan: Sequence[PlannedCall]) -> float:
        """What is left over the number of calls."""
        return _within(remaining_ms / len(plan), self.floor_ms, remaining_ms)


@dataclass(frozen=True)
class Proportional:
    """A share by the 99th percentile."""

    floor_ms: float = 50.0

    def limit_ms(self, remaining_ms: float, plan: Sequence[PlannedCall]) -> float:
        """What is left, times this tool's 99th percentile over the sum of all."""
        total = sum(call.times.p99_ms for call in plan)
        return _within(remaining_ms * plan[0].times.p99_ms / total, self.floor_ms, remaining_ms)


@dataclass(frozen=True)
class Cap:
    """The 99th percentile times ``kappa``, but never what the later calls usually need.

    The last attempt of the last call has all that is left, as the optimum gives it too: cut near its usual worst case,
    one in a hundred would be lost and the time saved for nobody.
    """

    kappa: float = 1.2
    floor_ms: float = 50.0

    def limit_ms(self, remaining_ms: float, plan: Sequence[PlannedCall]) -> float:
        """``min(kappa * p99, remaining - sum of later medians)``; what remains, where nothing else could use it."""
        if len(plan) == 1 and plan[0].retries == 0:
            return remaining_ms
        reserve = sum(call.times.median_ms for call in plan[1:])
        return _within(min(self.kappa * plan[0].times.p99_ms, remaining_ms - reserve), self.floor_ms, remaining_ms)


@dataclass(frozen=True)
class Optimal:
    """The limit with the best chance that all calls end in time, if latencies are independent.

    Over a grid of ``cells`` steps of the turn's time, with F the latency's distribution and V the chance of the rest:
    ``W_r(b) = max_t [ sum over x <= t of P(x) V(b - x) + (1 - F(t)) W_{r-1}(b - t) ]`` with r retries left.

    Attributes:
        total_ms: of the turn, which is the grid's length.
        cells: steps; latencies count as the next full step.
        floor_ms: the smallest limit.
    """

    total_ms: float
    cells: int = 100
    floor_ms: float = 50.0
    _tables: dict[tuple[tuple[str, int, int], ...], NDArray[np.float64]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def limit_ms(self, remaining_ms: float, plan: Sequence[PlannedCall]) -> float:
        """The best limit on the grid."""
        width = self.total_ms / self.cells
        budget = min(self.cells, int(remaining_ms / width + 1e-9))
        key = tuple((call.times.tool, call.times.epoch, call.retries) for call in plan)
        best = self._tables.get(key)
        if best is None:
            if len(self._tables) > 1000:
                self._tables.clear()
            best = self._tables[key] = self._solve(plan, width)
        return _within(float(best[budget]) * width, self.floor_ms, remaining_ms)

    def _solve(self, plan: Sequence[PlannedCall], width: float) -> NDArray[np.float64]:
        """Best limit in cells for the first call by cells left, [cells + 1]."""
        steps = np.arange(self.cells + 1)
        budgets, limits = steps[:, None], steps[None, :]
        rest = np.ones(self.cells + 1)
        best = np.zeros(self.cells + 1)
        for call in reversed(plan):
            ends = np.nan_to_num(call.times.cdf(np.asarray(steps * width, dtype=np.float64)))
            ends[0] = 0.0
            chance = np.diff(ends, prepend=0.0)
            after = np.where(limits <= budgets, rest[np.maximum(budgets - limits, 0)], 0.0)
            done = np.cumsum(chance * after, axis=1)
            value = np.zeros(self.cells + 1)
            for _ in range(call.retries + 1):
                again = np.where(limits <= budgets, value[np.maximum(budgets - limits, 0)], -1.0)
                total = np.where(limits <= budgets, done + (1 - ends)[None, :] * np.maximum(again, 0.0), -1.0)
                # The longest of equally good limits: patience costs nothing there.
                best = self.cells - np.argmax(total[:, ::-1], axis=1)
                value = total[steps, best]
            rest = value
        return np.asarray(best, dtype=float)


POLICIES = ("cap", "optimal", "equal", "proportional", "constant")


def make_policy(
    name: str, *, total_ms: float, kappa: float = 1.2, floor_ms: float = 50.0, constant_ms: float = 30_000.0
) -> BudgetPolicy:
    """A policy by name.

    Raises:
        BadInput: no policy has this name, or a number cannot be.
    """
    numbers = (("total_ms", total_ms), ("kappa", kappa), ("floor_ms", floor_ms), ("constant_ms", constant_ms))
    for what, number in numbers:
        if not (number > 0 and math.isfinite(number)):
            raise BadInput(f"{what} is finite and above 0; got {number}")
    made: dict[str, BudgetPolicy] = {
        "cap": Cap(kappa, floor_ms),
        "optimal": Optimal(total_ms, floor_ms=floor_ms),
        "equal": Equal(floor_ms),
        "proportional": Proportional(floor_ms),
        "constant": Constant(constant_ms),
    }
    if name not in made:
        raise BadInput(f"a budget's policy is one of {', '.join(POLICIES)}; got {name!r}")
    return made[name]
