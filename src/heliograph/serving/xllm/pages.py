"""Accounts of virtually contiguous caches: which pages of address space have physical memory (xllm's xTensor).

Every model reserves one contiguous range a layer, for keys and for values. Physical pages are mapped into it on demand
from one pool that all models share. This module counts and decides; calls of CUDA's or Ascend's virtual memory would be
made where it says "map" and "unmap", and are not part of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from heliograph.errors import BadInput, HeliographError

__all__ = ["PAGE_BYTES", "OutOfPages", "PageAccount", "PagePool"]

PAGE_BYTES = 2 * 2**20


class OutOfPages(HeliographError):
    """The shared pool has no physical page left."""


class PagePool:
    """Physical pages, shared by all models.

    Args:
        pages: of :data:`PAGE_BYTES` each.
    """

    def __init__(self, pages: int) -> None:
        if pages < 1:
            raise BadInput(f"a pool has at least one page; got {pages}")
        self.pages, self._used = pages, 0

    @property
    def free(self) -> int:
        """Pages that nobody has mapped."""
        return self.pages - self._used

    def take(self, count: int) -> bool:
        """So many, or none."""
        if count > self.free:
            return False
        self._used += count
        return True

    def give(self, count: int) -> None:
        """Back to the pool.

        Raises:
            BadInput: more than were taken.
        """
        if not 0 <= count <= self._used:
            raise BadInput(f"{count} pages cannot be given back: {self._used} are in use")
        self._used -= count


@dataclass(frozen=True)
class Usage:
    """Virtual pages by state: without memory, mapped ahead of need, and holding tokens."""

    free: int
    ahead: int
    used: int


class PageAccount:
    """One model's address space.

    A virtual page has a place in every layer, for keys and for values, so that mapping it takes 2 L physical pages.

    Args:
        pool: of physical pages.
        layers: L.
        virtual_pages: of the reserved range.
        ahead_low, ahead_high: mapped pages that are kept ready; below the one some are mapped, above the other some are
            unmapped, by :meth:`tend`.

    Raises:
        BadInput: limits that contradict each other.
    """

    def __init__(
        self, pool: PagePool, layers: int, virtual_pages: int, ahead_low: int = 8, ahead_high: int = 32
    ) -> None:
        if layers < 1 or virtual_pages < 1 or not 0 <= ahead_low <= ahead_high:
            raise BadInput(
                f"layers and virtual_pages are at least 1 and 0 <= ahead_low <= ahead_high; got {layers}, "
                f"{virtual_pages}, {ahead_low}, {ahead_high}"
            )
        self.pool, self.layers = pool, layers
        self.ahead_low, self.ahead_high = ahead_low, ahead_high
        self._free = deque(range(virtual_pages))
        self._ahead: deque[int] = deque()
        self._used: set[int] = set()
        self.asleep = False

    @property
    def cost(self) -> int:
        """Physical pages of one virtual page."""
        return 2 * self.layers

    @property
    def usage(self) -> Usage:
        """Virtual pages by state."""
        return Usage(len(self._free), len(self._ahead), len(self._used))

    def take(self, count: int) -> list[int]:
        """Virtual pages with memory; those mapped ahead first, others are mapped now.

        Raises:
            OutOfPages: not enough physical or virtual pages, or asleep; nothing has been taken then.
        """
        if self.asleep:
            raise OutOfPages("this model is asleep; wake it first")
        missing = max(0, count - len(self._ahead))
        if count < 0 or missing > len(self._free) or not self.pool.take(missing * self.cost):
            raise OutOfPages(
                f"{count} virtual pages need {missing * self.cost} more physical ones; {self.pool.free} are free, and "
                f"{len(self._free)} virtual pages"
            )
        found = [self._ahead.popleft() for _ in range(count - missing)]
        found += [self._free.popleft() for _ in range(missing)]
        self._used.update(found)
        return found

    def give_back(self, pages: Iterable[int]) -> None:
        """Pages whose tokens are gone; their memory stays mapped until :meth:`tend`.

        Raises:
            BadInput: a page that is not in use; nothing has been given back then.
        """
        pages = list(pages)
        if len(set(pages)) != len(pages) or not self._used.issuperset(pages):
            raise BadInput(f"pages {pages} are not all in use, once each")
        self._used.difference_update(pages)
        self._ahead.extendleft(reversed(pages))

    def tend(self) -> int:
        """Maps or unmaps ahead of need, as the background thread does; the change in virtual pages."""
        if self.asleep:
            return 0
        before = len(self._ahead)
        while len(self._ahead) > self.ahead_high:
            self._free.appendleft(self._ahead.pop())
            self.pool.give(self.cost)
        if before < self.ahead_low:
            while len(self._ahead) < self.ahead_low and self._free and self.pool.take(self.cost):
                self._ahead.append(self._free.popleft())
        return len(self._ahead) - before

    def sleep(self) -> int:
        """Unmaps everything, for another model; the physical pages that became free.

        Raises:
            BadInput: pages hold tokens.
        """
        if self._used:
            raise BadInput(f"{len(self._used)} pages hold tokens; end their requests before the model sleeps")
        freed = len(self._ahead) * self.cost
        self._free.extendleft(reversed(self._ahead))
        self._ahead.clear()
        self.pool.give(freed)
        self.asleep = True
        return freed

    def wake(self) -> None:
        """Takes requests again; memory is mapped on demand and by :meth:`tend`."""
        self.asleep = False

    def mapped(self) -> int:
        """Physical pages that this model has."""
        return (len(self._ahead) + len(self._used)) * self.cost

    def waste_bytes(self, tokens: int, token_bytes: int) -> int:
        """Mapped memory that holds no token.

        Args:
            tokens: in the cache.
            token_bytes: of keys and values of one token over all layers.
        """
        return self.mapped() * PAGE_BYTES - tokens * token_bytes
