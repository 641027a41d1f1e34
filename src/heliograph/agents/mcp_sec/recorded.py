"""Recorded traffic, played through the enforcer as if it happened now."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from mcp.shared.exceptions import MCPError

from heliograph.agents.core.interceptor import Rejected
from heliograph.agents.core.links import LinkInfo
from heliograph.agents.mcp_sec.enforcer import _CONTEXT, SecurityEnforcer
from heliograph.errors import BadInput

__all__ = ["Exchange", "Verdict", "read_traffic", "replay_traffic"]


class Exchange(msgspec.Struct, frozen=True):
    """One recorded request with its answer.

    Attributes:
        server: that answered.
        method, params: of the request.
        result, error: of the answer; one of them.
        context: conversation.
        version: of the protocol.
        capabilities: that the server had declared.
    """

    server: str
    method: str
    params: dict[str, Any] = {}
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    context: str = ""
    version: str = "2025-11-25"
    capabilities: dict[str, Any] = {}


class Verdict(msgspec.Struct, frozen=True):
    """What the enforcer would have done.

    Attributes:
        line: of the file, from 1.
        server, method, target: of the request.
        denied: reason; "" if it would have passed.
        message: of the refusal.
    """

    line: int
    server: str
    method: str
    target: str
    denied: str = ""
    message: str = ""


def read_traffic(path: str | Path) -> list[Exchange]:
    """From a file of JSON lines.

    Raises:
        BadInput: it cannot be read, or a line is no exchange; the message names the line.
    """
    found = []
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        found.append(msgspec.convert(json.loads(line), Exchange))
                    except (ValueError, msgspec.ValidationError) as error:
                        raise BadInput(f"{path}, line {number}: not a recorded exchange: {error}") from None
    except (OSError, UnicodeError) as error:
        raise BadInput(f"cannot read {path}: {error}") from None
    return found


def replay_traffic(exchanges: Iterable[Exchange], enforcer: SecurityEnforcer) -> list[Verdict]:
    """What would have been refused. Nobody is asked: a question counts as a refusal."""

    async def everything() -> list[Verdict]:
        infos: dict[tuple[str, str, str], LinkInfo] = {}
        verdicts = []
        for number, one in enumerate(exchanges, 1):
            declared = one.capabilities or {"tools": {}, "prompts": {}, "resources": {}}
            key = (one.server, one.version, json.dumps(declared, sort_keys=True))
            info = infos.setdefault(key, LinkInfo(one.version, declared))

            async def answer(_: dict[str, Any], one: Exchange = one) -> dict[str, Any]:
                if one.error is not None:
                    raise MCPError(int(one.error.get("code", 0)), str(one.error.get("message", "")))
                return dict(one.result or {})

            target = str(one.params.get("name") or one.params.get("uri") or "")
            denied = message = ""
            token = _CONTEXT.set(one.context)
            try:
                await enforcer.exchange(one.server, info, one.method, dict(one.params), answer)
            except Rejected as refusal:
                denied, message = str(refusal.data.get("serf", {}).get("code", "")), refusal.reason
            except MCPError:
                pass
            finally:
                _CONTEXT.reset(token)
            verdicts.append(Verdict(number, one.server, one.method, target, denied, message))
        return verdicts

    return asyncio.run(everything())
