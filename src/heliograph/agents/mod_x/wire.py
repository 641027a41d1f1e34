"""Messages of MCP, A2A, plain JSON-RPC, NATS and the bus envelope, each turned into any other.

A message is read into an :class:`Exchange` (a call, a result, a failure, or a text) and written in the other form, so
that a native peer of that form understands it. What the other form has no place for rides in its metadata
(``_meta``, ``metadata``, a header, a label), and the way back then gives the first message exactly. Plain JSON-RPC has
no such place; what is lost there is named. Loss is found by going back and comparing, never assumed.

The A2A shapes are those that :mod:`heliograph.agents.core.envelope` knows (messages with ``messageId`` and ``parts``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, unquote

from heliograph.agents.core.envelope import CARRIER, Envelope
from heliograph.errors import BadInput

__all__ = ["FORMS", "Exchange", "Form", "LossyTranslation", "Translated", "read", "same_json", "translate", "write"]

Form = Literal["mcp", "a2a", "jsonrpc", "nats", "envelope"]
FORMS: tuple[Form, ...] = ("mcp", "a2a", "jsonrpc", "nats", "envelope")
ORIGINAL = f"{CARRIER}-original"
"""Key under which a message's first form rides."""


class LossyTranslation(BadInput):
    """The other form cannot hold the message, and loss was not allowed."""


@dataclass(frozen=True)
class Exchange:
    """What a message says, whatever its form.

    Attributes:
        kind: "call", "result", "failure" or "message".
        body: arguments of a call, value of a result, ``{"code", "message", "data"?}`` of a failure, or content of a
            message.
        capability: that a call names; "" otherwise.
        id: that ties an answer to its call; None where there is none.
        conv: conversation, or "".
    """

    kind: str
    body: Any
    capability: str = ""
    id: str | int | float | None = None
    conv: str = ""


@dataclass(frozen=True)
class Translated:
    """A message in its new form.

    Attributes:
        message: JSON values.
        carried: the first form rides along, because the new one has no field for a part of it.
        lost: paths of what the way back would not restore; empty if nothing.
    """

    message: dict[str, Any]
    carried: bool = False
    lost: tuple[str, ...] = ()


def same_json(one: Any, other: Any) -> bool:
    """Equal as JSON: 1, 1.0 and true differ, the order of keys does not matter."""
    return _spelled(one) == _spelled(other)


def _spelled(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"a message is made of JSON values: {error}") from None


def read(message: Any, form: Form) -> Exchange:
    """What a message of one form says.

    Raises:
        BadInput: it is not of that form.
    """
    if form not in _READ:
        raise BadInput(f"a form is one of {', '.join(FORMS)}; got {form!r}")
    if not isinstance(message, Mapping):
        raise BadInput(f"a {form} message is a JSON object; got {type(message).__name__}")
    _spelled(message)
    return _READ[form](dict(message))


def write(exchange: Exchange, form: Form) -> dict[str, Any]:
    """The message of a form that says it."""
    if form not in _WRITE:
        raise BadInput(f"a form is one of {', '.join(FORMS)}; got {form!r}")
    return _WRITE[form](exchange)


def translate(message: Any, source: Form, target: Form, *, carry: bool = True, strict: bool = False) -> Translated:
    """A message in another form.

    Args:
        message: of form ``source``.
        source, target: forms.
        carry: put the first form into the metadata of the new one where a field is missing.
        strict: refuse what the way back would not restore.

    Raises:
        BadInput: not a message of ``source``.
        LossyTranslation: ``strict``, and something would be lost.
    """
    visible, original = _detach(message, source)
    exchange = read(visible, source)
    if original is not None:
        first_form, first = original
        # A carried first form counts only if it says what everybody can see; otherwise it could smuggle another call.
        if read(write(read(first, first_form), source), source) == exchange:
            if first_form == target:
                return Translated(first)
            return translate(first, first_form, target, carry=carry, strict=strict)
    if source == target:
        return Translated(visible)
    new = write(exchange, target)
    back = write(read(new, target), source)
    if same_json(back, visible):
        return Translated(new)
    if carry and target != "jsonrpc":
        return Translated(_attach(new, target, {"form": source, "message": visible}), carried=True)
    lost = tuple(_differences(visible, back, ""))
    if strict:
        raise LossyTranslation(
            f"{target} has no place for {', '.join(lost)}; translate without strict, or to a form with metadata"
        )
    return Translated(new, lost=lost)


