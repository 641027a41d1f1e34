"""What the governor keeps beside the lineage: notes, counts, locks of what is claimed about, sentences by meaning."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heliograph.agents.error_cascade.claims import Claim

if TYPE_CHECKING:
    from heliograph.agents.core.lm import LM

__all__ = ["Correction", "Counts", "KeyLocks", "Nearest"]


@dataclass(frozen=True)
class Correction:
    """What is told when claims are withdrawn.

    Attributes:
        agent: who passed one of them on; empty for a note to all who only heard them.
        claims: withdrawn.
        evidence: why.
        since: the agent's first message with one of them.
        messages: in a note to all, the messages that carried them.
    """

    agent: str
    claims: tuple[Claim, ...]
    evidence: str
    since: str = ""
    messages: tuple[str, ...] = ()

    def to_payload(self) -> dict[str, Any]:
        """As it is published on ``governor.correction.AGENT``, or on ``governor.withdrawn`` for all."""
        said = [{"id": claim.id, "text": claim.said()} for claim in self.claims]
        return {
            "correction": {
                "withdrawn": said,
                "evidence": self.evidence,
                "since": self.since,
                "messages": list(self.messages),
            }
        }


@dataclass
class Counts:
    """What a governor has done, for its cost."""

    messages: int = 0
    atoms: int = 0
    judged: int = 0
    verified: int = 0
    returned: int = 0
    delivered: int = 0
    broken: int = 0
    dropped: int = 0
    tagged: int = 0
    rollbacks: int = 0
    recalled: int = 0
    failures: int = 0
    polluted_rounds: int = 0


class KeyLocks(AsyncExitStack):
    """Holds the locks of some keys, and forgets a lock that nobody holds or waits for."""

    def __init__(
        self, locks: dict[tuple[str, str, str], tuple[asyncio.Lock, int]], keys: list[tuple[str, str, str]]
    ) -> None:
        super().__init__()
        self._locks, self._keys = locks, keys

    async def __aenter__(self) -> KeyLocks:
        await super().__aenter__()
        try:
            for key in self._keys:
                lock, users = self._locks.get(key, (asyncio.Lock(), 0))
                self._locks[key] = (lock, users + 1)
                self.callback(self._leave, key)
                await self.enter_async_context(lock)
        except BaseException:
            await self.aclose()
            raise
        return self

    def _leave(self, key: tuple[str, str, str]) -> None:
        lock, users = self._locks[key]
        if users == 1:
            del self._locks[key]
        else:
            self._locks[key] = (lock, users - 1)


class Nearest:
    """Confirmed sentences by meaning."""

    def __init__(self, embedder: LM, count: int = 8) -> None:
        self._embedder, self._count = embedder, count
        self._ids: list[str] = []
        self._rows: list[Any] = []

    def add(self, claim: Claim) -> None:
        """Takes a sentence in."""
        if claim.id not in self._ids:
            self._rows.append(self._embedder.embed([claim.said()])[0])
            self._ids.append(claim.id)

    def find(self, claim: Claim) -> list[str]:
        """Ids of the sentences nearest to one."""
        if not self._rows:
            return []
        import numpy as np

        near = np.stack(self._rows) @ self._embedder.embed([claim.said()])[0]
        return [self._ids[i] for i in np.argsort(-near)[: self._count]]
