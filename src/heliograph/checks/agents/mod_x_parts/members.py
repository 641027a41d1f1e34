"""Membership on virtual time under seeded loss, kills and a partition: who is thought alive by whom."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from heliograph.agents.mod_x import SimulatedSwarm
from heliograph.trials.check import Context

__all__ = ["measure"]


def measure(context: Context) -> Mapping[str, Any]:
    """All agree on the living after a kill, a return, a partition and its end; two runs of a seed are alike."""
    params = context.workload.params
    noise = random.Random(context.seed)
    agreed: list[bool] = []
    alike: list[bool] = []
    differ = 0
    seconds: list[float] = []
    for _ in range(int(params["swarms"])):
        seed, count = noise.randrange(10**9), noise.randrange(4, int(params["members"]) + 1)
        swarm = SimulatedSwarm(count, seed=seed)
        swarm.run(10)
        everybody = set(swarm.names)
        victim = noise.choice(swarm.names)
        swarm.kill(victim)
        began = swarm.sim.now
        while swarm.agree_on() != everybody - {victim} and swarm.sim.now - began < 40:
            swarm.run(0.5)
        agreed.append(swarm.agree_on() == everybody - {victim})
        seconds.append(swarm.sim.now - began)
        swarm.revive(victim)
        swarm.run(40)
        agreed.append(swarm.agree_on() == everybody)
        swarm.split(swarm.names[: count // 2])
        swarm.run(30)
        swarm.heal()
        swarm.run(90)
        agreed.append(swarm.agree_on() == everybody)
        runs = [SimulatedSwarm(count, seed=seed + shift, loss=0.1) for shift in (0, 0, 1)]
        for one in runs:
            one.run(8)
        alike.append(runs[0].log == runs[1].log)
        differ += runs[0].log != runs[2].log
    context.keep("seconds until all know of a death", {"longest": max(seconds), "mean": sum(seconds) / len(seconds)})
    return {"agreed": agreed, "alike": alike, "notices": differ == len(alike)}
