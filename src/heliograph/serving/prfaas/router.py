"""Where a prompt is computed: by the tokens that no cache holds, and by what is scarce, bandwidth or computing.

Bandwidth scarce: each cluster's cache counts for itself and no cache moves. Computing scarce: the longest prefix
anywhere counts, and moves to where the prompt is computed (arXiv:2604.15039, routing).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from heliograph.errors import BadInput, HeliographError
from heliograph.serving.core.blocks import chain_hashes
from heliograph.serving.core.cluster import InstanceView, Placement, RoutingRequest, candidates
from heliograph.serving.prfaas.congestion import AdaptiveThreshold, CongestionMonitor, LinkReport
from heliograph.serving.prfaas.prefix_index import GlobalPrefixIndex
from heliograph.serving.prfaas.service_model import Plan

__all__ = [
    "ClusterFacts",
    "ClusterOffloading",
    "ClusterRefused",
    "HybridRouter",
    "OffloadPlacement",
    "OffloadRequest",
    "check_clusters",
]

Side = Literal["remote", "local"]


class ClusterRefused(HeliographError):
    """Two clusters cannot exchange caches; found when they are joined, not at the first transfer."""


@dataclass(frozen=True)
class ClusterFacts:
    """What both clusters must agree on before caches pass between them.

    Attributes:
        fingerprint: of weights, configuration and number format.
        dtype: of cached numbers.
        page_bytes, block_tokens: of the hybrid pool.
        groups: names of the cache groups, in the order in which they are sent.
    """

    fingerprint: str
    dtype: str = "bfloat16"
    page_bytes: int = 0
    block_tokens: int = 16
    groups: tuple[str, ...] = ()


def check_clusters(remote: ClusterFacts, local: ClusterFacts) -> None:
    """Refuses clusters of which one could not go on with the other's caches.

    Raises:
        ClusterRefused: a difference; the message names both values.
    """
    for name in ("fingerprint", "dtype", "page_bytes", "block_tokens", "groups"):
        there, here = getattr(remote, name), getattr(local, name)
        if there != here:
            raise ClusterRefused(
                f"{name} is {there!r} in the remote cluster and {here!r} in the local one; give both the same model "
                "version, number format and pool"
            )


@dataclass(frozen=True)
class OffloadRequest:
    """What the router needs of a prompt.

    Attributes:
        tokens: of it.
        names: of its blocks, for the index; empty where nothing can be shared.
    """

    tokens: int
    names: Sequence[Hashable] = ()

    def __post_init__(self) -> None:
        """Refuses an empty prompt."""
        if self.tokens < 1:
            raise BadInput(f"a prompt has one token or more; got {self.tokens}")


@dataclass(frozen=True)
class OffloadPlacement:
    """Where a prompt is computed.

    Attributes:
        cluster: "remote" or "local".
        reuse_from: whose cached prefix is used; "" for none.
        reused_tokens: of that prefix.
        moved_tokens: of it that have to be brought from the other cluster, after the part that the chosen one has.
        uncached_tokens: that are computed.
        reason: in words.
    """

    cluster: Side
    reuse_from: str
    reused_tokens: int
    moved_tokens: int
    uncached_tokens: int
    reason: str


@dataclass
class HybridRouter:
    """Decides request by request; the slow loop sets ``t``.

    Args:
        plan: threshold and split, or only a threshold in tokens.
        index: of cached prefixes in the clusters "remote" and "local"; None where nothing is shared.
        monitor: of the link out of the remote cluster.
        adaptive: searches for the threshold again while the link is scarce; None keeps it.
        clusters: what each holds; checked where both are given.
        remote_alive: whether the remote cluster takes prompts at all.

    Attributes:
        counts: placements by side.
    """

    plan: Plan | float
    index: GlobalPrefixIndex | None = None
    monitor: CongestionMonitor = field(default_factory=CongestionMonitor)
    adaptive: AdaptiveThreshold | None = None
    clusters: Mapping[str, ClusterFacts] | None = None
    remote_alive: bool = True

    def __post_init__(self) -> None:
        """Refuses a threshold that is none, and clusters that do not fit."""
        self.t = self.plan.t if isinstance(self.plan, Plan) else float(self.plan)
        if not self.t >= 0:
            raise BadInput(f"a threshold is a number of tokens, 0 or more (inf keeps all local); got {self.t}")
        if self.index is not None and not {"remote", "local"} <= set(self.index.clusters):
            raise BadInput(f"the index must know the clusters remote and local; it knows {self.index.clusters}")
        if self.clusters is not None:
            if set(self.clusters) != {"remote", "local"}:
                raise BadInput(f"clusters are named remote and local; got {sorted(self.clusters)}")
            check_clusters(self.clusters["remote"], self.clusters["local"])
        self.counts: dict[Side, int] = {"remote": 0, "local": 0}

    def observe(self, report: LinkReport) -> None:
        """A report of the link: the switch may turn, and the threshold move."""
        scarce = self.monitor.observe(report)
        if self.adaptive is not None:
            self.t = self.adaptive.update(report.now_s, scarce, report.bytes_per_s, report.queue_bytes)

    def route(self, request: OffloadRequest) -> OffloadPlacement:
        """The side that computes a prompt, and whose prefix it uses."""
        held = {"remote": 0, "local": 0}
        if self.index is not None and request.names:
            held |= self.index.lengths(request.names, usable=request.tokens - 1)
        scarce = self.monitor.scarce
        if not self.remote_alive:
            side, judged, reason = "local", held["local"], "the remote cluster is away"
        elif scarce:
            judged = held["local"]
            side = "remote" if request.tokens - judged > self.t else "local"
            reason = "bandwidth is scarce: the local cache alone decides"
        else:
            judged = max(held["remote"], held["local"])
            side = "remote" if request.tokens - judged > self.t else "local"
            reason = "computing is scarce: the longest prefix anywhere decides"
        chosen: Side = "remote" if side == "remote" else "local"
        other: Side = "local" if chosen == "remote" else "remote"
        source, reused = chosen, held[chosen]
        if not scarce and self.remote_alive and held[other] > reused:
            source, reused = other, held[other]
        uncached = request.tokens - reused
        if self.adaptive is not None:
            self.adaptive.saw(request.tokens - judged)
        self.counts[chosen] += 1
        compared = "above" if request.tokens - judged > self.t else "not above"
        return OffloadPlacement(
            chosen,
            source if reused else "",
            reused,
            reused - held[chosen] if source == other else 0,
            uncached,
            f"{request.tokens - judged} uncached tokens, {compared} {self.t:g}; {reason}",
        )


class ClusterOffloading:
    """The same decision as a :class:`~heliograph.serving.Router` of a running cluster.

    Prompts above the threshold are computed by prefill instances whose names stand in ``remote``, all others by the
    rest; answers are decoded by local instances only.

    Args:
        router: that decides the side.
        remote: names of the instances in the remote cluster.
        fingerprint: for the names of prefixes, where the router has an index.
    """

    def __init__(self, router: HybridRouter, remote: Sequence[str], *, fingerprint: str = "") -> None:
        self.router, self.remote, self.fingerprint = router, frozenset(remote), fingerprint

    def route(self, request: RoutingRequest, views: Sequence[InstanceView]) -> Placement:
        """Least loaded of the side that the threshold names; of the other side where that one is away.

        Raises:
            Overloaded: no instance is ready.
        """
        prefill, decode = candidates(views)
        far, near = self._sides(prefill)
        _, answers = self._sides(decode)
        tokens, index = len(request.prompt) + request.resumed, self.router.index
        names = [] if index is None else chain_hashes(request.prompt, index.block_tokens, self.fingerprint)
        self.router.remote_alive = bool(far)
        placed = self.router.route(OffloadRequest(tokens, names))
        pool = (far if placed.cluster == "remote" else near) or near or far
        first = min(pool, key=lambda view: view.outstanding)
        if index is not None:
            index.record("remote" if first.name in self.remote else "local", names)
        able = answers or decode
        second = first if first in able else min(able, key=lambda view: view.outstanding)
        return Placement(first.name, second.name)

    def _sides(self, views: Sequence[InstanceView]) -> tuple[list[InstanceView], list[InstanceView]]:
        return [v for v in views if v.name in self.remote], [v for v in views if v.name not in self.remote]
