"""Reads a journal again without a model: does the drive follow its law, and how varied were the thoughts?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heliograph.agents.core.audit import verify
from heliograph.agents.gwa.config import GWAConfig
from heliograph.agents.gwa.drive import EntropyDrive
from heliograph.agents.gwa.state import unpack
from heliograph.agents.gwa.workspace import read_journal
from heliograph.errors import BadInput

__all__ = ["Replay", "distinct_pairs", "repetition", "replay_journal"]


@dataclass(frozen=True)
class Replay:
    """What a journal says.

    Attributes:
        name: of the workspace.
        ticks, messages, answers, skipped: counts; skipped are ticks without a winner.
        entropies, temperatures: as recorded, by tick.
        largest_difference: between them and the drive run again over the recorded thoughts.
        distinct_2: different pairs of words among all pairs of the winners.
        repetition: mean of the highest cosine to the last five winners.
        missed: ticks by role that failed.
        parses: replies by role and way of reading.
        calls: of models.
    """

    name: str
    ticks: int
    messages: int
    answers: int
    skipped: int
    entropies: tuple[float, ...]
    temperatures: tuple[float, ...]
    largest_difference: float
    distinct_2: float
    repetition: float
    missed: dict[str, int]
    parses: dict[str, int]
    calls: int


def distinct_pairs(texts: Sequence[str]) -> float:
    """Different pairs of neighbouring words among all; 0 where there are none."""
    pairs = [pair for text in texts for words in (text.lower().split(),) for pair in itertools.pairwise(words)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def repetition(rows: Sequence[NDArray[np.float64]], back: int = 5) -> float:
    """Mean over thoughts of the highest cosine to one of the ``back`` before it; 0 for fewer than two."""
    units = [row / max(float(np.linalg.norm(row)), 1e-12) for row in rows]
    highest = [max(float(units[n] @ other) for other in units[max(0, n - back) : n]) for n in range(1, len(units))]
    return math.fsum(highest) / len(highest) if highest else 0.0


def replay_journal(path: str | Path) -> Replay:
    """Checks a journal and measures it.

    Raises:
        BadInput: it cannot be read, is damaged, or is no journal of a workspace.
    """
    rows = read_journal(path)
    found = verify(path)
    if not found.ok:
        raise BadInput(f"{path}: line {found.bad_line} is bad: {found.reason}")
    if not rows or rows[0]["event"] != "open":
        raise BadInput(f"{path} holds no opening line of a workspace's journal")
    config = GWAConfig.from_mapping(rows[0]["config"])
    drive = EntropyDrive.from_config(config)
    ticks, vectors, worst, messages = [], [], 0.0, 0
    missed: dict[str, int] = {}
    parses: dict[str, int] = {}
    try:
        for row in rows[1:]:
            if row["event"] == "input":
                messages += 1
                drive.reset_centers()
            if row["event"] != "tick":
                continue
            snap = row["snapshot"]
            worst = max(
                worst, abs(snap["entropy"] - drive.entropy()), abs(snap["temperature"] - drive.temperature())
            )  # fmt: skip
            ticks.append(snap)
            for role in snap["missed"]:
                missed[role] = missed.get(role, 0) + 1
            for role, how in snap["parse"].items():
                parses[f"{role}:{how}"] = parses.get(f"{role}:{how}", 0) + 1
            if row["vector"]:
                vectors.append(unpack(row["vector"]))
                drive.update(vectors[-1])
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} holds a tick in another form: {error!r}") from None
    return Replay(
        rows[0]["name"],
        len(ticks),
        messages,
        sum(bool(snap["said"]) for snap in ticks),
        sum(not snap["winner"] for snap in ticks),
        tuple(snap["entropy"] for snap in ticks),
        tuple(snap["temperature"] for snap in ticks),
        worst,
        distinct_pairs([snap["winner"] for snap in ticks]),
        repetition(vectors),
        missed,
        parses,
        sum(snap["calls"] for snap in ticks),
    )
