"""Interceptors by name, so that a configuration file or a switch can ask for them.

A system registers a factory when its module is imported. The names below are those of this package's systems; their
modules are imported when they are first asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from heliograph.agents.core.interceptor import Interceptor
from heliograph.errors import BadInput, MissingExtra

__all__ = ["StageFactory", "build_stage", "register_stage", "stage_names", "stage_schema"]

StageFactory = Callable[[Mapping[str, Any]], Sequence[Interceptor]]
"""Makes the interceptors of a stage from its options; raises BadInput for options that it does not know."""

_HOMES = {
    "broker": "heliograph.agents.mcp_broker",
    "mcpsec": "heliograph.agents.mcp_sec",
    "governor": "heliograph.agents.error_cascade",
}
_FACTORIES: dict[str, StageFactory] = {}
_SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {}


def register_stage(name: str, factory: StageFactory, schema: Callable[[], dict[str, Any]] | None = None) -> None:
    """Makes a stage known by name.

    Args:
        name: of it.
        factory: makes its interceptors.
        schema: makes the JSON Schema of its options.

    Raises:
        BadInput: the name is taken by another factory.
    """
    if _FACTORIES.get(name, factory) is not factory:
        raise BadInput(f"the stage {name!r} is registered already")
    _FACTORIES[name] = factory
    if schema is not None:
        _SCHEMAS[name] = schema


def stage_names() -> tuple[str, ...]:
    """All names that can be asked for, built or not."""
    return tuple(sorted({*_FACTORIES, *_HOMES}))


def build_stage(name: str, options: Mapping[str, Any] | None = None) -> tuple[Interceptor, ...]:
    """The interceptors of a stage.

    Raises:
        BadInput: no stage has this name, it is not part of this version, or its options are refused.
    """
    _find(name)
    return tuple(_FACTORIES[name](dict(options or {})))


def stage_schema(name: str) -> dict[str, Any] | None:
    """The JSON Schema of a stage's options; None if it has none.

    Raises:
        BadInput: no stage has this name, or it is not part of this version.
    """
    _find(name)
    return _SCHEMAS[name]() if name in _SCHEMAS else None


def _find(name: str) -> None:
    home = _HOMES.get(name)
    if name not in _FACTORIES and home is not None:
        try:
            importlib.import_module(home)
        except ModuleNotFoundError as error:
            if error.name != home:
                raise MissingExtra(error.name or name, "agents") from error
            raise BadInput(f"the stage {name!r} is not part of this version of heliograph; leave it out") from None
    if name not in _FACTORIES:
        known = ", ".join(stage_names())
        raise BadInput(f"there is no stage {name!r}; the names are {known}, and what your own code registers")
