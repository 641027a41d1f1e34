"""Converts traces in Mooncake's form to ours; what could mean two things is refused with the line.

A row holds ``timestamp`` in milliseconds, ``input_length``, ``output_length`` and ``hash_ids``, one id a block of 512
prompt tokens; equal leading ids mean an equal prefix (Mooncake, arXiv:2407.00079, and its published traces).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from heliograph.errors import BadInput
from heliograph.workload.requests import RequestTrace, TraceRequest, TurnRule

__all__ = ["MOONCAKE_BLOCK_TOKENS", "read_mooncake"]

MOONCAKE_BLOCK_TOKENS = 512
ALIASES = {
    "timestamp": "created_time",
    "input_length": "input_tokens",
    "output_length": "output_tokens",
    "delay": "delay_ms",
}
KNOWN = {*ALIASES, *ALIASES.values(), "hash_ids", "session_id"}


def read_mooncake(
    path: Path | str,
    *,
    block_tokens: int = MOONCAKE_BLOCK_TOKENS,
    turns: Literal["incremental", "cumulative"] | None = None,
) -> RequestTrace:
    """Reads a Mooncake trace.

    Args:
        path: JSON lines.
        block_tokens: prompt tokens behind one hash id.
        turns: what a later row of a session holds; the format does not say, so it must be given where rows share one.

    Raises:
        BadInput: unreadable, a field is missing, doubled by its other name, unknown or out of range, block ids do not
            fit the prompt, or rows share a session and ``turns`` is not given.
    """
    path = Path(path)
    if block_tokens < 1:
        raise BadInput(f"block_tokens is the size of a block in tokens; got {block_tokens}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {error}") from None
    requests: list[tuple[int, TraceRequest]] = []
    sessions: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            request = _convert(_row(line), block_tokens, sessions, turns)
        except BadInput as error:
            raise BadInput(f"{path}, line {number}: {error}") from None
        sessions |= {request.session} - {""}
        requests.append((number, request))
    if not requests:
        raise BadInput(f"{path} holds no request")
    rule: TurnRule = turns or "single"
    try:
        return RequestTrace(tuple(request for _, request in requests), rule, path.name)
    except BadInput as error:
        place = int(str(error).partition(":")[0].removeprefix("request "))
        raise BadInput(f"{path}, line {requests[place - 1][0]}: {error}") from None


def _row(line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise BadInput(f"a row is one object, not {type(row).__name__}")
    if unknown := sorted(set(row) - KNOWN):
        raise BadInput(f"unknown fields {', '.join(unknown)}; known: {', '.join(sorted(KNOWN))}")
    for name, alias in ALIASES.items():
        if name in row and alias in row:
            raise BadInput(f"{name} and {alias} are two names of one field; which one is meant?")
        if alias in row:
            row[name] = row.pop(alias)
    return row


def _convert(row: Mapping[str, Any], block: int, sessions: set[str], turns: str | None) -> TraceRequest:
    session = str(row.get("session_id", "") if row.get("session_id") is not None else "")
    later = bool(session) and session in sessions
    if later and turns is None:
        raise BadInput(
            f"session {session!r} has a second row, and the format does not say whether its prompt holds the whole "
            'conversation: pass turns="cumulative" or turns="incremental"'
        )
    if "timestamp" in row and "delay" in row:
        raise BadInput("timestamp and delay are both given: an arrival is either absolute or after the previous turn")
    if "delay" in row and not later:
        raise BadInput("delay needs an earlier row of the same session")
    if "timestamp" not in row and "delay" not in row:
        raise BadInput("timestamp is missing; a row without an arrival could be sent at any time")
    milliseconds = _number(row, "delay" if "delay" in row else "timestamp", whole=False)
    prompt, output = _number(row, "input_length"), _number(row, "output_length")
    ids = row.get("hash_ids") or []
    if not isinstance(ids, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise BadInput("hash_ids must be a list of whole numbers")
    if ids and len(ids) not in (prompt // block, math.ceil(prompt / block)):
        raise BadInput(
            f"{len(ids)} hash_ids do not fit {prompt:,.0f} prompt tokens in blocks of {block}; give the trace's own "
            "block_tokens"
        )
    return TraceRequest(
        output_tokens=int(output),
        prompt_tokens=int(prompt),
        session=session,
        prefix_block_ids=tuple(ids),
        prefix_block_tokens=block if ids else 0,
        arrival_s=None if "delay" in row else milliseconds / 1000,
        after_s=milliseconds / 1000 if "delay" in row else None,
    )


def _number(row: Mapping[str, Any], name: str, *, whole: bool = True) -> float:
    value = row.get(name)
    if value is None:
        raise BadInput(f"{name} is missing")
    fits = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value) and not whole)
    if isinstance(value, bool) or not fits or value < 0:
        raise BadInput(f"{name} is {value!r}; a number of 0 or more is expected")
    return float(value)
