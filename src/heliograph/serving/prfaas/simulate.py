"""Two clusters and a link in virtual time, request by request; whoever places prompts is exchangeable.

A remote prompt's cache leaves in groups of layers while later ones are computed, once the decode side has kept a place
for it. A first token counts once the prompt is computed and, if that was elsewhere, its cache has arrived.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from heliograph.errors import BadInput
from heliograph.serving.prfaas.congestion import LinkReport
from heliograph.serving.prfaas.prefix_index import GlobalPrefixIndex, prefix_names
from heliograph.serving.prfaas.roles import RoleController
from heliograph.serving.prfaas.router import HybridRouter, OffloadPlacement, OffloadRequest, Side
from heliograph.serving.prfaas.service_model import GIGABIT, Plan, PrefillServiceModel
from heliograph.serving.prfaas.stations import DecodePlaces, PrefillStation, VaryingLink
from heliograph.sim import Sim
from heliograph.workload.requests import RequestTrace

__all__ = ["LeastLoadedSides", "ServiceReport", "ServiceSimulation", "SimPrompt", "prompts_from_trace"]


@dataclass(frozen=True)
class SimPrompt:
    """A request: when it comes, tokens of prompt and answer, and names of the prompt's blocks."""

    arrival_s: float
    tokens: int
    output_tokens: int
    names: tuple[Hashable, ...] = ()


def prompts_from_trace(trace: RequestTrace, block_tokens: int = 512) -> list[SimPrompt]:
    """The requests of a trace; a prompt must have a length or token ids, and an absolute time.

    Raises:
        BadInput: a request without one of these, counted from 1.
    """
    found = []
    for number, request in enumerate(trace, 1):
        length = request.prompt_length
        if length is None or request.arrival_s is None or length < 1:
            raise BadInput(
                f"request {number} of {trace.name or 'the trace'} needs prompt_tokens of 1 or more and arrival_s for a "
                "simulation"
            )
        size = request.prefix_block_tokens or block_tokens
        names = tuple(prefix_names(request, size))
        found.append(SimPrompt(request.arrival_s, length, max(1, request.output_tokens), names))
    return found


class Chooser(Protocol):
    """Places prompts."""

    def place(self, prompt: SimPrompt, simulation: ServiceSimulation) -> OffloadPlacement:
        """Where it is computed."""
        ...


class LeastLoadedSides:
    """Whoever has less to do, whatever the prompt's length: the baseline between no routing and a threshold.

    Args:
        by: "requests" counts those outstanding for each instance; "seconds" expects the end of the prompt on both
            sides from what is queued and from the profiles.
    """

    def __init__(self, by: Literal["requests", "seconds"] = "requests") -> None:
        if by not in ("requests", "seconds"):
            raise BadInput(f"load is counted by requests or seconds; got {by!r}")
        self.by = by

    def place(self, prompt: SimPrompt, simulation: ServiceSimulation) -> OffloadPlacement:
        """The side with less load; of equals the local one."""
        loads = {side: self._load(prompt, side, simulation) for side in ("local", "remote")}
        side: Side = "remote" if loads["remote"] < loads["local"] else "local"
        return OffloadPlacement(side, "", 0, 0, prompt.tokens, f"load {loads[side]:g}")

    def _load(self, prompt: SimPrompt, side: str, simulation: ServiceSimulation) -> float:
        station = simulation.stations[side]
        if not station.servers:
            return math.inf
        if self.by == "requests":
            return (station.busy + station.queued) / station.servers
        profile = simulation.model.remote if side == "remote" else simulation.model.local
        return station.expected_wait_s() + profile.seconds(prompt.tokens)


