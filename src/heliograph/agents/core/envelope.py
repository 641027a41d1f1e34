"""The one message type of the agents family, and its lossless forms: JSON lines, MCP JSON-RPC, A2A messages.

A foreign message keeps its exact content as the payload, so that it leaves as it came. An envelope that must cross a
foreign wire whole travels under the key :data:`CARRIER`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from heliograph.errors import BadInput

__all__ = ["CARRIER", "Envelope", "Kind", "Meta", "Signature", "new_id"]

CARRIER = "dev.heliograph/envelope"
"""Key under which an envelope's own fields ride in another protocol's metadata."""

Kind = Literal["event", "request", "reply", "error", "claim", "state", "control"]


def new_id() -> str:
    """A UUID of version 7 (RFC 9562): unique, and sorted by the millisecond of its making."""
    milliseconds = time.time_ns() // 1_000_000
    noise = int.from_bytes(os.urandom(10), "big")
    number = (milliseconds & (2**48 - 1)) << 80 | 0x7 << 76 | (noise >> 68) << 64 | 0b10 << 62 | noise & (2**62 - 1)
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class Meta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What travels beside the content.

    Attributes:
        deadline_ms: milliseconds that the sender still waits, counted from the sending; None for no limit.
        traceparent: W3C trace context.
        labels: free text by name, for example where a value comes from.
    """

    deadline_ms: float | None = None
    traceparent: str = ""
    labels: dict[str, str] = {}


class Signature(msgspec.Struct, frozen=True):
    """Who vouches for an envelope.

    Attributes:
        kid: of the key.
        nonce: 32 hexadecimal digits, never used twice with one key.
        time: seconds since 1970 on the signer's clock.
        value: Ed25519 signature in base64, over everything else in the envelope.
    """

    kid: str
    nonce: str
    time: float
    value: str = ""


class Envelope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message.

    Attributes:
        id: unique; a UUID of version 7 unless given.
        topic: subject on the bus, tokens separated by dots.
        kind: what it is.
        sender: who sent it.
        payload: any JSON value.
        parents: ids of the messages that it was derived from.
        conv: conversation.
        tenant: on whose behalf.
        reply_to: subject that an answer goes to.
        meta: deadline, trace, labels.
        sig: signature, or None.
    """

    id: str = msgspec.field(default_factory=new_id)
    topic: str
    kind: Kind = "event"
    sender: str = ""
    payload: Any = None
    parents: tuple[str, ...] = ()
    conv: str = ""
    tenant: str = ""
    reply_to: str = ""
    meta: Meta = Meta()
    sig: Signature | None = None

    def replace(self, **changes: Any) -> Envelope:
        """The same with some fields changed."""
        return msgspec.structs.replace(self, **changes)

    def answer(self, payload: Any, *, kind: Kind = "reply", sender: str = "") -> Envelope:
        """A reply to this message: same conversation and tenant, addressed to ``reply_to``, with this one as parent."""
        return Envelope(
            topic=self.reply_to or self.topic,
            kind=kind,
            sender=sender,
            payload=payload,
            parents=(self.id,),
            conv=self.conv,
            tenant=self.tenant,
        )

    def to_builtins(self) -> dict[str, Any]:
        """Plain JSON values; fields with their default are left out, the id never is."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @classmethod
    def from_builtins(cls, data: Any) -> Envelope:
        """From plain JSON values.

        Raises:
            BadInput: a field is missing or of the wrong type; the message names its path.
        """
        try:
            return msgspec.convert(data, cls)
        except msgspec.ValidationError as error:
            raise BadInput(f"not an envelope: {error}") from None

    def to_json(self) -> bytes:
        """One line of JSON, without the line's end.

        Raises:
            BadInput: the payload holds NaN, infinity or something that is not JSON.
        """
        _require_json(self.payload)
        return _JSON.encode(self)

    @classmethod
    def from_json(cls, line: bytes | str) -> Envelope:
        """From one line of JSON.

        Raises:
            BadInput: not JSON, or not an envelope.
        """
        try:
            return _FROM_JSON.decode(line)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise BadInput(f"not an envelope: {error}") from None

    def to_jsonrpc(self, *, carry: bool = False) -> dict[str, Any]:
        """As a JSON-RPC 2.0 message of MCP.

        A payload that came from JSON-RPC leaves unchanged; any other becomes the notification or request
        ``dev.heliograph/envelope`` and holds the whole envelope.

        Args:
            carry: also put the envelope's own fields into the message's ``_meta``, for a peer of ours.
        """
        if not _is_jsonrpc(self.payload):
            wrapped: dict[str, Any] = {"jsonrpc": "2.0", "method": CARRIER, "params": self.to_builtins()}
            if self.kind == "request":
                wrapped["id"] = self.id
            return wrapped
        message: dict[str, Any] = self.payload
        if not carry:
            return message
        own = self.to_builtins_without_payload()
        if "error" in message:
            error = dict(message["error"])
            own["added"] = "" if "data" in error else "data"
            error["data"] = {CARRIER: own, "data": error["data"]} if "data" in error else {CARRIER: own}
            return {**message, "error": error}
        place = "params" if "method" in message else "result"
        inside = message.get(place, {})
        own["added"] = place if place not in message else "" if "_meta" in inside else "_meta"
        return {**message, place: {**inside, "_meta": {**inside.get("_meta", {}), CARRIER: own}}}

    @classmethod
    def from_jsonrpc(
        cls,
        message: Mapping[str, Any],
        *,
        sender: str = "",
        tenant: str = "",
        conv: str = "",
        meta: Meta | None = None,
        restore: bool = False,
    ) -> Envelope:
        """From a JSON-RPC 2.0 message of MCP, whose exact content becomes the payload.

        Args:
            sender, tenant, conv, meta: what the transport knows.
            restore: take the envelope's own fields from the message where it carries them. Only for peers that are
                trusted: the fields say who sent it.

        Raises:
            BadInput: not a JSON-RPC 2.0 message.
        """
        if not _is_jsonrpc(message):
            raise BadInput(
                'not a JSON-RPC message of MCP: it needs "jsonrpc": "2.0", a method, a result or an error, and objects '
                "for params, result and _meta"
            )
        whole = dict(message)
        if restore:
            if whole.get("method") == CARRIER:
                return cls.from_builtins(whole.get("params"))
            own, bare = _take_carrier(whole)
            if own is not None:
                return cls.from_builtins({**own, "payload": bare})
        kind: Kind = "reply" if "result" in whole else "error" if "error" in whole else "event"
        if kind == "event" and "id" in whole:
            kind = "request"
        method = whole.get("method")
        topic = "mcp." + str(method).replace("/", ".") if method else f"mcp.{kind}"
        return cls(topic=topic, kind=kind, sender=sender, tenant=tenant, conv=conv, payload=whole, meta=meta or Meta())

    def to_a2a(self) -> dict[str, Any]:
        """As a message of the A2A protocol: unchanged where it came from one, otherwise one data part."""
        if _is_a2a(self.payload):
            message: dict[str, Any] = self.payload
            own = self.to_builtins_without_payload()
            if own == Envelope.from_a2a(message).to_builtins_without_payload():
                return message
            own["added"] = "" if "metadata" in message else "metadata"
            return {**message, "metadata": {**message.get("metadata", {}), CARRIER: own}}
        return {
            "messageId": self.id,
            "role": "ROLE_AGENT",
            "parts": [{"data": {CARRIER: self.to_builtins()}}],
            **({"contextId": self.conv} if self.conv else {}),
        }

    def to_builtins_without_payload(self) -> dict[str, Any]:
        """Plain JSON values of everything but the payload."""
        own = self.to_builtins()
        own.pop("payload", None)
        return own

    @classmethod
    def from_a2a(cls, message: Mapping[str, Any], *, sender: str = "", tenant: str = "") -> Envelope:
        """From a message of the A2A protocol (any of its JSON spellings), kept whole as the payload.

        Raises:
            BadInput: no ``messageId`` or no ``parts``.
        """
        if not _is_a2a(message):
            raise BadInput("not an A2A message: it needs a messageId and a list of parts")
        whole = dict(message)
        parts = whole["parts"]
        if len(parts) == 1 and isinstance(parts[0], Mapping):
            data = parts[0].get("data")
            if isinstance(data, Mapping) and CARRIER in data:
                return cls.from_builtins(data[CARRIER])
        metadata = whole.get("metadata")
        if isinstance(metadata, Mapping) and isinstance(metadata.get(CARRIER), Mapping):
            own = dict(metadata[CARRIER])
            if own.pop("added", "") == "metadata":
                del whole["metadata"]
            else:
                whole["metadata"] = {key: value for key, value in metadata.items() if key != CARRIER}
            return cls.from_builtins({**own, "payload": whole})
        return cls(
            id=str(whole["messageId"]),
            topic="a2a.message",
            kind="event",
            sender=sender or str(whole.get("role", "")),
            tenant=tenant,
            conv=str(whole.get("contextId", "")),
            parents=tuple(str(task) for task in whole.get("referenceTaskIds", ())),
            payload=whole,
        )


