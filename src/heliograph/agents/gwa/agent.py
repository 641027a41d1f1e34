"""The loop around the stage: perceive, think, arbitrate, update (arXiv:2604.08206, algorithm 1).

Everything that a tick finds out is kept apart until its end, so a tick that is stopped, killed or refused leaves no
trace. Draws are seeded by tick and role: a mind that was killed and resumed thinks what it would have thought.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from heliograph.agents.core.bus import BusClosed, BusOverflow
from heliograph.agents.core.envelope import Envelope, Meta
from heliograph.agents.core.interceptor import CallNext, Chain, Interceptor, Rejected, interceptor
from heliograph.agents.core.lm import LMError
from heliograph.agents.gwa.nodes import Ask, Role
from heliograph.agents.gwa.parsing import (
    Decision,
    parse_critiques,
    parse_decision,
    parse_queries,
    parse_thoughts,
)
from heliograph.agents.gwa.state import Entry, Memory, Mode, NodeState, TickSnapshot, WorkspaceState, pack
from heliograph.agents.gwa.workspace import GlobalWorkspace
from heliograph.errors import BadInput, HeliographError
from heliograph.random import CounterRng

__all__ = ["Busy", "GlobalWorkspaceAgent", "single_writer"]


class Busy(HeliographError):
    """A message is being answered; read its ticks to the end, or cancel it."""

    exit_code = 1


class _Stopped(Exception):
    """The tick is to leave no trace."""


@dataclass
class _Spent:
    """What one tick found out beside its thoughts."""

    calls: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    missed: list[str] = field(default_factory=list)
    parse: dict[str, str] = field(default_factory=dict)


class GlobalWorkspaceAgent:
    """A mind that keeps thinking, with or without messages.

    Args:
        workspace: that it works on. One agent a workspace.

    Attributes:
        idle_error: what ended idle thinking, or None.
        trace: the latest hundred ticks, idle ones too.
    """

    def __init__(self, workspace: GlobalWorkspace) -> None:
        self.workspace = workspace
        self.idle_error: BaseException | None = None
        self.trace: deque[TickSnapshot] = deque(maxlen=100)
        self._lock = asyncio.Lock()
        self._turn = 0
        self._responding = False
        self._idle: asyncio.Task[None] | None = None
        self._idle_calls: deque[tuple[float, int]] = deque()

    async def __aenter__(self) -> GlobalWorkspaceAgent:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stops thinking and closes the journal; closing twice is fine."""
        self.cancel()
        await self._stop_idle()
        self.workspace.close()

    def cancel(self) -> None:
        """Stops at the next node's answer; the tick in progress leaves no trace. A waiting message keeps waiting."""
        self._turn += 1
        self._responding = False
        if self._idle is not None:
            self._idle.cancel()

    async def run(self, message: str | None = None, *, max_ticks: int | None = None) -> AsyncIterator[TickSnapshot]:
        """Answers a message, or thinks without one; each tick is kept before it is given out.

        Without a message it goes on with one that still waits, for example after a restart. A new message interrupts
        idle thinking. The last tick of a message always answers.

        Args:
            message: from outside.
            max_ticks: instead of the setting.

        Raises:
            BadInput: an empty message, or no text; nothing was changed.
            Busy: another message is being answered.
        """
        limit = self.workspace.config.max_ticks if max_ticks is None else max_ticks
        if limit < 1:
            raise BadInput(f"max_ticks is 1 or more; got {limit}")
        if self._responding:
            raise Busy("a message is being answered; read its ticks to the end, or call cancel() first")
        self._turn += 1
        mine = self._turn
        responding = message is not None or bool(self.workspace.state.pending)
        self._responding = responding
        try:
            await self._stop_idle()
            if message is not None:
                async with self._lock:
                    self.workspace.accept(message)
            ticks = 0
            while self._turn == mine:
                ticks += 1
                done = self.workspace.state.turn_ticks if responding else ticks - 1
                try:
                    async with self._lock:
                        snap, told = await self._tick(mine, force=responding and done >= limit - 1)
                except _Stopped:
                    return
                await self._tell(told)
                yield snap
                if snap.tag == "RESPONSE" or ticks >= limit:
                    return
        finally:
            if self._turn == mine:
                self._responding = False

    def idle(self, every: float | None = None) -> asyncio.Task[None]:
        """Thinks one tick every so many seconds in the background, until the next message, ``cancel`` or a set limit.

        Args:
            every: seconds; the setting by default.

        Raises:
            BadInput: not above 0.
        """
        seconds = self.workspace.config.idle_every_s if every is None else every
        if not seconds > 0:
            raise BadInput(f"every is in seconds, above 0; got {seconds}")
        if self._idle is not None and not self._idle.done():
            return self._idle
        self.idle_error = None
        self._idle = asyncio.get_running_loop().create_task(self._idle_loop(seconds))
        return self._idle

    def as_mcp_server(self, idle_every: float = 0.0) -> Any:
        """Tools ``think`` and ``status`` and the resource ``gwa://NAME/trace``, for any MCP client.

        Args:
            idle_every: seconds between idle ticks once a message is answered; 0 for none.

        Raises:
            MissingExtra: the official SDK is not installed.
        """
        from heliograph.agents.gwa.server import workspace_server

        return workspace_server(self, idle_every)

    async def _idle_loop(self, seconds: float) -> None:
        config, loop = self.workspace.config, asyncio.get_running_loop()
        try:
            while not config.max_idle_ticks or self.workspace.state.idle_ticks < config.max_idle_ticks:
                await asyncio.sleep(seconds)
                while self._idle_calls and self._idle_calls[0][0] <= loop.time() - 3600:
                    self._idle_calls.popleft()
                if config.calls_per_hour and sum(n for _, n in self._idle_calls) >= config.calls_per_hour:
                    continue
                if self._responding:
                    return
                mine = self._turn
                try:
                    async with self._lock:
                        snap, told = await self._tick(mine, force=False, mode="IDLE")
                except _Stopped:
                    return
                self._idle_calls.append((loop.time(), snap.calls))
                await self._tell(told)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.idle_error = error
            raise

    async def _stop_idle(self) -> None:
        task, self._idle = self._idle, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task

    async def _ask(self, role: Role, state: NodeState, turn: int, spent: _Spent, temperature: float) -> str | None:
        """A node's answer; None if it failed or came too late."""
        config = self.workspace.config
        node = self.workspace.nodes.get(role)
        if node is None:
            spent.missed.append(role)
            return None
        ask = Ask(
            role, temperature, config.max_tokens[role], _call_seed(config.seed, state.tick, role), config.deadline_s
        )
        text: str | None = None
        try:
            async with asyncio.timeout(config.deadline_s):
                for attempt in range(config.attempts):
                    spent.calls += 1
                    try:
                        result = await node(state, ask)
                    except LMError as error:
                        if attempt + 1 == config.attempts or not _transient(error):
                            raise
                        await asyncio.sleep(2.0**attempt)
                        continue
                    text = result.text if isinstance(result.text, str) else None
                    spent.prompt_tokens += result.prompt_tokens
                    spent.answer_tokens += result.answer_tokens
                    break
        except Exception:
            text = None
        if self._turn != turn:
            raise _Stopped
        if text is None:
            spent.missed.append(role)
        return text

    async def _tick(
        self, turn: int, *, force: bool, mode: Mode | None = None
    ) -> tuple[TickSnapshot, tuple[Envelope, ...]]:
        ws, config, drive = self.workspace, self.workspace.config, self.workspace.drive
        before, spent = ws.state, _Spent()
        if self._turn != turn:
            raise _Stopped
        mode = mode or ("RESPONDING" if before.pending else "IDLE")
        message = before.pending if mode == "RESPONDING" else ""
        seen = NodeState(
            mode, before.stage, message, persona=config.persona, count=config.candidates, tick=before.tick
        )  # fmt: skip
        low = config.temperatures

        # Perceive.
        asked = await self._ask("attention", seen, turn, spent, low["attention"])
        queries = parse_queries(asked) if asked is not None else ()
        try:
            retrieved = ws.retrieve(queries)
        except Exception:
            retrieved = ()
            spent.missed.append("retrieval")
        seen = replace(seen, retrieved=retrieved)

        # Think: the temperature comes from the thought before.
        entropy, temperature = drive.entropy(), drive.temperature()
        written = await self._ask("generator", seen, turn, spent, temperature)
        candidates, spent.parse["generator"] = parse_thoughts(written or "", config.candidates)
        if written is not None and not candidates:
            spent.missed.append("generator")
        critiques: tuple[str, ...] = ()
        decision = Decision(0, "THINK_MORE", "default")
        if candidates:
            seen = replace(seen, candidates=candidates)
            written = await self._ask("critic", seen, turn, spent, low["critic"])
            critiques, spent.parse["critic"] = (
                parse_critiques(written, len(candidates))
                if written is not None
                else (("evaluation unavailable",) * len(candidates), "default")
            )
            # Arbitrate.
            seen = replace(seen, critiques=critiques)
            written = await self._ask("meta", seen, turn, spent, low["meta"])
            if written is not None:
                decision = parse_decision(written, len(candidates))
            spent.parse["meta"] = decision.parse
        winner = candidates[decision.index] if candidates else ""
        name = f"{ws.name}.{before.tick}"
        parents = (f"{name}.candidates", f"{name}.critique") if winner else ()
        if winner:
            winner = await self._screen(winner, name, parents, spent)
        tag = "RESPONSE" if force else decision.tag if winner else "THINK_MORE"
        return await self._update(
            turn, seen, before, spent, tag, winner, name,
            TickSnapshot(
                before.tick, mode, entropy, temperature, drive.estimator, winner, tag, candidates, critiques, queries,
                retrieved, seed=config.seed, id=f"{name}.winner" if winner else "", parents=parents,
            ),
        )  # fmt: skip

    async def _update(
        self, turn: int, seen: NodeState, before: WorkspaceState, spent: _Spent, tag: str, winner: str, name: str,
        snap: TickSnapshot,
    ) -> tuple[TickSnapshot, tuple[Envelope, ...]]:  # fmt: skip
        ws, config = self.workspace, self.workspace.config
        vector = self._embed(winner, spent) if winner else ""
        stage, condensed = before.stage, ""
        added: tuple[Memory, ...] = ()
        if before.stage_tokens > config.theta:
            stage, added, condensed = await self._condense(seen, before, turn, spent)
        said, pending = "", before.pending
        if tag == "RESPONSE":
            answer = await self._ask(
                "response", replace(seen, winner=winner), turn, spent, config.temperatures["response"]
            )
            said = (answer or "").strip() or winner or "I have no answer."
            if seen.mode == "RESPONDING":
                stage, pending = (
                    (*stage, ws.entry("visitor", f"{ws.cut(seen.message, config.theta // 4)} [RESOLVED]")),
                    "",
                )
            stage = (*stage, ws.entry("Me", said))
        elif tag == "WEB_SEARCH":
            stage = (*stage, await self._search(replace(seen, text=winner), turn, spent))
        elif winner:
            stage = (*stage, ws.entry("Me", winner))
        idle = seen.mode == "IDLE"
        after = before.change(
            stage=stage,
            pending=pending,
            turn_ticks=0 if not pending else before.turn_ticks + (not idle),
            idle_ticks=before.idle_ticks + 1 if idle else 0,
        )
        snap = replace(
            snap, said=said, parse=spent.parse, missed=tuple(dict.fromkeys(spent.missed)), condensed=condensed,
            stage_tokens=after.stage_tokens, calls=spent.calls, prompt_tokens=spent.prompt_tokens,
            answer_tokens=spent.answer_tokens,
        )  # fmt: skip
        ws.commit(snap, after, added, vector)
        self.trace.append(snap)
        return snap, self._envelopes(snap, name, before.last)

    def _embed(self, winner: str, spent: _Spent) -> str:
        """The winner's direction, packed; "" leaves the drive where it is."""
        try:
            row = np.asarray(self.workspace.embedder.embed([winner]), dtype=np.float64)[0]
            length = float(np.linalg.norm(row))
            if not np.isfinite(length) or length < 1e-12:
                raise BadInput("the embedding is no direction")
            known = self.workspace.drive.dimensions
            if known not in (0, len(row)):
                raise BadInput("the embedding has another dimension than before")
            return pack(row / length)
        except Exception:
            spent.missed.append("embedding")
            return ""

    async def _condense(
        self, seen: NodeState, before: WorkspaceState, turn: int, spent: _Spent
    ) -> tuple[tuple[Entry, ...], tuple[Memory, ...], str]:
        """A full stage becomes one line of summary, and its facts go into the archive."""
        ws, config = self.workspace, self.workspace.config
        text = "\n".join(f"{entry.role}: {entry.content}" for entry in before.stage)
        source = replace(seen, text=text, candidates=(), critiques=())
        summary = ((await self._ask("summary", source, turn, spent, config.temperatures["summary"])) or "").strip()
        facts = (await self._ask("knowledge", source, turn, spent, config.temperatures["knowledge"])) or ""
        lines = [line.strip().lstrip("-*0123456789.) ").strip() for line in facts.splitlines()]
        known = {memory.key for memory in before.archive}
        added = tuple(memory for memory in ws.memories(lines, "knowledge") if memory.key not in known)
        if summary and ws.count(summary) < before.stage_tokens:
            return (ws.entry("memory", summary),), added, "summary"
        # No summary, or one longer than its source: the newest lines that fill half of the stage stay.
        kept: list[Entry] = []
        room = config.theta // 2
        for entry in reversed(before.stage):
            room -= entry.tokens
            if room < 0:
                break
            kept.append(entry)
        return tuple(reversed(kept)), added, "cut"

    async def _search(self, seen: NodeState, turn: int, spent: _Spent) -> Entry:
        ws, config = self.workspace, self.workspace.config
        if ws.search is None:
            return ws.entry("web_search", "no search is connected")
        bare = replace(seen, candidates=(), critiques=())
        query = ((await self._ask("query", bare, turn, spent, config.temperatures["query"])) or "").strip()
        try:
            async with asyncio.timeout(config.deadline_s):
                found = [str(text) for text in await ws.search(query or seen.text)]
        except Exception as error:
            found = []
            spent.missed.append("search")
            why = f"the search failed: {type(error).__name__}"
        else:
            why = "the search found nothing"
        if self._turn != turn:
            raise _Stopped
        if not found:
            return ws.entry("web_search", why)
        source = replace(bare, text="\n".join(found))
        text = (await self._ask("synthesis", source, turn, spent, config.temperatures["synthesis"])) or found[0]
        return ws.entry("web_search", text.strip() or found[0])

    async def _screen(self, winner: str, name: str, parents: tuple[str, ...], spent: _Spent) -> str:
        """What the screens leave of a winner; "" where one refuses it."""
        if not self.workspace.screens:
            return winner
        env = self._envelope("winner", name, {"text": winner}, parents)
        try:
            passed = await Chain(self.workspace.screens)(env, _as_it_is)
            text = passed.payload["text"]
        except (Rejected, KeyError, TypeError):
            spent.missed.append("winner")
            return ""
        return text if isinstance(text, str) else ""

    def _envelope(self, what: str, name: str, payload: Any, parents: Sequence[str]) -> Envelope:
        ws = self.workspace.name
        sender = f"{ws}.meta" if what == "winner" else ws
        return Envelope(
            id=f"{name}.{what}", topic=f"gwa.{ws}.{what}", kind="event", sender=sender, payload=payload,
            parents=tuple(parents), conv=ws, meta=Meta(labels={"tick": name.rsplit(".", 1)[1]}),
        )  # fmt: skip

    def _envelopes(self, snap: TickSnapshot, name: str, last: str) -> tuple[Envelope, ...]:
        """The tick as messages, each naming what it was derived from."""
        if self.workspace.bus is None:
            return ()
        made = [self._envelope("percept", name, {"retrieved": list(snap.retrieved)}, (last,) if last else ())]
        if snap.candidates:
            made.append(self._envelope("candidates", name, {"texts": list(snap.candidates)}, (f"{name}.percept",)))
            made.append(self._envelope("critique", name, {"texts": list(snap.critiques)}, (f"{name}.candidates",)))
        if snap.winner:
            made.append(self._envelope("winner", name, {"text": snap.winner, "tag": snap.tag}, snap.parents))
        if snap.said:
            made.append(self._envelope("speech", name, {"text": snap.said}, (snap.id,) if snap.id else ()))
        state = {"entropy": snap.entropy, "temperature": snap.temperature, "stage_tokens": snap.stage_tokens}
        return (*made, self._envelope("state", name, state, (snap.id,) if snap.id else ()))

    async def _tell(self, told: Sequence[Envelope]) -> None:
        """Best effort: the tick is kept already, and who missed it can read the journal."""
        if self.workspace.bus is not None:
            for env in told:
                with contextlib.suppress(Rejected, BusOverflow, BusClosed):
                    await self.workspace.bus.publish(env)


def single_writer(workspace: str) -> Interceptor:
    """For a bus: only the meta node of this workspace may publish its winners. The bus vouches for senders, or not."""

    @interceptor(f"single-writer-{workspace}")
    async def gate(env: Envelope, call_next: CallNext) -> Envelope:
        if env.topic == f"gwa.{workspace}.winner" and env.sender != f"{workspace}.meta":
            raise Rejected(f"only {workspace}.meta publishes winners; {env.sender or 'nobody'} tried")
        return await call_next(env)

    return gate


async def _as_it_is(env: Envelope) -> Envelope:
    return env


def _call_seed(seed: int, tick: int, role: Role) -> int:
    place = sum(ord(letter) * 31**n for n, letter in enumerate(role)) % 2**31
    return int(CounterRng(seed).at(step=tick, item=place).integers(0, 2**31, 1)[0])


def _transient(error: LMError) -> bool:
    """Whether another attempt may help; the engine's errors tell it by their words alone."""
    text = str(error)
    return "did not answer:" in text or any(f"answered {status}" in text for status in (429, 502, 503, 504))