@dataclass(frozen=True)
class ServiceReport:
    """What happened, by request in the order of arrival; NaN where it has not.

    Attributes:
        arrival_s, first_token_s, finished_s: times.
        remote: whether the prompt was computed remotely.
        fallbacks: prompts computed locally after the remote cluster had not delivered in time.
        sent_bytes, moved_bytes: caches of prompts that left the remote cluster, and prefixes that moved either way.
        most_queued_bytes: largest send queue.
        thresholds, roles: (time, t), and (time, n_p, n_d) of each change.
        switches: turns between scarce bandwidth and scarce computing.
        reused_tokens, prompt_tokens: of all prompts.
    """

    arrival_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    finished_s: NDArray[np.float64]
    remote: NDArray[np.bool_]
    fallbacks: int
    sent_bytes: float
    moved_bytes: float
    most_queued_bytes: float
    thresholds: tuple[tuple[float, float], ...]
    roles: tuple[tuple[float, int, int], ...]
    switches: int
    reused_tokens: int
    prompt_tokens: int

    @property
    def ttft_s(self) -> NDArray[np.float64]:
        """Seconds to the first token of those that have one."""
        waited = self.first_token_s - self.arrival_s
        return waited[np.isfinite(waited)]

    @property
    def unfinished(self) -> int:
        """Requests without an end."""
        return int(np.isnan(self.finished_s).sum())

    def throughput(self, first: float = 0.1, last: float = 0.8) -> float:
        """Requests a second that ended, between two shares of all ends: without filling up and running dry."""
        ends = np.sort(self.finished_s[np.isfinite(self.finished_s)])
        if len(ends) < 20:
            return math.nan
        a, b = int(first * len(ends)), int(last * len(ends))
        return float((b - a) / (ends[b] - ends[a]))

    def egress_gbps(self) -> float:
        """Average traffic out of the remote cluster, until the last first token."""
        last = np.nanmax(self.first_token_s) if len(self.ttft_s) else math.nan
        return float(self.sent_bytes / GIGABIT / (last - self.arrival_s[0]))

    def summary(self) -> dict[str, Any]:
        """As plain data."""
        waited = self.ttft_s
        some = len(waited) > 0
        return {
            "requests": len(self.arrival_s),
            "unfinished": self.unfinished,
            "throughput_per_s": _plain(self.throughput()),
            "ttft_mean_s": float(waited.mean()) if some else None,
            "ttft_p50_s": float(np.quantile(waited, 0.5)) if some else None,
            "ttft_p90_s": float(np.quantile(waited, 0.9)) if some else None,
            "ttft_p99_s": float(np.quantile(waited, 0.99)) if some else None,
            "remote_share": float(self.remote.mean()) if len(self.remote) else None,
            "egress_gbps": _plain(self.egress_gbps()) if some else None,
            "most_queued_mib": self.most_queued_bytes / 2**20,
            "fallbacks": self.fallbacks,
            "scarcity_switches": self.switches,
            "reused_share": self.reused_tokens / self.prompt_tokens if self.prompt_tokens else 0.0,
            "moved_mib": self.moved_bytes / 2**20,
            "threshold_changes": [[when, _plain(t)] for when, t in self.thresholds],
            "role_changes": [list(change) for change in self.roles],
        }


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(eq=False)
class _Open:
    number: int
    prompt: SimPrompt
    placed: OffloadPlacement
    reserved: bool = False
    ready: list[float] = field(default_factory=list)  # pieces that wait for the reservation
    missing: int = 0
    given_up: bool = False


