"""Text search over the cards: ranked, with synonyms of the field, offline.

A query is a row of *concepts*: a word, a dashed compound, or a term of ``synonyms.toml``. Each concept has
*alternatives* (itself, its synonyms, the words that the last word begins), and counts by the best of them. SQLite's
FTS5 ranks by BM25 over weighted columns; where Python's sqlite3 lacks it, a scan computes the same formula. Both see
text that was folded and stemmed here, so user text never reaches the syntax of FTS5.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from heliograph.catalog.card import Card
from heliograph.catalog.porter import stem

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Hit", "search"]

COLUMNS = ("slug", "title", "keywords", "summary", "claims")
COLUMN_WEIGHTS = (10.0, 6.0, 5.0, 2.0, 1.0)
SYNONYM_WEIGHT, SCATTERED_WEIGHT, PREFIX_WEIGHT = 0.6, 0.5, 0.5
MAX_CONCEPTS = 24
MAX_COMPOUND = 8
MAX_COMPLETIONS = 40
MAX_QUERY = 10_000
STOP_WORDS = {
    "a", "an", "and", "are", "as", "at", "be", "behind", "between", "by", "can", "do", "does", "for", "from", "how",
    "i", "in", "into", "is", "it", "its", "my", "not", "of", "on", "one", "or", "our", "over", "some", "system",
    "systems", "than", "that", "the", "their", "them", "there", "these", "this", "to", "under", "using", "via",
    "want", "was", "we", "what", "when", "where", "which", "who", "why", "with", "without", "you", "your",
}  # fmt: skip

Phrase = tuple[str, ...]  # stems that follow one another


@dataclass(frozen=True)
class Hit:
    """One card that matches.

    Attributes:
        card: the card.
        score: larger is better; comparable only within one search.
        matched: the terms found in it, in the order of the query: as typed, or the synonym or word that stood for it.
    """

    card: Card
    score: float
    matched: tuple[str, ...]


@dataclass(frozen=True)
class Alternative:
    """One way to find a concept: every phrase must occur."""

    text: str
    phrases: tuple[Phrase, ...]
    weight: float


class Index(Protocol):
    """Documents by position; each is five columns of stems."""

    def scores(self, phrases: Sequence[Phrase]) -> dict[int, float]:
        """BM25 of the documents that hold every phrase; positive, larger is better."""
        ...

    def close(self) -> None:
        """Frees it."""
        ...


def search(query: str, cards: Mapping[str, Card] | Iterable[Card]) -> list[Hit]:
    """Finds the cards that a query means, best first.

    Cards rank by how many of the query's concepts they match and how well. Those that match no more than half as many
    as another card are left out.

    Args:
        query: any text; only letters and digits count. Its last word may be unfinished.
        cards: where to search, for example what :func:`~heliograph.catalog.registry.load_cards` returns.

    Returns:
        The hits; empty for a query without a letter or digit, or where nothing matches.
    """
    pool = list(cards.values() if isinstance(cards, Mapping) else cards)
    documents = [_document(card) for card in pool]
    concepts = _concepts(query, frozenset(word for document in documents for word in document.words))
    if not pool or not concepts:
        return []
    with contextlib.closing(_make_index([document.stems for document in documents])) as index:
        found = [_best_alternatives(index, alternatives, len(pool)) for alternatives in concepts]
    coverage = [sum(position in best for best in found) for position in range(len(pool))]
    hits = []
    for position, card in enumerate(pool):
        if 2 * coverage[position] > max(coverage):
            entries = [best[position] for best in found if position in best]
            score = sum(score for score, _ in entries) * (coverage[position] / len(concepts)) ** 2
            hits.append(Hit(card, score, tuple(dict.fromkeys(text for _, text in entries))))
    return sorted(hits, key=lambda hit: -hit.score)


def _best_alternatives(index: Index, alternatives: Sequence[Alternative], total: int) -> dict[int, tuple[float, str]]:
    """For each card that matches the concept: its score, and the alternative that gave it."""
    answers = [(alternative, index.scores(alternative.phrases)) for alternative in alternatives]
    matching = len(set().union(*(scores for _, scores in answers)))
    best: dict[int, tuple[float, str]] = {}
    for alternative, scores in answers:
        # A concept is as rare as all its alternatives together, else its rarest spelling would outrank the others.
        scale = (
            alternative.weight * math.log1p((total - matching + 0.5) / (matching + 0.5)) / _rarity(len(scores), total)
        )
        for position, score in scores.items():
            if position not in best or score * scale > best[position][0]:
                best[position] = (score * scale, alternative.text)
    return best


def _rarity(matching: int, total: int) -> float:
    """The inverse document frequency that FTS5's bm25 uses."""
    return max(1e-6, math.log((total - matching + 0.5) / (matching + 0.5)))


