"""GGUF files: metadata and weights of a language model in one file, read without running or trusting anything in it.

The header is parsed here, with every length checked against the file before it is used; numbers are decoded by the
library ``gguf``. Source of the format: the GGUF specification, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heliograph.errors import BadInput, MissingExtra

__all__ = ["GGUFFile", "TensorInfo"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_AXES = 4
STRING, ARRAY = 8, 9
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
NUMPY = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: ``shape`` with the fastest axis last, ``kind`` of the quantisation, bytes of the file."""

    shape: tuple[int, ...]
    kind: str
    offset: int
    nbytes: int


class GGUFFile:
    """An open file; use it as a context.

    Attributes:
        metadata: by key: numbers, strings, and lists of them.
        tensors: by name.

    Raises:
        BadInput: no GGUF file, an unknown version, or lengths that point outside the file; the byte is named.
        MissingExtra: the library ``gguf`` is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._sizes = _quantisations()
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror}") from None
        try:
            self._at = 0
            self.metadata, self.tensors = self._read_header()
        except BaseException:
            self.close()
            raise

    def load(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor, decoded to floating point.

        Raises:
            BadInput: no such tensor, or an encoding that is not known here.
        """
        if name not in self.tensors:
            raise BadInput(f"{self.path.name} has no tensor {name!r}")
        info = self.tensors[name]
        raw = np.frombuffer(self._data, dtype=np.uint8, count=info.nbytes, offset=info.offset)
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType[info.kind]
        blocks = raw.reshape(-1, self._sizes[kind.value][1])
        if info.kind in DECODERS:
            return DECODERS[info.kind](torch.from_numpy(blocks.copy())).reshape(info.shape).to(dtype)
        try:
            values = dequantize(blocks, kind).astype(np.float32, copy=False)
        except NotImplementedError:
            raise BadInput(
                f"{self.path.name}: tensor {name} is stored as {info.kind}, which is not decoded here; convert the "
                "file to Q8_0 or F16"
            ) from None
        return torch.from_numpy(np.array(values).reshape(info.shape)).to(dtype)

    def close(self) -> None:
        """Lets go of the file."""
        if isinstance(self._data, mmap.mmap):
            self._data.close()

    def __enter__(self) -> GGUFFile:
        """The file itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Closes the file."""
        self.close()

    def _read_header(self) -> tuple[Mapping[str, Any], Mapping[str, TensorInfo]]:
        if bytes(self._data[:4]) != MAGIC:
            raise BadInput(f"{self.path} is no GGUF file: it begins with {bytes(self._data[:4])!r}")
        self._at = 4
        version = self._number(4)
        if version not in VERSIONS:
            raise BadInput(f"{self.path} is GGUF version {version}; versions 2 and 3, little-endian, are read")
        tensor_count, field_count = self._number(10), self._number(10)
        metadata = {}
        for _ in range(self._bounded(field_count, 13, "metadata fields")):
            key = self._string()
            metadata[key] = self._value(self._number(4))
        listed = []
        for _ in range(self._bounded(tensor_count, 24, "tensors")):
            listed.append(self._tensor())
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise BadInput(f"{self.path}: general.alignment is {alignment!r}; a power of two is expected")
        start = -(-self._at // alignment) * alignment
        tensors = {}
        for name, info in listed:
            end = start + info.offset + info.nbytes
            if end > len(self._data):
                raise BadInput(
                    f"{self.path} is truncated: tensor {name} ends at byte {end:,}, the file has {len(self._data):,}"
                )
            tensors[name] = TensorInfo(info.shape, info.kind, start + info.offset, info.nbytes)
        return metadata, tensors

    def _tensor(self) -> tuple[str, TensorInfo]:
        name, axes = self._string(), self._number(4)
        if not 1 <= axes <= MOST_AXES:
            raise BadInput(f"{self.path}: tensor {name!r} has {axes} axes; 1 to {MOST_AXES} are expected")
        shape = tuple(reversed([self._number(10) for _ in range(axes)]))
        code, offset = self._number(4), self._number(10)
        if code not in self._sizes:
            raise BadInput(f"{self.path}: tensor {name!r} has the unknown encoding {code}")
        from gguf import GGMLQuantizationType

        block, block_bytes = self._sizes[code]
        count = int(np.prod([min(n, 2**62) for n in shape], dtype=object))
        if count < 1 or shape[-1] % block:
            raise BadInput(
                f"{self.path}: tensor {name!r} of shape {list(shape)} does not divide into blocks of {block}"
            )
        return name, TensorInfo(shape, GGMLQuantizationType(code).name, offset, count // block * block_bytes)

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            inner, count = self._number(4), self._number(10)
            if inner == STRING:
                return [self._string() for _ in range(self._bounded(count, 8, "strings"))]
            if inner not in NUMPY:
                raise BadInput(f"{self.path}: a list of elements of type {inner} at byte {self._at:,} is not known")
            width = np.dtype(NUMPY[inner]).itemsize
            raw = self._take(self._bounded(count, width, "elements") * width)
            return np.frombuffer(raw, dtype=NUMPY[inner]).tolist()
        if kind not in SCALARS:
            raise BadInput(f"{self.path}: metadata of the unknown type {kind} at byte {self._at:,}")
        return self._number(kind)

    def _number(self, kind: int) -> Any:
        form = SCALARS[kind]
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _string(self) -> str:
        return self._take(self._number(10)).decode("utf-8", errors="replace")

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise BadInput(
                f"{self.path} is truncated: {count:,} bytes from byte {self._at:,} on, of {len(self._data):,}"
            )
        taken = bytes(self._data[self._at : end])
        self._at = end
        return taken

    def _bounded(self, count: int, least: int, what: str) -> int:
        """A count, refused where not even the smallest elements would fit into the rest of the file."""
        if count * least > len(self._data) - self._at:
            raise BadInput(
                f"{self.path} is damaged: it claims {count:,} {what} in {len(self._data) - self._at:,} bytes"
            )
        return count


def _plain(blocks: Tensor) -> Tensor:
    return blocks.view(torch.float32)


def _half(blocks: Tensor) -> Tensor:
    return blocks.view(torch.float16).float()


def _eight(blocks: Tensor) -> Tensor:
    """A 16-bit scale, then 32 signed bytes."""
    return blocks[:, 2:].view(torch.int8).float() * _number16(blocks, 0)


def _four(blocks: Tensor) -> Tensor:
    """A 16-bit scale, then 32 numbers from -8 to 7."""
    return (_nibbles(blocks[:, 2:]) - 8) * _number16(blocks, 0)


def _four_and_least(blocks: Tensor) -> Tensor:
    """A 16-bit scale and least number, then 32 numbers from 0 to 15."""
    return _nibbles(blocks[:, 4:]) * _number16(blocks, 0) + _number16(blocks, 2)


def _nibbles(packed: Tensor) -> Tensor:
    """The low halves of all bytes, then the high halves."""
    return torch.cat([packed & 15, packed >> 4], dim=1).float()


def _number16(blocks: Tensor, at: int) -> Tensor:
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


# the library decodes every encoding, these few several times faster here; tested equal bit for bit
DECODERS = {"F32": _plain, "F16": _half, "Q8_0": _eight, "Q4_0": _four, "Q4_1": _four_and_least}


def _quantisations() -> dict[int, tuple[int, int]]:
    """Elements and bytes of a block, by code."""
    try:
        from gguf import GGML_QUANT_SIZES
    except ImportError as error:
        raise MissingExtra("gguf", "lm") from error
    return {kind.value: sizes for kind, sizes in GGML_QUANT_SIZES.items()}
