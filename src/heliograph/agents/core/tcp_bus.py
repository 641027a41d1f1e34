"""The bus over TCP: one server process holds the queues, clients publish and subscribe through it.

A frame is four bytes of length (big endian) and that many bytes of MessagePack, one of the structures below. A frame
that is too long, does not decode, or comes before the greeting ends its connection and touches nobody else. Policies
that wait ("block", "error") count what a client has not taken yet; policies that drop are applied where the queue is:
in the client while it reads, in the server when the client stops reading. Either queue holds ``max_pending`` messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import itertools
import struct
from collections.abc import Iterable
from typing import Any

import msgspec

from heliograph.agents.core.bus import (
    Bus,
    BusClosed,
    BusOverflow,
    MemoryBus,
    Overflow,
    Recall,
    Subscription,
    check_subject,
)
from heliograph.agents.core.envelope import Envelope
from heliograph.agents.core.interceptor import Interceptor, Rejected
from heliograph.errors import BadInput

__all__ = ["TcpBus", "TcpBusServer"]

VERSION = 1
MAX_FRAME_BYTES = 8 * 1024 * 1024
MAX_IN_FLIGHT = 256
"""Requests of one connection that the server works on at a time; more of them end the connection."""


class _Frame(msgspec.Struct, frozen=True, tag=True, array_like=True):
    pass


class Hello(_Frame, frozen=True):
    version: int
    token: str = ""


class Welcome(_Frame, frozen=True):
    version: int


class Publish(_Frame, frozen=True):
    number: int
    env: Envelope


class Subscribe(_Frame, frozen=True):
    number: int
    sid: int
    subject: str
    queue: str
    max_pending: int
    overflow: Overflow


class Unsubscribe(_Frame, frozen=True):
    sid: int


class Credit(_Frame, frozen=True):
    sid: int
    count: int


class Replay(_Frame, frozen=True):
    number: int
    subject: str
    start: int
    limit: int


class RecallRequest(_Frame, frozen=True):
    number: int
    message_id: str


class Count(_Frame, frozen=True):
    number: int
    subject: str


class Withdrawn(_Frame, frozen=True):
    number: int
    removed: int
    delivered: int


class Done(_Frame, frozen=True):
    number: int
    value: int = 0
    second: int = 0


class Fail(_Frame, frozen=True):
    number: int
    error: str
    message: str


class Message(_Frame, frozen=True):
    sid: int
    env: Envelope


class Replayed(_Frame, frozen=True):
    number: int
    found: list[tuple[int, Envelope]]


class Withdraw(_Frame, frozen=True):
    number: int
    message_id: str


FromClient = Hello | Publish | Subscribe | Unsubscribe | Credit | Replay | RecallRequest | Count | Withdrawn
FromServer = Welcome | Done | Fail | Message | Replayed | Withdraw

_ENCODE = msgspec.msgpack.Encoder()
_FROM_CLIENT = msgspec.msgpack.Decoder(FromClient)
_FROM_SERVER = msgspec.msgpack.Decoder(FromServer)
_ERRORS = {"BadInput": BadInput, "BusOverflow": BusOverflow, "BusClosed": BusClosed, "Rejected": Rejected}


def encode_frame(frame: _Frame) -> bytes:
    """Length and body.

    Raises:
        BadInput: longer than a frame can be, or not encodable.
    """
    try:
        body = _ENCODE.encode(frame)
    except (TypeError, OverflowError, UnicodeEncodeError) as error:
        raise BadInput(f"this message cannot be sent: {error}") from None
    if len(body) > MAX_FRAME_BYTES:
        raise BadInput(f"a message may have {MAX_FRAME_BYTES} bytes on the wire; this one has {len(body)}")
    return struct.pack(">I", len(body)) + body


async def _read_frame(reader: asyncio.StreamReader, decoder: msgspec.msgpack.Decoder[Any]) -> Any:
    """The next frame; None at the end of the stream.

    Raises:
        BadInput: not a frame.
    """
    try:
        (length,) = struct.unpack(">I", await reader.readexactly(4))
        if not 0 < length <= MAX_FRAME_BYTES:
            raise BadInput(f"a frame of {length} bytes; 1 to {MAX_FRAME_BYTES} are allowed")
        return decoder.decode(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadInput(f"not a frame of this protocol: {error}") from None


class _Remote(Subscription):
    """The server's side of a client's subscription."""

    def __init__(self, subject: str, queue: str, max_pending: int, overflow: Overflow) -> None:
        super().__init__(subject, queue, max_pending, overflow)
        self.outstanding = 0

    def full(self) -> bool:
        held = self.outstanding if self.overflow in ("block", "error") else 0
        return self.pending + held >= self.max_pending

    def credit(self, count: int) -> None:
        self.outstanding = max(0, self.outstanding - count)
        self._room.set()


class TcpBusServer:
    """Serves a :class:`MemoryBus` to clients.

    Args:
        host, port: to listen on; port 0 takes a free one.
        token: that clients must know; needed beyond loopback.
        bus: to serve; a new one by default.
        max_clients: connections at a time.

    Raises:
        BadInput: a host beyond loopback without a token.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        token: str = "",
        bus: MemoryBus | None = None,
        max_clients: int = 1000,
    ) -> None:
        if not token and not _is_loopback(host):
            raise BadInput(f"{host} is reachable by other machines: give a token, or listen on 127.0.0.1")
        self.host, self.port, self.token = host, port, token
        self.bus = bus if bus is not None else MemoryBus()
        self.max_clients = max_clients
        self.refused_frames = 0
        self._clients: set[_ServedClient] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> TcpBusServer:
        """Listens; :attr:`port` is then the real one.

        Raises:
            BadInput: the address cannot be bound.
        """
        try:
            self._server = await asyncio.start_server(self._serve, self.host, self.port)
        except OSError as error:
            raise BadInput(f"cannot listen on {self.host}:{self.port}: {error.strerror}") from None
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        """Ends all connections and the bus."""
        if self._server is not None:
            self._server.close()
        for client in list(self._clients):
            client.writer.close()
        await self.bus.close()
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    async def __aenter__(self) -> TcpBusServer:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= self.max_clients:
            writer.close()
            return
        client = _ServedClient(self, reader, writer)
        self._clients.add(client)
        try:
            await client.run()
        except BadInput as error:
            self.refused_frames += 1
            with contextlib.suppress(ConnectionError):
                writer.write(encode_frame(Fail(0, "BadInput", str(error))))
        finally:
            self._clients.discard(client)
            await client.leave()
            writer.close()

    async def recall(self, message_id: str) -> Recall:
        """Out of the log, the server's queues and the clients' queues."""
        here = await self.bus.recall(message_id)
        there = await asyncio.gather(*(client.withdraw(message_id) for client in list(self._clients)))
        return Recall(here.removed + sum(r for r, _ in there), sum(d for _, d in there))


