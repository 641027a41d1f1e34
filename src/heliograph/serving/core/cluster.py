"""Several instances behind one door: a router places each request, instances hand keys and values over, failures heal.

An instance has no state that matters elsewhere: its role is an entry in the router's lists, and changes without a
restart. Tokens so far are kept here, so that a request whose instance dies goes on at another one with the same tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

from heliograph.errors import BadInput
from heliograph.lm.core.load import LanguageModel
from heliograph.lm.core.tokens import StopText, TextStream
from heliograph.serving.core.async_engine import EngineClosed, Overloaded, StreamEvent
from heliograph.serving.core.engine import EngineStats
from heliograph.serving.core.instance import Health, Instance, InstanceLost, InstanceView, Role
from heliograph.serving.core.openai_api import Generation
from heliograph.serving.core.request import FinishReason, Ticket
from heliograph.serving.core.worker import WorkerConfig

__all__ = [
    "Cluster",
    "ClusterBackend",
    "Instance",
    "InstanceLost",
    "InstanceView",
    "LeastOutstanding",
    "Placement",
    "Role",
    "RoundRobin",
    "Router",
    "RoutingRequest",
]


@dataclass(frozen=True)
class RoutingRequest:
    """What a router may know of a request: never the length of its answer.

    Attributes:
        prompt: token numbers.
        max_tokens: the most that it may draw.
        priority: 0 online, 1 offline.
        resumed: tokens of the answer that exist already.
    """

    prompt: Sequence[int]
    max_tokens: int
    priority: int = 0
    resumed: int = 0


@dataclass(frozen=True)
class Placement:
    """Where a prompt is computed and where its answer is; the same name for both where nothing is handed over."""

    prefill: str
    decode: str


class Router(Protocol):
    """Places requests; called for each, so it must be quick."""

    def route(self, request: RoutingRequest, views: Sequence[InstanceView]) -> Placement:
        """Where a request goes, among instances that are ready.

        Raises:
            Overloaded: nowhere now.
        """
        ...


def candidates(views: Sequence[InstanceView]) -> tuple[list[InstanceView], list[InstanceView]]:
    """Instances for prompts and for answers; each falls back to all where no instance has the role.

    Raises:
        Overloaded: no instance is ready.
    """
    if not views:
        raise Overloaded(0, 0, retry_after_s=2.0)
    prefill = [v for v in views if v.role in ("prefill", "mix")] or list(views)
    decode = [v for v in views if v.role in ("decode", "mix")] or list(views)
    return prefill, decode


class RoundRobin:
    """One after the other; an answer stays where its prompt was computed, if that instance decodes at all."""

    def __init__(self) -> None:
        self._turn = itertools.count()

    def route(self, request: RoutingRequest, views: Sequence[InstanceView]) -> Placement:  # noqa: ARG002
        """The next in turn of each role."""
        prefill, decode = candidates(views)
        turn = next(self._turn)
        first = prefill[turn % len(prefill)]
        return Placement(first.name, first.name if first in decode else decode[turn % len(decode)].name)


class LeastOutstanding:
    """Whoever has the fewest requests; an answer stays where its prompt was computed, if that instance decodes."""

    def route(self, request: RoutingRequest, views: Sequence[InstanceView]) -> Placement:  # noqa: ARG002
        """The least loaded of each role."""
        prefill, decode = candidates(views)
        first = min(prefill, key=lambda v: v.outstanding)
        second = first if first in decode else min(decode, key=lambda v: v.outstanding)
        return Placement(first.name, second.name)


@dataclass(frozen=True)
class ClusterConfig:
    """How a cluster treats silence.

    Attributes:
        heartbeat_s: between two questions to each instance.
        suspect_s: of silence, after which nothing is placed there.
        remove_s: of silence, after which its requests are taken elsewhere.
        retries: how often a request may lose its instance.
    """

    heartbeat_s: float = 0.5
    suspect_s: float = 3.0
    remove_s: float = 18.0
    retries: int = 3


@dataclass
class _Progress:
    """A request as the cluster knows it."""

    tokens: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    ticket: Ticket | None = None


class Cluster:
    """Instances and their router.

    Args:
        instances: not yet started.
        router: places requests.
        config: of failures.

    Attributes:
        handovers: requests whose keys and values went from one instance to another.
        resubmitted: requests that lost their instance and went on elsewhere.
    """

    def __init__(
        self, instances: Sequence[Instance], router: Router | None = None, config: ClusterConfig | None = None
    ) -> None:
        if not instances or len({i.view.name for i in instances}) != len(instances):
            raise BadInput("a cluster has at least one instance, and their names differ")
        self.instances = {instance.view.name: instance for instance in instances}
        self.router: Router = router or LeastOutstanding()
        self.config = config or ClusterConfig()
        self.handovers = self.resubmitted = 0
        self.on_event: Callable[[str, InstanceView], object] | None = None
        self._serial = itertools.count()
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    def local(
        cls,
        model: str = "smollm2-135m",
        roles: Mapping[Role, int] | None = None,
        *,
        router: Router | None = None,
        config: ClusterConfig | None = None,
        on: Literal["local", "ray"] = "local",
        **worker: Any,
    ) -> Cluster:
        """Worker processes of this machine, or of the machines of a Ray cluster.

        Args:
            model: what each loads; on Ray a name or a path that every machine has.
            roles: how many of each; one mixed instance where None.
            router, config: of the cluster.
            on: "local" for processes of this machine, "ray" for processes that Ray's actors keep; one GPU each where
                the engine's device is CUDA.
            worker: other settings of :class:`WorkerConfig`.
        """
        settings = WorkerConfig(model=model, **worker)
        make: Callable[..., Instance] = Instance
        if on == "ray":
            from heliograph.serving.core.ray_instance import RayInstance

            gpus = 1 if str((settings.engine or {}).get("device", "cpu")).startswith("cuda") else 0
            make = functools.partial(RayInstance, resources={"num_gpus": gpus})
        return cls(
            [
                make(f"{role}-{number}", role, settings)
                for role, count in (roles or {"mix": 1}).items()
                for number in range(count)
            ],
            router,
            config,
        )

    @property
    def views(self) -> list[InstanceView]:
        """Instances to which requests can go; where all are silent, those that may only be slow."""
        alive = [i.view for i in self.instances.values() if i.view.health != "removed"]
        return [view for view in alive if view.health == "ready"] or alive

    async def start(self) -> None:
        """Starts all instances; none is left behind when one of them cannot start.

        Raises:
            BadInput: an instance did not start, or they hold different models.
        """
        try:
            await asyncio.gather(*(instance.start() for instance in self.instances.values()))
            prints = {instance.fingerprint for instance in self.instances.values()}
            if len(prints) > 1:
                raise BadInput("the instances hold different models")
        except BaseException:
            await self.close()
            raise
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Ends all instances."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await asyncio.gather(*(instance.close() for instance in self.instances.values()))

    def set_role(self, name: str, role: Role) -> bool:
        """Gives an instance another role; False, and nothing done, while a hand-over involves it."""
        view = self.instances[name].view
        if view.transfers:
            return False
        view.role = role
        return True

    async def stream(self, generation: Generation) -> AsyncIterator[StreamEvent]:
        """The tokens of an answer, without text; leaving the loop early ends it.

        Raises:
            InstanceLost: too many instances died under it. Overloaded: nobody can take it. BadInput: refused.
        """
        progress, lost, give_up = _Progress(), 0, math.inf
        while True:
            try:
                async for event in self._attempt(generation, progress):
                    yield event
                return
            except InstanceLost:
                lost += 1
                if lost > self.config.retries:
                    raise
                self.resubmitted += 1
                give_up = time.monotonic() + self.config.remove_s
            except Overloaded:
                # what has begun waits for room elsewhere; what has not is its sender's to send again
                if not lost or time.monotonic() > give_up:
                    raise
                await asyncio.sleep(self.config.heartbeat_s)

    async def _attempt(self, generation: Generation, progress: _Progress) -> AsyncIterator[StreamEvent]:
        request = RoutingRequest(
            generation.prompt, generation.params.max_tokens, generation.priority, len(progress.tokens)
        )
        placement = self.router.route(request, self.views)
        prefill, decode = self.instances[placement.prefill], self.instances[placement.decode]
        name = f"{generation.choice}-{next(self._serial)}"
        params = asdict(replace(generation.params, stop=()))
        message: dict[str, Any] = {
            "prompt": list(generation.prompt),
            "params": params,
            "logprobs": generation.logprobs,
            "priority": generation.priority,
            "salt": generation.salt,
        }
        whole = prefill is decode or generation.params.max_tokens <= 1 or bool(progress.tokens)
        if whole:
            message["prompt_logprobs"] = generation.prompt_logprobs and not progress.tokens
            async for event in self._decode(decode, {**message, "id": name}, generation, progress, computed=False):
                yield event
            return
        first = {**message, "id": name, "producer": True, "prompt_logprobs": generation.prompt_logprobs}
        first["params"] = {**params, "max_tokens": 1}
        held: Ticket | None = None
        prompt = _counted(prefill.view, prefill_requests=1, prefill_tokens=len(generation.prompt))
        with prompt, _counted(decode.view, promised=1):
            async for event in _closing(prefill.stream(first)):
                held = event.ticket or held
                if event.sample is not None:
                    progress.tokens.append(event.sample.token)
                goes_on = event.finish == "length"
                yield replace(event, finish=None if goes_on else event.finish, ticket=None)
                if event.finish is not None and not goes_on:
                    return
        message["ticket"] = None if held is None else held.to_json()
        self.handovers += held is not None
        with contextlib.ExitStack() as moving:
            moving.enter_context(_counted(prefill.view, transfers=1))
            moving.enter_context(_counted(decode.view, transfers=1))
            events = self._decode(decode, {**message, "id": f"{name}-d"}, generation, progress, computed=True)
            async for event in events:
                moving.close()  # the first token shows that the blocks have arrived
                yield event

    async def _decode(
        self,
        instance: Instance,
        message: dict[str, Any],
        generation: Generation,
        progress: _Progress,
        *,
        computed: bool,
    ) -> AsyncIterator[StreamEvent]:
        message["answer"] = list(progress.tokens)
        view, context = instance.view, len(generation.prompt) + len(progress.tokens)
        fresh = not computed
        counted = contextlib.ExitStack()
        counted.enter_context(
            _counted(view, prefill_requests=1, prefill_tokens=context)
            if fresh
            else _counted(view, decode_requests=1, decode_tokens=context)
        )
        drawn = 0
        try:
            async for event in _closing(instance.stream(message)):
                if event.sample is not None:
                    progress.tokens.append(event.sample.token)
                    if fresh:  # the prompt is computed; from here on the instance decodes
                        counted.close()
                        counted.enter_context(_counted(view, decode_requests=1, decode_tokens=context))
                        fresh = False
                    view.decode_tokens += 1
                    drawn += 1
                yield event
        finally:
            view.decode_tokens -= drawn
            counted.close()

    async def _watch(self) -> None:
        """Asks every instance how it is; silence makes it suspect, then lost."""
        await asyncio.gather(*(self._watch_one(instance) for instance in self.instances.values()))

    async def _watch_one(self, instance: Instance) -> None:
        config, view = self.config, instance.view
        while view.health != "removed":
            with contextlib.suppress(InstanceLost, BadInput):
                told = await instance.call("ping", timeout_s=config.heartbeat_s)
                view.kv_usage = float(told["kv_usage"])
            silent = time.monotonic() - instance.heard_at
            if silent > config.remove_s:
                instance.lose()
                self._tell("removed", view)
                return
            health: Health = "suspect" if silent > config.suspect_s else "ready"
            if view.health not in (health, "removed"):  # it may have been lost while it was asked
                view.health = health
                self._tell(health, view)
            await asyncio.sleep(config.heartbeat_s)

    def _tell(self, what: str, view: InstanceView) -> None:
        if self.on_event is not None:
            self.on_event(what, view)


class ClusterBackend:
    """A cluster as what a server needs: text of the tokens, and statistics of all instances together.

    Args:
        cluster: started.
        model: for its tokenizer and context; its weights are not used.
        name: under which it is served.
    """

    def __init__(self, cluster: Cluster, model: LanguageModel, name: str | None = None) -> None:
        self.cluster, self.name = cluster, name or model.name
        self.tokenizer, self.context = model.tokenizer, model.config.context
        self._active = 0
        self._closed = False

    async def stream(self, generation: Generation) -> AsyncIterator[StreamEvent]:
        """One answer with its text."""
        if self._closed:
            raise EngineClosed("this cluster has been closed")
        text, stop = TextStream(self.tokenizer), StopText(generation.params.stop)
        ends = () if generation.params.ignore_end else self.tokenizer.end_tokens
        self._active += 1
        try:
            async for event in _closing(self.cluster.stream(generation)):
                new, last = "", event.finish is not None
                if event.sample is not None and event.sample.token not in ends:
                    new = text.push(event.sample.token)
                shown = stop.push(new + text.finish() if last else new, last=last)
                finish: FinishReason | None = "stop" if stop.stopped else event.finish
                yield replace(event, text=shown, finish=finish)
                if finish is not None:
                    return
        finally:
            self._active -= 1

    async def stats(self) -> EngineStats:
        """Sums over the instances that answer; the cache's share is their mean."""
        found = await asyncio.gather(
            *(self.cluster.instances[view.name].call("stats", 2.0) for view in self.cluster.views),
            return_exceptions=True,
        )
        rows = [{k: v for k, v in row.items() if k != "sent_bytes"} for row in found if isinstance(row, dict)]
        total = {name: sum(row[name] for row in rows) for name in EngineStats.__dataclass_fields__}
        total["kv_usage"] /= max(1, len(rows))
        return EngineStats(**total)

    async def reset_prefix_cache(self) -> int:
        """Of all instances."""
        return sum(await asyncio.gather(*(self.cluster.instances[v.name].call("reset") for v in self.cluster.views)))

    async def unfinished(self) -> int:
        """Answers under way."""
        return self._active

    async def abort_all(self) -> None:
        """Ends all instances, and with them all requests."""
        for instance in self.cluster.instances.values():
            instance.lose()
        self.cluster.config = replace(self.cluster.config, retries=0)

    async def close(self) -> None:
        """Ends all instances."""
        self._closed = True
        await self.cluster.close()


@contextlib.contextmanager
def _counted(view: InstanceView, **amounts: int) -> Any:
    for name, amount in amounts.items():
        setattr(view, name, getattr(view, name) + amount)
    try:
        yield
    finally:
        for name, amount in amounts.items():
            setattr(view, name, max(0, getattr(view, name) - amount))


async def _closing(events: AsyncIterator[StreamEvent]) -> AsyncIterator[StreamEvent]:
    """The same events; leaving the loop ends their source at once, not when the garbage is collected."""
    try:
        async for event in events:
            yield event
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
