"""Prefill and decode in groups of instances: offered prompts, contiguous caches, a ratio that follows measured times.

A gateway offers each prompt to prefill instances until an idle one takes it (:class:`PDGateway`,
:class:`PrefillAdmission`); the cache leaves as one range and is scattered into the receiver's own blocks
(:class:`ContiguousKV`, :func:`recv_scatter`); groups of one scenario keep their own ratio of roles (:class:`PDGroup`,
:func:`balance_ratio`, :class:`RatioController`). Source: arXiv:2408.08147.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from heliograph.errors import MissingExtra

if TYPE_CHECKING:
    from heliograph.serving.pd_serve.admission import Accept, Offer, PrefillAdmission, PrefillLimits, Reject
    from heliograph.serving.pd_serve.fleet import FleetController, FleetRouter, GroupSimulation
    from heliograph.serving.pd_serve.forwarding import Backoff, ForwardStats, NoIdlePrefill, forward
    from heliograph.serving.pd_serve.gateway import PDBackend, PDGateway
    from heliograph.serving.pd_serve.group import GroupState, PDGroup
    from heliograph.serving.pd_serve.instance import PDInstance
    from heliograph.serving.pd_serve.modelled import ForwardingReport, LeastReported, OnDemand, simulate_forwarding
    from heliograph.serving.pd_serve.ratio import BalancedRatio, RatioController, ScenarioProfile, balance_ratio
    from heliograph.serving.pd_serve.transfer import ContiguousKV, KVShape, LinkRefused, check_link, recv_scatter

_HOME = {
    **dict.fromkeys(("Accept", "Offer", "PrefillAdmission", "PrefillLimits", "Reject"), "admission"),
    **dict.fromkeys(("FleetController", "FleetRouter", "GroupSimulation"), "fleet"),
    **dict.fromkeys(("Backoff", "ForwardStats", "NoIdlePrefill", "forward"), "forwarding"),
    **dict.fromkeys(("PDBackend", "PDGateway"), "gateway"),
    **dict.fromkeys(("GroupState", "PDGroup"), "group"),
    "PDInstance": "instance",
    **dict.fromkeys(("ForwardingReport", "LeastReported", "OnDemand", "simulate_forwarding"), "modelled"),
    **dict.fromkeys(("BalancedRatio", "RatioController", "ScenarioProfile", "balance_ratio"), "ratio"),
    **dict.fromkeys(("ContiguousKV", "KVShape", "LinkRefused", "check_link", "recv_scatter"), "transfer"),
}

__all__ = [
    "Accept",
    "Backoff",
    "BalancedRatio",
    "ContiguousKV",
    "FleetController",
    "FleetRouter",
    "ForwardStats",
    "ForwardingReport",
    "GroupSimulation",
    "GroupState",
    "KVShape",
    "LeastReported",
    "LinkRefused",
    "NoIdlePrefill",
    "Offer",
    "OnDemand",
    "PDBackend",
    "PDGateway",
    "PDGroup",
    "PDInstance",
    "PrefillAdmission",
    "PrefillLimits",
    "RatioController",
    "Reject",
    "ScenarioProfile",
    "balance_ratio",
    "check_link",
    "forward",
    "recv_scatter",
    "simulate_forwarding",
]
_EXTRA = {"numba", "torch", "tokenizers"}


def __getattr__(name: str) -> Any:
    """Imports a public name's module at its first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"heliograph.serving.pd_serve.{_HOME[name]}")
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in _EXTRA:
            raise MissingExtra(package, "serving") from error
        raise
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