class _ServedClient:
    def __init__(self, server: TcpBusServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server, self.reader, self.writer = server, reader, writer
        self._subscriptions: dict[int, _Remote] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._publications: asyncio.Queue[Publish] = asyncio.Queue()
        self._working = 0
        self._asked: dict[int, asyncio.Future[tuple[int, int]]] = {}
        self._numbers = itertools.count(1)

    async def run(self) -> None:
        async with asyncio.timeout(10):
            hello = await _read_frame(self.reader, _FROM_CLIENT)
        if hello is None:
            return
        if not isinstance(hello, Hello) or hello.version != VERSION:
            raise BadInput(f"a connection starts with a greeting of version {VERSION}")
        if not hmac.compare_digest(hello.token.encode(), self.server.token.encode()):
            raise BadInput("the token is not this server's")
        await self.send(Welcome(VERSION))
        self._start(self._publish_in_order())
        while (frame := await _read_frame(self.reader, _FROM_CLIENT)) is not None:
            await self._take(frame)

    async def _take(self, frame: FromClient) -> None:
        match frame:
            case Publish():
                self._enter()
                self._publications.put_nowait(frame)
            case Subscribe():
                await self._subscribe(frame)
            case Unsubscribe():
                gone = self._subscriptions.pop(frame.sid, None)
                if gone is not None:
                    await gone.unsubscribe()
            case Credit():
                if frame.sid in self._subscriptions:
                    self._subscriptions[frame.sid].credit(frame.count)
            case Replay() | RecallRequest() | Count():
                self._enter()
                self._start(self._answer(frame))
            case Withdrawn():
                asked = self._asked.pop(frame.number, None)
                if asked is not None and not asked.done():
                    asked.set_result((frame.removed, frame.delivered))
            case Hello():
                raise BadInput("a second greeting")

    def _enter(self) -> None:
        self._working += 1
        if self._working > MAX_IN_FLIGHT:
            raise BadInput(f"more than {MAX_IN_FLIGHT} requests at a time on one connection")

    async def _publish_in_order(self) -> None:
        while True:
            frame = await self._publications.get()
            try:
                number = await self.server.bus.publish(frame.env)
                await self.send(Done(frame.number, number))
            except (BadInput, BusOverflow, BusClosed, Rejected) as error:
                await self.send(Fail(frame.number, type(error).__name__, str(error)))
            finally:
                self._working -= 1

    async def _subscribe(self, frame: Subscribe) -> None:
        try:
            if frame.sid in self._subscriptions:
                raise BadInput(f"subscription {frame.sid} exists")
            remote = _Remote(frame.subject, frame.queue, frame.max_pending, frame.overflow)
            self.server.bus.attach(remote)
        except (BadInput, BusClosed) as error:
            await self.send(Fail(frame.number, type(error).__name__, str(error)))
            return
        self._subscriptions[frame.sid] = remote
        await self.send(Done(frame.number))
        self._start(self._pump(frame.sid, remote))

    async def _pump(self, sid: int, remote: _Remote) -> None:
        async for env in remote:
            remote.outstanding += 1
            await self.send(Message(sid, env))

    async def _answer(self, frame: Replay | RecallRequest | Count) -> None:
        try:
            match frame:
                case Replay():
                    found = await self.server.bus.replay(frame.subject, start=frame.start, limit=frame.limit)
                    await self.send(Replayed(frame.number, found))
                case RecallRequest():
                    recall = await self.server.recall(frame.message_id)
                    await self.send(Done(frame.number, recall.removed, recall.delivered))
                case Count():
                    await self.send(Done(frame.number, await self.server.bus._subscribers(frame.subject)))
        except (BadInput, BusClosed) as error:
            await self.send(Fail(frame.number, type(error).__name__, str(error)))
        finally:
            self._working -= 1

    async def withdraw(self, message_id: str) -> tuple[int, int]:
        number = next(self._numbers)
        asked = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(2):
                await self.send(Withdraw(number, message_id))
                answer: tuple[int, int] = await asked
                return answer
        except TimeoutError:
            return (0, 0)
        finally:
            self._asked.pop(number, None)

    async def send(self, frame: _Frame) -> None:
        with contextlib.suppress(ConnectionError):
            self.writer.write(encode_frame(frame))
            await self.writer.drain()

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def leave(self) -> None:
        for remote in self._subscriptions.values():
            await remote.unsubscribe()
        self._subscriptions.clear()
        for task in list(self._tasks):
            task.cancel()


class TcpBus(Bus):
    """A client of a :class:`TcpBusServer`. Make one with :meth:`connect`."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        interceptors: Iterable[Interceptor] = (),
    ) -> None:
        super().__init__(interceptors)
        self._reader, self._writer = reader, writer
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._subscriptions: dict[int, Subscription] = {}
        self._gate = asyncio.Semaphore(MAX_IN_FLIGHT // 2)
        self._closed = False
        self._why = "the bus is closed"
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls, host: str, port: int, *, token: str = "", interceptors: Iterable[Interceptor] = (), timeout_s: float = 10.0
    ) -> TcpBus:
        """Connects and greets.

        Raises:
            BusClosed: nobody listens there, or the server refuses.
        """
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(encode_frame(Hello(VERSION, token)))
                welcome = await _read_frame(reader, _FROM_SERVER)
        except (OSError, TimeoutError, BadInput) as error:
            raise BusClosed(f"cannot reach a bus at {host}:{port}: {error or 'no answer'}") from None
        if not isinstance(welcome, Welcome):
            writer.close()
            raise BusClosed(
                f"the bus at {host}:{port} refuses: {getattr(welcome, 'message', 'it speaks another protocol')}"
            )
        bus = cls(reader, writer, interceptors)
        bus._task = asyncio.create_task(bus._read())
        return bus

    async def _read(self) -> None:
        try:
            while (frame := await _read_frame(self._reader, _FROM_SERVER)) is not None:
                await self._take(frame)
            self._why = "the server of the bus closed the connection"
        except (BadInput, ConnectionError) as error:
            self._why = f"the connection to the bus is lost: {error}"
        finally:
            self._end()

    async def _take(self, frame: FromServer) -> None:
        match frame:
            case Message():
                subscription = self._subscriptions.get(frame.sid)
                if subscription is not None:
                    # For "block" and "error" the server has counted the room already.
                    subscription.put(frame.env)
            case Done() | Replayed():
                self._settle(frame.number, frame)
            case Fail():
                if frame.number == 0:
                    self._why = f"the server of the bus refuses: {frame.message}"
                self._settle(frame.number, _ERRORS.get(frame.error, BusClosed)(frame.message))
            case Withdraw():
                held = self._subscriptions.values()
                removed = sum(subscription.recall(frame.message_id) for subscription in held)
                delivered = sum(subscription.had(frame.message_id) for subscription in held)
                await self._send(Withdrawn(frame.number, removed, delivered))
            case Welcome():
                pass

    def _settle(self, number: int, outcome: Any) -> None:
        waiter = self._waiting.pop(number, None)
        if waiter is None or waiter.done():
            return
        if isinstance(outcome, Exception):
            waiter.set_exception(outcome)
        else:
            waiter.set_result(outcome)

    async def _send(self, frame: _Frame) -> None:
        if self._closed:
            raise BusClosed(self._why)
        data = encode_frame(frame)
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError:
            raise BusClosed("the connection to the bus is lost") from None

    async def _ask(self, make: Any) -> Any:
        async with self._gate:
            number = next(self._numbers)
            waiter = self._waiting[number] = asyncio.get_running_loop().create_future()
            try:
                await self._send(make(number))
                return await waiter
            finally:
                self._waiting.pop(number, None)

    async def _publish(self, env: Envelope) -> int:
        done: Done = await self._ask(lambda number: Publish(number, env))
        return done.value

    async def subscribe(
        self, subject: str, *, queue: str = "", max_pending: int = 1024, overflow: Overflow = "drop_oldest"
    ) -> Subscription:
        """Receives what is published from now on."""
        # One more than max_pending never arrives for "block" and "error": the server counts.
        subscription = Subscription(subject, queue, max_pending, overflow)
        sid = next(self._numbers)

        async def leave() -> None:
            self._subscriptions.pop(sid, None)
            if not self._closed:
                await self._send(Unsubscribe(sid))

        def took() -> None:
            if overflow in ("block", "error") and not self._closed:
                self._writer.write(encode_frame(Credit(sid, 1)))

        subscription.on_close(leave)
        subscription.on_take(took)
        self._subscriptions[sid] = subscription
        try:
            await self._ask(lambda number: Subscribe(number, sid, subject, queue, max_pending, overflow))
        except BaseException:
            self._subscriptions.pop(sid, None)
            raise
        return subscription

    async def replay(self, subject: str, *, start: int = 1, limit: int = 1000) -> list[tuple[int, Envelope]]:
        """Messages still in the server's log with their numbers, in order."""
        check_subject(subject, wildcards=True)
        answer: Replayed = await self._ask(lambda number: Replay(number, subject, start, limit))
        return answer.found

    async def recall(self, message_id: str) -> Recall:
        """Takes a message back out of the log, the server's queues and all clients' queues."""
        done: Done = await self._ask(lambda number: RecallRequest(number, message_id))
        return Recall(done.value, done.second)

    async def _subscribers(self, subject: str) -> int:
        check_subject(subject, wildcards=False)
        done: Done = await self._ask(lambda number: Count(number, subject))
        return done.value

    def _end(self) -> None:
        self._closed = True
        for subscription in self._subscriptions.values():
            subscription.end()
        self._subscriptions.clear()
        for number in list(self._waiting):
            self._settle(number, BusClosed(self._why))
        self._writer.close()

    async def close(self) -> None:
        """Leaves the server."""
        self._end()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
