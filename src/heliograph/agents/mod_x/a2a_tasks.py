"""Tasks of the A2A endpoint: their states in order, the events that every stream sees, and a bounded store.

The shapes are those of the A2A protocol, version 1.0 (Task, TaskStatusUpdateEvent, TaskArtifactUpdateEvent).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from heliograph.agents.core.envelope import new_id
from heliograph.errors import BadInput

__all__ = [
    "CANCELED",
    "COMPLETED",
    "FAILED",
    "INPUT_REQUIRED",
    "PAUSED",
    "REJECTED",
    "STATES",
    "SUBMITTED",
    "TERMINAL",
    "WORKING",
    "A2aTask",
    "TaskStore",
]

SUBMITTED, WORKING, INPUT_REQUIRED = "TASK_STATE_SUBMITTED", "TASK_STATE_WORKING", "TASK_STATE_INPUT_REQUIRED"
COMPLETED, FAILED = "TASK_STATE_COMPLETED", "TASK_STATE_FAILED"
CANCELED, REJECTED = "TASK_STATE_CANCELED", "TASK_STATE_REJECTED"
STATES = (SUBMITTED, WORKING, INPUT_REQUIRED, COMPLETED, FAILED, CANCELED, REJECTED, "TASK_STATE_AUTH_REQUIRED")
TERMINAL = frozenset({COMPLETED, FAILED, CANCELED, REJECTED})
PAUSED = TERMINAL | {INPUT_REQUIRED}
"""States in which nothing happens until the client does something."""

_NEXT: Mapping[str, frozenset[str]] = {
    SUBMITTED: frozenset({WORKING, INPUT_REQUIRED, REJECTED, CANCELED}),
    WORKING: frozenset(TERMINAL),
    INPUT_REQUIRED: frozenset({WORKING, INPUT_REQUIRED, CANCELED}),
}


class A2aTask:
    """One task. Only :meth:`move` and :meth:`give` change what clients see, and each is an event of all its streams.

    Args:
        context: the conversation.
        message: the client's, which began it.
        now: seconds since 1970.
        touch: called after each change.
    """

    def __init__(
        self, context: str, message: Mapping[str, Any], *, now: Callable[[], float], touch: Callable[[A2aTask], None]
    ) -> None:
        self.id, self.context, self.state = new_id(), context, SUBMITTED
        self.updated = 0
        self.arguments: dict[str, Any] = {}
        self.capability = ""
        self.work: asyncio.Task[None] | None = None
        self.history: list[dict[str, Any]] = []
        self._now, self._touch = now, touch
        self._status: dict[str, Any] = {}
        self._artifacts: list[dict[str, Any]] = []
        self._events: list[dict[str, Any]] = []
        self._changed = asyncio.Event()
        self.hear(message)
        self._set(SUBMITTED, None)

    def hear(self, message: Mapping[str, Any]) -> None:
        """Keeps a client's message."""
        self.history.append({**message, "taskId": self.id, "contextId": self.context})

    def move(self, state: str, parts: list[dict[str, Any]] | None = None) -> None:
        """Goes to another state, with what the agent says about it.

        Raises:
            BadInput: no such step.
        """
        if state not in _NEXT.get(self.state, ()):
            raise BadInput(f"a task does not go from {self.state} to {state}")
        self._set(state, parts)
        self._tell({"statusUpdate": {"taskId": self.id, "contextId": self.context, "status": self._status}})

    def give(self, name: str, parts: list[dict[str, Any]]) -> None:
        """Adds a result."""
        artifact = {"artifactId": new_id(), "name": name, "parts": parts}
        self._artifacts.append(artifact)
        update = {"taskId": self.id, "contextId": self.context, "artifact": artifact, "lastChunk": True}
        self._tell({"artifactUpdate": update})

    def _set(self, state: str, parts: list[dict[str, Any]] | None) -> None:
        moment = datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds")
        self.state = state
        self._status = {"state": state, "timestamp": moment.replace("+00:00", "Z")}
        if parts:
            said = {"messageId": new_id(), "role": "ROLE_AGENT", "parts": parts}
            self._status["message"] = {**said, "taskId": self.id, "contextId": self.context}
            self.history.append(self._status["message"])
        self._touch(self)

    def _tell(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def timestamp(self) -> datetime:
        """Of its state."""
        return datetime.fromisoformat(self._status["timestamp"])

    def to_json(self, history_length: int | None = None, *, artifacts: bool = True) -> dict[str, Any]:
        """The task as clients see it.

        Args:
            history_length: most recent messages given; None for all.
            artifacts: with results.
        """
        first = 0 if history_length is None else max(0, len(self.history) - history_length)
        history = self.history[first:]
        return {
            "id": self.id,
            "contextId": self.context,
            "status": self._status,
            **({"artifacts": list(self._artifacts)} if artifacts and self._artifacts else {}),
            **({"history": history} if history else {}),
        }

    async def wait(self, states: Collection[str]) -> None:
        """Until it is in one of these."""
        while self.state not in states:
            await self._changed.wait()

    def follow(self, until: Collection[str], history_length: int | None = None) -> AsyncIterator[dict[str, Any]]:
        """The task as it is now, then each event, until it is in one of these states."""
        # Taken now, not at the first step of the iteration: nothing that happens in between may be missed.
        first, seen = {"task": self.to_json(history_length)}, len(self._events)

        async def events() -> AsyncIterator[dict[str, Any]]:
            at = seen
            yield first
            while True:
                while at < len(self._events):
                    at += 1
                    yield self._events[at - 1]
                if self.state in until:
                    return
                await self._changed.wait()

        return events()


class TaskStore:
    """The last tasks. Where it is full, the finished ones go first, then those that wait for their client.

    Args:
        limit: tasks kept.
        now: seconds since 1970.
    """

    def __init__(self, limit: int = 1000, *, now: Callable[[], float] = time.time) -> None:
        if limit < 1:
            raise BadInput(f"a store keeps one task or more; got {limit}")
        self.limit, self._now = limit, now
        self._tasks: dict[str, A2aTask] = {}
        self._updates = 0

    def _touch(self, task: A2aTask) -> None:
        self._updates += 1
        task.updated = self._updates

    def new(self, context: str, message: Mapping[str, Any]) -> A2aTask:
        """A task for a message; an older one may be forgotten."""
        task = A2aTask(context, message, now=self._now, touch=self._touch)
        self._tasks[task.id] = task
        if len(self._tasks) > self.limit:
            idle = [one for one in self._tasks.values() if one.state in PAUSED]
            for one in sorted(idle, key=lambda one: (one.state not in TERMINAL, one.updated))[:1]:
                del self._tasks[one.id]
        return task

    def get(self, task_id: str) -> A2aTask | None:
        """By id; None if unknown or forgotten."""
        return self._tasks.get(task_id)

    def __iter__(self) -> Iterator[A2aTask]:
        """All, the last changed first."""
        return iter(sorted(self._tasks.values(), key=lambda one: -one.updated))
