"""What a server may do, signed by an issuer: capabilities, tools with the hashes of their words, and a key.

A certificate is canonical JSON (RFC 8785) under an Ed25519 signature over all of it but the signature.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from heliograph.agents.core.canonical import canonical_bytes, canonical_hash
from heliograph.agents.core.identity import Identity
from heliograph.errors import BadInput, HeliographError

__all__ = [
    "ALIAS",
    "CAPABILITIES",
    "EXTENSION",
    "CapabilityCertificate",
    "PublicKey",
    "SecurityError",
    "ToolPin",
    "key_id",
    "pin_of",
    "pins_of",
    "read_base64",
]

EXTENSION = "dev.heliograph/mcpsec"
"""Id of the extension, and key under which its fields ride in ``_meta``."""
ALIAS = "mcpsec"
"""Another spelling of the key, accepted when reading."""
CAPABILITIES = ("tools", "resources", "prompts", "sampling", "elicitation", "roots")
SideEffect = Literal["read", "write", "external"]


class SecurityError(HeliographError):
    """A certificate or message is refused.

    Attributes:
        reason: in one word for programs: "expired", "signature", "replay", ...
    """

    exit_code = 1

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def key_id(public: bytes) -> str:
    """Short name of a public key."""
    return hashlib.blake2b(public, digest_size=12).hexdigest()


def read_base64(text: Any, size: int, what: str) -> bytes:
    """The bytes of a base64 text in its one spelling.

    Raises:
        SecurityError: another type, length or spelling ("malformed").
    """
    try:
        raw = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != size or base64.b64encode(raw).decode() != text:
        raise SecurityError(f"{what} is not the base64 of {size} bytes", "malformed")
    return raw


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A field that is not known is refused: it would be signed, and mean nothing here."""


class PublicKey(_Strict, frozen=True):
    """The server's key.

    Attributes:
        alg: always Ed25519.
        kid: id, made of the key.
        pub: 32 bytes in base64.
    """

    alg: Literal["Ed25519"]
    kid: str
    pub: str


class ToolPin(_Strict, frozen=True):
    """One tool as it was approved.

    Attributes:
        name: at its server.
        schema_sha256: of its input schema.
        description_sha256: of its description.
        side_effect: "read" changes nothing, "write" changes something at the server, "external" reaches beyond it.
        rest_sha256: of title, annotations and output schema; older protocol versions lack them, and it is not compared
            there. Empty where it was not pinned.
    """

    name: str
    schema_sha256: str
    description_sha256: str
    side_effect: SideEffect = "write"
    rest_sha256: str = ""


def _sha256(value: Any) -> str:
    try:
        return hashlib.sha256(canonical_bytes(value)).hexdigest()
    except BadInput:  # an integer beyond 2**53 in a schema: no canonical form, but one text
        return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def pin_of(tool: Mapping[str, Any], side_effect: SideEffect | None = None) -> ToolPin:
    """The pin of an entry of a tool list.

    Args:
        tool: as on the wire.
        side_effect: of it; by default "read" if its annotations say that it only reads, otherwise "write".
    """
    hints = tool.get("annotations")
    hints = hints if isinstance(hints, Mapping) else {}
    if side_effect is None:
        side_effect = "read" if hints.get("readOnlyHint") is True else "write"
    rest = {key: tool[key] for key in ("title", "annotations", "outputSchema") if tool.get(key) is not None}
    return ToolPin(
        str(tool.get("name", "")),
        _sha256(tool.get("inputSchema")),
        _sha256(tool.get("description")),
        side_effect,
        _sha256(rest),
    )


def pins_of(tools: Iterable[Any], effects: Mapping[str, SideEffect] | None = None) -> tuple[ToolPin, ...]:
    """Pins of a whole list; what has no name is left out."""
    known = dict(effects or {})
    named = [tool for tool in tools if isinstance(tool, Mapping) and isinstance(tool.get("name"), str)]
    return tuple(pin_of(tool, known.get(tool["name"])) for tool in named)


