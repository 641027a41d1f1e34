"""Influence by value as it is defined, without any index: every run and every word is looked for in every answer."""

import base64
import binascii
import re
import unicodedata
import urllib.parse

from heliograph.agents.mcp_sec.flow import MAX_DECODED, MAX_DEPTH, MAX_TEXT, texts_of

_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{12,}={0,2}")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}){6,}")
_WORD = re.compile(r"(?<![^\W_])[^\W_]{8,}")
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
_SPACES = "".join(map(chr, [*range(9, 14), *range(28, 32)]))


def plain_normalised(text):
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        text = " ".join("".join(c for c in text if c not in _INVISIBLE).split())
    text = "".join(" " if c in _SPACES else c for c in text.casefold())
    for prefix in ("https://www.", "http://www.", "https://", "http://"):
        text = text.replace(prefix, " ")
    return re.sub(" +", " ", text).strip(" ")


def _plain_decoded(text):
    if "%" in text and urllib.parse.unquote(text) != text:
        yield urllib.parse.unquote(text)
    for run in _BASE64.findall(text):
        if run.islower() and run.isalpha():
            continue
        for digits in _HEX.findall(run):
            yield bytes.fromhex(digits).decode("utf-8", "replace")
        body = run.rstrip("=").replace("-", "+").replace("_", "/")
        body = body[: len(body) - (len(body) % 4 == 1)]
        try:
            plain = base64.b64decode(body + "=" * (-len(body) % 4), validate=True).decode("utf-8", "replace")
        except (binascii.Error, ValueError):
            continue
        if plain.count("\ufffd") * 4 <= len(plain):
            yield plain


def plain_spellings(text):
    found = [text[:MAX_TEXT]]
    for _ in range(MAX_DEPTH):
        plain = "\n".join(_plain_decoded(found[-1]))[:MAX_DECODED]
        if not plain:
            break
        found.append(plain)
    return found


def _raw(text):
    return text.encode("utf-8", "surrogatepass")


class PlainText:
    def __init__(self, texts, length):
        self.opaque = sum(map(len, texts)) > MAX_TEXT
        self._plain = [plain_normalised(one) for text in texts for one in plain_spellings(text)]
        self.words = {word for one in self._plain for word in _WORD.findall(one)}
        raws = map(_raw, self._plain)
        self.runs = {raw[at : at + length] for raw in raws for at in range(len(raw) - length + 1)}


class PlainTracker:
    """What a tracker by value says, for one conversation."""

    def __init__(self, *, min_argument, min_shared, min_words, window):
        self._min_argument, self._min_shared, self._min_words = min_argument, min_shared, min_words
        self._window, self._answers = window, []

    def delivered(self, server, content, influence):
        text = PlainText(["\n".join(texts_of(content))], self._min_shared)
        self._answers = [*self._answers, (server, influence | {server}, text)][-self._window :]

    def label(self, target, arguments):
        """Sources, and why."""
        texts = [text for text in texts_of(arguments) if len(text) >= self._min_argument]
        if not texts:
            return frozenset(), ""
        carried = PlainText([*texts, "".join(texts)], self._min_shared)
        found, why = set(), ""
        for server, sources, text in self._answers:
            if sources <= found | {target}:
                continue
            elsewhere = set().union(*(other.words for name, _, other in self._answers if name != server))
            if carried.opaque or text.opaque or carried.runs & text.runs:
                found, why = found | sources, "value"
            elif len((carried.words & text.words) - elsewhere) >= self._min_words:
                found, why = found | sources, why or "words"
        found -= {target}
        return frozenset(found), why if found else ""
