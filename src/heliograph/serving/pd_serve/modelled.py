"""Forwarding policies on virtual time: the real gateway loop, admission and scheduler; only seconds are a formula.

Prompts arrive at several gateways that do not know of each other. Under :class:`OnDemand` they wait at their gateway
until an instance takes them; under :class:`LeastReported` each is sent at once to the instance whose last report showed
the least work, and waits there.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from heliograph.clock import run_virtual
from heliograph.errors import BadInput
from heliograph.lm.core.sampling import SamplingParams
from heliograph.serving.core.blocks import BlockPool, KVManager
from heliograph.serving.core.cost_model import CostModel
from heliograph.serving.core.engine import EngineCore
from heliograph.serving.core.executor import ModelledExecutor
from heliograph.serving.core.request import Request
from heliograph.serving.core.scheduler import Scheduler, SchedulerConfig
from heliograph.serving.pd_serve.admission import Accept, Offer, PrefillAdmission, PrefillLimits, Reject
from heliograph.serving.pd_serve.forwarding import Backoff, ForwardStats, NoIdlePrefill, forward

__all__ = ["ForwardingReport", "LeastReported", "ModelledPrefill", "OnDemand", "Prompt", "simulate_forwarding"]

NO_LIMIT = 2**20


@dataclass(frozen=True)
class Prompt:
    """A prompt of a trace: when it arrives, and its tokens."""

    arrival_s: float
    tokens: int


@dataclass(frozen=True)
class OnDemand:
    """Prompts wait at the gateway and are offered; instances have no queue.

    Attributes:
        backoff: between rounds.
        rpc_s: of an offer.
    """

    backoff: Backoff = Backoff()  # noqa: RUF009 - frozen
    rpc_s: float = 0.0005


@dataclass(frozen=True)
class LeastReported:
    """Prompts go to the instance with the fewest reported tokens, and wait in its queue.

    Attributes:
        period_s: between two reports.
        own_dispatches: whether a gateway adds what it sent since the last report.
    """

    period_s: float
    own_dispatches: bool = False


@dataclass(frozen=True)
class ForwardingReport:
    """What became of the prompts.

    Attributes:
        ttft_s: of each prompt in order; infinite for one that timed out.
        slo_s: the limit.
        timeouts: prompts that got no first token by then.
        computed_in_vain: prompts that were computed and still came too late.
        offers, rejected: of the on-demand policy.
        accept_rate: by instance, of the on-demand policy.
    """

    ttft_s: tuple[float, ...]
    slo_s: float
    timeouts: int
    computed_in_vain: int
    offers: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    accept_rate: dict[str, float] = field(default_factory=dict)

    @property
    def attainment(self) -> float:
        """Share of the prompts whose first token came within the limit."""
        return sum(t <= self.slo_s for t in self.ttft_s) / len(self.ttft_s)


class ModelledPrefill:
    """A prefill instance on the running loop's clock: the common scheduler, blocks and leases.

    Args:
        name: of the instance.
        cost: of its steps.
        limits: of its admission; its slots are the most sequences of a step.
        max_tokens_per_step: of its scheduler.
        bytes_per_s: at which keys and values leave.
    """

    def __init__(
        self,
        name: str,
        cost: CostModel,
        limits: PrefillLimits,
        *,
        max_tokens_per_step: int = 512,
        bytes_per_s: float = 1.25e9,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._name, self.limits, self._bytes_per_s = name, limits, bytes_per_s
        config = SchedulerConfig(max_tokens_per_step, limits.slots, context=limits.num_blocks * limits.block_size)
        kv = KVManager(BlockPool(limits.num_blocks, limits.block_size), prefix_cache=False)
        clock = _LoopClock(self._loop)
        self.core = EngineCore(Scheduler(kv, config), ModelledExecutor(cost), clock)
        self.admission = PrefillAdmission(limits, self._loop.time)
        self._waiting: dict[str, asyncio.Future[float]] = {}
        self._running: asyncio.Task[None] | None = None
        self._link_free_at = 0.0

    @property
    def name(self) -> str:
        """Of the instance."""
        return self._name

    @property
    def outstanding_tokens(self) -> int:
        """Prompt tokens that were sent here and are not computed: what a true report would say."""
        scheduler = self.core.scheduler
        return sum(r.num_prompt - r.num_computed for r in (*scheduler.running, *scheduler.waiting))

    async def offer(self, offer: Offer) -> Accept | Reject:
        """Yes or no, at once."""
        return self.admission.offer(offer)

    async def prefill(self, request_id: str, tokens: int, deadline_s: float | None = None, key: str = "") -> float:
        """Computes a prompt; the time of its first token, infinite where it was dropped at its deadline."""
        request = Request(
            request_id,
            range(1, tokens + 1),
            SamplingParams(max_tokens=1, temperature=0, ignore_end=True),
            arrival_s=self._loop.time(),
            producer=True,
            deadline_s=deadline_s,
        )
        if key:
            self.admission.start(key)
        done: asyncio.Future[float] = self._loop.create_future()
        self._waiting[request_id] = done
        self.core.add(request)
        if self._running is None:
            self._running = self._loop.create_task(self._steps())
        when = await done
        if key:
            self.admission.prefilled(key)
        if math.isfinite(when):
            self._loop.create_task(self._send(request, key))
        elif key:
            self.admission.release(key)
        return when

    async def _steps(self) -> None:
        while True:
            for late in self.core.expired():
                self._waiting.pop(late.id).set_result(math.inf)
            plan = self.core.begin()
            if plan is None:
                break
            result = self.core.executor.launch(plan).wait()
            await asyncio.sleep(result.seconds)
            for taken in self.core.complete(plan, result):
                request = taken.request
                self.core.kv.hold(request, request.id, request.num_prompt, math.inf)
                self._waiting.pop(request.id).set_result(self._loop.time())
        self._running = None

    async def _send(self, request: Request, key: str) -> None:
        seconds = request.num_prompt * self.limits.kv_bytes_per_token / self._bytes_per_s
        self._link_free_at = max(self._link_free_at, self._loop.time()) + seconds
        await asyncio.sleep(self._link_free_at - self._loop.time())
        self.core.kv.release(request.id)
        if key:
            self.admission.sent(key)
        if self._running is None and self.core.scheduler.waiting:
            self._running = self._loop.create_task(self._steps())  # it waited for blocks


class _LoopClock:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        return self._loop.time()

    def sleep(self, seconds: float) -> None:
        raise NotImplementedError(f"a coroutine waits for {seconds} s itself")


def simulate_forwarding(
    prompts: Sequence[Prompt],
    policy: OnDemand | LeastReported,
    cost: CostModel,
    *,
    instances: int = 8,
    gateways: int = 4,
    slo_s: float,
    limits: PrefillLimits | None = None,
    slow: dict[int, float] | None = None,
    seed: int = 0,
) -> ForwardingReport:
    """Serves prompts on virtual time, each at a gateway drawn at random.

    Under both policies a prompt whose limit has passed before it starts is dropped without being computed.

    Args:
        prompts: in order of arrival.
        policy: of the gateways.
        cost: of a step.
        instances, gateways: how many.
        slo_s: limit of the time to the first token.
        limits: of each instance.
        slow: factors on the step times of single instances, by number.
        seed: of gateways and jitter.

    Raises:
        BadInput: no prompts, instances or gateways, or times that run backwards.
    """
    if not prompts or instances < 1 or gateways < 1 or not slo_s > 0:
        raise BadInput(f"need prompts, instances, gateways and a limit; got {len(prompts)}, {instances}, {gateways}")
    if any(b.arrival_s < a.arrival_s for a, b in itertools.pairwise(prompts)):
        raise BadInput("prompts must be in order of arrival")
    bounds = limits or PrefillLimits(
        kv_bytes_per_token=max(1, cost.kv_bytes_per_token), num_blocks=NO_LIMIT // 16, send_buffer_bytes=2**40
    )
    return run_virtual(_simulate(prompts, policy, cost, instances, gateways, slo_s, bounds, slow or {}, seed))


async def _simulate(
    prompts: Sequence[Prompt],
    policy: OnDemand | LeastReported,
    cost: CostModel,
    instances: int,
    gateways: int,
    slo_s: float,
    limits: PrefillLimits,
    slow: dict[int, float],
    seed: int,
) -> ForwardingReport:
    loop = asyncio.get_running_loop()
    rng = random.Random(seed)
    ports = [ModelledPrefill(f"prefill-{n}", _slowed(cost, slow.get(n, 1.0)), limits) for n in range(instances)]
    doors = [_gateway(policy, ports, random.Random(rng.random())) for _ in range(gateways)]
    tasks = []
    begin = loop.time()
    for number, prompt in enumerate(prompts):
        wait = begin + prompt.arrival_s - loop.time()
        if wait > 0:
            await asyncio.sleep(wait)
        door = doors[rng.randrange(gateways)]
        tasks.append(loop.create_task(door.serve(f"r{number}", prompt.tokens, loop.time() + slo_s)))
    ends = await asyncio.gather(*tasks)
    for door in doors:
        door.close()
    await asyncio.sleep(10 * slo_s)  # what is on the wires arrives
    for port in ports:
        port.core.kv.check()
        assert not port.admission.busy_slots
    ttft = tuple(end - begin - prompt.arrival_s for end, prompt in zip(ends, prompts, strict=True))
    stats = [door.stats for door in doors if isinstance(door, _OnDemandGateway)]
    offered: Counter[str] = sum((s.offered for s in stats), Counter())
    accepted: Counter[str] = sum((s.accepted for s in stats), Counter())
    rejected: Counter[str] = Counter()
    for each in stats:
        rejected.update({str(reason): count for reason, count in each.rejected.items()})
    return ForwardingReport(
        ttft,
        slo_s,
        sum(t > slo_s for t in ttft),
        sum(slo_s < t < math.inf for t in ttft),
        sum(offered.values()),
        dict(rejected),
        {name: accepted[name] / count for name, count in offered.items()},
    )


def _slowed(cost: CostModel, factor: float) -> CostModel:
    step, token, attention, decode, context = (factor * c for c in cost.coefficients)
    return replace(
        cost,
        step=step,
        prompt_token=token,
        prompt_attention=attention,
        decode=decode,
        decode_context=context,
    )


class _OnDemandGateway:
    def __init__(self, policy: OnDemand, ports: Sequence[ModelledPrefill], rng: random.Random) -> None:
        self.policy, self.ports, self.rng = policy, [_Remote(port, policy.rpc_s) for port in ports], rng
        self.stats = ForwardStats()
        self.open: Counter[str] = Counter()

    async def serve(self, name: str, tokens: int, deadline_s: float) -> float:
        shuffled = self.rng.sample(self.ports, len(self.ports))
        order = sorted(shuffled, key=lambda port: self.open[port.name])
        try:
            port, key = await forward(
                Offer(name, 0, tokens), order, deadline_s, backoff=self.policy.backoff, rng=self.rng, stats=self.stats
            )
        except NoIdlePrefill:
            return math.inf
        self.open[port.name] += 1
        try:
            return await port.port.prefill(name, tokens, key=key)
        finally:
            self.open[port.name] -= 1

    def close(self) -> None:
        pass


class _Remote:
    """A port behind a call that takes time."""

    def __init__(self, port: ModelledPrefill, rpc_s: float) -> None:
        self.port, self.rpc_s, self.name = port, rpc_s, port.name

    async def offer(self, offer: Offer) -> Accept | Reject:
        if self.rpc_s:
            await asyncio.sleep(self.rpc_s)
        return await self.port.offer(offer)


class _PushGateway:
    def __init__(self, policy: LeastReported, ports: Sequence[ModelledPrefill], rng: random.Random) -> None:
        self.policy, self.ports, self.rng = policy, ports, rng
        self.reported = [0] * len(ports)
        self.sent = [0] * len(ports)
        self._reports = asyncio.get_running_loop().create_task(self._listen())

    async def serve(self, name: str, tokens: int, deadline_s: float) -> float:
        seen = [r + s for r, s in zip(self.reported, self.sent, strict=True)]
        least = min(seen)
        chosen = self.rng.choice([n for n, load in enumerate(seen) if load == least])
        if self.policy.own_dispatches:
            self.sent[chosen] += tokens
        return await self.ports[chosen].prefill(name, tokens, deadline_s)

    def close(self) -> None:
        self._reports.cancel()

    async def _listen(self) -> None:
        while True:
            await asyncio.sleep(self.policy.period_s)
            self.reported = [port.outstanding_tokens for port in self.ports]
            self.sent = [0] * len(self.ports)


def _gateway(
    policy: OnDemand | LeastReported, ports: Sequence[ModelledPrefill], rng: random.Random
) -> _OnDemandGateway | _PushGateway:
    if isinstance(policy, OnDemand):
        return _OnDemandGateway(policy, ports, rng)
    return _PushGateway(policy, ports, rng)
