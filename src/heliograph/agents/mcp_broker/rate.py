"""How often a caller may call a tool; after the access rules, so that what is refused costs no quota."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase

from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.interceptor import CallNext, Rejected
from heliograph.agents.core.limits import RATE_LIMITED_CODE, RateLimiter
from heliograph.agents.mcp_broker.tokens import caller_of
from heliograph.agents.mcp_broker.tools import call_of
from heliograph.clock import Clock
from heliograph.errors import BadInput

__all__ = ["RateLimit", "parse_rate"]

_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def parse_rate(text: str) -> tuple[float, float]:
    """Calls a second, and how many at once, of a text like ``"60/min"`` or ``"5/s burst 20"``.

    Without ``burst`` a rested caller may use all calls of the period at once.

    Raises:
        BadInput: another form.
    """
    head, _, burst = text.partition(" burst ")
    count, slash, unit = head.strip().partition("/")
    try:
        calls = float(count)
        at_once = float(burst) if burst else max(1.0, calls)
    except ValueError:
        calls = at_once = math.nan
    if not slash or unit.strip() not in _SECONDS or not (calls > 0 and at_once >= 1 and math.isfinite(at_once)):
        raise BadInput(f'a rate is written like "60/min" or "5/s burst 20", with s, min or h; got {text!r}')
    return calls / _SECONDS[unit.strip()], at_once


class RateLimit:
    """Interceptor: a token bucket for each tenant, user and tool.

    Args:
        per_tool: of every tool, like ``"60/min"``; "" for none.
        rules: globs of tool names to rates; the first match replaces ``per_tool``.
        clock: to read.
        name: in the chain.

    Raises:
        BadInput: a rate that cannot be read.
    """

    def __init__(
        self,
        per_tool: str = "60/min",
        *,
        rules: Mapping[str, str] | None = None,
        clock: Clock | None = None,
        name: str = "rate_limit",
    ) -> None:
        self.name = name
        patterns = {**(rules or {}), **({"*": per_tool} if per_tool else {})}
        self._limiters = [(p, RateLimiter(*parse_rate(rate), clock=clock)) for p, rate in patterns.items()]

    async def __call__(self, env: Envelope, call_next: CallNext) -> Envelope:
        """Passes, or refuses with ``retry_after_ms``."""
        call = call_of(env)
        if call is not None:
            who, tool = caller_of(env), call[0]
            limiter = next((found for pattern, found in self._limiters if fnmatchcase(tool, pattern)), None)
            wait_s = limiter.admit(who.tenant, who.subject, tool) if limiter is not None else 0.0
            if wait_s:
                retry_ms = math.ceil(wait_s * 1000)
                raise Rejected(
                    f"{tool} is called too often by this caller; call again in {retry_ms} ms",
                    code=RATE_LIMITED_CODE,
                    data={"reason": "rate", "retryable": True, "retry_after_ms": retry_ms},
                )
        return await call_next(env)
