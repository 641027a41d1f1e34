"""Offline work in the gaps of online work: two pools, one strict about latency and one relaxed (arXiv:2510.14686).

Online prompts go to the relaxed pool, online answers to the strict one. Offline requests start in the relaxed pool and
are pulled to a strict instance while that has time and memory to spare. An online prompt interrupts offline prompts
at the end of a layer; their blocks are freed and they start again. Published: the pools, the interruption and the pull.
Ours: offline answers go back when a strict instance's next step is predicted to exceed its limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from heliograph.errors import BadInput
from heliograph.serving.core.blocks import KVManager
from heliograph.serving.core.cluster import InstanceView, Placement, Router, RoutingRequest, candidates
from heliograph.serving.core.request import Request, StepPlan
from heliograph.serving.core.sim_cluster import Action, Migrate, SimInstance
from heliograph.serving.xllm.predictor import TimePredictor

__all__ = ["ColocationPolicy", "preferred_length"]

PULL_BELOW = 0.9


@dataclass
class _Offline:
    """Offline work on an instance, as last seen."""

    prefill_requests: int = 0
    prefill_tokens: int = 0
    decode_requests: int = 0
    decode_tokens: int = 0


def preferred_length(
    predictor: TimePredictor, batch: int, contexts: int, saturation_batch: int, limit_s: float, longest: int
) -> int:
    """The largest mean context of requests that fill a batch up to saturation within the limit; 0 where none fits.

    Args:
        predictor: of a step.
        batch, contexts: requests decoding now, and their tokens of context.
        saturation_batch: requests at which one more costs as much as the step itself.
        limit_s: of a step.
        longest: context that is considered.
    """
    room = max(1, saturation_batch - batch)
    low, high = 0, longest
    while low < high:
        middle = (low + high + 1) // 2
        if predictor.tpot_s(batch + room, contexts + room * middle) <= limit_s:
            low = middle
        else:
            high = middle - 1
    return low


class ColocationPolicy:
    """Places online and offline requests on one cluster, and moves offline ones between its pools.

    Instances of role "prefill" are the relaxed pool, those of role "decode" the strict one. The object is router, step
    policy and admission at once: ``SimCluster(specs, policy, cost, policy=policy, admission=lambda: policy)``.

    Args:
        online: router of online requests, which sees the cluster without offline work.
        predictor: of a decoding step.
        tpot_ms: limit of a strict instance's step.
        saturation_batch: see :func:`preferred_length`; None for the batch whose requests cost as much as an empty step.

    Attributes:
        pulled, pushed, interrupted: how often.
    """

    def __init__(
        self,
        online: Router,
        predictor: TimePredictor,
        *,
        tpot_ms: float = 50.0,
        saturation_batch: int | None = None,
    ) -> None:
        if not tpot_ms > 0:
            raise BadInput(f"tpot_ms is a limit in milliseconds and above 0; got {tpot_ms}")
        self.online, self.predictor, self.limit_s = online, predictor, tpot_ms / 1e3
        fixed, each, _ = predictor.step
        self.saturation_batch = saturation_batch or (max(1, round(fixed / each)) if each > 0 else 64)
        self.pulled = self.pushed = self.interrupted = 0
        self._offline: dict[str, _Offline] = {}
        self._asked: dict[str, tuple[str, str]] = {}

    def route(self, request: RoutingRequest, views: Sequence[InstanceView]) -> Placement:
        """Online as if there were no offline work; offline to the relaxed instance with least of it.

        Raises:
            Overloaded: no instance is ready.
        """
        if request.priority == 0:
            return self.online.route(request, [self._without_offline(view) for view in views])
        relaxed, _ = candidates(views)
        chosen = min(relaxed, key=lambda v: v.prefill_tokens + v.decode_tokens)
        seen = self._offline.setdefault(chosen.name, _Offline())
        seen.prefill_requests += 1
        seen.prefill_tokens += len(request.prompt) + request.resumed
        return Placement(chosen.name, chosen.name)

    def allow(self, request: Request, running: Sequence[Request], kv: KVManager) -> bool:  # noqa: ARG002
        """As an admission: no offline prompt starts in a step that computes an online one."""
        return request.priority == 0 or not any(r.priority == 0 and r.num_output == 0 for r in running)

    def before_step(self, instance: SimInstance) -> None:
        """Makes way for online requests that wait: offline prompts stop, and offline answers give up their blocks."""
        scheduler = instance.core.scheduler
        self._look(instance)
        head = next((r for r in scheduler.waiting if r.priority == 0), None)
        coming = [r for r in scheduler.loading.values() if r.priority == 0 and not r.blocks]
        if head is None and not coming:
            return
        offline = [r for r in scheduler.running if r.priority > 0 and not r.num_in_flight]
        if head is not None:
            for request in [r for r in offline if not r.decoding]:
                scheduler.preempt(request)
                offline.remove(request)
        needed = sum(scheduler.kv.blocks_for(len(r.tokens) + 1) for r in [*coming, *([head] if head else [])])
        offline.sort(key=lambda r: r.rank)
        while offline and (
            scheduler.kv.pool.num_free < needed or len(scheduler.running) >= scheduler.config.max_sequences
        ):
            scheduler.preempt(offline.pop())

    def breaks(self, instance: SimInstance, plan: StepPlan, arriving: Request) -> bool:  # noqa: ARG002
        """An online prompt breaks a step whose prompts are all offline."""
        prompts = [row for row in plan.rows if row.count > 1]
        if arriving.priority or arriving.ticket or not prompts or any(row.request.priority == 0 for row in prompts):
            return False
        self.interrupted += 1
        return True

    def after_step(self, instance: SimInstance, seconds: float, others: Sequence[SimInstance]) -> list[Action]:
        """What a strict instance pulls or gives back."""
        if instance.view.role != "decode":
            return []
        self._look(instance)
        relaxed = [i for i in others if i.view.role == "prefill" and not i.dead]
        decoding = [r for r in instance.core.scheduler.running if r.decoding]
        contexts = sum(len(r.tokens) for r in decoding)
        offline = [r for r in decoding if r.priority > 0]
        if offline and relaxed and self.predictor.tpot_s(len(decoding), contexts) > self.limit_s:
            roomy = max(relaxed, key=lambda i: i.core.kv.pool.num_free)
            longest = max(offline, key=lambda r: len(r.tokens))
            if roomy.core.kv.pool.num_free > roomy.core.kv.blocks_for(len(longest.tokens) + 1):
                self.pushed += 1
                return [Migrate(longest.id, instance.name, roomy.name)]
            return []
        usage = instance.core.kv.usage
        if usage >= PULL_BELOW or seconds >= PULL_BELOW * self.limit_s or self._still_asked(instance, others):
            return []
        return self._pull(instance, relaxed, len(decoding), contexts)

    def _pull(self, instance: SimInstance, relaxed: Sequence[SimInstance], batch: int, contexts: int) -> list[Action]:
        pool = instance.core.kv.pool
        longest = pool.num_free * pool.block_size - 1
        wanted = preferred_length(self.predictor, batch, contexts, self.saturation_batch, self.limit_s, longest)
        found = [
            (abs(len(r.tokens) - wanted), number, r, i)
            for number, i in enumerate(relaxed)
            for r in i.core.scheduler.running
            if r.priority > 0 and r.decoding and len(r.tokens) <= longest and not r.producer
            if self.predictor.tpot_s(batch + 1, contexts + len(r.tokens)) <= self.limit_s
        ]
        if not found:
            return []
        _, _, request, source = min(found, key=lambda item: (item[0], item[1], item[2].order))
        self.pulled += 1
        self._asked[instance.name] = (request.id, source.name)
        return [Migrate(request.id, source.name, instance.name)]

    def _still_asked(self, instance: SimInstance, others: Sequence[SimInstance]) -> bool:
        asked = self._asked.get(instance.name)
        if asked is None:
            return False
        source = next((i for i in others if i.name == asked[1]), None)
        waits = source is not None and any(r.id == asked[0] for r in source.core.scheduler.running)
        if not waits and not instance.view.transfers:
            del self._asked[instance.name]
            return False
        return True

    def _look(self, instance: SimInstance) -> None:
        seen = _Offline()
        scheduler = instance.core.scheduler
        for request in (*scheduler.running, *scheduler.waiting):
            if request.priority == 0:
                continue
            if request.num_output + request.num_pending:
                seen.decode_requests += 1
                seen.decode_tokens += len(request.tokens)
            else:
                seen.prefill_requests += 1
                seen.prefill_tokens += len(request.tokens)
        self._offline[instance.name] = seen

    def _without_offline(self, view: InstanceView) -> InstanceView:
        seen = self._offline.get(view.name)
        if seen is None:
            return view
        return replace(
            view,
            prefill_requests=max(0, view.prefill_requests - seen.prefill_requests),
            prefill_tokens=max(0, view.prefill_tokens - seen.prefill_tokens),
            decode_requests=max(0, view.decode_requests - seen.decode_requests),
            decode_tokens=max(0, view.decode_tokens - seen.decode_tokens),
        )
