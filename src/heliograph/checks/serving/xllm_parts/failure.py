"""A real cluster of worker processes, of which one is stopped in the middle of its work."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from heliograph.checks.serving.xllm_parts.engine import prompts_of
from heliograph.lm.core.generate import generate
from heliograph.lm.core.load import load_model
from heliograph.lm.core.sampling import SamplingParams
from heliograph.serving.core.async_engine import Overloaded
from heliograph.serving.core.cluster import Cluster, ClusterConfig, Instance, InstanceLost, InstanceView, Role
from heliograph.serving.core.openai_api import Generation
from heliograph.serving.core.worker import WorkerConfig
from heliograph.trials.check import Context, Workload

__all__ = ["measure"]


Answer = tuple[list[int], str | None]
"""Tokens, and how it ended."""


class _Watched(Cluster):
    """A cluster whose patience can be shortened once its processes have compiled what they compile at first use."""

    async def shorten(self, config: ClusterConfig) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        self.config = config
        self._watching = asyncio.create_task(self._watch())


@dataclass
class _Seen:
    """What happened, with times from the stop."""

    events: list[tuple[str, str, float]] = field(default_factory=list)
    stopped: str = ""
    stopped_at: float = 0.0
    before: list[Answer] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    false_alarms: list[tuple[str, str, float]] = field(default_factory=list)
    resubmitted: int = 0
    handovers: int = 0


def measure(context: Context) -> Mapping[str, Any]:
    """Whether every request ends in time with the tokens of a plain forward pass, stopped process or not."""
    import torch

    torch.set_num_threads(1)
    load = context.workload
    model = load_model(load["model"], layers=load["layers"])
    prompts = prompts_of(model, load["prompts"], load["longest"], context.seed)
    params = SamplingParams(max_tokens=load["output"], temperature=0, ignore_end=True)
    plain = [list(completion.tokens) for completion in generate(model, prompts, params)]
    del model
    seen = asyncio.run(_run(load, [tuple(p) for p in prompts], params))
    context.keep("events", [list(event) for event in seen.events])
    context.keep("ends", [str(finish) for _, finish in seen.answers])
    when = {what: at for what, name, at in seen.events if name == seen.stopped}
    suspect, removed = load["suspect_s"], load["remove_s"]
    return {
        "ended": [finish == "length" for _, finish in seen.answers],
        "same": [tokens == expected for (tokens, _), expected in zip(seen.answers, plain, strict=True)],
        "noticed": [
            seen.resubmitted > 0,
            suspect * 0.5 <= when.get("suspect", -1.0) <= when.get("removed", -1.0),
            removed * 0.9 <= when.get("removed", -1.0) <= removed + load["slack_s"],
        ],
        "undisturbed": [
            *(tokens == expected for (tokens, _), expected in zip(seen.before, plain, strict=True)),
            not seen.false_alarms,
            seen.handovers > 0,
        ],
        "resubmitted": seen.resubmitted,
        "handovers": seen.handovers,
    }


async def _run(load: Workload, prompts: list[tuple[int, ...]], params: SamplingParams) -> _Seen:
    """Warms the processes up, serves the prompts undisturbed, and serves them again with a process stopped."""
    seen = _Seen()
    limit_s = load["deadline_s"]
    settings = WorkerConfig(load["model"], load["engine"], load["layers"], threads=1)
    roles: tuple[tuple[str, Role], ...] = (("prefill-0", "prefill"), ("decode-0", "decode"), ("decode-1", "decode"))
    cluster = _Watched(
        [Instance(name, role, settings) for name, role in roles],
        config=ClusterConfig(suspect_s=limit_s, remove_s=2 * limit_s),
    )

    def tell(what: str, view: InstanceView) -> None:
        seen.events.append((what, view.name, time.monotonic() - seen.stopped_at))

    async def serve(own: SamplingParams, salt: str) -> list[Answer]:
        return list(await asyncio.gather(*(_answer(cluster, prompt, own, limit_s, salt) for prompt in prompts)))

    await cluster.start()
    try:
        few = asdict(replace(params, max_tokens=4))
        await asyncio.gather(*(_warm(i, {"prompt": prompts[0], "params": few}) for i in cluster.instances.values()))
        cluster.on_event = tell
        await cluster.shorten(ClusterConfig(load["heartbeat_s"], load["suspect_s"], load["remove_s"]))
        seen.stopped_at = time.monotonic()
        seen.before = await serve(params, "before")
        seen.false_alarms = list(seen.events)
        seen.handovers = cluster.handovers
        stopper = asyncio.create_task(_stop(cluster, seen))
        seen.answers = await serve(params, "after")
        await stopper
        await asyncio.wait_for(_gone(cluster, seen.stopped), limit_s)
    finally:
        for instance in cluster.instances.values():
            if instance.pid and instance.view.name == seen.stopped:
                _signal(instance.pid, signal.SIGCONT)  # so that it can end
        await cluster.close()
    seen.resubmitted = cluster.resubmitted
    return seen


async def _answer(
    cluster: Cluster, prompt: tuple[int, ...], params: SamplingParams, deadline_s: float, salt: str = ""
) -> Answer:
    tokens: list[int] = []
    finish: str | None = None
    try:
        async with asyncio.timeout(deadline_s):
            async for event in cluster.stream(Generation(prompt, params, salt=salt)):
                if event.sample is not None:
                    tokens.append(event.sample.token)
                finish = event.finish or finish
    except TimeoutError:
        finish = "late"
    except (InstanceLost, Overloaded) as error:
        finish = type(error).__name__
    return tokens, finish


async def _stop(cluster: Cluster, seen: _Seen) -> None:
    """Stops the decode instance with most work, once one has some."""
    decode = [i for i in cluster.instances.values() if i.view.role == "decode"]
    while not any(i.view.decode_requests for i in decode):
        await asyncio.sleep(0.01)
    chosen = max(decode, key=lambda i: i.view.decode_requests)
    seen.stopped, seen.stopped_at = chosen.view.name, time.monotonic()
    seen.events.clear()
    _signal(chosen.pid, signal.SIGSTOP)


async def _warm(instance: Instance, message: dict[str, Any]) -> None:
    """Has a process decode once: what it compiles at first use keeps it silent for seconds."""
    async for _ in instance.stream({**message, "id": "warm-up", "salt": "warm-up"}):
        pass


async def _gone(cluster: Cluster, name: str) -> None:
    while cluster.instances[name].view.health != "removed":
        await asyncio.sleep(0.05)


def _signal(pid: int, which: signal.Signals) -> None:
    try:
        os.kill(pid, which)
    except ProcessLookupError:
        return
