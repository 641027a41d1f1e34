"""Rules against second implementations, and planted mistakes that must be noticed."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from heliograph.agents.core.bus import MemoryBus
from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.interceptor import Rejected, transparency_faults
from heliograph.agents.error_cascade.claims import Claim
from heliograph.agents.error_cascade.dynamics import exact_coverage, simulate_cascade, topology
from heliograph.agents.error_cascade.governor import Governor
from heliograph.agents.error_cascade.judges import ExactJudge
from heliograph.agents.error_cascade.lineage import LineageGraph
from heliograph.agents.error_cascade.replaying import replay_record
from heliograph.trials.check import Context

__all__ = ["measure", "reference_below", "reference_coverage"]


def reference_coverage(a: Any, beta: float, delta: float, rounds: int) -> Any:
    """The process by one matrix over all states, from agent 0."""
    n = len(a)
    states = np.array([[state >> i & 1 for i in range(n)] for state in range(2**n)])
    step = np.ones((2**n, 2**n))
    for before in range(2**n):
        for i in range(n):
            caught = 1 - np.prod([1 - beta * a[i][j] for j in range(n) if states[before, j]])
            on = 1 - delta if states[before, i] else caught
            step[before] *= np.where(states[:, i] == 1, on, 1 - on)
    p, out = np.zeros(2**n), []
    p[1] = 1.0
    for _ in range(rounds):
        out.append(p @ states)
        p = p @ step
    return np.asarray(out)


def reference_below(graph: LineageGraph, start: str) -> set[str]:
    """What hangs on a claim and does not stand on its own, by repeated passes over all edges."""
    found: set[str] = set()
    while True:
        more = {
            edge.target
            for edge in graph.edges
            if (edge.source == start or edge.source in found)
            and edge.kind in ("derived-from", "restates")
            and not graph.nodes[edge.target].grounded
        } - {start}
        if more <= found:
            return found
        found |= more


def _grown(noise: random.Random) -> LineageGraph:
    graph = LineageGraph()
    for step in range(40):
        claim = Claim(f"s{noise.randrange(8)}", "p", noise.randrange(3))
        graph.add(claim, message=f"m{step}", agent=f"a{noise.randrange(4)}", round=step // 8)
        ids = list(graph.nodes)
        for _ in range(2):
            graph.link(noise.choice(ids), noise.choice(ids), noise.choice(("derived-from", "restates", "supports")))
        if noise.random() < 0.1:
            graph.confirm(noise.choice(ids), "known")
    return graph


def _rollbacks(cases: int, noise: random.Random) -> tuple[list[bool], bool]:
    """Nothing below a rejected claim is live; and leaving rollback out would have been seen."""
    right, noticed = [], False
    for _ in range(cases):
        graph = _grown(noise)
        victim = noise.choice(list(graph.nodes))
        below = reference_below(graph, victim)
        noticed |= any(graph.nodes[id_].live for id_ in below)
        done = graph.reject(victim, "false", judge=ExactJudge())
        same = {*done.rejected, *done.suspects} == below | {victim}
        right.append(same and not any(graph.nodes[id_].live for id_ in (*below, victim)) and not graph.faults())
    return right, noticed


def _some(noise: random.Random, sender: str, parents: list[str]) -> Envelope:
    claims = [[f"k{noise.randrange(4)}", "v", noise.randrange(3)] for _ in range(2)]
    return Envelope(topic="t", sender=sender, payload={"claims": claims}, parents=tuple(parents))


async def _race(seed: int) -> tuple[bool, bool, bool]:
    """Random interleavings deliver nothing rejected; a record gives its lineage again, and a changed one does not."""
    noise, late = random.Random(seed), []

    async def look_up(claim: Claim) -> bool | None:
        del claim
        for _ in range(noise.randrange(3)):
            await asyncio.sleep(0)
        return noise.choice((True, False, None))

    governor = Governor("strict", verifier=look_up, max_retries=1)

    class Watched(MemoryBus):
        async def _publish(self, env: Envelope) -> int:
            for item in env.payload.get("claims", ()) if isinstance(env.payload, dict) else ():
                triple = item if isinstance(item, list) else [item["subject"], item["predicate"], item["object"]]
                node = governor.lineage.nodes.get(Claim(*triple).id)
                late.append(node is not None and not node.live)
            return await super()._publish(env)

    ids: list[str] = []
    async with Watched([governor]) as bus:
        governor.attach(bus)

        async def agent(name: str) -> None:
            for _ in range(6):
                await asyncio.sleep(0)
                env = _some(noise, name, ids[-2:])
                with contextlib.suppress(Rejected):
                    await bus.publish(env)
                    ids.append(env.id)

        async def operator() -> None:
            for _ in range(4):
                await asyncio.sleep(0)
                claim = Claim(f"k{noise.randrange(4)}", "v", noise.randrange(3))
                await (governor.confirm(claim) if noise.random() < 0.5 else governor.revoke(claim))

        await asyncio.gather(agent("a"), agent("b"), operator())
    calm = Governor("strict", verifier=lambda claim: claim.object == 1, max_retries=1)

    async def deliver(env: Envelope) -> Envelope:
        return env

    for _ in range(12):
        with contextlib.suppress(Rejected):
            await calm(_some(noise, noise.choice("ab"), []), deliver)
    record = list(calm.record)
    again = await replay_record(record, Governor("strict", verifier=lambda _: None, max_retries=1))
    cut = await replay_record(record[:-4], Governor("strict", verifier=lambda _: None, max_retries=1))
    whole = calm.lineage.to_jsonl()
    return not any(late), again.to_jsonl() == whole, cut.to_jsonl() != whole


def measure(context: Context) -> Mapping[str, Any]:
    """Processes, rollbacks, interleavings, replays and green traffic."""
    cases, noise = context.workload["cases"], random.Random(context.seed)
    spread = []
    for graph in ("star", "chain", "layered", "mesh"):
        a = topology(graph, 4, seed=context.seed)
        for beta, delta in ((0.3, 0.1), (0.9, 0.0)):
            exact = exact_coverage(a, beta, delta, 0, 5)
            spread.append(bool(np.allclose(exact, reference_coverage(a, beta, delta, 5), atol=1e-12)))
            x = simulate_cascade(a, beta, delta, 0, 5, 4000, context.seed).mean(axis=0)
            spread.append(bool(np.abs(x - exact).max() < 5 * 0.5 / 4000**0.5))
    rolled, noticed = _rollbacks(cases, noise)
    races = [asyncio.run(_race(context.seed * 1000 + case)) for case in range(max(2, cases // 10))]
    governor = Governor()
    governor.trust(Claim("k", "v", 1))
    green = [Envelope(topic="t", payload={"claims": [["k", "v", 1], ["K", "v", 1.0]]}) for _ in range(5)]
    return {
        "equal": spread,
        "rolled_back": rolled,
        "never_late": [never for never, _, _ in races],
        "replayed": [same for _, same, _ in races],
        "transparent": [not asyncio.run(transparency_faults(governor, green))],
        "notices": [noticed, any(other for _, _, other in races)],
    }
