"""Failures that a program can act on: a category, whether to try again, and what to do (SERF).

Whatever goes wrong in a tool call (a refusal of a stage, a JSON-RPC error, an HTTP status, a tool's own ``isError``
text) becomes one tool result with ``structuredContent["serf"]`` and the same as one line of JSON text, for clients that
read only text. A server may also write the record itself; then it passes unchanged.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from heliograph.agents.core.envelope import Envelope, new_id
from heliograph.agents.core.interceptor import CallNext, Rejected
from heliograph.agents.core.limits import RATE_LIMITED_CODE
from heliograph.agents.mcp_broker.access import DENIED_CODE
from heliograph.agents.mcp_broker.tokens import INVALID_IDENTITY_CODE
from heliograph.agents.mcp_broker.tools import ToolCatalog, call_of

__all__ = [
    "BUDGET_SPENT_CODE",
    "SERF_KEY",
    "Category",
    "StructuredError",
    "StructuredErrors",
    "classify_exception",
    "classify_http",
    "classify_jsonrpc",
    "classify_text",
    "schema_hints",
]

logger = logging.getLogger(__name__)

SERF_KEY = "serf"
BUDGET_SPENT_CODE = -32011
"""JSON-RPC code of a call for which its turn has no time left."""
BREAKER_CODE = -32012
"""JSON-RPC code of a call to a tool that failed too often just now."""
TIMEOUT_CODE, TOO_LARGE_CODE, LOST_CODE = -32001, -32004, -32005


class Category(StrEnum):
    """The six kinds of failure of the paper."""

    INVALID_INPUT = "INVALID_INPUT"
    RESOURCE_NOT_FOUND = "RESOURCE_NOT_FOUND"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UPSTREAM_FAILURE = "UPSTREAM_FAILURE"
    INTERNAL_ERROR = "INTERNAL_ERROR"


_RETRYABLE = {Category.RESOURCE_EXHAUSTED, Category.UPSTREAM_FAILURE}
_ACTIONS: dict[Category, tuple[str, ...]] = {
    Category.INVALID_INPUT: ("repair_arguments", "ask"),
    Category.RESOURCE_NOT_FOUND: ("look_up", "ask"),
    Category.RESOURCE_EXHAUSTED: ("wait", "alternative", "defer"),
    Category.PERMISSION_DENIED: ("request_grant", "stop"),
    Category.UPSTREAM_FAILURE: ("back_off", "alternative"),
    Category.INTERNAL_ERROR: ("retry_once", "report"),
}


@dataclass(frozen=True)
class StructuredError:
    """One failure.

    Attributes:
        category: of it.
        code: finer, for programs: "timeout", "rate", "denied", "schema", ...
        message: for people; never with a trace.
        retryable: the same call may succeed later.
        retry_after_ms: not before; None if unknown.
        suggested_actions: what to do, the best first.
        param_hints: by JSON pointer into the arguments: what it must be.
        alternatives: tools that can do the same.
        attempt: how often the gateway had sent it.
        deadline_ms: of the turn, left; None if unknown.
        cause_id: of the request, for the audit log.
        side_effect: "none", "possible" (nobody knows whether it ran) or "committed".
    """

    category: Category
    code: str
    message: str = ""
    retryable: bool = False
    retry_after_ms: int | None = None
    suggested_actions: tuple[str, ...] = ()
    param_hints: Mapping[str, str] = field(default_factory=dict)
    alternatives: tuple[str, ...] = ()
    attempt: int = 1
    deadline_ms: int | None = None
    cause_id: str = ""
    side_effect: str = "none"

    def to_record(self) -> dict[str, Any]:
        """What goes under ``serf``."""
        record: dict[str, Any] = {"v": 1, "category": str(self.category), "code": self.code, "message": self.message}
        record |= {"retryable": self.retryable, "suggested_actions": list(self.suggested_actions)}
        record |= {"attempt": self.attempt, "side_effect": self.side_effect, "cause_id": self.cause_id}
        for name in ("retry_after_ms", "deadline_ms"):
            if getattr(self, name) is not None:
                record[name] = getattr(self, name)
        if self.param_hints:
            record["param_hints"] = dict(self.param_hints)
        if self.alternatives:
            record["alternatives"] = list(self.alternatives)
        return record

    def to_result(self) -> dict[str, Any]:
        """As the result of a tool call."""
        record = {SERF_KEY: self.to_record()}
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        return {"content": [{"type": "text", "text": text}], "structuredContent": record, "isError": True}

    @classmethod
    def from_result(cls, result: Any) -> StructuredError | None:
        """From a tool result, or from its one line of text; None if it holds no such record."""
        if not isinstance(result, Mapping) or result.get("isError") is not True:
            return None
        found = result.get("structuredContent")
        record = found.get(SERF_KEY) if isinstance(found, Mapping) else None
        if record is None:
            try:
                found = json.loads(_text_of(result))
            except ValueError:
                return None
            record = found.get(SERF_KEY) if isinstance(found, Mapping) else None
        return cls._from_record(record)

    @classmethod
    def _from_record(cls, record: Any) -> StructuredError | None:
        if not isinstance(record, Mapping) or record.get("category") not in set(Category):
            return None
        hints, attempt = record.get("param_hints"), record.get("attempt")
        return cls(
            category=Category(record["category"]),
            code=str(record.get("code", "")),
            message=str(record.get("message", "")),
            retryable=record.get("retryable") is True,
            retry_after_ms=_milliseconds(record.get("retry_after_ms")),
            suggested_actions=_texts(record.get("suggested_actions")),
            param_hints={str(k): str(v) for k, v in hints.items()} if isinstance(hints, Mapping) else {},
            alternatives=_texts(record.get("alternatives")),
            attempt=attempt if isinstance(attempt, int) else 1,
            deadline_ms=_milliseconds(record.get("deadline_ms")),
            cause_id=str(record.get("cause_id", "")),
            # What cannot be read is taken for the worse case: nothing is repeated on a guess.
            side_effect=str(record.get("side_effect", "possible")),
        )


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list) else ()


def _milliseconds(value: Any) -> int | None:
    fine = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12
    return round(value) if fine else None


def _text_of(result: Mapping[str, Any]) -> str:
    parts = result.get("content")
    texts = [p.get("text") for p in parts if isinstance(p, Mapping)] if isinstance(parts, list) else []
    return "\n".join(text for text in texts if isinstance(text, str))


def _made(category: Category, code: str, message: str = "", **more: Any) -> StructuredError:
    return StructuredError(
        category, code, message, category in _RETRYABLE, suggested_actions=_ACTIONS[category], **more
    )


_JSONRPC: dict[int, tuple[Category, str]] = {
    -32700: (Category.INVALID_INPUT, "parse"),
    -32600: (Category.INVALID_INPUT, "request"),
    -32601: (Category.RESOURCE_NOT_FOUND, "method"),
    -32602: (Category.INVALID_INPUT, "params"),
    -32603: (Category.INTERNAL_ERROR, "server"),
    -32000: (Category.UPSTREAM_FAILURE, "closed"),
    -32002: (Category.RESOURCE_NOT_FOUND, "resource"),
    -32003: (Category.PERMISSION_DENIED, "refused"),
    -32042: (Category.PERMISSION_DENIED, "elicitation"),
    -32020: (Category.INVALID_INPUT, "header"),
    -32021: (Category.INVALID_INPUT, "capability"),
    -32022: (Category.INVALID_INPUT, "version"),
    TIMEOUT_CODE: (Category.UPSTREAM_FAILURE, "timeout"),
    TOO_LARGE_CODE: (Category.UPSTREAM_FAILURE, "too_large"),
    LOST_CODE: (Category.UPSTREAM_FAILURE, "lost"),
    DENIED_CODE: (Category.PERMISSION_DENIED, "denied"),
    BUDGET_SPENT_CODE: (Category.RESOURCE_EXHAUSTED, "turn_budget"),
    BREAKER_CODE: (Category.UPSTREAM_FAILURE, "circuit_open"),
    RATE_LIMITED_CODE: (Category.RESOURCE_EXHAUSTED, "rate"),
}
_NEVER_RAN = {"denied", "refused", "rate", "turn_budget", "circuit_open", "params", "parse", "request", "method"}


def classify_jsonrpc(error: Mapping[str, Any]) -> StructuredError:
    """From the ``error`` member of a JSON-RPC answer; an unknown code is INTERNAL_ERROR."""
    code = error.get("code")
    category, name = _JSONRPC.get(code if isinstance(code, int) else 0, (Category.INTERNAL_ERROR, "unknown"))
    data = error.get("data")
    data = data if isinstance(data, Mapping) else {}
    made = _made(category, name, str(error.get("message", "")))
    if name in ("too_large", "turn_budget"):  # the same call would end the same way
        made = replace(made, retryable=False)
    ran = "none" if name in _NEVER_RAN or data.get("unsent") is True else "possible"
    return replace(made, retry_after_ms=_milliseconds(data.get("retry_after_ms")), side_effect=ran)


def classify_http(status: int, *, retry_after_s: float | None = None) -> StructuredError:
    """From an HTTP status of 400 or more; an unknown one is INTERNAL_ERROR."""
    named = {401: "unauthenticated", 403: "forbidden", 404: "not_found", 410: "gone", 408: "timeout", 429: "rate"}
    name = named.get(status, f"http_{status}")
    if status in (401, 403, 407, 451):
        category = Category.PERMISSION_DENIED
    elif status in (404, 410):
        category = Category.RESOURCE_NOT_FOUND
    elif status in (429, 402, 507):
        category = Category.RESOURCE_EXHAUSTED
    elif status in (408, 425, 502, 503, 504):
        category = Category.UPSTREAM_FAILURE
    elif 400 <= status < 500:
        category = Category.INVALID_INPUT
    else:
        category = Category.INTERNAL_ERROR
    ran = "possible" if status in (408, 500, 502, 504) or status > 504 else "none"
    wait = None if retry_after_s is None else round(retry_after_s * 1000)
    return replace(_made(category, name, f"HTTP status {status}"), retry_after_ms=wait, side_effect=ran)


def classify_exception(error: BaseException) -> StructuredError:
    """From an exception of Python; its text stays out of the record."""
    kinds: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], Category, str], ...] = (
        (TimeoutError, Category.UPSTREAM_FAILURE, "timeout"),
        (ConnectionError, Category.UPSTREAM_FAILURE, "lost"),
        (PermissionError, Category.PERMISSION_DENIED, "denied"),
        ((FileNotFoundError, LookupError), Category.RESOURCE_NOT_FOUND, "missing"),
        (MemoryError, Category.RESOURCE_EXHAUSTED, "memory"),
        ((ValueError, TypeError), Category.INVALID_INPUT, "value"),
    )
    for kind, category, name in kinds:
        if isinstance(error, kind):
            return _made(category, name, type(error).__name__, side_effect="possible")
    return _made(Category.INTERNAL_ERROR, "unknown", type(error).__name__, side_effect="possible")


_WORDS: tuple[tuple[Category, str, str], ...] = (
    (Category.RESOURCE_EXHAUSTED, "rate", r"rate.?limit|too many requests|\b429\b|quota|throttl|slow down"),
    (
        Category.PERMISSION_DENIED,
        "denied",
        r"permission|forbidden|unauthori[sz]ed|access denied|not allowed|\b40[13]\b",
    ),
    (
        Category.RESOURCE_NOT_FOUND,
        "missing",
        r"not found|no such|does ?n.t exist|does not exist|unknown (id|file|item)|\b404\b",
    ),
    (
        Category.UPSTREAM_FAILURE,
        "unavailable",
        r"timed? ?out|unavailable|connection (refused|reset|lost)|bad gateway|try again later|\b50[234]\b",
    ),
    (
        Category.INVALID_INPUT,
        "value",
        r"invalid|validation|missing (required|argument|field)|must be|expected|is required"
        r"|unexpected (argument|keyword)",
    ),
)
_RETRY_IN = re.compile(r"(?:retry|again)\D{0,20}?(\d+(?:\.\d+)?)\s*(ms|milli|s\b|sec)", re.IGNORECASE)


def classify_text(text: str) -> StructuredError:
    """From a tool's own words, by their wording: a guess, and INTERNAL_ERROR where no words are known."""
    for category, name, words in _WORDS:
        if re.search(words, text, re.IGNORECASE):
            found = _RETRY_IN.search(text) if category in _RETRYABLE else None
            wait = None
            if found:
                wait = round(float(found.group(1)) * (1 if found.group(2).lower().startswith("m") else 1000))
            return replace(_made(category, name, text), retry_after_ms=wait, side_effect="possible")
    return _made(Category.INTERNAL_ERROR, "unknown", text, side_effect="possible")


