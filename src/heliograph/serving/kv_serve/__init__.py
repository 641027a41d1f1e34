"""Keys and values compressed by what pays at the moment: transform, quantiser, codec, and who chooses them.

A search over a :class:`CompressionSpace` leaves a few profiles (:func:`profile_search`); a controller picks one for
each request by bandwidth, length, quality and time limit (:class:`CompressionController`, :func:`lower_envelope`); a
link, or an engine's transfer, carries checked frames (:class:`KVPipeline`, :class:`CompressedLink`,
:class:`CompressedKVServer`; on a GPU :class:`DeviceKVPipeline`, :class:`DeviceLink`). Source: arXiv:2605.13734.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from heliograph.errors import MissingExtra

if TYPE_CHECKING:
    from heliograph.serving.kv_serve.codecs import KVCodec, make_codec
    from heliograph.serving.kv_serve.controller import (
        CompressionController,
        Decision,
        TransferContext,
        Transferred,
    )
    from heliograph.serving.kv_serve.device import DeviceFrame, DeviceKVPipeline, restore_on_device
    from heliograph.serving.kv_serve.device_link import DeviceLink
    from heliograph.serving.kv_serve.frame import FrameDamaged, KVLayout
    from heliograph.serving.kv_serve.link import CompressedLink, Delivery, KVReceiver, LinkDown, PacedLink, SteadyPace
    from heliograph.serving.kv_serve.pipeline import KVPipeline, Restored, restore
    from heliograph.serving.kv_serve.point import METHODS, CompressionPoint
    from heliograph.serving.kv_serve.pool import KVPool
    from heliograph.serving.kv_serve.profile import CompressionProfile, Envelope, ProfileSet, lower_envelope
    from heliograph.serving.kv_serve.profiling import measure_point, profile_search
    from heliograph.serving.kv_serve.quality import Quality, QualityEvaluator, retrieval_scores
    from heliograph.serving.kv_serve.quantizers import KVQuantizer
    from heliograph.serving.kv_serve.search import SearchResult, SearchSettings, search_points
    from heliograph.serving.kv_serve.space import CompressionSpace
    from heliograph.serving.kv_serve.transforms import KVTransform
    from heliograph.serving.kv_serve.wire import CompressedFetch, CompressedKVServer

_HOME = {
    **dict.fromkeys(("KVCodec", "make_codec"), "codecs"),
    **dict.fromkeys(("CompressionController", "Decision", "TransferContext", "Transferred"), "controller"),
    **dict.fromkeys(("DeviceFrame", "DeviceKVPipeline", "restore_on_device"), "device"),
    "DeviceLink": "device_link",
    **dict.fromkeys(("FrameDamaged", "KVLayout"), "frame"),
    **dict.fromkeys(("CompressedLink", "Delivery", "KVReceiver", "LinkDown", "PacedLink", "SteadyPace"), "link"),
    **dict.fromkeys(("KVPipeline", "Restored", "restore"), "pipeline"),
    **dict.fromkeys(("METHODS", "CompressionPoint"), "point"),
    "KVPool": "pool",
    **dict.fromkeys(("CompressionProfile", "Envelope", "ProfileSet", "lower_envelope"), "profile"),
    **dict.fromkeys(("measure_point", "profile_search"), "profiling"),
    **dict.fromkeys(("Quality", "QualityEvaluator", "retrieval_scores"), "quality"),
    "KVQuantizer": "quantizers",
    **dict.fromkeys(("SearchResult", "SearchSettings", "search_points"), "search"),
    "CompressionSpace": "space",
    "KVTransform": "transforms",
    **dict.fromkeys(("CompressedFetch", "CompressedKVServer"), "wire"),
}

__all__ = [
    "METHODS",
    "CompressedFetch",
    "CompressedKVServer",
    "CompressedLink",
    "CompressionController",
    "CompressionPoint",
    "CompressionProfile",
    "CompressionSpace",
    "Decision",
    "Delivery",
    "DeviceFrame",
    "DeviceKVPipeline",
    "DeviceLink",
    "Envelope",
    "FrameDamaged",
    "KVCodec",
    "KVLayout",
    "KVPipeline",
    "KVPool",
    "KVQuantizer",
    "KVReceiver",
    "KVTransform",
    "LinkDown",
    "PacedLink",
    "ProfileSet",
    "Quality",
    "QualityEvaluator",
    "Restored",
    "SearchResult",
    "SearchSettings",
    "SteadyPace",
    "TransferContext",
    "Transferred",
    "lower_envelope",
    "make_codec",
    "measure_point",
    "profile_search",
    "restore",
    "restore_on_device",
    "retrieval_scores",
    "search_points",
]
_EXTRA = {"numba", "torch", "tokenizers"}


def __getattr__(name: str) -> Any:
    """Imports a public name's module at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"heliograph.serving.kv_serve.{_HOME[name]}")
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in _EXTRA:
            raise MissingExtra(package, "serving") from error
        raise
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
