"""The gateway: a request goes to its scenario's group, waits here until a prefill instance is idle, and streams on.

Gateway -> prefill instance (offer, then prompt) -> decode instance (ticket) -> gateway (tokens). The gateway keeps the
tokens so far, so that nobody hears one twice: a request that loses its instance goes on behind them
(arXiv:2408.08147, on-demand forwarding and recovery).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from heliograph.errors import BadInput
from heliograph.lm.core.load import LanguageModel
from heliograph.serving.core.async_engine import StreamEvent
from heliograph.serving.core.cluster import Cluster, ClusterBackend, ClusterConfig, InstanceLost, InstanceView
from heliograph.serving.core.openai_api import Generation
from heliograph.serving.core.request import Ticket
from heliograph.serving.core.worker import WorkerConfig
from heliograph.serving.pd_serve.admission import Offer
from heliograph.serving.pd_serve.forwarding import Backoff, ForwardStats, forward
from heliograph.serving.pd_serve.group import GroupMembers, GroupState, PDGroup, PDRole
from heliograph.serving.pd_serve.instance import PDInstance
from heliograph.serving.pd_serve.ratio import Finished
from heliograph.serving.pd_serve.worker import PDWorkerConfig

__all__ = ["PDBackend", "PDGateway"]

PREFIX_TOKENS = 32
PREFIXES_KEPT = 4096


class PDGateway(Cluster):
    """Groups of worker processes behind one door.

    Args:
        groups: one a scenario; the first serves requests of scenarios that have none.
        setup: of each instance.
        ttft_slo_s: how long a prompt may wait for an idle instance.
        backoff: between rounds of offers.
        label: scenario of a request, where :meth:`submit` is not told; the default group where None.
        config: of failures.
        seed: of the jitter.

    Attributes:
        groups: members and state of each.
        stats: of the offers.
        on_finished: told of each finished request with its scenario, for a ratio controller.

    Raises:
        BadInput: no groups, or two of one scenario.
    """

    def __init__(
        self,
        groups: Sequence[PDGroup],
        setup: PDWorkerConfig | None = None,
        *,
        ttft_slo_s: float = 10.0,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
        label: Callable[[Generation], str] | None = None,
        config: ClusterConfig | None = None,
        seed: int = 0,
    ) -> None:
        if not groups or len({g.scenario for g in groups}) != len(groups):
            raise BadInput("a gateway has at least one group, and their scenarios differ")
        if not ttft_slo_s > 0:
            raise BadInput(f"a prompt may wait more than 0 s; got ttft_slo_s={ttft_slo_s}")
        self.setup, self.ttft_slo_s, self.backoff, self.label = setup or PDWorkerConfig(), ttft_slo_s, backoff, label
        self.groups = {group.scenario: GroupMembers(group) for group in groups}
        instances = [self._make(group, name, role) for group in groups for name, role in _names(group)]
        super().__init__(instances, None, config)
        self.stats = ForwardStats()
        self.on_finished: Callable[[str, Finished], object] | None = None
        self._rng = random.Random(seed)
        self._opened: Counter[str] = Counter()
        self._owners: OrderedDict[tuple[int, ...], str] = OrderedDict()
        self._requests = itertools.count()
        self.on_event = self._member_changed

    @classmethod
    def local_groups(
        cls,
        groups: Sequence[PDGroup],
        model: str = "smollm2-135m",
        *,
        worker: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> PDGateway:
        """Worker processes of this machine.

        Args:
            groups: of the gateway.
            model: what each instance loads.
            worker: other settings of :class:`~heliograph.serving.core.worker.WorkerConfig`.
            settings: of :class:`PDGateway`.
        """
        return cls(groups, PDWorkerConfig(WorkerConfig(model=model, **(worker or {}))), **settings)

    async def start(self) -> None:
        """Starts all instances and takes every group through its set-up.

        Raises:
            BadInput: an instance did not start. LinkRefused: two members' caches do not fit.
        """
        await super().start()
        try:
            for members in self.groups.values():
                await self._set_up(members)
        except BaseException:
            await self.close()
            raise

    def scenario_of(self, generation: Generation, scenario: str | None = None) -> str:
        """The group that serves a request."""
        wanted = scenario if scenario is not None else self.label(generation) if self.label is not None else ""
        return wanted if wanted in self.groups else next(iter(self.groups))

    async def submit(self, generation: Generation, scenario: str | None = None) -> AsyncIterator[StreamEvent]:
        """The tokens of an answer, without text; leaving the loop early ends it everywhere.

        Raises:
            NoIdlePrefill: no instance took the prompt in time; nothing was computed.
            InstanceLost: too many instances died under it. BadInput: it can never run.
        """
        name = self.scenario_of(generation, scenario)
        begin, first_token = time.monotonic(), None
        request = f"request-{next(self._requests)}"
        sent: list[int] = []
        for attempt in itertools.count():
            try:
                async for event in self._serve(generation, self.groups[name], request, attempt, sent):
                    if event.sample is not None:
                        sent.append(event.sample.token)
                        first_token = first_token or time.monotonic()
                    yield event
                break
            except InstanceLost:
                if attempt >= self.config.retries:
                    raise
                self.resubmitted += 1
        if self.on_finished is not None and first_token is not None:
            now = time.monotonic()
            self.on_finished(name, Finished(now, now - begin, first_token - begin))

    async def stream(self, generation: Generation) -> AsyncIterator[StreamEvent]:
        """:meth:`submit` with the scenario that ``label`` gives; what a server's backend calls."""
        async with contextlib.aclosing(self.submit(generation)) as events:  # type: ignore[type-var]
            async for event in events:
                yield event

    def set_role(self, name: str, role: Any) -> bool:
        """Gives an instance the other role within its group; False while a hand-over involves it, or for the last."""
        members = self._group_with(name)
        if members is None or role not in ("prefill", "decode") or self.instances[name].view.transfers:
            return False
        return members.change_role(name, role) and super().set_role(name, role)

    async def add_instance(self, scenario: str, role: PDRole, name: str | None = None) -> str:
        """Starts one more instance and links it with its peers before anything is sent there; its name.

        For growth, and as the substitute of one that was lost.

        Raises:
            BadInput: the scenario has no group, the name is in use, or the instance did not start.
            LinkRefused: its cache does not fit.
        """
        if scenario not in self.groups:
            raise BadInput(f"no group serves {scenario!r}; known: {', '.join(self.groups)}")
        members = self.groups[scenario]
        name = name or f"{scenario}-{role}-{len(self.instances)}"
        if name in self.instances:
            raise BadInput(f"an instance {name!r} exists already")
        instance = self._make(members.group, name, role)
        await instance.start()
        try:
            members.link({name: role}, {name: await instance.shape()})
        except BaseException:
            await instance.close()
            raise
        self.instances[name] = instance
        self._also_watched = [*getattr(self, "_also_watched", []), asyncio.create_task(self._watch_one(instance))]
        return name

    async def close(self) -> None:
        """Ends all instances."""
        for task in getattr(self, "_also_watched", []):
            task.cancel()
        await super().close()

    # one attempt

    async def _serve(
        self, generation: Generation, members: GroupMembers, request: str, attempt: int, sent: Sequence[int]
    ) -> AsyncIterator[StreamEvent]:
        if sent:
            async for event in self._decode_rest(generation, members, f"{request}.{attempt}", sent, None):
                yield event
            return
        whole = generation.params.max_tokens <= 1
        offer = Offer(request, attempt, len(generation.prompt), hands_over=not whole)
        deadline = asyncio.get_running_loop().time() + self.ttft_slo_s
        instance, key = await forward(
            offer,
            self._order(members, generation.prompt),
            deadline,
            backoff=self.backoff,
            rng=self._rng,
            stats=self.stats,
        )
        message = {**_message(generation), "id": key, "producer": True, "prompt_logprobs": generation.prompt_logprobs}
        message["params"] = {**message["params"], "max_tokens": min(1, generation.params.max_tokens)}
        ticket: Ticket | None = None
        token: int | None = None
        self._opened[instance.name] += 1
        instance.view.prefill_requests += 1
        try:
            async with contextlib.aclosing(instance.stream(message)) as events:  # type: ignore[type-var]
                async for event in events:
                    ticket = event.ticket or ticket
                    token = event.sample.token if event.sample is not None else token
                    goes_on = event.finish == "length" and not whole
                    yield replace(event, finish=None if goes_on else event.finish, ticket=None)
                    if event.finish is not None and not goes_on:
                        if ticket is not None:
                            await instance.call("release", key=ticket.key)
                        return
        finally:
            self._opened[instance.name] -= 1
            instance.view.prefill_requests -= 1
        self._remember(generation.prompt, instance.name)
        assert token is not None
        self.handovers += ticket is not None
        instance.view.transfers += 1
        try:
            rest = self._decode_rest(generation, members, f"{request}.{attempt}", [token], ticket)
            async with contextlib.aclosing(rest) as events:  # type: ignore[type-var]
                async for event in events:
                    yield event
        except GeneratorExit:
            if ticket is not None:  # the client left before the cache was fetched: nobody will
                with contextlib.suppress(InstanceLost):
                    instance._send({"op": "call", "id": f"left-{key}", "what": "release", "key": ticket.key})
            raise
        finally:
            instance.view.transfers -= 1

    async def _decode_rest(
        self, generation: Generation, members: GroupMembers, name: str, sent: Sequence[int], ticket: Ticket | None
    ) -> AsyncIterator[StreamEvent]:
        names = members.members("decode", self._ready()) or members.members("prefill", self._ready())
        if not names:
            raise InstanceLost(f"no instance of group {members.group.scenario} is left to decode")
        instance = min((self.instances[n] for n in names), key=lambda i: i.view.outstanding)
        message = {**_message(generation), "id": f"{name}-decode", "answer": list(sent)}
        message["ticket"] = None if ticket is None else ticket.to_json()
        view, context = instance.view, len(generation.prompt) + len(sent)
        view.decode_requests += 1
        view.decode_tokens += context
        view.transfers += ticket is not None
        moving = ticket is not None
        try:
            async with contextlib.aclosing(instance.stream(message)) as events:  # type: ignore[type-var]
                async for event in events:
                    if moving:
                        view.transfers -= 1
                        moving = False
                    yield event
        finally:
            view.transfers -= moving
            view.decode_requests -= 1
            view.decode_tokens -= context

    # who is asked, and in which order

    def _order(self, members: GroupMembers, prompt: Sequence[int]) -> list[PDInstance]:
        """Prefill instances of the group, the owner of the prompt's prefix first, then by open streams."""
        if members.state is not GroupState.SERVING:
            raise BadInput(f"group {members.group.scenario} is {members.state.value} and does not serve yet")
        owner = self._owners.get(tuple(prompt[:PREFIX_TOKENS]))
        names = members.members("prefill", self._ready()) or members.members("decode", self._ready())
        if not names:
            raise InstanceLost(f"no instance of group {members.group.scenario} is left to compute prompts")
        names.sort(key=lambda n: (n != owner, self._opened[n]))
        found = [self.instances[n] for n in names]
        return [instance for instance in found if isinstance(instance, PDInstance)]

    def _ready(self) -> set[str]:
        return {view.name for view in self.views}

    def _remember(self, prompt: Sequence[int], name: str) -> None:
        key = tuple(prompt[:PREFIX_TOKENS])
        self._owners[key] = name
        self._owners.move_to_end(key)
        while len(self._owners) > PREFIXES_KEPT:
            self._owners.popitem(last=False)

    # set-up and recovery

    def _make(self, group: PDGroup, name: str, role: PDRole) -> PDInstance:
        return PDInstance(name, role, replace(self.setup, layers_per_message=group.transfer.layers_per_message))

    async def _set_up(self, members: GroupMembers) -> None:
        roles = dict(_names(members.group))
        members.advance(GroupState.CONTAINERS_UP)
        members.advance(GroupState.MODEL_LOADED)  # a process tells its address once its model is loaded
        shapes = {}
        for name in roles:
            instance = self.instances[name]
            assert isinstance(instance, PDInstance)
            shapes[name] = await instance.shape()
        members.advance(GroupState.ADDRESSES_COLLECTED)
        members.link(roles, shapes)
        members.advance(GroupState.LINKED)
        for name in roles:
            await self.instances[name].call("stats")
        members.advance(GroupState.HEALTHY)
        members.advance(GroupState.SERVING)

    def _group_with(self, name: str) -> GroupMembers | None:
        return next((members for members in self.groups.values() if name in members.roles), None)

    def _member_changed(self, what: str, view: InstanceView) -> None:
        members = self._group_with(view.name)
        if what == "removed" and members is not None:
            members.remove(view.name)


class PDBackend(ClusterBackend):
    """A gateway as what the OpenAI-compatible server needs.

    Args:
        gateway: started.
        model: for its tokenizer and context.
        name: under which it is served.
    """

    def __init__(self, gateway: PDGateway, model: LanguageModel, name: str | None = None) -> None:
        super().__init__(gateway, model, name)


def _names(group: PDGroup) -> Iterable[tuple[str, PDRole]]:
    for role in ("prefill", "decode"):
        for name in group.instance_names(role):
            yield name, role


def _message(generation: Generation) -> dict[str, Any]:
    return {
        "prompt": list(generation.prompt),
        "params": asdict(replace(generation.params, stop=())),
        "logprobs": generation.logprobs,
        "priority": generation.priority,
        "salt": generation.salt,
    }
