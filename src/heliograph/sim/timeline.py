"""What happened when, by row: spans of time that add up, and a trace that Chrome's and Perfetto's viewers open."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heliograph.errors import BadInput

__all__ = ["Span", "Timeline"]


@dataclass(frozen=True)
class Span:
    """``row`` did ``name`` from ``begin`` to ``end`` (seconds); ``facts`` go into the trace."""

    row: str
    name: str
    begin: float
    end: float
    facts: dict[str, Any] = field(default_factory=dict)


class Timeline:
    """Spans in the order in which they were recorded."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def record(self, row: str, name: str, begin: float, end: float, **facts: Any) -> None:
        """Adds a span.

        Raises:
            BadInput: it ends before it begins.
        """
        if not end >= begin:
            raise BadInput(f"{row} did {name} from {begin:g} s to {end:g} s: it ends before it begins")
        self.spans.append(Span(row, name, begin, end, facts))

    def busy(self, *rows: str) -> float:
        """Seconds in which at least one of these rows did something."""
        return _length(self._merged(rows))

    def exposed(self, row: str, behind: str) -> float:
        """Seconds of ``row`` during which ``behind`` did nothing: communication that no computation hides."""
        own, cover = self._merged((row,)), self._merged((behind,))
        return _length(own) - sum(
            max(0.0, min(end, other_end) - max(begin, other_begin))
            for begin, end in own
            for other_begin, other_end in cover
        )

    def write_chrome_trace(self, path: Path) -> None:
        """Writes the trace-event JSON, whole or not at all; times in microseconds."""
        rows = {row: number for number, row in enumerate(dict.fromkeys(span.row for span in self.spans))}
        events: list[dict[str, Any]] = [
            {"ph": "M", "pid": 0, "tid": number, "name": "thread_name", "args": {"name": row}}
            for row, number in rows.items()
        ]
        events += [
            {
                "ph": "X",
                "pid": 0,
                "tid": rows[span.row],
                "name": span.name,
                "ts": span.begin * 1e6,
                "dur": (span.end - span.begin) * 1e6,
                "args": span.facts,
            }
            for span in self.spans
        ]
        part = path.with_name(f".{path.name}.part")
        try:
            part.write_text(json.dumps({"traceEvents": events}), encoding="utf-8")
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise BadInput(f"cannot write {path}: {error.strerror}") from None

    def _merged(self, rows: tuple[str, ...]) -> list[tuple[float, float]]:
        """Disjoint intervals, in order."""
        merged: list[tuple[float, float]] = []
        for begin, end in sorted((span.begin, span.end) for span in self.spans if span.row in rows):
            if merged and begin <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end))
            else:
                merged.append((begin, end))
        return merged


def _length(intervals: list[tuple[float, float]]) -> float:
    return sum(end - begin for begin, end in intervals)
