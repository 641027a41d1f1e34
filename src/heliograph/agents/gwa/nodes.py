"""Nodes: role-bound minds around the stage. Each is asked with the broadcast state and answers with text.

A node is any async callable of this form; :class:`ModelNode` asks a language model, :class:`BusNode` asks whoever
serves the role on a bus.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import msgspec

from heliograph.agents.core.bus import Bus
from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.lm import LM, LMError
from heliograph.agents.gwa.parsing import defuse
from heliograph.agents.gwa.state import NodeState
from heliograph.clock import VirtualTimeLoop
from heliograph.errors import BadInput

__all__ = ["ROLES", "Ask", "BusNode", "ModelNode", "NodeResult", "Role", "WorkspaceNode", "render", "serve_node"]

Role = Literal["attention", "generator", "critic", "meta", "response", "summary", "knowledge", "query", "synthesis"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Ask:
    """How a node is to answer.

    Attributes:
        role: as which.
        temperature, max_tokens, seed: of the draw.
        deadline_s: seconds that the tick waits.
    """

    role: Role
    temperature: float
    max_tokens: int
    seed: int
    deadline_s: float


@dataclass(frozen=True)
class NodeResult:
    """A node's answer.

    Attributes:
        text: in the role's form, see ``heliograph.agents.gwa.parsing``.
        prompt_tokens, answer_tokens: spent on it.
    """

    text: str
    prompt_tokens: int = 0
    answer_tokens: int = 0


class WorkspaceNode(Protocol):
    """One role."""

    async def __call__(self, state: NodeState, ask: Ask, /) -> NodeResult:
        """Answers; whatever it raises leaves the role out of this tick."""
        ...


def render(state: NodeState) -> str:
    """The broadcast as a prompt: status, stage, message, memories. Tags in it are defused."""
    waiting = "pending" if state.message else "resolved"
    lines = [f"COGNITIVE STATUS: {state.mode}, input {waiting}", "STAGE:"]
    lines += [f"{entry.role}: {defuse(entry.content)}" for entry in state.stage]
    if state.message:
        lines += ["CURRENT INPUT:", defuse(state.message)]
    if state.retrieved:
        lines += ["MEMORY:", *(f"- {defuse(text)}" for text in state.retrieved)]
    return "\n".join(lines)


_TASKS: Mapping[Role, str] = {
    "attention": "Name at most two concrete phrases worth looking up in memory, one a line, or write none.",
    "generator": "Write a numbered list of {count} short next thoughts. Each takes another angle than the rest.",
    "critic": "For each numbered thought write one or two sentences of criticism, as `N. Critique: text`. No scores.",
    "meta": (
        "Pick the best thought. Prefer thoughts about outside, concrete things over thoughts about thinking. "
        "{prefer} Reply with `!!N!!` for its number and one of [THINK_MORE], [RESPONSE], [WEB_SEARCH]."
    ),
    "response": "Say the winning thought to the visitor, in a few plain sentences.",
    "summary": "Summarise the stage below in fewer words. Keep names, numbers and open questions.",
    "knowledge": "List the facts below that are worth keeping for ever, one a line, each complete in itself.",
    "query": "Write one search query for the thought below.",
    "synthesis": "Put the search results below together in two to five sentences.",
}
_PREFER = {
    "RESPONDING": "Somebody waits: prefer [RESPONSE] once the thought answers.",
    "IDLE": "Nobody waits: prefer [THINK_MORE]; [RESPONSE] means that you speak first.",
}
_ALONE = ("summary", "knowledge", "query", "synthesis")
_LOCKS: dict[int, threading.Lock] = {}


class ModelNode:
    """A role played by a language model.

    The call runs in a thread, since models block; on a virtual loop it runs in place. A call that is given up goes on
    in its thread, and its answer is dropped; one model answers one call at a time.

    Args:
        model: that answers.
        tasks: instructions by role, instead of the built-in ones.
    """

    def __init__(self, model: LM, tasks: Mapping[Role, str] | None = None) -> None:
        self.model, self._tasks = model, {**_TASKS, **(tasks or {})}
        self._lock = _LOCKS.setdefault(id(model), threading.Lock())

    def prompt(self, state: NodeState, role: Role) -> list[dict[str, str]]:
        """The conversation that the model sees."""
        task = self._tasks[role].format(count=state.count, prefer=_PREFER[state.mode])
        body = [defuse(state.text)] if role in _ALONE else [render(state)]
        if state.candidates and role in ("critic", "meta"):
            body += ["THOUGHTS:", *(f"{n}. {defuse(text)}" for n, text in enumerate(state.candidates, 1))]
        if state.critiques and role == "meta":
            body += ["CRITIQUES:", *(f"{n}. {defuse(text)}" for n, text in enumerate(state.critiques, 1))]
        if role == "response":
            body += ["WINNING THOUGHT:", defuse(state.winner)]
        return [
            {"role": "system", "content": f"{state.persona}\n{task}".strip()},
            {"role": "user", "content": "\n".join(body)},
        ]

    def _call(self, state: NodeState, ask: Ask) -> NodeResult:
        with self._lock:
            done = self.model.generate(
                self.prompt(state, ask.role), max_tokens=ask.max_tokens, temperature=ask.temperature, seed=ask.seed
            )
        return NodeResult(done.text, done.prompt_tokens, done.answer_tokens)

    async def __call__(self, state: NodeState, ask: Ask) -> NodeResult:
        """Asks the model."""
        if isinstance(asyncio.get_running_loop(), VirtualTimeLoop):
            return self._call(state, ask)
        return await asyncio.to_thread(self._call, state, ask)


class BusNode:
    """A role played by whoever serves it on a bus, by request and reply.

    Args:
        bus: to ask on.
        workspace: name.
    """

    def __init__(self, bus: Bus, workspace: str) -> None:
        self._bus, self._workspace = bus, workspace

    async def __call__(self, state: NodeState, ask: Ask) -> NodeResult:
        """Asks, and waits until the deadline.

        Raises:
            NoResponders, RequestTimeout: nobody answers.
            LMError: the other side failed.
        """
        payload = {"state": msgspec.to_builtins(state), "ask": msgspec.to_builtins(ask)}
        env = Envelope(topic=_ask_topic(self._workspace, ask.role), payload=payload, sender=self._workspace)
        answer = await self._bus.request(env, timeout_s=ask.deadline_s)
        if answer.kind == "error":
            raise LMError(str(answer.payload))
        try:
            return msgspec.convert(answer.payload, NodeResult)
        except msgspec.ValidationError as error:
            raise LMError(f"the node for {ask.role} answered in another form: {error}") from None


async def serve_node(bus: Bus, workspace: str, roles: Sequence[Role], node: WorkspaceNode) -> None:
    """Plays roles for a workspace elsewhere on the bus, until cancelled or the bus closes.

    Raises:
        BadInput: no such role.
    """
    odd = [role for role in roles if role not in ROLES]
    if odd or not roles:
        raise BadInput(f"roles are {', '.join(ROLES)}; got {', '.join(odd) or 'none'}")
    async with asyncio.TaskGroup() as group:
        for role in roles:
            subscription = await bus.subscribe(_ask_topic(workspace, role), queue="nodes")
            group.create_task(_answer(bus, subscription, node))


async def _answer(bus: Bus, subscription: Any, node: WorkspaceNode) -> None:
    async for env in subscription:
        try:
            state, ask = msgspec.convert(env.payload["state"], NodeState), msgspec.convert(env.payload["ask"], Ask)
            reply = env.answer(msgspec.to_builtins(await node(state, ask)))
        except Exception as error:
            reply = env.answer(f"{type(error).__name__}: {error}", kind="error")
        with contextlib.suppress(BadInput):
            await bus.publish(reply)


def _ask_topic(workspace: str, role: Role) -> str:
    return f"gwa.{workspace}.ask.{role}"
