import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.workload import RequestTrace, TraceRequest, read_mooncake, read_trace, write_trace

HEADER = '{"heliograph_trace": 1}'
PLAIN = {"arrival_s": 0.0, "prompt_tokens": 8, "output_tokens": 4}


def lines(*rows):
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


@st.composite
def traces(draw):
    rows, now = [], 0.0
    for number in range(draw(st.integers(0, 8))):
        now += draw(st.floats(0, 10))
        prompt = draw(st.sampled_from(["text", "ids", "length", "prefix", "blocks"]))
        extra = {
            "text": {"prompt": draw(st.text(max_size=20))},
            "ids": {"prompt_token_ids": tuple(draw(st.lists(st.integers(0, 99), min_size=1, max_size=5)))},
            "length": {"prompt_tokens": draw(st.integers(1, 999))},
            "prefix": {"prompt_tokens": 50, "prefix_id": "p", "prefix_tokens": draw(st.integers(1, 50))},
            "blocks": {"prompt_tokens": 50, "prefix_block_ids": (1, 2), "prefix_block_tokens": 32},
        }[prompt]
        when = {"arrival_s": now}
        session = draw(st.sampled_from(["", "a", "b"]))
        if session and any(row.session == session for row in rows) and draw(st.booleans()):
            when = {"after_s": draw(st.floats(0, 5))}
        rows.append(
            TraceRequest(
                output_tokens=draw(st.integers(1, 99)),
                session=session,
                priority=draw(st.integers(-2, 2)),
                id=draw(st.sampled_from(["", f"id-{number}"])),
                **when,
                **extra,
            )
        )
    return RequestTrace(tuple(rows), draw(st.sampled_from(["incremental", "cumulative"])), "drawn")


@given(traces())
def test_what_is_written_is_read_back_unchanged(tmp_path_factory, trace):
    path = tmp_path_factory.mktemp("traces") / "trace.jsonl"
    write_trace(trace, path)
    assert read_trace(path) == trace


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**PLAIN, "output_token": 3}, "unknown field `output_token`"),
        ({"prompt_tokens": 8, "output_tokens": 4}, "exactly one of arrival_s and after_s"),
        ({**PLAIN, "after_s": 1.0}, "exactly one of arrival_s and after_s"),
        ({**PLAIN, "arrival_s": -1}, "arrival_s is -1"),
        ({**PLAIN, "output_tokens": 0}, "output_tokens is 0"),
        ({"arrival_s": 0, "output_tokens": 4}, "no prompt"),
        ({**PLAIN, "prompt": "a", "prompt_token_ids": [1]}, "both given"),
        ({**PLAIN, "prompt_token_ids": [1, 2]}, "prompt_tokens says 8, prompt_token_ids has 2"),
        ({**PLAIN, "prefix_id": "p"}, "belong together"),
        ({**PLAIN, "prefix_id": "p", "prefix_tokens": 9}, "prefix_tokens is 9, the prompt has 8"),
        ({**PLAIN, "prefix_block_ids": [1, 2, 3], "prefix_block_tokens": 4}, "3 prefix_block_ids for a prompt of 2"),
        ({"after_s": 1.0, "prompt_tokens": 8, "output_tokens": 4, "session": "a"}, "needs an earlier request"),
        ({**PLAIN, "output_tokens": "4"}, "Expected `int`"),
        ("{not json", "malformed"),
    ],
)
def test_a_bad_line_is_refused_with_its_number_and_reason(tmp_path, row, reason):
    path = tmp_path / "t.jsonl"
    path.write_text(lines(HEADER, PLAIN, "", row))
    with pytest.raises(BadInput, match=reason) as caught:
        read_trace(path)
    assert "line 4" in str(caught.value)


def test_arrivals_that_go_back_in_time_are_refused():
    late, early = (TraceRequest(arrival_s=when, prompt_tokens=1, output_tokens=1) for when in (2.0, 1.0))
    with pytest.raises(BadInput, match=r"request 2: arrival_s 1\.0 lies before the previous one"):
        RequestTrace((late, early))


def test_a_second_turn_needs_a_header_that_says_what_turns_hold():
    turns = tuple(TraceRequest(arrival_s=when, prompt_tokens=1, output_tokens=1, session="a") for when in (0.0, 1.0))
    with pytest.raises(BadInput, match="incremental or cumulative"):
        RequestTrace(turns)
    assert RequestTrace(turns, "cumulative").sessions == 1


def test_ids_are_unique():
    twice = (TraceRequest(arrival_s=0.0, prompt_tokens=1, output_tokens=1, id="x"),) * 2
    with pytest.raises(BadInput, match="'x' is used twice"):
        RequestTrace(twice)


@pytest.mark.parametrize("text", ["", lines(PLAIN), lines({"heliograph_trace": 2}), lines({"timestamp": 1})])
def test_a_file_without_the_right_header_is_refused(tmp_path, text):
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(BadInput):
        read_trace(path)


def test_a_faster_trace_keeps_its_requests_and_halves_its_times():
    trace = RequestTrace((TraceRequest(arrival_s=4.0, prompt_tokens=1, output_tokens=1),))
    assert trace.scaled(2.0).duration_s == 2.0
    with pytest.raises(BadInput, match="positive"):
        trace.scaled(0)


MOON = {"timestamp": 1500, "input_length": 1000, "output_length": 20, "hash_ids": [4, 5]}


def moon(tmp_path, *rows):
    path = tmp_path / "m.jsonl"
    path.write_text(lines(*rows))
    return path


def test_mooncake_rows_become_requests(tmp_path):
    (request,) = read_mooncake(moon(tmp_path, MOON))
    assert (request.arrival_s, request.prompt_tokens, request.output_tokens) == (1.5, 1000, 20)
    assert (request.prefix_block_ids, request.prefix_block_tokens) == ((4, 5), 512)
    aliased = {"created_time": 1500, "input_tokens": 1000, "output_tokens": 20}
    assert next(iter(read_mooncake(moon(tmp_path, aliased)))).prompt_tokens == 1000


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (({**MOON, "hash_ids": [1, 2, 3]},), "3 hash_ids do not fit 1,000 prompt tokens"),
        (({**MOON, "input_tokens": 9},), "two names of one field"),
        (({**MOON, "color": 1},), "unknown fields color"),
        (({**MOON, "delay": 3},), "both given"),
        (({"input_length": 1, "output_length": 1},), "timestamp is missing"),
        (({**MOON, "output_length": None},), "output_length is missing"),
        (({**MOON, "output_length": 2.5},), "output_length is 2.5"),
        (({**MOON, "session_id": "a"}, {**MOON, "session_id": "a"}), "second row"),
        ((MOON, {**MOON, "timestamp": 3}), "lies before the previous one"),
        (({"input_length": 1, "output_length": 1, "delay": 5, "session_id": "a"},), "needs an earlier row"),
        ((), "holds no request"),
        (("[]",), "a row is one object"),
    ],
)
def test_ambiguous_mooncake_rows_are_refused(tmp_path, rows, reason):
    with pytest.raises(BadInput, match=reason):
        read_mooncake(moon(tmp_path, *rows))


def test_mooncake_sessions_are_read_once_their_turns_are_explained(tmp_path):
    later = {"input_length": 1500, "output_length": 5, "delay": 250, "session_id": "a"}
    trace = read_mooncake(moon(tmp_path, {**MOON, "session_id": "a"}, later), turns="cumulative")
    assert trace.requests[1].after_s == 0.25
    assert trace.turns == "cumulative"
