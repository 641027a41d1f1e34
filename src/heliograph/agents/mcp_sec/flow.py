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
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from heliograph.agents.mcp_sec.sieve import Sieve, is_held
from heliograph.errors import BadInput

__all__ = ["FlowTracker", "Influence", "normalised", "spellings", "texts_of"]

Mode = Literal["context", "value", "off"]
MAX_TEXT = 256 * 1024
"""Characters of one answer or argument that are looked at; what is longer counts as shared with everything."""
MAX_DECODED = 3 * MAX_TEXT
MAX_DEPTH = 3
_FEW_WORDS = 200
_ZERO_WIDTH = dict.fromkeys([0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF, 0x00AD])
_SPACES = dict.fromkeys([*range(9, 14), *range(28, 32)], " ")
_PREFIXES = ("https://www.", "http://www.", "https://", "http://")
_ALNUM = bytes(byte < 128 and chr(byte).isalnum() for byte in range(256))
_NO_SPACE = bytes(byte != ord(" ") for byte in range(256))
_BASE64 = bytes(byte < 128 and (chr(byte).isalnum() or chr(byte) in "+/_-") for byte in range(256))
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}){6,}")
_WORD = re.compile(r"(?<![^\W_])[^\W_]{8,}")


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
    if "://" in text:
        for prefix in _PREFIXES:  # everybody's, and as long as what counts as shared
            text = text.replace(prefix, " ")
    while "  " in text:
        text = text.replace("  ", " ")
    return text.strip(" ")


