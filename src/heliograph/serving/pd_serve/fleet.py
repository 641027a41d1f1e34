"""Groups by scenario on a fleet in virtual time: who belongs to which group, in which role, and when that changes.

:class:`FleetRouter` sends a request to its group. :class:`FleetController` shares the instances out anew from
measured arrivals and answer lengths, a few moves at a time; :class:`RoleController` lets a
:class:`~heliograph.serving.pd_serve.ratio.RatioController` change roles within one group. Both run on
:class:`GroupSimulation`, the common cluster in virtual time (arXiv:2408.08147, groups and ratio adjustment).
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from heliograph.errors import BadInput
from heliograph.serving.core.cluster import InstanceView, Placement, RoutingRequest, candidates
from heliograph.serving.core.request import FinishReason
from heliograph.serving.core.sim_cluster import Action, RequestRecord, SetRole, SimCluster, Snapshot, _Open
from heliograph.serving.pd_serve.ratio import Bottleneck, Finished, RatioController, ScenarioProfile

__all__ = ["FleetController", "FleetRouter", "GroupSimulation", "RoleController", "share_out"]

Label = Callable[[Sequence[int]], str]


class FleetRouter:
    """Places requests within their scenario's group, at the least loaded instance of each role.

    Args:
        membership: group of each instance; the controller changes it.
        label: scenario of a prompt, for example by the first tokens of its template.
        default: group of scenarios that have none.

    Attributes:
        arrivals: by scenario, since the start.
    """

    def __init__(self, membership: dict[str, str], label: Label, default: str) -> None:
        if default not in membership.values():
            raise BadInput(f"the default group {default!r} has no instance")
        self.membership, self.label, self.default = membership, label, default
        self.arrivals: Counter[str] = Counter()
        self._answers: Counter[str] = Counter()

    def group_of(self, prompt: Sequence[int]) -> str:
        """The group that serves a prompt."""
        name = self.label(prompt)
        return name if name in self.membership.values() else self.default

    def route(self, request: RoutingRequest, views: Sequence[InstanceView]) -> Placement:
        """The least loaded of each role in the group; an instance of both roles keeps its prompts' answers."""
        group = self.group_of(request.prompt)
        self.arrivals[group] += 1
        mine = [view for view in views if self.membership[view.name] == group] or list(views)
        prefill, decode = candidates(mine)
        first = min(prefill, key=lambda v: (v.prefill_tokens, v.outstanding))
        if first.role == "mix":
            first = min(prefill, key=lambda v: v.outstanding)
            return Placement(first.name, first.name)
        # views count an answer once its cache has come; those that are still on their way count here
        second = min(decode, key=lambda v: (self._answers[v.name], v.decode_tokens))
        self._answers[second.name] += 1
        return Placement(first.name, second.name)

    def finished(self, record: RequestRecord) -> None:
        """Learns that a request has ended."""
        for _, placement in record.placements:
            if placement.prefill != placement.decode:
                self._answers[placement.decode] -= 1


class GroupSimulation(SimCluster):
    """The cluster in virtual time, which also tells of each request that has ended.

    Attributes:
        on_finished: called with the record; None for nobody.
    """

    on_finished: Callable[[RequestRecord], object] | None = None

    def _close(self, open_: _Open, finish: FinishReason) -> None:
        super()._close(open_, finish)
        if isinstance(self.router, FleetRouter):
            self.router.finished(open_.record)
        if self.on_finished is not None:
            self.on_finished(open_.record)


def share_out(demand: Mapping[tuple[str, str], float], instances: int) -> dict[tuple[str, str], int]:
    """Instances for each (group, role) in proportion to its demand, at least one each.

    >>> share_out({("a", "prefill"): 1.0, ("a", "decode"): 3.0}, 8)
    {('a', 'prefill'): 2, ('a', 'decode'): 6}

    Raises:
        BadInput: fewer instances than cells.
    """
    if instances < len(demand):
        raise BadInput(f"{len(demand)} roles of groups need at least as many instances; got {instances}")
    given = dict.fromkeys(demand, 1)
    for _ in range(instances - len(demand)):
        # the one whose instances are loaded most gets the next
        neediest = max(demand, key=lambda cell: demand[cell] / given[cell])
        given[neediest] += 1
    return given


