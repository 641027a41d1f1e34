"""A call with an idempotency key runs once; who repeats it gets the first answer again."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from heliograph.agents.core.canonical import canonical_hash
from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.interceptor import CallNext, Rejected
from heliograph.agents.mcp_broker.tokens import caller_of, without_meta
from heliograph.agents.mcp_broker.tools import call_of
from heliograph.clock import Clock, WallClock
from heliograph.errors import BadInput

__all__ = ["IDEMPOTENCY_KEY", "IdempotentReplay"]

IDEMPOTENCY_KEY = "dev.heliograph/idempotency-key"
"""Key of ``_meta`` under which a caller names its call."""

INVALID_PARAMS = -32602


@dataclass
class _Entry:
    arguments_hash: str
    expires: float
    answer: asyncio.Future[Envelope]


class IdempotentReplay:
    """Interceptor: keeps the answers of calls that have a key, by tenant, user, tool and key.

    An answer that is an error is not kept, so that the call can be repeated. The store is in memory: after a restart a
    key is new again.

    Args:
        ttl_s: how long an answer is kept.
        capacity: answers kept; the oldest is forgotten first.
        clock: to read.
        name: in the chain.

    Raises:
        BadInput: a number that cannot be.
    """

    def __init__(
        self,
        ttl_s: float = 24 * 3600.0,
        *,
        capacity: int = 10_000,
        clock: Clock | None = None,
        name: str = "idempotent_replay",
    ) -> None:
        if not ttl_s > 0 or capacity < 1:
            raise BadInput(f"answers are kept for a time above 0, and 1 of them or more; got {ttl_s:g} s, {capacity}")
        self.name, self._ttl_s, self._capacity = name, ttl_s, capacity
        self._clock = clock or WallClock()
        self._entries: OrderedDict[tuple[str, str, str, str], _Entry] = OrderedDict()
        self.replayed = 0

    async def __call__(self, env: Envelope, call_next: CallNext) -> Envelope:
        """Passes the call, or answers with what is known; a call that runs already is waited for."""
        call = call_of(env)
        meta = (env.payload.get("params") or {}).get("_meta") if call is not None else None
        key = meta.get(IDEMPOTENCY_KEY) if isinstance(meta, dict) else None
        if call is None or not isinstance(key, str) or not key:
            return await call_next(env)
        who, (tool, arguments) = caller_of(env), call
        place, digest, now = (who.tenant, who.subject, tool, key), canonical_hash(dict(arguments)), self._clock.now()
        entry = self._entries.get(place)
        if entry is not None and (entry.expires > now or not entry.answer.done()):
            if entry.arguments_hash != digest:
                raise Rejected(
                    "this idempotency key was used with other arguments; take a new key",
                    code=INVALID_PARAMS,
                    data={"reason": "idempotency_key"},
                )
            self.replayed += 1
            known = await asyncio.shield(entry.answer)
            return known.replace(payload={**known.payload, "id": env.payload.get("id")})
        return await self._first(env, call_next, place, digest)

    async def _first(
        self, env: Envelope, call_next: CallNext, place: tuple[str, str, str, str], digest: str
    ) -> Envelope:
        entry = _Entry(digest, self._clock.now() + self._ttl_s, asyncio.get_running_loop().create_future())
        self._entries[place] = entry
        self._entries.move_to_end(place)
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)
        kept = False
        try:
            answer = await call_next(env.replace(payload=without_meta(env.payload, IDEMPOTENCY_KEY)))
            result = answer.payload.get("result") if isinstance(answer.payload, dict) else None
            kept = isinstance(result, dict) and result.get("isError") is not True
            entry.answer.set_result(answer)
            return answer
        except Rejected as refusal:
            again = Rejected(refusal.reason, code=refusal.code, data=refusal.data, by=refusal.by)
            entry.answer.set_exception(again)
            entry.answer.exception()  # seen: nobody may be waiting
            raise
        finally:
            if not entry.answer.done():
                entry.answer.set_exception(Rejected("the first call with this key was given up", code=-32001))
                entry.answer.exception()
            if not kept and self._entries.get(place) is entry:
                del self._entries[place]
