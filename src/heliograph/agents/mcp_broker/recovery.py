"""What an agent's client does about a structured error, by rule instead of by asking its model."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from heliograph.agents.mcp_broker.errors import Category, StructuredError
from heliograph.errors import BadInput

__all__ = ["Action", "ErrorRecovery", "Recovered", "ToolCall", "repair_arguments"]

Send = Callable[["ToolCall"], Awaitable[Mapping[str, Any]]]
"""Sends a call and returns its ``CallToolResult`` as JSON."""


@dataclass(frozen=True)
class ToolCall:
    """One call as an agent wants it.

    Attributes:
        tool: its name.
        arguments: JSON values.
        input_schema: of the tool; None if unknown.
        repeatable: a second run does no harm, or an idempotency key guards it.
    """

    tool: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    input_schema: Mapping[str, Any] | None = None
    repeatable: bool = False


@dataclass(frozen=True)
class Action:
    """What to do next.

    Attributes:
        kind: "retry" sends ``call`` after ``wait_ms``; "look_up" asks ``lookup`` first; the others end the attempt:
            "ask" the model, "request_grant" from a person, "defer" to later, "report" the failure.
        call: to send; the original, a repaired one, or one of another tool.
        wait_ms: before it.
        lookup: tool that finds an id, for "look_up".
        reason: one line, for a log.
    """

    kind: Literal["retry", "look_up", "ask", "request_grant", "defer", "report"]
    call: ToolCall
    reason: str
    wait_ms: float = 0.0
    lookup: ToolCall | None = None


@dataclass(frozen=True)
class Recovered:
    """How a call ended.

    Attributes:
        result: the last ``CallToolResult``.
        ok: it is no error.
        calls: sent in all, look-ups included.
        last: the action that ended it; None after a success at once.
    """

    result: Mapping[str, Any]
    ok: bool
    calls: int
    last: Action | None


class ErrorRecovery:
    """A deterministic answer to each category of failure.

    Nothing that may have changed something is sent twice: after ``side_effect`` "committed" only a repeatable call is
    sent again, after "possible" also one whose arguments were refused or whose id was not found, since such a call did
    not run.

    Args:
        most_calls: of one request, look-ups included.
        base_ms: of the back-off, which doubles, with full jitter.
        lookups: by tool, the tool that finds ids, and the argument that holds the id: ``{"file.read": ("file.search",
            "name")}``. It is called with ``{"query": value}``.
        seed: of the jitter.

    Raises:
        BadInput: a number that cannot be.
    """

    def __init__(
        self,
        *,
        most_calls: int = 4,
        base_ms: float = 200.0,
        lookups: Mapping[str, tuple[str, str]] | None = None,
        seed: int = 0,
    ) -> None:
        if most_calls < 1 or not base_ms > 0:
            raise BadInput(f"recovery needs 1 call or more and a back-off above 0; got {most_calls}, {base_ms:g} ms")
        self._most_calls, self._base_ms, self._lookups = most_calls, base_ms, dict(lookups or {})
        self._noise = random.Random(seed)

    def decide(self, error: StructuredError, call: ToolCall, *, attempt: int, remaining_ms: float) -> Action:
        """What to do about the failure of the ``attempt``-th call, from 1, with ``remaining_ms`` left of the turn."""
        if error.side_effect == "committed" and not call.repeatable:
            return Action("report", call, "it has run, and a second run may do harm")
        if error.category is Category.INVALID_INPUT:
            repaired = repair_arguments(call, error.param_hints) if attempt == 1 else None
            if repaired is None:
                return Action("ask", call, "the arguments cannot be repaired by rule")
            return Action("retry", repaired, "arguments repaired")
        if error.category is Category.RESOURCE_NOT_FOUND:
            found = self._lookups.get(call.tool)
            if found is None or attempt > 1 or found[1] not in call.arguments:
                return Action("ask", call, "no tool is known that finds the right id")
            query = {"query": call.arguments[found[1]]}
            return Action("look_up", call, "look for the id", lookup=ToolCall(found[0], query, repeatable=True))
        if error.category is Category.PERMISSION_DENIED:
            return Action("request_grant", call, "a permission is missing; trying again cannot help")
        if error.side_effect != "none" and not call.repeatable:
            return Action("report", call, "it may have run, and a second run may do harm")
        if error.category is Category.INTERNAL_ERROR:
            if attempt == 1:
                return Action("retry", call, "once more", wait_ms=min(self._base_ms, remaining_ms))
            return Action("report", call, "failed twice in an unknown way")
        return self._later(error, call, attempt, remaining_ms)

    def _later(self, error: StructuredError, call: ToolCall, attempt: int, remaining_ms: float) -> Action:
        if error.category is Category.RESOURCE_EXHAUSTED:
            wait_ms = float(error.retry_after_ms if error.retry_after_ms is not None else self._base_ms * 2**attempt)
        else:
            wait_ms = self._noise.random() * self._base_ms * 2**attempt
            wait_ms = max(wait_ms, float(error.retry_after_ms or 0))
        if error.retryable and wait_ms < remaining_ms and (attempt < 3 or not error.alternatives):
            return Action("retry", call, "wait, then again", wait_ms=wait_ms)
        others = [tool for tool in error.alternatives if tool != call.tool]
        if others:
            # What is known of the first tool says nothing of the second.
            return Action("retry", replace(call, tool=others[0], input_schema=None), "another tool can do it")
        return Action("defer", call, "it does not fit into this turn")

    async def run(
        self,
        call: ToolCall,
        send: Send,
        *,
        budget_ms: float = 30_000.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] | None = None,
    ) -> Recovered:
        """Sends a call and does what the rules say until it succeeds, or they end.

        Args:
            call: to make.
            send: makes a call.
            budget_ms: for all of it, waits included; a call that runs is not cut off.
            sleep, now: seconds; those of the running event loop by default.
        """
        clock = now or asyncio.get_running_loop().time
        deadline, calls, attempt = clock() + budget_ms / 1000, 0, 0
        while True:
            result = await send(call)
            calls, attempt = calls + 1, attempt + 1
            if result.get("isError") is not True:
                return Recovered(result, True, calls, None)
            error = StructuredError.from_result(result)
            if error is None:
                return Recovered(result, False, calls, Action("ask", call, "the failure is not machine-readable"))
            action = self.decide(error, call, attempt=attempt, remaining_ms=(deadline - clock()) * 1000)
            if action.kind not in ("retry", "look_up") or calls >= self._most_calls:
                return Recovered(result, False, calls, action)
            if action.lookup is not None:
                answer = await send(action.lookup)
                calls += 1
                matches = _matches(answer)
                if len(matches) != 1:
                    ask = replace(action, kind="ask", reason=f"{len(matches)} things fit")
                    return Recovered(result, False, calls, ask)
                key = self._lookups[call.tool][1]
                call = replace(call, arguments={**call.arguments, key: matches[0]})
                continue
            if action.wait_ms:
                await sleep(action.wait_ms / 1000)
            call = action.call


def _matches(result: Mapping[str, Any]) -> list[Any]:
    """What a look-up found: the only list in its structured content, or in its text as JSON."""
    found: Any = result.get("structuredContent")
    if found is None:
        try:
            found = json.loads("".join(str(part.get("text", "")) for part in result.get("content", ())))
        except (ValueError, AttributeError):
            return []
    if isinstance(found, Mapping):
        lists = [value for value in found.values() if isinstance(value, list)]
        found = lists[0] if len(lists) == 1 else []
    return list(found) if isinstance(found, list) and result.get("isError") is not True else []


_MAY_DEFAULT = re.compile(r"default (.+)$", re.DOTALL)


def repair_arguments(call: ToolCall, hints: Mapping[str, str]) -> ToolCall | None:
    """The call with arguments that fit its schema and the error's hints; None if nothing can be changed for certain.

    A text that is a number becomes one, and the other way round; what the schema does not know is dropped; a missing
    value is taken from its default. A value is never invented.
    """
    schema = call.input_schema if isinstance(call.input_schema, Mapping) else {}
    properties = schema.get("properties", {}) if isinstance(schema.get("properties", {}), Mapping) else {}
    fixed = dict(call.arguments)
    for pointer, hint in hints.items():
        name = pointer.removeprefix("/")
        if name not in fixed:
            default = _MAY_DEFAULT.search(hint)
            if default:
                try:
                    fixed[name] = json.loads(default.group(1))
                except ValueError:
                    return None
        elif hint.startswith("unknown"):
            del fixed[name]
        elif hint.startswith("type "):
            properties = {**properties, name: {**properties.get(name, {}), "type": hint.removeprefix("type ")}}
    for name, wanted in properties.items():
        if not isinstance(wanted, Mapping):
            continue
        if name in fixed:
            changed, value = _coerced(fixed[name], wanted.get("type"))
            if changed:
                fixed[name] = value
        elif name in schema.get("required", ()):
            if "default" not in wanted:
                return None
            fixed[name] = wanted["default"]
    if schema.get("additionalProperties") is False:
        fixed = {name: value for name, value in fixed.items() if name in properties}
    return replace(call, arguments=fixed) if fixed != dict(call.arguments) or _types_changed(fixed, call) else None


def _types_changed(fixed: Mapping[str, Any], call: ToolCall) -> bool:
    return any(type(value) is not type(call.arguments.get(name)) for name, value in fixed.items())


def _coerced(value: Any, wanted: Any) -> tuple[bool, Any]:
    if isinstance(value, str) and wanted in ("integer", "number", "boolean", "array", "object"):
        try:
            read = json.loads(value)
        except ValueError:
            return False, value
        kinds = {"integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}
        fits = isinstance(read, kinds[wanted]) and (wanted == "boolean" or not isinstance(read, bool))  # type: ignore[arg-type]
        return fits, read if fits else value
    if wanted == "string" and isinstance(value, int | float) and not isinstance(value, bool):
        return True, json.dumps(value)
    if wanted == "integer" and isinstance(value, float) and value.is_integer():
        return True, int(value)
    if wanted == "array" and not isinstance(value, list | str | Mapping):
        return True, [value]
    return False, value
