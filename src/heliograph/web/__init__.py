"""The catalog and the runs in a browser: a read-only server for this machine.

``create_app`` makes the application, ``serve`` runs it. Both need the extra ``web``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heliograph.web.app import create_app as create_app
    from heliograph.web.serve import serve as serve

__all__ = ["create_app", "serve"]

_HOMES = {"create_app": "heliograph.web.app", "serve": "heliograph.web.serve"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
