"""Checks of the graphs family, and what it registers for ``heliograph compare``."""

from __future__ import annotations

from heliograph.checks.graphs.comparison import COMPARE

__all__ = ["COMPARE"]
