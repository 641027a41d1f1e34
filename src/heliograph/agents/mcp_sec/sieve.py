"""Which of many rows of hashes hold some of those given, found by one look at a table instead of one at each row.

As in a Bloom filter a hash has a few slots, but a slot has a bit for every row. What the table lets through is looked
up in the rows themselves, so that the answer is exact, whatever the hashes.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sieve", "is_held"]

_PLACES = 32
"""Rows of one table: the bits of a slot."""
_FEWEST_BITS, _MOST_BITS = 10, 19
_AT_ONCE = 8192
"""Hashes looked up together, so few that they stay in the processor's cache."""
_MULTIPLIERS = tuple(map(np.uint64, (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F)))
"""One for each slot of a hash: the highest bits of a product depend on all of the hash."""


def is_held(hashes: NDArray[np.uint64], row: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """For each of the hashes, whether a sorted row that isn't empty holds it."""
    at = np.searchsorted(row, hashes)
    at[at == len(row)] = 0
    held: NDArray[np.bool_] = row[at] == hashes
    return held


class _Table:
    """Up to 32 rows; their slots grow and shrink with them, to 2 MB at most, where they only let more through."""

    def __init__(self) -> None:
        self.rows: dict[int, NDArray[np.uint64]] = {}
        self._entries = 0
        self._make()

    def _make(self) -> None:
        self._bits = min(max((4 * self._entries).bit_length(), _FEWEST_BITS), _MOST_BITS)
        self._slots = np.zeros(1 << self._bits, np.uint32)
        for bit, row in self.rows.items():
            self._mark(bit, row)

    def _slots_of(self, hashes: NDArray[np.uint64], multiplier: np.uint64) -> NDArray[np.int64]:
        return (hashes * multiplier >> np.uint64(64 - self._bits)).view(np.int64)

    def _mark(self, bit: int, row: NDArray[np.uint64]) -> None:
        for multiplier in _MULTIPLIERS:
            self._slots[self._slots_of(row, multiplier)] |= np.uint32(1 << bit)

    def put(self, bit: int, row: NDArray[np.uint64]) -> None:
        self.rows[bit] = row
        self._entries += len(row)
        if 4 * self._entries > len(self._slots) and self._bits < _MOST_BITS:
            self._make()
        else:
            self._mark(bit, row)

    def drop(self, bit: int) -> None:
        row = self.rows.pop(bit)
        self._entries -= len(row)
        if 64 * self._entries < len(self._slots) and self._bits > _FEWEST_BITS:
            self._make()  # a long one is gone
            return
        for multiplier in _MULTIPLIERS:
            self._slots[self._slots_of(row, multiplier)] &= ~np.uint32(1 << bit)

    def count(self, hashes: NDArray[np.uint64]) -> dict[int, int]:
        first, second, third = _MULTIPLIERS
        bits = self._slots.take(self._slots_of(hashes, first), mode="wrap")
        bits &= self._slots.take(self._slots_of(hashes, second), mode="wrap")
        left = np.flatnonzero(bits != 0)
        if not len(left):
            return {}
        hashes = hashes[left]
        bits = bits[left] & self._slots[self._slots_of(hashes, third)]
        possible = int(np.bitwise_or.reduce(bits))
        found = {}
        for bit, row in self.rows.items():
            if possible >> bit & 1:
                likely = hashes[(bits & np.uint32(1 << bit)) != 0]
                held = int(np.count_nonzero(is_held(likely, row)))
                if held:
                    found[bit] = held
        return found


class Sieve:
    """Rows of hashes at numbered places."""

    def __init__(self) -> None:
        self._tables: dict[int, _Table] = {}

    def __contains__(self, place: int) -> bool:
        table = self._tables.get(place // _PLACES)
        return table is not None and place % _PLACES in table.rows

    def put(self, place: int, row: NDArray[np.uint64]) -> None:
        """Keeps a sorted row at a place that is empty."""
        if place // _PLACES not in self._tables:
            self._tables[place // _PLACES] = _Table()
        self._tables[place // _PLACES].put(place % _PLACES, row)

    def drop(self, place: int) -> None:
        """Empties a place, if it isn't."""
        if place in self:
            self._tables[place // _PLACES].drop(place % _PLACES)

    def count(self, hashes: NDArray[np.uint64]) -> Counter[int]:
        """How many of the hashes, as often as they are given, each place's row holds; 0 for other places."""
        found: Counter[int] = Counter()
        for begin in range(0, len(hashes), _AT_ONCE):
            part = hashes[begin : begin + _AT_ONCE].copy()  # they may lie unaligned in a text
            for number, table in self._tables.items():
                for bit, held in table.count(part).items():
                    found[number * _PLACES + bit] += held
        return found
