"""Faulty calls and what four clients make of them, in virtual time.

A tool fails in one of six ways, some of which can be mended. One client reads the record that the server wrote, one the
record that the gateway made of the server's prose, three read the prose. All may call equally often and know the tool's
schema and look-up tool. Whether a call that changes something was run twice is counted at the server.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from heliograph.agents.core.envelope import Envelope
from heliograph.agents.mcp_broker.errors import Category, StructuredError, StructuredErrors, schema_hints
from heliograph.agents.mcp_broker.recovery import ErrorRecovery, ToolCall, repair_arguments
from heliograph.agents.mcp_broker.tools import ToolCatalog
from heliograph.clock import run_virtual
from heliograph.trials.check import Context

__all__ = ["ARMS", "FaultyServer", "measure", "play"]

ARMS = ("structured", "structured at the gateway", "retry everything", "never retry", "regex on the text")
MOST_CALLS = 4
BUDGET_MS = 10_000.0
LOOKUPS = {"read": ("search", "name"), "write": ("search", "name")}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "limit": {"type": "integer"}, "mode": {"type": "string"}},
    "required": ["name", "limit"],
    "additionalProperties": False,
}
PROSE: dict[Category, tuple[str, ...]] = {
    Category.INVALID_INPUT: (
        "Invalid value for 'limit': expected integer",
        "1 validation error for call[read]: limit - Input should be a valid integer",
        "Bad request: cannot use limit as given",
        "Something is wrong with your arguments, see the manual",
    ),
    Category.RESOURCE_NOT_FOUND: (
        "File not found",
        "404 Client Error",
        "No such item in this collection",
        "I could not locate what you asked for",
    ),
    Category.RESOURCE_EXHAUSTED: (
        "Rate limit exceeded, retry after {wait_s} s",
        "429 Too Many Requests",
        "Quota used up for now",
        "You are going too fast. Come back in a little while.",
    ),
    Category.PERMISSION_DENIED: (
        "Permission denied",
        "403 Forbidden",
        "Your role does not include this operation",
        "Ask an administrator",
    ),
    Category.UPSTREAM_FAILURE: (
        "Service unavailable, try again later",
        "Request timed out after 30 s",
        "502 Bad Gateway",
        "The backend hung up on us",
    ),
    Category.INTERNAL_ERROR: (
        "Internal server error",
        "Unexpected exception: KeyError('x')",
        "Oops",
        "An error occurred while processing your request",
    ),
}


@dataclass
class FaultyServer:
    """A tool that fails in one way until what is wrong is mended.

    Attributes:
        category: of the failure; None for a tool that works.
        mendable: some sequence of calls succeeds.
        writes: a run changes something.
        wording: which of the prose texts it says.
        ran: how often a run changed something.
        calls: that came in.
    """

    category: Category | None
    mendable: bool
    writes: bool
    wording: int
    failures: int = 1
    ran: int = 0
    calls: int = 0
    ready_at: float = field(default=0.0)

    def first_call(self) -> ToolCall:
        """What the agent wants."""
        wrong = self.category is Category.INVALID_INPUT
        name = "report" if self.category is Category.RESOURCE_NOT_FOUND else "rep-17"
        arguments: dict[str, Any] = {"name": name, "limit": "5" if wrong else 5}
        if wrong and not self.mendable:
            del arguments["limit"]
        return ToolCall("write" if self.writes else "read", arguments, SCHEMA, repeatable=not self.writes)

    def answer(self, call: ToolCall, now: float, *, structured: bool) -> dict[str, Any]:
        """The result of a call, with the record or with prose."""
        self.calls += 1
        if call.tool == "search":
            found = ["rep-17"] if self.mendable else ["rep-17", "rep-18"]
            return {"content": [], "structuredContent": {"ids": found}}
        if call.tool == "spare":
            self.ran += 1
            return {"content": [{"type": "text", "text": "done"}]}
        error = self._failure(call, now)
        if error is None:
            self.ran += 1
            return {"content": [{"type": "text", "text": "done"}]}
        if structured:
            return error.to_result()
        text = PROSE[error.category][self.wording].format(wait_s=(error.retry_after_ms or 0) / 1000)
        return {"content": [{"type": "text", "text": text}], "isError": True}

    def _failure(self, call: ToolCall, now: float) -> StructuredError | None:
        kind = self.category
        if kind is None:
            return None
        if kind is Category.INVALID_INPUT:
            hints = schema_hints(SCHEMA, call.arguments)
            return StructuredError(kind, "schema", param_hints=hints) if hints else None
        if kind is Category.RESOURCE_NOT_FOUND:
            return None if call.arguments["name"] == "rep-17" else StructuredError(kind, "missing")
        if kind is Category.PERMISSION_DENIED:
            return StructuredError(kind, "denied")
        if kind is Category.RESOURCE_EXHAUSTED:
            if not self.ready_at:
                self.ready_at = now + (1.5 if self.mendable else 3600.0)
            left = self.ready_at - now
            after = round(left * 1000) + 1
            return StructuredError(kind, "rate", retryable=True, retry_after_ms=after) if left > 0 else None
        if self.mendable and self.calls > self.failures:
            return None
        # A crash after the change was made: the failure that must not be answered by another run.
        committed = self.writes and self.wording % 2 == 1
        self.ran += committed
        effect = "committed" if committed else "none"
        retryable = kind is Category.UPSTREAM_FAILURE
        return StructuredError(kind, "failed", retryable=retryable, side_effect=effect)


class _Gateway:
    """The stage that turns prose into a record, before the server."""

    def __init__(self, server: FaultyServer) -> None:
        catalog = ToolCatalog({"read": "read", "search": "read"})
        catalog.learn([{"name": name, "inputSchema": SCHEMA} for name in ("read", "write")])
        self._stage, self._server = StructuredErrors(catalog), server

    async def send(self, call: ToolCall) -> Mapping[str, Any]:
        params = {"name": call.tool, "arguments": dict(call.arguments)}
        payload = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}

        async def handle(env: Envelope) -> Envelope:
            result = self._server.answer(call, asyncio.get_running_loop().time(), structured=False)
            return env.answer({"jsonrpc": "2.0", "id": 1, "result": result})

        answer = await self._stage(Envelope(topic="mcp.tools.call", kind="request", payload=payload), handle)
        result: Mapping[str, Any] = answer.payload["result"]
        return result


_TRY_AGAIN = re.compile(r"rate.?limit|too many|429|quota|unavailable|timed? ?out|try again|50[0234]|gateway", re.I)
_WAIT = re.compile(r"retry after (\d+(?:\.\d+)?) s", re.I)
_WRONG = re.compile(r"invalid|validation|expected|bad request", re.I)
_MISSING = re.compile(r"not found|404|no such", re.I)


async def _by_prose(policy: str, server: FaultyServer) -> bool:
    """A client that reads text; true if the call succeeded in the end."""
    loop = asyncio.get_running_loop()
    call, calls = server.first_call(), 0
    deadline = loop.time() + BUDGET_MS / 1000
    repaired = looked = False
    while True:
        result = server.answer(call, loop.time(), structured=False)
        calls += 1
        if result.get("isError") is not True:
            return True
        if policy == "never retry" or calls >= MOST_CALLS:
            return False
        wait_s = 0.2 * 2**calls
        if policy == "regex on the text":
            text = result["content"][0]["text"]
            if _WRONG.search(text) and not repaired:
                fixed = repair_arguments(call, {})
                if fixed is None:
                    return False
                call, repaired, wait_s = fixed, True, 0.0
            elif _MISSING.search(text) and not looked:
                found = server.answer(ToolCall("search"), loop.time(), structured=False)["structuredContent"]["ids"]
                calls += 1
                if len(found) != 1:
                    return False
                fixed_name = {**call.arguments, "name": found[0]}
                call, looked, wait_s = ToolCall(call.tool, fixed_name, SCHEMA, call.repeatable), True, 0.0
            elif _TRY_AGAIN.search(text):
                said = _WAIT.search(text)
                wait_s = float(said.group(1)) if said else wait_s
            else:
                return False
        if loop.time() + wait_s > deadline:
            return False
        await asyncio.sleep(wait_s)


async def _by_record(arm: str, server: FaultyServer, seed: int) -> bool:
    recovery = ErrorRecovery(most_calls=MOST_CALLS, lookups=LOOKUPS, seed=seed)
    gateway = _Gateway(server)

    async def direct(call: ToolCall) -> Mapping[str, Any]:
        return server.answer(call, asyncio.get_running_loop().time(), structured=True)

    send = direct if arm == "structured" else gateway.send
    return (await recovery.run(server.first_call(), send, budget_ms=BUDGET_MS)).ok


@dataclass(frozen=True)
class Played:
    """One case under one client.

    Attributes:
        ok: it succeeded in the end.
        calls: that the server saw.
        unsafe: a change was made more than once.
        seconds: of virtual time.
    """

    ok: bool
    calls: int
    unsafe: bool
    seconds: float


def play(arm: str, server: FaultyServer, seed: int = 0) -> Played:
    """Runs one case to its end."""

    async def case() -> tuple[bool, float]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        if arm.startswith("structured"):
            ok = await _by_record(arm, server, seed)
        else:
            ok = await _by_prose(arm, server)
        return ok, loop.time() - began

    ok, seconds = run_virtual(case())
    return Played(ok, server.calls, server.writes and server.ran > 1, seconds)


def cases(count: int, seed: int, fault_rate: float) -> list[tuple[Category | None, bool, bool, int, int]]:
    """Kinds of failure in equal numbers: (category, mendable, writes, wording, failures before it works)."""
    noise, kinds, made = random.Random(seed), list(Category), []
    for number in range(count):
        kind: Category | None = kinds[number % len(kinds)]
        mendable = kind is not Category.PERMISSION_DENIED and noise.random() < 0.7
        writes, wording, failures = noise.random() < 0.4, noise.randrange(4), noise.choice((1, 1, 2))
        if noise.random() >= fault_rate:
            kind, mendable = None, True
        made.append((kind, mendable, writes, wording, failures))
    return made


def measure(context: Context) -> Mapping[str, Any]:
    """One client on all cases."""
    load = context.workload
    played = []
    by_category: dict[str, list[bool]] = {}
    for number, case in enumerate(cases(load["cases"], context.seed, load["fault_rate"])):
        kind, mendable, writes, wording, failures = case
        played.append(play(context.contender, FaultyServer(kind, mendable, writes, wording, failures), number))
        by_category.setdefault(str(kind), []).append(played[-1].ok)
    context.keep("recovered by category", {kind: sum(oks) / len(oks) for kind, oks in sorted(by_category.items())})
    context.keep("seconds of waiting a case", sum(one.seconds for one in played) / len(played))
    return {
        "recovered": sum(one.ok for one in played) / len(played),
        "calls": sum(one.calls for one in played) / len(played),
        "safe": [not one.unsafe for one in played],
        "unsafe_share": sum(one.unsafe for one in played) / len(played),
    }
