"""Keeps from a caller what is not its own: records of other tenants, secrets, answers that are too long (stage 5)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.interceptor import CallNext, Rejected
from heliograph.agents.mcp_broker.tokens import caller_of
from heliograph.agents.mcp_broker.tools import ToolCatalog
from heliograph.errors import BadInput

__all__ = ["SECRETS", "RecordRule", "ResponseSanitizer", "SanitizerCounts"]

SECRETS = (
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)",
    r"\bAKIA[0-9A-Z]{16}\b",
    r"\bgh[pousr]_[A-Za-z0-9]{36,}\b",
    r"\bsk-[A-Za-z0-9_-]{20,}\b",
    r"\bxox[abprs]-[A-Za-z0-9-]{10,}\b",
    r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
)
"""Forms of keys and tokens that no answer needs."""

_GONE = "[removed]"
_TOO_LONG = -32004
_INVALID_RESULT = -32603


class RecordRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the records of a tool's or resource's answer are, and which field names their tenant.

    Attributes:
        tool: glob of tool names; or
        resource: glob of URIs.
        records: JSON pointer to a list of records, or to one record; ``*`` stands for every element of a list.
        tenant: JSON pointer inside a record.
    """

    records: str
    tenant: str
    tool: str = ""
    resource: str = ""


@dataclass(frozen=True)
class SanitizerCounts:
    """What was taken out so far.

    Attributes:
        records: of other tenants, or of nobody.
        withheld: whole answers in which the records could not be found.
        secrets: texts in the form of a key.
        truncated: answers cut for their length.
    """

    records: int = 0
    withheld: int = 0
    secrets: int = 0
    truncated: int = 0


