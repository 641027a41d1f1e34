"""Asking a person whether something may happen, in the way of the caller's protocol era.

A session is asked by an elicitation. In the stateless era the answer to the call is a request for input, and the call
comes again with the decision; what it is about travels sealed in ``requestState``. Where nobody can be asked the answer
is no.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

from heliograph.agents.core.canonical import canonical_hash
from heliograph.agents.core.gateway import CallContext
from heliograph.errors import BadInput

__all__ = ["Asker", "request_digest"]

KEY = "dev.heliograph/mcpsec.approval"
PREFIX = "mcpsec1."
_SCHEMA = {
    "type": "object",
    "properties": {"allow": {"type": "boolean", "title": "Allow this", "default": False}},
    "required": ["allow"],
}


def request_digest(method: str, params: Mapping[str, Any]) -> str:
    """Of what a request asks for, without the fields that a retry changes."""
    kept = {k: v for k, v in params.items() if k not in ("_meta", "inputResponses", "requestState")}
    try:
        return canonical_hash([method, kept])
    except BadInput:
        return canonical_hash([method, json.dumps(kept, sort_keys=True, default=str)])


class Asker:
    """Questions to people.

    Args:
        per_minute: questions in one conversation; more are answered with no.
        now: seconds since 1970.
        ttl_s: how long a question of the stateless era stays open.
    """

    def __init__(self, per_minute: int = 6, *, now: Callable[[], float] = time.time, ttl_s: float = 600.0) -> None:
        self._per_minute, self._now, self._ttl_s = per_minute, now, ttl_s
        self._secret = secrets.token_bytes(32)
        self._asked: OrderedDict[str, deque[float]] = OrderedDict()
        self._open: dict[tuple[str, str], asyncio.Future[bool]] = {}

    def may_ask(self, context: str) -> bool:
        """Counts a question; False if there were too many in the last minute."""
        if context not in self._asked and len(self._asked) >= 10_000:
            self._asked.popitem(last=False)
        times = self._asked.setdefault(context, deque(maxlen=self._per_minute))
        now = self._now()
        if len(times) == self._per_minute and now - times[0] < 60:
            return False
        times.append(now)
        return True

    async def ask_session(self, call: CallContext, context: str, message: str) -> bool:
        """Asks the caller of a session; the same question at the same time is asked once."""
        key = (context, message)
        waiting = self._open.get(key)
        if waiting is not None:
            return await asyncio.shield(waiting)
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._open[key] = future
        allowed = False
        try:
            answer = await call.ask_client("elicitation/create", {"message": message, "requestedSchema": _SCHEMA})
            allowed = _is_yes(answer)
        except Exception:  # no such capability, a closed connection, a refusal: nobody said yes
            allowed = False
        finally:
            del self._open[key]
            future.set_result(allowed)
        return allowed

    def question(
        self, context: str, digest: str, message: str, about: Mapping[str, Any], state: Any = None
    ) -> dict[str, Any]:
        """A result of the stateless era that asks.

        Args:
            context, digest: whose call, and which.
            message: to the person.
            about: comes back with the answer.
            state: the server's own ``requestState``, if the call carried one.
        """
        body = json.dumps(
            {"c": context, "d": digest, "about": dict(about), "exp": self._now() + self._ttl_s, "s": state},
            separators=(",", ":"),
        ).encode()
        seal = hmac.digest(self._secret, body, "sha256")
        state = PREFIX + base64.urlsafe_b64encode(seal + body).decode()
        request = {"method": "elicitation/create", "params": {"message": message, "requestedSchema": _SCHEMA}}
        return {"resultType": "input_required", "inputRequests": {KEY: request}, "requestState": state}

    @staticmethod
    def is_ours(state: Any) -> bool:
        """Whether a ``requestState`` looks like one of :meth:`question`."""
        return isinstance(state, str) and state.startswith(PREFIX)

    def answered(
        self, context: str, digest: str, params: Mapping[str, Any]
    ) -> tuple[dict[str, Any], bool, dict[str, Any]] | None:
        """What a retry answers, the answer, and the parameters without them.

        None if the seal is broken, the question is old, or it was about another call.
        """
        try:
            raw = base64.urlsafe_b64decode(str(params["requestState"])[len(PREFIX) :].encode())
            seal, body = raw[:32], raw[32:]
            if not hmac.compare_digest(seal, hmac.digest(self._secret, body, "sha256")):
                return None
            state = json.loads(body)
        except (ValueError, KeyError):
            return None
        if state["c"] != context or state["d"] != digest or self._now() > state["exp"]:
            return None
        responses = dict(params.get("inputResponses") or {})
        allowed = _is_yes(responses.pop(KEY, None))
        onward = {k: v for k, v in params.items() if k not in ("requestState", "inputResponses")}
        if responses:
            onward["inputResponses"] = responses
        if state["s"] is not None:
            onward["requestState"] = state["s"]
        return dict(state["about"]), allowed, onward


def _is_yes(answer: Any) -> bool:
    if not isinstance(answer, Mapping) or answer.get("action") != "accept":
        return False
    content = answer.get("content")
    return isinstance(content, Mapping) and content.get("allow") is True
