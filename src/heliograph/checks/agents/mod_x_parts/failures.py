"""Peers on virtual time under steady load, one of them killed: without a hub, and through one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

from heliograph.agents.core.identity import Identity
from heliograph.agents.mod_x import (
    CallFailed,
    Capability,
    CentralHub,
    HashedNgrams,
    MemoryMesh,
    MemoryNetwork,
    ModXPeer,
)
from heliograph.agents.mod_x.peer import call_any
from heliograph.clock import run_virtual
from heliograph.trials.check import Context

__all__ = ["measure"]

WARM_S, AFTER_S, TIMEOUT_S, DEADLINE_S = 10.0, 10.0, 0.5, 2.0


async def _scenario(arm: str, victim: str, peers_count: int, seed: int) -> tuple[int, int, float]:
    """Good calls, all calls, and seconds from the kill to the last failure."""
    loop = asyncio.get_running_loop()
    names = [f"p{number:02d}" for number in range(peers_count)]
    identities = {name: Identity.from_seed(f"{seed}/{name}".encode().ljust(32, b".")[:32]) for name in names}
    keys = {name: identity.public for name, identity in identities.items()}
    network = MemoryNetwork()
    peers = {
        name: ModXPeer(
            name,
            identities[name],
            MemoryMesh(network, name),
            keys=keys,
            seeds={"p00": "p00"},
            now=loop.time,
            embedder=HashedNgrams(),
            tick_s=0.2,
            seed=seed,
        )
        for name in names
    }

    async def serve(arguments: dict[str, Any]) -> Any:
        return arguments["n"]

    # Three peers offer each service; p00 offers none in either arm, so that its death costs no provider.
    providers = names[1:]
    services = [f"service-{number}" for number in range(len(providers))]
    for number, service in enumerate(services):
        for copy in range(3):
            capability = Capability(name=service, agent="", inputs={"n": "number"})
            peers[providers[(number + copy) % len(providers)]].offer(capability, serve)
    if arm == "hub":
        CentralHub(peers["p00"], timeout_s=TIMEOUT_S)
    for peer in peers.values():
        await peer.start()
    await asyncio.sleep(WARM_S)
    noise = random.Random(seed)
    good = total = 0
    last_failure = 0.0

    async def ask(client: ModXPeer, service: str, at: float) -> None:
        nonlocal good, total, last_failure
        total += 1
        try:
            async with asyncio.timeout(DEADLINE_S):
                if arm == "hub":
                    body = {"name": service, "arguments": {"n": 1}}
                    await client.call("p00/hub.relay", body, timeout_s=DEADLINE_S)
                else:
                    await call_any(client, service, {"n": 1}, 3, TIMEOUT_S)
            good += 1
        except (CallFailed, TimeoutError):
            last_failure = max(last_failure, at)

    if victim:
        network.down.add(victim)
    start = loop.time()
    asked = []
    while loop.time() - start < AFTER_S:
        for name in names[1:]:
            if name != victim:
                asked.append(asyncio.ensure_future(ask(peers[name], noise.choice(services), loop.time() - start)))
        await asyncio.sleep(0.5)
    await asyncio.gather(*asked)
    for peer in peers.values():
        await peer.stop(farewell=False)
    return good, total, last_failure


def measure(context: Context) -> Mapping[str, Any]:
    """Share of calls answered within two seconds in the ten seconds after a kill, the worst of all victims."""
    params = context.workload.params
    worst, longest = 1.0, 0.0
    kept = {}
    victims = ["", *(("p00", "p01") if params["kill"] else ())]
    for victim in victims if not params["kill"] else victims[1:]:
        good, total, last = run_virtual(_scenario(context.contender, victim, int(params["peers"]), context.seed))
        worst, longest = min(worst, good / total), max(longest, last)
        kept[victim or "nobody"] = {"answered": good / total, "calls": total, "last failure, s": last}
    context.keep("by victim", kept)
    return {"available": worst, "last_failure_s": longest}
