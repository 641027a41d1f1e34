"""Who did what, on a hash-chained log (stage 6): a line before a call and one after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from heliograph.agents.core.audit import AuditError, AuditLog
from heliograph.agents.core.canonical import canonical_hash
from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.identity import Principal
from heliograph.agents.core.interceptor import CallNext, Rejected
from heliograph.agents.mcp_broker.errors import StructuredError
from heliograph.agents.mcp_broker.tokens import IDENTIFIED
from heliograph.agents.mcp_broker.tools import ToolCatalog, call_of
from heliograph.clock import Clock, WallClock
from heliograph.errors import BadInput

__all__ = ["AuditStage"]

AUDIT_FAILED_CODE = -32013


class AuditStage:
    """Interceptor: records identity, tool, arguments, outcome and latency.

    Put it outermost: refusals are recorded too. Who calls is known only when the answer comes back, so the line before
    holds what the message says, and the line after holds what :class:`~heliograph.agents.mcp_broker.TokenIdentity`
    found.

    Args:
        log: to write.
        arguments: "hash" keeps what was sent out of the log, "full" does not.
        on_failure: if the log cannot be written: "closed" refuses, "open" lets pass, "writes" refuses only what may
            change something.
        catalog: says which tools only read.
        clock: to time calls.
        name: in the chain.

    Raises:
        BadInput: an unknown setting.
    """

    def __init__(
        self,
        log: AuditLog,
        *,
        arguments: Literal["hash", "full"] = "hash",
        on_failure: Literal["closed", "open", "writes"] = "closed",
        catalog: ToolCatalog | None = None,
        clock: Clock | None = None,
        name: str = "audit_stage",
    ) -> None:
        if arguments not in ("hash", "full") or on_failure not in ("closed", "open", "writes"):
            raise BadInput(
                f"arguments are hash or full, on_failure is closed, open or writes; got {arguments!r}, {on_failure!r}"
            )
        self.log, self.name = log, name
        self._arguments, self._on_failure, self._catalog = arguments, on_failure, catalog or ToolCatalog()
        self._clock = clock or WallClock()
        self.unrecorded = 0

    async def __call__(self, env: Envelope, call_next: CallNext) -> Envelope:
        """Records, passes on, records the outcome."""
        payload = env.payload if isinstance(env.payload, Mapping) else {}
        call = call_of(env)
        line: dict[str, Any] = {"event": "request", "id": env.id, "sender": env.sender, "tenant": env.tenant}
        line |= {"session": env.conv, "method": str(payload.get("method", ""))}
        if call is not None:
            line["tool"] = call[0]
            line |= self._recorded(call[1])
        elif isinstance((payload.get("params") or {}).get("uri"), str):
            line["uri"] = payload["params"]["uri"]
        if env.meta.traceparent:
            line["traceparent"] = env.meta.traceparent
        try:
            self.log.append(line)
        except (AuditError, BadInput) as error:
            self.unrecorded += 1
            reads = call is None or self._catalog.facts(call[0]).effect == "read"
            if self._on_failure == "closed" or (self._on_failure == "writes" and not reads):
                raise Rejected(
                    "this request cannot be recorded, so it is not sent", code=AUDIT_FAILED_CODE, by=self.name
                ) from error
        started = self._clock.now()
        done: dict[str, Any] = {"event": "outcome", "id": env.id, "status": "cancelled"}
        seen: list[Principal] = []
        token = IDENTIFIED.set(seen)
        try:
            answer = await call_next(env)
            done |= _outcome(answer)
            return answer
        except Rejected as refusal:
            done |= {"status": "rejected", "by": refusal.by, "code": refusal.code}
            raise
        except Exception as error:
            done |= {"status": "failed", "error": type(error).__name__}
            raise
        finally:
            IDENTIFIED.reset(token)
            if seen:
                done |= {"sender": seen[-1].subject, "tenant": seen[-1].tenant}
            done["latency_ms"] = round((self._clock.now() - started) * 1000, 3)
            try:
                self.log.append(done)
            except (AuditError, BadInput):  # it has run: refusing now would only hide that
                self.unrecorded += 1

    def _recorded(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self._arguments == "full":
            return {"arguments": dict(arguments)}
        try:
            return {"arguments_hash": canonical_hash(dict(arguments))}
        except BadInput:  # an integer beyond 2**53 is JSON without a canonical form
            return {"arguments_hash": ""}


def _outcome(answer: Envelope) -> dict[str, Any]:
    payload = answer.payload if isinstance(answer.payload, Mapping) else {}
    said: dict[str, Any] = {"status": "ok", "answer_bytes": len(msgspec.json.encode(payload))}
    if isinstance(payload.get("error"), Mapping):
        return {**said, "status": "error", "code": payload["error"].get("code")}
    result = payload.get("result")
    if isinstance(result, Mapping) and result.get("isError") is True:
        said["status"] = "tool_error"
        found = StructuredError.from_result(result)
        if found is not None:
            said |= {"category": str(found.category), "reason": found.code, "cause": found.cause_id}
    return said
