"""Facts planted into a long session of scripted nodes: what is still there at its end, and how full the stage was."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Mapping
from typing import Any

from heliograph.agents.gwa import GlobalWorkspace, GlobalWorkspaceAgent, GWAConfig, NodeResult
from heliograph.agents.gwa.workspace import count_words
from heliograph.clock import run_virtual
from heliograph.trials.check import Context

__all__ = ["facts", "measure", "session"]

_COLOURS = ("amber", "blue", "copper", "dark", "emerald", "faded", "golden", "hazel")
_PLACES = ("gate", "locker", "cellar", "boathouse", "archive")
_FILLER = ("rain", "lamp", "rope", "tide", "smoke", "stair", "letter", "bridge", "engine", "salt", "window", "clock")
EXTRACTED = 0.8
"""Share of facts that the scripted extraction keeps; a perfect one would decide the matter by construction."""


def facts(count: int, noise: random.Random) -> list[tuple[str, str, str]]:
    """Question, answer and sentence of each fact."""
    pairs = noise.sample(list(itertools.product(_COLOURS, _PLACES)), count)
    rows = []
    for colour, place in pairs:
        code = str(noise.randrange(10_000, 100_000))
        rows.append((f"code of the {colour} {place}", code, f"The code of the {colour} {place} is {code}."))
    return rows


def session(seed: int, ticks: int, planted: int) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Thoughts in order, some of them facts, and the facts."""
    noise = random.Random(seed)
    known = facts(planted, noise)
    places = sorted(noise.sample(range(ticks), planted))
    thoughts = [f"The {' and the '.join(noise.choices(_FILLER, k=6))}." for _ in range(ticks)]
    for place, fact in zip(places, known, strict=True):
        thoughts[place] = fact[2]
    return thoughts, known


def _remember(seed: int, thoughts: list[str], theta: int) -> tuple[GlobalWorkspaceAgent, list[int]]:
    """A mind after the session, and the tokens of its stage after every tick."""
    noise = random.Random(f"{seed} extraction")

    async def generator(state: Any, _: Any) -> NodeResult:
        return NodeResult(f"1. {thoughts[state.tick]}")

    async def summary(*_: Any) -> NodeResult:
        return NodeResult("Things were seen at the harbour.")

    async def knowledge(state: Any, _: Any) -> NodeResult:
        lines = [line.removeprefix("Me: ") for line in state.text.splitlines() if "The code of" in line]
        return NodeResult("\n".join(line for line in lines if noise.random() < EXTRACTED))

    nodes: Any = {"generator": generator, "summary": summary, "knowledge": knowledge}
    config = GWAConfig(theta=theta, candidates=1, max_ticks=len(thoughts), seed=seed)
    mind = GlobalWorkspaceAgent(GlobalWorkspace(config, nodes=nodes))
    sizes: list[int] = []

    async def run() -> None:
        async for tick in mind.run():
            sizes.append(tick.stage_tokens)

    run_virtual(run())
    return mind, sizes


def measure(context: Context) -> Mapping[str, Any]:
    """Share of facts that can be had at the end, and whether the bound held after every tick."""
    params = context.workload.params
    theta, seed = params["theta"], context.seed % 2**31
    thoughts, known = session(seed, params["ticks"], params["facts"])
    longest = max(count_words(f"Me: {thought}") for thought in thoughts)
    if context.contender == "truncation":
        stage: deque[str] = deque()
        sizes, held = [], 0
        for thought in thoughts:
            stage.append(thought)
            held += count_words(f"Me: {thought}")
            while held > theta:
                held -= count_words(f"Me: {stage.popleft()}")
            sizes.append(held)
        text = "\n".join(stage)
        found = [answer in text for _, answer, _ in known]
    else:
        mind, sizes = _remember(seed, thoughts, theta)
        text = "\n".join(entry.content for entry in mind.workspace.state.stage)
        found = [
            answer in text or any(answer in memory for memory in mind.workspace.retrieve([question]))
            for question, answer, _ in known
        ]
    return {
        "recall": sum(found) / len(found),
        "within": [size <= theta + longest for size in sizes],
        "largest_stage": max(sizes),
    }
