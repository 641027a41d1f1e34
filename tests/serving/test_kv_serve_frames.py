"""Frames that are cut, changed, foreign or hostile are refused with a reason; links count them and go on."""

import socket
import struct
import threading
import zlib
from dataclasses import replace

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.serving.kv_serve import (
    CompressedLink,
    CompressionController,
    CompressionPoint,
    CompressionProfile,
    FrameDamaged,
    KVLayout,
    KVPipeline,
    KVPool,
    KVReceiver,
    LinkDown,
    PacedLink,
    SteadyPace,
    TransferContext,
    parts,
    restore,
)
from heliograph.serving.kv_serve import pipeline as pipelines
from heliograph.serving.kv_serve.frame import pack_frame, parse_frame

POINT = CompressionPoint(transform="hadamard", key_high=16, key_low=6, value_high=16, value_low=6, keep_recent=4)
LOSSLESS = CompressionPoint(quantizer="none", codec="huffman")


def cache(tokens=24, seed=0):
    return torch.randn(2, 2, tokens, 3, 64, generator=torch.Generator().manual_seed(seed)).bfloat16()


def frame(point=POINT):
    return KVPipeline(point, fingerprint="model").compress(cache(), request="r", attempt=2)


def with_header(data, change):
    """The frame with another header and the right checksum: what a hostile or newer sender would write."""
    length = struct.unpack_from("<4sII", data)[1]
    plain = msgspec.msgpack.decode(data[12 : 12 + length])
    change(plain)
    text = msgspec.msgpack.encode(plain)
    body = text + data[12 + length :]
    return struct.pack("<4sII", b"HKV1", len(text), zlib.crc32(body)) + body


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_a_frame_that_is_cut_or_changed_is_never_restored(data):
    whole = frame(data.draw(st.sampled_from([POINT, LOSSLESS])))
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        at, flip = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
        damaged = whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :]
    with pytest.raises(FrameDamaged):
        restore(damaged)


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_bytes_that_are_no_frame_are_refused(data):
    with pytest.raises(FrameDamaged):
        restore(data)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_a_hostile_header_with_a_right_checksum_is_refused_or_harmless(data):
    whole = frame()
    name = data.draw(
        st.sampled_from(["layout", "streams", "levels", "meta_bytes", "recent_bytes", "heads", "first_layer", "point"])
    )
    value = data.draw(
        st.sampled_from([None, -1, 2**40, "x", [], [[0, 6, 10**12, "zlib", 5]], b"\xff" * 24, {"seed": 3}, [1, 1, 1]])
        | st.lists(st.integers(-3, 2**33), max_size=6)
    )
    try:
        found = restore(with_header(whole, lambda plain: plain.__setitem__(name, value)), max_bytes=2**24)
    except FrameDamaged:
        return
    assert found.kv.shape == tuple(found.header.layout.shape)


@pytest.mark.parametrize(
    ("name", "value"), [("levels", 2**40), ("probe", 2**40), ("heads", None), ("layout", [2, 2**40, 3, 64, "bfloat16"])]
)
def test_a_number_in_the_place_of_a_table_allocates_nothing(name, value):
    def change(plain):
        plain[name] = value
        if name == "heads":
            plain["layout"] = [2, 3, 2**40, 64, "bfloat16"]

    with pytest.raises(FrameDamaged):
        restore(with_header(frame(), change))


def test_a_layout_that_would_fill_memory_is_refused_before_it_does():
    huge = with_header(frame(), lambda plain: plain.__setitem__("layout", [2, 2**30, 3, 64, "bfloat16"]))
    with pytest.raises(FrameDamaged) as caught:
        restore(huge)
    assert caught.value.reason == "layout"


def test_a_newer_version_is_refused():
    with pytest.raises(FrameDamaged) as caught:
        restore(with_header(frame(), lambda plain: plain.__setitem__("version", 2)))
    assert caught.value.reason == "version"


def test_another_model_is_refused():
    assert restore(frame(), fingerprint="model").header.request == "r"
    with pytest.raises(FrameDamaged, match="other") as caught:
        restore(frame(), fingerprint="other")
    assert caught.value.reason == "fingerprint"


