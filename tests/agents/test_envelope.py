from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents import Envelope, Meta
from heliograph.agents.core.envelope import CARRIER, Signature, new_id
from heliograph.errors import BadInput

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
LEAF = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
)
JSON = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
OBJECT = st.dictionaries(TEXT.filter(lambda key: key != "_meta"), JSON, max_size=3)
WITH_META = st.one_of(OBJECT, st.builds(lambda body, meta: {**body, "_meta": meta}, OBJECT, OBJECT))
IDS = st.integers(-(2**53), 2**53) | TEXT
MESSAGES = st.one_of(
    st.fixed_dictionaries({"jsonrpc": st.just("2.0"), "method": TEXT}, optional={"id": IDS, "params": WITH_META}),
    st.fixed_dictionaries({"jsonrpc": st.just("2.0"), "id": IDS, "result": WITH_META}),
    st.fixed_dictionaries(
        {
            "jsonrpc": st.just("2.0"),
            "id": st.none() | IDS,
            "error": st.fixed_dictionaries({"code": st.integers(-40000, 0), "message": TEXT}, optional={"data": JSON}),
        }
    ),
)
A2A = st.fixed_dictionaries(
    {"messageId": TEXT.filter(bool), "parts": st.lists(OBJECT, max_size=3)},
    optional={"role": TEXT, "contextId": TEXT, "metadata": OBJECT, "referenceTaskIds": st.lists(TEXT, max_size=2)},
)
METAS = st.builds(
    Meta,
    deadline_ms=st.none() | st.floats(0, 1e9),
    traceparent=TEXT,
    labels=st.dictionaries(TEXT, TEXT, max_size=2),
)


def envelopes(payload: st.SearchStrategy = JSON) -> st.SearchStrategy[Envelope]:
    return st.builds(
        Envelope,
        topic=TEXT,
        kind=st.sampled_from(["event", "request", "reply", "error", "claim", "state", "control"]),
        sender=TEXT,
        payload=payload,
        parents=st.lists(TEXT, max_size=3).map(tuple),
        conv=TEXT,
        tenant=TEXT,
        reply_to=TEXT,
        meta=METAS,
        sig=st.none() | st.builds(Signature, kid=TEXT, nonce=TEXT, time=st.floats(0, 1e10), value=TEXT),
    )


@settings(max_examples=40)
@given(envelopes())
def test_json_line_reads_back_equal(env):
    line = env.to_json()
    assert b"\n" not in line
    assert Envelope.from_json(line) == env


@settings(max_examples=40)
@given(MESSAGES)
def test_jsonrpc_message_leaves_as_it_came(message):
    env = Envelope.from_jsonrpc(message, sender="alice")
    assert Envelope.from_json(env.to_json()).to_jsonrpc() == message


@settings(max_examples=40)
@given(envelopes(MESSAGES))
def test_envelope_carried_by_jsonrpc_reads_back_equal(env):
    assert Envelope.from_jsonrpc(env.to_jsonrpc(carry=True), restore=True) == env


@settings(max_examples=40)
@given(envelopes())
def test_envelope_with_any_payload_crosses_jsonrpc(env):
    assert Envelope.from_jsonrpc(env.to_jsonrpc(carry=True), restore=True) == env


@settings(max_examples=40)
@given(A2A)
def test_a2a_message_leaves_as_it_came(message):
    assert Envelope.from_a2a(message).to_a2a() == message


@settings(max_examples=40)
@given(envelopes(A2A))
def test_envelope_carried_by_a2a_reads_back_equal(env):
    assert Envelope.from_a2a(env.to_a2a()) == env


def test_carried_fields_are_ignored_unless_the_peer_is_trusted():
    forged = Envelope(topic="x", sender="admin", payload={"jsonrpc": "2.0", "method": "ping"}).to_jsonrpc(carry=True)
    assert Envelope.from_jsonrpc(forged, sender="mallory").sender == "mallory"
    assert CARRIER in str(forged)


@pytest.mark.parametrize(
    "bad", [{}, {"jsonrpc": "2.0"}, {"jsonrpc": "2.0", "method": "x", "params": [1]}, [], "x", None]
)
def test_not_a_jsonrpc_message_is_refused(bad):
    with pytest.raises(BadInput, match="JSON-RPC"):
        Envelope.from_jsonrpc(bad)


def test_nan_is_refused_instead_of_becoming_null():
    with pytest.raises(BadInput, match="nan"):
        Envelope(topic="x", payload={"a": [float("nan")]}).to_json()


def test_wrong_field_type_is_refused_with_its_path():
    with pytest.raises(BadInput, match=r"\$\.meta\.deadline_ms"):
        Envelope.from_json(b'{"id":"1","topic":"x","meta":{"deadline_ms":"soon"}}')


def test_new_ids_are_unique_versioned_and_sorted_by_time():
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(one[14] == "7" and one[19] in "89ab" for one in ids)
    assert [one[:13] for one in ids] == sorted(one[:13] for one in ids)


def test_answer_goes_to_reply_to_with_the_request_as_parent():
    request = Envelope(topic="a.b", kind="request", reply_to="inbox.1", conv="c", tenant="t")
    answer = request.answer({"ok": True}, sender="bob")
    assert (answer.topic, answer.kind, answer.parents, answer.conv, answer.tenant) == (
        "inbox.1",
        "reply",
        (request.id,),
        "c",
        "t",
    )