def _runs(raw: bytes, alphabet: bytes, least: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the longest runs of an alphabet's bytes begin and end, those of so many bytes or more.

    Args:
        raw: the text.
        alphabet: for each byte, 1 if it is part of a run and 0 if not.
        least: shorter runs are left out.
    """
    inside = np.frombuffer(b"\0" + raw.translate(alphabet) + b"\0", np.bool_)
    covered = 1
    while covered < least:  # at each place: the alphabet's bytes from here on are so many
        step = min(covered, least - covered)
        inside, covered = inside[:-step] & inside[step:], covered + step
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    return edges[::2], edges[1::2] + (least - 1)


def _decoded(text: str) -> Iterable[str]:
    if "%" in text:
        once = urllib.parse.unquote(text)
        if once != text:
            yield once
    raw = text.encode("utf-8", "surrogatepass")
    # A run of hexadecimal digits is one of base64 too.
    for begin, end in zip(*map(np.ndarray.tolist, _runs(raw, _BASE64, 12)), strict=True):
        body = raw[begin:end].decode("ascii")
        if body.islower() and body.isalpha() and raw[end : end + 1] != b"=":
            continue  # a long word: no base64 of a text lacks capitals and digits
        for digits in _HEX.findall(body):
            yield bytes.fromhex(digits).decode("utf-8", "replace")
        body = body.replace("-", "+").replace("_", "/")
        body = body[: len(body) - (len(body) % 4 == 1)]
        try:
            inner = base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
        except (binascii.Error, ValueError):
            continue
        plain = inner.decode("utf-8", "replace")
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


def _eights(raw: bytes) -> NDArray[np.uint64]:
    """Eight bytes at every place as one number, zeros after the end."""
    return np.ndarray((len(raw),), "<u8", raw + bytes(8), strides=(1,))


def _grams(text: str, length: int) -> NDArray[np.uint64]:
    """Hashes of all substrings of so many bytes, sorted. Equal substrings have equal hashes."""
    raw = text.encode("utf-8", "surrogatepass")
    count = len(raw) - length + 1
    if count < 1:
        return np.empty(0, np.uint64)
    words = _eights(raw)  # the padding is never part of a substring that counts
    if length < 8:
        return _distinct(words[:count] & np.uint64((1 << 8 * length) - 1))
    total = words[:count].copy()
    with np.errstate(over="ignore"):
        for place in [*range(8, length - 8, 8), *([length - 8] if length > 8 else [])]:
            total *= np.uint64(0x9E3779B97F4A7C15)
            total += words[place : place + count]
    return _distinct(total)


def _heads(text: str, length: int) -> NDArray[np.uint64]:
    """The first bytes of runs of so many, at every place, as numbers: at most eight, and four of a short run."""
    size = _head_bytes(length)
    raw = text.encode("utf-8", "surrogatepass")
    words = _eights(raw)[: max(len(raw) - size + 1, 0)]
    return words if size == 8 else words & np.uint64((1 << 8 * size) - 1)


def _marks(text: str, length: int) -> NDArray[np.uint64]:
    """Some of a text's heads, sorted: one in so many places that each run of ``length`` bytes has one inside."""
    return _distinct(_heads(text, length)[:: length - _head_bytes(length) + 1].copy())


def _head_bytes(length: int) -> int:
    return min(length, max(4, min(8, length - 4)))


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
    return bool(is_held(small, large).any())


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
    def _plain(self) -> tuple[list[str], list[str]]:
        """All spellings, without those that lie within the longest; of these the first and the last words."""
        plain = [normalised(one) for text in self._texts for one in spellings(text)]
        self._texts = []
        longest = max(plain, key=len, default="")
        whole, ends = [longest], []
        for one in plain:
            if one is longest:
                continue
            if len(one) * 64 > len(longest) and one in longest:  # a short one costs less than the search for it
                ends += [one.partition(" ")[0], one.rpartition(" ")[2]]  # in the longest they may go on
            else:
                whole.append(one)
        return whole, ends

    def _row(self, make: Callable[[str, int], NDArray[np.uint64]]) -> NDArray[np.uint64]:
        rows = [row for row in (make(one, self._length) for one in self._plain[0]) if len(row)]
        if not rows:
            return np.empty(0, np.uint64)
        return rows[0] if len(rows) == 1 else _distinct(np.concatenate(rows))

    @cached_property
    def heads(self) -> NDArray[np.uint64]:
        rows = [_heads(one, self._length) for one in self._plain[0]]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    @cached_property
    def marks(self) -> NDArray[np.uint64]:
        return self._row(_marks)

    @cached_property
    def grams(self) -> NDArray[np.uint64]:
        return self._row(_grams)

    @cached_property
    def _words(self) -> _Words:
        whole, ends = self._plain
        return _Words(" ".join([*whole, *ends]))

    @cached_property
    def word_keys(self) -> NDArray[np.uint64]:
        return self._words.keys()

    @cached_property
    def words(self) -> frozenset[bytes]:
        return self._words.texts()


class _Words:
    """Runs of eight letters and digits or more in a text."""

    def __init__(self, text: str) -> None:
        alphabet = _ALNUM
        if not text.isascii():
            found: set[str] = set()
            for part in {part for part in text.split(" ") if len(part) >= 8}:
                if part.isalnum():  # most are, and need no search
                    found.add(part)
                else:
                    found.update(_WORD.findall(part))
            text, alphabet = " ".join(found), _NO_SPACE
        self._raw = text.encode("utf-8")
        self._begins, self._ends = _runs(self._raw, alphabet, 8)

    def keys(self) -> NDArray[np.uint64]:
        """A number for each word, made of its first and its last eight bytes; sorted."""
        eights = _eights(self._raw)
        keys = eights[self._begins] * np.uint64(0x9E3779B97F4A7C15) + eights[self._ends - 8]
        keys.sort()
        return keys

    def texts(self) -> frozenset[bytes]:
        """The words themselves, in UTF-8."""
        places = zip(self._begins.tolist(), self._ends.tolist(), strict=True)
        return frozenset({self._raw[begin:end] for begin, end in places})


@dataclass(frozen=True)
class _Answer:
    """What a server answered, and who influenced it, itself included; as many answers later its place is another's."""

    place: int
    server: str
    sources: frozenset[str]
    text: _Text
    verified: bool


@dataclass
class _Conversation:
    """Its last answers, and indices of those that were compared with an argument."""

    answers: deque[_Answer]
    seen: set[str] = field(default_factory=set)
    next_place: int = 0
    marks: Sieve = field(default_factory=Sieve)
    words: Sieve = field(default_factory=Sieve)


class _Comparison:
    """A call's texts beside the answers of its conversation; the indices are looked at once, if they are needed."""

    def __init__(self, conversation: _Conversation, answers: Iterable[_Answer], carried: _Text) -> None:
        self._conversation, self._answers, self._carried = conversation, list(answers), carried

    @cached_property
    def _same_marks(self) -> Counter[int]:
        index = self._conversation.marks
        for answer in self._answers:
            if answer.place not in index and not answer.text.opaque:
                index.put(answer.place, answer.text.marks)
        return index.count(self._carried.heads)

    @cached_property
    def _same_words(self) -> Counter[int]:
        index = self._conversation.words
        for answer in self._answers:
            if answer.place not in index and not answer.text.opaque:
                index.put(answer.place, answer.text.word_keys)
        return index.count(self._carried.word_keys)

    def share_run(self, answer: _Answer) -> bool:
        """Whether both have a run of so many bytes in common, or one is too long to tell."""
        if self._carried.opaque or answer.text.opaque:
            return True
        return bool(self._same_marks[answer.place]) and _meets(answer.text.grams, self._carried.grams)

    def share_words(self, answer: _Answer, least: int) -> bool:
        """Whether they share at least so many words that no other server has used."""
        # Fewer are looked up sooner in each answer; in the index a word that is repeated counts more than once.
        if len(self._carried.word_keys) > _FEW_WORDS and self._same_words[answer.place] < least:
            return False
        shared = self._carried.words & answer.text.words
        if len(shared) < least:
            return False
        others = [one for one in self._conversation.answers if one.server != answer.server]
        return len(shared.difference(*(one.text.words for one in others))) >= least


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
            comparison = _Comparison(conversation, foreign, carried)
            for answer in foreign:
                if answer.sources <= found | {target}:
                    continue
                if comparison.share_run(answer):
                    found |= answer.sources
                    why = "value"
                elif comparison.share_words(answer, self._min_words):
                    found |= answer.sources
                    why = why or "words"
        if writes:
            unverified = {a.server for a in conversation.answers if not a.verified} - found - {target}
            if unverified:
                found |= unverified
                why = why or "unverified"
        sources = frozenset(found - {target})
        return Influence(sources, why if sources else "")

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
        place = conversation.next_place
        conversation.next_place = (place + 1) % self._window
        conversation.marks.drop(place)
        conversation.words.drop(place)
        conversation.answers.append(_Answer(place, server, influence | {server}, text, verified))

    def forget(self, context: str) -> None:
        """Ends a conversation."""
        self._conversations.pop(context, None)

    def __len__(self) -> int:
        return len(self._conversations)