# --- from text to stems ---


@dataclass(frozen=True)
class _Document:
    stems: tuple[Phrase, ...]  # one row of stems a column
    words: frozenset[str]


def _words(text: str) -> list[str]:
    """Lower-case words without accents; everything but letters and digits separates."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return re.findall(r"[^\W_]+", plain.casefold())


def _stems(text: str) -> Phrase:
    return tuple(map(stem, _words(text)))


@functools.lru_cache(maxsize=1024)
def _document(card: Card) -> _Document:
    claims = (f"{claim.statement} {claim.metric} {claim.baseline} {claim.workload}" for claim in card.claims)
    columns = (
        f"{card.slug} {card.slug.replace('_', '')} {card.arxiv}",
        card.title,
        " ; ".join((*card.keywords, *card.public, card.family, card.code)),
        card.summary,
        " ".join(claims),
    )
    words = frozenset(word for column in columns for word in _words(column))
    return _Document(tuple(map(_stems, columns)), words)


# --- from a query to concepts ---


def _concepts(query: str, vocabulary: frozenset[str]) -> list[list[Alternative]]:
    """The query's concepts, each with its alternatives; at most ``MAX_CONCEPTS``."""
    words: list[str] = []
    compounds: dict[int, int] = {}  # position of a dashed compound's first word -> its number of words
    for chunk in re.split(r"[^\w'’.-]+", query[:MAX_QUERY]):
        parts = _words(chunk)
        compounds[len(words)] = min(len(parts), MAX_COMPOUND)
        words += parts
    stems = tuple(map(stem, words))
    only_stop_words = all(word in STOP_WORDS for word in words)
    concepts: list[list[Alternative]] = []
    position = 0
    while position < len(words) and len(concepts) < MAX_CONCEPTS:
        length = max(1, _longest_term(stems, position), compounds.get(position, 0))
        taken = words[position : position + length]
        position += length
        if length > 1 or taken[0] not in STOP_WORDS or only_stop_words:
            concepts.append(_alternatives(taken, vocabulary if position == len(words) else frozenset()))
    return concepts


def _alternatives(words: Sequence[str], completions: frozenset[str]) -> list[Alternative]:
    """The term itself, its words apart or run together, its synonyms, and what its last word may become."""
    phrase = tuple(map(stem, words))
    text = " ".join(words)
    synonyms = _synonyms().get(phrase, {})
    found = [Alternative(text, (phrase,), 1.0)]
    if len(words) > 1:
        found.append(Alternative("".join(words), ((stem("".join(words)),),), 1.0))
        if not synonyms:  # a term of the field means something only as a whole
            found.append(Alternative(text, tuple((part,) for part in dict.fromkeys(phrase)), SCATTERED_WEIGHT))
    for term, synonym in synonyms.items():
        if synonym != phrase:
            found.append(Alternative(term, (synonym,), SYNONYM_WEIGHT))
    if len(words[-1]) >= 2:
        longer = sorted(word for word in completions if word.startswith(words[-1]) and word != words[-1])
        for word in longer[:MAX_COMPLETIONS]:
            found.append(Alternative(" ".join((*words[:-1], word)), ((*phrase[:-1], stem(word)),), PREFIX_WEIGHT))
    return found


