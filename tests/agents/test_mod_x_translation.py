import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents.core.envelope import CARRIER, Envelope
from heliograph.agents.mod_x.codec import ClarificationRequest, CodecField, MessageCodec
from heliograph.agents.mod_x.wire import (
    FORMS,
    ORIGINAL,
    Exchange,
    LossyTranslation,
    read,
    same_json,
    translate,
    write,
)
from heliograph.errors import BadInput

scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
values = st.recursive(
    scalars | texts, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3), max_leaves=6
)
objects = st.dictionaries(texts, values, max_size=3)
names = st.text("abcXYZ.-_ /0é%*>", min_size=1, max_size=8)
ids = st.integers(-(2**53), 2**53) | texts


@st.composite
def mcp_messages(draw):
    head = {"jsonrpc": "2.0"}
    kind = draw(st.sampled_from(["call", "other", "result", "structured", "error", "is_error", "note"]))
    extra = draw(st.just({}) | st.fixed_dictionaries({"_meta": objects}))
    if kind == "call":
        return {
            **head,
            "id": draw(ids),
            "method": "tools/call",
            "params": {"name": draw(names), "arguments": draw(objects), **extra},
        }
    if kind == "other":
        return {**head, "id": draw(ids), "method": draw(names), "params": {**draw(objects), **extra}}
    if kind == "note":
        return {**head, "method": draw(st.sampled_from(["notifications/message", "x"])), "params": draw(objects)}
    if kind == "result":
        return {**head, "id": draw(ids), "result": {"content": [{"type": "text", "text": draw(texts)}], **extra}}
    if kind == "structured":
        return {**head, "id": draw(ids), "result": {"content": [], "structuredContent": draw(objects), **extra}}
    if kind == "is_error":
        return {**head, "id": draw(ids), "result": {"content": [{"type": "text", "text": "no"}], "isError": True}}
    data = draw(st.just({}) | st.fixed_dictionaries({"data": values}))
    return {**head, "id": draw(ids), "error": {"code": draw(st.integers(-40000, 0)), "message": draw(texts), **data}}


@st.composite
def a2a_messages(draw):
    part = draw(
        st.fixed_dictionaries({"text": texts})
        | st.fixed_dictionaries({"data": values})
        | st.builds(lambda n, a: {"data": {"capability": n, "arguments": a}}, names, objects)
    )
    more = draw(st.lists(st.fixed_dictionaries({"text": texts}), max_size=2))
    optional = draw(st.fixed_dictionaries({}, optional={"contextId": texts, "metadata": objects, "taskId": texts}))
    return {"messageId": draw(st.text("abc1-", min_size=1)), "role": "ROLE_USER", "parts": [part, *more], **optional}


@st.composite
def jsonrpc_messages(draw):
    if draw(st.booleans()):
        params = draw(st.fixed_dictionaries({}, optional={"params": objects | st.lists(values, max_size=3)}))
        number = draw(st.fixed_dictionaries({}, optional={"id": ids | st.none()}))
        return {"jsonrpc": "2.0", "method": draw(texts), **params, **number}
    return {"jsonrpc": "2.0", "id": draw(ids | st.none()), "result": draw(values)}


@st.composite
def nats_messages(draw):
    data = draw(texts | values.map(json.dumps))
    headers = draw(
        st.fixed_dictionaries({}, optional={"headers": st.dictionaries(st.sampled_from(["A", "Id", "Status"]), texts)})
    )
    return {"subject": draw(st.sampled_from(["a.b", "cap.x", "cap.a%2Eb", "reply"])), "data": data, **headers}


@st.composite
def envelopes(draw):
    return Envelope(
        topic=draw(st.sampled_from(["a", "cap.x", "cap.y%20z", "a.b.c"])),
        kind=draw(st.sampled_from(["event", "request", "reply", "error", "claim", "state", "control"])),
        sender=draw(texts),
        conv=draw(texts),
        payload=draw(values),
        parents=tuple(draw(st.lists(texts, max_size=2))),
    ).to_builtins()


MESSAGES = {
    "mcp": mcp_messages(),
    "a2a": a2a_messages(),
    "jsonrpc": jsonrpc_messages(),
    "nats": nats_messages(),
    "envelope": envelopes(),
}


