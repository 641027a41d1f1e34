"""The bus over a NATS server: JetStream keeps the log.

What differs from the other backends: a publisher cannot wait for or hear of a slow subscriber, so the policies "block"
and "error" are refused; a request to a subject without subscribers ends as a timeout; queue groups pick at random; the
counts of a recall are what the other clients report within ``recall_wait_s``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import msgspec

from heliograph.agents.core.bus import Bus, BusClosed, Overflow, Recall, Subscription, check_subject, matches
from heliograph.agents.core.envelope import Envelope, new_id
from heliograph.agents.core.interceptor import Interceptor
from heliograph.errors import BadInput, MissingExtra

__all__ = ["NatsBus"]

_ENCODE = msgspec.msgpack.Encoder()
_DECODE = msgspec.msgpack.Decoder(Envelope)


class NatsBus(Bus):
    """A client of a NATS server. Make one with :meth:`connect`.

    Attributes:
        refused: messages that were no envelopes, from foreign publishers.
    """

    def __init__(self, client: Any, prefix: str, interceptors: Iterable[Interceptor] = ()) -> None:
        super().__init__(interceptors)
        self._client, self._prefix = client, prefix
        self._stream = ""
        self._jetstream: Any = None
        self._subscriptions: list[Subscription] = []
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._recall_wait_s = 0.25
        self._closed = False
        self.refused = 0

    @classmethod
    async def connect(
        cls,
        url: str = "nats://127.0.0.1:4222",
        *,
        prefix: str = "heliograph",
        log_length: int = 10_000,
        interceptors: Iterable[Interceptor] = (),
        recall_wait_s: float = 0.25,
        timeout_s: float = 10.0,
        **options: Any,
    ) -> NatsBus:
        """Connects, and makes the stream that keeps the log.

        Args:
            url: of the server.
            prefix: first token of all subjects there; buses of one prefix hear each other.
            log_length: messages that JetStream keeps; 0 for no log, and a server without JetStream.
            interceptors: see every message before any subscriber does.
            recall_wait_s: how long a recall waits for the other clients.
            timeout_s: for the connection.
            options: of ``nats.connect``: credentials, TLS, names.

        Raises:
            BusClosed: no server there, or no JetStream.
        """
        try:
            import nats
            from nats import errors
            from nats.js import api
            from nats.js.errors import Error as JetStreamError
        except ModuleNotFoundError as error:
            raise MissingExtra("nats-py", "agents") from error
        check_subject(prefix, wildcards=False)
        try:
            async with asyncio.timeout(timeout_s):  # nats-py tries again and again
                client = await nats.connect(url, **{"allow_reconnect": True, "max_reconnect_attempts": 10, **options})
        except (OSError, errors.Error, TimeoutError) as error:
            raise BusClosed(f"cannot reach a NATS server at {url}: {error or type(error).__name__}") from None
        bus = cls(client, prefix, interceptors)
        bus._recall_wait_s = recall_wait_s
        if log_length:
            bus._jetstream = client.jetstream()
            bus._stream = prefix.replace(".", "_") + "_log"
            try:
                await bus._jetstream.add_stream(
                    api.StreamConfig(
                        name=bus._stream,
                        subjects=[f"{prefix}.log.>"],
                        max_msgs=log_length,
                        storage=api.StorageType.MEMORY,
                        allow_direct=True,
                    )
                )
            except (JetStreamError, errors.Error) as error:
                await client.close()
                raise BusClosed(
                    f"{url} keeps no log ({error or 'no JetStream'}): start it with -js, or connect with log_length=0"
                ) from None
        await client.subscribe(f"{prefix}.control.recall", cb=bus._on_recall)
        await client.flush()
        await client.flush()
        return bus

    def _place(self, subject: str) -> str:
        return f"{self._prefix}.{'live' if subject.startswith('_inbox.') or not self._stream else 'log'}.{subject}"

    async def _publish(self, env: Envelope) -> int:
        if self._closed or self._client.is_closed:
            raise BusClosed("the bus is closed")
        data = _ENCODE.encode(env)
        place = self._place(env.topic)
        if ".log." not in place:
            await self._client.publish(place, data)
            return 0
        number: int = (await self._jetstream.publish(place, data)).seq
        self._numbers[env.id] = number
        if len(self._numbers) > 10_000:
            self._numbers.popitem(last=False)
        return number

    async def subscribe(
        self, subject: str, *, queue: str = "", max_pending: int = 1024, overflow: Overflow = "drop_oldest"
    ) -> Subscription:
        """Receives what is published from now on.

        Raises:
            BadInput: "block" or "error", which NATS has not.
        """
        if self._closed:
            raise BusClosed("the bus is closed")
        if overflow in ("block", "error"):
            raise BadInput(
                f"a NATS publisher does not hear of slow subscribers, so overflow={overflow!r} cannot be had; "
                "use drop_oldest or drop_newest"
            )
        subscription = Subscription(subject, queue, max_pending, overflow)

        async def arrived(message: Any) -> None:
            with contextlib.suppress(ValueError):
                subscription.put(_DECODE.decode(message.data))
                return
            self.refused += 1

        # A first token of "*" or ">" does not cover inboxes, as their subjects begin elsewhere.
        handle = await self._client.subscribe(self._place(subject), queue=queue, cb=arrived)
        # One flush may overtake the subscription, which waits in the client's buffer; the second cannot.
        await self._client.flush()
        await self._client.flush()

        async def leave() -> None:
            with contextlib.suppress(ValueError):
                self._subscriptions.remove(subscription)
            if not self._client.is_closed:
                await handle.unsubscribe()

        subscription.on_close(leave)
        self._subscriptions.append(subscription)
        return subscription

    async def replay(self, subject: str, *, start: int = 1, limit: int = 1000) -> list[tuple[int, Envelope]]:
        """Messages still in the stream with their numbers, in order."""
        check_subject(subject, wildcards=True)
        if not self._stream:
            return []
        from nats.js.errors import NotFoundError

        found: list[tuple[int, Envelope]] = []
        number = max(1, start)
        while len(found) < limit:
            try:
                message = await self._jetstream.get_msg(
                    self._stream, seq=number, subject=f"{self._prefix}.log.{subject}", direct=True, next=True
                )
            except NotFoundError:
                break
            with contextlib.suppress(ValueError):
                found.append((message.seq, _DECODE.decode(message.data)))
            number = message.seq + 1
        return found

    async def recall(self, message_id: str) -> Recall:
        """Takes a message back out of the stream, if it was published here, and out of all clients' queues."""
        from nats.js.errors import NotFoundError

        number = self._numbers.pop(message_id, None)
        if number is not None and self._stream:
            with contextlib.suppress(NotFoundError):
                await self._jetstream.delete_msg(self._stream, number)
        inbox = f"{self._prefix}.control.{new_id()}"
        reports: list[tuple[int, int]] = []

        async def report(message: Any) -> None:
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                reports.append(msgspec.msgpack.decode(message.data, type=tuple[int, int]))

        handle = await self._client.subscribe(inbox, cb=report)
        await self._client.flush()
        await self._client.publish(f"{self._prefix}.control.recall", message_id.encode(), reply=inbox)
        await self._client.flush()
        await asyncio.sleep(self._recall_wait_s)
        await handle.unsubscribe()
        return Recall(sum(removed for removed, _ in reports), sum(delivered for _, delivered in reports))

    async def _on_recall(self, message: Any) -> None:
        message_id = message.data.decode(errors="replace")
        removed = sum(subscription.recall(message_id) for subscription in self._subscriptions)
        delivered = sum(subscription.had(message_id) for subscription in self._subscriptions)
        if message.reply:
            await self._client.publish(message.reply, msgspec.msgpack.encode((removed, delivered)))

    async def _subscribers(self, subject: str) -> int:
        tokens = check_subject(subject, wildcards=False)
        return max(1, sum(matches(subscription.tokens, tokens) for subscription in self._subscriptions))

    async def close(self) -> None:
        """Leaves the server."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.end()
        self._subscriptions.clear()
        if not self._client.is_closed:
            await self._client.close()