_JSON = msgspec.json.Encoder()
_FROM_JSON = msgspec.json.Decoder(Envelope)


def _is_jsonrpc(message: Any) -> bool:
    if not isinstance(message, Mapping) or message.get("jsonrpc") != "2.0":
        return False
    if isinstance(message.get("method"), str):
        params = message.get("params", {})
        return isinstance(params, Mapping) and isinstance(params.get("_meta", {}), Mapping)
    if "result" in message:
        result = message["result"]
        return isinstance(result, Mapping) and isinstance(result.get("_meta", {}), Mapping)
    return isinstance(message.get("error"), Mapping)


def _is_a2a(message: Any) -> bool:
    return (
        isinstance(message, Mapping)
        and bool(message.get("messageId"))
        and isinstance(message.get("parts"), list)
        and (isinstance(message.get("metadata", {}), Mapping))
    )


def _take_carrier(whole: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The carried fields, and the message as it was before they were put in."""
    error = whole.get("error")
    if isinstance(error, Mapping):
        data = error.get("data")
        if not isinstance(data, Mapping) or not isinstance(data.get(CARRIER), Mapping):
            return None, whole
        own = dict(data[CARRIER])
        plain = {key: value for key, value in error.items() if key != "data"}
        if own.pop("added", "") != "data":
            plain["data"] = data.get("data")
        return own, {**whole, "error": plain}
    place = "params" if "method" in whole else "result"
    inside = whole.get(place, {})
    meta = inside.get("_meta", {})
    if not isinstance(meta.get(CARRIER), Mapping):
        return None, whole
    own = dict(meta[CARRIER])
    added = own.pop("added", "")
    if added == place:
        return own, {key: value for key, value in whole.items() if key != place}
    rest = {key: value for key, value in inside.items() if key != "_meta"}
    if added != "_meta":
        rest["_meta"] = {key: value for key, value in meta.items() if key != CARRIER}
    return own, {**whole, place: rest}


def _require_json(value: Any) -> None:
    """Refuses what msgspec would write as null or in a form that does not read back."""
    if value is None or isinstance(value, bool | int | str):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadInput(f"JSON has no {value}; send a finite number, or text")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise BadInput(f"JSON objects have text keys; got {key!r}")
            _require_json(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _require_json(item)
    else:
        raise BadInput(f"a payload is made of JSON values; got {type(value).__name__}")
