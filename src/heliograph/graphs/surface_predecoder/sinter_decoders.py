"""For ``sinter collect --custom_decoders_module_function``: decoders named in an environment variable.

``HELIOGRAPH_PREDECODER`` holds the path of a checkpoint folder, written by ``PreDecoder.save``.
"""

from __future__ import annotations

import os

from heliograph.errors import BadInput
from heliograph.graphs.surface_predecoder.network import PreDecoder
from heliograph.graphs.surface_predecoder.proposal import Pipeline

__all__ = ["VARIABLE", "sinter_decoders"]

VARIABLE = "HELIOGRAPH_PREDECODER"


def sinter_decoders() -> dict[str, Pipeline]:
    """The checkpoint's network before plain and before correlated matching, under the names that sinter lists.

    Raises:
        BadInput: the variable is not set, or names no checkpoint.
    """
    folder = os.environ.get(VARIABLE)
    if not folder:
        raise BadInput(f"set {VARIABLE} to the folder of a checkpoint, written by PreDecoder.save")
    network = PreDecoder.load(folder)
    return {
        "predecoder": Pipeline(network),
        "predecoder_correlated": Pipeline(network, correlated=True),
    }
