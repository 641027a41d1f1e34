"""Rules and formats against references written another way, and planted mistakes that must be noticed."""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from heliograph.agents.core.audit import AuditLog, verify
from heliograph.agents.core.identity import Principal
from heliograph.agents.mcp_broker.access import AccessControl, Rule
from heliograph.agents.mcp_broker.allocation import POLICIES, PlannedCall, ToolTimes, make_policy
from heliograph.agents.mcp_broker.errors import (
    Category,
    StructuredError,
    classify_exception,
    classify_http,
    classify_jsonrpc,
    classify_text,
)
from heliograph.trials.check import Context

__all__ = ["measure", "reference_decision"]

_NAMES = ("crm.get", "crm.set", "mail.send", "mail.read")
_TOOLS = ("*", "crm.*", "*.read", "mail.send", "crm.?et")
_TENANTS, _ROLES, _SUBJECTS = ("a", "b"), ("agent", "admin"), ("ann", "bob")


def _some_rules(noise: random.Random) -> list[Rule]:
    return [
        Rule(
            noise.choice(("allow", "allow", "deny")),
            tool=noise.choice(_TOOLS),
            tenant=noise.choice(("*", *_TENANTS)),
            role=noise.choice(("*", *_ROLES)),
            subject=noise.choice(("*", *_SUBJECTS)),
        )
        for _ in range(noise.randrange(5))
    ]


def _glob(pattern: str, text: str) -> bool:
    """A second implementation of the globs that the rules here use."""
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), text) is not None


def reference_decision(rules: Sequence[Rule], who: Principal, tool: str) -> bool:
    """Sets instead of loops: those that fit; one that allows, none that denies."""
    fits = {
        rule.effect
        for rule in rules
        if _glob(rule.tool, tool)
        and _glob(rule.tenant, who.tenant)
        and _glob(rule.subject, who.subject)
        and (rule.role == "*" or rule.role in who.roles)
    }
    return fits == {"allow"}


def _decisions(cases: int, noise: random.Random) -> tuple[list[bool], bool]:
    """Equal decisions, and whether leaving out a rule was ever noticed."""
    equal, noticed = [], False
    for _ in range(cases):
        rules = _some_rules(noise)
        who = Principal(
            noise.choice(_SUBJECTS), noise.choice(_TENANTS), roles=frozenset(r for r in _ROLES if noise.random() < 0.5)
        )
        tool = noise.choice(_NAMES)
        ours = AccessControl(rules).decide(who, "tool", tool)[0]
        equal.append(ours == reference_decision(rules, who, tool))
        noticed |= AccessControl(rules[1:]).decide(who, "tool", tool)[0] != reference_decision(rules, who, tool)
    return equal, noticed


def _limits(cases: int, noise: random.Random) -> tuple[list[bool], bool]:
    """Whether every limit is above 0 and within what is left, for all policies."""
    fine = []
    for number in range(cases):
        name = POLICIES[number % len(POLICIES)]
        remaining = noise.uniform(1, 5000)
        policy = make_policy(name, total_ms=5000)
        plan = [
            PlannedCall(ToolTimes(f"tool{place}", median, median * noise.uniform(1.1, 20), epoch=number))
            for place in range(noise.randrange(1, 6))
            for median in (noise.uniform(1, 2000),)
        ]
        fine.append(0 < policy.limit_ms(remaining, plan) <= remaining)
    too_long = make_policy("constant", total_ms=1000).limit_ms(100.0, [PlannedCall(ToolTimes("x", 1, 2))]) + 1
    return fine, not 0 < too_long <= 100.0


def _records(noise: random.Random, cases: int) -> tuple[list[bool], bool]:
    """Whether every failure has one category and reads back equal, from the structured form and from its text."""
    found = [classify_jsonrpc({"code": code, "message": "m"}) for code in range(-32800, -31999)]
    found += [classify_http(status) for status in range(400, 600)]
    kinds = (ValueError, TimeoutError, KeyError, PermissionError, OSError, RuntimeError, MemoryError)
    found += [classify_exception(kind()) for kind in kinds]
    letters = 'abcdefgh 0123456789 not found limit denied \u00e9\u2028"'
    found += [classify_text("".join(noise.choice(letters) for _ in range(30))) for _ in range(cases)]
    fine = []
    for error in found:
        result = error.to_result()
        text_only = {"content": result["content"], "isError": True}
        fine.append(
            error.category in set(Category)
            and StructuredError.from_result(result) == error
            and StructuredError.from_result(text_only) == error
        )
    changed = replace(
        found[0],
        category=Category.PERMISSION_DENIED if found[0].category != "PERMISSION_DENIED" else Category.INTERNAL_ERROR,
    )
    return fine, StructuredError.from_result(changed.to_result()) != found[0]


def _chain(noise: random.Random, folder: Path) -> tuple[list[bool], bool]:
    """Whether a whole log verifies, and every kind of change to it is named at its line."""
    path, lines = folder / "audit.jsonl", 12
    with AuditLog(path, fsync="never") as log:
        for number in range(lines):
            log.append({"event": "request", "number": number})
    whole = path.read_bytes().splitlines(keepends=True)
    fine = [verify(path).ok and verify(path).lines == lines]
    noticed = []
    for kind in ("edit", "delete", "swap"):
        place = noise.randrange(1, lines - 1)
        rows = list(whole)
        if kind == "edit":
            row = json.loads(rows[place])
            rows[place] = json.dumps({**row, "number": -1}).encode() + b"\n"
        elif kind == "delete":
            del rows[place]
        else:
            rows[place], rows[place + 1] = rows[place + 1], rows[place]
        path.write_bytes(b"".join(rows))
        found = verify(path)
        noticed.append(not found.ok and found.bad_line == place + 1)
    return fine, all(noticed)


def measure(context: Context) -> Mapping[str, Any]:
    """Everything that must be equal, and every planted mistake that must be noticed."""
    noise, cases = random.Random(context.seed), context.workload["cases"]
    with tempfile.TemporaryDirectory() as folder:
        parts = {
            "access": _decisions(cases, noise),
            "limits": _limits(cases, noise),
            "records": _records(noise, cases),
            "audit": _chain(noise, Path(folder)),
        }
    context.keep("cases", {name: len(equal) for name, (equal, _) in parts.items()})
    return {
        "equal": [one for equal, _ in parts.values() for one in equal],
        "notices": [noticed for _, noticed in parts.values()],
    }