def _differences(one: Any, other: Any, path: str) -> list[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        found: list[str] = []
        for key in sorted({*one, *other}):
            where = f"{path}/{key}"
            if key not in one or key not in other:
                found.append(where)
            else:
                found += _differences(one[key], other[key], where)
        return found
    return [] if same_json(one, other) else [path or "/"]


def _attach(message: dict[str, Any], form: Form, original: dict[str, Any]) -> dict[str, Any]:
    if form == "a2a":
        return {**message, "metadata": {**message.get("metadata", {}), ORIGINAL: original}}
    if form == "nats":
        return {**message, "headers": {**message.get("headers", {}), ORIGINAL: _spelled(original)}}
    if form == "envelope":
        meta = message.get("meta", {})
        return {**message, "meta": {**meta, "labels": {**meta.get("labels", {}), ORIGINAL: _spelled(original)}}}
    if "error" in message:
        error = message["error"]
        kept = {"data": error["data"]} if "data" in error else {}
        return {**message, "error": {**error, "data": {ORIGINAL: original, **kept}}}
    place = "params" if "method" in message else "result"
    inside = message.get(place, {})
    return {**message, place: {**inside, "_meta": {**inside.get("_meta", {}), ORIGINAL: original}}}


def _detach(message: Any, form: Form) -> tuple[Any, tuple[Form, Any] | None]:
    if not isinstance(message, Mapping) or form == "jsonrpc":
        return message, None
    path = {"a2a": ("metadata",), "nats": ("headers",), "envelope": ("meta", "labels")}.get(form)
    if path is None:
        path = ("error", "data") if "error" in message else ("params" if "method" in message else "result", "_meta")
    slot: Any = message
    for step in path:
        slot = slot.get(step) if isinstance(slot, Mapping) else None
    if not isinstance(slot, Mapping) or ORIGINAL not in slot:
        return message, None
    raw = slot[ORIGINAL]
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except ValueError:
            raw = None
    rest = {key: value for key, value in slot.items() if key != ORIGINAL}
    bare = _without(dict(message), path, rest.get("data") if path == ("error", "data") else rest or None)
    if not isinstance(raw, Mapping) or raw.get("form") not in FORMS or not isinstance(raw.get("message"), Mapping):
        return bare, None
    try:
        read(raw["message"], raw["form"])
    except BadInput:
        return bare, None
    return bare, (raw["form"], dict(raw["message"]))


def _without(message: dict[str, Any], path: tuple[str, ...], rest: Any) -> dict[str, Any]:
    key, *below = path
    if below:
        inner = _without(dict(message[key]), tuple(below), rest)
        return {**message, key: inner} if inner or key in ("error", "params", "result") else _drop(message, key)
    return {**message, key: rest} if rest is not None else _drop(message, key)


def _drop(message: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != key}


def _call_id(value: Any) -> str | int | float | None:
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)):
        return value
    raise BadInput(f"an id is text, a number or null; got {type(value).__name__}")


def _read_rpc(message: dict[str, Any]) -> Exchange:
    if message.get("jsonrpc") != "2.0":
        raise BadInput('not JSON-RPC: it needs "jsonrpc": "2.0"')
    number = _call_id(message.get("id"))
    if "method" in message:
        method = message["method"]
        if not isinstance(method, str) or not isinstance(message.get("params", {}), Mapping | list):
            raise BadInput("not JSON-RPC: method is text, params an object or a list")
        if "id" in message:
            return Exchange("call", message.get("params", {}), method, number)
        if method == "message" and isinstance(message.get("params"), Mapping):
            params = message["params"]
            return Exchange("message", params.get("content"), conv=str(params.get("conv", "")))
        return Exchange("call", message.get("params", {}), method)
    if "error" in message:
        return Exchange("failure", _failure(message["error"]), id=number)
    if "result" in message:
        return Exchange("result", message["result"], id=number)
    raise BadInput("not JSON-RPC: it needs a method, a result or an error")


def _failure(error: Any) -> dict[str, Any]:
    if not isinstance(error, Mapping) or not isinstance(error.get("message"), str):
        raise BadInput("a failure has a code and a message")
    code = error.get("code", -32000)
    if isinstance(code, bool) or not isinstance(code, int):
        raise BadInput(f"a failure's code is an integer; got {code!r}")
    return {"code": code, "message": error["message"], **({"data": error["data"]} if "data" in error else {})}