def schema_hints(schema: Mapping[str, Any] | None, arguments: Mapping[str, Any]) -> dict[str, str]:
    """Where arguments break the outer level of a JSON Schema, by JSON pointer; empty if they do not."""
    if not isinstance(schema, Mapping) or not isinstance(schema.get("properties", {}), Mapping):
        return {}
    properties: Mapping[str, Any] = schema.get("properties", {})
    hints: dict[str, str] = {}
    for name in schema.get("required", ()):
        if name not in arguments:
            default = properties.get(name, {}).get("default")
            hints[f"/{name}"] = "required" + (f"; default {json.dumps(default)}" if default is not None else "")
    for name, value in arguments.items():
        wanted = properties.get(name)
        if wanted is None:
            if schema.get("additionalProperties") is False:
                hints[f"/{name}"] = "unknown; drop it"
        elif isinstance(wanted, Mapping):
            if "type" in wanted and not _has_type(value, wanted["type"]):
                hints[f"/{name}"] = f"type {wanted['type']}"
            elif isinstance(wanted.get("enum"), list) and value not in wanted["enum"]:
                hints[f"/{name}"] = f"one of {json.dumps(wanted['enum'])}"
    return hints


def _has_type(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return any(_has_type(value, one) for one in wanted)
    if isinstance(value, bool):
        return bool(wanted == "boolean")
    kinds: dict[str, tuple[type, ...]] = {
        "string": (str,),
        "integer": (int,),
        "number": (int, float),
        "boolean": (bool,),
        "array": (list,),
        "object": (dict,),
        "null": (type(None),),
    }
    return bool(wanted not in kinds or isinstance(value, kinds[wanted]))


class StructuredErrors:
    """Interceptor: every failure of a tool call leaves as a :class:`StructuredError`.

    Refusals for want of identity stay JSON-RPC errors (-32600), as do failures of other methods.

    Args:
        catalog: for schemas and side effects.
        alternatives: tools that can stand in for a tool, by its name.
        name: in the chain.
    """

    def __init__(
        self,
        catalog: ToolCatalog | None = None,
        *,
        alternatives: Mapping[str, tuple[str, ...]] | None = None,
        name: str = "structured_errors",
    ) -> None:
        self.name = name
        self._catalog, self._alternatives = catalog or ToolCatalog(), dict(alternatives or {})

    async def __call__(self, env: Envelope, call_next: CallNext) -> Envelope:
        """Passes the call on and rewrites its failure."""
        call = call_of(env)
        if call is None:
            return await call_next(env)
        tool, arguments = call
        try:
            answer = await call_next(env)
        except Rejected as refusal:
            if refusal.code == INVALID_IDENTITY_CODE:
                raise
            return self._failed(env, classify_jsonrpc(refusal.to_jsonrpc_error()), tool, arguments)
        except Exception as error:
            cause = new_id()
            logger.exception("a stage failed on %s (cause %s)", tool, cause)
            found = replace(_made(Category.INTERNAL_ERROR, type(error).__name__), side_effect="possible")
            return self._failed(env, replace(found, cause_id=cause), tool, arguments)
        payload = answer.payload if isinstance(answer.payload, Mapping) else {}
        if isinstance(payload.get("error"), Mapping):
            if payload["error"].get("code") == INVALID_IDENTITY_CODE:
                return answer
            return self._failed(env, classify_jsonrpc(payload["error"]), tool, arguments)
        result = payload.get("result")
        if isinstance(result, Mapping) and result.get("isError") is True:
            if StructuredError.from_result(result) is not None:
                return answer
            return self._failed(env, classify_text(_text_of(result)), tool, arguments)
        return answer

    def _failed(self, env: Envelope, error: StructuredError, tool: str, arguments: Mapping[str, Any]) -> Envelope:
        facts = self._catalog.facts(tool)
        if facts.effect == "read":
            error = replace(error, side_effect="none")
        if error.category is Category.INVALID_INPUT and not error.param_hints:
            error = replace(error, param_hints=schema_hints(facts.input_schema, arguments))
        attempt = env.meta.labels.get("attempt", "")
        error = replace(
            error,
            alternatives=error.alternatives or self._alternatives.get(tool, ()),
            cause_id=error.cause_id or env.id,
            attempt=int(attempt) if attempt.isdigit() else 1,
        )
        head = {"jsonrpc": "2.0", "id": env.payload.get("id")}
        return env.answer({**head, "result": {**_of_version(), **error.to_result()}}, sender="gateway")


def _of_version() -> dict[str, Any]:
    """What a result must say in the protocol version of the running request, beside its content."""
    from mcp_types.version import MODERN_PROTOCOL_VERSIONS

    from heliograph.agents.core.gateway import current_call

    call = current_call()
    return {"resultType": "complete"} if call is not None and call.version in MODERN_PROTOCOL_VERSIONS else {}
