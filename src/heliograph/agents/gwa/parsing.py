"""What nodes write, and how it is read: JSON first, the published line formats second, a stated default last.

Text of thoughts, users and tools never steers: tags in it are defused before any node sees it, and a decision is read
from the meta node's own reply only.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from heliograph.errors import BadInput

__all__ = [
    "TAGS",
    "Decision",
    "Parse",
    "Tag",
    "clean_text",
    "defuse",
    "parse_critiques",
    "parse_decision",
    "parse_queries",
    "parse_thoughts",
]

Tag = Literal["THINK_MORE", "RESPONSE", "WEB_SEARCH"]
TAGS: tuple[Tag, ...] = ("RESPONSE", "WEB_SEARCH", "THINK_MORE")
"""In the order in which a reply is searched for them."""
Parse = Literal["json", "regex", "default"]

_NUMBERED = re.compile(r"^\s*\d+[.)]\s+(.+)", re.MULTILINE)
_CRITIQUE = re.compile(r"^\s*(\d+)[.)]\s*(?:Critique\s*:)?\s*(.+)", re.MULTILINE | re.IGNORECASE)
_INDEX = re.compile(r"!!\s*(\d{1,4})\s*!!")
_TAG_TEXT = re.compile(r"\[\s*(RESPONSE|WEB_SEARCH|THINK_MORE|RESOLVED)\s*\]", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Decision:
    """What the meta node chose.

    Attributes:
        index: of the winning candidate, from 0.
        tag: what happens with it.
        parse: how the reply was read.
    """

    index: int
    tag: Tag
    parse: Parse


def clean_text(text: str, what: str = "the message") -> str:
    """Without control characters and surrounding space.

    Raises:
        BadInput: not text, empty, or with halves of surrogate pairs, which no encoding can carry.
    """
    if not isinstance(text, str):
        raise BadInput(f"{what} is text; got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{what} holds half a surrogate pair at character {error.start}; decode it as UTF-8") from None
    clean = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()
    if not clean:
        raise BadInput(f"{what} is empty; write something, or give none for an idle turn")
    return clean


def defuse(text: str) -> str:
    """The same with tags and index marks that a parser would obey turned into plain words."""
    return _INDEX.sub(r"(\1)", _TAG_TEXT.sub(r"(\1)", text)).replace("!!", "!")


def _json(reply: str) -> Any:
    start, end = min((reply.find(c) for c in "[{" if c in reply), default=-1), max(reply.rfind("]"), reply.rfind("}"))
    if start < 0 or end <= start:
        return None
    try:
        return json.loads(reply[start : end + 1])
    except (ValueError, RecursionError):
        return None


def _texts(value: Any, key: str) -> list[str]:
    if isinstance(value, dict):
        value = value.get(key)
    found = [one.get("text") if isinstance(one, dict) else one for one in value] if isinstance(value, list) else []
    return [one.strip() for one in found if isinstance(one, str) and one.strip()]


def _fit(found: list[str], count: int) -> tuple[str, ...]:
    return tuple((found + [found[-1]] * count)[:count])


def parse_thoughts(reply: str, count: int) -> tuple[tuple[str, ...], Parse]:
    """``count`` candidates: a JSON list, a numbered list, or blocks between blank lines; the last one is repeated.

    An empty reply gives no candidates.
    """
    found = _texts(_json(reply), "thoughts")
    if found:
        return _fit(found, count), "json"
    found = [line.strip() for line in _NUMBERED.findall(reply) if line.strip()]
    if found:
        return _fit(found, count), "regex"
    found = [block.strip() for block in re.split(r"\n\s*\n", reply) if block.strip()]
    return (_fit(found, count) if found else ()), "default"


def parse_critiques(reply: str, count: int) -> tuple[tuple[str, ...], Parse]:
    """One critique a candidate, "no critique" where there is none."""
    found = _texts(_json(reply), "critiques")
    if found:
        return tuple((found + ["no critique"] * count)[:count]), "json"
    by_number = {int(number): text.strip() for number, text in _CRITIQUE.findall(reply) if len(number) < 5}
    rows = tuple(by_number.get(place + 1, "no critique") for place in range(count))
    return rows, "regex" if by_number else "default"


def parse_queries(reply: str) -> tuple[str, ...]:
    """At most two phrases to look up; none where the reply says none."""
    found = _texts(_json(reply), "queries") or [
        re.sub(r"^\s*(?:\d+[.)]|[-*])\s*", "", line).strip() for line in reply.splitlines()
    ]
    return tuple(phrase for phrase in found if phrase and phrase.strip(". ").lower() not in ("none", "[]", "{}"))[:2]


def parse_decision(reply: str, count: int) -> Decision:
    """Index and tag; candidate 1 and THINK_MORE where the reply does not say, or names none that is there."""
    value = _json(reply)
    if isinstance(value, dict) and isinstance(value.get("winner"), int) and value.get("tag") in TAGS:
        index = value["winner"] - 1
        return Decision(index if 0 <= index < count else 0, value["tag"], "json")
    mark = _INDEX.search(reply)
    tag = next((tag for tag in TAGS if f"[{tag}]" in reply.upper()), None)
    index = int(mark[1]) - 1 if mark else 0
    parse: Parse = "regex" if mark and tag else "default"
    return Decision(index if 0 <= index < count else 0, tag or "THINK_MORE", parse)
