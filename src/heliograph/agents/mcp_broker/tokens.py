"""Who calls: checked on every request, never remembered (stages 1 and 2 of the paper)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, Protocol

from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.identity import IdentityError, Principal, TokenVerifier
from heliograph.agents.core.interceptor import CallNext, Rejected
from heliograph.clock import Clock, WallClock
from heliograph.errors import BadInput

__all__ = [
    "IDENTIFIED",
    "INVALID_IDENTITY_CODE",
    "TOKEN_KEY",
    "ReloadingKeys",
    "TokenIdentity",
    "caller_of",
    "without_meta",
]

TOKEN_KEY = "dev.heliograph/token"
"""Where a caller without HTTP headers puts its bearer token, in ``_meta``. It never goes on."""

INVALID_IDENTITY_CODE = -32600

_CALLER: ContextVar[Principal | None] = ContextVar("heliograph_broker_caller", default=None)


IDENTIFIED: ContextVar[list[Principal] | None] = ContextVar("heliograph_broker_identified", default=None)
"""A list that an outer stage, such as the audit, may set; whom this request was found to come from is put there."""


def caller_of(env: Envelope) -> Principal:
    """The caller as :class:`TokenIdentity` or the gateway's front found it; without either, the envelope's sender."""
    found = _CALLER.get()
    if found is None:
        found = _front()
    return found or Principal(env.sender, env.tenant)


def _front() -> Principal | None:
    from heliograph.agents.core.gateway import current_call

    call = current_call()
    return call.principal if call is not None else None


def without_meta(payload: Any, *keys: str) -> Any:
    """The same message with these keys of ``_meta`` left out."""
    if not isinstance(payload, Mapping):
        return payload
    params = payload.get("params")
    meta = params.get("_meta") if isinstance(params, Mapping) else None
    if not isinstance(params, Mapping) or not isinstance(meta, Mapping) or not any(key in meta for key in keys):
        return payload
    kept = {key: value for key, value in meta.items() if key not in keys}
    return {**payload, "params": {**params, "_meta": kept}}


class Verifier(Protocol):
    """Checks a bearer token; raises IdentityError."""

    def verify(self, token: str) -> Principal:
        """The caller that the token names."""
        ...


class ReloadingKeys:
    """A token verifier whose key file is read anew when a token has an unknown key id, at most once in a while.

    Args:
        path: of the key set (JWKS).
        audience, issuer, leeway_s: as in :class:`~heliograph.agents.core.identity.TokenVerifier`.
        least_s: seconds between two readings, so that forged key ids cannot keep the disk busy.
        clock: for ``least_s``.

    Raises:
        BadInput: the key set cannot be used.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        audience: str,
        issuer: str,
        leeway_s: float = 30.0,
        least_s: float = 10.0,
        clock: Clock | None = None,
    ) -> None:
        self._path, self._least_s, self._clock = path, least_s, clock or WallClock()
        self._settings: dict[str, Any] = {"audience": audience, "issuer": issuer, "leeway_s": leeway_s}
        self._verifier = TokenVerifier.from_file(path, **self._settings)
        self._read_at = self._clock.now()

    def verify(self, token: str) -> Principal:
        """The caller that a token names.

        Raises:
            IdentityError: refused, also by keys read anew.
        """
        try:
            return self._verifier.verify(token)
        except IdentityError as error:
            if error.reason != "unknown_key" or self._clock.now() - self._read_at < self._least_s:
                raise
            self._read_at = self._clock.now()
            try:
                self._verifier = TokenVerifier.from_file(self._path, **self._settings)
            except BadInput:  # half-written: the old keys stay
                raise error from None
            return self._verifier.verify(token)


class TokenIdentity:
    """Interceptor: finds the caller of each request and refuses those without one.

    Over HTTP the gateway's front has checked the bearer token; here its expiry is checked again, since a stream may
    outlive it. Callers on a pipe send their token as ``_meta["dev.heliograph/token"]``, which needs ``verifier``.

    Args:
        verifier: of tokens in ``_meta``.
        anonymous: "deny" or "allow" requests without any identity.
        require_tenant: refuse callers without a tenant.
        leeway_s: difference of clocks.
        now: seconds since 1970.
        name: in the chain.
    """

    def __init__(
        self,
        verifier: Verifier | None = None,
        *,
        anonymous: Literal["deny", "allow"] = "deny",
        require_tenant: bool = False,
        leeway_s: float = 30.0,
        now: Callable[[], float] = time.time,
        name: str = "token_identity",
    ) -> None:
        if anonymous not in ("deny", "allow"):
            raise BadInput(f"anonymous callers: deny or allow; got {anonymous!r}")
        self.name, self._verifier, self._anonymous = name, verifier, anonymous
        self._require_tenant, self._leeway_s, self._now = require_tenant, leeway_s, now

    async def __call__(self, env: Envelope, call_next: CallNext) -> Envelope:
        """Names sender and tenant, or refuses with -32600 and ``data.reason``."""
        principal = self._identify(env)
        onward = env.replace(payload=without_meta(env.payload, TOKEN_KEY))
        if principal is not None:
            onward = onward.replace(sender=principal.subject, tenant=principal.tenant)
        seen = IDENTIFIED.get()
        if seen is not None and principal is not None:
            seen.append(principal)
        token = _CALLER.set(principal)
        try:
            return await call_next(onward)
        finally:
            _CALLER.reset(token)

    def _identify(self, env: Envelope) -> Principal | None:
        front = _front()
        params = env.payload.get("params") if isinstance(env.payload, Mapping) else None
        meta = params.get("_meta") if isinstance(params, Mapping) else None
        given = meta.get(TOKEN_KEY) if isinstance(meta, Mapping) else None
        principal = front
        if given is not None:
            if self._verifier is None:
                raise _refused("tokens inside messages are not accepted here; use the Authorization header", "token")
            try:
                principal = self._verifier.verify(str(given))
            except IdentityError as error:
                raise _refused(str(error), error.reason) from None
            if front is not None and (front.subject, front.tenant) != (principal.subject, principal.tenant):
                raise _refused("the message's token is not that of the connection", "mismatch")
        if principal is None:
            if self._anonymous == "deny":
                raise _refused("who calls? A bearer token is needed", "anonymous")
            return None
        if principal.expires_at is not None and self._now() > principal.expires_at + self._leeway_s:
            raise _refused("the token has expired; get a new one and call again", "expired")
        if self._require_tenant and not principal.tenant:
            raise _refused("the token names no tenant", "tenant")
        return principal


def _refused(why: str, reason: str) -> Rejected:
    return Rejected(why, code=INVALID_IDENTITY_CODE, data={"reason": reason})
