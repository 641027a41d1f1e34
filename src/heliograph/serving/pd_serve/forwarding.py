"""Offering a prompt until an idle instance takes it, within its deadline (arXiv:2408.08147, on-demand forwarding).

The gateway estimates nothing: the only queue is the prompts that wait here, and an instance's yes or no is its true
state. The loop awaits only the clock of its asyncio loop, so it runs on real and on virtual time alike.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from heliograph.errors import BadInput
from heliograph.serving.core.async_engine import Overloaded
from heliograph.serving.pd_serve.admission import Accept, Offer, Reject, RejectReason

__all__ = ["Backoff", "ForwardStats", "NoIdlePrefill", "PrefillPort", "forward"]


class NoIdlePrefill(Overloaded):
    """No instance took the prompt before its deadline; nothing was computed for it."""

    def __init__(self, request: str, waited_s: float, offers: int) -> None:
        super().__init__(0, 0, retry_after_s=1.0)
        self.args = (
            f"request {request} was offered {offers} times in {waited_s:.3g} s and no prefill instance was idle; "
            "try again later, allow a longer time to the first token, or add prefill instances",
        )
        self.request, self.waited_s, self.offers = request, waited_s, offers


class PrefillPort(Protocol):
    """A prefill instance as a gateway reaches it."""

    @property
    def name(self) -> str:
        """Of the instance."""
        ...

    async def offer(self, offer: Offer) -> Accept | Reject:
        """Asks whether a prompt can start now."""
        ...


P = TypeVar("P", bound=PrefillPort)


@dataclass(frozen=True)
class Backoff:
    """Waiting between two rounds of offers.

    Attributes:
        first_s, factor, most_s: of the wait, which grows from the first to the most.
        jitter: share of the wait that is random, so that gateways do not ask in step.
    """

    first_s: float = 0.002
    factor: float = 1.5
    most_s: float = 0.020
    jitter: float = 0.5

    def __post_init__(self) -> None:
        """Refuses a wait of nothing, which would ask without end."""
        if not (0 < self.first_s <= self.most_s and self.factor >= 1 and 0 <= self.jitter <= 1):
            raise BadInput(f"need 0 < first_s <= most_s, factor >= 1 and jitter in [0, 1]; got {self}")

    def seconds(self, round_: int, rng: random.Random) -> float:
        """Before the next round; the first wait has number 0."""
        whole = min(self.most_s, self.first_s * self.factor ** min(round_, 64))
        return whole * (1 - self.jitter * rng.random())


@dataclass
class ForwardStats:
    """What a gateway's offers met.

    Attributes:
        offered, accepted: offers by instance; a slow instance shows as a low share of accepted ones.
        rejected: offers by reason.
        timeouts: prompts that nobody took in time.
    """

    offered: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    rejected: Counter[RejectReason] = field(default_factory=Counter)
    timeouts: int = 0

    def accept_rate(self, instance: str) -> float:
        """Share of an instance's offers that it took; 1 before the first."""
        return self.accepted[instance] / self.offered[instance] if self.offered[instance] else 1.0


async def forward(
    offer: Offer,
    ports: Sequence[P],
    deadline_s: float,
    *,
    backoff: Backoff = Backoff(),
    rng: random.Random,
    stats: ForwardStats | None = None,
) -> tuple[P, str]:
    """Offers a prompt to instances in their order, again and again, until one takes it.

    Args:
        offer: of the prompt.
        ports: most wanted first, for example the owner of its prefix.
        deadline_s: on the running loop's clock.
        backoff: between rounds.
        rng: of the jitter.
        stats: counted into.

    Returns:
        The instance and the key of the reservation there.

    Raises:
        NoIdlePrefill: the deadline passed.
        BadInput: no instance is large enough for the prompt.
    """
    loop = asyncio.get_running_loop()
    counted = stats if stats is not None else ForwardStats()
    begin, offers = loop.time(), 0
    for round_ in range(2**62):
        reasons: list[RejectReason] = []
        for port in ports:
            answer = await port.offer(offer)
            offers += 1
            counted.offered[port.name] += 1
            if isinstance(answer, Accept):
                counted.accepted[port.name] += 1
                return port, answer.key
            counted.rejected[answer.reason] += 1
            reasons.append(answer.reason)
        if reasons and all(reason == "never" for reason in reasons):
            raise BadInput(f"the prompt has {offer.tokens} tokens; no prefill instance of its group can hold it")
        left = deadline_s - loop.time()
        if left <= 0:
            break
        await asyncio.sleep(min(left, backoff.seconds(round_, rng)))
    counted.timeouts += 1
    raise NoIdlePrefill(offer.request, loop.time() - begin, offers)
