"""Placement by predicted latency, and roles that follow the load (xllm-service's selection of instance pairs).

The router keeps no counters of its own that could drift: outstanding time is computed from the views at every call, and
what it has promised to a decode instance counts only as long as the prompt's instance still reports it outstanding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from heliograph.errors import BadInput
from heliograph.serving.core.cluster import InstanceView, Placement, RoutingRequest, candidates
from heliograph.serving.core.sim_cluster import Action, SetRole, Snapshot
from heliograph.serving.xllm.predictor import TimePredictor

__all__ = ["SloAwareRouter"]


@dataclass(frozen=True)
class _Promise:
    decode: str
    tokens: int


class SloAwareRouter:
    """Chooses an instance for the prompt and one for the answer; as a controller, changes roles.

    Args:
        predictor: of times; the same for all instances, or one by instance name.
        ttft_ms, tpot_ms: limits that online requests should meet.
        flips: whether roles change; without, the split stays as it was started.

    Attributes:
        lent: prompts that went to a decode instance.
    """

    def __init__(
        self,
        predictor: TimePredictor | dict[str, TimePredictor],
        *,
        ttft_ms: float = 1000.0,
        tpot_ms: float = 50.0,
        flips: bool = True,
    ) -> None:
        if not (ttft_ms > 0 and tpot_ms > 0):
            raise BadInput(f"limits are in milliseconds and above 0; got ttft_ms={ttft_ms}, tpot_ms={tpot_ms}")
        self.predictor, self.flips = predictor, flips
        self.ttft_s, self.tpot_s = ttft_ms / 1e3, tpot_ms / 1e3
        self.lent = 0
        self._promises: dict[str, deque[_Promise]] = {}
        self._wanted: str | None = None

    def route(self, request: RoutingRequest, views: Sequence[InstanceView]) -> Placement:
        """The pair for a request.

        Raises:
            Overloaded: no instance is ready.
        """
        prefill, decode = candidates(views)
        length = len(request.prompt) + request.resumed
        promised = self._promised(views)
        first = min(prefill, key=self._outstanding)
        found = next((v for v in decode if self._step(v, promised, length) <= self.tpot_s), None)
        least = min(decode, key=lambda v: self._step(v, promised, length))
        second = found or least
        chosen = first
        if self._outstanding(first) > self.ttft_s and second is not least and least is not first:
            spare = self.tpot_s * (len(decode) - 1) / len(decode)
            if self._step(least, promised, length) < spare and self._outstanding(least) < self._outstanding(first):
                chosen = least
                self.lent += 1
        if chosen in decode and chosen.role == "mix":
            second = chosen  # a mixed instance answers what it computed: nothing has to move
        if found is None and self._prefill_can_spare(prefill, decode):
            self._wanted = chosen.name
        if second is not chosen:
            self._promises.setdefault(chosen.name, deque()).append(_Promise(second.name, length))
        return Placement(chosen.name, second.name)

    def observe(self, snapshot: Snapshot) -> list[Action]:
        """Role changes that are due. The last instance of a role keeps it, and so does one with work promised to it."""
        if not self.flips:
            return []
        views = {view.name: view for view in snapshot.views}
        prefill = [v for v in snapshot.views if v.role == "prefill"]
        decode = [v for v in snapshot.views if v.role == "decode"]
        actions: list[Action] = []
        wanted = views.get(self._wanted or "")
        if wanted is not None:
            if wanted.role != "prefill" or len(prefill) < 2:
                self._wanted = None
            elif not wanted.transfers:
                self._wanted = None
                return [SetRole(wanted.name, "decode")]
            else:
                return []  # a hand-over involves it; asked again at the next look
        promised = self._promised(snapshot.views)
        left = len(decode)
        for view in decode:
            busy = view.decode_requests or view.prefill_requests or view.transfers or promised.get(view.name)
            if not busy and left > 1:
                actions.append(SetRole(view.name, "prefill"))
                left -= 1
        return actions

    def _prefill_can_spare(self, prefill: Sequence[InstanceView], decode: Sequence[InstanceView]) -> bool:
        if len([v for v in prefill if v.role == "prefill"]) < 2:
            return False
        mean = sum(self._outstanding(v) for v in prefill) / len(prefill)
        return mean < self.ttft_s * (len(prefill) - 1) / len(prefill) or len(decode) < len(prefill)

    def _of(self, view: InstanceView) -> TimePredictor:
        return self.predictor[view.name] if isinstance(self.predictor, dict) else self.predictor

    def _outstanding(self, view: InstanceView) -> float:
        return self._of(view).outstanding_s(view.prefill_requests, view.prefill_tokens)

    def _step(self, view: InstanceView, promised: dict[str, list[_Promise]], length: int) -> float:
        """Predicted step once this request decodes there too."""
        coming = promised.get(view.name, ())
        contexts = view.decode_tokens + sum(p.tokens for p in coming) + length
        return self._of(view).tpot_s(view.decode_requests + len(coming) + 1, contexts)

    def _promised(self, views: Sequence[InstanceView]) -> dict[str, list[_Promise]]:
        """By decode instance, what is still being computed elsewhere: an instance's newest, as many as it reports."""
        found: dict[str, list[_Promise]] = {}
        ready = {view.name: view for view in views}
        for name in list(self._promises):
            view, queue = ready.get(name), self._promises[name]
            while queue and (view is None or len(queue) > view.prefill_requests):
                queue.popleft()
            for promise in queue:
                found.setdefault(promise.decode, []).append(promise)
        return found