@pytest.mark.parametrize("source", FORMS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_there_and_back_gives_the_message_or_names_what_is_lost(source, data):
    message = data.draw(MESSAGES[source])
    for target in FORMS:
        there = translate(message, source, target)
        read(there.message, target)
        back = translate(there.message, target, source)
        assert there.lost or same_json(back.message, message), (target, there, back)
        if target != "jsonrpc":
            assert not there.lost
        if there.lost:
            with pytest.raises(LossyTranslation):
                translate(message, source, target, strict=True)


@settings(max_examples=60, deadline=None)
@given(MESSAGES["mcp"], st.lists(st.sampled_from(["a2a", "nats", "envelope", "mcp"]), max_size=4))
def test_a_message_survives_any_chain_of_forms_with_metadata(message, chain):
    now, form = message, "mcp"
    for step in chain:
        now, form = translate(now, form, step).message, step
    assert same_json(translate(now, form, "mcp").message, message)


def test_a_call_reaches_a_native_agent_of_every_form():
    call = {
        "jsonrpc": "2.0",
        "id": 7,
        "method": "tools/call",
        "params": {"name": "hotel.find", "arguments": {"city": "Rome"}},
    }
    assert translate(call, "mcp", "jsonrpc").message == {
        "jsonrpc": "2.0", "id": 7, "method": "hotel.find", "params": {"city": "Rome"},
    }  # fmt: skip
    a2a = translate(call, "mcp", "a2a").message
    assert a2a["parts"] == [{"data": {"capability": "hotel.find", "arguments": {"city": "Rome"}, "id": 7}}]
    nats = translate(call, "mcp", "nats").message
    assert (nats["subject"], json.loads(nats["data"])) == ("cap.hotel%2Efind", {"city": "Rome"})
    env = Envelope.from_builtins(translate(call, "mcp", "envelope").message)
    assert (env.kind, env.payload) == ("request", {"city": "Rome"})


def test_a_carried_form_that_says_something_else_is_not_believed():
    message = translate(
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": "read", "arguments": {}, "_meta": {"k": 1}},
        },
        "mcp",
        "a2a",
    ).message
    assert ORIGINAL in message["metadata"]
    message["metadata"][ORIGINAL]["message"]["params"]["name"] = "delete"
    back = translate(message, "a2a", "mcp").message
    assert back["params"]["name"] == "read"


def test_what_plain_json_rpc_cannot_hold_is_named():
    call = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "x", "arguments": {}, "_meta": {"k": 1}},
    }
    assert translate(call, "mcp", "jsonrpc").lost == ("/params/_meta",)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "bad", [None, [], {}, {"jsonrpc": "1.0"}, {"jsonrpc": "2.0"}, {"jsonrpc": "2.0", "method": 3}, {"x": float("nan")}]
)
def test_what_is_no_message_of_a_form_is_refused(form, bad):
    with pytest.raises(BadInput):
        translate(bad, form, "mcp" if form != "mcp" else "a2a")


@settings(max_examples=100, deadline=None)
@given(values, st.sampled_from(FORMS))
def test_arbitrary_json_ends_in_a_message_or_in_bad_input(junk, form):
    with contextlib.suppress(BadInput):
        translate(junk, form, "envelope")


def test_unknown_forms_are_refused():
    with pytest.raises(BadInput):
        write(Exchange("call", {}), "smtp")
    assert CARRIER != ORIGINAL


METRIC = MessageCodec(
    "metric",
    (
        CodecField("distance_km", "trip.distance", unit="km", required=True),
        CodecField("temp_c", "weather.temperature", unit="c"),
        CodecField("class", "trip.class", values={"trip.class.first": "1", "trip.class.second": "2"}),
        CodecField("note", "trip.note"),
    ),
)
US = MessageCodec(
    "us",
    (
        CodecField("miles", "trip.distance", unit="mile"),
        CodecField("temp_f", "weather.temperature", unit="f"),
        CodecField("cabin", "trip.class", values={"trip.class.first": "first"}),
        CodecField("rate", "trip.price", unit="eur", required=False),
    ),
)

numbers = st.integers(-(10**12), 10**12) | st.floats(-1e12, 1e12)


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {"distance_km": numbers},
        optional={"temp_c": numbers, "class": st.sampled_from("12"), "note": values, "other": values},
    )
)
def test_lowering_what_was_lifted_gives_the_record(record):
    native, report = METRIC.lower(METRIC.lift(record))
    assert same_json(native, record) or (native == record and 0.0 in record.values())
    assert not report


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries(
        {"distance_km": numbers},
        optional={"temp_c": numbers, "class": st.sampled_from("12"), "note": values, "other": values},
    )
)
def test_every_change_on_the_way_to_another_format_is_reported(record):
    native, report = US.lower(METRIC.lift(record))
    back, _ = METRIC.lower(US.lift(native))
    concepts = {
        "distance_km": "trip.distance",
        "temp_c": "weather.temperature",
        "class": "trip.class",
        "note": "trip.note",
        "other": "other",
    }
    for name, value in record.items():
        reported = concepts[name] in (*report.dropped, *report.approximated)
        exact = not isinstance(value, float) or name in ("note", "other")
        assert reported or back.get(name) == (value if exact else pytest.approx(value, rel=1e-12, abs=1e-9))


def test_a_lost_field_is_refused_when_strict_and_a_missing_one_is_asked_for():
    record = METRIC.lift({"distance_km": 3, "note": "x"})
    with pytest.raises(BadInput, match="note"):
        US.lower(record, strict=True)
    with pytest.raises(ClarificationRequest) as asked:
        METRIC.lower(US.lift({"temp_f": 50}))
    assert asked.value.concepts == ("trip.distance",)


def test_values_without_meaning_are_refused():
    for record in ({"distance_km": "3"}, {"distance_km": True}, {"distance_km": float("inf")}, {"class": "3"}):
        with pytest.raises(BadInput):
            METRIC.lift(record)
    with pytest.raises(BadInput, match="unit"):
        MessageCodec("x", (CodecField("a", "b", unit="furlong"),))
    with pytest.raises(BadInput):
        MessageCodec("x", (CodecField("a", "b"), CodecField("a", "c")))
