"""The stemmer is Porter's, as SQLite has it."""

from __future__ import annotations

import re
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.catalog.porter import _STEP_2, _STEP_3, _STEP_4, stem
from heliograph.catalog.registry import load_cards


def sqlite_stems(words: list[str]) -> list[str]:
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("CREATE VIRTUAL TABLE texts USING fts5(text, tokenize='porter ascii')")
    except sqlite3.OperationalError:
        pytest.skip("this Python's SQLite has no FTS5")
    connection.execute("CREATE VIRTUAL TABLE terms USING fts5vocab(texts, instance)")
    connection.executemany("INSERT INTO texts(rowid, text) VALUES (?, ?)", enumerate(words))
    stems = dict(connection.execute("SELECT doc, term FROM terms").fetchall())
    connection.close()
    return [stems[row] for row in range(len(words))]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("overlap overlaps overlapped overlapping", "overlap"),
        ("communicate communication communications communicating", "commun"),
        ("quantize quantized quantization", "quantiz"),
        ("caresses", "caress"),
        ("ponies", "poni"),
        ("agreed", "agre"),
        ("hopping", "hop"),
        ("filing", "file"),
        ("relational", "relat"),
        ("electricity", "electr"),
        ("controlling", "control"),
        ("of", "of"),
    ],
)
def test_inflections_share_a_stem(words: str, expected: str) -> None:
    assert {stem(word) for word in words.split()} == {expected}


def test_stems_of_the_whole_catalog_equal_those_of_sqlite() -> None:
    text = " ".join(str(card) for card in load_cards().values()).lower()
    words = sorted(set(re.findall("[a-z0-9]+", text)))
    assert len(words) > 3000
    assert [stem(word) for word in words] == sqlite_stems(words)


SUFFIXES = [*_STEP_2, *_STEP_3, *_STEP_4, "ion", "s", "es", "ies", "sses", "ed", "eed", "ing", "y", "e", "ll"]
made_up = st.builds(
    "".join,
    st.tuples(st.text("abdeilostuvwxyz", max_size=6), st.sampled_from(SUFFIXES), st.sampled_from(["", *SUFFIXES])),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(made_up, min_size=1, max_size=100, unique=True))
def test_stems_of_made_up_words_equal_those_of_sqlite(words: list[str]) -> None:
    assert [stem(word) for word in words] == sqlite_stems(words)
