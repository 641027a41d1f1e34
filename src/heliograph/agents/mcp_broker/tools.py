"""What is known of each tool: its schemas, and whether calling it twice does harm. Learned from lists that pass."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.interceptor import CallNext
from heliograph.errors import BadInput

__all__ = ["ToolCatalog", "ToolFacts", "call_of"]

Effect = Literal["read", "idempotent", "write"]


@dataclass(frozen=True)
class ToolFacts:
    """One tool.

    Attributes:
        name: as callers know it.
        effect: "read" changes nothing, "idempotent" may be repeated, "write" may not.
        input_schema, output_schema: JSON Schemas; empty if unknown.
        declared: the tool's server or the configuration said the effect; otherwise "write" is assumed.
    """

    name: str
    effect: Effect = "write"
    input_schema: Mapping[str, Any] | None = None
    output_schema: Mapping[str, Any] | None = None
    declared: bool = False

    @property
    def repeatable(self) -> bool:
        """Whether a second call does no harm."""
        return self.effect != "write"


def call_of(env: Envelope) -> tuple[str, Mapping[str, Any]] | None:
    """Name and arguments if the message calls a tool."""
    payload = env.payload
    if not isinstance(payload, Mapping) or payload.get("method") != "tools/call":
        return None
    params = payload.get("params") or {}
    arguments = params.get("arguments")
    return str(params.get("name", "")), arguments if isinstance(arguments, Mapping) else {}


class ToolCatalog:
    """Interceptor: reads the tool lists that servers send, and answers what is known of a tool.

    Hints of servers are claims by those servers; ``effects`` of the configuration come first.

    Args:
        effects: globs of tool names to "read", "idempotent" or "write"; the first match counts.
        trust_hints: believe the annotations of servers. Otherwise tools without an entry count as "write".
        capacity: tools kept.
        name: in the chain.

    Raises:
        BadInput: an unknown effect.
    """

    def __init__(
        self,
        effects: Mapping[str, Effect] | None = None,
        *,
        trust_hints: bool = True,
        capacity: int = 10_000,
        name: str = "tool_catalog",
    ) -> None:
        for pattern, effect in (effects or {}).items():
            if effect not in ("read", "idempotent", "write"):
                raise BadInput(f"the effect of {pattern!r} is read, idempotent or write; got {effect!r}")
        self.name = name
        self._effects, self._trust, self._capacity = dict(effects or {}), trust_hints, capacity
        self._tools: OrderedDict[str, ToolFacts] = OrderedDict()

    def facts(self, tool: str) -> ToolFacts:
        """What is known of a tool; an unknown one may not be repeated."""
        known = self._tools.get(tool) or ToolFacts(tool)
        for pattern, effect in self._effects.items():
            if fnmatchcase(tool, pattern):
                return ToolFacts(tool, effect, known.input_schema, known.output_schema, True)
        return known

    def learn(self, tools: Any) -> None:
        """Takes the entries of a tool list; what is malformed is passed over."""
        for entry in tools if isinstance(tools, list) else ():
            if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
                continue
            hints = entry.get("annotations")
            effect: Effect = "write"
            declared = False
            if self._trust and isinstance(hints, Mapping):
                declared = "readOnlyHint" in hints or "idempotentHint" in hints
                if hints.get("readOnlyHint") is True:
                    effect = "read"
                elif hints.get("idempotentHint") is True:
                    effect = "idempotent"
            schemas = (entry.get(key) for key in ("inputSchema", "outputSchema"))
            before, after = (schema if isinstance(schema, Mapping) else None for schema in schemas)
            name = entry["name"]
            self._tools.pop(name, None)
            if len(self._tools) >= self._capacity:
                self._tools.popitem(last=False)
            self._tools[name] = ToolFacts(name, effect, before, after, declared)

    async def __call__(self, env: Envelope, call_next: CallNext) -> Envelope:
        """Passes everything unchanged."""
        answer = await call_next(env)
        if isinstance(env.payload, Mapping) and env.payload.get("method") == "tools/list":
            result = answer.payload.get("result") if isinstance(answer.payload, Mapping) else None
            if isinstance(result, Mapping):
                self.learn(result.get("tools"))
        return answer
