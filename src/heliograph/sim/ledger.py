"""Bytes, joules and seconds by category, kept so that what one side gives another gets.

>>> ledger = Ledger()
>>> ledger.move("dram", "core", 64)
>>> ledger.spend("joules", "dram", 3e-9)
>>> ledger.total("bytes", "dram -> core")
64.0
>>> ledger.check()
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Literal

from heliograph.errors import BadInput

__all__ = ["Kind", "Ledger"]

Kind = Literal["bytes", "joules", "seconds"]
KINDS = ("bytes", "joules", "seconds")


class Ledger:
    """Amounts by kind and category."""

    def __init__(self) -> None:
        self._amounts: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._given: dict[str, list[float]] = defaultdict(list)
        self._got: dict[str, list[float]] = defaultdict(list)

    def spend(self, kind: Kind, category: str, amount: float) -> None:
        """Adds to a category.

        Raises:
            BadInput: an unknown kind, or an amount that is negative or not finite.
        """
        if kind not in KINDS or not (amount >= 0 and math.isfinite(amount)):
            raise BadInput(f"a ledger takes finite bytes, joules or seconds of 0 or more; got {amount} {kind}")
        self._amounts[kind, category].append(float(amount))

    def move(self, source: str, target: str, nbytes: float) -> None:
        """Bytes from one place to another, in the category ``source -> target``."""
        self.spend("bytes", f"{source} -> {target}", nbytes)
        self._given[source].append(float(nbytes))
        self._got[target].append(float(nbytes))

    def total(self, kind: Kind, category: str | None = None) -> float:
        """The sum of a category, or of all categories of a kind; exactly rounded, whatever the order of the entries."""
        chosen = [amounts for (k, c), amounts in self._amounts.items() if k == kind and category in (None, c)]
        return math.fsum(amount for amounts in chosen for amount in amounts)

    def categories(self, kind: Kind) -> dict[str, float]:
        """Totals by category, the largest first."""
        found = {c: math.fsum(amounts) for (k, c), amounts in self._amounts.items() if k == kind}
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    def given(self, place: str) -> float:
        """Bytes that left a place."""
        return math.fsum(self._given.get(place, ()))

    def got(self, place: str) -> float:
        """Bytes that came to a place."""
        return math.fsum(self._got.get(place, ()))

    def check(self) -> None:
        """Raises BadInput unless bytes given and bytes got are the same in all."""
        given = math.fsum(amount for amounts in self._given.values() for amount in amounts)
        got = math.fsum(amount for amounts in self._got.values() for amount in amounts)
        if given != got:
            raise BadInput(f"bytes are not conserved: {given:g} were given and {got:g} got")
