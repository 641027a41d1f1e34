"""Publish, subscribe and request by subject; the part that every backend shares, and the backend in one process.

Subjects are tokens separated by dots, as in NATS: ``*`` in a subscription stands for one token, ``>`` at its end for
one or more. Members of a queue group share the messages of a subscription; each message goes to one of them.

Delivery is at most once to live subscribers, in the order of publication for one subject; ``replay`` gives what was
published before, from a log of bounded length. A slow subscriber has a queue of ``max_pending`` messages; what happens
when it is full is its stated :data:`Overflow` policy, and drops are counted.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import itertools
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from heliograph.agents.core.envelope import Envelope, new_id
from heliograph.agents.core.interceptor import Chain, Interceptor
from heliograph.errors import BadInput, HeliographError

__all__ = [
    "Bus",
    "BusClosed",
    "BusOverflow",
    "MemoryBus",
    "NoResponders",
    "Overflow",
    "Recall",
    "RequestTimeout",
    "Subscription",
    "check_subject",
    "matches",
]

Overflow = Literal["block", "drop_oldest", "drop_newest", "error"]
"""What a full queue does: make the publisher wait, lose its oldest or the newest message, or fail the publication."""

MAX_SUBJECT_BYTES = 512


class BusClosed(HeliographError):
    """The bus or the subscription was closed, or its server is gone."""

    exit_code = 1


class BusOverflow(HeliographError):
    """A subscriber with the policy "error" has a full queue."""

    exit_code = 1


class RequestTimeout(HeliographError):
    """No answer came in time."""

    exit_code = 1


class NoResponders(HeliographError):
    """Nobody is subscribed to the subject of a request."""

    exit_code = 1


@dataclass(frozen=True)
class Recall:
    """What a recall reached.

    Attributes:
        removed: copies taken out of queues before anybody had them.
        delivered: copies that subscribers already had; -1 where the backend cannot know.
    """

    removed: int
    delivered: int


def check_subject(subject: str, *, wildcards: bool) -> tuple[str, ...]:
    """The tokens of a subject.

    Raises:
        BadInput: empty tokens, spaces or control characters, too long, or wildcards where none may stand.
    """
    tokens = tuple(subject.split("."))
    bad = not subject or len(subject.encode("utf-8", "surrogatepass")) > MAX_SUBJECT_BYTES or "" in tokens
    bad = bad or any(character.isspace() or not character.isprintable() for character in subject)
    for place, token in enumerate(tokens):
        wild = "*" in token or ">" in token
        bad = bad or (wild and (not wildcards or len(token) > 1 or (token == ">" and place < len(tokens) - 1)))
    if bad:
        allowed = ", with * for one and a last > for more tokens" if wildcards else ", without wildcards"
        raise BadInput(f"{subject!r} is not a subject: it needs printable tokens separated by dots{allowed}")
    return tokens


def matches(pattern: tuple[str, ...], subject: tuple[str, ...]) -> bool:
    """Whether a subscription's tokens cover a subject's."""
    if pattern[-1] == ">":
        return len(subject) >= len(pattern) and all(p in ("*", s) for p, s in zip(pattern[:-1], subject, strict=False))
    return len(pattern) == len(subject) and all(p in ("*", s) for p, s in zip(pattern, subject, strict=True))


class Subscription:
    """What one subscriber receives: ``async for env in subscription``.

    Attributes:
        subject: subscribed to.
        queue: group, or "".
        max_pending: messages that wait, at most.
        overflow: policy.
        dropped: messages lost to a full queue.
    """

    def __init__(self, subject: str, queue: str, max_pending: int, overflow: Overflow) -> None:
        self.tokens = check_subject(subject, wildcards=True)
        if max_pending < 1 or overflow not in ("block", "drop_oldest", "drop_newest", "error"):
            raise BadInput(
                "max_pending is 1 or more, overflow one of block, drop_oldest, drop_newest, error; "
                f"got {max_pending} and {overflow!r}"
            )
        self.subject, self.queue, self.max_pending, self.overflow = subject, queue, max_pending, overflow
        self.dropped = 0
        self._taken_ids: deque[str] = deque(maxlen=1024)
        self._waiting: deque[Envelope] = deque()
        self._arrival = asyncio.Event()
        self._room = asyncio.Event()
        self._closed = False
        self._on_take: Callable[[], None] = lambda: None
        self._on_close: Callable[[], Awaitable[None]] | None = None

    def on_take(self, hook: Callable[[], None]) -> None:
        """Calls ``hook`` for every message taken or recalled; used by backends."""
        self._on_take = hook

    def on_close(self, hook: Callable[[], Awaitable[None]]) -> None:
        """Awaits ``hook`` when the subscriber leaves; used by backends."""
        self._on_close = hook

    @property
    def pending(self) -> int:
        """Messages that wait."""
        return len(self._waiting)

    def __aiter__(self) -> AsyncIterator[Envelope]:
        return self

    async def __anext__(self) -> Envelope:
        try:
            return await self.next()
        except BusClosed:
            raise StopAsyncIteration from None

    async def next(self) -> Envelope:
        """The next message.

        Raises:
            BusClosed: closed, and nothing waits.
        """
        while not self._waiting:
            if self._closed:
                raise BusClosed(f"the subscription to {self.subject} is closed")
            self._arrival.clear()
            await self._arrival.wait()
        env = self._waiting.popleft()
        self._taken_ids.append(env.id)
        self._room.set()
        self._on_take()
        return env

    async def unsubscribe(self) -> None:
        """Receives nothing more; what waits can still be taken."""
        if not self._closed:
            self.end()
            if self._on_close is not None:
                await self._on_close()

    def end(self) -> None:
        """Marks the end; used by backends."""
        self._closed = True
        self._arrival.set()
        self._room.set()

    def full(self) -> bool:
        """Whether the next message meets the policy."""
        return len(self._waiting) >= self.max_pending

    async def offer(self, env: Envelope) -> None:
        """Queues a message by the policy; used by backends.

        Raises:
            BusOverflow: full, and the policy is "error".
        """
        while self.overflow == "block" and self.full() and not self._closed:
            self._room.clear()
            await self._room.wait()
        self.put(env)

    def put(self, env: Envelope) -> None:
        """The same without waiting; "block" then counts as room."""
        if self._closed:
            return
        if self.full():
            if self.overflow == "error":
                raise BusOverflow(f"a subscriber of {self.subject} has {self.max_pending} messages waiting")
            if self.overflow == "drop_newest":
                self.dropped += 1
                return
            if self.overflow == "drop_oldest":
                self._waiting.popleft()
                self.dropped += 1
        self._waiting.append(env)
        self._arrival.set()

    def had(self, message_id: str) -> bool:
        """Whether the message is among the last 1024 that were taken."""
        return message_id in self._taken_ids

    def recall(self, message_id: str) -> int:
        """Takes waiting copies of a message away; returns how many."""
        kept = [env for env in self._waiting if env.id != message_id]
        removed = len(self._waiting) - len(kept)
        if removed:
            self._waiting = deque(kept)
            self._room.set()
            for _ in range(removed):
                self._on_take()
        return removed


class Bus(abc.ABC):
    """What every backend offers. Use as an async context manager, or call :meth:`close`.

    Args:
        interceptors: see every message that is published here, before any subscriber does.
    """

    def __init__(self, interceptors: Iterable[Interceptor] = ()) -> None:
        self.chain = Chain(interceptors)

    async def publish(self, env: Envelope) -> int:
        """Sends a message to the subscribers of its topic.

        Returns:
            Its number in the log, from 1; 0 where the backend keeps none.

        Raises:
            BadInput: the topic is no subject.
            Rejected: by an interceptor; nobody has seen the message.
            BusOverflow: a subscriber with the policy "error" is full; others may have got it.
            BusClosed: the bus is closed.
        """
        number = 0

        async def deliver(final: Envelope) -> Envelope:
            nonlocal number
            check_subject(final.topic, wildcards=False)
            number = await self._publish(final)
            return final

        await self.chain(env, deliver)
        return number

    @abc.abstractmethod
    async def _publish(self, env: Envelope) -> int: ...

    @abc.abstractmethod
    async def subscribe(
        self, subject: str, *, queue: str = "", max_pending: int = 1024, overflow: Overflow = "drop_oldest"
    ) -> Subscription:
        """Receives what is published from now on.

        Raises:
            BadInput: not a subject, or a policy that the backend lacks.
        """

    @abc.abstractmethod
    async def replay(self, subject: str, *, start: int = 1, limit: int = 1000) -> list[tuple[int, Envelope]]:
        """Messages still in the log with their numbers, in order, from number ``start`` on."""

    @abc.abstractmethod
    async def recall(self, message_id: str) -> Recall:
        """Takes a message back wherever it has not been taken, and out of the log."""

    @abc.abstractmethod
    async def _subscribers(self, subject: str) -> int:
        """How many would get a message; 1 or more where the backend cannot know."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Ends all subscriptions; closing twice is fine."""

    async def request(self, env: Envelope, *, timeout_s: float) -> Envelope:
        """Publishes with an inbox as ``reply_to`` and waits for the first answer there.

        Raises:
            NoResponders: nobody listens.
            RequestTimeout: no answer within ``timeout_s``.
        """
        if not timeout_s > 0:
            raise BadInput(f"timeout_s must be above 0; got {timeout_s}")
        if not await self._subscribers(env.topic):
            raise NoResponders(f"nobody is subscribed to {env.topic}")
        inbox = await self.subscribe(f"_inbox.{new_id()}", max_pending=1, overflow="drop_newest")
        try:
            await self.publish(env.replace(reply_to=inbox.subject, kind="request"))
            async with asyncio.timeout(timeout_s):
                return await inbox.next()
        except TimeoutError:
            raise RequestTimeout(f"no answer from {env.topic} within {timeout_s:g} s") from None
        finally:
            await inbox.unsubscribe()

    async def reply(self, request: Envelope, payload: object, *, sender: str = "") -> None:
        """Answers a request.

        Raises:
            BadInput: the message wants no answer.
        """
        if not request.reply_to:
            raise BadInput(f"message {request.id} has no reply_to; it was published, not requested")
        await self.publish(request.answer(payload, sender=sender))

    async def __aenter__(self) -> Bus:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class MemoryBus(Bus):
    """A bus among the tasks of one asyncio loop.

    Args:
        interceptors: see every message before any subscriber does.
        log_length: messages kept for replay.
    """

    def __init__(self, interceptors: Iterable[Interceptor] = (), *, log_length: int = 10_000) -> None:
        super().__init__(interceptors)
        if log_length < 0:
            raise BadInput(f"log_length is 0 or more; got {log_length}")
        self._log: OrderedDict[int, Envelope] = OrderedDict()
        self._log_length = log_length
        self._numbers = itertools.count(1)
        self._subscriptions: list[Subscription] = []
        self._turn: dict[tuple[str, str], int] = {}
        self._closed = False

    async def _publish(self, env: Envelope) -> int:
        if self._closed:
            raise BusClosed("the bus is closed")
        number = next(self._numbers)
        # Inbox traffic is one answer to one asker; keeping it would only push real messages out of the log.
        if self._log_length and not env.topic.startswith("_inbox."):
            self._log[number] = env
            if len(self._log) > self._log_length:
                self._log.popitem(last=False)
        receivers = self._receivers(check_subject(env.topic, wildcards=False))
        for receiver in receivers:
            if receiver.overflow != "block":
                receiver.put(env)
        for receiver in receivers:
            if receiver.overflow == "block":
                await receiver.offer(env)
        return number

    def _receivers(self, tokens: tuple[str, ...]) -> list[Subscription]:
        groups: dict[tuple[str, str], list[Subscription]] = {}
        chosen: list[Subscription] = []
        for subscription in self._subscriptions:
            if not matches(subscription.tokens, tokens):
                continue
            if subscription.queue:
                groups.setdefault((subscription.subject, subscription.queue), []).append(subscription)
            else:
                chosen.append(subscription)
        for key, members in groups.items():
            turn = self._turn.get(key, 0)
            order = members[turn % len(members) :] + members[: turn % len(members)]
            chosen.append(min(order, key=lambda member: member.pending))
            self._turn[key] = turn + 1
        return chosen

    async def subscribe(
        self, subject: str, *, queue: str = "", max_pending: int = 1024, overflow: Overflow = "drop_oldest"
    ) -> Subscription:
        """Receives what is published from now on."""
        subscription = Subscription(subject, queue, max_pending, overflow)
        self.attach(subscription)
        return subscription

    def attach(self, subscription: Subscription) -> None:
        """Serves a subscription made elsewhere, for example for a client of a server."""
        if self._closed:
            raise BusClosed("the bus is closed")
        key = (subscription.subject, subscription.queue)

        async def leave() -> None:
            with contextlib.suppress(ValueError):
                self._subscriptions.remove(subscription)
            if not any((other.subject, other.queue) == key for other in self._subscriptions):
                self._turn.pop(key, None)

        subscription.on_close(leave)
        self._subscriptions.append(subscription)

    async def replay(self, subject: str, *, start: int = 1, limit: int = 1000) -> list[tuple[int, Envelope]]:
        """Messages still in the log with their numbers, in order."""
        pattern = check_subject(subject, wildcards=True)
        found = (
            (number, env)
            for number, env in self._log.items()
            if number >= start and matches(pattern, tuple(env.topic.split(".")))
        )
        return list(itertools.islice(found, limit))

    async def recall(self, message_id: str) -> Recall:
        """Takes a message back wherever it has not been taken, and out of the log."""
        for number in [number for number, env in self._log.items() if env.id == message_id]:
            del self._log[number]
        removed = sum(subscription.recall(message_id) for subscription in self._subscriptions)
        return Recall(removed, sum(subscription.had(message_id) for subscription in self._subscriptions))

    async def _subscribers(self, subject: str) -> int:
        tokens = check_subject(subject, wildcards=False)
        return sum(matches(subscription.tokens, tokens) for subscription in self._subscriptions)

    async def close(self) -> None:
        """Ends all subscriptions."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.end()
        self._subscriptions.clear()
