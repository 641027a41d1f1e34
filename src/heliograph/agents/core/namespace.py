"""Names in front of the gateway and behind it.

With one server every name passes unchanged. With several, a tool or prompt ``say`` of the server ``crm`` is
``crm.say``, and its resource ``file:///x`` is ``crm+file:///x``. (A URI scheme has no ``_``; there it is written as a
dot.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heliograph.errors import BadInput

__all__ = ["Namespace"]

LISTS = {
    "tools/list": ("tools", "name"),
    "prompts/list": ("prompts", "name"),
    "resources/list": ("resources", "uri"),
    "resources/templates/list": ("resourceTemplates", "uriTemplate"),
}
"""Methods that list, the key of their list, and the key that names an entry."""


class Namespace:
    """Maps names to servers and back.

    Args:
        names: of the servers.
        separator: between server and name.
    """

    def __init__(self, names: Sequence[str], *, separator: str = ".") -> None:
        if not separator or any(separator in name for name in names):
            raise BadInput(f"the separator {separator!r} must not be empty or part of an upstream's name")
        self.names, self.separator = tuple(names), separator
        self._schemes = {name.replace("_", ".").lower(): name for name in names}
        if len(self._schemes) < len(self.names):
            raise BadInput("two upstreams have names that differ in case, or in _ and . only; rename one")
        self.bare = len(self.names) == 1

    def outer_name(self, upstream: str, name: str) -> str:
        """A tool's or prompt's name for callers."""
        return name if self.bare else f"{upstream}{self.separator}{name}"

    def inner_name(self, name: str) -> tuple[str, str]:
        """The server and its own name for a tool or prompt; the server is "" if none has such names."""
        if self.bare:
            return self.names[0], name
        upstream, separator, rest = name.partition(self.separator)
        return (upstream, rest) if separator and upstream in self.names else ("", name)

    def outer_uri(self, upstream: str, uri: str) -> str:
        """A resource's URI for callers."""
        return uri if self.bare else f"{upstream.replace('_', '.').lower()}+{uri}"

    def inner_uri(self, uri: str) -> tuple[str, str]:
        """The server and its own URI; the server is "" if none has such URIs."""
        if self.bare:
            return self.names[0], uri
        scheme, plus, rest = uri.partition("+")
        upstream = self._schemes.get(scheme.lower(), "") if plus else ""
        return (upstream, rest) if upstream else ("", uri)

    def route(self, method: str, params: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The server that a request is for, decided by its body alone, and the parameters with that server's names."""
        inside = dict(params)
        if method in ("tools/call", "prompts/get"):
            upstream, inside["name"] = self.inner_name(str(params.get("name", "")))
        elif method in ("resources/read", "resources/subscribe", "resources/unsubscribe"):
            upstream, inside["uri"] = self.inner_uri(str(params.get("uri", "")))
        elif method == "completion/complete":
            ref = dict(params.get("ref") or {})
            if "uri" in ref:
                upstream, ref["uri"] = self.inner_uri(str(ref["uri"]))
            else:
                upstream, ref["name"] = self.inner_name(str(ref.get("name", "")))
            inside["ref"] = ref
        else:
            upstream = self.names[0] if self.bare else ""
        return upstream, inside

    def outward(self, upstream: str, method: str, result: dict[str, Any]) -> dict[str, Any]:
        """A server's result with the names that callers know."""
        if self.bare:
            return result
        if method in LISTS:
            key, named = LISTS[method]
            rename = self.outer_name if named == "name" else self.outer_uri
            entries = [
                {**entry, named: rename(upstream, entry[named])} for entry in result.get(key, ()) if named in entry
            ]
            return {**result, key: entries}
        if method == "resources/read":
            contents = [self._content(upstream, item) for item in result.get("contents", ())]
            return {**result, "contents": contents}
        if method == "tools/call" and "content" in result:
            return {**result, "content": [self._block(upstream, block) for block in result["content"]]}
        if method == "prompts/get" and "messages" in result:
            messages = [
                {**message, "content": self._block(upstream, message["content"])}
                if isinstance(message.get("content"), dict)
                else message
                for message in result["messages"]
            ]
            return {**result, "messages": messages}
        return result

    def notification(self, upstream: str, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """A server's notification with the names that callers know."""
        if self.bare or method != "notifications/resources/updated" or "uri" not in params:
            return params
        return {**params, "uri": self.outer_uri(upstream, str(params["uri"]))}

    def _content(self, upstream: str, item: Any) -> Any:
        if isinstance(item, dict) and isinstance(item.get("uri"), str):
            return {**item, "uri": self.outer_uri(upstream, item["uri"])}
        return item

    def _block(self, upstream: str, block: Any) -> Any:
        if not isinstance(block, dict):
            return block
        if block.get("type") == "resource_link":
            return self._content(upstream, block)
        if block.get("type") == "resource":
            return {**block, "resource": self._content(upstream, block.get("resource"))}
        return block
