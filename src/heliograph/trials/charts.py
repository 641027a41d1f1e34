"""Charts of a run as SVG text that needs no script and follows the reader's light or dark theme.

Altair builds them, vl-convert renders them. Ink is drawn in a placeholder colour that becomes ``currentColor``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, cast

import altair as alt
import vl_convert

from heliograph.trials.record import TrialRecord
from heliograph.trials.sentences import Row

__all__ = ["arms_chart", "curves_chart", "draw_graphs", "findings_chart", "pareto_chart"]

INK = "#123456"
FAINT = "#654321"
PALETTE = ("#3b82c4", "#d97706", "#6b9e3a", "#a855b5", "#7c7f86", "#c2414b", "#0f9d94", "#8d6e4a")
VERDICT_COLOURS = {
    "holds": "#3f9142",
    "weaker": "#b7950b",
    "fails": "#c2414b",
    "undecided": "#5b7fb5",
    "void": "#7c7f86",
}


_MARK_COLOURS = {"our threshold": INK, "no effect": PALETTE[4], "paper": PALETTE[1]}


def _svg(chart: Any) -> str:
    styled = (
        chart.configure(
            background="transparent", font="sans-serif", padding={"left": 16, "right": 8, "top": 5, "bottom": 5}
        )
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=INK, titleColor=INK, gridColor=FAINT, domainColor=INK, tickColor=INK, gridOpacity=0.25
        )
        .configure_legend(labelColor=INK, titleColor=INK)
        .configure_title(color=INK, anchor="start", fontSize=13)
        .configure_header(labelColor=INK, titleColor=INK)
        .configure_text(color=INK)
    )
    text = vl_convert.vegalite_to_svg(styled.to_dict())
    return text.replace(INK, "currentColor").replace(FAINT, "currentColor")


def _data(rows: Iterable[Mapping[str, Any]]) -> Any:
    return alt.Data(values=list(rows))  # type: ignore[no-untyped-call]


def findings_chart(finding: Row, controls: Sequence[Row] = (), paper: float | None = None) -> str:
    """The claim's interval, its controls', our threshold and the paper's figure on one axis; ``""`` without one."""
    if finding["low"] is None:
        return ""
    ratio = finding["effect"] == "ratio" and finding["kind"] != "bound"
    rows = [{"what": "claim", "low": finding["low"], "high": finding["high"], "at": finding["ours"]}]
    for control in controls:
        if control.get("low") is not None and (control["effect"] == "ratio") == ratio:
            low, high = control["low"], control["high"]
            middle = math.sqrt(low * high) if ratio else (low + high) / 2
            rows.append({"what": f"control: {control['name']}", "low": low, "high": high, "at": middle})
    marks = [{"mark": "our threshold", "at": finding["threshold"]}] if finding["threshold"] is not None else []
    if finding["kind"] != "bound":
        marks.append({"mark": "no effect", "at": 1.0 if ratio else 0.0})
    if paper is not None and (paper > 0 or not ratio):
        marks.append({"mark": "paper", "at": paper})
    log = ratio and all(r["low"] > 0 for r in rows)
    scale = alt.Scale(type="log" if log else "linear", zero=False, nice=True)
    title = _effect_title(finding)
    order = [r["what"] for r in rows]
    axis_y = alt.Axis(title=None, labelLimit=260)
    colour = VERDICT_COLOURS[finding["verdict"]]
    base = alt.Chart(_data(rows)).encode(y=alt.Y("what:N", sort=order, axis=axis_y))
    tint = alt.condition(alt.datum.what == "claim", alt.value(colour), alt.value(PALETTE[4]))
    bars = base.mark_rule(strokeWidth=3).encode(x=alt.X("low:Q", scale=scale, title=title), x2="high:Q", color=tint)
    dots = base.mark_point(filled=True, size=90, opacity=1).encode(x=alt.X("at:Q", scale=scale), color=tint)
    lines = (
        alt.Chart(_data(marks))
        .mark_rule(strokeWidth=1.6)
        .encode(
            x=alt.X("at:Q", scale=scale),
            color=alt.Color(
                "mark:N",
                scale=alt.Scale(domain=[m["mark"] for m in marks], range=[_MARK_COLOURS[m["mark"]] for m in marks]),
                legend=alt.Legend(title=None, orient="top"),
            ),
            strokeDash=alt.StrokeDash("mark:N", legend=None),
        )
    )
    return _svg(alt.layer(lines, bars, dots).properties(width=560, height=30 + 26 * len(rows)))


def _effect_title(finding: Row) -> str:
    if finding["kind"] == "bound":
        return f"{finding['contender']}: {finding['metric']}"
    if finding["effect"] != "ratio":
        sides = (finding["contender"], finding["baseline"])
        return " minus ".join(sides if finding["direction"] == "higher" else sides[::-1])
    return f"times better than {finding['baseline']} (ratio)"


