"""The catalog and the runs in a browser: a read-only server for this machine.

:func:`create_app` makes the application; :func:`heliograph.web.serve.serve` runs it. Both need the extra ``web``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heliograph.web.app import create_app as create_app

__all__ = ["create_app"]


def __getattr__(name: str) -> Any:
    if name != "create_app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from heliograph.web.app import create_app

    return create_app
