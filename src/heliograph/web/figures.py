"""The charts of a run for its page: SVG text that stands in the page itself, drawn once and kept.

A chart takes a fifth of a second to draw, so each is kept under what it was drawn from. A chart that cannot be drawn
is left out; the findings beside it say the same in words.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from markupsafe import Markup

from heliograph.trials.record import TrialRecord

__all__ = ["Figures"]


@dataclass
class Figures:
    """Draws charts, and keeps those of the latest ``limit`` calls."""

    limit: int = 400
    _kept: OrderedDict[str, tuple[Markup, ...]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def interval(
        self, finding: Mapping[str, Any], controls: Sequence[Mapping[str, Any]], paper: float | None
    ) -> Markup:
        """The claim's interval beside its controls, our threshold and the paper's figure."""

        def draw() -> list[str]:
            from heliograph.trials.charts import findings_chart

            return [findings_chart(finding, controls, paper)]

        label = f"Interval of {finding['claim']}, its controls, our threshold and the paper's figure"
        return Markup().join(self._once(label, draw, "interval", finding, list(controls), paper))

    def arms(
        self, finding: Mapping[str, Any], records: Sequence[TrialRecord], experiment: str, metric: str, run: str
    ) -> Markup:
        """Every block's value of the metric, one row a contender."""

        def draw() -> list[str]:
            from heliograph.trials.charts import arms_chart

            return [arms_chart(finding, records, experiment, metric)]

        label = f"Every block's {metric.replace('_', ' ')} of each contender"
        return Markup().join(self._once(label, draw, "arms", run, len(records), finding["system"], experiment, metric))

    def curves(self, records: Sequence[TrialRecord], run: str, slug: str) -> tuple[Markup, ...]:
        """Learning curves of the first block."""
        from heliograph.trials.report import curve_svgs

        label = "Learning curves of the first block"
        return self._once(label, lambda: curve_svgs(records), "curves", run, len(records), slug)

    def drawings(self, records: Sequence[TrialRecord], run: str, slug: str) -> tuple[Markup, ...]:
        """The drawings of graphs that trials kept."""
        from heliograph.trials.report import drawing_svgs

        return self._once("Drawings of graphs", lambda: drawing_svgs(records), "drawings", run, len(records), slug)

    def _once(self, label: str, draw: Callable[[], list[str]], *parts: Any) -> tuple[Markup, ...]:
        key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        try:
            drawn = tuple(_placed(svg, label, f"f{key}-{i}-") for i, svg in enumerate(draw()) if svg)
        except Exception:  # whatever a damaged record does to the renderer, the page must stand
            return ()
        with self._lock:
            self._kept[key] = drawn
            while len(self._kept) > self.limit:
                self._kept.popitem(last=False)
        return drawn


def _placed(svg: str, label: str, prefix: str) -> Markup:
    """The SVG as one image with a name, its ids unlike those of any other chart of the page."""
    named = re.sub(r'(\bid="|url\(#)', rf"\g<1>{prefix}", svg).replace(' role="img"', "", 1)
    return Markup(named.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1))
