"""Findings in words, and as a chart of characters: what a person reads in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["AxisChart", "axis_chart", "figure_text", "here_text", "sentence"]

Row = Mapping[str, Any]
"""A finding or control as plain data: what :meth:`Finding.to_json` gives."""


def figure_text(value: float | None, unit: str = "") -> str:
    """A number with three significant digits and its unit, or a dash."""
    if value is None:
        return "-"
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"
    return f"{text}{unit}" if unit in ("x", "%", "") else f"{text} {unit}"


def here_text(finding: Row) -> str:
    """What was measured: ``"4.1x [2.9, 5.7] against gin (0.18 against 0.74)"``."""
    if finding["ours"] is None:
        return "not measured"
    if finding["kind"] == "exact":
        return f"{100 * finding['ours']:.4g} % of cases agree"
    unit = finding["unit"]
    text = f"{figure_text(finding['ours'], unit)} [{figure_text(finding['low'])}, {figure_text(finding['high'])}]"
    if finding["baseline"]:
        text += f" against {finding['baseline']}"
        arms = [finding["values"].get(arm) for arm in (finding["contender"], finding["baseline"])]
        if None not in arms:
            text += f" ({figure_text(arms[0])} against {figure_text(arms[1])})"
    return text


def sentence(finding: Row, tuning: str = "") -> str:
    """One finding as a sentence: paper, here, verdict, why, and what this scale cannot show."""
    equally = f", tuned equally ({tuning})" if tuning and finding["baseline"] and finding["ours"] is not None else ""
    paper = finding["paper"].rstrip(".")
    if finding["declared"]:
        return f"Paper: {paper}. Here: {finding['metric']}: {finding['note']}."
    parts = [
        f"Paper: {paper}.",
        f"Here: {finding['metric']}: {here_text(finding)}{equally}.",
        f"Verdict: {finding['verdict']}.",
        f"Why: {finding['note']}.",
    ]
    if finding["paper_reached"] is not None and finding["verdict"] != "void":
        parts.append(f"The paper's own figure was {'reached' if finding['paper_reached'] else 'not reached'}.")
    parts.append(f"This scale cannot show {finding['cannot_show']}.")
    return " ".join(parts)


class AxisChart:
    """Points, an interval and marks on one horizontal axis of characters.

    Args:
        low: value at the left end.
        high: value at the right end.
        width: characters.
        log: whether the axis is logarithmic.
    """

    def __init__(self, low: float, high: float, width: int = 56, *, log: bool = False) -> None:
        self.low, self.high, self.width, self.log = low, high, width, log

    def column(self, value: float) -> int:
        """The character column of a value, clipped to the axis."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = math.log(value) if self.log else value
        share = 0.5 if high == low else (at - low) / (high - low)
        return max(0, min(self.width - 1, round(share * (self.width - 1))))

    def line(self, low: float, high: float, dot: float, marks: Mapping[str, float]) -> str:
        """The axis with interval ``low..high``, its estimate, and single-character marks over it."""
        cells = ["·"] * self.width
        for column in range(self.column(low), self.column(high) + 1):
            cells[column] = "━"
        cells[self.column(dot)] = "●"
        for mark, value in marks.items():
            cells[self.column(value)] = mark
        return "".join(cells)


def axis_chart(finding: Row, controls: Sequence[Row] = (), paper: float | None = None, width: int = 56) -> list[str]:
    """The dot-and-interval chart of a finding, in lines of characters.

    The first line is the claim, the second the control, on one axis; ``│`` is our threshold, ``P`` the paper's figure,
    ``0`` no effect. Empty where the finding has no interval.
    """
    if finding["low"] is None:
        return []
    ratio = finding["effect"] == "ratio" and finding["kind"] != "bound"
    nothing = 1.0 if ratio else 0.0
    marks: dict[str, float] = {} if finding["kind"] == "bound" else {"0": nothing}
    if paper is not None and (not ratio or paper > 0):
        marks["P"] = paper
    if finding["threshold"] is not None:
        marks["│"] = finding["threshold"]
    rows = [c for c in controls if c.get("low") is not None and (c["effect"] == "ratio") == ratio]
    ends = [finding["low"], finding["high"], *marks.values(), *(c[k] for c in rows for k in ("low", "high"))]
    log = ratio and min(ends) > 0
    low, high = min(ends), max(ends)
    pad = (high / low) ** 0.05 if log else 0.05 * (high - low or abs(high) or 1.0)
    axis = AxisChart(low / pad if log else low - pad, high * pad if log else high + pad, width, log=log)
    lines = [f"{axis.line(finding['low'], finding['high'], finding['ours'], marks)}  claim"]
    for control in rows:
        middle = math.sqrt(control["low"] * control["high"]) if log else (control["low"] + control["high"]) / 2
        lines.append(
            f"{axis.line(control['low'], control['high'], middle, {'0': nothing})}  control: {control['name']}"
        )
    left, right = figure_text(axis.low), figure_text(axis.high)
    legend = "0 no effect  " if "0" in marks else ""
    legend += "│ our threshold" + ("  P paper" if "P" in marks else "")
    lines.append(f"{left}{' ' * max(1, width - len(left) - len(right))}{right}  {legend}")
    return lines
