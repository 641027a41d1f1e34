"""Yes or no at a prefill instance: an offered prompt is taken only if it can start now, and there is no queue.

An accepted prompt has everything that it needs reserved in one step: a batch slot until its prompt is computed, cache
blocks and room in the send buffer until its keys and values have arrived (arXiv:2408.08147, on-demand forwarding).
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from heliograph.errors import BadInput

__all__ = ["Accept", "Offer", "PrefillAdmission", "PrefillLimits", "Reject", "RejectReason"]

RejectReason = Literal["slots", "blocks", "send buffer", "draining", "never"]
NO_DEADLINE = float("inf")


@dataclass(frozen=True)
class Offer:
    """What a gateway asks of an instance.

    Attributes:
        request: its id, the same for every attempt.
        attempt: counted from 0; a later attempt replaces an earlier one of the same request.
        tokens: of the prompt.
        hands_over: whether keys and values leave the instance; not for an answer of one token.
    """

    request: str
    attempt: int
    tokens: int
    hands_over: bool = True

    def __post_init__(self) -> None:
        """Refuses a prompt without tokens."""
        if self.tokens < 1:
            raise BadInput(f"request {self.request} offers an empty prompt; at least one token is needed")


@dataclass(frozen=True)
class Accept:
    """The prompt starts; ``key`` names its reservation."""

    key: str


@dataclass(frozen=True)
class Reject:
    """The prompt does not start here now, and why; "never" means that it is larger than the instance."""

    reason: RejectReason


@dataclass(frozen=True)
class PrefillLimits:
    """What a prefill instance has.

    Attributes:
        slots: prompts computed at once.
        num_blocks, block_size: of its cache.
        send_buffer_bytes: for keys and values that have not arrived yet.
        kv_bytes_per_token: of the model.
        reservation_s: how long an accepted prompt may take to come.
    """

    slots: int = 1
    num_blocks: int = 1024
    block_size: int = 16
    send_buffer_bytes: int = 2**28
    kv_bytes_per_token: int = 1
    reservation_s: float = 5.0

    def __post_init__(self) -> None:
        """Refuses an instance that could never accept."""
        if min(self.slots, self.num_blocks, self.block_size, self.kv_bytes_per_token) < 1 or not self.reservation_s > 0:
            raise BadInput(f"a prefill instance has slots, blocks and a time for reservations: {self}")


@dataclass
class _Reserved:
    offer: Offer
    key: str
    blocks: int
    nbytes: int
    deadline_s: float
    started: bool = False
    prefilled: bool = False


class PrefillAdmission:
    """Reservations of one prefill instance; may be called from any thread.

    >>> door = PrefillAdmission(PrefillLimits(slots=1))
    >>> door.offer(Offer("a", 0, 100)), door.offer(Offer("b", 0, 100))
    (Accept(key='a/0/0'), Reject(reason='slots'))

    Args:
        limits: of the instance.
        now: seconds on its clock.
        still_held: tells of a reservation whose prompt is computed whether its blocks are still waited for; None where
            :meth:`sent` says so.

    Attributes:
        accepted, rejected: offers, the latter by reason.
        draining: whether nothing more is accepted.
    """

    def __init__(
        self,
        limits: PrefillLimits,
        now: Callable[[], float] = lambda: 0.0,
        still_held: Callable[[str], bool] | None = None,
    ) -> None:
        self.limits, self.draining = limits, False
        self.accepted = 0
        self.rejected: Counter[RejectReason] = Counter()
        self._now, self._still_held = now, still_held
        self._reserved: dict[str, _Reserved] = {}
        self._serial = itertools.count()
        self._lock = threading.Lock()

    @property
    def busy_slots(self) -> int:
        """Prompts that were accepted and are not yet computed."""
        return sum(not r.prefilled for r in self._reserved.values())

    @property
    def reserved_blocks(self) -> int:
        """Blocks of accepted prompts whose keys and values have not left."""
        return sum(r.blocks for r in self._reserved.values())

    @property
    def reserved_bytes(self) -> int:
        """Of the send buffer."""
        return sum(r.nbytes for r in self._reserved.values())

    @property
    def accept_rate(self) -> float:
        """Share of the offers that were accepted; 1 before the first. A slow instance shows here."""
        offers = self.accepted + sum(self.rejected.values())
        return self.accepted / offers if offers else 1.0

    def offer(self, offer: Offer) -> Accept | Reject:
        """Reserves all that a prompt needs, or nothing.

        The same attempt offered twice gets the same answer; a later attempt of a request ends the earlier one.
        """
        with self._lock:
            self._settle()
            for key, reserved in list(self._reserved.items()):
                if reserved.offer.request == offer.request:
                    if reserved.offer.attempt == offer.attempt:
                        return Accept(key)
                    if reserved.offer.attempt < offer.attempt:
                        del self._reserved[key]
            limits = self.limits
            blocks = -(-offer.tokens // limits.block_size)
            nbytes = offer.tokens * limits.kv_bytes_per_token if offer.hands_over else 0
            reason: RejectReason | None = None
            if blocks > limits.num_blocks or nbytes > limits.send_buffer_bytes:
                reason = "never"
            elif self.draining:
                reason = "draining"
            elif self.busy_slots >= limits.slots:
                reason = "slots"
            elif self.reserved_blocks + blocks > limits.num_blocks:
                reason = "blocks"
            elif self.reserved_bytes + nbytes > limits.send_buffer_bytes:
                reason = "send buffer"
            if reason is not None:
                self.rejected[reason] += 1
                return Reject(reason)
            key = f"{offer.request}/{offer.attempt}/{next(self._serial)}"
            deadline = self._now() + limits.reservation_s
            self._reserved[key] = _Reserved(offer, key, blocks, nbytes, deadline)
            self.accepted += 1
            return Accept(key)

    def start(self, key: str) -> bool:
        """The accepted prompt has come; False where its reservation has ended."""
        with self._lock:
            reserved = self._reserved.get(key)
            if reserved is None:
                return False
            reserved.started, reserved.deadline_s = True, NO_DEADLINE
            return True

    def prefilled(self, key: str) -> None:
        """The prompt is computed: its slot is free; blocks and buffer stay until the keys and values have left."""
        with self._lock:
            reserved = self._reserved.get(key)
            if reserved is not None:
                reserved.prefilled = True
                if not reserved.offer.hands_over:
                    del self._reserved[key]

    def sent(self, key: str) -> None:
        """The keys and values have arrived, or nobody wants them: everything is free."""
        self.release(key)

    def release(self, key: str) -> bool:
        """Ends a reservation wherever it stands; False where it has ended already."""
        with self._lock:
            return self._reserved.pop(key, None) is not None

    def settle(self) -> None:
        """Ends the reservations whose time has passed or whose blocks are no longer waited for; offers do so too."""
        with self._lock:
            self._settle()

    def _settle(self) -> None:
        now = self._now()
        for key, reserved in list(self._reserved.items()):
            late = not reserved.started and reserved.deadline_s <= now
            gone = reserved.prefilled and self._still_held is not None and not self._still_held(key)
            if late or gone:
                del self._reserved[key]
