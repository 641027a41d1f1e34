"""The stage and the archive, and the one writer of both (arXiv:2604.08206).

A tick is kept by one line of a journal, then by one assignment: it is there whole, or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from heliograph.agents.core.audit import AuditLog
from heliograph.agents.core.bus import Bus, check_subject
from heliograph.agents.core.interceptor import Interceptor
from heliograph.agents.core.lm import LM
from heliograph.agents.gwa.config import GWAConfig
from heliograph.agents.gwa.drive import EntropyDrive
from heliograph.agents.gwa.embedding import Embedder, HashedWords
from heliograph.agents.gwa.nodes import ROLES, ModelNode, Role, WorkspaceNode
from heliograph.agents.gwa.parsing import clean_text
from heliograph.agents.gwa.state import (
    Entry,
    Memory,
    Speaker,
    TickSnapshot,
    WorkspaceState,
    memory_key,
    pack,
    unpack,
)
from heliograph.errors import BadInput
from heliograph.random import CounterRng

__all__ = ["GENESIS_SCENES", "GlobalWorkspace", "Search", "count_words", "read_journal"]

Search = Callable[[str], Awaitable[Sequence[str]]]
"""Looks something up outside."""

GENESIS_SCENES = (
    "Rain on a harbour at dusk; a crane swings one last container ashore.",
    "A repair bench with a clock in pieces, one gear missing.",
    "A greenhouse at dawn; the seedlings nearest to the door lean inwards.",
    "A night train stands between stations; somebody counts the lamps outside.",
    "A kitchen table with a map, three coins and a letter not yet opened.",
    "A quarry after work; water has begun to fill the lowest step.",
)
FRAME_SHIFT = "A real person speaks now."
_LOW: tuple[Role, ...] = ("attention", "response", "query", "synthesis")
_DRIVE_FIELDS = (
    "seed", "clusters", "base_temperature", "alpha", "beta", "tau", "ema", "entropy", "entropy_window", "same_topic",
    "max_temperature", "theta",
)  # fmt: skip
_PIECE = re.compile(r"\w{1,6}|[^\w\s]")


def count_words(text: str) -> int:
    """Tokens where no tokenizer is at hand: pieces of at most six letters, and signs."""
    return len(_PIECE.findall(text))


def read_journal(path: str | Path) -> list[dict[str, Any]]:
    """The whole lines of a journal.

    Raises:
        BadInput: it cannot be read, or is none.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from None
    rows = []
    for number, line in enumerate(raw.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            row = json.loads(line)
        except ValueError:
            raise BadInput(f"{path}: line {number} is not JSON") from None
        if not isinstance(row, dict) or row.get("event") not in ("open", "input", "tick", "rollback"):
            raise BadInput(f"{path}: line {number} is no line of a workspace's journal")
        rows.append(row)
    return rows


class GlobalWorkspace:
    """Stage, archive, drive and nodes of one mind.

    Args:
        config: settings.
        low: model for attention, response and search.
        high: model for the other roles; ``low`` by default.
        embed: for thoughts and memories; hashed words by default.
        name: one token of the bus's subjects.
        nodes: by role, instead of models.
        journal: file that every message and tick is written to before it counts. An existing one is continued.
        bus: on which ticks are told.
        search: for WEB_SEARCH; without one a search fails, in words.
        screens: see each winner before it is written, and may rewrite or refuse it.
        count: tokens of a text; by the model's tokenizer where it has one.
        genesis: the first line of the stage; drawn from six scenes by default.
        fsync: of the journal: "always" survives a power cut, "interval" and "never" the death of the process.

    Raises:
        BadInput: nobody thinks, the stage does not fit the model, or a journal is damaged or of another agent; nothing
            was written.
    """

    def __init__(
        self,
        config: GWAConfig | None = None,
        low: LM | None = None,
        high: LM | None = None,
        embed: Embedder | None = None,
        *,
        name: str = "ws",
        nodes: Mapping[Role, WorkspaceNode] | None = None,
        journal: str | Path | None = None,
        bus: Bus | None = None,
        search: Search | None = None,
        screens: Sequence[Interceptor] = (),
        count: Callable[[str], int] | None = None,
        genesis: str = "",
        fsync: str = "interval",
    ) -> None:
        self.config, self.name, self.bus, self.search = config or GWAConfig(), name, bus, search
        if len(check_subject(name, wildcards=False)) != 1:
            raise BadInput(f"a workspace's name is one token without dots; got {name!r}")
        self.screens = tuple(screens)
        low, high = low or high, high or low
        self.nodes: dict[Role, WorkspaceNode] = dict(nodes or {})
        odd = [role for role in self.nodes if role not in ROLES]
        if odd:
            raise BadInput(f"no such role: {', '.join(odd)}; roles are {', '.join(ROLES)}")
        for role in ROLES:
            model = low if role in _LOW else high
            if role not in self.nodes and model is not None:
                self.nodes[role] = ModelNode(model)
        if "generator" not in self.nodes:
            raise BadInput("nobody thinks: give low=, high= or nodes={'generator': ...}")
        room = min(filter(None, map(_context_of, (low, high))), default=0)
        needed = self.config.theta + max(self.config.max_tokens.values())
        if room and needed >= room:
            raise BadInput(
                f"a stage of {self.config.theta} tokens and an answer need {needed} of the model's {room}; lower theta "
                "or max_tokens"
            )
        self.embedder: Embedder = embed or HashedWords()
        self.count = count or _tokenizer_of(high) or count_words
        self.drive = EntropyDrive.from_config(self.config)
        scene = clean_text(genesis, "the genesis") if genesis else _scene(self.config.seed)
        self._state = WorkspaceState(stage=(self.entry("system", scene),))
        self._matrix: tuple[int, Any] = (0, None)
        self.recovered_bytes = 0
        self._journal: AuditLog | None = None
        if journal is not None:
            self._open(Path(journal), fsync)

    @property
    def state(self) -> WorkspaceState:
        """As the last kept tick left it."""
        return self._state

    def snapshot(self) -> WorkspaceState:
        """The state as a value; later ticks do not change it."""
        return self._state

    def entry(self, role: Speaker, content: str) -> Entry:
        """A line of the stage, cut where it alone would fill half of it."""
        content = self.cut(content, max(self.config.theta // 2, 8))
        return Entry(role, content, self.count(f"{role}: {content}"))

    def cut(self, text: str, limit: int) -> str:
        """The longest start of whole words with at most ``limit`` tokens."""
        if len(text) <= limit or self.count(text) <= limit:
            return text
        low, high = 0, min(len(text), limit * 32)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.count(text[:middle]) <= limit - 1 else (low, middle - 1)
        kept = text[:low]
        return (kept.rsplit(None, 1)[0] if " " in kept.strip() else kept) + "…"

    def accept(self, message: str) -> str:
        """Takes a message from outside; once this returns it is kept, and a restart goes on answering it.

        A message too long for the stage goes into the archive in parts, and its start becomes the message.

        Raises:
            BadInput: empty, or no text; nothing was written.
        """
        text = clean_text(message)
        parts: tuple[Memory, ...] = ()
        limit = max(self.config.theta // 2, 8)
        short = self.cut(text, limit)
        if short != text:
            size = max(self.config.theta, 1000)  # characters: about a quarter of a large stage
            parts = self.memories([text[at : at + size] for at in range(0, len(text), size)], "paste")
            known = {memory.key for memory in self._state.archive}
            parts = tuple(memory for memory in parts if memory.key not in known)
        row = {"event": "input", "text": short, "archive": msgspec.to_builtins(parts)}
        self._write(row)
        self._apply(row)
        return short

    def memories(self, texts: Sequence[str], kind: str) -> tuple[Memory, ...]:
        """Texts with their embeddings, each once; without embeddings where none can be had."""
        unique = {memory_key(text): text.strip() for text in texts if text.strip()}
        if not unique:
            return ()
        try:
            rows = [pack(row) if np.isfinite(row).all() else "" for row in self.embedder.embed(list(unique.values()))]
        except Exception:
            rows = [""] * len(unique)
        return tuple(
            Memory(key, text, kind, self._state.tick, row)
            for (key, text), row in zip(unique.items(), rows, strict=True)
        )

    def retrieve(self, queries: Sequence[str]) -> tuple[str, ...]:
        """Memories near to the queries, nearest first within each query, each once.

        Raises:
            Exception: whatever the embedder raises.
        """
        wanted = [query for query in queries if query.strip()]
        held = [memory for memory in self._state.archive if memory.vector]
        if not wanted or not held or not self.config.top_k:
            return ()
        if self._matrix[0] != len(self._state.archive):
            rows = [unpack(memory.vector) for memory in held]
            self._matrix = len(self._state.archive), np.stack(rows)
        near = 1 - np.asarray(self.embedder.embed(wanted)) @ self._matrix[1].T
        found: dict[str, None] = {}
        for row in near:
            for place in np.argsort(row, kind="stable")[: self.config.top_k]:
                if row[place] < self.config.distance_cut:
                    found[held[int(place)].text] = None
        return tuple(found)

    def commit(
        self, snapshot: TickSnapshot, state: WorkspaceState, added: Sequence[Memory] = (), vector: str = ""
    ) -> None:
        """Keeps a tick: the journal first, then memory. Nothing waits in between.

        Raises:
            AuditError: the journal cannot be written; the tick did not happen.
        """
        row = {
            "event": "tick",
            "snapshot": msgspec.to_builtins(snapshot),
            "stage": msgspec.to_builtins(state.stage),
            "archive": msgspec.to_builtins(list(added)),
            "vector": vector,
            "pending": state.pending,
            "turn_ticks": state.turn_ticks,
            "idle_ticks": state.idle_ticks,
        }
        self._write(row)
        self._apply(row)

    def rollback(self, to: WorkspaceState) -> None:
        """Puts stage and pending message back to a snapshot; archive, drive and tick count stay."""
        row = {"event": "rollback", "stage": msgspec.to_builtins(to.stage), "pending": to.pending}
        self._write(row)
        self._apply(row)

    def close(self) -> None:
        """Closes the journal; closing twice is fine."""
        if self._journal is not None:
            self._journal.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._journal is not None:
            self._journal.append(row)

    def _apply(self, row: Mapping[str, Any]) -> None:
        """What a journal's line does; the same for a fresh line and for one that is read again."""
        state = self._state
        if row["event"] == "input":
            stage = state.stage if state.met else (*state.stage, self.entry("system", FRAME_SHIFT))
            self._state = state.change(
                stage=stage,
                archive=(*state.archive, *msgspec.convert(row["archive"], tuple[Memory, ...])),
                pending=row["text"],
                turn_ticks=0,
                idle_ticks=0,
                met=True,
            )
            self.drive.reset_centers()
            return
        stage = msgspec.convert(row["stage"], tuple[Entry, ...])
        if row["event"] == "rollback":
            self._state = state.change(stage=stage, pending=row["pending"])
            return
        if row["vector"]:
            self.drive.update(unpack(row["vector"]))
        self._state = state.change(
            stage=stage,
            archive=(*state.archive, *msgspec.convert(row["archive"], tuple[Memory, ...])),
            pending=row["pending"],
            turn_ticks=row["turn_ticks"],
            idle_ticks=row["idle_ticks"],
            tick=state.tick + 1,
            last=row["snapshot"]["id"] or state.last,
        )

    def _open(self, path: Path, fsync: Any) -> None:
        rows = read_journal(path) if path.exists() and path.stat().st_size else []
        options = {key: self.config.to_mapping()[key] for key in _DRIVE_FIELDS}
        head = {"event": "open", "name": self.name, "config": options, "genesis": self._state.stage[0].content}
        if rows:
            first = rows[0]
            if first.get("event") != "open" or first.get("name") != self.name:
                raise BadInput(f"{path} is the journal of {first.get('name')!r}; this workspace is {self.name!r}")
            other = [key for key in options if first.get("config", {}).get(key) != options[key]]
            if other:
                raise BadInput(
                    f"{path} was written with another {', '.join(other)}; keep the settings, or start a new file"
                )
            self._state = WorkspaceState(stage=(self.entry("system", first["genesis"]),))
        self._journal = AuditLog(path, fsync=fsync)  # locks, verifies the chain and cuts a torn end
        self.recovered_bytes = self._journal.recovered
        try:
            rows = read_journal(path) if rows else []  # again, now that nobody else writes
            for number, row in enumerate(rows[1:], 2):
                try:
                    self._apply(row)
                except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
                    raise BadInput(f"{path}: line {number} cannot be read: {error!r}") from None
            if not rows:
                self._write(head)
        except BaseException:
            self._journal.close()
            raise


def _scene(seed: int) -> str:
    return GENESIS_SCENES[int(CounterRng(seed).at(item=1).integers(0, len(GENESIS_SCENES), 1)[0])]


def _context_of(model: LM | None) -> int:
    """Tokens that a local model takes; 0 where it does not say."""
    config = getattr(getattr(model, "model", None), "config", None)
    return int(getattr(config, "context", 0) or 0)


def _tokenizer_of(model: LM | None) -> Callable[[str], int] | None:
    tokenizer = getattr(getattr(model, "model", None), "tokenizer", None)
    if tokenizer is None:
        return None
    return lambda text: len(tokenizer.encode(text, special=False))