class CapabilityCertificate(_Strict, frozen=True):
    """A server's licence.

    Attributes:
        v: of the format.
        server_id: the server that may present it.
        name: for people.
        capabilities: of :data:`CAPABILITIES`.
        tools: as approved.
        issued_by: name of the issuer.
        issued_at, expires_at: seconds since 1970.
        key: of the server.
        sig: of the issuer, in base64.
    """

    v: Literal[1]
    server_id: str
    name: str
    capabilities: tuple[Literal["tools", "resources", "prompts", "sampling", "elicitation", "roots"], ...]
    tools: tuple[ToolPin, ...]
    issued_by: str
    issued_at: float
    expires_at: float
    key: PublicKey
    sig: str = ""

    @classmethod
    def issue(
        cls,
        server_id: str,
        public: bytes,
        issuer: Identity,
        *,
        issued_by: str,
        capabilities: Sequence[str],
        tools: Iterable[ToolPin] = (),
        name: str = "",
        days: float = 90.0,
        now: float | None = None,
    ) -> CapabilityCertificate:
        """A new certificate.

        Args:
            server_id: the server.
            public: its Ed25519 key, 32 bytes.
            issuer: signs.
            issued_by: the issuer's name in trust files.
            capabilities: of :data:`CAPABILITIES`.
            tools: pins; see :func:`pins_of`.
            name: for people; the id by default.
            days: that it is valid.
            now: seconds since 1970.

        Raises:
            BadInput: a capability or key that cannot be, or no days.
        """
        unknown = sorted(set(capabilities) - set(CAPABILITIES))
        if unknown:
            raise BadInput(f"capabilities are of {', '.join(CAPABILITIES)}; got {', '.join(unknown)}")
        if not server_id or not issued_by or not days > 0:
            raise BadInput("a certificate needs a server id, an issuer's name and more than 0 days")
        pins = tuple(sorted(tools, key=lambda pin: pin.name))
        names = [pin.name for pin in pins]
        if len(set(names)) < len(names):
            raise BadInput("a certificate names each tool once; the list has a name twice")
        try:
            Ed25519PublicKey.from_public_bytes(public)
        except ValueError:
            raise BadInput("a server's key is an Ed25519 public key of 32 bytes") from None
        began = round(time.time() if now is None else now, 3)
        bare = cls(
            1,
            server_id,
            name or server_id,
            tuple(one for one in CAPABILITIES if one in capabilities),  # type: ignore[misc]
            pins,
            issued_by,
            began,
            round(began + days * 86400, 3),
            PublicKey("Ed25519", key_id(public), base64.b64encode(public).decode()),
        )
        return msgspec.structs.replace(bare, sig=base64.b64encode(issuer.sign(bare.signed_bytes())).decode())

    def signed_bytes(self) -> bytes:
        """What the signature covers."""
        plain = msgspec.to_builtins(self)
        del plain["sig"]
        return canonical_bytes(plain)

    @property
    def public(self) -> bytes:
        """The server's key, 32 bytes."""
        return read_base64(self.key.pub, 32, "the server's key")

    @property
    def digest(self) -> str:
        """BLAKE2b-256 of the whole."""
        return canonical_hash(self.to_dict())

    @property
    def pins(self) -> dict[str, ToolPin]:
        """Tools by name."""
        return {pin.name: pin for pin in self.tools}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @classmethod
    def from_dict(cls, data: Any) -> CapabilityCertificate:
        """From plain JSON values; the signature is not checked here.

        Raises:
            SecurityError: not a certificate ("malformed"); the message names the field.
        """
        try:
            found = msgspec.convert(data, cls)
        except (msgspec.ValidationError, RecursionError) as error:
            raise SecurityError(f"not a capability certificate: {error}", "malformed") from None
        if found.key.kid != key_id(found.public):
            raise SecurityError("the certificate's kid is not its key's", "malformed")
        return found

    @classmethod
    def load(cls, path: str | Path) -> CapabilityCertificate:
        """From a JSON file.

        Raises:
            BadInput: the file cannot be read, or is not JSON.
            SecurityError: not a certificate.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(f"cannot read the certificate {path}: {error}") from None
        return cls.from_dict(data)

    def check_signature(self, public: bytes) -> None:
        """Whether this key signed it.

        Raises:
            SecurityError: it did not ("signature").
        """
        signature = read_base64(self.sig, 64, "the certificate's signature")
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(signature, self.signed_bytes())
        except (InvalidSignature, BadInput):
            raise SecurityError(
                f"the certificate of {self.server_id} is not signed by {self.issued_by}'s key, or was changed",
                "signature",
            ) from None
