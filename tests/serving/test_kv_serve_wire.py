"""Two engines, one of which fetches the other's keys and values compressed; a fetch that fails costs no answer."""

import asyncio
import socket
import threading
from dataclasses import replace

import pytest
import torch

from heliograph.errors import BadInput
from heliograph.lm.core.sampling import SamplingParams
from heliograph.serving.core.async_engine import AsyncEngine
from heliograph.serving.core.engine import Engine
from heliograph.serving.core.frames import receive_frame, send_frame
from heliograph.serving.core.kv_transfer import TransferFailed
from heliograph.serving.core.request import Ticket
from heliograph.serving.kv_serve import (
    METHODS,
    CompressedFetch,
    CompressedKVServer,
    CompressionController,
    CompressionPoint,
    CompressionProfile,
    KVPipeline,
)
from tests.serving.core.conftest import tiny  # noqa: F401 - a fixture

GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_end=True)
PROMPT = list(range(30, 75))


def controller(point=METHODS["lossless"]):
    """One that compresses whatever the link: its bandwidth stays at a byte a second."""
    profile = CompressionProfile("only", point, (1,), (2.0,), (1e12,), (1e12,))
    return CompressionController([profile], epsilon=0, bytes_per_s=1.0, bandwidth_alpha=0, learn=False)


class Pair:
    def __init__(self, model, chooser, **server):
        self.server = CompressedKVServer(chooser, **server)
        self.fetch = CompressedFetch(8, dtype="float32", timeout_s=10)
        self.sender = AsyncEngine(Engine(model, block_size=16, num_blocks=16), address=self.server.address)
        self.receiver = AsyncEngine(Engine(model, block_size=8, num_blocks=32), fetch=self.fetch)
        self.server.engine = self.sender

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.close()
        self.sender.close()
        self.receiver.close()

    def answer(self, spoil=lambda ticket: ticket):
        return asyncio.run(self._answer(spoil))

    async def _answer(self, spoil):
        drawn, ticket = [], None
        one = replace(GREEDY, max_tokens=1)
        async for event in self.sender.stream(self.sender.engine.request(PROMPT, one, request_id="p", producer=True)):
            drawn += [event.sample.token] if event.sample else []
            ticket = event.ticket or ticket
        assert ticket is not None
        request = self.receiver.engine.request(PROMPT, GREEDY, request_id="d", ticket=spoil(ticket), answer=drawn)
        async for event in self.receiver.stream(request):
            drawn += [event.sample.token] if event.sample else []
        await self.receiver.check()
        return drawn


@pytest.fixture
def alone(tiny):  # noqa: F811
    engine = Engine(tiny, block_size=16, num_blocks=16)
    yield list(engine.generate([PROMPT], GREEDY)[0].tokens)
    engine.close()


def test_an_answer_over_a_lossless_link_is_that_of_one_engine(tiny, alone):  # noqa: F811
    chooser = controller()
    with Pair(tiny, chooser) as pair:
        assert pair.answer() == alone
        assert pair.fetch.profiles == {"only": 1}
        assert chooser.chosen == {"only": 1}
        assert pair.server.sent_bytes < pair.server.raw_bytes
        asyncio.run(pair.sender.check())
        assert not pair.sender.engine.core.kv.leases


def test_keys_and_values_travel_in_another_number_format(tiny):  # noqa: F811
    with Pair(tiny, controller(), dtype="bfloat16") as pair:
        assert len(pair.answer()) == 6
        assert pair.server.raw_bytes == 2 * 2 * len(PROMPT) * 2 * 8 * 2
        assert not pair.fetch.failures


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"key": "gone"}, "lease"), ({"port": 9}, "link"), ({"tokens": 44}, "layout")],
)
def test_a_fetch_that_fails_is_counted_and_the_prompt_is_computed_there(tiny, alone, change, reason):  # noqa: F811
    with Pair(tiny, controller()) as pair:
        assert pair.answer(lambda ticket: replace(ticket, **change)) == alone
        assert pair.fetch.failures == {reason: 1}


def test_a_frame_damaged_on_the_way_is_counted_at_both_ends(tiny, alone, monkeypatch):  # noqa: F811
    whole = KVPipeline.compress
    monkeypatch.setattr(KVPipeline, "compress", lambda *a, **k: whole(*a, **k)[:-1])
    chooser = controller(CompressionPoint())
    with Pair(tiny, chooser) as pair:
        assert pair.answer() == alone
        assert pair.fetch.failures == {"checksum": 1}
        assert list(pair.sender.engine.core.kv.leases) == ["p"]  # as it was; it ends by itself
    assert chooser.failures == {"checksum": 1}


def test_a_holder_that_dies_half_way_is_counted():
    listening = socket.create_server(("127.0.0.1", 0))

    def die():
        connection, _ = listening.accept()
        receive_frame(connection)
        connection.sendall(b"\x00\x00\x00\x20abc")
        connection.close()

    thread = threading.Thread(target=die)
    thread.start()
    fetch = CompressedFetch(8, timeout_s=5)
    with pytest.raises(TransferFailed, match="went away"):
        fetch(Ticket("127.0.0.1", listening.getsockname()[1], "k", 4, "model", 10**4))
    thread.join()
    listening.close()
    assert fetch.failures == {"link": 1}


@pytest.mark.parametrize("asks", [{"min_quality": "x"}, {"slo_s": []}])
def test_a_fetch_that_asks_for_nonsense_is_told(tiny, asks):  # noqa: F811
    server = CompressedKVServer(controller())
    engine = AsyncEngine(Engine(tiny, block_size=16, num_blocks=16), address=server.address)
    server.engine = engine
    try:
        with socket.create_connection(server.address, 5) as connection:
            send_frame(connection, {"key": "nobody", **asks})
            assert "error" in receive_frame(connection)[0]
    finally:
        server.close()
        engine.close()


def test_unknown_number_formats_are_refused():
    with pytest.raises(BadInput, match="float32"):
        CompressedFetch(8, dtype="int4")
    with pytest.raises(BadInput, match="float32"):
        CompressedKVServer(controller(), dtype="int4")


def test_a_fetched_cache_fills_blocks_of_the_receiver_and_ends_in_zeros(tiny):  # noqa: F811
    found = []
    with Pair(tiny, controller()) as pair:
        pair.receiver._fetch = lambda ticket: found.append(pair.fetch(ticket)) or found[-1]
        pair.answer()
    assert found[0].shape == (2, 2, 6, 8, 2, 8)
    assert not torch.any(found[0].flatten(2, 3)[:, :, len(PROMPT) :])
