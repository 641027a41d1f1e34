"""Coverage over rounds as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heliograph.agents.error_cascade.fit import CascadeFit
from heliograph.agents.error_cascade.lineage import LineageGraph
from heliograph.errors import BadInput

if TYPE_CHECKING:
    import altair

__all__ = ["plot_coverage"]


def plot_coverage(
    what: LineageGraph | CascadeFit, path: str | Path | None = None, *, most: int = 5, rounds: int = 0
) -> altair.Chart:
    """Draws S(t), the share of agents that passed on a claim, for those that reached most; or a fit beside its data.

    Args:
        what: a lineage or a fit.
        path: of a file to write, .html, .svg, .png or .json.
        most: claims of a lineage.
        rounds: to show; by default all.

    Raises:
        BadInput: the lineage has no carrier yet, or the file's ending is none of these.
    """
    rows = _of_fit(what) if isinstance(what, CascadeFit) else _of_lineage(what, most, rounds)
    import altair as alt

    chart: altair.Chart = (
        alt.Chart(alt.Data(values=rows))  # type: ignore[no-untyped-call]
        .mark_line(point=True)
        .encode(
            x=alt.X("round:Q", title="round", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("share:Q", title="share of agents", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("line:N", title=None),
        )
        .properties(width=420, height=260)
    )
    if path is not None:
        if Path(path).suffix not in (".html", ".svg", ".png", ".json"):
            raise BadInput(f"a picture is written as .html, .svg, .png or .json; got {path}")
        try:
            chart.save(str(path))
        except OSError as error:
            raise BadInput(f"cannot write {path}: {error.strerror}") from None
    return chart


def _of_fit(fit: CascadeFit) -> list[dict[str, Any]]:
    first = 1 if fit.init == "homogeneous" else 0
    lines: tuple[tuple[str, int, Sequence[float]], ...] = (
        ("observed", 0, fit.observed),
        (f"fitted, beta {fit.beta:.2f}, delta {fit.delta:.2f}", first, fit.curve),
    )
    return [
        {"line": name, "round": start + t, "share": float(share)}
        for name, start, shares in lines
        for t, share in enumerate(shares)
    ]


def _of_lineage(lineage: LineageGraph, most: int, rounds: int) -> list[dict[str, Any]]:
    agents = lineage.agents()
    if not agents:
        raise BadInput("nobody has passed a claim on yet; there is nothing to draw")
    last = 1 + max(c.round for node in lineage.nodes.values() for c in node.carriers.values())
    reach = sorted(lineage.nodes, key=lambda id_: (-len(lineage.nodes[id_].carriers), id_))[:most]
    rows = []
    for id_ in reach:
        node = lineage.nodes[id_]
        name = f"{node.claim.said()[:60]} ({node.status})"
        for t, share in enumerate(lineage.coverage(id_, agents, rounds or last)):
            rows.append({"line": name, "round": t, "share": share})
    return rows
