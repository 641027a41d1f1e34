"""Is a gateway ready for production? Questions to its configuration and servers, in the paper's five dimensions.

What can be read from the file is answered from the file; with ``probe``, each server is asked for its tools.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from heliograph.agents.core.config import GatewayConfig, read_config
from heliograph.agents.core.upstream import UpstreamSpec
from heliograph.agents.mcp_broker.pipeline import BrokerOptions
from heliograph.errors import BadInput

__all__ = ["ChecklistItem", "Dimension", "check_config", "check_tools", "checklist", "listed_tools"]

Dimension = Literal["server contracts", "user context", "timeouts", "errors", "observability"]
State = Literal["pass", "fail", "unknown"]

_LONGEST_MS = 10_000.0
_PLAIN_NAME = re.compile(r"^(?:tool|func|function|test|do|run|call|foo|bar|x|y)?_?\d*$", re.IGNORECASE)


@dataclass(frozen=True)
class ChecklistItem:
    """One question.

    Attributes:
        dimension: of the five.
        question: that "pass" answers with yes.
        state: "unknown" where nothing could be looked at.
        why: what was seen.
        fix: what to do; empty for "pass".
    """

    dimension: Dimension
    question: str
    state: State
    why: str
    fix: str = ""


def _item(dimension: Dimension, question: str, passed: bool, why: str, fix: str) -> ChecklistItem:
    return ChecklistItem(dimension, question, "pass" if passed else "fail", why, "" if passed else fix)


def broker_of(config: GatewayConfig) -> BrokerOptions | None:
    """The options of the configuration's stage ``broker``; None if it has none.

    Raises:
        BadInput: they are refused.
    """
    for stage in config.policy.stages:
        if stage.name == "broker":
            return BrokerOptions.from_mapping(stage.options)
    return None


def check_config(config: GatewayConfig) -> list[ChecklistItem]:
    """What the configuration alone answers.

    Raises:
        BadInput: the options of the broker are refused.
    """
    policy, broker = config.policy, broker_of(config)
    stage = 'add {"name": "broker", "options": {...}} to heliograph.stages'
    items = [_item("user context", "are callers identified?", policy.auth is not None, _auth(config), "add auth")]
    opened = broker is not None and broker.identity.anonymous == "allow"
    said = "anonymous callers are let in" if opened else "anonymous callers are refused" if broker else "no broker"
    items.append(
        _item(
            "user context",
            "is anonymous access off?",
            broker is not None and not opened,
            said,
            stage if not broker else 'set identity.anonymous to "deny"',
        )
    )
    rules = list(broker.access) if broker else []
    wide = [
        r
        for r in rules
        if r.effect == "allow" and (r.tool, r.role, r.scope, r.subject, r.tenant) == ("*",) + ("*",) * 4
    ]
    items.append(
        _item(
            "user context",
            "do rules say who may use which tool?",
            bool(rules) and not wide,
            f"{len(rules)} rules" + (", one of which allows everybody everything" if wide else ""),
            "write access rules with a role, scope, subject or tenant",
        )
    )
    clean = broker.sanitize if broker else None
    items.append(
        _item(
            "user context",
            "are records of other tenants taken out of answers?",
            bool(clean and clean.records),
            f"{len(clean.records) if clean else 0} rules for records",
            "say in sanitize.records where each tool's records and their tenants are",
        )
    )
    signed = bool(broker and broker.send_context and broker.context_secret)
    items.append(
        _item(
            "user context",
            "do servers get a signed context?",
            signed,
            "signed" if signed else "not signed",
            "set context_secret, and use verify_context in your servers",
        )
    )
    items += _timeouts(config, broker)
    structured = bool(broker and broker.structured_errors)
    items.append(_item("errors", "are failures machine-readable?", structured, "on" if structured else "off", stage))
    items.append(
        _item(
            "errors",
            "is there a circuit breaker?",
            bool(broker and broker.breaker),
            _on(broker and broker.breaker),
            stage,
        )
    )
    items.append(
        _item(
            "errors",
            "are calls with a key run once?",
            bool(broker and broker.replay_ttl_s),
            "answers are kept" if broker and broker.replay_ttl_s else "off",
            "set replay_ttl_s above 0",
        )
    )
    items.append(
        _item(
            "errors",
            "are callers limited?",
            bool((broker and broker.rate) or policy.rate),
            _on((broker and broker.rate) or policy.rate),
            "add rate",
        )
    )
    audited = policy.audit is not None or bool(broker and broker.audit)
    items.append(_item("observability", "is there an audit log?", audited, _on(audited), "add heliograph.audit"))
    fail_open = bool(policy.audit and policy.audit.fail_open) or bool(
        broker and broker.audit and broker.audit.on_failure == "open"
    )
    items.append(
        _item(
            "observability",
            "is nothing sent that cannot be recorded?",
            audited and not fail_open,
            "unrecorded requests pass" if fail_open else _on(audited),
            'set fail_open to false, or on_failure to "closed"',
        )
    )
    items.append(
        ChecklistItem("observability", "are health and metrics served?", "pass", "/health and /metrics, with latencies")
    )
    return items


def _timeouts(config: GatewayConfig, broker: BrokerOptions | None) -> list[ChecklistItem]:
    budget = broker.budget if broker else None
    said = f"{budget.total_ms:g} ms, policy {budget.policy}" if budget else "off"
    items = [_item("timeouts", "has a turn a time budget?", budget is not None, said, "add budget to the broker")]
    harmful = budget is not None and budget.policy == "proportional"
    items.append(
        _item(
            "timeouts",
            "is the budget split in a way that stalls cannot spoil?",
            budget is not None and not harmful,
            said,
            'use the policy "cap" or "optimal": shares by the 99th percentile starve every tool beside one that stalls',
        )
    )
    total_s = (budget.total_ms if budget else _LONGEST_MS) / 1000
    slow = [name for name, spec in config.specs.items() if spec.timeout_s > max(60.0, 4 * total_s)]
    items.append(
        _item(
            "timeouts",
            "does each server have a timeout of its own?",
            not slow,
            f"too long for {', '.join(slow)}" if slow else "yes",
            "set heliograph.upstreams.NAME.timeout_s",
        )
    )
    return items


def _auth(config: GatewayConfig) -> str:
    auth = config.policy.auth
    return "no auth" if auth is None else "JSON Web Tokens" if auth.jwks else f"{len(auth.tokens)} fixed tokens"


def _on(what: object) -> str:
    return "on" if what else "off"


def check_tools(server: str, tools: Sequence[Mapping[str, Any]]) -> list[ChecklistItem]:
    """The contracts of one server, from its tool list as JSON."""
    questions: list[tuple[str, list[str], str]] = [
        (
            "do names say what tools do?",
            [_name(tool) for tool in tools if len(_name(tool)) < 3 or _PLAIN_NAME.match(_name(tool))],
            "rename them",
        ),
        (
            "are tools described?",
            [_name(tool) for tool in tools if len(str(tool.get("description") or "")) < 10],
            "write a description",
        ),
        ("are arguments typed?", [_name(tool) for tool in tools if not _typed(tool)], "give every property a type"),
        (
            "are side effects declared?",
            [_name(tool) for tool in tools if "readOnlyHint" not in (tool.get("annotations") or {})],
            "annotate readOnlyHint, or list them under effects",
        ),
        (
            "do tools that change something say whether they may be repeated?",
            [
                _name(tool)
                for tool in tools
                if (tool.get("annotations") or {}).get("readOnlyHint") is not True
                and "idempotentHint" not in (tool.get("annotations") or {})
            ],
            "annotate idempotentHint",
        ),
    ]
    return [
        _item(
            "server contracts",
            f"{server}: {question}",
            not bad,
            f"{len(tools)} tools" if not bad else f"{len(bad)} of {len(tools)} do not: {', '.join(bad[:5])}",
            fix,
        )
        for question, bad, fix in questions
    ]


def _name(tool: Mapping[str, Any]) -> str:
    return str(tool.get("name", ""))


def _typed(tool: Mapping[str, Any]) -> bool:
    schema = tool.get("inputSchema")
    properties = schema.get("properties", {}) if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping):
        return False
    forms = ("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref")
    return all(isinstance(one, Mapping) and any(form in one for form in forms) for one in properties.values())


async def listed_tools(name: str, spec: UpstreamSpec, timeout_s: float = 10.0) -> list[dict[str, Any]]:
    """The tools of a server, all pages.

    Raises:
        BadInput: it cannot be reached, or does not answer in time.
    """
    from heliograph.agents.core.links import Call, ignore, modern_meta
    from heliograph.agents.core.upstream import Caller, Upstream

    upstream = Upstream(name, spec)
    tools: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(timeout_s):
            link = await upstream.link(Caller(None, "2026-07-28"))
            cursor: str | None = None
            for _ in range(100):
                params: dict[str, Any] = {"cursor": cursor} if cursor else {}
                if link.info.modern:
                    params["_meta"] = modern_meta(link.info.version)
                result = await link.call("tools/list", params, Call(ignore, {}))
                tools += [tool for tool in result.get("tools", ()) if isinstance(tool, dict)]
                cursor = result.get("nextCursor")
                if not cursor:
                    break
    except TimeoutError:
        raise BadInput(f"{name} did not list its tools within {timeout_s:g} s") from None
    except Exception as error:
        raise BadInput(f"{name} cannot be asked for its tools: {error}") from None
    finally:
        with contextlib.suppress(Exception):
            await upstream.close()
    return tools


async def checklist(config: GatewayConfig | str | Path, *, probe: bool = True) -> list[ChecklistItem]:
    """The whole list.

    Args:
        config: of a gateway, or its file.
        probe: ask each server for its tools; its contracts are "unknown" otherwise, and where it does not answer.

    Raises:
        BadInput: the configuration is refused.
    """
    read = config if isinstance(config, GatewayConfig) else read_config(config)
    items = check_config(read)
    for name, spec in read.specs.items():
        why = "not asked"
        if probe:
            try:
                items += check_tools(name, await listed_tools(name, spec))
                continue
            except BadInput as error:
                why = str(error)
        items.append(
            ChecklistItem("server contracts", f"{name}: are its tools described and typed?", "unknown", why, "start it")
        )
    return items
