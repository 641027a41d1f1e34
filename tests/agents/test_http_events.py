"""Server-sent events: the same in every cut, by every end of line, and of bounded size."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.agents.core.http_events import Event, events
from heliograph.agents.core.links import ResponseTooLarge

STREAM = (
    b": ping\n\n"
    b"id: 7\nretry: 20\ndata:\n\n"
    b"event: message\ndata: one\ndata:  two\nid: \0bad\n\n"
    b"event: other\ndata\ndata\n\n"
    b"retry: soon\n\n"
    b'data: {"a": "\xc3\xa9"}\n\n'
    b"data: unfinished"
)
EXPECTED = [
    Event(b"", id="7", retry_ms=20),
    Event(b"one\n two", id="7"),
    Event(b"\n", "other", id="7"),
    Event('{"a": "é"}'.encode(), id="7"),
]


def read(parts, limit=1000):
    async def collect():
        left = [*(part for part in parts if part), b""]

        async def part():
            return left.pop(0)

        return [event async for event in events(part, limit)]

    return asyncio.run(collect())


@given(st.sampled_from([b"\n", b"\r\n", b"\r"]), st.lists(st.integers(0, 250), max_size=12))
def test_events_are_the_same_in_every_cut_and_by_every_end_of_line(end, cuts):
    stream = STREAM.replace(b"\n", end)
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    parts = [stream[a:b] for a, b in itertools.pairwise(places)]
    assert read(parts) == EXPECTED


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_no_stream_is_beyond_it(parts):
    for event in read(parts):
        assert isinstance(event.data, bytes)


def test_event_beyond_the_limit_is_refused_and_many_small_ones_are_not():
    small = b"data: " + b"x" * 40 + b"\n\n"
    assert len(read([small] * 50, limit=100)) == 50
    with pytest.raises(ResponseTooLarge, match="100 bytes"):
        read([b"data: " + b"x" * 60, b"x" * 60], limit=100)
    with pytest.raises(ResponseTooLarge):
        read([b"data: x\n"] * 100, limit=100)
