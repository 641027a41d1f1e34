"""Request traces: one JSON object a line, validated line by line, with one meaning.

The first line is a header, each further line one request::

    {"heliograph_trace": 1, "turns": "incremental"}
    {"arrival_s": 0.0, "prompt_tokens": 512, "output_tokens": 64}
    {"arrival_s": 0.8, "prompt": "Hello", "output_tokens": 16, "session": "a", "priority": 1}
    {"after_s": 2.0, "prompt": "And then?", "output_tokens": 16, "session": "a"}

What a turn's prompt holds is stated once, in the header: ``incremental`` turns bring only what is new, and the client
prepends the conversation; ``cumulative`` turns bring the whole conversation. A trace without it may not have a session
of two turns. Fields that are not in the schema are refused: a misspelt one would otherwise be ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from heliograph.errors import BadInput

__all__ = ["RequestTrace", "TraceRequest", "TurnRule", "read_trace", "write_trace"]

VERSION = 1
TurnRule = Literal["single", "incremental", "cumulative"]


class TraceRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One request of a trace: one of ``arrival_s`` and ``after_s``, and a prompt in one form or its length.

    Attributes:
        output_tokens: tokens to generate; the client asks the server to ignore end-of-sequence.
        arrival_s: seconds after the trace's start at which it is sent, whatever else happens (open loop).
        after_s: seconds after the end of the session's previous turn (closed loop); 0 for at once.
        prompt: text. prompt_token_ids: the same as token ids. prompt_tokens: its length where neither is given, or as
            a check beside them.
        session: turns of one conversation share it, in the order of the lines.
        priority: smaller is more urgent, as in serving engines; 0 is ordinary, positive is offline work.
        prefix_id, prefix_tokens: requests with one id share their first so many tokens.
        prefix_block_ids, prefix_block_tokens: the same block by block: equal ids from the start on mean equal blocks.
        id: a name, unique in the trace.
    """

    output_tokens: int
    arrival_s: float | None = None
    after_s: float | None = None
    prompt: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    prompt_tokens: int | None = None
    session: str = ""
    priority: int = 0
    prefix_id: str = ""
    prefix_tokens: int = 0
    prefix_block_ids: tuple[int, ...] = ()
    prefix_block_tokens: int = 0
    id: str = ""

    @property
    def prompt_length(self) -> int | None:
        """Tokens of the prompt; None where only text is given."""
        return len(self.prompt_token_ids) if self.prompt_token_ids is not None else self.prompt_tokens


@dataclass(frozen=True)
class RequestTrace:
    """Requests in the order of their lines, and what their turns mean.

    Attributes:
        requests: arrivals never go back in time.
        turns: "single" where no session has two turns.
        name: where it came from, for reports.
    """

    requests: tuple[TraceRequest, ...]
    turns: TurnRule = "single"
    name: str = ""
    _sessions: dict[str, int] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses what has no single meaning; the message names the request, counted from 1.

        Raises:
            BadInput: a field out of range, contradicting fields, or a second turn in a trace of single turns.
        """
        if self.turns not in get_args(TurnRule):
            raise BadInput(f"turns is {self.turns!r}; known: {', '.join(get_args(TurnRule))}")
        last, seen = 0.0, set()
        for number, request in enumerate(self.requests, 1):
            for problem in _problems(request, last, request.session in self._sessions, self.turns):
                raise BadInput(f"request {number}: {problem}")
            if request.id:
                if request.id in seen:
                    raise BadInput(f"request {number}: the id {request.id!r} is used twice")
                seen.add(request.id)
            if request.session:
                self._sessions[request.session] = self._sessions.get(request.session, 0) + 1
            last = request.arrival_s if request.arrival_s is not None else last

    def __len__(self) -> int:
        """Requests."""
        return len(self.requests)

    def __iter__(self) -> Iterator[TraceRequest]:
        """The requests, in order."""
        return iter(self.requests)

    @property
    def duration_s(self) -> float:
        """Seconds from the start to the last stated arrival."""
        return max((r.arrival_s for r in self.requests if r.arrival_s is not None), default=0.0)

    @property
    def sessions(self) -> int:
        """Conversations of two turns or more."""
        return sum(turns > 1 for turns in self._sessions.values())

    def scaled(self, speed: float) -> RequestTrace:
        """The same requests, arriving ``speed`` times as fast; pauses between turns shrink as well."""
        if not (speed > 0 and math.isfinite(speed)):
            raise BadInput(f"a speed is a positive number; got {speed}")

        def slower(request: TraceRequest) -> TraceRequest:
            arrival = None if request.arrival_s is None else request.arrival_s / speed
            after = None if request.after_s is None else request.after_s / speed
            return msgspec.structs.replace(request, arrival_s=arrival, after_s=after)

        return RequestTrace(tuple(slower(r) for r in self.requests), self.turns, self.name)


class _Header(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    heliograph_trace: int
    turns: TurnRule = "single"
    name: str = ""


def read_trace(path: Path | str) -> RequestTrace:
    """Reads a trace.

    Raises:
        BadInput: unreadable, no header, or a line breaks the schema; the message names the line and the field.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise BadInput(f'{path} is empty; a trace begins with a header: {{"heliograph_trace": {VERSION}}}')
    header = _header(path, *numbered[0])
    requests = []
    for number, line in numbered[1:]:
        try:
            requests.append(msgspec.json.decode(line, type=TraceRequest))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BadInput(f"{path}, line {number}: {error}") from None
    try:
        return RequestTrace(tuple(requests), header.turns, header.name or path.name)
    except BadInput as error:
        place = str(error).partition(":")[0].removeprefix("request ")
        line_number = f"line {numbered[int(place)][0]}, " if place.isdecimal() else ""
        raise BadInput(f"{path}, {line_number}{error}") from None


