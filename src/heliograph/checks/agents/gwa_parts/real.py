"""A small language model as the mind: two drives, a matched constant, and a group chat of the same number of tokens."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from heliograph.agents.core.lm import LM, LocalGGUF
from heliograph.agents.gwa import (
    GlobalWorkspace,
    GlobalWorkspaceAgent,
    GWAConfig,
    HashedWords,
    ModelNode,
    replay_journal,
)
from heliograph.agents.gwa.drive import EntropyDrive
from heliograph.agents.gwa.nodes import ROLES
from heliograph.agents.gwa.replay import distinct_pairs, repetition
from heliograph.agents.gwa.workspace import GENESIS_SCENES
from heliograph.trials.check import Context

__all__ = ["chat", "likelihood", "measure", "mind", "variety"]

SCORED_AFTER = "A thought:"
CHAT_ROLES = ("Attention", "Generator", "Critic", "Meta", "Response")


@dataclass(frozen=True)
class Thoughts:
    """What one arm thought.

    Attributes:
        texts: in order.
        temperatures: at which each was drawn.
        exact: whether the journal replays to the same temperatures.
    """

    texts: tuple[str, ...]
    temperatures: tuple[float, ...]
    exact: bool = True


def mind(model: LM, params: Mapping[str, Any], seed: int, **settings: Any) -> Thoughts:
    """Idle ticks of a workspace whose ``roles`` are played by the model; the others are left out."""
    config = GWAConfig.from_mapping(
        {
            "seed": seed,
            "candidates": params["candidates"],
            "theta": params["theta"],
            "max_tokens": dict.fromkeys(ROLES, params["tokens"]),
            "deadline_s": 600.0,
            **settings,
        }
    )
    node = ModelNode(model)
    nodes: Any = dict.fromkeys(params["roles"], node)

    async def run(path: Path) -> Thoughts:
        workspace = GlobalWorkspace(config, nodes=nodes, embed=HashedWords(), journal=path, fsync="never")
        async with GlobalWorkspaceAgent(workspace) as agent:
            ticks = [tick async for tick in agent.run(max_ticks=params["ticks"])]
        exact = replay_journal(path).largest_difference == 0.0
        return Thoughts(tuple(t.winner for t in ticks if t.winner), tuple(t.temperature for t in ticks), exact)

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(run(Path(folder) / "journal.jsonl"))


def chat(model: LM, params: Mapping[str, Any], seed: int, calls: int, temperature: float = 0.7) -> Thoughts:
    """Round-robin over one transcript: every reply is appended, nothing is picked, the temperature stays."""
    transcript = [f"Scene: {GENESIS_SCENES[seed % len(GENESIS_SCENES)]}"]
    for turn in range(calls):
        role = CHAT_ROLES[turn % len(CHAT_ROLES)]
        recent = transcript[-max(params["theta"] // 30, 2) :]
        prompt = [
            {"role": "system", "content": f"You are the {role} of a group that thinks aloud about concrete things."},
            {"role": "user", "content": "\n".join(recent) + "\nWrite one short next thought."},
        ]
        reply = model.generate(prompt, max_tokens=params["tokens"], temperature=temperature, seed=seed * 1000 + turn)
        transcript.append(f"{role}: {reply.text.strip() or '...'}")
    texts = tuple(line.split(": ", 1)[1] for line in transcript[1:])
    return Thoughts(texts, (temperature,) * calls)


def variety(texts: Sequence[str]) -> dict[str, float]:
    """Different pairs of words, likeness to recent thoughts, and the window's entropy."""
    rows = HashedWords().embed([text for text in texts if text.strip()])
    drive = EntropyDrive(estimator="window", clusters=3)
    for row in rows:
        drive.update(row)
    return {"distinct_2": distinct_pairs(texts), "repetition": repetition(list(rows)), "entropy": drive.entropy()}


def likelihood(model: LM, texts: Sequence[str]) -> float:
    """Mean log-probability a token, under the model itself at temperature 1 and one context for all: is it language?"""
    return float(np.mean(model.score(SCORED_AFTER, [f" {text.strip()}" for text in texts if text.strip()])))


def measure(context: Context) -> Mapping[str, Any]:
    """All arms on one seed, so that the model is loaded once."""
    params, seed = context.workload.params, context.seed % 2**31
    model = LocalGGUF()
    if context.device == "cuda":
        model.model.decoder.to("cuda")
    published = mind(model, params, seed)
    context.progress(0.25, "published drive")
    sharp = mind(model, params, seed, tau=0.1)
    context.progress(0.5, "sharp drive")
    constant = float(np.mean(sharp.temperatures))
    matched = mind(model, params, seed, alpha=0.0, base_temperature=constant)
    context.progress(0.75, "matched constant")
    # As many calls as the minds' ticks make, so that the chat has the same budget of tokens.
    group = chat(model, params, seed, params["ticks"] * len(params["roles"]))
    again = mind(model, {**params, "ticks": 1}, seed, alpha=0.0, base_temperature=constant)
    found: dict[str, Any] = {}
    for name, arm in {"published": published, "sharp": sharp, "matched": matched, "chat": group}.items():
        found |= {f"{name}_{key}": value for key, value in variety(arm.texts).items()}
        found[f"{name}_likelihood"] = likelihood(model, arm.texts)
        context.keep(name, list(arm.texts))
    return {
        **found,
        "mean_temperature": constant,
        "less_repetition_than_chat": found["chat_repetition"] - found["published_repetition"],
        "sharp_less_repetition_than_chat": found["chat_repetition"] - found["sharp_repetition"],
        "sharp_less_repetition_than_matched": found["matched_repetition"] - found["sharp_repetition"],
        "likelihood_gained": found["published_likelihood"] - found["chat_likelihood"],
        "sharp_likelihood_gained": found["sharp_likelihood"] - found["chat_likelihood"],
        "exact": [published.exact, sharp.exact, matched.exact, again.texts == matched.texts[: len(again.texts)]],
        "constant_stays": len(set(matched.temperatures)) == 1,
    }
