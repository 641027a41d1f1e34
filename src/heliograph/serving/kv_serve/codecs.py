"""Stage C: levels become bytes. Levels are first packed as digits of a number, so that few levels cost few bits.

Three levels of six values are one byte of 216 values: an entropy coder over such bytes comes closer to the entropy than
one over single levels, and has a third of the symbols to code. All but packing itself release the interpreter lock.
"""

from __future__ import annotations

import functools
import zlib
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from heliograph.errors import BadInput, HeliographError, MissingExtra

__all__ = ["CODECS", "CodecError", "KVCodec", "make_codec", "pack_levels", "unpack_levels", "word_of"]

Bytes = NDArray[np.uint8]


class CodecError(HeliographError):
    """Bytes that no such codec wrote."""


class KVCodec(Protocol):
    """Packs levels into bytes, without loss."""

    def encode(self, levels: Bytes, base: int) -> bytes:
        """Levels below ``base``."""
        ...

    def decode(self, data: bytes | memoryview, count: int, base: int) -> Bytes:
        """The ``count`` levels again.

        Raises:
            CodecError: damaged bytes, or another count.
        """
        ...


@functools.lru_cache(maxsize=512)
def word_of(base: int, widest: int) -> tuple[int, int]:
    """How many digits of a base go into a word, and the word's bytes: the densest of up to ``widest`` bytes."""
    best = (1, 1)
    for width in range(1, widest + 1):
        digits = 1
        while base ** (digits + 1) <= 256**width:
            digits += 1
        if digits * best[1] > best[0] * width:
            best = digits, width
    return best


def pack_levels(levels: Bytes, base: int, widest: int = 3) -> Bytes:
    """Levels as digits of words of up to ``widest`` bytes; digits of a word lie far apart, which packs in long rows."""
    digits, width = word_of(base, widest)
    if digits == 1:
        return np.ascontiguousarray(levels)
    words = -(-len(levels) // digits)
    padded = levels if len(levels) == words * digits else np.pad(levels, (0, words * digits - len(levels)))
    rows = padded.reshape(digits, words)
    kind = np.uint8 if width == 1 else np.uint32
    total = rows[digits - 1].astype(kind)
    for row in range(digits - 2, -1, -1):
        total *= kind(base)
        total += rows[row]
    if width == 1:
        return np.ascontiguousarray(total)
    return np.ascontiguousarray(total.astype("<u4").view(np.uint8).reshape(words, 4)[:, :width].T).reshape(-1)


def unpack_levels(data: Bytes, count: int, base: int, widest: int = 3) -> Bytes:
    """What :func:`pack_levels` was given.

    Raises:
        CodecError: not the bytes of so many levels of that base.
    """
    digits, width = word_of(base, widest)
    words = -(-count // digits)
    if len(data) != words * width:
        raise CodecError(f"{count} levels of base {base} take {words * width} bytes; got {len(data)}")
    if digits == 1:
        if base < 256 and len(data) and int(data.max()) >= base:
            raise CodecError(f"a level above {base - 1}")
        return data
    out = np.empty((digits, words), np.uint8)
    if width == 1:
        if base**digits < 256 and len(data) and int(data.max()) >= base**digits:
            raise CodecError(f"a word above {base**digits - 1}")
        table = _table(base, digits)
        for row in range(digits):
            np.take(table[row], data, out=out[row])
    else:
        wide = np.zeros((words, 4), np.uint8)
        wide[:, :width] = data.reshape(width, words).T
        total = wide.view("<u4").reshape(-1)
        for row in range(digits):
            total, digit = np.divmod(total, np.uint32(base))
            out[row] = digit
        if total.any():
            raise CodecError(f"a word above {base**digits - 1}")
    return out.reshape(-1)[:count]


@functools.lru_cache(maxsize=512)
def _table(base: int, digits: int) -> Bytes:
    number = np.arange(256)
    return np.stack([(number // base**row % base).astype(np.uint8) for row in range(digits)])


class _NoCodec:
    """One byte a level."""

    def encode(self, levels: Bytes, base: int) -> bytes:  # noqa: ARG002
        return levels.tobytes()

    def decode(self, data: bytes | memoryview, count: int, base: int) -> Bytes:
        found = np.frombuffer(data, np.uint8)
        if len(found) != count or (base < 256 and count and int(found.max()) >= base):
            raise CodecError(f"{count} levels below {base} were expected; got {len(found)} bytes")
        return found


class _Bitpack:
    """The densest words of up to three bytes."""

    def encode(self, levels: Bytes, base: int) -> bytes:
        return pack_levels(levels, base).tobytes()

    def decode(self, data: bytes | memoryview, count: int, base: int) -> Bytes:
        return unpack_levels(np.frombuffer(data, np.uint8), count, base)


class _Deflate:
    """zlib over packed bytes.

    Args:
        level, strategy: of zlib.
    """

    def __init__(self, level: int, strategy: int) -> None:
        self.level, self.strategy = level, strategy

    def encode(self, levels: Bytes, base: int) -> bytes:
        coder = zlib.compressobj(self.level, zlib.DEFLATED, -15, 9, self.strategy)
        return coder.compress(pack_levels(levels, base, 1).data) + coder.flush()

    def decode(self, data: bytes | memoryview, count: int, base: int) -> Bytes:
        words = -(-count // word_of(base, 1)[0])
        coder = zlib.decompressobj(-15)
        try:
            packed = coder.decompress(data, words + 1)
        except zlib.error as error:
            raise CodecError(f"damaged: {error}") from None
        if len(packed) != words or not coder.eof or coder.unused_data:
            raise CodecError(f"{words} bytes were expected; got {len(packed)}")
        return unpack_levels(np.frombuffer(packed, np.uint8), count, base, 1)


class _Zstd:
    """zstd over packed bytes."""

    def __init__(self, level: int = 1) -> None:
        self.library, self.level = _zstandard(), level

    def encode(self, levels: Bytes, base: int) -> bytes:
        return bytes(self.library.ZstdCompressor(self.level).compress(pack_levels(levels, base, 1)))

    def decode(self, data: bytes | memoryview, count: int, base: int) -> Bytes:
        words = -(-count // word_of(base, 1)[0])
        data = bytes(data)
        try:
            size = self.library.frame_content_size(data)
            if size != words:  # before anything of the size that it announces is allocated
                raise CodecError(f"{words} bytes were expected; {size} are announced")
            packed = self.library.ZstdDecompressor().decompress(data, allow_extra_data=False)
        except self.library.ZstdError as error:
            raise CodecError(f"damaged: {error}") from None
        if len(packed) != words:
            raise CodecError(f"{words} bytes were expected; got {len(packed)}")
        return unpack_levels(np.frombuffer(packed, np.uint8), count, base, 1)


@functools.cache
def _zstandard() -> Any:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise MissingExtra("zstandard", "serving") from error
    return zstandard


CODECS = ("none", "bitpack", "huffman", "zlib", "zstd")


@functools.cache
def make_codec(name: str) -> KVCodec:
    """The codec of that name: ``huffman`` is zlib's entropy coder alone, ``zlib`` searches for repeats too.

    Raises:
        BadInput: there is none. MissingExtra: ``zstd`` without the library.
    """
    if name == "none":
        return _NoCodec()
    if name == "bitpack":
        return _Bitpack()
    if name == "huffman":
        return _Deflate(1, zlib.Z_HUFFMAN_ONLY)
    if name == "zlib":
        return _Deflate(6, zlib.Z_DEFAULT_STRATEGY)
    if name == "zstd":
        return _Zstd()
    raise BadInput(f"codecs are {', '.join(CODECS)}; got {name!r}")
