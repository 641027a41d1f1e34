"""Message logs of agent frameworks as one list of messages: plain JSON, no framework needed.

Our own form is JSON lines ``{"run", "round", "sender", "recipients", "text", "parents", "id"}``; ``claims`` and
``facts`` may stand beside or instead of ``text``. Transcripts of AutoGen, CAMEL, CrewAI, LangChain, LangGraph and
MetaGPT are read from a JSON list, from JSON lines, or from an object that holds the list. They say who spoke, mostly
not who heard it: where nothing else is said, all other agents of the run heard it, and each message is a round.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from heliograph.agents.core.envelope import Envelope
from heliograph.errors import BadInput

__all__ = ["FORMATS", "LogFormat", "LogMessage", "MessageLog", "read_log"]

LogFormat = Literal["auto", "plain", "autogen", "camel", "crewai", "langchain", "langgraph", "metagpt"]
FORMATS: tuple[LogFormat, ...] = ("plain", "autogen", "camel", "crewai", "langchain", "langgraph", "metagpt")
MAX_BYTES = 256 * 2**20
MAX_ROUNDS = 1_000_000


@dataclass(frozen=True)
class LogMessage:
    """One message of a log.

    Attributes:
        id, run, round, sender: of it.
        recipients: who heard it; empty for all others of the run.
        payload: text, or claims as data.
        parents: ids of messages that it answers.
        line: place in the file, from 1.
    """

    id: str
    run: str
    round: int
    sender: str
    recipients: tuple[str, ...]
    payload: Any
    parents: tuple[str, ...] = ()
    line: int = 0

    def to_envelope(self) -> Envelope:
        """For the governor; the run is the conversation."""
        return Envelope(
            id=self.id, topic="log", sender=self.sender, payload=self.payload, parents=self.parents, conv=self.run
        )


@dataclass(frozen=True)
class MessageLog:
    """A log, and what of it could not be read.

    Attributes:
        messages: by run, round and place.
        skipped: line numbers with the reason.
        format: that was read.
    """

    messages: tuple[LogMessage, ...]
    skipped: tuple[tuple[int, str], ...]
    format: LogFormat

    @property
    def agents(self) -> tuple[str, ...]:
        """All that sent or received, sorted."""
        named = {m.sender for m in self.messages} | {r for m in self.messages for r in m.recipients}
        return tuple(sorted(named))

    @property
    def runs(self) -> tuple[str, ...]:
        """In order of appearance."""
        return tuple(dict.fromkeys(m.run for m in self.messages))


def read_log(path: str | Path, format: LogFormat = "auto") -> MessageLog:
    """Reads a log; lines that are no messages are skipped and listed.

    Args:
        path: of the file.
        format: of it; by default told from the names of the fields.

    Raises:
        BadInput: the file cannot be read, is too large, or holds no message at all.
    """
    if format not in ("auto", *FORMATS):
        raise BadInput(f"format is auto or one of {', '.join(FORMATS)}; got {format!r}")
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadInput(f"{path} has more than {MAX_BYTES // 2**20} MiB; split it by run")
        raw = path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    items, skipped = _items(raw)
    chosen = _told(items) if format == "auto" else format
    messages: list[LogMessage] = []
    ids: set[str] = set()
    for line, item in items:
        try:
            one = _READERS[chosen](item, line, len(messages))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            skipped.append((line, f"no message of {chosen}: {error!r}"[:200]))
            continue
        if one is None:
            continue
        if one.id in ids:
            skipped.append((line, f"a second message with the id {one.id}"))
            continue
        ids.add(one.id)
        messages.append(one)
    if not messages:
        first = f"; line {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise BadInput(f"{path} holds no message of the format {chosen}{first}")
    order = {run: n for n, run in enumerate(dict.fromkeys(m.run for m in messages))}
    messages.sort(key=lambda m: (order[m.run], m.round, m.line))
    return MessageLog(tuple(_shifted(messages)), tuple(sorted(skipped)), chosen)


def _shifted(messages: Sequence[LogMessage]) -> list[LogMessage]:
    """Rounds of each run count from 0, without gaps."""
    out: list[LogMessage] = []
    numbers: dict[tuple[str, int], int] = {}
    count: dict[str, int] = {}
    for m in messages:
        if (m.run, m.round) not in numbers:
            numbers[m.run, m.round] = count.get(m.run, 0)
            count[m.run] = count.get(m.run, 0) + 1
        out.append(replace(m, round=numbers[m.run, m.round]))
    return out


def _items(raw: str) -> tuple[list[tuple[int, Any]], list[tuple[int, str]]]:
    skipped: list[tuple[int, str]] = []
    try:
        whole = json.loads(raw)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, Mapping):
        for name in ("messages", "chat_history", "history", "tasks_output", "task_outputs", "storage"):
            if isinstance(whole.get(name), list):
                return list(enumerate(whole[name], 1)), skipped
        values = whole.get("values")
        if isinstance(values, Mapping) and isinstance(values.get("messages"), list):
            return list(enumerate(values["messages"], 1)), skipped
        return [(1, whole)], skipped
    if isinstance(whole, list):
        return list(enumerate(whole, 1)), skipped
    items = []
    for number, line in enumerate(raw.splitlines(), 1):
        if not line.strip():
            continue
        try:
            items.append((number, json.loads(line)))
        except (ValueError, RecursionError):
            skipped.append((number, "not JSON"))
    return items, skipped


def _told(items: Sequence[tuple[int, Any]]) -> LogFormat:
    """The format, by the fields of the first message that has any that are known."""
    marks: tuple[tuple[LogFormat, tuple[str, ...]], ...] = (
        ("plain", ("sender",)),
        ("metagpt", ("sent_from",)),
        ("metagpt", ("cause_by",)),
        ("camel", ("role_name",)),
        ("crewai", ("raw", "agent")),
        ("langchain", ("lc", "kwargs")),
        ("langchain", ("type", "data")),
        ("autogen", ("source", "content")),
        ("langgraph", ("type", "content")),
        ("autogen", ("role", "content")),
    )
    for _, item in items[:50]:
        if isinstance(item, Mapping):
            for name, fields in marks:
                if all(field in item for field in fields):
                    return name
    return "plain"


def _text(content: Any) -> str:
    """Text of a content that is text or a list of parts; other parts are left out."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part if isinstance(part, str) else part.get("text", "") for part in content]
        return "\n".join(part for part in parts if isinstance(part, str) and part)
    raise ValueError(f"content is text or a list of parts, not {type(content).__name__}")


