"""Arrays kept on disk between runs: whole files or none, and a damaged file is noticed."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

__all__ = ["CacheWarning", "cache_home", "read_tables", "write_tables"]

MAGIC = b"HELIOTAB1\n"
HEAD = len(MAGIC) + 32


class CacheWarning(UserWarning):
    """A kept file was damaged and has been made again, or could not be written."""


def cache_home() -> Path:
    """``$HELIOGRAPH_HOME/cache``, or the user's cache folder."""
    home = os.environ.get("HELIOGRAPH_HOME")
    return Path(home) / "cache" if home else Path(platformdirs.user_cache_dir("heliograph"))


def write_tables(path: Path, tables: Mapping[str, NDArray[Any]]) -> None:
    """Writes a digest and the arrays (no pickled objects) beside ``path``, then moves them there in one step."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **dict(tables))
    body = buffer.getvalue()
    part = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as file:
            part = file.name
            file.write(MAGIC + hashlib.sha256(body).digest() + body)
        Path(part).replace(path)
    except OSError as error:
        if part:
            Path(part).unlink(missing_ok=True)
        warnings.warn(f"computed but not kept: {path}: {error.strerror}", CacheWarning, stacklevel=2)


def read_tables(path: Path) -> dict[str, NDArray[Any]] | None:
    """The arrays of a file; None where there is no file, or a damaged one (with a :class:`CacheWarning`)."""
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    head, body = whole[:HEAD], whole[HEAD:]
    if head != MAGIC + hashlib.sha256(body).digest():
        warnings.warn(f"{path} is damaged and is made again", CacheWarning, stacklevel=2)
        return None
    with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
