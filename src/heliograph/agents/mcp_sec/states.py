"""The ``requestState`` values that servers gave, so that a changed or used one is noticed at the gateway."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

__all__ = ["StateLedger"]


@dataclass
class _Given:
    context: str
    server: str
    digest: str
    used: bool = False


class StateLedger:
    """Hashes of states, and which call of which conversation each belongs to.

    Args:
        capacity: states kept; the oldest is forgotten, and then refused.
    """

    def __init__(self, capacity: int = 10_000) -> None:
        self._capacity = capacity
        self._given: OrderedDict[str, _Given] = OrderedDict()

    @staticmethod
    def _key(state: Any) -> str:
        return hashlib.blake2b(str(state).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def gave(self, state: str, context: str, server: str, digest: str) -> None:
        """Records a state on its way to the caller."""
        while len(self._given) >= self._capacity:
            self._given.popitem(last=False)
        self._given[self._key(state)] = _Given(context, server, digest)

    def known(self, state: Any, context: str, server: str, digest: str) -> bool:
        """Whether a state may come back with this call."""
        found = self._given.get(self._key(state))
        return (
            found is not None
            and not found.used
            and (found.context, found.server, found.digest)
            == (
                context,
                server,
                digest,
            )
        )

    def use(self, state: Any) -> None:
        """A call with this state has ended; it may not come again."""
        found = self._given.get(self._key(state))
        if found is not None:
            found.used = True