def _header(path: Path, number: int, line: bytes) -> _Header:
    try:
        header = msgspec.json.decode(line, type=_Header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadInput(
            f'{path}, line {number}: no header of a trace ({error}); begin with {{"heliograph_trace": {VERSION}}}, or '
            "convert a Mooncake trace with `read_mooncake`"
        ) from None
    if header.heliograph_trace != VERSION:
        raise BadInput(f"{path} has version {header.heliograph_trace} of the schema; version {VERSION} is read here")
    return header


def write_trace(trace: RequestTrace, path: Path | str) -> None:
    """Writes a trace that :func:`read_trace` reads back unchanged; an existing file is replaced whole or not at all."""
    path = Path(path)
    rows: Iterable[Any] = (_Header(VERSION, trace.turns, trace.name), *trace.requests)
    part = path.with_name(path.name + ".part")
    part.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    part.replace(path)


def _problems(request: TraceRequest, last: float, later_turn: bool, turns: TurnRule) -> Iterator[str]:
    if (request.arrival_s is None) == (request.after_s is None):
        yield "exactly one of arrival_s and after_s must be given"
        return
    for name, seconds in (("arrival_s", request.arrival_s), ("after_s", request.after_s)):
        if seconds is not None and not (seconds >= 0 and math.isfinite(seconds)):
            yield f"{name} is {seconds}; seconds of 0 or more are expected"
    if request.arrival_s is not None and request.arrival_s < last:
        yield f"arrival_s {request.arrival_s} lies before the previous one, {last}; sort the lines"
    if request.after_s is not None and not later_turn:
        yield "after_s needs an earlier request of the same session"
    if later_turn and turns == "single":
        yield (
            f"session {request.session!r} has a second turn, but the header does not say whether turns are incremental "
            "or cumulative"
        )
    if request.output_tokens < 1:
        yield f"output_tokens is {request.output_tokens}; at least 1 is expected"
    if request.prompt is not None and request.prompt_token_ids is not None:
        yield "prompt and prompt_token_ids are both given; keep one"
    if request.prompt is None and request.prompt_token_ids is None and request.prompt_tokens is None:
        yield "no prompt: give prompt, prompt_token_ids or prompt_tokens"
    if request.prompt_tokens is not None and request.prompt_tokens < 1:
        yield f"prompt_tokens is {request.prompt_tokens}; at least 1 is expected"
    ids = request.prompt_token_ids
    if ids is not None and (not ids or min(ids) < 0):
        yield "prompt_token_ids must be a row of ids of 0 or more"
    if ids is not None and request.prompt_tokens not in (None, len(ids)):
        yield f"prompt_tokens says {request.prompt_tokens}, prompt_token_ids has {len(ids)}"
    yield from _prefix_problems(request)


def _prefix_problems(request: TraceRequest) -> Iterator[str]:
    length = request.prompt_length
    if bool(request.prefix_id) != bool(request.prefix_tokens) or request.prefix_tokens < 0:
        yield "prefix_id and prefix_tokens (1 or more) belong together"
    if length is not None and request.prefix_tokens > length:
        yield f"prefix_tokens is {request.prefix_tokens}, the prompt has {length}"
    if bool(request.prefix_block_ids) != bool(request.prefix_block_tokens) or request.prefix_block_tokens < 0:
        yield "prefix_block_ids and prefix_block_tokens (1 or more) belong together"
    elif request.prefix_block_ids and length is not None:
        most = -(-length // request.prefix_block_tokens)
        if len(request.prefix_block_ids) > most:
            yield f"{len(request.prefix_block_ids)} prefix_block_ids for a prompt of {most} blocks"
