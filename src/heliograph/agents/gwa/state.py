"""What a workspace holds and what a tick leaves behind: immutable values, so that an unfinished tick leaves nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Entry", "Memory", "Mode", "NodeState", "TickSnapshot", "WorkspaceState", "memory_key", "pack", "unpack"]

Mode = Literal["RESPONDING", "IDLE"]
Speaker = Literal["system", "visitor", "Me", "memory", "web_search"]


@dataclass(frozen=True)
class Entry:
    """One line of the stage.

    Attributes:
        role: who speaks.
        content: what is said.
        tokens: of the rendered line.
    """

    role: Speaker
    content: str
    tokens: int


@dataclass(frozen=True)
class Memory:
    """One text of the archive.

    Attributes:
        key: hash of the text; the same text is kept once.
        text: remembered.
        kind: "knowledge" for what was extracted, "paste" for a part of a long message.
        tick: that stored it.
        vector: packed embedding, "" where there was none.
    """

    key: str
    text: str
    kind: str
    tick: int
    vector: str = ""


@dataclass(frozen=True)
class WorkspaceState:
    """Everything that a tick may change, but the drive.

    Attributes:
        stage: short-term memory.
        archive: long-term memory.
        pending: the message that is being answered, or "".
        tick: number of the next tick.
        turn_ticks: ticks since the message came.
        idle_ticks: ticks since the last message, without one.
        met: whether a person has ever spoken.
        last: id of the last winner.
    """

    stage: tuple[Entry, ...] = ()
    archive: tuple[Memory, ...] = ()
    pending: str = ""
    tick: int = 0
    turn_ticks: int = 0
    idle_ticks: int = 0
    met: bool = False
    last: str = ""

    @property
    def stage_tokens(self) -> int:
        """Of all lines."""
        return sum(entry.tokens for entry in self.stage)

    def change(self, **changes: Any) -> WorkspaceState:
        """The same with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class NodeState:
    """What is broadcast to a node.

    Attributes:
        mode: whether somebody waits for an answer.
        stage, retrieved: short-term memory, and what was found in the long-term one.
        message: that waits, or "".
        persona: never changed by a tick.
        candidates, critiques: of this tick so far.
        winner: of this tick, for the response.
        text: what is to be condensed, searched or put together.
        count: candidates wanted.
        tick: number.
    """

    mode: Mode
    stage: tuple[Entry, ...]
    message: str = ""
    retrieved: tuple[str, ...] = ()
    persona: str = ""
    candidates: tuple[str, ...] = ()
    critiques: tuple[str, ...] = ()
    winner: str = ""
    text: str = ""
    count: int = 1
    tick: int = 0


@dataclass(frozen=True)
class TickSnapshot:
    """One tick, as it was kept.

    Attributes:
        index: number of the tick, from 0.
        mode: whether somebody waited for an answer.
        entropy, temperature, estimator: of the drive, before this tick's thought.
        queries, retrieved: what was looked up in the archive, and found.
        candidates, critiques, winner, tag: of the tick; no winner where the generator gave none.
        said: the answer, or "".
        parse: how each node's reply was read.
        missed: roles that failed or came too late, and "embedding", "winner" where a screen refused it.
        condensed: how the stage was shortened: "", "summary", or "cut" where no summary could be had.
        stage_tokens: after the tick.
        calls, prompt_tokens, answer_tokens: of all models.
        seed: of the agent.
        id, parents: of the winner's envelope.
    """

    index: int
    mode: Mode
    entropy: float
    temperature: float
    estimator: str
    winner: str
    tag: str
    candidates: tuple[str, ...] = ()
    critiques: tuple[str, ...] = ()
    queries: tuple[str, ...] = ()
    retrieved: tuple[str, ...] = ()
    said: str = ""
    parse: Mapping[str, str] = field(default_factory=dict)
    missed: tuple[str, ...] = ()
    condensed: str = ""
    stage_tokens: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    seed: int = 0
    id: str = ""
    parents: tuple[str, ...] = ()


def memory_key(text: str) -> str:
    """Equal for texts that differ in spaces and case only."""
    return hashlib.blake2b(" ".join(text.lower().split()).encode(), digest_size=12).hexdigest()


def pack(vector: NDArray[Any]) -> str:
    """A vector as text, in float32."""
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()


def unpack(text: str) -> NDArray[np.float64]:
    """The vector that :func:`pack` wrote."""
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float64)
