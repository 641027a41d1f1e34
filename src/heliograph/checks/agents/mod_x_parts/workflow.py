"""Travel goals whose providers fail: planned anew, or carried out as planned once; and runs killed and continued."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heliograph.agents.mod_x import CallFailed, Capability, NoPlan, OnceStore, WorkflowEngine
from heliograph.agents.mod_x import workflow as module
from heliograph.trials.check import Context

__all__ = ["measure", "resume"]

STAGES = (
    ("find_flight", ("city", "dates"), "flight"),
    ("find_hotel", ("city", "dates"), "hotel"),
    ("find_car", ("city", "dates"), "car"),
    ("check_calendar", ("dates",), "free_days"),
    ("check_budget", ("flight", "hotel", "car", "budget"), "affordable"),
    ("make_itinerary", ("affordable", "free_days"), "itinerary"),
)


def _providers(noise: random.Random) -> list[Capability]:
    """Two to four providers of each stage, at different prices; the last stages write."""
    return [
        Capability(
            name=name,
            agent=f"{name}-{number}",
            inputs={need: need for need in needs},
            outputs=(gives,),
            price=round(noise.uniform(1, 5), 3),
            effects="write" if name == "make_itinerary" else "read",
        )
        for name, needs, gives in STAGES
        for number in range(noise.randrange(2, 5))
    ]


class _World:
    def __init__(self, broken: set[str]) -> None:
        self.broken, self.store = broken, OnceStore()
        self.done: Counter[str] = Counter()

    async def call(self, capability: Capability, arguments: dict[str, Any], key: str) -> Any:
        if capability.id in self.broken:
            raise CallFailed("the provider is gone", "unreachable")

        async def work() -> Any:
            self.done[capability.id] += 1
            return {"by": capability.id, "from": sorted(arguments)}

        return await self.store.run(key, work)


VALUES = {"city": "Rome", "dates": "May", "budget": 900}


def measure(context: Context) -> Mapping[str, Any]:
    """Share of goals reached; failing providers are drawn among all, the same for all contenders."""
    params = context.workload.params
    noise = random.Random(context.seed)
    reached = 0
    goals = int(params["goals"])
    for number in range(goals):
        providers = _providers(noise)
        broken = {one.id for one in noise.sample(providers, int(params["failures"]))}
        world = _World(broken)
        replans = {"fixed": 0, "one spare": 1}.get(context.contender, 8)
        engine = WorkflowEngine(lambda: providers, world.call, max_replans=replans)  # noqa: B023
        outcome = asyncio.run(engine.achieve("itinerary", VALUES, run=f"g{number}", grants=("read", "write")))
        reached += outcome.ok
    return {"reached": reached / goals}


class _Killed(BaseException):
    pass


def resume(context: Context) -> Mapping[str, Any]:
    """Runs whose process dies at a random write of the journal, once or twice, and is started again."""
    noise = random.Random(context.seed)
    once: list[bool] = []
    finished: list[bool] = []
    planted = 0
    write = module._write_line
    with tempfile.TemporaryDirectory() as folder:
        for number in range(int(context.workload.params["runs"])):
            providers = _providers(noise)
            world = _World(set())
            journal = Path(folder) / f"journal-{number}"
            for deaths_left in range(noise.randrange(1, 3), -1, -1):
                left = noise.randrange(1, 12) if deaths_left else -1
                late = noise.random() < 0.5

                state = [left]

                def deadly(path: Path, record: Mapping[str, Any], state: list[int] = state, late: bool = late) -> None:
                    state[0] -= 1
                    if state[0] == 0 and not late:
                        raise _Killed
                    write(path, record)
                    if state[0] == 0:
                        raise _Killed

                module._write_line = deadly
                engine = WorkflowEngine(lambda: providers, world.call, journal=journal)  # noqa: B023
                try:
                    outcome = asyncio.run(engine.achieve("itinerary", VALUES, run="r", grants=("read", "write")))
                    finished.append(outcome.ok)
                    break
                except _Killed:
                    continue
                finally:
                    module._write_line = write
            once.append(max(world.done.values()) == 1 and len(world.done) == len(STAGES))
            # The control: the same death without a journal and without keys does steps again.
            again = _World(set())
            for _ in range(2):
                again.store = OnceStore()
                bare = WorkflowEngine(lambda: providers, again.call)  # noqa: B023
                asyncio.run(bare.achieve("itinerary", VALUES, run="r", grants=("read", "write")))
            planted += max(again.done.values()) == 2
    try:
        module.make_plan([], VALUES, "itinerary")
        explained = False
    except NoPlan as error:
        explained = error.missing == ("itinerary",)
    return {"once": [*once, *finished, explained], "notices": planted == len(once)}
