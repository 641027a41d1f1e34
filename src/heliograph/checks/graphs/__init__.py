"""Checks of the graphs family, and what it registers for ``heliograph compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heliograph.checks.graphs.comparison import COMPARE

__all__ = ["COMPARE"]


def __getattr__(name: str) -> Any:
    """Imports the comparison at its first use: a check must not need what only ``compare`` needs."""
    if name != "COMPARE":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from heliograph.checks.graphs.comparison import COMPARE

    return COMPARE
