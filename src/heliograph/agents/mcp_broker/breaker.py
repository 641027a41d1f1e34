"""Leaves a tool alone that fails again and again: closed, open for a while, then one call to see."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.interceptor import CallNext, Rejected
from heliograph.agents.mcp_broker.errors import BREAKER_CODE, Category, StructuredError, classify_jsonrpc
from heliograph.agents.mcp_broker.tools import call_of
from heliograph.clock import Clock, WallClock
from heliograph.errors import BadInput

__all__ = ["CircuitBreaker"]


@dataclass
class _Circuit:
    failures: deque[float] = field(default_factory=deque)
    open_until: float | None = None
    probing: bool = False


class CircuitBreaker:
    """Interceptor: after ``failures`` upstream failures within ``window_s``, refuses for ``open_s``, then lets one try.

    Args:
        failures: that open it.
        window_s, open_s: seconds.
        clock: to read.
        capacity: tools kept.
        name: in the chain.

    Raises:
        BadInput: a number that cannot be.
    """

    def __init__(
        self,
        failures: int = 5,
        *,
        window_s: float = 30.0,
        open_s: float = 30.0,
        clock: Clock | None = None,
        capacity: int = 10_000,
        name: str = "circuit_breaker",
    ) -> None:
        if failures < 1 or not window_s > 0 or not open_s > 0 or capacity < 1:
            raise BadInput(
                f"a breaker needs 1 failure or more, times above 0 and room; got {failures}, {window_s:g} s, "
                f"{open_s:g} s, {capacity}"
            )
        self.name, self._limit, self._window_s, self._open_s = name, failures, window_s, open_s
        self._clock, self._capacity = clock or WallClock(), capacity
        self._circuits: OrderedDict[str, _Circuit] = OrderedDict()

    def state(self, tool: str) -> str:
        """ "closed", "open" or "half_open"."""
        circuit = self._circuits.get(tool)
        if circuit is None or circuit.open_until is None:
            return "closed"
        return "open" if self._clock.now() < circuit.open_until else "half_open"

    async def __call__(self, env: Envelope, call_next: CallNext) -> Envelope:
        """Passes, or refuses with the time to come back."""
        call = call_of(env)
        if call is None:
            return await call_next(env)
        tool = call[0]
        circuit = self._circuits.setdefault(tool, _Circuit())
        self._circuits.move_to_end(tool)
        if len(self._circuits) > self._capacity:
            self._circuits.popitem(last=False)
        probe = self._enter(tool, circuit)
        # A caller who goes away tells nothing about the tool: neither a failure nor a success.
        failed: bool | None = None
        try:
            answer = await call_next(env)
            failed = _failed(answer)
            return answer
        except (TimeoutError, ConnectionError):
            failed = True
            raise
        finally:
            self._leave(circuit, failed, probe)

    def _enter(self, tool: str, circuit: _Circuit) -> bool:
        if circuit.open_until is None:
            return False
        wait_s = circuit.open_until - self._clock.now()
        if wait_s > 0 or circuit.probing:
            retry_ms = math.ceil(max(wait_s, 1.0) * 1000)
            raise Rejected(
                f"{tool} failed {self._limit} times just now and is left alone; call again in {retry_ms} ms",
                code=BREAKER_CODE,
                data={"reason": "circuit_open", "retryable": True, "retry_after_ms": retry_ms},
            )
        circuit.probing = True
        return True

    def _leave(self, circuit: _Circuit, failed: bool | None, probe: bool) -> None:
        now = self._clock.now()
        if probe:
            circuit.probing = False
        if failed is None:
            return
        if not failed:
            if probe:
                circuit.open_until = None
                circuit.failures.clear()
            return
        if probe:
            circuit.open_until = now + self._open_s
            return
        circuit.failures.append(now)
        while circuit.failures and circuit.failures[0] < now - self._window_s:
            circuit.failures.popleft()
        if len(circuit.failures) >= self._limit:
            circuit.open_until = now + self._open_s
            circuit.failures.clear()


def _failed(answer: Envelope) -> bool:
    payload = answer.payload if isinstance(answer.payload, dict) else {}
    if isinstance(payload.get("error"), dict):
        return classify_jsonrpc(payload["error"]).category is Category.UPSTREAM_FAILURE
    error = StructuredError.from_result(payload.get("result"))
    return error is not None and error.category is Category.UPSTREAM_FAILURE
