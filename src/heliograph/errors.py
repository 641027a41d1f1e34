"""The one error base, and the few errors that every layer shares.

A message says what is wrong, what was expected, and the way out; the command line prints it without a traceback.
"""

from __future__ import annotations

__all__ = [
    "BadInput",
    "CardError",
    "HeliographError",
    "MemoryEstimateError",
    "MissingData",
    "MissingExtra",
    "ResumeMismatch",
    "StoreError",
    "UnknownSystem",
]


class HeliographError(Exception):
    """Base of every error that heliograph raises on purpose.

    Attributes:
        exit_code: what the command line exits with when this error ends it.
    """

    exit_code = 2


class BadInput(HeliographError, ValueError):
    """The user's file, argument or array cannot be used; refused before work starts."""


class CardError(HeliographError):
    """A card breaks the schema; the message names the file, the field and the reason."""


class UnknownSystem(BadInput):
    """No system has this slug; the message names the nearest ones."""


class MissingExtra(HeliographError, ImportError):
    """An optional package is absent; the message holds the one install line."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed. Install it with: pip install 'heliograph[{extra}]'")
        self.package, self.extra = package, extra

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        return type(self), (self.package, self.extra)  # a trial's process hands it over by pickle


class MissingData(HeliographError, ImportError):
    """A package that carries data, or reads it, is absent; the message holds the one install line."""

    def __init__(self, package: str, install: str) -> None:
        super().__init__(f"{package} is not installed. Install it with: {install}")
        self.package, self.install = package, install

    def __reduce__(self) -> tuple[type[MissingData], tuple[str, str]]:
        return type(self), (self.package, self.install)  # a trial's process hands it over by pickle


class MemoryEstimateError(HeliographError, MemoryError):
    """The estimate of what a call would allocate exceeds the budget; raised before anything is allocated."""


class StoreError(HeliographError):
    """The store of runs cannot be read or written."""


class ResumeMismatch(HeliographError):
    """A run cannot be resumed because a field of its key changed; the message names the field."""
