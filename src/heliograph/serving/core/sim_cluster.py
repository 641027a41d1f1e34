"""A cluster in virtual time: real schedulers, caches and routers; only seconds of steps and wires are formulas.

Each instance is an :class:`EngineCore` whose steps take as long as a fitted :class:`CostModel` says. Instances hand
keys and values over by tickets and leases as worker processes do, on wires of :mod:`heliograph.sim`. A policy that
places requests or changes roles sees the same :class:`InstanceView` here and there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from heliograph.errors import BadInput
from heliograph.lm.core.sampling import SamplingParams
from heliograph.serving.core.async_engine import Overloaded
from heliograph.serving.core.blocks import BlockPool, KVManager
from heliograph.serving.core.cluster import InstanceView, Role, Router, RoutingRequest
from heliograph.serving.core.cost_model import CostModel
from heliograph.serving.core.engine import EngineCore
from heliograph.serving.core.executor import ModelledExecutor
from heliograph.serving.core.request import FinishReason, Request, RequestState, StepPlan, Ticket
from heliograph.serving.core.scheduler import Admission, Scheduler, SchedulerConfig, Taken
from heliograph.serving.core.sim_report import RequestRecord, SimReport, SimRequest, Slo
from heliograph.sim import Link, Process, Signal, Sim
from heliograph.sim.engine import Body

__all__ = [
    "Action",
    "Controller",
    "InstanceSpec",
    "Migrate",
    "RequestRecord",
    "SetRole",
    "SimCluster",
    "SimInstance",
    "SimReport",
    "SimRequest",
    "Slo",
    "Snapshot",
    "StepPolicy",
    "Wire",
]

END_TOKEN = 0


@dataclass(frozen=True)
class InstanceSpec:
    """One instance: its name, its first role, its cache and the limits of its steps."""

    name: str
    role: Role = "mix"
    num_blocks: int = 1024
    block_size: int = 16
    limits: SchedulerConfig = SchedulerConfig()  # noqa: RUF009 - frozen
    prefix_cache: bool = False


@dataclass(frozen=True)
class Wire:
    """What leaves each instance: seconds of latency, and bytes a second."""

    latency_s: float = 1e-3
    bytes_per_s: float = 1.25e9

    def seconds(self, nbytes: int) -> float:
        """Of a transfer that has the wire for itself."""
        return self.latency_s + nbytes / self.bytes_per_s


@dataclass(frozen=True)
class Snapshot:
    """What a controller sees: the time and the instances, dead ones left out."""

    now_s: float
    views: tuple[InstanceView, ...]


@dataclass(frozen=True)
class SetRole:
    """Gives an instance another role; refused while a hand-over involves it."""

    instance: str
    role: Role


@dataclass(frozen=True)
class Migrate:
    """Moves a decoding request of an engine with its keys and values, once the step that it is in has ended.

    Attributes:
        request: its id on the source's engine.
    """

    request: str
    source: str
    target: str


Action = SetRole | Migrate


class Controller(Protocol):
    """The slow loop: looks now and then, at arrivals and at ends, and changes roles."""

    def observe(self, snapshot: Snapshot) -> list[Action]:
        """What is to be done now."""
        ...


class StepPolicy(Protocol):
    """What an instance does around its steps beyond its scheduler."""

    def before_step(self, instance: SimInstance) -> None:
        """Before a step is planned."""
        ...

    def breaks(self, instance: SimInstance, plan: StepPlan, arriving: Request) -> bool:
        """Whether the step under way is broken off at the next layer for a request that has just come."""
        ...

    def after_step(self, instance: SimInstance, seconds: float, others: Sequence[SimInstance]) -> list[Action]:
        """After a step; what is to be done then."""
        ...


@dataclass
class _Flight:
    plan: StepPlan
    begin_s: float
    seconds: float
    signal: Signal
    cancel: Callable[[], None]
    breaking: bool = False


class SimInstance:
    """An engine in virtual time.

    Attributes:
        view: what routers see.
        core: its engine.
        link: what leaves it.
        flight: the step under way.
        dead: whether it has been killed.
        moves: requests that leave once the step under way has ended.
    """

    def __init__(self, sim: Sim, spec: InstanceSpec, cost: CostModel, wire: Wire, admission: Admission | None) -> None:
        self.spec = spec
        self.view = InstanceView(spec.name, spec.role, num_blocks=spec.num_blocks, block_size=spec.block_size)
        kv = KVManager(BlockPool(spec.num_blocks, spec.block_size), prefix_cache=spec.prefix_cache)
        scheduler = Scheduler(kv, spec.limits, admission, (END_TOKEN,))
        self.executor = ModelledExecutor(cost, end_token=END_TOKEN)
        self.core = EngineCore(scheduler, self.executor, sim.clock)
        self.link = Link(sim, wire.latency_s, 1 / wire.bytes_per_s, f"wire of {spec.name}")
        self.flight: _Flight | None = None
        self.dead = False
        self.loop: Process | None = None
        self.moves: list[Migrate] = []

    @property
    def name(self) -> str:
        """Its own."""
        return self.spec.name


@dataclass
class _Open:
    """A request that has not ended."""

    record: RequestRecord
    drawn: list[int] = field(default_factory=list)
    place: SimInstance | None = None  # who computes it now
    current: Request | None = None
    target: SimInstance | None = None  # who decodes it once its prompt is computed elsewhere
    prompt_counted: int = 0
    decode_counted: int = 0


class SimCluster:
    """Instances, their router and controller on one virtual clock; one run an object.

    Args:
        specs: of the instances.
        router: places requests.
        cost: of steps, and bytes of a token's keys and values.
        wire: between instances.
        controller: the slow loop.
        policy: around steps.
        admission: made anew for each instance.
        observe_every_s: of the controller, beside arrivals and ends.
        layers: of the model, at whose ends a step can be broken off.
        remove_s: of silence, after which a dead instance's requests go elsewhere.
        heartbeat_s: how old ``kv_usage`` in a view may be.

    Raises:
        BadInput: no instances, or two of one name.
    """

    def __init__(
        self,
        specs: Sequence[InstanceSpec],
        router: Router,
        cost: CostModel,
        *,
        wire: Wire = Wire(),
        controller: Controller | None = None,
        policy: StepPolicy | None = None,
        admission: Callable[[], Admission] | None = None,
        observe_every_s: float = 1.0,
        layers: int = 30,
        remove_s: float = 18.0,
        heartbeat_s: float = 0.5,
    ) -> None:
        if not specs or len({spec.name for spec in specs}) != len(specs):
            raise BadInput("a cluster has at least one instance, and their names differ")
        self.sim = Sim()
        self.router, self.cost, self.wire, self.controller, self.policy = router, cost, wire, controller, policy
        self.instances = {
            spec.name: SimInstance(self.sim, spec, cost, wire, admission() if admission else None) for spec in specs
        }
        self.observe_every_s, self.layers = observe_every_s, layers
        self.remove_s, self.heartbeat_s = remove_s, heartbeat_s
        self._open: dict[str, _Open] = {}
        self._records: list[RequestRecord] = []
        self._roles: list[tuple[float, str, Role]] = []
        self._serial = itertools.count()
        self._transfers: dict[str, tuple[SimInstance, SimInstance]] = {}
        self._coming = self._broken = self._moved = self._refused = 0

    @property
    def views(self) -> tuple[InstanceView, ...]:
        """Instances to which requests can go."""
        return tuple(i.view for i in self.instances.values() if i.view.health == "ready")

    def kill(self, name: str, at_s: float) -> None:
        """Lets an instance die at a time; nobody knows before ``remove_s`` have passed."""
        instance = self.instances[name]

        def die() -> None:
            instance.dead = True
            if instance.loop is not None:
                instance.loop.kill()

        def remove() -> None:
            instance.view.health = "removed"
            for open_ in [o for o in self._open.values() if instance in (o.place, o.target)]:
                self._resubmit(open_)

        self.sim.at(at_s, die)
        self.sim.at(at_s + self.remove_s, remove)

    def run(self, requests: Iterable[SimRequest], until_s: float | None = None) -> SimReport:
        """Serves a trace to its end, or to a time; what has not ended by then has ``finish`` None.

        Raises:
            BadInput: two requests of one id.
        """
        ordered = sorted(requests, key=lambda r: r.arrival_s)
        if len({r.id for r in ordered}) != len(ordered):
            raise BadInput("the ids of a trace's requests differ")
        self._records = [RequestRecord(r) for r in ordered]
        self._coming = len(ordered)
        for record in self._records:
            self.sim.at(record.request.arrival_s, lambda record=record: self._arrive(record))  # type: ignore[misc]
        if self.controller is not None:
            self.sim.spawn(self._observing(), "controller")
        self.sim.run(until_s)
        cores = [i.core.scheduler for i in self.instances.values()]
        return SimReport(
            tuple(self._records),
            self.sim.now,
            sum(s.preemptions for s in cores),
            sum(s.recomputed_tokens for s in cores),
            self._moved,
            self._broken,
            tuple(self._roles),
            self._refused,
            {name: i.executor.busy_s for name, i in self.instances.items()},
        )

    def check(self) -> None:
        """Compares the blocks of all living instances with their holders.

        Raises:
            LeakError: a difference.
        """
        for instance in self.instances.values():
            if not instance.dead:
                instance.core.kv.check()

    # arrivals, roles

    def _arrive(self, record: RequestRecord) -> None:
        self._coming -= 1
        open_ = self._open[record.request.id] = _Open(record)
        self._place(open_)
        self._observe()

    def _place(self, open_: _Open) -> None:
        asked = open_.record.request
        want = RoutingRequest(asked.prompt, asked.max_tokens, asked.priority, len(open_.drawn))
        try:
            placement = self.router.route(want, self.views)
        except Overloaded:
            self._close(open_, "error")
            return
        open_.record.placements.append((self.sim.now, placement))
        prefill, decode = self.instances[placement.prefill], self.instances[placement.decode]
        whole = prefill is decode or asked.max_tokens <= 1 or bool(open_.drawn)
        self._submit(open_, decode if whole else prefill, None if whole else decode)

    def _submit(
        self, open_: _Open, instance: SimInstance, target: SimInstance | None, ticket: Ticket | None = None
    ) -> None:
        asked = open_.record.request
        limit = 1 if target is not None else asked.max_tokens
        request = Request(
            f"{asked.id}/{next(self._serial)}",
            asked.prompt,
            SamplingParams(max_tokens=limit, temperature=0),
            asked.priority,
            asked.arrival_s,
            producer=target is not None,
            ticket=ticket,
            expected_tokens=asked.output_tokens,
        )
        request.tokens += open_.drawn
        open_.place, open_.target, open_.current = instance, target, request
        instance.core.scheduler.on_load = lambda r: self._fetch(instance, r)
        if instance.dead:
            return  # sent into silence; taken elsewhere once that is noticed
        try:
            instance.core.add(request)
        except BadInput:
            open_.place = open_.target = open_.current = None
            self._close(open_, "error")
            return
        context = len(request.tokens)
        if ticket is None:
            instance.view.prefill_requests += 1
            instance.view.prefill_tokens += context
            open_.prompt_counted = context
        else:
            self._count_decode(open_, instance, context)
        flight = instance.flight
        policy = self.policy
        if flight and policy and not flight.breaking and policy.breaks(instance, flight.plan, request):
            self._break_off(flight)
        self._kick(instance)

    def _observing(self) -> Body:
        while self._coming or self._transfers or any(i.loop is not None for i in self.instances.values()):
            self._observe()
            yield self.sim.wait(self.observe_every_s)

    def _observe(self) -> None:
        if self.controller is not None:
            self._apply(self.controller.observe(Snapshot(self.sim.now, self.views)))

    def _apply(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, SetRole):
                view = self.instances[action.instance].view
                if view.transfers:
                    self._refused += 1
                elif view.role != action.role:
                    view.role = action.role
                    self._roles.append((self.sim.now, action.instance, action.role))
            elif not self._migrate(action):
                self._refused += 1

    # steps

    def _kick(self, instance: SimInstance) -> None:
        if instance.loop is None and not instance.dead:
            instance.loop = self.sim.spawn(self._serve(instance), f"{instance.name}, run {next(self._serial)}")

    def _serve(self, instance: SimInstance) -> Body:
        core, policy = instance.core, self.policy
        heard = self.sim.now
        while True:
            if policy is not None:
                policy.before_step(instance)
            before = core.scheduler.preemptions
            plan = core.begin()
            if plan is None:
                if core.scheduler.preemptions > before:
                    continue  # everybody yielded; now the first can start again
                break
            result = instance.executor.launch(plan).wait()
            signal = Signal(self.sim, f"a step of {instance.name}")
            end = self.sim.now + result.seconds
            cancel = self.sim.at(end, lambda signal=signal: signal.give(True))  # type: ignore[misc]
            instance.flight = _Flight(plan, self.sim.now, result.seconds, signal, cancel)
            ended = yield signal
            instance.flight = None
            if not ended:
                self._broken += 1
                _roll_back(plan)
                continue
            for taken in core.complete(plan, result):
                self._took(instance, taken)
            moves, instance.moves = instance.moves, []
            self._apply(moves)
            if policy is not None:
                self._apply(policy.after_step(instance, result.seconds, list(self.instances.values())))
            if self.sim.now - heard >= self.heartbeat_s:
                heard = self.sim.now
                instance.view.kv_usage = core.kv.usage
        instance.view.kv_usage = core.kv.usage
        instance.loop = None

    def _break_off(self, flight: _Flight) -> None:
        """At the end of the layer under way."""
        flight.breaking = True
        layer = flight.seconds / self.layers
        done = math.ceil((self.sim.now - flight.begin_s) / layer) if layer else self.layers
        if done < self.layers:
            flight.cancel()
            when = max(self.sim.now, flight.begin_s + done * layer)
            self.sim.at(when, lambda: flight.signal.give(False))

    def _took(self, instance: SimInstance, taken: Taken) -> None:
        open_ = self._open.get(taken.request.id.rpartition("/")[0])
        if open_ is None or open_.current is not taken.request or taken.sample is None:
            return
        record, view = open_.record, instance.view
        open_.drawn.append(taken.sample.token)
        record.tokens += 1
        if record.first_token_s is None:
            record.first_token_s = self.sim.now
        if open_.prompt_counted:
            self._uncount(open_, instance)
            if open_.target is None and taken.finish is None:
                self._count_decode(open_, instance, len(taken.request.tokens))
        elif open_.decode_counted:
            view.decode_tokens += 1
            open_.decode_counted += 1
        if taken.finish is None:
            return
        target = open_.target
        self._settle(open_)
        if target is not None and taken.finish == "length" and record.tokens < record.request.max_tokens:
            self._hand_over(open_, instance, target, taken.request)
        else:
            self._uncount(open_, instance)
            self._close(open_, taken.finish)
            self._observe()

    # keys and values on their way

    def _hand_over(self, open_: _Open, holder: SimInstance, target: SimInstance, request: Request) -> None:
        """Leaves a finished producer's blocks in a lease, and lets the target ask for them."""
        tokens = request.num_computed
        holder.core.kv.hold(request, request.id, tokens, math.inf)
        nbytes = tokens * self.cost.kv_bytes_per_token
        ticket = Ticket(holder.name, 0, request.id, tokens, holder.core.kv.fingerprint, nbytes)
        for view in (holder.view, target.view):
            view.transfers += 1
        self._transfers[ticket.key] = (holder, target)
        self._submit(open_, target, None, ticket)

    def _fetch(self, instance: SimInstance, request: Request) -> None:
        assert request.ticket is not None
        self.sim.spawn(self._carry(instance, request, request.ticket), f"hand-over of {request.id}")

    def _carry(self, instance: SimInstance, request: Request, ticket: Ticket) -> Body:
        holder = self.instances[ticket.host]
        if not holder.dead:
            yield holder.link.transfer(ticket.nbytes)
        if not self._end_transfer(ticket.key):
            return  # one of the two died meanwhile
        arrived = not holder.dead
        if arrived:
            self._moved += ticket.nbytes
            open_ = self._open.get(request.id.rpartition("/")[0])
            if open_ is not None:
                open_.record.moved_bytes += ticket.nbytes
        instance.core.scheduler.loaded(request, ticket.tokens if arrived else 0)
        self._kick(instance)
        self._kick(holder)

    def _end_transfer(self, key: str) -> bool:
        """Frees the holder's blocks and both roles; False where that has been done."""
        pair = self._transfers.pop(key, None)
        if pair is None:
            return False
        for each in pair:
            each.view.transfers -= 1
        pair[0].core.kv.release(key)
        return True

    def _migrate(self, action: Migrate) -> bool:
        open_ = self._open.get(action.request.rpartition("/")[0])
        source, target = self.instances[action.source], self.instances[action.target]
        request = None if open_ is None else open_.current
        if open_ is None or request is None or request.id != action.request or open_.place is not source:
            return False
        if request.state is not RequestState.RUNNING or target.dead:
            return False
        if request.num_in_flight:
            source.moves.append(action)
            return True
        if not request.decoding:
            return False
        request.producer = True  # so that its blocks outlive its end here
        source.core.scheduler.finish(request, "length", self.sim.now)
        source.core.requests.pop(request.id, None)
        self._uncount(open_, source)
        self._settle(open_)
        self._hand_over(open_, source, target, request)
        return True

    def _resubmit(self, open_: _Open) -> None:
        """Starts a request again elsewhere, after the tokens that it has."""
        place, request = open_.place, open_.current
        if place is not None and request is not None:
            if not place.dead:  # its answer was to go to the one that is lost
                place.core.abort(request.id)
                self._kick(place)
            self._uncount(open_, place)
        if request is not None and request.ticket is not None and self._end_transfer(request.ticket.key):
            self._kick(self.instances[request.ticket.host])
        self._settle(open_)
        self._place(open_)

    # accounts

    def _count_decode(self, open_: _Open, instance: SimInstance, context: int) -> None:
        instance.view.decode_requests += 1
        instance.view.decode_tokens += context
        open_.decode_counted = context

    def _uncount(self, open_: _Open, instance: SimInstance) -> None:
        view = instance.view
        if open_.prompt_counted:
            view.prefill_requests -= 1
            view.prefill_tokens -= open_.prompt_counted
            open_.prompt_counted = 0
        if open_.decode_counted:
            view.decode_requests -= 1
            view.decode_tokens -= open_.decode_counted
            open_.decode_counted = 0

    def _settle(self, open_: _Open) -> None:
        """Books what a request of an engine met on its way."""
        if open_.current is not None:
            open_.record.preemptions += open_.current.preemptions
            open_.record.recomputed_tokens += open_.current.recomputed
        open_.place = open_.target = open_.current = None

    def _close(self, open_: _Open, finish: FinishReason) -> None:
        open_.record.finish, open_.record.finished_s = finish, self.sim.now
        self._open.pop(open_.record.request.id, None)


def _roll_back(plan: StepPlan) -> None:
    """Forgets a step that did not end: nothing that it would have written counts, and nothing is published."""
    for row in plan.rows:
        request = row.request
        request.num_in_flight -= 1
        if row.epoch == request.epoch and request.state is RequestState.RUNNING:
            request.num_computed = row.start
            request.num_pending -= row.sample