@functools.cache
def _synonyms() -> dict[Phrase, dict[str, Phrase]]:
    """By the stems of a term: every term that means the same, with its stems."""
    groups = tomllib.loads(Path(__file__).with_name("synonyms.toml").read_text(encoding="utf-8"))["groups"]
    table: dict[Phrase, dict[str, Phrase]] = {}
    for group in groups:
        terms = {term: _stems(term) for term in group}
        for phrase in terms.values():
            table.setdefault(phrase, {}).update(terms)
    return table


@functools.cache
def _longest_synonym() -> int:
    return max(map(len, _synonyms()))


def _longest_term(stems: Phrase, position: int) -> int:
    """Length of the longest term of the synonym file that begins here; 0 if none does."""
    for length in range(min(_longest_synonym(), len(stems) - position), 0, -1):
        if stems[position : position + length] in _synonyms():
            return length
    return 0


# --- the two indexes ---


def _make_index(documents: Sequence[Sequence[Phrase]]) -> Index:
    connection = _open_fts5()
    return _ScanIndex(documents) if connection is None else _Fts5Index(connection, documents)


def _open_fts5() -> sqlite3.Connection | None:
    """An in-memory database with the empty table ``cards``; None where this Python has no FTS5."""
    try:
        import sqlite3
    except ImportError:
        return None
    connection = sqlite3.connect(":memory:")
    try:
        # The text comes folded and stemmed, hence the tokeniser that keeps every letter as it is.
        connection.execute(f"CREATE VIRTUAL TABLE cards USING fts5({', '.join(COLUMNS)}, tokenize=ascii)")
    except sqlite3.Error:
        connection.close()
        return None
    return connection


class _Fts5Index:
    """The cards in SQLite."""

    def __init__(self, connection: sqlite3.Connection, documents: Sequence[Sequence[Phrase]]) -> None:
        self._connection = connection
        connection.executemany(
            "INSERT INTO cards(rowid, slug, title, keywords, summary, claims) VALUES (?, ?, ?, ?, ?, ?)",
            ((row, *map(" ".join, columns)) for row, columns in enumerate(documents)),
        )

    def scores(self, phrases: Sequence[Phrase]) -> dict[int, float]:
        expression = " AND ".join('"' + " ".join(phrase) + '"' for phrase in phrases)  # stems hold no quote
        weights = ", ".join(map(str, COLUMN_WEIGHTS))
        rows = self._connection.execute(
            f"SELECT rowid, -bm25(cards, {weights}) FROM cards WHERE cards MATCH ?", (expression,)
        )
        return dict(rows.fetchall())

    def close(self) -> None:
        self._connection.close()


class _ScanIndex:
    """The same ranking in plain Python, by FTS5's formula (sqlite.org/fts5.html, "The bm25() function")."""

    def __init__(self, documents: Sequence[Sequence[Phrase]]) -> None:
        # Spaces around every stem make a phrase a substring.
        self._columns = [[f" {'  '.join(column)} " for column in document] for document in documents]
        self._lengths = [sum(map(len, document)) for document in documents]

    def scores(self, phrases: Sequence[Phrase]) -> dict[int, float]:
        total: dict[int, float] = dict.fromkeys(range(len(self._columns)), 0.0)
        average = sum(self._lengths) / max(1, len(self._lengths))
        for phrase in phrases:
            needle = f" {'  '.join(phrase)} "
            frequency = {
                row: sum(w * column.count(needle) for w, column in zip(COLUMN_WEIGHTS, columns, strict=True))
                for row, columns in enumerate(self._columns)
                if any(needle in column for column in columns)
            }
            rarity = _rarity(len(frequency), len(self._columns))
            total = {
                row: total[row] + rarity * f * 2.2 / (f + 1.2 * (0.25 + 0.75 * self._lengths[row] / average))
                for row, f in frequency.items()
                if row in total
            }
        return total

    def close(self) -> None:
        pass
