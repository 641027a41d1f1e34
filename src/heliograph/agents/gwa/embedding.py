"""Embeddings of thoughts: the word table where it is installed, hashed words where it is not."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from heliograph.errors import BadInput, MissingData

__all__ = ["Embedder", "HashedWords", "default_embedding"]

_WORD = re.compile(r"\w+", re.UNICODE)
_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be by do for from has have i in is it its me my no not of on or so that the this to was we "
        "what when where which who will with you",
    )
)


class Embedder(Protocol):
    """What turns texts into unit vectors."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """[len(texts), dimensions]."""
        ...


class HashedWords:
    """Bags of words, each word a fixed random direction: sees shared words, not shared meaning. Needs no data.

    Args:
        dimensions: of the vectors.
    """

    def __init__(self, dimensions: int = 256) -> None:
        if dimensions < 8:
            raise BadInput(f"dimensions is 8 or more; got {dimensions}")
        self.dimensions = dimensions
        self._known: dict[str, NDArray[np.float64]] = {}

    def _direction(self, word: str) -> NDArray[np.float64]:
        if word not in self._known:
            if len(self._known) > 50_000:
                self._known.clear()
            bits = hashlib.shake_128(word.encode()).digest(-(-self.dimensions // 8))
            signs = np.unpackbits(np.frombuffer(bits, np.uint8))[: self.dimensions]
            self._known[word] = (signs * 2.0 - 1.0) / np.sqrt(self.dimensions)
        return self._known[word]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Unit vectors, [len(texts), dimensions]; a text of frequent words only keeps them."""
        rows = []
        for text in texts:
            words = [word.lower() for word in _WORD.findall(text)]
            words = [word for word in words if word not in _STOP] or words or [text.strip()]
            if not words[0]:
                raise BadInput("an empty text has no embedding")
            row = np.sum([self._direction(word) for word in words], axis=0)
            length = float(np.linalg.norm(row))
            rows.append(row / length if length > 1e-9 else self._direction(words[0]))
        return np.stack(rows) if rows else np.zeros((0, self.dimensions))


def default_embedding() -> Embedder:
    """The table of ``wordllama`` if it is installed, else :class:`HashedWords`."""
    from heliograph.agents.core.lm import StaticEmbedding

    try:
        return StaticEmbedding()
    except MissingData:
        return HashedWords()
