"""What must be equal: the drive's law, its closed form, the published log, and minds that were stopped or killed."""

from __future__ import annotations

import asyncio
import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from heliograph.agents.gwa import (
    EntropyDrive,
    GlobalWorkspace,
    GlobalWorkspaceAgent,
    GWAConfig,
    NodeResult,
    entropy_floor,
    reachable,
)
from heliograph.clock import run_virtual
from heliograph.trials.check import Context

__all__ = ["DEMO_ENTROPIES", "demo", "law", "measure_demo", "measure_law", "measure_minds", "plain_law"]

CLUSTERS, TAUS = (3, 5, 8), (0.05, 0.1, 0.5, 1.0)
DEMO_ENTROPIES = (1.61, 1.26, 1.23, 1.20, 1.20, 1.19, 1.20)
DEMO_BASE, DEMO_TEMPERATURES = 0.55, (0.66, 0.67)
CLOSE = 1e-6


def plain_law(distances: Sequence[float], tau: float) -> float:
    """Temperature from distances, in plain floats, at the published base, alpha and beta."""
    rows = [math.exp(-d / tau) for d in distances]
    shares = [row / math.fsum(rows) for row in rows]
    entropy = -math.fsum(p * math.log(p) for p in shares if p > 0)
    return min(0.7 + 1.3 * math.exp(-2.0 * entropy), 2.0)


def law(cases: int, seed: int) -> tuple[list[bool], bool]:
    """Drives against the plain law and the closed form, over random and repeated thoughts; planted mistakes noticed."""
    rng, fine, noticed = np.random.default_rng(seed), [], False
    for clusters in CLUSTERS:
        for tau in TAUS:
            drive = EntropyDrive(clusters, tau, seed=seed)
            dimensions = int(rng.integers(clusters, 40))
            low, high = plain_law([1.0] * clusters, tau), plain_law([0.0] + [2.0] * (clusters - 1), tau)
            for thought in rng.normal(size=(cases, dimensions)).repeat(2, axis=0):
                drive.update(thought)
                unit = thought / np.linalg.norm(thought)
                distances = [1 - float(np.dot(unit, row)) for row in drive.state_dict()["centres"]]
                expected = plain_law(distances, tau)
                fine.append(abs(drive.temperature() - expected) < CLOSE)
                fine.append(low - CLOSE <= drive.temperature() <= high + CLOSE)
                noticed |= abs(plain_law(distances, tau * 1.1) - drive.temperature()) > CLOSE
            axes = np.eye(clusters)
            drive.load_state_dict({**drive.state_dict(), "centres": axes.tolist(), "recent": [axes[0].tolist()]})
            drive.update(axes[0])
            reach = reachable(GWAConfig(clusters=clusters, tau=tau))
            fine.append(abs(drive.entropy() - entropy_floor(clusters, tau)) < CLOSE)
            fine.append(abs(drive.temperature() - reach.high) < CLOSE and abs(low - reach.low) < CLOSE)
    return fine, noticed


def measure_law(context: Context) -> Mapping[str, Any]:
    """The law, and what it can reach at the published settings."""
    fine, noticed = law(context.workload["cases"], context.seed % 2**31)
    reach = reachable(GWAConfig())
    context.keep("temperatures that the published settings reach", [round(reach.low, 4), round(reach.high, 4)])
    context.keep("published settings are inert", reach.inert)
    return {"equal": fine, "notices": noticed, "reach": reach.high - reach.low}


def demo(tau: float, entropies: Sequence[float], rounding: float = 0.005) -> tuple[list[bool], list[bool]]:
    """Whether a published log of H and T fits the equations: its entropies are reachable, its temperatures follow.

    A thought lies between its own centre (H at its floor) and one that just moved half the way to it, the other
    centres being orthogonal.
    """
    half = math.cos(math.pi / 4)
    rows = [math.exp(-(1 - half) / tau)] + [math.exp(-1 / tau)] * 4
    shares = [row / sum(rows) for row in rows]
    highest = -sum(p * math.log(p) for p in shares)
    start = abs(entropies[0] - math.log(5)) <= rounding
    reached = [entropy_floor(5, tau) - rounding <= h <= highest + rounding for h in entropies[1:]]
    level = [max(entropies[3:]) - min(entropies[3:]) <= 0.02]
    temperatures = [DEMO_BASE + 1.3 * math.exp(-2.0 * h) for h in entropies[2:]]
    fits = [DEMO_TEMPERATURES[0] - rounding <= t <= DEMO_TEMPERATURES[1] + rounding for t in temperatures]
    # Before any thought the temperature is the base, whatever it is set to.
    fits.append(EntropyDrive(base_temperature=DEMO_BASE).temperature() == DEMO_BASE)
    return [start, *reached, *level], fits


