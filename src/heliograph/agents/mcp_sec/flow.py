"""Which servers influenced a call: sets of servers, over-approximated, since nobody sees inside the model.

In ``context`` mode every answer influences everything that comes after it in its conversation. In ``value`` mode a call
is influenced by an answer whose text turns up in its arguments, also encoded or with another spelling; that misses
paraphrases. Influence is passed on: what a server answers to an influenced call is influenced too.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
import urllib.parse
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from heliograph.errors import BadInput

__all__ = ["FlowTracker", "Influence", "normalised", "spellings", "texts_of"]

Mode = Literal["context", "value", "off"]
MAX_TEXT = 256 * 1024
"""Characters of one answer or argument that are looked at; what is longer counts as shared with everything."""
MAX_DECODED = 3 * MAX_TEXT
MAX_DEPTH = 3
_SLOTS = 1 << 17
_ZERO_WIDTH = dict.fromkeys([0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF, 0x00AD])
_SPACES = dict.fromkeys([*range(9, 14), *range(28, 32)], " ")
_PREFIXES = ("https://www.", "http://www.", "https://", "http://")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{12,}={0,2}")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}){6,}")
_WORD = re.compile(r"(?<![^\W_])[^\W_]{8,}")
_ASCII_WORD = re.compile(r"(?<![a-z0-9])[a-z0-9]{8,}")


def texts_of(value: Any, *, limit: int = 256) -> list[str]:
    """All texts in a JSON value, keys too, at most ``limit`` of them; long numbers count as texts."""
    found: list[str] = []
    stack = [value]
    while stack and len(found) < limit:
        item = stack.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, Mapping):
            stack.extend(item.values())
            stack.extend(key for key in item if isinstance(key, str) and len(key) >= 8)
        elif isinstance(item, list | tuple):
            stack.extend(reversed(item))
        elif isinstance(item, int | float) and not isinstance(item, bool) and len(str(item)) >= 8:
            found.append(str(item))
    if stack:  # too many to look at one by one: all of them as one
        found.append(" ".join(str(item) for item in stack)[:MAX_TEXT])
    return found


def normalised(text: str) -> str:
    """One spelling for texts that differ in case, spaces, compatibility forms or invisible characters."""
    if not text.isascii():
        text = " ".join(unicodedata.normalize("NFKC", text).translate(_ZERO_WIDTH).split())
    text = text.casefold().translate(_SPACES)
    for prefix in _PREFIXES:  # everybody's, and as long as what counts as shared
        text = text.replace(prefix, " ")
    while "  " in text:
        text = text.replace("  ", " ")
    return text.strip(" ")


def _decoded(text: str) -> Iterable[str]:
    if "%" in text:
        once = urllib.parse.unquote(text)
        if once != text:
            yield once
    # A run of hexadecimal digits is one of base64 too. Splitting first keeps the search off the short words.
    for run in (run for word in text.split() if len(word) >= 12 for run in _BASE64.findall(word)):
        if run.islower() and run.isalpha():  # a long word: no base64 of a text lacks capitals and digits
            continue
        for digits in _HEX.findall(run):
            yield bytes.fromhex(digits).decode("utf-8", "replace")
        body = run.rstrip("=").replace("-", "+").replace("_", "/")
        body = body[: len(body) - (len(body) % 4 == 1)]
        try:
            raw = base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
        except (binascii.Error, ValueError):
            continue
        plain = raw.decode("utf-8", "replace")
        if plain.count("\ufffd") * 4 <= len(plain):
            yield plain


def spellings(text: str) -> list[str]:
    """A text, and what is encoded in it (base64, hexadecimal, percent), one text for each level of encoding."""
    found = [text[:MAX_TEXT]]
    for _ in range(MAX_DEPTH):
        plain = "\n".join(_decoded(found[-1]))[:MAX_DECODED]
        if not plain:
            break
        found.append(plain)
    return found


def _grams(text: str, length: int) -> NDArray[np.uint64]:
    """Hashes of all substrings of so many bytes, sorted. Equal substrings have equal hashes."""
    raw = text.encode("utf-8", "surrogatepass")
    count = len(raw) - length + 1
    if count < 1:
        return np.empty(0, np.uint64)
    # Eight bytes at every place as one number; the padding is never part of a substring that counts.
    words = np.ndarray((len(raw),), "<u8", raw + bytes(8), strides=(1,))
    if length < 8:
        return _distinct(words[:count] & np.uint64((1 << 8 * length) - 1))
    total = words[:count].copy()
    with np.errstate(over="ignore"):
        for place in [*range(8, length - 8, 8), *([length - 8] if length > 8 else [])]:
            total *= np.uint64(0x9E3779B97F4A7C15)
            total += words[place : place + count]
    return _distinct(total)


def _marks(text: str, length: int) -> NDArray[np.uint64]:
    """A third of the hashes of shorter substrings, chosen so that texts that share a run of ``length`` share one.

    Winnowing: the least hash of each window, where the windows within such a run see the same hashes.
    """
    window = min(5, length - 3)
    size = length - window + 1
    raw = text.encode("utf-8", "surrogatepass")
    count = len(raw) - size + 1
    if count < window:
        return np.empty(0, np.uint64)
    words = np.ndarray((len(raw),), "<u8", raw + bytes(8), strides=(1,))[:count]
    with np.errstate(over="ignore"):
        if size < 8:
            hashes = (words & np.uint64((1 << 8 * size) - 1)) * np.uint64(0x9E3779B97F4A7C15)
        else:  # the first eight bytes decide; what is shared beyond them is looked up exactly
            hashes = words * np.uint64(0x9E3779B97F4A7C15)
    hashes ^= hashes >> np.uint64(29)
    least = hashes[: count - window + 1].copy()
    for place in range(1, window):
        np.minimum(least, hashes[place : count - window + 1 + place], out=least)
    kept = np.concatenate([least[:1], least[1:][least[1:] != least[:-1]]])
    return _distinct(kept)


def _distinct(row: NDArray[np.uint64]) -> NDArray[np.uint64]:
    row.sort()
    return row[np.concatenate([[True], row[1:] != row[:-1]])] if len(row) else row


def _meets(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> bool:
    """Whether two sorted rows share an entry."""
    if not len(first) or not len(second):
        return False
    small, large = (first, second) if len(first) < len(second) else (second, first)
    if len(small) * 8 > len(large):  # sorting both is faster than looking each up
        both = np.concatenate([small, large])
        both.sort()
        return bool((both[1:] == both[:-1]).any())
    at = np.searchsorted(large, small)
    at[at == len(large)] = 0
    return bool((large[at] == small).any())


@dataclass(frozen=True)
class Influence:
    """Who influenced a call, and how it is known.

    Attributes:
        sources: servers.
        why: "context", "value", "words", "unverified" or "" for nobody.
    """

    sources: frozenset[str] = frozenset()
    why: str = ""


class _Text:
    """A text, and its hashes and words in all spellings; made when they are first compared."""

    def __init__(self, texts: Iterable[str], length: int) -> None:
        self._texts, self._length = list(texts), length
        self.opaque = sum(map(len, self._texts)) > MAX_TEXT

    @cached_property
    def _plain(self) -> list[str]:
        plain = [normalised(one) for text in self._texts for one in spellings(text)]
        self._texts = []
        return plain

    def _rows(self, make: Callable[[str, int], NDArray[np.uint64]]) -> NDArray[np.uint64]:
        rows = [row for row in (make(one, self._length) for one in self._plain) if len(row)]
        if not rows:
            return np.empty(0, np.uint64)
        return rows[0] if len(rows) == 1 else _distinct(np.concatenate(rows))

    @cached_property
    def marks(self) -> NDArray[np.uint64]:
        return self._rows(_marks)

    @cached_property
    def _table(self) -> NDArray[np.bool_]:
        table = np.zeros(_SLOTS, np.bool_)
        table[self.marks & np.uint64(_SLOTS - 1)] = True
        return table

    @cached_property
    def grams(self) -> NDArray[np.uint64]:
        return self._rows(_grams)

    def shares(self, other: _Text) -> bool:
        """Whether both have a run of so many bytes."""
        marks = other.marks
        if len(marks) > 256 and len(self.marks) > 256:  # most are known by their last bits not to be shared
            marks = marks[self._table[marks & np.uint64(_SLOTS - 1)]]
        return _meets(self.marks, marks) and _meets(self.grams, other.grams)

    @cached_property
    def words(self) -> frozenset[str]:
        found: set[str] = set()
        for part in {part for one in self._plain for part in one.split(" ") if len(part) >= 8}:
            if part.isalnum():  # most are, and need no search
                found.add(part)
            else:
                found.update((_ASCII_WORD if part.isascii() else _WORD).findall(part))
        return frozenset(found)


@dataclass(frozen=True)
class _Answer:
    """What a server answered, and who influenced it, itself included."""

    server: str
    sources: frozenset[str]
    text: _Text
    verified: bool


@dataclass
class _Conversation:
    answers: deque[_Answer]
    seen: set[str] = field(default_factory=set)


class FlowTracker:
    """Follows influence through conversations.

    Args:
        mode: "context", "value" or "off".
        min_argument: shorter texts in arguments are not looked at.
        min_shared: bytes that an argument and an answer must share.
        min_words: rare words that they must share, where no such run is there.
        window: answers kept a conversation, in "value".
        max_conversations: the one longest unused is forgotten first.
    """

    def __init__(
        self,
        mode: Mode = "value",
        *,
        min_argument: int = 8,
        min_shared: int = 12,
        min_words: int = 3,
        window: int = 32,
        max_conversations: int = 1000,
    ) -> None:
        if mode not in ("context", "value", "off"):
            raise BadInput(f"isolation is context, value or off; got {mode!r}")
        if min(min_argument, min_shared, min_words, window, max_conversations) < 1:
            raise BadInput("lengths and numbers of a flow tracker are 1 or more")
        self.mode: Mode = mode
        self._min_argument, self._min_shared, self._min_words = min_argument, min_shared, min_words
        self._window, self._max = window, max_conversations
        self._conversations: OrderedDict[str, _Conversation] = OrderedDict()

    def _of(self, context: str) -> _Conversation:
        found = self._conversations.get(context)
        if found is None:
            if len(self._conversations) >= self._max:
                self._conversations.popitem(last=False)
            found = self._conversations[context] = _Conversation(deque(maxlen=self._window))
        self._conversations.move_to_end(context)
        return found

    def label(self, context: str, target: str, arguments: Any, *, writes: bool = False) -> Influence:
        """Who influenced a call, the target itself left out.

        Args:
            context: conversation.
            target: server of the call.
            arguments: of it.
            writes: the call changes something or reaches beyond the server; then every unverified server that answered
                before counts.
        """
        if self.mode == "off" or context not in self._conversations:
            return Influence()
        conversation = self._of(context)
        if self.mode == "context":
            sources = frozenset(conversation.seen - {target})
            return Influence(sources, "context" if sources else "")
        found: set[str] = set()
        why = ""
        foreign = [answer for answer in conversation.answers if not answer.sources <= {target}]
        texts = [text for text in texts_of(arguments) if len(text) >= self._min_argument] if foreign else []
        if texts:
            # Also joined: a text cut into several arguments is still that text.
            carried = _Text([*texts, "".join(texts)] if len(texts) > 1 else texts, self._min_shared)
            for answer in foreign:
                if answer.sources <= found | {target}:
                    continue
                if carried.opaque or answer.text.opaque or answer.text.shares(carried):
                    found |= answer.sources
                    why = "value"
                elif self._share_words(conversation, answer, carried):
                    found |= answer.sources
                    why = why or "words"
        if writes:
            unverified = {a.server for a in conversation.answers if not a.verified} - found - {target}
            if unverified:
                found |= unverified
                why = why or "unverified"
        sources = frozenset(found - {target})
        return Influence(sources, why if sources else "")

    def _share_words(self, conversation: _Conversation, answer: _Answer, carried: _Text) -> bool:
        """Whether they share enough words that no other server has used."""
        shared = carried.words & answer.text.words
        if len(shared) < self._min_words:
            return False
        others = [one for one in conversation.answers if one.server != answer.server]
        rare = shared.difference(*(one.text.words for one in others))
        return len(rare) >= self._min_words

    def delivered(
        self,
        context: str,
        server: str,
        content: Any,
        *,
        influence: frozenset[str] = frozenset(),
        verified: bool = True,
    ) -> None:
        """Records an answer that a conversation got.

        Args:
            context: conversation.
            server: that answered.
            content: of the answer, a JSON value.
            influence: who influenced the call that it answers.
            verified: the server has a certificate.
        """
        if self.mode == "off":
            return
        conversation = self._of(context)
        conversation.seen |= {server} | influence
        if self.mode == "context":
            return
        text = _Text(["\n".join(texts_of(content))], self._min_shared)
        conversation.answers.append(_Answer(server, influence | {server}, text, verified))

    def forget(self, context: str) -> None:
        """Ends a conversation."""
        self._conversations.pop(context, None)

    def __len__(self) -> int:
        return len(self._conversations)
