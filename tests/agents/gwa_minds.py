"""Rule-made minds for the tests of the workspace agent."""

from __future__ import annotations

from typing import Any

from heliograph.agents.core.lm import Scripted
from heliograph.agents.gwa import GlobalWorkspace, GWAConfig, NodeResult

MARKS = {
    "attention": "Name at most two",
    "generator": "numbered list of",
    "critic": "criticism",
    "meta": "Pick the best",
    "response": "Say the winning",
    "summary": "Summarise the stage",
    "knowledge": "List the facts",
    "query": "Write one search query",
    "synthesis": "Put the search results",
}
DEFAULTS = {
    "attention": "none",
    "generator": "1. The crane stops.\n2. A gull lands.\n3. The tide turns.",
    "critic": "1. Critique: dull\n2. Critique: fine\n3. Critique: slow",
    "meta": "!!2!! [THINK_MORE]",
    "response": "It is so.",
    "summary": "A harbour, in short.",
    "knowledge": "The crane is red.",
    "query": "tides",
    "synthesis": "Tides turn twice a day.",
}


def scripted(**answers: Any) -> Scripted:
    """A model that answers by role; an answer may be a function of the prompt."""
    table = {**DEFAULTS, **answers}

    def rule(prompt: str) -> str:
        role = next(role for role, mark in MARKS.items() if mark in prompt)
        answer = table[role]
        return answer(prompt) if callable(answer) else answer

    return Scripted(rule)


async def drawn(state: Any, ask: Any) -> NodeResult:
    """A generator whose thoughts depend on seed, temperature and stage, as a model's do."""
    size = sum(len(entry.content) for entry in state.stage)
    return NodeResult(
        f"1. word{ask.seed % 97} thing{(ask.seed + size) % 89} at{round(ask.temperature * 1e6) % 83}", 5, 7
    )


def workspace(config: dict[str, Any] | None = None, model: Scripted | None = None, **options: Any) -> GlobalWorkspace:
    return GlobalWorkspace(GWAConfig.from_mapping(config or {}), model or scripted(), **options)


async def take(agent: Any, message: str | None = None, **options: Any) -> list[Any]:
    return [tick async for tick in agent.run(message, **options)]