def _write_rpc(exchange: Exchange) -> dict[str, Any]:
    head: dict[str, Any] = {"jsonrpc": "2.0"}
    if exchange.kind == "call":
        number = {} if exchange.id is None else {"id": exchange.id}
        # JSON-RPC has no place for arguments that are neither an object nor a list.
        params = exchange.body if isinstance(exchange.body, Mapping | list) else [exchange.body]
        return {**head, **number, "method": exchange.capability, "params": params}
    if exchange.kind == "message":
        conv = {"conv": exchange.conv} if exchange.conv else {}
        return {**head, "method": "message", "params": {"content": exchange.body, **conv}}
    return {**head, "id": exchange.id, "error" if exchange.kind == "failure" else "result": exchange.body}


def _read_mcp(message: dict[str, Any]) -> Exchange:
    plain = _read_rpc(message)
    for name in ("params", "result"):
        if not isinstance(message.get(name, {}), Mapping):
            raise BadInput(f"not MCP: {name} is an object")
    if plain.kind == "call" and plain.capability == "tools/call":
        params = message.get("params", {})
        name, arguments = params.get("name"), params.get("arguments", {})
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            raise BadInput("not MCP: tools/call names a tool, and its arguments are an object")
        return Exchange("call", dict(arguments), name, plain.id)
    if plain.kind == "call" and plain.capability == "notifications/message":
        return Exchange("message", plain.body.get("data"))
    if plain.kind == "call":
        return Exchange("call", plain.body, f"mcp:{plain.capability}", plain.id)
    if plain.kind == "result":
        return _read_mcp_result(plain)
    return plain


def _read_mcp_result(plain: Exchange) -> Exchange:
    result = plain.body
    content = result.get("content")
    if result.get("isError"):
        said = " ".join(str(part.get("text", "")) for part in content or [] if isinstance(part, Mapping))
        return Exchange("failure", {"code": -32000, "message": said}, id=plain.id)
    if "structuredContent" in result:
        body = result["structuredContent"]
        return Exchange(
            "result", body["result"] if isinstance(body, Mapping) and set(body) == {"result"} else body, id=plain.id
        )
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], Mapping) and "text" in content[0]:
        return Exchange("result", content[0]["text"], id=plain.id)
    return Exchange("result", result, id=plain.id)


