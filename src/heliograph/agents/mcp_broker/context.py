"""Tells the tool server on whose behalf it works, signed so that it can see that the gateway said so (stage 4)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heliograph.agents.core.canonical import canonical_bytes
from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.interceptor import CallNext
from heliograph.agents.mcp_broker.tokens import TOKEN_KEY, caller_of, without_meta
from heliograph.errors import BadInput

__all__ = ["CONTEXT_KEY", "CallerContext", "ContextCarrier", "verify_context"]

CONTEXT_KEY = "dev.heliograph/context"
"""Key of ``_meta`` for it; what a caller puts there is thrown away."""


@dataclass(frozen=True)
class CallerContext:
    """What a server learns.

    Attributes:
        tenant, user: on whose behalf.
        scopes: that the caller has.
        session: "" in the stateless era.
        request_id: of the gateway.
        deadline_ms: that are left; None for no limit.
        traceparent: W3C trace context.
    """

    tenant: str
    user: str
    scopes: tuple[str, ...]
    session: str
    request_id: str
    deadline_ms: float | None
    traceparent: str


class ContextCarrier:
    """Interceptor: puts the caller's context into the request, after removing whatever the caller had put there.

    Args:
        secret: shared with the servers, 16 bytes or more; without one the context is not signed.
        carry: False only removes.
        name: in the chain.

    Raises:
        BadInput: a secret that is too short.
    """

    def __init__(self, secret: bytes = b"", *, carry: bool = True, name: str = "context") -> None:
        if secret and len(secret) < 16:
            raise BadInput(f"the secret for signing contexts has 16 bytes or more; got {len(secret)}")
        self.name, self._secret, self._carry = name, secret, carry

    async def __call__(self, env: Envelope, call_next: CallNext) -> Envelope:
        """Passes the request on with its context."""
        payload = without_meta(env.payload, CONTEXT_KEY, TOKEN_KEY)
        if self._carry and isinstance(payload, Mapping) and "method" in payload:
            who = caller_of(env)
            body: dict[str, Any] = {
                "tenant": who.tenant,
                "user": who.subject,
                "scopes": sorted(who.scopes),
                "session": env.conv,
                "request_id": env.id,
                "traceparent": env.meta.traceparent,
            }
            if env.meta.deadline_ms is not None:
                body["deadline_ms"] = round(env.meta.deadline_ms)
            if self._secret:
                body["sig"] = _sign(body, self._secret)
            params = dict(payload.get("params") or {})
            params["_meta"] = {**(params.get("_meta") or {}), CONTEXT_KEY: body}
            payload = {**payload, "params": params}
        return await call_next(env.replace(payload=payload))


def verify_context(meta: Mapping[str, Any], secret: bytes) -> CallerContext:
    """For tool servers: the context of a request, if the gateway signed it.

    Args:
        meta: the request's ``_meta``.
        secret: shared with the gateway.

    Raises:
        BadInput: absent, malformed, or signed with another secret.
    """
    body = meta.get(CONTEXT_KEY)
    if not isinstance(body, Mapping) or not isinstance(body.get("sig"), str):
        raise BadInput(f"this request has no signed {CONTEXT_KEY}; let it come through the gateway")
    plain = {key: value for key, value in body.items() if key != "sig"}
    if not hmac.compare_digest(_sign(plain, secret), body["sig"]):
        raise BadInput("the context's signature is not that of the gateway; check that both have the same secret")
    try:
        deadline = plain.get("deadline_ms")
        return CallerContext(
            str(plain["tenant"]),
            str(plain["user"]),
            tuple(str(scope) for scope in plain["scopes"]),
            str(plain["session"]),
            str(plain["request_id"]),
            None if deadline is None else float(deadline),
            str(plain["traceparent"]),
        )
    except (KeyError, TypeError, ValueError):
        raise BadInput("the context lacks a field; gateway and server differ in version") from None


def _sign(body: Mapping[str, Any], secret: bytes) -> str:
    return hmac.new(secret, canonical_bytes(dict(body)), hashlib.sha256).hexdigest()