def _names(value: Any) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    return (value,) if isinstance(value, str) else tuple(str(name) for name in value)


def _plain(item: Any, line: int, number: int) -> LogMessage:
    if not isinstance(item["sender"], str) or not item["sender"]:
        raise ValueError("sender is a name")
    own = {name: item[name] for name in ("text", "claims", "facts") if name in item}
    if not own:
        raise ValueError("neither text nor claims nor facts")
    if not isinstance(own.get("text", ""), str):
        raise ValueError("text is text")
    round_ = item.get("round", number)
    if isinstance(round_, bool) or not isinstance(round_, int) or not 0 <= round_ <= MAX_ROUNDS:
        raise ValueError(f"round is a number from 0 to {MAX_ROUNDS}")
    return LogMessage(
        str(item.get("id", f"line-{line}")), str(item.get("run", "")), round_, item["sender"],
        _names(item.get("recipients")), own, _names(item.get("parents")), line,
    )  # fmt: skip


def _spoken(
    line: int, number: int, sender: Any, content: Any, item: Mapping[str, Any], **more: Any
) -> LogMessage | None:
    """A message of a transcript; None if it says nothing, as a bare tool call does."""
    text = _text(content)
    if not text.strip():
        return None
    if not isinstance(sender, str) or not sender:
        raise ValueError("nobody is named as the sender")
    run = str(item.get("run", item.get("thread_id", "")))
    return LogMessage(
        str(item.get("id") or f"line-{line}"), run, number, sender, more.get("recipients", ()), {"text": text},
        more.get("parents", ()), line,
    )  # fmt: skip


def _autogen(item: Any, line: int, number: int) -> LogMessage | None:
    """``{"source", "content"}`` of a team, or ``{"name", "role", "content"}`` of a group chat."""
    sender = item.get("source") or item.get("name") or item.get("role")
    return _spoken(line, number, sender, item.get("content") or "", item, recipients=_names(item.get("recipient")))


def _camel(item: Any, line: int, number: int) -> LogMessage | None:
    return _spoken(line, number, item["role_name"], item.get("content") or "", item)


def _crewai(item: Any, line: int, number: int) -> LogMessage | None:
    """Task outputs: ``{"agent", "raw"}``; a task's ``context`` names the tasks that it reads."""
    return _spoken(line, number, item["agent"], item.get("raw") or "", item, parents=_names(item.get("context")))


def _langchain(item: Any, line: int, number: int) -> LogMessage | None:
    """Serialised messages: ``{"lc": 1, "id": [..., class], "kwargs"}`` or ``{"type", "data"}``."""
    inside = item.get("kwargs") or item.get("data") or item
    kind = item["id"][-1] if isinstance(item.get("id"), list) else item.get("type", "")
    sender = inside.get("name") or inside.get("type") or kind
    return _spoken(line, number, sender, inside.get("content") or "", inside)


def _langgraph(item: Any, line: int, number: int) -> LogMessage | None:
    return _spoken(line, number, item.get("name") or item["type"], item.get("content") or "", item)


def _metagpt(item: Any, line: int, number: int) -> LogMessage | None:
    sender = item.get("sent_from") or item.get("role")
    to = tuple(name for name in _names(item.get("send_to")) if name != "<all>")
    return _spoken(line, number, sender, item.get("content") or "", item, recipients=to)


_READERS = {
    "plain": _plain,
    "autogen": _autogen,
    "camel": _camel,
    "crewai": _crewai,
    "langchain": _langchain,
    "langgraph": _langgraph,
    "metagpt": _metagpt,
}
