"""Where content comes from, said on every block that enters a model's context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from heliograph.agents.mcp_sec.certificates import ALIAS, EXTENSION

__all__ = ["Assurance", "named_question", "origin_of", "tagged", "tagged_list", "untagged"]

Assurance = Literal["attested", "unverified"]


def origin_of(server: str, influence: frozenset[str] = frozenset()) -> str:
    """``server:ID``, or ``derived:[ID,...]`` where other servers influenced it."""
    others = sorted(influence - {server})
    return f"derived:[{','.join([server, *others])}]" if others else f"server:{server}"


def _stamped(item: Mapping[str, Any], stamp: Mapping[str, Any]) -> dict[str, Any]:
    meta = item.get("_meta")
    kept = {k: v for k, v in (meta if isinstance(meta, Mapping) else {}).items() if k not in (EXTENSION, ALIAS)}
    return {**item, "_meta": {**kept, EXTENSION: dict(stamp)}}


def _block(block: Any, stamp: Mapping[str, Any], prefix: str) -> Any:
    if not isinstance(block, Mapping):
        return block
    marked = _stamped(block, stamp)
    if prefix and isinstance(marked.get("text"), str):
        marked["text"] = prefix + marked["text"]
    inner = marked.get("resource")
    if isinstance(inner, Mapping):
        inner = _stamped(inner, stamp)
        if prefix and isinstance(inner.get("text"), str):
            inner["text"] = prefix + inner["text"]
        marked["resource"] = inner
    return marked


def tagged(
    result: Mapping[str, Any],
    origin: str,
    assurance: Assurance,
    *,
    as_text: bool = False,
) -> dict[str, Any]:
    """A result whose blocks, messages and resources all say where they come from; what they said before is dropped.

    Args:
        result: of a server.
        origin: from :func:`origin_of`.
        assurance: of the server.
        as_text: also as a line before each text, for clients that show ``_meta`` to no model.
    """
    stamp = {"origin": origin, "assurance": assurance}
    prefix = f"[origin={origin} assurance={assurance}]\n" if as_text else ""
    marked = _stamped(result, stamp)
    for key in ("content", "contents"):
        if isinstance(marked.get(key), list):
            marked[key] = [_block(block, stamp, prefix) for block in marked[key]]
    if isinstance(marked.get("messages"), list):
        marked["messages"] = [
            {**message, "content": _block(message.get("content"), stamp, prefix)}
            if isinstance(message, Mapping)
            else message
            for message in marked["messages"]
        ]
    return marked


def tagged_list(result: Mapping[str, Any], key: str, origin: str, assurance: Assurance) -> dict[str, Any]:
    """A list whose entries say where they come from."""
    stamp = {"origin": origin, "assurance": assurance}
    entries = result.get(key)
    if not isinstance(entries, list):
        return dict(result)
    return {**result, key: [_stamped(one, stamp) if isinstance(one, Mapping) else one for one in entries]}


def untagged(value: Any) -> Any:
    """A JSON value without any of the extension's fields in ``_meta``; an empty ``_meta`` goes too."""
    if isinstance(value, Mapping):
        plain = {}
        for key, item in value.items():
            if key == "_meta" and isinstance(item, Mapping):
                rest = {k: v for k, v in item.items() if k not in (EXTENSION, ALIAS)}
                if rest:
                    plain[key] = untagged(rest)
                continue
            plain[key] = untagged(item)
        return plain
    if isinstance(value, list):
        return [untagged(item) for item in value]
    return value


def named_question(method: str, params: Mapping[str, Any], server: str, assurance: Assurance) -> dict[str, Any]:
    """A server's request to the caller, which says in words whose it is: never as if the user had written it."""
    origin = origin_of(server)
    stamp = {"origin": origin, "assurance": assurance}
    marked = _stamped(params, stamp)
    prefix = f"[origin={origin}] "
    if method == "sampling/createMessage":
        messages = []
        for message in params.get("messages") or ():
            if isinstance(message, Mapping):
                content = message.get("content")
                blocks = [_block(b, stamp, prefix) for b in content] if isinstance(content, list) else None
                message = {**message, "content": _block(content, stamp, prefix) if blocks is None else blocks}
            messages.append(message)
        marked["messages"] = messages
        if isinstance(params.get("systemPrompt"), str):
            marked["systemPrompt"] = prefix + params["systemPrompt"]
    elif method == "elicitation/create" and isinstance(params.get("message"), str):
        marked["message"] = f"{prefix}The server {server} asks: {params['message']}"
    return marked
