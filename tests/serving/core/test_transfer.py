"""Keys and values pass from one engine to another without changing a token, and nobody keeps blocks for the dead."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.clock import VirtualClock
from heliograph.errors import BadInput
from heliograph.lm.core.generate import generate
from heliograph.lm.core.load import LanguageModel
from heliograph.lm.core.sampling import SamplingParams
from heliograph.serving.core.async_engine import AsyncEngine, StreamEvent
from heliograph.serving.core.engine import Engine, EngineCore
from heliograph.serving.core.frames import FrameError, pack, receive_frame, send_frame
from heliograph.serving.core.kv_transfer import KVServer, TransferFailed, fetch_blocks
from heliograph.serving.core.request import Request, RequestState, Ticket

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_end=True)
PROMPT = list(b"a prompt that fills several blocks")


@dataclass
class Pair:
    producer: AsyncEngine
    consumer: AsyncEngine
    server: KVServer
    clock: VirtualClock

    async def produce(self, name: str = "r") -> tuple[int, Ticket]:
        """The first token of the prompt, and the ticket for its keys and values."""
        first = replace(GREEDY, max_tokens=1)
        request = self.producer.engine.request(PROMPT, first, request_id=name, producer=True)
        events = [event async for event in self.producer.stream(request)]
        assert events[-1].ticket is not None
        assert events[-1].sample is not None
        return events[-1].sample.token, events[-1].ticket

    async def consume(self, token: int, ticket: Ticket, name: str = "r") -> tuple[list[int], StreamEvent]:
        """The whole answer, and the last event."""
        request = self.consumer.engine.request(PROMPT, GREEDY, request_id=name, answer=[token], ticket=ticket)
        events = [event async for event in self.consumer.stream(request)]
        return request.output, events[-1]

    async def settled(self) -> None:
        """Waits until nothing is held at either end."""
        async with asyncio.timeout(20):
            for engine in (self.producer, self.consumer):
                while (await engine.stats()).kv_usage or (await engine.stats()).leases:
                    await asyncio.sleep(0)
                await engine.check()


@asynccontextmanager
async def pair(
    model: LanguageModel, *, fetch: Callable[[Ticket], torch.Tensor] = fetch_blocks, **settings: Any
) -> AsyncIterator[Pair]:
    clock, server = VirtualClock(), KVServer(timeout_s=5.0)
    made = {"block_size": 4, "num_blocks": 40}
    producer = AsyncEngine(Engine(model, clock=clock, **made), address=server.address, lease_s=10.0)  # type: ignore[arg-type]
    consumer = AsyncEngine(Engine(model, **made), fetch=fetch, **settings)  # type: ignore[arg-type]
    server.engine = producer
    try:
        yield Pair(producer, consumer, server, clock)
    finally:
        server.close()
        producer.close()
        consumer.close()


def run(model: LanguageModel, action: Callable[[Pair], Any], **settings: Any) -> Any:
    async def whole() -> Any:
        async with asyncio.timeout(60), pair(model, **settings) as both:
            return await action(both)

    return asyncio.run(whole())


def plain(model: LanguageModel) -> list[int]:
    return list(generate(model, [PROMPT], GREEDY)[0].tokens)


def test_a_handed_over_request_goes_on_with_the_same_tokens_and_frees_both_ends(tiny: LanguageModel) -> None:
    async def act(both: Pair) -> list[int]:
        tokens, _ = await both.consume(*await both.produce())
        await both.settled()
        assert (await both.consumer.stats()).prompt_tokens == 0  # nothing was computed twice
        return tokens

    assert run(tiny, act) == plain(tiny)


def test_blocks_of_somebody_who_never_comes_are_freed_when_the_lease_ends(tiny: LanguageModel) -> None:
    async def act(both: Pair) -> None:
        await both.produce()
        assert (await both.producer.stats()).leases == 1
        await both.producer.call(lambda: both.clock.sleep(11.0))
        await both.settled()

    run(tiny, act)


@pytest.mark.parametrize("fault", ["holder gone", "lease ended", "damaged", "cut off", "wrong shape"])
@pytest.mark.parametrize("then", ["recompute", "fail"])
def test_a_transfer_that_fails_is_computed_again_or_told(tiny: LanguageModel, fault: str, then: str) -> None:
    def broken(ticket: Ticket) -> torch.Tensor:
        found = fetch_blocks(ticket)
        return found[:, :, :-1] if fault == "wrong shape" else found

    async def act(both: Pair) -> Any:
        token, ticket = await both.produce()
        if fault == "holder gone":
            both.server.close()
            ticket = replace(ticket, port=_closed_port())
        elif fault == "lease ended":
            await both.producer.call(lambda: both.producer.engine.core.kv.release(ticket.key))
        elif fault in ("damaged", "cut off"):
            ticket = replace(ticket, port=_lying_server(fault))
        tokens, last = await both.consume(token, ticket)
        await both.producer.call(lambda: both.producer.engine.core.kv.release(ticket.key))
        await both.settled()
        return tokens, last

    tokens, last = run(tiny, act, fetch=broken, on_transfer_failure=then)
    if then == "recompute":
        assert tokens == plain(tiny)
    else:
        assert (last.finish, len(tokens)) == ("error", 1)
        assert "did not arrive" in last.error


def test_a_client_that_leaves_during_the_transfer_frees_both_ends(tiny: LanguageModel) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def slow(ticket: Ticket) -> torch.Tensor:
        reached.set()
        go_on.wait(20)
        return fetch_blocks(ticket)

    async def act(both: Pair) -> None:
        working = asyncio.create_task(both.consume(*await both.produce()))
        await asyncio.to_thread(reached.wait, 20)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        go_on.set()
        await both.settled()

    run(tiny, act, fetch=slow)


def test_a_producer_that_is_aborted_holds_nothing(tiny: LanguageModel) -> None:
    async def act(both: Pair) -> None:
        request = both.producer.engine.request(PROMPT, replace(GREEDY, max_tokens=1), producer=True)
        stream = both.producer.stream(request)
        task = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await stream.aclose()
        await both.settled()

    run(tiny, act)


def test_a_producer_that_is_aborted_while_it_is_taken_in_holds_nothing(tiny: LanguageModel) -> None:
    async def act(both: Pair) -> None:
        reached, go_on = threading.Event(), threading.Event()

        def slow(request: Request) -> Request:
            reached.set()
            go_on.wait(20)
            return EngineCore.add(both.producer.engine.core, request)

        both.producer.engine.core.add = slow  # type: ignore[method-assign]
        request = both.producer.engine.request(PROMPT, replace(GREEDY, max_tokens=1), producer=True)
        task = asyncio.create_task(anext(both.producer.stream(request)))
        await asyncio.to_thread(reached.wait, 20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        go_on.set()
        await both.settled()

    run(tiny, act)


def test_a_producer_whose_end_nobody_heard_holds_nothing(tiny: LanguageModel) -> None:
    async def act(both: Pair) -> None:
        request = both.producer.engine.request(PROMPT, replace(GREEDY, max_tokens=1), producer=True)
        task = asyncio.create_task(anext(both.producer.stream(request)))
        while request.state is RequestState.WAITING and request.id not in both.producer.engine.core.requests:
            await asyncio.sleep(0)
        while request.state is not RequestState.FINISHED:
            time.sleep(0.001)
        assert both.producer.submit(lambda: len(both.producer.engine.core.kv.leases)).result(20) == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await both.settled()

    run(tiny, act)


def test_a_second_request_of_the_same_name_is_refused_and_leaves_the_first_alone(tiny: LanguageModel) -> None:
    async def act(both: Pair) -> list[int]:
        stream = both.producer.stream(both.producer.engine.request(PROMPT, GREEDY, request_id="r"))
        first = await anext(stream)
        with pytest.raises(BadInput, match="being served already"):
            await anext(both.producer.stream(both.producer.engine.request(PROMPT, GREEDY, request_id="r")))
        tokens = [first, *[event async for event in stream]]
        assert tokens[-1].finish == "length"
        return [event.sample.token for event in tokens if event.sample is not None]

    assert run(tiny, act) == plain(tiny)


def test_keys_and_values_of_another_model_are_refused(tiny: LanguageModel) -> None:
    async def act(both: Pair) -> None:
        token, ticket = await both.produce()
        with pytest.raises(BadInput, match="another model"):
            await both.consume(token, replace(ticket, fingerprint="other"))
        await both.producer.call(lambda: both.producer.engine.core.kv.release(ticket.key))
        await both.settled()

    run(tiny, act)


@given(data=st.binary(max_size=64))
@settings(max_examples=60, deadline=None)
def test_bytes_that_are_no_frame_are_an_error_and_never_a_hang(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(5)
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        try:
            header, body = receive_frame(ours, 64)
        except FrameError:
            return
        assert pack(header) == data[: len(pack(header))] or body is not None


def test_a_body_larger_than_agreed_is_not_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        threading.Thread(target=lambda: send_frame(theirs, {}, bytes(1000)), daemon=True).start()
        with pytest.raises(FrameError, match="1000 bytes was announced; at most 10"):
            receive_frame(ours, 10)


def test_a_fetch_from_nobody_says_where(tiny: LanguageModel) -> None:
    with pytest.raises(TransferFailed, match=r"127\.0\.0\.1"):
        fetch_blocks(Ticket("127.0.0.1", _closed_port(), "k", 1, "f"), timeout_s=2)


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _lying_server(fault: str) -> int:
    """Sends a body that is damaged, or half of it."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, listening:
            receive_frame(connection)
            facts = {"shape": [2, 2, 9, 4, 2, 8], "dtype": "float32", "tokens": len(PROMPT), "crc": 0}
            whole = bytes(2 * 2 * 9 * 4 * 2 * 8 * 4)
            if fault == "damaged":
                send_frame(connection, facts, whole)
            else:
                connection.sendall(pack({**facts, "nbytes": len(whole)}) + whole[:100])

    threading.Thread(target=serve, daemon=True).start()
    return int(listening.getsockname()[1])