class FleetController:
    """Shares instances out over groups and roles by what was measured in the last windows.

    Args:
        router: whose membership it changes.
        profiles: of each scenario; their answer lengths are replaced by measured ones.
        ttft_s, tpot_s: limits at which the profiles' batches are chosen.
        window_s: over which arrivals are counted, and between two shares.
        moves: instances that may change at a time.
    """

    def __init__(
        self,
        router: FleetRouter,
        profiles: Mapping[str, ScenarioProfile],
        *,
        ttft_s: float = math.inf,
        tpot_s: float = math.inf,
        window_s: float = 30.0,
        moves: int = 3,
    ) -> None:
        self.router, self.profiles = router, dict(profiles)
        self.ttft_s, self.tpot_s, self.window_s, self.moves = ttft_s, tpot_s, window_s, moves
        self.moved = 0
        self._due = window_s
        self._before: Counter[str] = Counter()
        self._rates: dict[str, float] = {}
        self._lengths: dict[str, deque[int]] = {name: deque(maxlen=64) for name in profiles}

    def finished(self, record: RequestRecord) -> None:
        """Learns the length of an answer."""
        if record.completed:
            self._lengths[self.router.group_of(record.request.prompt)].append(record.tokens)

    def observe(self, snapshot: Snapshot) -> list[Action]:
        """Changes of role and membership, towards the shares that the measured demand asks for."""
        if snapshot.now_s < self._due:
            return []
        self._due = snapshot.now_s + self.window_s
        for name in self.profiles:
            new = (self.router.arrivals[name] - self._before[name]) / self.window_s
            self._rates[name] = 0.5 * new + 0.5 * self._rates.get(name, new)
        self._before = self.router.arrivals.copy()
        return self._move(share_out(self.demand(), len(snapshot.views)), snapshot.views)

    def demand(self) -> dict[tuple[str, str], float]:
        """Busy instances that each role of each group needs."""
        wanted: dict[tuple[str, str], float] = {}
        for name, profile in self.profiles.items():
            lengths, rate = self._lengths[name], self._rates.get(name, 0.0)
            known = replace(profile, output_tokens=sum(lengths) / len(lengths)) if lengths else profile
            wanted[name, "prefill"] = rate * known.prefill_load_s(self.ttft_s)[1]
            wanted[name, "decode"] = rate * known.decode_load_s(self.tpot_s)[1]
        return wanted

    def _move(self, wanted: Mapping[tuple[str, str], int], views: Sequence[InstanceView]) -> list[Action]:
        membership = self.router.membership
        have = Counter((membership[view.name], str(view.role)) for view in views)
        actions: list[Action] = []
        for _ in range(self.moves):
            short = max(wanted, key=lambda cell: wanted[cell] - have[cell])
            if wanted[short] <= have[short]:
                break
            spare = [
                view
                for view in views
                if have[cell := (membership[view.name], str(view.role))] > max(1, wanted.get(cell, 0))
                and not view.transfers
            ]
            if not spare:
                break
            view = min(spare, key=lambda v: v.outstanding)
            have[membership[view.name], str(view.role)] -= 1
            have[short] += 1
            membership[view.name] = short[0]
            views = [other for other in views if other is not view]
            actions.append(SetRole(view.name, "prefill" if short[1] == "prefill" else "decode"))
            self.moved += 1
        return actions


@dataclass
class RoleController:
    """Lets a ratio controller change roles within one group of a simulation.

    Attributes:
        ratio: the controller.
    """

    ratio: RatioController

    def finished(self, record: RequestRecord) -> None:
        """Hands a finished request to the controller."""
        if record.completed and record.finished_s is not None:
            whole = record.finished_s - record.request.arrival_s
            self.ratio.observe(Finished(record.finished_s, whole, record.ttft_s))

    def observe(self, snapshot: Snapshot) -> list[Action]:
        """The proposed change, made at the least loaded instance that has no hand-over."""
        roles = Counter(view.role for view in snapshot.views)
        proposal = self.ratio.propose(roles["prefill"], roles["decode"])
        if proposal is None:
            return []
        actions: list[Action] = []

        def change(bottleneck: Bottleneck) -> bool:
            giver = "decode" if bottleneck == "prefill" else "prefill"
            free = [view for view in snapshot.views if view.role == giver and not view.transfers]
            if free:
                actions.append(SetRole(min(free, key=lambda v: v.outstanding).name, bottleneck))
            return bool(free)

        self.ratio.apply(proposal, change, snapshot.now_s)
        return actions
