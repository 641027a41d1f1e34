"""Who computes which tokens in the next step. There is no prefill phase and no decode phase: one rule for all.

Running requests come first, in order of priority and arrival, then waiting ones, as long as the step has room for
tokens and the cache has blocks. A running request that finds no block takes those of the request that comes last in
that order, which starts again later; what it had computed may still be found in the prefix cache.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from heliograph.errors import BadInput
from heliograph.serving.core.blocks import KVManager
from heliograph.serving.core.request import FinishReason, Request, RequestState, Row, Sample, StepPlan

__all__ = ["Admission", "AdmitAll", "Scheduler", "SchedulerConfig", "Taken"]


@dataclass(frozen=True)
class SchedulerConfig:
    """Limits of a step.

    Attributes:
        max_tokens_per_step: of all requests together.
        max_sequences: running at once.
        chunk_limit: tokens of one request in a step; None for no other limit than the step's.
        context: longest sequence, prompt and answer.
    """

    max_tokens_per_step: int = 512
    max_sequences: int = 64
    chunk_limit: int | None = None
    context: int = 8192

    def __post_init__(self) -> None:
        """Refuses limits under which nothing could run."""
        chunk = 1 if self.chunk_limit is None else self.chunk_limit
        if min(self.max_tokens_per_step, self.max_sequences, chunk, self.context - 1) < 1:
            raise BadInput(f"limits of a step must be at least 1: {self}")


class Admission(Protocol):
    """Decides whether a waiting request may start now; the one at the head of the queue is asked, others wait."""

    def allow(self, request: Request, running: Sequence[Request], kv: KVManager) -> bool:
        """Whether the request may start, given who runs."""
        ...


class AdmitAll:
    """Everybody starts who finds blocks for the first chunk; who runs out of blocks later is pre-empted."""

    def allow(self, request: Request, running: Sequence[Request], kv: KVManager) -> bool:  # noqa: ARG002
        """Always."""
        return True


@dataclass(frozen=True)
class Taken:
    """What a finished step meant for a request: a new token, an end, or both."""

    request: Request
    sample: Sample | None
    finish: FinishReason | None


class Scheduler:
    """Keeps requests and gives them steps.

    Args:
        kv: the blocks.
        config: limits.
        admission: who may start.
        end_tokens: of the model.

    Attributes:
        waiting, running: requests, each in order of service.
        loading: requests whose keys and values are being fetched.
    """

    def __init__(
        self,
        kv: KVManager,
        config: SchedulerConfig = SchedulerConfig(),
        admission: Admission | None = None,
        end_tokens: Sequence[int] = (),
    ) -> None:
        self.kv, self.config, self.admission = kv, config, admission or AdmitAll()
        self.end_tokens = frozenset(end_tokens)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.loading: dict[str, Request] = {}
        self.preemptions = self.recomputed_tokens = 0
        self.on_load: Callable[[Request], None] | None = None
        self._ended: list[str] = []

    @property
    def has_work(self) -> bool:
        """Whether anybody runs or waits for a step."""
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Takes a request in.

        Raises:
            BadInput: it can never run here; the message gives the numbers.
        """
        room = self.kv.pool.num_blocks * self.kv.pool.block_size
        # the last token of an answer needs no place in the cache
        request.room = min(request.params.max_tokens, min(self.config.context, room + 1) - request.num_prompt)
        if len(request.tokens) >= self.config.context:
            raise BadInput(
                f"the prompt has {len(request.tokens)} tokens; this model's context is {self.config.context}, and the "
                "answer needs at least one"
            )
        if len(request.tokens) + 1 > room:
            raise BadInput(f"the prompt has {len(request.tokens)} tokens; the cache holds {room} in all")
        if request.state is not RequestState.WAITING:
            raise BadInput(f"request {request.id} was added before")
        if request.ticket is not None:
            request.state = RequestState.WAITING_KV
            self.loading[request.id] = request
        else:
            self._queue(request)

    def schedule(self, now_s: float = 0.0) -> StepPlan:
        """The next step; without rows where nobody can compute anything."""
        budget = self.config.max_tokens_per_step
        rows: list[Row] = []
        planned: set[str] = set()
        preempted = False
        for request in list(self.running):
            if request.state is not RequestState.RUNNING or budget == 0:
                continue
            if request.num_output + request.num_pending >= request.room:
                continue  # its last token is on the way
            count = self._count(request, budget)
            while count and not self.kv.ensure(request, request.num_computed + count):
                victim = self._victim(planned)
                if victim is None:
                    count = 0
                    break
                self.preempt(victim)
                preempted = True
                if victim is request:
                    count = 0
            if count:
                rows.append(self._plan(request, count))
                planned.add(request.id)
                budget -= count
        self._start_loads()
        while self.waiting and budget and not preempted and len(self.running) < self.config.max_sequences:
            request = self.waiting[0]
            if request.num_in_flight:
                break  # pre-empted a moment ago: the token under way would be drawn twice
            shared = self.kv.match(request)
            request.num_computed = len(shared) * self.kv.pool.block_size
            count = self._count(request, budget)
            if not self.admission.allow(request, self.running, self.kv) or not self.kv.start(
                request, shared, request.num_computed + count
            ):
                request.num_computed = 0
                break  # strictly in order: nobody overtakes, so nobody starves
            self.waiting.pop(0)
            self._run(request, len(shared), now_s)
            rows.append(self._plan(request, count))
            budget -= count
        if not rows:
            return StepPlan(())  # who has ended is told with the next step
        ended, self._ended = tuple(self._ended), []
        if any(row.count > 1 for row in rows):
            rows.sort(key=lambda row: row.count > 1)
        return StepPlan(tuple(rows), ended)

    def take(self, plan: StepPlan, samples: Sequence[Sample | None], now_s: float = 0.0) -> list[Taken]:
        """Books what a step gave; the new tokens and ends, in the order of its rows."""
        taken = []
        for row, sample in zip(plan.rows, samples, strict=True):
            request = row.request
            request.num_in_flight -= 1
            if row.sample and row.epoch == request.epoch:
                request.num_pending -= 1
            if request.state is RequestState.FINISHED:
                continue  # it ended while this step ran: the extra token is dropped
            if sample is None:
                if row.epoch == request.epoch:
                    self.kv.publish(request, row.start + row.count)
                continue
            request.tokens.append(sample.token)
            if request.first_token_s is None:
                request.first_token_s = now_s
            if row.epoch == request.epoch:
                self.kv.publish(request, row.start + row.count)
            finish: FinishReason | None = None
            if sample.token in self.end_tokens and not request.params.ignore_end:
                finish = "stop"
            elif request.num_output >= request.room:
                finish = "length"
            if finish is not None:
                self.finish(request, finish, now_s)
            taken.append(Taken(request, sample, finish))
        return taken

    def finish(self, request: Request, reason: FinishReason, now_s: float = 0.0) -> None:
        """Ends a request, wherever it stands, and frees its blocks once; a second time does nothing."""
        if request.state is RequestState.FINISHED:
            return
        if request.state is RequestState.RUNNING:
            self.running.remove(request)
        elif request.state is RequestState.WAITING and request in self.waiting:
            self.waiting.remove(request)
        self.loading.pop(request.id, None)
        request.state, request.finish, request.finished_s = RequestState.FINISHED, reason, now_s
        if not (request.producer and reason == "length"):
            self.kv.free(request)  # a producer's blocks go to a lease instead
        self._ended.append(request.id)

    def loaded(self, request: Request, tokens: int) -> None:
        """Keys and values of the first ``tokens`` tokens have arrived; 0 where they are to be computed here instead."""
        if self.loading.pop(request.id, None) is None:
            return
        if tokens == 0:
            self.kv.free(request)
            request.ticket, request.state = None, RequestState.WAITING
            self._queue(request)
            return
        request.num_computed = tokens
        self.kv.publish(request, tokens)
        self._run(request, 0, request.first_scheduled_s or 0.0)

    def preempt(self, request: Request) -> None:
        """Takes a running request's blocks away and queues it again; a token under way still counts.

        Raises:
            BadInput: it does not run.
        """
        if request.state is not RequestState.RUNNING:
            raise BadInput(f"request {request.id} is {request.state.value} and cannot be pre-empted")
        self.kv.free(request)
        self.running.remove(request)
        request.state, request.num_computed, request.num_pending = RequestState.WAITING, 0, 0
        request.epoch += 1
        request.preemptions += 1
        self.preemptions += 1
        self._queue(request)

    def _start_loads(self) -> None:
        """Reserves blocks for requests that fetch; those that find none wait for the next step."""
        if self.on_load is None:
            return
        for request in list(self.loading.values()):
            if request.blocks or request.ticket is None:
                continue
            if len(self.running) >= self.config.max_sequences or not self.admission.allow(
                request, self.running, self.kv
            ):
                break
            if not self.kv.start(request, (), len(request.tokens)):
                break
            self.on_load(request)

    def _count(self, request: Request, budget: int) -> int:
        return min(request.need, budget, self.config.chunk_limit or budget)

    def _run(self, request: Request, shared: int, now_s: float) -> None:
        request.state = RequestState.RUNNING
        bisect.insort(self.running, request, key=lambda r: r.rank)
        if request.first_scheduled_s is None:
            request.first_scheduled_s = now_s
            request.num_cached = shared * self.kv.pool.block_size
            self.kv.queried_tokens += len(request.tokens)
            self.kv.hit_tokens += request.num_cached
        elif request.preemptions:
            again = len(request.tokens) - request.num_computed
            request.recomputed += again
            self.recomputed_tokens += again

    def _plan(self, request: Request, count: int) -> Row:
        start = request.num_computed
        request.num_computed += count
        request.num_in_flight += 1
        sample = request.need == 0
        row = Row(
            request, start, count, tuple(request.blocks), sample, pending=request.num_pending > 0, epoch=request.epoch
        )
        if sample:
            request.num_pending += 1
        return row

    def _victim(self, planned: set[str]) -> Request | None:
        """Who comes last among those that are not in this step; possibly the one who asks."""
        candidates = [r for r in self.running if r.id not in planned and r.blocks]
        if not candidates:
            return None
        # offline decoding yields before an offline prompt half computed; online work yields last
        return max(candidates, key=lambda r: (r.priority, r.decoding, r.arrival_s, r.order))

    def _queue(self, request: Request) -> None:
        place = len(self.waiting)
        while place and self.waiting[place - 1].rank > request.rank:
            place -= 1
        self.waiting.insert(place, request)
