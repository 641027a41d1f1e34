"""Messages that both sides can authenticate: a key for each client and server, and a code for each message.

The server's certificate key signs an X25519 offer; the client answers with an X25519 key of its own in every request,
so that a server without sessions, or another worker of it, derives the same key. The code of a message is HMAC-SHA256
over canonical JSON of its kind, method, content and fields. An answer names the nonce of its request, since transports
renumber JSON-RPC ids.

What hops and transports rewrite is not covered: the extension's own fields, the per-request fields of the stateless
era, progress tokens and trace context, all of them in ``_meta``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from heliograph.agents.core.canonical import canonical_bytes
from heliograph.agents.core.identity import Identity, IdentityError, NonceStore
from heliograph.agents.mcp_sec.certificates import (
    ALIAS,
    EXTENSION,
    CapabilityCertificate,
    SecurityError,
    read_base64,
)
from heliograph.agents.mcp_sec.nonces import ReplayWindow
from heliograph.errors import BadInput

__all__ = ["ClientChannel", "KeyOffer", "MessageAuth", "Pending", "ServerChannel", "own_fields", "without_fields"]

Kind = Literal["request", "result", "error"]
SEQ_WINDOW = 1000
"""How far a message may come after later ones of the same key: concurrent requests overtake each other."""
_UNCOVERED = frozenset({EXTENSION, ALIAS, "progressToken", "traceparent", "tracestate", "baggage"})
_HOP_PREFIX = "io.modelcontextprotocol/"


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Unknown fields would not be covered by the code."""


class KeyShare(_Strict, frozen=True):
    """The client's part of a key: X25519 key and nonce, 32 bytes each in base64, and the protocol's version."""

    pub: str
    nonce: str
    version: str


class MessageAuth(_Strict, frozen=True):
    """What rides in a message's ``_meta``.

    Attributes:
        v: of the format.
        server_id, client_id: the two sides.
        kid: of the key that both derived.
        ts: seconds since 1970 on the sender's clock.
        nonce: 32 random bytes in base64.
        seq: of the sender, growing.
        origin: "user", "host", "server:ID" or "derived:ID,ID".
        mac: HMAC-SHA256 in base64.
        re: nonce of the request that this answers.
        kx: the client's part of the key, in requests.
    """

    v: int
    server_id: str
    client_id: str
    kid: str
    ts: float
    nonce: str
    seq: int
    origin: str
    mac: str
    re: str = ""
    kx: KeyShare | None = None


class KeyOffer(_Strict, frozen=True):
    """The server's part of a key, signed by its certificate's key."""

    pub: str
    nonce: str
    expires_at: float
    sig: str

    def signed_bytes(self, certificate: str) -> bytes:
        """What the signature covers; the certificate by its hash."""
        return canonical_bytes(
            {"certificate": certificate, "pub": self.pub, "nonce": self.nonce, "expires_at": self.expires_at}
        )

    def check(self, certificate: CapabilityCertificate, now: float, skew_s: float) -> None:
        """Whether the certificate's owner made it, and it is still valid.

        Raises:
            SecurityError: it is not ("offer").
        """
        try:
            Ed25519PublicKey.from_public_bytes(certificate.public).verify(
                read_base64(self.sig, 64, "the offer's signature"), self.signed_bytes(certificate.digest)
            )
        except InvalidSignature:
            raise SecurityError(
                f"the server's key offer is not signed by the key in the certificate of {certificate.server_id}",
                "offer",
            ) from None
        if now > self.expires_at + skew_s:
            raise SecurityError(f"the key offer of {certificate.server_id} has expired", "offer")


def own_fields(place: Any) -> Any:
    """The extension's value in a ``_meta`` or capability map, under either key; None if absent."""
    if not isinstance(place, Mapping):
        return None
    return place.get(EXTENSION, place.get(ALIAS))


def without_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """A message's params, result or error without the extension's fields in ``_meta``."""
    meta = body.get("_meta")
    if not isinstance(meta, Mapping) or not ({EXTENSION, ALIAS} & meta.keys()):
        return dict(body)
    rest = {key: value for key, value in meta.items() if key not in (EXTENSION, ALIAS)}
    bare = {key: value for key, value in body.items() if key != "_meta"}
    return {**bare, "_meta": rest} if rest else bare


def _covered(body: Mapping[str, Any]) -> dict[str, Any]:
    meta = body.get("_meta")
    if not isinstance(meta, Mapping):
        return {key: value for key, value in body.items() if key != "_meta"}
    kept = {key: value for key, value in meta.items() if key not in _UNCOVERED and not key.startswith(_HOP_PREFIX)}
    bare = {key: value for key, value in body.items() if key != "_meta"}
    return {**bare, "_meta": kept} if kept else bare


