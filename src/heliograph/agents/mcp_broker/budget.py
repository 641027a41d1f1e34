"""One time budget for all tool calls of an agent's turn (ATBA), as an interceptor and as plain objects.

A caller names its turn in ``_meta["dev.heliograph/turn"]``: ``{"id": "t7", "budget_ms": 4000, "next": ["crm.find",
"mail.send"]}`` or ``"remaining_calls": 2`` instead of ``next``. Without it the calls of one caller and session make a
turn until the next call would not fit or nothing came for ``idle_s``. A caller can make the budget smaller than the
gateway's, not larger.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.interceptor import CallNext, Rejected
from heliograph.agents.mcp_broker.allocation import BudgetPolicy, PlannedCall, make_policy
from heliograph.agents.mcp_broker.errors import BUDGET_SPENT_CODE, TIMEOUT_CODE
from heliograph.agents.mcp_broker.latency import ANY_TOOL, ToolLatencyModel, size_class
from heliograph.agents.mcp_broker.tokens import caller_of, without_meta
from heliograph.agents.mcp_broker.tools import ToolCatalog, call_of
from heliograph.clock import Clock, WallClock
from heliograph.errors import BadInput

__all__ = ["TURN_KEY", "BudgetCounts", "TurnBudget"]

TURN_KEY = "dev.heliograph/turn"
_MOST_PLANNED = 32


@dataclass
class _Turn:
    started: float
    deadline: float
    last: float
    calls: int = 0


@dataclass(frozen=True)
class BudgetCounts:
    """What a budget has done so far.

    Attributes:
        calls, retries, timeouts: of tools.
        refused: calls for which no time was left.
        cold: limits that rest on a prior.
    """

    calls: int = 0
    retries: int = 0
    timeouts: int = 0
    refused: int = 0
    cold: int = 0


class TurnBudget:
    """Interceptor: gives each tool call a limit so that the whole turn ends in time, and repeats what may be repeated.

    Args:
        total_ms: of a turn.
        policy: a name for :func:`~heliograph.agents.mcp_broker.allocation.make_policy`, or a policy.
        model: of latencies; a new one by default.
        catalog: says which tools may be repeated; without it none is.
        retries: of a call that ran into its limit, if its tool may be repeated.
        floor_ms: less time than this is no use: the call is refused.
        idle_s: ends a turn that has no name; so does the end of its time.
        kappa: of the policy "cap".
        clock: to read; limits run on the event loop's time.
        capacity: turns kept.
        name: in the chain.

    Raises:
        BadInput: a number or policy that cannot be.
    """

    def __init__(
        self,
        total_ms: float = 8000.0,
        policy: str | BudgetPolicy = "cap",
        *,
        model: ToolLatencyModel | None = None,
        catalog: ToolCatalog | None = None,
        retries: int = 1,
        floor_ms: float = 50.0,
        idle_s: float = 30.0,
        kappa: float = 1.2,
        clock: Clock | None = None,
        capacity: int = 10_000,
        name: str = "turn_budget",
    ) -> None:
        if not 0 <= retries <= 10 or not 0 < floor_ms < total_ms or not idle_s > 0 or capacity < 1:
            raise BadInput(
                f"a turn needs 0 to 10 retries, 0 < floor_ms < total_ms, idle_s above 0 and room; got {retries}, "
                f"{floor_ms:g}, {total_ms:g}, {idle_s:g}, {capacity}"
            )
        self.name, self.total_ms, self._floor_ms, self._idle_s = name, total_ms, floor_ms, idle_s
        self._clock = clock or WallClock()
        self.model = model or ToolLatencyModel(clock=self._clock)
        self._catalog, self._retries = catalog or ToolCatalog(), retries
        if isinstance(policy, str):
            policy = make_policy(policy, total_ms=total_ms, kappa=kappa, floor_ms=floor_ms)
        self.policy: BudgetPolicy = policy
        self._turns: OrderedDict[tuple[str, ...], _Turn] = OrderedDict()
        self._usual_calls: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._capacity = capacity
        self.counts = BudgetCounts()

    def allocate(self, remaining_ms: float, tool: str, *, later: Sequence[str] = (), calls_left: int = 1) -> float:
        """The limit in ms of the next call.

        Args:
            remaining_ms: until the turn must end.
            tool: of the call.
            later: the tools after it, as far as known.
            calls_left: calls of the turn, this one included; those beyond ``later`` are of unknown tools.

        Raises:
            BadInput: no time is left.
        """
        if not remaining_ms > 0:
            raise BadInput(f"a limit needs time that is left; got {remaining_ms:g} ms")
        return self.policy.limit_ms(remaining_ms, self._plan(tool, 0, self._repeats(tool), later, calls_left))

    def _repeats(self, tool: str) -> int:
        return self._retries if self._catalog.facts(tool).repeatable else 0

    def _plan(self, tool: str, size: int, retries: int, later: Sequence[str], calls_left: int) -> list[PlannedCall]:
        names = [*later][: _MOST_PLANNED - 1]
        names += [ANY_TOOL] * (min(calls_left, _MOST_PLANNED) - 1 - len(names))
        rest = [PlannedCall(self.model.times(name), self._repeats(name)) for name in names]
        return [PlannedCall(self.model.times(tool, size), retries), *rest]

    async def __call__(self, env: Envelope, call_next: CallNext) -> Envelope:
        """Passes the call with its limit in ``meta.deadline_ms``; an unanswered one becomes error -32001."""
        call = call_of(env)
        if call is None:
            return await call_next(env)
        tool, arguments = call
        asked = _asked(env)
        agent = (env.tenant, caller_of(env).subject)
        size = size_class(len(json.dumps(arguments, default=str)))
        turn = self._turn(agent, env.conv, asked, max(self._floor_ms, self.model.times(tool, size).p99_ms))
        retries, attempt, limit_ms = self._repeats(tool), 0, 0.0
        turn.calls += 1
        later = tuple(str(name) for name in asked.get("next", ()) if isinstance(name, str))
        calls_left = self._calls_left(agent, turn, asked, later)
        onward = env.replace(payload=without_meta(env.payload, TURN_KEY))
        while True:
            remaining_ms = (turn.deadline - self._clock.now()) * 1000
            if env.meta.deadline_ms is not None:
                remaining_ms = min(remaining_ms, env.meta.deadline_ms)
            if remaining_ms < self._floor_ms:
                if attempt:
                    return self._gave_up(env, tool, limit_ms, turn)
                self._count(refused=1)
                raise Rejected(
                    f"this turn has {max(0, round(remaining_ms))} ms left, too few for {tool}; begin another turn",
                    code=BUDGET_SPENT_CODE,
                    data={"reason": "turn_budget", "retryable": False, "deadline_ms": max(0, round(remaining_ms))},
                )
            plan = self._plan(tool, size, retries - attempt, later, calls_left)
            limit_ms = self.policy.limit_ms(remaining_ms, plan)
            attempt += 1
            self._count(calls=1, retries=int(attempt > 1), cold=int(plan[0].times.cold))
            answer = await self._send(onward, call_next, tool, size, limit_ms, attempt)
            turn.last = self._clock.now()
            if answer is not None:
                return answer
            if attempt > retries:
                return self._gave_up(env, tool, limit_ms, turn)

    async def _send(
        self, env: Envelope, call_next: CallNext, tool: str, size: int, limit_ms: float, attempt: int
    ) -> Envelope | None:
        """The answer; None if it did not come in time."""
        meta = msgspec.structs.replace(
            env.meta, deadline_ms=limit_ms, labels={**env.meta.labels, "attempt": str(attempt)}
        )
        started = self._clock.now()
        answer: Envelope | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_ms / 1000) as limit:
                try:
                    answer = await call_next(env.replace(meta=meta))
                except TimeoutError:
                    if not limit.expired():
                        raise
        took_ms = (self._clock.now() - started) * 1000
        error = answer.payload.get("error") if answer is not None and isinstance(answer.payload, Mapping) else None
        if answer is None or (isinstance(error, Mapping) and error.get("code") == TIMEOUT_CODE):
            self.model.observe(tool, limit_ms, censored=True, size=size)
            self._count(timeouts=1)
            return None
        if error is None:  # a refused or lost call says nothing about how long the tool takes
            self.model.observe(tool, max(took_ms, 0.0), size=size)
        return answer

    def _gave_up(self, env: Envelope, tool: str, limit_ms: float, turn: _Turn) -> Envelope:
        left = max(0, round((turn.deadline - self._clock.now()) * 1000))
        data = {"retryable": True, "timeout_ms": round(limit_ms), "deadline_ms": left}
        error = {"code": TIMEOUT_CODE, "message": f"{tool} did not answer within {limit_ms:.0f} ms", "data": data}
        return env.answer(
            {"jsonrpc": "2.0", "id": env.payload.get("id"), "error": error}, kind="error", sender=self.name
        )

    def _turn(self, agent: tuple[str, str], conv: str, asked: Mapping[str, Any], needed_ms: float) -> _Turn:
        now = self._clock.now()
        named = isinstance(asked.get("id"), str) and asked["id"]
        key = (*agent, "turn", asked["id"]) if named else (*agent, "session", conv)
        turn = self._turns.pop(key, None)
        if turn is not None and not named:
            # who names no turns cannot know when one ends: one too short for the call is followed by the next
            spent = (turn.deadline - now) * 1000 < needed_ms
            if spent or now - turn.last > self._idle_s:
                self._ended(agent, turn)
                turn = None
        if turn is None:
            budget = asked.get("budget_ms")
            wanted = isinstance(budget, int | float) and not isinstance(budget, bool) and budget > 0
            total_ms = min(self.total_ms, float(budget)) if wanted else self.total_ms  # type: ignore[arg-type]
            turn = _Turn(now, now + total_ms / 1000, now)
            while len(self._turns) >= self._capacity:
                old, gone = self._turns.popitem(last=False)
                self._ended((old[0], old[1]), gone)
        self._turns[key] = turn
        return turn

    def _ended(self, agent: tuple[str, str], turn: _Turn) -> None:
        before = self._usual_calls.pop(agent, float(turn.calls))
        if len(self._usual_calls) >= self._capacity:
            self._usual_calls.popitem(last=False)
        self._usual_calls[agent] = 0.8 * before + 0.2 * turn.calls

    def _calls_left(self, agent: tuple[str, str], turn: _Turn, asked: Mapping[str, Any], later: Sequence[str]) -> int:
        said = asked.get("remaining_calls")
        if isinstance(said, int) and not isinstance(said, bool) and said >= 0:
            return max(1 + min(said, _MOST_PLANNED), 1 + len(later))
        if later:
            return 1 + len(later)
        return max(1, round(self._usual_calls.get(agent, 1.0)) - turn.calls + 1)

    def _count(self, **more: int) -> None:
        self.counts = replace(self.counts, **{name: getattr(self.counts, name) + by for name, by in more.items()})


def _asked(env: Envelope) -> Mapping[str, Any]:
    meta = (env.payload.get("params") or {}).get("_meta")
    asked = meta.get(TURN_KEY) if isinstance(meta, Mapping) else None
    return asked if isinstance(asked, Mapping) else {}
