"""Whom to believe: issuers' keys, revoked keys, and what each server was when it was first met."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from heliograph.agents.core.identity import Identity
from heliograph.agents.mcp_sec.certificates import CapabilityCertificate, SecurityError, ToolPin, key_id, read_base64
from heliograph.errors import BadInput

__all__ = ["Issuer", "ServerPin", "TrustStore", "write_whole"]


class Issuer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may sign certificates.

    Attributes:
        pub: Ed25519 key, 32 bytes in base64.
        expires_at: seconds since 1970; 0 for never.
        servers: ids that it may sign for; empty for all.
    """

    pub: str
    expires_at: float = 0.0
    servers: tuple[str, ...] = ()


class ServerPin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a server was when it was met.

    Attributes:
        server_id, kid, certificate: of its certificate; empty for a server without one.
        capabilities: of the certificate.
        tools: pins by name; from the certificate, or as first listed.
        approved_tools: tools that were approved by hand beside the certificate.
        since: seconds since 1970.
        self_signed: no issuer vouched for it, so a new key cannot be believed either.
    """

    server_id: str = ""
    kid: str = ""
    certificate: str = ""
    capabilities: tuple[str, ...] = ()
    tools: tuple[ToolPin, ...] = ()
    since: float = 0.0
    self_signed: bool = False
    approved_tools: tuple[ToolPin, ...] = ()

    @property
    def attested(self) -> bool:
        """Whether the server once had a valid certificate."""
        return bool(self.kid)


class _IssuersFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    issuers: dict[str, Issuer] = {}
    revoked: tuple[str, ...] = ()
    v: int = 1


class _PinsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    servers: dict[str, ServerPin] = {}
    v: int = 1


def write_whole(path: Path, data: bytes) -> None:
    """Replaces a file, whole or not at all."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class TrustStore:
    """Issuers, revoked keys, and pins.

    Args:
        issuers: by name; 32 bytes of a public key, or an :class:`Issuer`.
        revoked: key ids, of issuers or servers, that are believed no longer.
        pins: file that remembers servers, shared by several processes; in memory only by default.

    Raises:
        BadInput: a key or file that cannot be used.
    """

    def __init__(
        self,
        issuers: Mapping[str, bytes | Issuer] | None = None,
        *,
        revoked: tuple[str, ...] = (),
        pins: str | Path | None = None,
    ) -> None:
        self._issuers: dict[str, Issuer] = {}
        for name, key in (issuers or {}).items():
            found = key if isinstance(key, Issuer) else Issuer(base64.b64encode(key).decode())
            try:
                read_base64(found.pub, 32, f"the key of the issuer {name}")
            except SecurityError as error:
                raise BadInput(str(error)) from None
            self._issuers[name] = found
        self.revoked = set(revoked)
        self._path = None if pins is None else Path(pins)
        self._stamp: tuple[int, int] = (0, 0)
        self._pins: dict[str, ServerPin] = {}
        self._read_pins()

    @classmethod
    def load(cls, path: str | Path, *, pins: str | Path | None = None) -> TrustStore:
        """With the issuers of a JSON file: ``{"issuers": {NAME: {"pub": BASE64}}, "revoked": [KID]}``.

        Raises:
            BadInput: the file cannot be read, or is not such a file.
        """
        try:
            found = msgspec.json.decode(Path(path).read_bytes(), type=_IssuersFile)
        except (OSError, msgspec.DecodeError, UnicodeError) as error:
            raise BadInput(f"cannot use the trust file {path}: {error}") from None
        return cls(found.issuers, revoked=found.revoked, pins=pins)

    def save(self, path: str | Path) -> None:
        """Writes the issuers' file."""
        write_whole(Path(path), msgspec.json.encode(_IssuersFile(self._issuers, tuple(sorted(self.revoked)))))

    def revoke(self, kid: str) -> None:
        """Believes a key no longer."""
        self.revoked.add(kid)

    def check(
        self,
        certificate: CapabilityCertificate,
        server_id: str,
        *,
        now: float | None = None,
        skew_s: float = 30.0,
        self_signed: bool = False,
    ) -> None:
        """Whether a certificate is good, and meant for this server.

        Args:
            certificate: presented.
            server_id: that is expected.
            now: seconds since 1970.
            skew_s: that clocks may differ.
            self_signed: accept a certificate that the server signed itself.

        Raises:
            SecurityError: "server_id_mismatch", "not_yet_valid", "expired", "revoked", "unknown_issuer", "self_signed",
                "issuer_expired", "issuer_scope" or "signature".
        """
        now = time.time() if now is None else now
        if certificate.server_id != server_id:
            raise SecurityError(
                f"the certificate is of the server {certificate.server_id!r}, but {server_id!r} presents it",
                "server_id_mismatch",
            )
        self.check_times(certificate, now, skew_s)
        issuer = self._issuers.get(certificate.issued_by)
        if issuer is None:
            own = certificate.public
            if certificate.issued_by == certificate.server_id:
                certificate.check_signature(own)
                if self_signed:
                    return
                raise SecurityError(
                    f"{server_id} signed its certificate itself; have it signed by an issuer of the trust file, or pin "
                    "it by hand",
                    "self_signed",
                )
            raise SecurityError(
                f"no issuer {certificate.issued_by!r} is in the trust file; add its key if you trust it",
                "unknown_issuer",
            )
        public = read_base64(issuer.pub, 32, "the issuer's key")
        if key_id(public) in self.revoked:
            raise SecurityError(f"the key of the issuer {certificate.issued_by} is revoked", "revoked")
        if issuer.expires_at and now > issuer.expires_at + skew_s:
            raise SecurityError(f"the issuer {certificate.issued_by} has expired in the trust file", "issuer_expired")
        if issuer.servers and server_id not in issuer.servers:
            raise SecurityError(f"the issuer {certificate.issued_by} may not sign for {server_id}", "issuer_scope")
        certificate.check_signature(public)

    def check_times(self, certificate: CapabilityCertificate, now: float, skew_s: float = 30.0) -> None:
        """Whether it is valid now and its key not revoked; cheap enough for every message.

        Raises:
            SecurityError: "not_yet_valid", "expired" or "revoked".
        """
        if now < certificate.issued_at - skew_s:
            raise SecurityError(f"the certificate of {certificate.server_id} is not valid yet", "not_yet_valid")
        if now > certificate.expires_at + skew_s:
            raise SecurityError(f"the certificate of {certificate.server_id} has expired; renew it", "expired")
        if certificate.key.kid in self.revoked:
            raise SecurityError(f"the key {certificate.key.kid} of {certificate.server_id} is revoked", "revoked")

    def pin(self, name: str) -> ServerPin | None:
        """What is remembered of a server."""
        self._read_pins()
        return self._pins.get(name)

    @property
    def pins(self) -> dict[str, ServerPin]:
        """All that is remembered."""
        self._read_pins()
        return dict(self._pins)

    def remember(self, name: str, pin: ServerPin | None) -> None:
        """Pins a server, or forgets it with None; other processes with the same file see it."""
        with self._locked():
            self._read_pins()
            if pin is None:
                self._pins.pop(name, None)
            else:
                self._pins[name] = pin
            if self._path is not None:
                write_whole(self._path, msgspec.json.format(msgspec.json.encode(_PinsFile(self._pins))))
                self._stamp = self._stat()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self._path is None:
            yield
            return
        lock = self._path.with_name(self._path.name + ".lock")
        try:
            file = lock.open("w")
        except OSError as error:
            raise BadInput(f"cannot write pins beside {self._path}: {error.strerror}") from None
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _stat(self) -> tuple[int, int]:
        assert self._path is not None
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return (0, 0)
        return found.st_mtime_ns, found.st_ino

    def _read_pins(self) -> None:
        if self._path is None:
            return
        stamp = self._stat()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        if stamp == (0, 0):
            self._pins = {}
            return
        try:
            self._pins = msgspec.json.decode(self._path.read_bytes(), type=_PinsFile).servers
        except (OSError, msgspec.DecodeError, UnicodeError) as error:
            raise BadInput(
                f"cannot use the pins {self._path}: {error}; restore the file, since without it a downgrade would pass"
            ) from None


def new_issuer_file(path: Path, name: str, identity: Identity) -> dict[str, Any]:
    """Adds an issuer to a trust file, or begins one; returns the entry."""
    store = TrustStore.load(path) if path.exists() else TrustStore()
    entry = Issuer(base64.b64encode(identity.public).decode())
    store._issuers[name] = entry
    store.save(path)
    plain: dict[str, Any] = json.loads(msgspec.json.encode(entry))
    return plain