def arms_chart(finding: Row, records: Sequence[TrialRecord], experiment: str, metric: str) -> str:
    """Every block's value of a metric, one row an arm; ``""`` where nothing numeric was measured."""
    rows = [
        {"arm": arm, "value": float(metrics[metric]), "workload": record.workload, "block": record.block}
        for record in records
        if record.slug == finding["system"] and record.experiment == experiment and record.status == "ok"
        for arm, metrics in record.metrics.items()
        if isinstance(metrics.get(metric), int | float) and not isinstance(metrics.get(metric), bool)
    ]
    if not rows:
        return ""
    values = [cast(float, row["value"]) for row in rows]
    log = min(values) > 0 and max(values) / min(values) > 20
    arms = list(dict.fromkeys(str(row["arm"]) for row in rows))
    chart = (
        alt.Chart(_data(rows))
        .mark_point(filled=True, size=55, opacity=0.75)
        .encode(
            x=alt.X(
                "value:Q", title=metric.replace("_", " "), scale=alt.Scale(type="log" if log else "linear", zero=False)
            ),
            y=alt.Y("arm:N", title=None, sort=arms, axis=alt.Axis(labelLimit=260)),
            color=alt.Color("workload:N", scale=alt.Scale(range=list(PALETTE)), legend=alt.Legend(title="workload")),
        )
    )
    return _svg(chart.properties(width=500, height=28 * len(arms) + 16))


def curves_chart(title: str, curves: Mapping[str, Sequence[Sequence[float]]], x_title: str = "step") -> str:
    """Lines such as learning curves: name to rows of (x, y)."""
    rows = [
        {"curve": name, "x": x, "y": y}
        for name, points in curves.items()
        for x, y in points
        if math.isfinite(x) and math.isfinite(y)
    ]
    if not rows:
        return ""
    heights = [cast(float, row["y"]) for row in rows]
    log = min(heights) > 0 and max(heights) > max(1.0, 20 * min(heights))
    chart = (
        alt.Chart(_data(rows), title=title)
        .mark_line(strokeWidth=1.6)
        .encode(
            x=alt.X("x:Q", title=x_title),
            y=alt.Y("y:Q", title=None, scale=alt.Scale(type="log" if log else "linear", zero=False)),
            color=alt.Color("curve:N", scale=alt.Scale(range=list(PALETTE)), legend=alt.Legend(title=None)),
        )
    )
    return _svg(chart.properties(width=430, height=170))


def pareto_chart(
    rows: Sequence[Mapping[str, Any]], x: str, x_title: str, y_title: str, *, higher_is_better: bool
) -> str:
    """Contenders as points: cost on x, quality on y; those that nobody beats in both are joined by a line.

    Args:
        rows: each with ``contender``, ``quality``, ``low``, ``high`` and the cost ``x``.
        x: name of the cost; less is better.
        x_title, y_title: of the axes.
        higher_is_better: of the quality.
    """
    sign = 1.0 if higher_is_better else -1.0
    front = [
        r
        for r in rows
        if not any(
            o[x] <= r[x]
            and sign * o["quality"] >= sign * r["quality"]
            and o is not r
            and (o[x] < r[x] or sign * o["quality"] > sign * r["quality"])
            for o in rows
        )
    ]
    encode_x = alt.X(f"{x}:Q", title=x_title, scale=alt.Scale(zero=False, nice=True))
    encode_y = alt.Y("quality:Q", title=y_title, scale=alt.Scale(zero=False))
    colour = alt.Color("contender:N", scale=alt.Scale(range=list(PALETTE)), legend=alt.Legend(title=None))
    base = alt.Chart(_data(rows)).encode(x=encode_x, color=colour)
    bars = base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", scale=alt.Scale(zero=False)), y2="high:Q")
    dots = base.mark_point(filled=True, size=110, opacity=1).encode(y=encode_y)
    line = alt.Chart(_data(front)).mark_line(color=INK, strokeDash=[4, 3], strokeWidth=1.2)
    return _svg(alt.layer(line.encode(x=encode_x, y=encode_y), bars, dots).properties(width=480, height=240))


def draw_graphs(graphs: Sequence[Mapping[str, Any]]) -> str:
    """Small drawings of graphs side by side.

    Args:
        graphs: each with ``caption``, ``positions`` (rows of x, y in [-1, 1]) and ``edges`` (rows of two indices).
    """
    parts, size, pad = [], 150, 16
    for index, graph in enumerate(graphs):
        left = index * (size + 3 * pad)

        def place(point: Sequence[float], left: int = left) -> tuple[float, float]:
            return left + pad + (point[0] + 1) / 2 * size, pad + (point[1] + 1) / 2 * size

        at = [place(p) for p in graph["positions"]]
        for a, b in graph["edges"]:
            parts.append(
                f'<line x1="{at[a][0]:.1f}" y1="{at[a][1]:.1f}" x2="{at[b][0]:.1f}" y2="{at[b][1]:.1f}" '
                'stroke="currentColor" stroke-opacity="0.45"/>'
            )
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{PALETTE[0]}"/>' for x, y in at]
        parts.append(
            f'<text x="{left + pad + size / 2:.0f}" y="{size + 2 * pad + 12}" text-anchor="middle" font-size="12" '
            f'fill="currentColor">{escape(str(graph["caption"]))}</text>'
        )
    width, height = len(graphs) * (size + 3 * pad), size + 3 * pad
    size_text = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size_text} role="img">{"".join(parts)}</svg>'


def unique_ids(svg: str, prefix: str) -> str:
    """Renames the clip paths of an SVG, so that several can stand in one page."""
    return re.sub(r'(id="|url\(#)(clip|gradient)', rf"\1{prefix}-\2", svg)
