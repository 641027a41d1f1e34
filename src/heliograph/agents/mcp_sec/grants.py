"""Allowed flows between servers: signed, expiring, revocable."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from heliograph.agents.core.canonical import canonical_bytes
from heliograph.agents.core.envelope import new_id
from heliograph.agents.core.identity import Identity
from heliograph.agents.mcp_sec.certificates import SecurityError, read_base64
from heliograph.agents.mcp_sec.trust import write_whole
from heliograph.errors import BadInput

__all__ = ["Grant", "GrantBook"]


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One allowed flow.

    Attributes:
        id: to revoke it by.
        source, target: servers, or ``*``.
        tool: glob of the target's tool names.
        context: conversation that it holds in; ``*`` for all.
        expires_at: seconds since 1970; 0 for never.
        kid: of the key that signed it.
        sig: over all the rest, in base64.
    """

    id: str
    source: str
    target: str
    tool: str = "*"
    context: str = "*"
    expires_at: float = 0.0
    kid: str = ""
    sig: str = ""

    def signed_bytes(self) -> bytes:
        """What the signature covers."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        del plain["sig"]
        return canonical_bytes(plain)

    def covers(self, source: str, target: str, tool: str, context: str, now: float) -> bool:
        """Whether it allows this flow now."""
        return (
            self.source in ("*", source)
            and self.target in ("*", target)
            and self.context in ("*", context)
            and fnmatchcase(tool, self.tool)
            and not (self.expires_at and now > self.expires_at)
        )


class _File(msgspec.Struct, forbid_unknown_fields=True):
    grants: list[Grant] = []
    revoked: list[str] = []
    v: int = 1


class GrantBook:
    """Grants of one gateway.

    Args:
        identity: signs; a grant by any other key counts for nothing.
        path: file that keeps lasting grants; approvals of one conversation stay in memory.
        now: seconds since 1970.

    Raises:
        BadInput: the file cannot be used.
    """

    def __init__(
        self, identity: Identity, path: str | Path | None = None, *, now: Callable[[], float] = time.time
    ) -> None:
        self._identity, self._now = identity, now
        self._path = None if path is None else Path(path)
        self._grants: dict[str, Grant] = {}
        self._revoked: set[str] = set()
        if self._path is not None and self._path.exists():
            try:
                found = msgspec.json.decode(self._path.read_bytes(), type=_File)
            except (OSError, msgspec.DecodeError, UnicodeError) as error:
                raise BadInput(f"cannot use the grants {path}: {error}") from None
            self._revoked = set(found.revoked)
            for grant in found.grants:
                self.add(grant)

    def issue(
        self,
        source: str,
        target: str,
        tool: str = "*",
        *,
        context: str = "*",
        seconds: float = 0.0,
        keep: bool = False,
    ) -> Grant:
        """A new grant.

        Args:
            source, target, tool, context: what it allows.
            seconds: that it holds; 0 for ever.
            keep: write it to the file.
        """
        expires = round(self._now() + seconds, 3) if seconds else 0.0
        bare = Grant(new_id(), source, target, tool, context, expires, self._identity.kid)
        signature = base64.b64encode(self._identity.sign(bare.signed_bytes())).decode()
        grant = msgspec.structs.replace(bare, sig=signature)
        self._prune()
        self._grants[grant.id] = grant
        if keep:
            self._save()
        return grant

    def add(self, grant: Grant) -> None:
        """Takes a grant that this gateway's key signed.

        Raises:
            BadInput: another key signed it, or it was changed.
        """
        try:
            if grant.kid != self._identity.kid:
                raise InvalidSignature
            signature = read_base64(grant.sig, 64, "the grant's signature")
            Ed25519PublicKey.from_public_bytes(self._identity.public).verify(signature, grant.signed_bytes())
        except (InvalidSignature, SecurityError):
            raise BadInput(
                f"the grant {grant.id} is not signed by this gateway's key {self._identity.kid}, or was changed; "
                "name the key that signed it as heliograph.mcpsec.key, or take it out of the file"
            ) from None
        self._grants[grant.id] = grant

    def revoke(self, grant_id: str) -> bool:
        """Withdraws a grant; False if there is none of this id."""
        self._revoked.add(grant_id)
        known = self._grants.pop(grant_id, None) is not None
        self._save()
        return known

    def find(self, source: str, target: str, tool: str, context: str) -> Grant | None:
        """A grant that allows a flow now."""
        now = self._now()
        for grant in self._grants.values():
            if grant.id not in self._revoked and grant.covers(source, target, tool, context, now):
                return grant
        return None

    def missing(self, sources: Iterable[str], target: str, tool: str, context: str) -> list[str]:
        """The sources from which nothing allows a flow."""
        return sorted(one for one in sources if one != target and self.find(one, target, tool, context) is None)

    def __len__(self) -> int:
        return len(self._grants)

    def _prune(self) -> None:
        now = self._now()
        self._grants = {k: g for k, g in self._grants.items() if not (g.expires_at and now > g.expires_at)}

    def _save(self) -> None:
        if self._path is None:
            return
        lasting = [grant for grant in self._grants.values() if grant.context == "*"]
        write_whole(self._path, msgspec.json.format(msgspec.json.encode(_File(lasting, sorted(self._revoked)))))