def _write_mcp(exchange: Exchange) -> dict[str, Any]:
    if exchange.kind == "message":
        return {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": exchange.body}}
    if exchange.kind == "result":
        body = exchange.body
        if isinstance(body, str):
            result: dict[str, Any] = {"content": [{"type": "text", "text": body}]}
        else:
            structured = body if isinstance(body, Mapping) and set(body) != {"result"} else {"result": body}
            result = {"content": [{"type": "text", "text": json.dumps(body)}], "structuredContent": structured}
        return {"jsonrpc": "2.0", "id": exchange.id, "result": result}
    if exchange.kind == "call":
        number = {} if exchange.id is None else {"id": exchange.id}
        if exchange.capability.startswith("mcp:") and isinstance(exchange.body, Mapping):
            method = exchange.capability.removeprefix("mcp:")
            return {"jsonrpc": "2.0", **number, "method": method, "params": exchange.body}
        arguments = exchange.body if isinstance(exchange.body, Mapping) else {"arguments": exchange.body}
        params = {"name": exchange.capability, "arguments": arguments}
        return {"jsonrpc": "2.0", **number, "method": "tools/call", "params": params}
    return _write_rpc(exchange)


def _read_a2a(message: dict[str, Any]) -> Exchange:
    env = Envelope.from_a2a({key: value for key, value in message.items() if key != "metadata"})
    parts, conv = message["parts"], env.conv
    if not all(isinstance(part, Mapping) for part in parts):
        raise BadInput("not an A2A message: a part is an object")
    if len(parts) == 1 and isinstance(parts[0].get("data"), Mapping):
        data = parts[0]["data"]
        if isinstance(data.get("capability"), str):
            return Exchange("call", data.get("arguments", {}), data["capability"], _call_id(data.get("id")), conv)
        if "error" in data:
            return Exchange("failure", _failure(data["error"]), id=_call_id(data.get("id")), conv=conv)
        if "result" in data:
            return Exchange("result", data["result"], id=_call_id(data.get("id")), conv=conv)
    if len(parts) == 1 and isinstance(parts[0].get("text"), str):
        return Exchange("message", parts[0]["text"], conv=conv)
    return Exchange("message", {"parts": parts}, conv=conv)


def _write_a2a(exchange: Exchange) -> dict[str, Any]:
    conv = {"contextId": exchange.conv} if exchange.conv else {}
    number = {} if exchange.id is None else {"id": exchange.id}
    part: dict[str, Any]
    role = "ROLE_USER"
    if exchange.kind == "call":
        part = {"data": {"capability": exchange.capability, "arguments": exchange.body, **number}}
    elif exchange.kind == "message":
        part = {"text": exchange.body} if isinstance(exchange.body, str) else {"data": exchange.body}
    else:
        role = "ROLE_AGENT"
        part = {"data": {"error" if exchange.kind == "failure" else "result": exchange.body, **number}}
    # The id of a message has to be a function of its content, or the same call would never be recognised again.
    told = exchange.id if isinstance(exchange.id, str) and exchange.id else f"m-{exchange.kind}-{exchange.id}"
    return {"messageId": told, "role": role, "parts": [part], **conv}


def _read_nats(message: dict[str, Any]) -> Exchange:
    subject, headers, data = message.get("subject"), message.get("headers", {}), message.get("data", "")
    if not isinstance(subject, str) or not subject or not isinstance(headers, Mapping) or not isinstance(data, str):
        raise BadInput("not a NATS message: it needs a subject, headers as an object and data as text")
    try:
        number = _call_id(json.loads(headers["Id"])) if "Id" in headers else None
        conv = str(headers.get("Conv", ""))
        if headers.get("Status") == "error":
            return Exchange("failure", _failure(json.loads(data)), id=number, conv=conv)
        if headers.get("Status") == "ok":
            return Exchange("result", json.loads(data), id=number, conv=conv)
        if subject.startswith("cap."):
            return Exchange("call", json.loads(data) if data else {}, unquote(subject[4:]), number, conv)
        return Exchange("message", json.loads(data), id=number, conv=conv)
    except (ValueError, TypeError, RecursionError):
        return Exchange("message", data, conv=str(headers.get("Conv", "")))


def _write_nats(exchange: Exchange) -> dict[str, Any]:
    headers = {
        **({} if exchange.id is None else {"Id": json.dumps(exchange.id)}),
        **({"Conv": exchange.conv} if exchange.conv else {}),
    }
    if exchange.kind in ("result", "failure"):
        headers["Status"] = "ok" if exchange.kind == "result" else "error"
    subject = {"call": _subject(exchange.capability), "message": "msg"}.get(exchange.kind, "reply")
    message: dict[str, Any] = {"subject": subject, "data": json.dumps(exchange.body)}
    return {**message, "headers": headers} if headers else message


def _subject(capability: str) -> str:
    # quote() leaves dots, which separate a subject's tokens; an empty token is none.
    tokens = quote(capability, safe="_-").replace(".", "%2E") or "%00"
    return f"cap.{tokens}"


def _read_envelope(message: dict[str, Any]) -> Exchange:
    env = Envelope.from_builtins(message)
    try:
        number = _call_id(json.loads(env.meta.labels["rpc-id"])) if "rpc-id" in env.meta.labels else None
    except ValueError:
        number = None
    if env.kind == "request" and env.topic.startswith("cap."):
        return Exchange("call", env.payload, unquote(env.topic[4:]), number, env.conv)
    if env.kind == "error":
        payload = env.payload
        good = isinstance(payload, Mapping) and isinstance(payload.get("message"), str)
        return Exchange(
            "failure", _failure(payload if good else {"message": _spelled(payload)}), id=number, conv=env.conv
        )
    if env.kind == "reply":
        return Exchange("result", env.payload, id=number, conv=env.conv)
    return Exchange("message", env.payload, id=number, conv=env.conv)


def _write_envelope(exchange: Exchange) -> dict[str, Any]:
    labels = {} if exchange.id is None else {"rpc-id": json.dumps(exchange.id)}
    kinds = {"call": "request", "failure": "error", "result": "reply", "message": "event"}
    topic = {"call": _subject(exchange.capability), "message": "msg"}.get(exchange.kind, "reply")
    plain: dict[str, Any] = {
        "id": f"x-{json.dumps(exchange.id)}",
        "topic": topic,
        "kind": kinds[exchange.kind],
        "payload": exchange.body,
        **({"conv": exchange.conv} if exchange.conv else {}),
        **({"meta": {"labels": labels}} if labels else {}),
    }
    return Envelope.from_builtins(plain).to_builtins()


_READ: dict[str, Callable[[dict[str, Any]], Exchange]] = {
    "mcp": _read_mcp,
    "a2a": _read_a2a,
    "jsonrpc": _read_rpc,
    "nats": _read_nats,
    "envelope": _read_envelope,
}
_WRITE: dict[str, Callable[[Exchange], dict[str, Any]]] = {
    "mcp": _write_mcp,
    "a2a": _write_a2a,
    "jsonrpc": _write_rpc,
    "nats": _write_nats,
    "envelope": _write_envelope,
}