def measure_demo(context: Context) -> Mapping[str, Any]:
    """The published log at the published settings, and at a sharper tau, where it cannot be."""
    entropies, temperatures = demo(context.workload["tau"], DEMO_ENTROPIES)
    other, _ = demo(0.1, DEMO_ENTROPIES)
    return {"entropies": entropies, "temperatures": temperatures, "refuses": not all(other)}


async def _slow(state: Any, ask: Any) -> NodeResult:
    await asyncio.sleep(0.1 + ask.seed % 7 / 10)
    return NodeResult(f"1. thing{ask.seed % 9973} and {len(state.stage)} at {ask.temperature:.6f}")


def _mind(seed: int, journal: Path | None = None, **options: Any) -> GlobalWorkspaceAgent:
    nodes: Any = {"generator": _slow, "critic": _slow, "meta": _slow, "summary": _slow}
    config = GWAConfig(seed=seed, theta=120, tau=0.1, max_ticks=30)
    return GlobalWorkspaceAgent(GlobalWorkspace(config, nodes=nodes, journal=journal, fsync="never", **options))


def _interrupts(cases: int, noise: random.Random) -> tuple[list[bool], bool]:
    """Idle ticks cancelled at random moments: the state is that after the last whole tick; and were any cut short?"""

    async def one(seed: int, moment: float) -> tuple[bool, bool]:
        mind = _mind(seed)
        whole = [mind.workspace.snapshot()]
        drive = [mind.workspace.drive.state_dict()]

        async def think() -> None:
            async for _ in mind.run():
                whole.append(mind.workspace.snapshot())
                drive.append(mind.workspace.drive.state_dict())

        task = asyncio.create_task(think())
        await asyncio.sleep(moment)
        cut = not task.done()
        if noise.random() < 0.5:
            task.cancel()
        else:
            mind.cancel()
        await asyncio.gather(task, return_exceptions=True)
        same = mind.workspace.snapshot() == whole[-1] and mind.workspace.drive.state_dict() == drive[-1]
        lines = all(entry.content.strip() for entry in mind.workspace.state.stage)
        return same and lines, cut

    found = [run_virtual(one(noise.randrange(2**31), noise.uniform(0, 8))) for _ in range(cases)]
    return [same for same, _ in found], any(cut for _, cut in found)


def _kills(cases: int, noise: random.Random, folder: Path) -> tuple[list[bool], bool]:
    """A journal cut at a random byte and gone on with equals one that was never cut."""

    async def think(mind: GlobalWorkspaceAgent, ticks: int) -> Any:
        async with mind:
            if ticks:
                async for _ in mind.run(max_ticks=ticks):
                    pass
            return mind.workspace.state, mind.workspace.drive.state_dict()

    seed, path = noise.randrange(2**31), folder / "whole.jsonl"
    expected = run_virtual(think(_mind(seed, path), 9))
    whole, fine = path.read_bytes(), []
    for number in range(cases):
        torn = folder / f"torn{number}.jsonl"
        torn.write_bytes(whole[: noise.randrange(1, len(whole) + 1)])
        mind = _mind(seed, torn)
        fine.append(run_virtual(think(mind, 9 - mind.workspace.state.tick)) == expected)
    other = run_virtual(think(_mind(seed + 1), 9))
    return fine, other != expected


def measure_minds(context: Context) -> Mapping[str, Any]:
    """Interruptions and kills."""
    noise, cases = random.Random(context.seed), context.workload["cases"]
    stopped, cut = _interrupts(cases, noise)
    context.progress(0.7, f"{cases} interruptions")
    with tempfile.TemporaryDirectory() as folder:
        resumed, differs = _kills(max(cases // 4, 5), noise, Path(folder))
    return {"no_trace": stopped, "resumed": resumed, "notices": cut and differs}
