"""heliograph: message-passing systems at every scale, each with a check of its paper's headline claim."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