def _mac(key: bytes, kind: Kind, method: str, body: Mapping[str, Any], auth: MessageAuth) -> str:
    covered = {
        "v": auth.v,
        "kind": kind,
        "method": method,
        "body": _covered(body),
        "server_id": auth.server_id,
        "client_id": auth.client_id,
        "kid": auth.kid,
        "ts": auth.ts,
        "nonce": auth.nonce,
        "seq": auth.seq,
        "origin": auth.origin,
        "re": auth.re,
    }
    try:
        text = canonical_bytes(covered)
    except BadInput as error:
        raise SecurityError(f"this message cannot be authenticated: {error}", "not_canonical") from None
    return base64.b64encode(hmac.digest(key, text, "sha256")).decode()


def _derive(secret: bytes, salt: bytes, server_id: str, client_id: str, version: str) -> tuple[bytes, str]:
    info = canonical_bytes([server_id, client_id, version])
    key = HKDF(SHA256(), 32, salt, info).derive(secret)
    return key, hashlib.blake2b(b"kid" + key, digest_size=12).hexdigest()


def _parse(found: Any) -> MessageAuth:
    if found is None:
        raise SecurityError("the message is not authenticated", "unauthenticated")
    try:
        auth = msgspec.convert(found, MessageAuth)
    except (msgspec.ValidationError, RecursionError) as error:
        raise SecurityError(f"the message's authentication is malformed: {error}", "malformed") from None
    if auth.v != 1:
        raise SecurityError(f"the message's authentication has version {auth.v}; this side knows 1", "version")
    read_base64(auth.nonce, 32, "the nonce")
    read_base64(auth.mac, 32, "the code")
    return auth


class _Sequence:
    """Counts what is sent, and refuses what comes far behind the newest."""

    def __init__(self) -> None:
        self.sent, self.newest = 0, 0

    def next(self) -> int:
        self.sent += 1
        return self.sent

    def admit(self, seq: int) -> None:
        if seq <= self.newest - SEQ_WINDOW:
            raise SecurityError(f"message {seq} comes after message {self.newest}", "replay")
        self.newest = max(self.newest, seq)


@dataclass(frozen=True)
class Pending:
    """A request on its way: what its answer must refer to."""

    method: str
    nonce: str


