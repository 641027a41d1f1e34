"""How often a caller may call: token buckets on a clock, one a caller and tool, in bounded memory."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.interceptor import CallNext, Rejected
from heliograph.clock import Clock, WallClock
from heliograph.errors import BadInput

__all__ = ["RATE_LIMITED_CODE", "CallRate", "RateLimiter"]

RATE_LIMITED_CODE = -32029
"""JSON-RPC code of a call that comes too early."""


@dataclass
class _Bucket:
    tokens: float
    updated: float


class RateLimiter:
    """A token bucket for every key: ``burst`` calls at once, ``rate`` more a second.

    Args:
        rate: calls a second.
        burst: calls that a rested key may make at once, at least 1.
        clock: to read; the wall clock by default.
        capacity: keys kept. The key that rested longest is forgotten first, which can only favour its caller.
    """

    def __init__(self, rate: float, burst: float, *, clock: Clock | None = None, capacity: int = 100_000) -> None:
        if not (rate > 0 and math.isfinite(rate)) or not (burst >= 1 and math.isfinite(burst)) or capacity < 1:
            raise BadInput(
                f"a rate limit needs a rate above 0, a burst of 1 or more and room for 1 key or more; got {rate:g} a "
                f"second, burst {burst:g}, capacity {capacity}"
            )
        self.rate, self.burst, self.capacity = rate, burst, capacity
        self._clock = clock or WallClock()
        self._buckets: OrderedDict[tuple[str, ...], _Bucket] = OrderedDict()

    def admit(self, *key: str) -> float:
        """Takes a token of this key: 0 if the call may go, else the seconds until one is there (nothing is taken)."""
        now = self._clock.now()
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self.capacity:
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = _Bucket(self.burst, now)
        else:
            self._buckets.move_to_end(key)
            bucket.tokens = min(self.burst, bucket.tokens + max(0.0, now - bucket.updated) * self.rate)
            bucket.updated = max(now, bucket.updated)
        # A waiter who comes exactly on time must not be turned away by the last bit of a sum.
        if bucket.tokens >= 1 - 1e-9:
            bucket.tokens = max(0.0, bucket.tokens - 1)
            return 0.0
        return (1 - bucket.tokens) / self.rate

    def __len__(self) -> int:
        return len(self._buckets)


class CallRate:
    """Interceptor: limits ``tools/call`` by sender and tool; other messages pass.

    Args:
        limiter: whose buckets are used.
        name: in the chain.
    """

    def __init__(self, limiter: RateLimiter, *, name: str = "call_rate") -> None:
        self.limiter, self.name = limiter, name

    async def __call__(self, env: Envelope, call_next: CallNext) -> Envelope:
        """Passes the call or refuses it with ``retry_after_ms``."""
        if isinstance(env.payload, dict) and env.payload.get("method") == "tools/call":
            tool = str(env.payload.get("params", {}).get("name", ""))
            wait = self.limiter.admit(env.tenant, env.sender, tool)
            if wait:
                retry_ms = math.ceil(wait * 1000)
                raise Rejected(
                    f"{tool} may be called {self.limiter.rate:g} times a second by one caller; call in {retry_ms} ms",
                    code=RATE_LIMITED_CODE,
                    data={"retryable": True, "retry_after_ms": retry_ms},
                )
        return await call_next(env)
