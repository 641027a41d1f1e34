"""Who sent a message: Ed25519 keys and signatures, refusal of replays, and bearer tokens.

A signature covers the canonical JSON (RFC 8785) of the whole envelope with its key id, nonce and time. A verifier keeps
the nonces of the last seconds in a :class:`NonceStore` of bounded size; when it must forget one early it refuses
everything older from that key, so a replay never passes for want of memory.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from heliograph.agents.core.canonical import canonical_bytes
from heliograph.agents.core.envelope import Envelope, Signature
from heliograph.errors import BadInput, HeliographError

__all__ = [
    "Identity",
    "IdentityError",
    "KeyRing",
    "NonceStore",
    "Principal",
    "StaticTokens",
    "TokenVerifier",
    "verify_envelope",
]

ALGORITHMS = ("RS256", "ES256", "EdDSA")
"""Of tokens. Symmetric ones are left out: whoever can verify them can forge them."""


class IdentityError(HeliographError):
    """A signature or token is refused.

    Attributes:
        reason: in one word for programs: "signature", "replay", "expired", "unknown_key", "token", "audience", ...
    """

    exit_code = 1

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def _kid(public: bytes) -> str:
    return hashlib.blake2b(public, digest_size=12).hexdigest()


class Identity:
    """A private Ed25519 key and what it signs.

    Args:
        private: the key.
    """

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public: bytes = private.public_key().public_bytes_raw()
        self.kid: str = _kid(self.public)

    @classmethod
    def generate(cls) -> Identity:
        """A new key from the system's entropy."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The key of 32 secret bytes; the same for the same bytes.

        Raises:
            BadInput: not 32 bytes.
        """
        if len(seed) != 32:
            raise BadInput(f"an Ed25519 seed has 32 bytes; got {len(seed)}")
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: str | Path) -> Identity:
        """From a PEM file that :meth:`save` or ``openssl genpkey -algorithm ed25519`` wrote.

        Raises:
            BadInput: the file cannot be read or holds another kind of key.
        """
        try:
            key = serialization.load_pem_private_key(Path(path).read_bytes(), password=None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise BadInput(f"{path} is not a readable PEM private key: {error}") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise BadInput(f"{path} holds a {type(key).__name__}; an Ed25519 key is needed")
        return cls(key)

    def save(self, path: str | Path) -> None:
        """Writes the key as PEM, readable by its owner only; an existing file is never replaced.

        Raises:
            BadInput: the file exists or cannot be written.
        """
        pem = self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise BadInput(f"cannot write the key to {path}: {error.strerror}") from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of the signature."""
        return self._private.sign(message)

    def sign_envelope(
        self, env: Envelope, *, now: Callable[[], float] = time.time, nonce: str | None = None
    ) -> Envelope:
        """The envelope with a signature over all of it.

        Args:
            env: to sign; a signature it has is replaced.
            now: seconds since 1970.
            nonce: 32 hexadecimal digits; random by default.
        """
        unsigned = Signature(kid=self.kid, nonce=nonce or secrets.token_hex(16), time=now())
        value = self.sign(canonical_bytes(env.replace(sig=unsigned).to_builtins()))
        sig = Signature(unsigned.kid, unsigned.nonce, unsigned.time, base64.b64encode(value).decode())
        return env.replace(sig=sig)


class KeyRing:
    """Public keys by key id, with the name of their owner.

    Args:
        owners: raw public keys by name.
    """

    def __init__(self, owners: Mapping[str, bytes] | None = None) -> None:
        self._keys: dict[str, tuple[str, Ed25519PublicKey]] = {}
        for owner, public in (owners or {}).items():
            self.add(owner, public)

    def add(self, owner: str, public: bytes) -> str:
        """Trusts a key; returns its id.

        Raises:
            BadInput: not the 32 bytes of an Ed25519 public key.
        """
        try:
            key = Ed25519PublicKey.from_public_bytes(public)
        except ValueError:
            raise BadInput(f"the key of {owner} is not an Ed25519 public key of 32 bytes") from None
        self._keys[_kid(public)] = (owner, key)
        return _kid(public)

    def revoke(self, kid: str) -> None:
        """Trusts a key no longer; an unknown one is no error."""
        self._keys.pop(kid, None)

    def verify(self, kid: str, message: bytes, signature: bytes) -> str:
        """The owner of the key that made this signature.

        Raises:
            IdentityError: unknown key, or the signature is not its.
        """
        if kid not in self._keys:
            raise IdentityError(f"no trusted key has the id {kid}", "unknown_key")
        owner, key = self._keys[kid]
        try:
            key.verify(signature, message)
        except InvalidSignature:
            raise IdentityError(
                f"the signature is not by {owner}'s key {kid}, or the message changed", "signature"
            ) from None
        return owner


