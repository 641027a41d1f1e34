"""Porter's stemmer: ``overlapping`` and ``overlapped`` become ``overlap`` (M. F. Porter, "An algorithm for suffix
stripping", Program 14(3), 1980, with its author's two later changes, as in SQLite's FTS5).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

__all__ = ["stem"]

_STEP_2 = {
    "ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "logi": "log", "bli": "ble",
    "alli": "al", "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate", "ator": "ate",
    "alism": "al", "iveness": "ive", "fulness": "ful", "ousness": "ous", "aliti": "al", "iviti": "ive",
    "biliti": "ble",
}  # fmt: skip
_STEP_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
_STEP_4 = {
    "al": "", "ance": "", "ence": "", "er": "", "ic": "", "able": "", "ible": "", "ant": "", "ement": "", "ment": "",
    "ent": "", "sion": "s", "tion": "t", "ou": "", "ism": "", "ate": "", "iti": "", "ous": "", "ive": "", "ize": "",
}  # fmt: skip


@lru_cache(maxsize=8192)
def stem(word: str) -> str:
    """The stem of a lower-case word; words of fewer than three or more than 64 letters stay as they are."""
    if not 3 <= len(word) <= 64:
        return word
    word = _past_and_gerund(_plural(word))
    if word.endswith("y") and _has_vowel(word[:-1]):
        word = word[:-1] + "i"
    for suffixes, at_least in ((_STEP_2, 1), (_STEP_3, 1), (_STEP_4, 2)):
        word = _replace_suffix(word, suffixes, at_least)
    if word.endswith("e"):
        body = word[:-1]
        if _measure(body) > 1 or (_measure(body) == 1 and not _ends_short(body)):
            word = body
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


def _plural(word: str) -> str:
    if word.endswith(("sses", "ies")) and word not in ("sses", "ies"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _past_and_gerund(word: str) -> str:
    if word.endswith("eed") and len(word) > 3:
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for suffix in ("ed", "ing"):
        body = word.removesuffix(suffix)
        if body != word and _has_vowel(body):
            break
    else:
        return word
    if body.endswith(("at", "bl", "iz")) and len(body) > 2:
        return body + "e"
    if len(body) > 1 and body[-1] == body[-2] and body[-1] not in "aeioulsz":
        return body[:-1]
    return body + "e" if _measure(body) == 1 and _ends_short(body) else body


def _replace_suffix(word: str, suffixes: dict[str, str], at_least: int) -> str:
    """Replaces the longest matching suffix, if the part before it has the measure that the step asks for."""
    matching = [suffix for suffix in suffixes if word.endswith(suffix) and len(word) > len(suffix)]
    if not matching:
        return word
    suffix = max(matching, key=len)
    replaced = word.removesuffix(suffix) + suffixes[suffix]
    body = replaced if at_least == 2 else word.removesuffix(suffix)  # "ion" leaves its s or t in the stem
    return replaced if _measure(body) >= at_least else word


def _vowels(word: str) -> list[bool]:
    """Which letters are vowels; a y is one after a consonant."""
    flags: list[bool] = []
    for letter in word:
        flags.append(letter in "aeiou" or (letter == "y" and bool(flags) and not flags[-1]))
    return flags


def _has_vowel(word: str) -> bool:
    return any(_vowels(word))


def _measure(word: str) -> int:
    """Porter's m: how often a consonant follows a vowel."""
    flags = _vowels(word)
    return sum(before and not after for before, after in pairwise(flags))


def _ends_short(word: str) -> bool:
    """Porter's *o: consonant, vowel, consonant, the last not w, x or y."""
    flags = _vowels(word)
    return flags[-3:] == [False, True, False] and word[-1] not in "wxy"