class ResponseSanitizer:
    """Interceptor: cleans the answers of tools and resources.

    A record passes only if it names the caller's tenant. Where a rule applies and the answer is not JSON of the
    expected shape, it is withheld: a text that cannot be checked may hold anything. Error texts obey the same rule.

    Args:
        rules: where records are.
        max_bytes: of all text in an answer; longer text is cut and marked, longer structured content refused.
        secrets: regular expressions to remove; :data:`SECRETS` by default.
        catalog: whose output schemas are checked, if it has any.
        name: in the chain.

    Raises:
        BadInput: a rule or expression that cannot be read.
    """

    def __init__(
        self,
        rules: Sequence[RecordRule] = (),
        *,
        max_bytes: int = 1_000_000,
        secrets: Sequence[str] = SECRETS,
        catalog: ToolCatalog | None = None,
        name: str = "response_sanitizer",
    ) -> None:
        for number, rule in enumerate(rules):
            if bool(rule.tool) == bool(rule.resource) or rule.tenant[:1] != "/" or rule.records[:1] not in ("", "/"):
                raise BadInput(
                    f"records[{number}]: needs a tool or a resource, one of them, and JSON pointers in records and "
                    "tenant"
                )
        if max_bytes < 1:
            raise BadInput(f"max_bytes is 1 or more; got {max_bytes}")
        try:
            self._secrets = [re.compile(text) for text in secrets]
        except re.error as error:
            raise BadInput(f"secrets: {error.pattern!r} is no regular expression: {error}") from None
        self.rules, self.name, self._max_bytes, self._catalog = tuple(rules), name, max_bytes, catalog
        self.counts = SanitizerCounts()

    async def __call__(self, env: Envelope, call_next: CallNext) -> Envelope:
        """Passes the request, cleans the answer."""
        answer = await call_next(env)
        payload = env.payload if isinstance(env.payload, Mapping) else {}
        method, params = payload.get("method"), payload.get("params") or {}
        if method not in ("tools/call", "resources/read") or not isinstance(answer.payload, Mapping):
            return answer
        tool = str(params.get("name", "")) if method == "tools/call" else ""
        uri = str(params.get("uri", "")) if method == "resources/read" else ""
        rules = [r for r in self.rules if (fnmatchcase(tool, r.tool) if tool else fnmatchcase(uri, r.resource))]
        rules = [rule for rule in rules if (rule.tool if tool else rule.resource)]
        tenant = caller_of(env).tenant
        error = answer.payload.get("error")
        if isinstance(error, Mapping):
            return answer.replace(payload={**answer.payload, "error": self._clean_error(error, bool(rules))})
        result = answer.payload.get("result")
        if not isinstance(result, Mapping):
            return answer
        cleaned = self._clean(dict(result), rules, tenant, tool)
        return answer.replace(payload={**answer.payload, "result": cleaned})

    def _clean_error(self, error: Mapping[str, Any], guarded: bool) -> dict[str, Any]:
        message = "the server's error text is withheld" if guarded else self._without_secrets(str(error.get("message")))
        cleaned = {**error, "message": message}
        if guarded and error.get("code") not in (-32001, _TOO_LONG, -32005):  # those are the gateway's own
            cleaned.pop("data", None)
        return cleaned

    def _clean(self, result: dict[str, Any], rules: Sequence[RecordRule], tenant: str, tool: str) -> dict[str, Any]:
        failed = result.get("isError") is True
        if "structuredContent" in result:
            kept = self._document(result["structuredContent"], rules, tenant, failed)
            if kept is None and not failed:
                raise Rejected(
                    f"the answer of {tool} has another shape than the rule for its records says, so it is withheld",
                    code=_INVALID_RESULT,
                    data={"reason": "withheld"},
                )
            if kept is None:
                del result["structuredContent"]
            else:
                result["structuredContent"] = self._deep(kept)
        for key in ("content", "contents"):
            if isinstance(result.get(key), list):
                parts = (self._part(part, rules, tenant, failed) for part in result[key])
                result[key] = [part for part in parts if part is not None]
        self._check_schema(result, tool, failed)
        return self._shortened(result)

    def _part(self, part: Any, rules: Sequence[RecordRule], tenant: str, failed: bool) -> Any:
        if not isinstance(part, Mapping):
            return None
        if isinstance(part.get("resource"), Mapping):
            inner = self._part(part["resource"], rules, tenant, failed)
            return None if inner is None else {**part, "resource": inner}
        text = part.get("text")
        if not isinstance(text, str):
            if rules:  # a picture, a sound, a link: nothing here can tell whose
                self._count(withheld=1)
                return None
            return part
        if rules:
            try:
                document = json.loads(text)
            except ValueError:
                self._count(withheld=1)
                return {**part, "text": "[withheld: not JSON, so its tenant cannot be checked]"}
            kept = self._document(document, rules, tenant, failed)
            text = "[withheld]" if kept is None else json.dumps(kept, ensure_ascii=False)
        return {**part, "text": self._without_secrets(text)}

    def _document(self, document: Any, rules: Sequence[RecordRule], tenant: str, failed: bool) -> Any:
        if rules and isinstance(document, Mapping) and set(document) == {"result"}:
            return self._wrapped(document["result"], rules, tenant, failed)
        for rule in rules:
            if failed and isinstance(document, Mapping) and set(document) == {"serf"}:
                continue
            found, document = self._filter(document, _parts(rule.records), _parts(rule.tenant), tenant)
            if not found:
                self._count(withheld=1)
                return None
        return document

    def _wrapped(self, inner: Any, rules: Sequence[RecordRule], tenant: str, failed: bool) -> Any:
        """Servers of the official SDK put what is no object under ``result``, and text there may be JSON."""
        rules = [msgspec.structs.replace(rule, records=rule.records.removeprefix("/result")) for rule in rules]
        if not isinstance(inner, str):
            kept = self._document(inner, rules, tenant, failed)
            return None if kept is None else {"result": kept}
        try:
            document = json.loads(inner)
        except ValueError:
            self._count(withheld=1)
            return None
        kept = self._document(document, rules, tenant, failed)
        return None if kept is None else {"result": json.dumps(kept, ensure_ascii=False)}

    def _filter(self, node: Any, path: Sequence[str], field: Sequence[str], tenant: str) -> tuple[bool, Any]:
        """Whether the path leads somewhere, and the document with foreign records left out."""
        if not path:
            if isinstance(node, list):
                kept = [record for record in node if _owner(record, field) == tenant and tenant]
                self._count(records=len(node) - len(kept))
                return True, kept
            if _owner(node, field) == tenant and tenant:
                return True, node
            self._count(records=1)
            return True, None
        head, rest = path[0], path[1:]
        if isinstance(node, list) and head == "*":
            inside = [self._filter(item, rest, field, tenant) for item in node]
            return all(found for found, _ in inside), [item for _, item in inside if item is not None]
        if isinstance(node, Mapping) and head in node:
            found, inner = self._filter(node[head], rest, field, tenant)
            return found, {**node, head: inner}
        return False, None

    def _without_secrets(self, text: str) -> str:
        for pattern in self._secrets:
            text, count = pattern.subn(_GONE, text)
            if count:
                self._count(secrets=count)
        return text

    def _deep(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._without_secrets(value)
        if isinstance(value, Mapping):
            return {self._without_secrets(str(key)): self._deep(item) for key, item in value.items()}
        return [self._deep(item) for item in value] if isinstance(value, list) else value

    def _check_schema(self, result: Mapping[str, Any], tool: str, failed: bool) -> None:
        facts = self._catalog.facts(tool) if self._catalog is not None and tool and not failed else None
        if facts is None or not facts.output_schema or "structuredContent" not in result:
            return
        import jsonschema

        try:
            jsonschema.validate(result["structuredContent"], dict(facts.output_schema))
        except jsonschema.SchemaError:
            return  # a server's own mistake in its schema says nothing about this answer
        except jsonschema.ValidationError:
            raise Rejected(
                f"{tool} answered with something that its own output schema does not allow",
                code=_INVALID_RESULT,
                data={"reason": "output_schema"},
            ) from None

    def _shortened(self, result: dict[str, Any]) -> dict[str, Any]:
        left = self._max_bytes
        if "structuredContent" in result:
            left -= len(msgspec.json.encode(result["structuredContent"]))
            if left < 0:
                self._count(truncated=1)
                raise Rejected(
                    f"the answer is longer than {self._max_bytes} bytes; ask for less",
                    code=_TOO_LONG,
                    data={"reason": "too_large", "limit_bytes": self._max_bytes},
                )
        for key in ("content", "contents"):
            parts = []
            for part in result.get(key) or ():
                text = part.get("text") if isinstance(part, Mapping) else None
                if isinstance(text, str):
                    raw = text.encode()
                    if len(raw) > max(0, left):
                        self._count(truncated=1)
                        cut = raw[: max(0, left)].decode("utf-8", "ignore")
                        part = {**part, "text": f"{cut}\n[cut: {len(raw)} bytes, {self._max_bytes} are allowed]"}
                    left -= len(raw)
                parts.append(part)
            if key in result:
                result[key] = parts
        return result

    def _count(self, **more: int) -> None:
        self.counts = replace(self.counts, **{name: getattr(self.counts, name) + by for name, by in more.items()})


def _parts(pointer: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


def _owner(record: Any, field: Sequence[str]) -> Any:
    for name in field:
        if not isinstance(record, Mapping) or name not in record:
            return None
        record = record[name]
    return record if isinstance(record, str) else None