def test_another_layout_is_refused():
    with pytest.raises(FrameDamaged) as caught:
        restore(frame(), layout=KVLayout(2, 23, 3, 64))
    assert caught.value.reason == "layout"


def test_another_seed_of_signs_is_noticed():
    def change(plain):
        plain["point"]["seed"] = 7

    with pytest.raises(FrameDamaged) as caught:
        restore(with_header(frame(), change))
    assert caught.value.reason == "signs"


@pytest.mark.parametrize("codec", ["huffman", "bitpack"])
def test_other_signs_are_noticed_by_the_probe(monkeypatch, codec):
    data = frame(replace(POINT, keep_recent=0, codec=codec, key_low=16, value_low=16))
    monkeypatch.setattr(pipelines, "signs_checksum", lambda *_: parse_frame(data)[0].signs)
    restore(data)
    original = parts.make_transform
    monkeypatch.setattr(parts, "make_transform", lambda n, d, seed, *rest: original(n, d, seed + 1, *rest))
    with pytest.raises(FrameDamaged) as caught:
        restore(data)
    assert caught.value.reason == "probe"


def test_levels_of_another_number_of_streams_are_refused():
    header, rest = parse_frame(frame())
    streams = [bytes(rest[-stream.nbytes :]) for stream in header.streams[-1:]]
    short = replace(header, streams=header.streams[-1:])
    meta = bytes(rest[: header.meta_bytes])
    recent = bytes(rest[header.meta_bytes : header.meta_bytes + header.recent_bytes])
    with pytest.raises(FrameDamaged, match="streams of"):
        restore(pack_frame(short, meta, recent, streams))


class Loop:
    """A link whose other end is here; what it carries can be changed on the way."""

    def __init__(self, receiver, change=lambda body: body):
        self.receiver, self.change, self.sent = receiver, change, []

    def call(self, header, body):
        self.sent.append(len(body))
        return self.receiver.take(header, self.change(bytes(body)))


def receiver(into, **settings):
    return KVReceiver(None, lambda *row: into.append(row), **settings)  # type: ignore[arg-type]


def test_a_link_delivers_what_was_sent_and_counts_bytes():
    into = []
    link = CompressedLink(Loop(receiver(into)), LOSSLESS, fingerprint="model")
    kv = cache()
    delivery = link.send(kv, request="a", attempt=1)
    assert delivery.arrived
    assert [row[:3] for row in into] == [("a", 1, 0)]
    assert torch.equal(into[0][3], kv)
    assert link.sent_bytes == delivery.taken.sent_bytes == link.base.sent[0]
    assert link.raw_bytes == kv.nbytes


def test_a_link_sends_layer_by_layer_where_asked():
    into = []
    link = CompressedLink(Loop(receiver(into)), POINT, layers_per_frame=1)
    assert link.send(cache()).arrived
    assert [row[2] for row in into] == [0, 1]
    whole = restore(KVPipeline(POINT).compress(cache())).kv
    assert torch.equal(torch.cat([row[3] for row in into]), whole)


def test_frames_made_ahead_are_those_made_in_turn():
    into, alone = [], []
    link = CompressedLink(Loop(receiver(into)), POINT, layers_per_frame=1, overlap=True)
    in_turn = CompressedLink(Loop(receiver(alone)), POINT, layers_per_frame=1)
    for number in range(3):
        delivery = link.send(cache(seed=number), request=str(number))
        assert delivery.arrived
        assert delivery.taken.seconds == delivery.taken.wall_s
        in_turn.send(cache(seed=number), request=str(number))
    assert [row[:3] for row in into] == [row[:3] for row in alone]
    assert all(torch.equal(one[3], two[3]) for one, two in zip(into, alone, strict=True))


def test_a_refusal_stops_the_frames_that_were_made_ahead():
    link = CompressedLink(Loop(receiver([], fingerprint="b")), POINT, layers_per_frame=1, overlap=True)
    assert link.send(cache()).reason == "fingerprint"
    assert len(link.base.sent) == 1
    link.base = Loop(receiver([]))
    assert link.send(cache()).arrived