class NonceStore:
    """Remembers nonces so that a message counts once.

    Args:
        window_s: seconds that a message stays valid after it was signed, and may lie ahead of our clock.
        capacity: nonces kept a key.
        max_keys: keys kept.
    """

    def __init__(self, *, window_s: float = 30.0, capacity: int = 1000, max_keys: int = 10_000) -> None:
        if not window_s > 0 or capacity < 1 or max_keys < 1:
            raise BadInput(f"a nonce store needs a window above 0 and room; got {window_s:g} s, {capacity}, {max_keys}")
        self.window_s, self.capacity, self.max_keys = window_s, capacity, max_keys
        self._seen: OrderedDict[str, OrderedDict[str, float]] = OrderedDict()
        self._floor: dict[str, float] = {}
        self._any_floor = -1.0

    def admit(self, kid: str, nonce: str, signed_at: float, now: float) -> None:
        """Records a nonce.

        Raises:
            IdentityError: seen before ("replay"), or signed too long ago or too far ahead ("expired").
        """
        if not abs(now - signed_at) <= self.window_s:
            raise IdentityError(
                f"signed {now - signed_at:.1f} s ago; messages are valid for {self.window_s:g} s (check both clocks)",
                "expired",
            )
        seen = self._seen.get(kid)
        if seen is None:
            if len(self._seen) >= self.max_keys:
                gone, nonces = self._seen.popitem(last=False)
                self._any_floor = max(self._any_floor, self._floor.pop(gone, -1.0), max(nonces.values(), default=-1.0))
            seen = self._seen[kid] = OrderedDict()
        self._seen.move_to_end(kid)
        if nonce in seen:
            raise IdentityError(f"the nonce {nonce} was used before", "replay")
        if signed_at <= max(self._floor.get(kid, -1.0), self._any_floor):
            raise IdentityError("older than the oldest message still remembered, so it may be a replay", "replay")
        while seen and next(iter(seen.values())) < now - self.window_s:
            seen.popitem(last=False)
        if len(seen) >= self.capacity:
            _, oldest = seen.popitem(last=False)
            self._floor[kid] = max(self._floor.get(kid, -1.0), oldest)
        seen[nonce] = signed_at

    def __len__(self) -> int:
        return sum(len(nonces) for nonces in self._seen.values())


def verify_envelope(env: Envelope, keys: KeyRing, nonces: NonceStore, *, now: Callable[[], float] = time.time) -> str:
    """The owner of the key that signed the envelope; a second call with the same envelope is refused as a replay.

    Raises:
        IdentityError: unsigned, changed, by an unknown key, too old, or seen before.
    """
    if env.sig is None:
        raise IdentityError("the message is not signed", "unsigned")
    try:
        value = base64.b64decode(env.sig.value, validate=True)
    except (binascii.Error, ValueError):
        raise IdentityError("the signature is not base64", "signature") from None
    if base64.b64encode(value).decode() != env.sig.value:  # base64 has spare bits at its end
        raise IdentityError("the signature is not in its one spelling", "signature")
    bare = env.replace(sig=Signature(env.sig.kid, env.sig.nonce, env.sig.time))
    owner = keys.verify(env.sig.kid, canonical_bytes(bare.to_builtins()), value)
    # After the signature, so that a forger cannot use up another's nonces.
    nonces.admit(env.sig.kid, env.sig.nonce, env.sig.time, now())
    return owner


@dataclass(frozen=True)
class Principal:
    """Who calls.

    Attributes:
        subject: user or program.
        tenant: on whose behalf.
        scopes, roles: what was granted.
        expires_at: seconds since 1970; None for never.
        issuer: of the token.
    """

    subject: str
    tenant: str = ""
    scopes: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    expires_at: float | None = None
    issuer: str = ""


class StaticTokens:
    """Bearer tokens from a list; only their SHA-256 is kept.

    Args:
        tokens: principals by token.
    """

    def __init__(self, tokens: Mapping[str, Principal]) -> None:
        for token in tokens:
            if len(token) < 16:
                raise BadInput("a bearer token has 16 characters or more; make one with: openssl rand -hex 32")
        self._by_hash = {hashlib.sha256(token.encode()).digest(): who for token, who in tokens.items()}

    def verify(self, token: str) -> Principal:
        """The caller of this token.

        Raises:
            IdentityError: unknown.
        """
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        found: Principal | None = None
        for known, principal in self._by_hash.items():  # all of them, so that the time tells nothing
            if hmac.compare_digest(known, digest):
                found = principal
        if found is None:
            raise IdentityError("the bearer token is not known", "token")
        return found