class ServiceSimulation:
    """One run of one deployment.

    Args:
        model: profiles, link and decode speed.
        plan: the split; ``n_remote`` of it are at work.
        router: a :class:`HybridRouter`, or another that places prompts.
        pieces: groups of layers in which a cache leaves.
        delay_s: of propagation between the clusters.
        bandwidth: (time, Gbit/s) changes of the link.
        report_every_s: of the link's reports to the router.
        fallback_s: after a remote prompt is computed, its cache may take so long before it is computed locally; None
            waits for ever.
        roles: moves local instances between prefill and decode; None keeps the split.
        checkpoint_tokens: after which prefixes of the index's blocks can be used; None for every block.
    """

    def __init__(
        self,
        model: PrefillServiceModel,
        plan: Plan,
        router: HybridRouter | Chooser,
        *,
        pieces: int = 8,
        delay_s: float = 0.01,
        bandwidth: Sequence[tuple[float, float]] = (),
        report_every_s: float = 0.5,
        fallback_s: float | None = None,
        roles: RoleController | None = None,
        checkpoint_tokens: int | None = None,
    ) -> None:
        if pieces < 1 or not report_every_s > 0 or (fallback_s is not None and not fallback_s > 0):
            raise BadInput("need pieces of 1 or more, and report_every_s and fallback_s above 0")
        self.sim = Sim()
        self.model, self.plan, self.router = model, plan, router
        self.stations = {
            "remote": PrefillStation(self.sim, plan.n_remote),
            "local": PrefillStation(self.sim, plan.n_p),
        }
        self.decode = DecodePlaces(plan.n_d, model.decode_batch)
        gbps = model.egress_gbps * model.kv_ratio  # compressed bytes on the wire stand for more of the cache
        changes = tuple((when, rate * model.kv_ratio) for when, rate in bandwidth)
        self.egress = VaryingLink(self.sim, gbps, delay_s, changes)
        self.ingress = VaryingLink(self.sim, gbps, delay_s, changes)
        self.pieces, self.report_every_s, self.fallback_s = pieces, report_every_s, fallback_s
        self.roles, self.checkpoint_tokens = roles, checkpoint_tokens
        self.n_p, self.n_d = plan.n_p, plan.n_d
        self._coming = self._running = self._fallbacks = self._reused = 0
        self._moved = 0.0
        self._role_changes: list[tuple[float, int, int]] = []
        self._changing = False

    @property
    def index(self) -> GlobalPrefixIndex | None:
        """The router's."""
        return self.router.index if isinstance(self.router, HybridRouter) else None

    def run(self, prompts: Iterable[SimPrompt], progress: Callable[[float], None] | None = None) -> ServiceReport:
        """Serves all prompts to their ends, as far as that is possible."""
        ordered = sorted(prompts, key=lambda prompt: prompt.arrival_s)
        count = len(ordered)
        if not count or ordered[0].arrival_s < 0:
            raise BadInput("a simulation needs requests, and they arrive at 0 s or later")
        self._first = np.full(count, np.nan)
        self._ends = np.full(count, np.nan)
        self._remote = np.zeros(count, dtype=bool)
        self._coming, self._progress, self._count = count, progress, count
        self._ordered = ordered
        self.sim.at(ordered[0].arrival_s, lambda: self._next(0))
        if isinstance(self.router, HybridRouter):
            self.sim.at(0.0, self._report)
        if self.roles is not None:
            self.sim.at(self.roles.window_s, self._judge)
        self.sim.run()
        adaptive = self.router.adaptive if isinstance(self.router, HybridRouter) else None
        return ServiceReport(
            np.array([prompt.arrival_s for prompt in ordered]),
            self._first,
            self._ends,
            self._remote,
            self._fallbacks,
            self.egress.sent_bytes / self.model.kv_ratio,
            self._moved,
            max(self.egress.most_queued, self.ingress.most_queued) / self.model.kv_ratio,
            tuple(adaptive.changes) if adaptive else (),
            tuple(self._role_changes),
            self.router.monitor.switches if isinstance(self.router, HybridRouter) else 0,
            self._reused,
            sum(prompt.tokens for prompt in ordered),
        )

    def _next(self, number: int) -> None:
        """An arrival schedules the next one, so that the clock's queue stays short."""
        if number + 1 < self._count:
            self.sim.at(self._ordered[number + 1].arrival_s, lambda: self._next(number + 1))
        self._arrive(number, self._ordered[number])

    def _arrive(self, number: int, prompt: SimPrompt) -> None:
        self._coming -= 1
        self._running += 1
        if self._progress is not None and number % 500 == 0:
            self._progress(number / self._count)
        if isinstance(self.router, HybridRouter):
            placed = self.router.route(OffloadRequest(prompt.tokens, prompt.names))
        else:
            placed = self.router.place(prompt, self)
        if self.roles is not None:
            self.roles.saw(placed.uncached_tokens, prompt.output_tokens)
        self._reused += placed.reused_tokens
        open_ = _Open(number, prompt, placed)
        self._remote[number] = placed.cluster == "remote"
        if not placed.moved_tokens:
            self._compute(open_)
            return
        profile = self.model.remote
        held = placed.reused_tokens - placed.moved_tokens
        nbytes = profile.kv_bytes(placed.reused_tokens) - (profile.kv_bytes(held) if held else 0.0)
        self._moved += nbytes / self.model.kv_ratio
        link = self.ingress if placed.cluster == "remote" else self.egress
        link.send(nbytes, lambda: self._compute(open_))

    def _compute(self, open_: _Open) -> None:
        placed = open_.placed
        if placed.cluster == "local":
            seconds = self.model.local.seconds(placed.uncached_tokens)
            self.stations["local"].submit(seconds, lambda: None, lambda: self._computed_here(open_))
            return
        seconds = self.model.remote.seconds(placed.uncached_tokens)
        self.stations["remote"].submit(
            seconds, lambda: self._sending(open_, seconds), lambda: self._computed_there(open_)
        )

    def _computed_here(self, open_: _Open) -> None:
        self._publish(open_, "local")
        self._first[open_.number] = self.sim.now
        self.decode.reserve(lambda: self._decode(open_))

    # a prompt in the remote cluster

    def _sending(self, open_: _Open, seconds: float) -> None:
        """Plans the pieces of a cache: each is ready when its layers are computed."""
        held = 0
        if self.index is not None and open_.prompt.names:
            held = self.index.lengths(open_.prompt.names, usable=open_.prompt.tokens - 1)["local"]
        profile = self.model.remote
        whole = profile.kv_bytes(open_.prompt.tokens)
        if held:  # tokens that the decode side has stay; states travel in any case
            whole = max(0.0, whole - profile.kv_bytes(held)) + profile.kv[0]
        piece = whole / self.pieces
        open_.missing = self.pieces
        for number in range(1, self.pieces + 1):
            self.sim.at(self.sim.now + seconds * number / self.pieces, lambda: self._piece(open_, piece))
        self.decode.reserve(lambda: self._reserved(open_))

    def _reserved(self, open_: _Open) -> None:
        if open_.given_up:
            self.decode.release()
            return
        open_.reserved = True
        waiting, open_.ready = open_.ready, []
        for piece in waiting:
            self._piece(open_, piece)

    def _piece(self, open_: _Open, nbytes: float) -> None:
        if not open_.reserved:
            open_.ready.append(nbytes)
        elif not open_.given_up:
            self.egress.send(nbytes, lambda: self._arrived(open_), lambda: not open_.given_up)

    def _arrived(self, open_: _Open) -> None:
        open_.missing -= 1
        if not open_.missing and not open_.given_up:
            self._first[open_.number] = self.sim.now
            self._decode(open_)

    def _computed_there(self, open_: _Open) -> None:
        self._publish(open_, "remote")
        if self.fallback_s is not None:
            self.sim.at(self.sim.now + self.fallback_s, lambda: self._give_up(open_))

    def _give_up(self, open_: _Open) -> None:
        """The cache has not come in time: what was received is dropped, and the prompt computed here."""
        if not open_.missing or open_.given_up or not self.stations["local"].servers:
            return
        open_.given_up = True
        if open_.reserved:
            self.decode.release()
        self._fallbacks += 1
        self._remote[open_.number] = False
        placed = OffloadPlacement("local", "", 0, 0, open_.prompt.tokens, "the remote cache did not come in time")
        self._compute(_Open(open_.number, open_.prompt, placed))

    # answers

    def _decode(self, open_: _Open) -> None:
        seconds = open_.prompt.output_tokens * self.model.decode_step_s
        self.sim.at(self.sim.now + seconds, lambda: self._finish(open_))

    def _finish(self, open_: _Open) -> None:
        self._running -= 1
        self._ends[open_.number] = self.sim.now
        self.decode.release()

    def _publish(self, open_: _Open, cluster: Side) -> None:
        """Who computed a prompt has its prefix; the other cluster got transfer pages, which nobody can find."""
        index, names = self.index, open_.prompt.names
        if index is None or not names:
            return
        checkpoints = None
        if self.checkpoint_tokens is not None:
            step = max(1, self.checkpoint_tokens // index.block_tokens)
            checkpoints = sorted({*range(step, len(names) + 1, step), len(names)})
        index.record(cluster, names, checkpoints)

    # the loops

    def _report(self) -> None:
        assert isinstance(self.router, HybridRouter)
        link, ratio = self.egress, self.model.kv_ratio
        self.router.observe(
            LinkReport(self.sim.now, link.sent_bytes / ratio, link.queued_bytes / ratio, link.bytes_per_s / ratio)
        )
        if self._coming:
            self.sim.at(self.sim.now + self.report_every_s, self._report)

    def _judge(self) -> None:
        assert self.roles is not None
        change = 0 if self._changing else self.roles.judge(self.n_p, self.n_d, self.router_threshold)
        if change > 0:  # a decode instance takes no new answers, ends those that it has, and then computes prompts
            self._changing = True
            self.n_p, self.n_d = self.n_p + 1, self.n_d - 1
            self.decode.resize(self.n_d, self._converted)
        elif change < 0:
            self.n_p, self.n_d = self.n_p - 1, self.n_d + 1
            self.stations["local"].resize(self.n_p)
            self.decode.resize(self.n_d)
            self._changed()
        if self._coming:
            self.sim.at(self.sim.now + self.roles.window_s, self._judge)

    def _converted(self) -> None:
        self._changing = False
        self.stations["local"].resize(self.n_p)
        self._changed()

    def _changed(self) -> None:
        self._role_changes.append((self.sim.now, self.n_p, self.n_d))
        if isinstance(self.router, HybridRouter) and self.router.adaptive is not None:
            self.router.adaptive.resize(self.n_p)

    @property
    def router_threshold(self) -> float:
        """t, where the router has one; else NaN."""
        return self.router.t if isinstance(self.router, HybridRouter) else math.nan
