"""One setting, several values, independent runs in an order in which drift cancels.

Each repeat measures all values in a random order and then in its reverse (A B B A), so that a linear drift adds the
same to each; the two are averaged. n repeats give n numbers a value (arXiv:2603.10031 uses five and reports the
coefficient of variation; order and tests are ours).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heliograph.errors import BadInput
from heliograph.random import CounterRng
from heliograph.serving.load.compare import DEFAULT_LEVEL, Comparison, coefficient_of_variation, compare_runs

__all__ = ["AblationResult", "ablate_flag", "run_order"]


@dataclass(frozen=True)
class AblationResult:
    """What was measured, by value.

    Attributes:
        flag: what was varied. values: in the order given; the first is the reference.
        runs: one number a repeat, by value.
        order: the values in the order in which they were measured.
        level: of each comparison's two statements together.
    """

    flag: str
    values: tuple[Any, ...]
    runs: tuple[tuple[float, ...], ...]
    order: tuple[Any, ...]
    level: float = DEFAULT_LEVEL

    def compare(self, index: int = 1) -> Comparison:
        """The ``index``-th value against the first."""
        return compare_runs(self.runs[0], self.runs[index], self.level)

    def table(self) -> str:
        """One line a value, for people."""
        lines = [f"{self.flag}: mean, coefficient of variation, against {self.values[0]!r}"]
        for index, (value, runs) in enumerate(zip(self.values, self.runs, strict=True)):
            verdict = "reference" if index == 0 else str(self.compare(index))
            spread = coefficient_of_variation(runs)
            lines.append(f"  {value!s:<12} {float(np.mean(runs)):12,.2f} {spread:7.2%}  {verdict}")
        return "\n".join(lines)


def run_order(values: int, repeats: int, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """For each repeat, indices of values in the order of measurement: a random order and its reverse."""
    rows = []
    for repeat in range(repeats):
        keys = CounterRng(seed).at(step=repeat).uniform(values)
        forward = tuple(int(i) for i in np.argsort(keys))
        rows.append(forward + forward[::-1])
    return tuple(rows)


def ablate_flag(
    flag: str,
    values: Sequence[Any],
    measure: Callable[[Any], float],
    *,
    repeats: int = 5,
    seed: int = 0,
    level: float = DEFAULT_LEVEL,
    say: Callable[[str], None] = lambda _: None,
) -> AblationResult:
    """Measures each value ``2 x repeats`` times, interleaved.

    Args:
        flag: its name, for the report.
        values: two or more; the first is the reference. The same value twice is a test of the method itself.
        measure: takes a value and returns one positive number, for example a throughput.
        repeats: independent numbers of each value; five or more for a statement.
        seed: of the order.
        level: of each comparison.
        say: hears of progress.

    Raises:
        BadInput: fewer than two values or repeats, or a measurement that is not a positive number.
    """
    if len(values) < 2 or repeats < 2:
        raise BadInput(f"an ablation needs two values and two repeats or more; got {len(values)} and {repeats}")
    runs: list[list[float]] = [[] for _ in values]
    order: list[Any] = []
    for repeat, row in enumerate(run_order(len(values), repeats, seed)):
        logs: list[list[float]] = [[] for _ in values]
        for index in row:
            number = float(measure(values[index]))
            if not (number > 0 and math.isfinite(number)):
                raise BadInput(f"{flag} = {values[index]!r} was measured as {number}; a positive number is expected")
            order.append(values[index])
            logs[index].append(math.log(number))
            say(f"{flag} = {values[index]!r}: {number:,.4g} (repeat {repeat + 1} of {repeats})")
        for index, row_logs in enumerate(logs):
            runs[index].append(math.exp(sum(row_logs) / len(row_logs)))
    return AblationResult(flag, tuple(values), tuple(map(tuple, runs)), tuple(order), level)