@pytest.mark.parametrize(
    ("change", "reason"),
    [(lambda b: b[:-1], "checksum"), (lambda b: b[:5], "truncated"), (lambda b: b"JUNK" + b[4:], "format")],
)
def test_a_damaged_frame_is_refused_counted_and_delivers_nothing(change, reason):
    into = []
    end = receiver(into)
    controller = CompressionController([CompressionProfile("p", LOSSLESS, (1,), (2.0,), (1e12,), (1e12,))], epsilon=0)
    delivery = CompressedLink(Loop(end, change), controller).send(cache(), context=TransferContext(10**5, 24))
    assert not delivery.arrived
    assert delivery.reason == reason
    assert not into
    assert end.failures == controller.failures == {reason: 1}


@pytest.mark.parametrize(
    ("settings", "reason"), [({"fingerprint": "b"}, "fingerprint"), ({"layout": KVLayout(2, 1, 4, 64)}, "layout")]
)
def test_a_receiver_takes_only_its_own_model_and_layout(settings, reason):
    link = CompressedLink(Loop(receiver([], **settings)), LOSSLESS, fingerprint="a")
    assert link.send(cache()).reason == reason


def test_a_frame_of_another_attempt_is_refused():
    end = receiver([])
    data = KVPipeline(LOSSLESS).compress(cache(), request="r", attempt=1)
    assert end.take({"kv": "r", "attempt": 2}, data)["refused"] == "request"


def test_frames_pass_over_a_paced_socket():
    here, there = socket.socketpair()
    into = []
    end = KVReceiver(there, lambda *row: into.append(row))
    thread = end.start()
    link = CompressedLink(PacedLink(here, SteadyPace(5e7)), POINT)
    for number in range(3):
        assert link.send(cache(seed=number), request=str(number)).arrived
    here.close()
    thread.join(10)
    assert not thread.is_alive()
    assert [row[0] for row in into] == ["0", "1", "2"]


def test_a_peer_that_goes_away_is_told_and_counted():
    here, there = socket.socketpair()
    controller = CompressionController([], epsilon=0)
    link = CompressedLink(PacedLink(here), controller)
    threading.Thread(target=lambda: (there.recv(10), there.close())).start()
    with pytest.raises(LinkDown, match="not taken"):
        link.send(cache())
    assert controller.failures == {"link": 1}


def test_a_silent_peer_is_given_up():
    here, there = socket.socketpair()
    with pytest.raises(LinkDown):
        PacedLink(here, timeout_s=0.05).call({}, b"x")
    there.close()


def test_a_pool_gives_back_what_was_put_and_forgets_the_oldest():
    kv = cache()
    size = len(KVPipeline(LOSSLESS).compress(kv, request="a"))
    pool, pipeline = KVPool(2 * size + size // 2), KVPipeline(LOSSLESS)
    for name in ("a", "b"):
        assert pool.put(name, kv, pipeline) == size
    assert torch.equal(pool.get("a"), kv)
    pool.put("c", kv, pipeline)
    assert pool.get("b") is None
    assert torch.equal(pool.get("a"), kv)
    assert (len(pool), pool.held_bytes, pool.hits, pool.misses) == (2, 2 * size, 2, 1)


def test_a_damaged_frame_in_a_pool_is_a_miss_and_is_thrown_away():
    pool = KVPool(10**6)
    pool.put("a", cache(), KVPipeline(LOSSLESS))
    pool._frames["a"] = pool._frames["a"][:-3]
    assert pool.get("a") is None
    assert (pool.failures, len(pool), pool.hits, pool.misses) == ({"checksum": 1}, 0, 0, 1)


def test_a_pool_keeps_one_model_and_no_more_than_it_holds():
    with pytest.raises(BadInput, match="model"):
        KVPool(10**6, "a").put("x", cache(), KVPipeline(LOSSLESS, fingerprint="b"))
    small = KVPool(100)
    assert small.put("x", cache(), KVPipeline(LOSSLESS)) == 0
    assert small.get("x") is None