class ClientChannel:
    """The client's side of the way to one server.

    Args:
        certificate: of the server, checked.
        offer: of the server, checked by :meth:`KeyOffer.check`.
        client_id: of this side.
        version: of the protocol on this link.
        shared_secret: that both know, which proves the client's identity too.
        nonces: remembers answers.
        skew_s: that clocks may differ.
        now: seconds since 1970.
    """

    def __init__(
        self,
        certificate: CapabilityCertificate,
        offer: KeyOffer,
        *,
        client_id: str,
        version: str,
        shared_secret: bytes = b"",
        nonces: ReplayWindow | None = None,
        skew_s: float = 30.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.certificate, self.offer, self._client_id, self._now = certificate, offer, client_id, now
        private, nonce = X25519PrivateKey.generate(), secrets.token_bytes(32)
        peer = X25519PublicKey.from_public_bytes(read_base64(offer.pub, 32, "the offered key"))
        salt = nonce + read_base64(offer.nonce, 32, "the offer's nonce")
        secret = private.exchange(peer) + shared_secret
        self._key, self.kid = _derive(secret, salt, certificate.server_id, client_id, version)
        own = private.public_key().public_bytes_raw()
        self._kx = KeyShare(base64.b64encode(own).decode(), base64.b64encode(nonce).decode(), version)
        self._nonces = nonces if nonces is not None else NonceStore(window_s=skew_s)
        self._order = _Sequence()

    def sign(self, method: str, params: Mapping[str, Any], origin: str = "host") -> tuple[dict[str, Any], Pending]:
        """The parameters with their code, and what to check the answer with.

        Raises:
            SecurityError: the content has no canonical form ("not_canonical").
        """
        nonce = base64.b64encode(secrets.token_bytes(32)).decode()
        auth = MessageAuth(
            1,
            self.certificate.server_id,
            self._client_id,
            self.kid,
            round(self._now(), 6),
            nonce,
            self._order.next(),
            origin,
            "",
            kx=self._kx,
        )
        auth = msgspec.structs.replace(auth, mac=_mac(self._key, "request", method, params, auth))
        meta = params.get("_meta")
        kept = {k: v for k, v in (meta if isinstance(meta, Mapping) else {}).items() if k not in (EXTENSION, ALIAS)}
        return {**params, "_meta": {**kept, EXTENSION: msgspec.to_builtins(auth)}}, Pending(method, nonce)

    def check_result(self, pending: Pending, result: Mapping[str, Any]) -> dict[str, Any]:
        """The result without the extension's fields.

        Raises:
            SecurityError: not the server's answer to this request.
        """
        self._check(pending, "result", result, own_fields(result.get("_meta")))
        return without_fields(result)

    def check_error(self, pending: Pending, code: int, message: str, data: Any) -> Any:
        """The data of an error without the extension's fields; None if there is none.

        Raises:
            SecurityError: not the server's answer to this request.
        """
        carried = data if isinstance(data, Mapping) else {}
        inner = carried.get("data")
        body = {"code": code, "message": message, **({} if inner is None else {"data": inner})}
        self._check(pending, "error", body, own_fields(carried))
        return inner

    def _check(self, pending: Pending, kind: Kind, body: Mapping[str, Any], found: Any) -> None:
        auth = _parse(found)
        if auth.kid != self.kid or auth.server_id != self.certificate.server_id or auth.client_id != self._client_id:
            raise SecurityError("the answer belongs to another server, client or key", "wrong_key")
        if not hmac.compare_digest(auth.mac, _mac(self._key, kind, pending.method, body, auth)):
            raise SecurityError("the answer was changed on its way, or is not the server's", "mac")
        if not hmac.compare_digest(auth.re, pending.nonce):
            raise SecurityError("the answer belongs to another request", "replay")
        # Not by its number: workers of one server count apart, and the nonce above orders enough.
        _admit(self._nonces, f"{self.kid}<", auth, self._now())


def _admit(nonces: ReplayWindow, kid: str, auth: MessageAuth, now: float) -> None:
    try:
        nonces.admit(kid, auth.nonce, auth.ts, now)
    except IdentityError as error:
        raise SecurityError(str(error), error.reason) from None


@dataclass
class _Session:
    key: bytes
    client_id: str
    order: _Sequence


class ServerChannel:
    """The server's side of the way from all its clients.

    Args:
        certificate: of this server.
        key: that the certificate names.
        shared_secrets: of clients, by their id; a client that has one must use it.
        require_known: refuse clients without a shared secret.
        nonces: remembers requests; a :class:`SharedNonces` for several workers.
        skew_s: that clocks may differ.
        offer_s: seconds that an offered key is used; the one before stays valid as long again.
        exchange_key: 32 bytes of the X25519 key, the same in every worker; random by default.
        now: seconds since 1970.

    Raises:
        BadInput: the key is not the certificate's.
    """

    def __init__(
        self,
        certificate: CapabilityCertificate,
        key: Identity,
        *,
        shared_secrets: Mapping[str, bytes] | None = None,
        require_known: bool = False,
        nonces: ReplayWindow | None = None,
        skew_s: float = 30.0,
        offer_s: float = 24 * 3600.0,
        exchange_key: bytes | None = None,
        max_sessions: int = 10_000,
        now: Callable[[], float] = time.time,
    ) -> None:
        if key.public != certificate.public:
            raise BadInput(f"the key is not the one in the certificate of {certificate.server_id}")
        if exchange_key is not None and len(exchange_key) != 32:
            raise BadInput(f"an exchange key has 32 bytes; got {len(exchange_key)}")
        self.certificate, self._key, self._now = certificate, key, now
        self._secrets, self._require_known = dict(shared_secrets or {}), require_known
        self._nonces = nonces if nonces is not None else NonceStore(window_s=skew_s)
        self._offer_s, self._exchange_key, self._max_sessions = offer_s, exchange_key, max_sessions
        self._offers: list[tuple[X25519PrivateKey, bytes, KeyOffer]] = []
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._lock = threading.Lock()

    def hello(self) -> dict[str, Any]:
        """What the server says of itself: certificate and current offer."""
        return {"v": 1, "certificate": self.certificate.to_dict(), "offer": msgspec.to_builtins(self._offer())}

    def _offer(self) -> KeyOffer:
        now = self._now()
        with self._lock:
            if not self._offers or now > self._offers[-1][2].expires_at - self._offer_s:
                self._offers = [*self._offers[-1:], self._new_offer(now)]
            return self._offers[-1][2]

    def _new_offer(self, now: float) -> tuple[X25519PrivateKey, bytes, KeyOffer]:
        if self._exchange_key is not None:  # every worker must come to the same key, so it does not rotate by itself
            private = X25519PrivateKey.from_private_bytes(self._exchange_key)
            nonce = hashlib.blake2b(self._exchange_key, digest_size=32, person=b"mcpsec-nonce").digest()
        else:
            private, nonce = X25519PrivateKey.generate(), secrets.token_bytes(32)
        public = private.public_key().public_bytes_raw()
        bare = KeyOffer(
            base64.b64encode(public).decode(), base64.b64encode(nonce).decode(), round(now + 2 * self._offer_s, 3), ""
        )
        signature = self._key.sign(bare.signed_bytes(self.certificate.digest))
        return private, nonce, msgspec.structs.replace(bare, sig=base64.b64encode(signature).decode())

    def check_request(
        self, method: str, params: Mapping[str, Any] | None, version: str = ""
    ) -> tuple[dict[str, Any], MessageAuth]:
        """The parameters without the extension's fields, and who sent them.

        Args:
            method: of the request.
            params: of it.
            version: of the protocol on this link, which the key is bound to; "" for any.

        Raises:
            SecurityError: changed, old, seen before, for another server, or by an unknown client.
        """
        body = dict(params or {})
        auth = _parse(own_fields(body.get("_meta")))
        if auth.server_id != self.certificate.server_id:
            raise SecurityError(f"the message is for the server {auth.server_id!r}", "server_id_mismatch")
        if auth.kx is None or (version and auth.kx.version != version):
            raise SecurityError("the message's key is of another protocol version, or missing", "wrong_key")
        for session in self._candidates(auth, auth.kx):
            if hmac.compare_digest(auth.mac, _mac(session.key, "request", method, body, auth)):
                break
        else:
            raise SecurityError("the message was changed on its way, or its key is not the one it names", "mac")
        session.order.admit(auth.seq)
        # After the code, so that a forger cannot use up another's nonces.
        _admit(self._nonces, auth.kid, auth, self._now())
        return without_fields(body), auth

    def _candidates(self, auth: MessageAuth, kx: KeyShare) -> list[_Session]:
        cached = f"{auth.kid} {kx.pub} {kx.nonce} {kx.version} {auth.client_id}"
        with self._lock:
            found = self._sessions.get(cached)
            if found is not None:
                self._sessions.move_to_end(cached)
                return [found]
        shared = self._secrets.get(auth.client_id, b"")
        if self._require_known and not shared:
            raise SecurityError(f"no shared secret is known for the client {auth.client_id!r}", "unknown_client")
        public = X25519PublicKey.from_public_bytes(read_base64(kx.pub, 32, "the client's key"))
        nonce = read_base64(kx.nonce, 32, "the client's nonce")
        self._offer()
        for private, own_nonce, offer in reversed(self._offers):
            if self._now() > offer.expires_at:
                continue
            try:
                secret = private.exchange(public) + shared
            except ValueError:  # a point of small order
                raise SecurityError("the client's key cannot be used", "wrong_key") from None
            key, kid = _derive(secret, nonce + own_nonce, auth.server_id, auth.client_id, kx.version)
            if kid == auth.kid:
                session = _Session(key, auth.client_id, _Sequence())
                with self._lock:
                    if len(self._sessions) >= self._max_sessions:
                        self._sessions.popitem(last=False)
                    return [self._sessions.setdefault(cached, session)]
        return []

    def sign_result(self, request: MessageAuth, method: str, result: Mapping[str, Any]) -> dict[str, Any]:
        """A result with its code."""
        body = without_fields(result)
        auth = self._auth("result", request, method, body)
        meta = body.get("_meta")
        return {**body, "_meta": {**(meta if isinstance(meta, Mapping) else {}), EXTENSION: auth}}

    def sign_error(self, request: MessageAuth, method: str, code: int, message: str, data: Any) -> dict[str, Any]:
        """An error's data with its code; the data itself is inside, as ``data``."""
        inner = {} if data is None else {"data": data}
        return {EXTENSION: self._auth("error", request, method, {"code": code, "message": message, **inner}), **inner}

    def _auth(self, kind: Kind, request: MessageAuth, method: str, body: Mapping[str, Any]) -> Any:
        assert request.kx is not None
        session = self._candidates(request, request.kx)[0]
        auth = MessageAuth(
            1,
            request.server_id,
            request.client_id,
            request.kid,
            round(self._now(), 6),
            base64.b64encode(secrets.token_bytes(32)).decode(),
            session.order.next(),
            f"server:{request.server_id}",
            "",
            request.nonce,
        )
        return msgspec.to_builtins(msgspec.structs.replace(auth, mac=_mac(session.key, kind, method, body, auth)))