@dataclass
class TokenVerifier:
    """Checks JSON Web Tokens against a set of public keys (JWKS), on every request anew.

    Args:
        jwks: the key set as parsed JSON.
        audience: that the token must name: this gateway.
        issuer: that must have made it.
        leeway_s: seconds of clock difference allowed.
        tenant_claim, roles_claim: where the token says so.
        now: seconds since 1970.

    Raises:
        BadInput: no usable key.
    """

    jwks: Mapping[str, Any]
    audience: str
    issuer: str
    leeway_s: float = 30.0
    tenant_claim: str = "tenant_id"
    roles_claim: str = "roles"
    now: Callable[[], float] = time.time
    _keys: dict[str, jwt.PyJWK] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Reads the keys; symmetric ones and unknown kinds are left out."""
        if not self.audience or not self.issuer:
            raise BadInput("token checks need an audience (this gateway) and an issuer; without them any token passes")
        for entry in self.jwks.get("keys", ()):
            if isinstance(entry, Mapping) and isinstance(entry.get("kid"), str) and entry.get("kty") != "oct":
                try:
                    self._keys[entry["kid"]] = jwt.PyJWK(dict(entry))
                except jwt.exceptions.PyJWTError:
                    continue
        if not self._keys:
            raise BadInput("the key set holds no public key with a kid; RSA, EC P-256 and Ed25519 keys are usable")

    @classmethod
    def from_file(cls, path: str | Path, *, audience: str, issuer: str, leeway_s: float = 30.0) -> TokenVerifier:
        """With the key set in a JSON file.

        Raises:
            BadInput: the file cannot be read or has no usable key.
        """
        try:
            jwks = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(f"cannot read the key set {path}: {error}") from None
        if not isinstance(jwks, Mapping):
            raise BadInput(f'{path} is not a key set: it needs {{"keys": [...]}}')
        return cls(jwks, audience=audience, issuer=issuer, leeway_s=leeway_s)

    def verify(self, token: str) -> Principal:
        """The caller that a token names.

        Raises:
            IdentityError: malformed, unsigned, by another key, expired, or for another audience.
        """
        try:
            header = jwt.get_unverified_header(token)
        except jwt.exceptions.PyJWTError:
            raise IdentityError("the bearer token is not a JSON Web Token", "token") from None
        if header.get("alg") not in ALGORITHMS:
            raise IdentityError(
                f"tokens are signed with one of {', '.join(ALGORITHMS)}; not {header.get('alg')}", "algorithm"
            )
        key = self._keys.get(str(header.get("kid", "")))
        if key is None:
            raise IdentityError("no trusted key has this token's kid", "unknown_key")
        if key.algorithm_name != header["alg"]:
            raise IdentityError("the token's algorithm is not its key's", "algorithm")
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[str(key.algorithm_name)],
                audience=self.audience,
                issuer=self.issuer,
                options={
                    "require": ["exp", "iss", "aud", "sub"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.exceptions.InvalidAudienceError:
            raise IdentityError("the token is meant for another audience", "audience") from None
        except jwt.exceptions.PyJWTError as error:
            raise IdentityError(f"the token is refused: {error}", "token") from None
        self._check_times(claims)
        return Principal(
            subject=str(claims["sub"]),
            tenant=str(claims.get(self.tenant_claim, "")),
            scopes=frozenset(_words(claims.get("scope", claims.get("scp", "")))),
            roles=frozenset(_words(claims.get(self.roles_claim, ()))),
            expires_at=float(claims["exp"]),
            issuer=str(claims["iss"]),
        )

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        now = self.now()
        for name, early in (("exp", False), ("nbf", True), ("iat", True)):
            value = claims.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise IdentityError(f"the token's {name} is not a number", "token")
            if not early and now > value + self.leeway_s:
                raise IdentityError("the token has expired", "expired")
            if early and now < value - self.leeway_s:
                raise IdentityError("the token is not valid yet", "expired")


def _words(value: Any) -> Sequence[str]:
    if isinstance(value, str):
        return value.split()
    return [str(item) for item in value] if isinstance(value, list | tuple) else []
