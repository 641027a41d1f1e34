"""Certificates, trust, message codes and nonces: formats and their refusals."""

import base64
import json
import multiprocessing

import mcp_types as types
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents.core.identity import IdentityError
from heliograph.agents.mcp_sec import CapabilityCertificate, SecurityError, SharedNonces, TrustStore, pins_of
from heliograph.agents.mcp_sec.certificates import EXTENSION, pin_of
from heliograph.agents.mcp_sec.channel import ClientChannel, KeyOffer, ServerChannel, own_fields, without_fields
from heliograph.agents.mcp_sec.trust import Issuer, ServerPin
from heliograph.errors import BadInput

from .attested import ISSUER, KEY, OTHER, TOOLS, Clock, certificate, trust

NUMBERS = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def pair(clock=None, **server):
    now = clock or Clock()
    cert = certificate(now=now())
    there = ServerChannel(cert, KEY, now=now, **server)
    hello = there.hello()
    offer = msgspec.convert(hello["offer"], KeyOffer)
    offer.check(cert, now(), 30)
    here = ClientChannel(cert, offer, client_id="gateway", version="2026-07-28", now=now)
    return here, there


def reason_of(call, *args, **more):
    with pytest.raises(SecurityError) as caught:
        call(*args, **more)
    return caught.value.reason


# -- certificates ------------------------------------------------------------------------------------------------------


def test_a_certificate_reads_back_as_it_was_written():
    cert = certificate(capabilities=("sampling", "tools"))
    again = CapabilityCertificate.from_dict(json.loads(json.dumps(cert.to_dict())))
    assert again == cert
    assert again.capabilities == ("tools", "sampling")
    trust().check(again, "mail")


@pytest.mark.parametrize(
    ("reason", "changes", "server", "later"),
    [
        ("server_id_mismatch", {}, "files", 0),
        ("expired", {}, "mail", 91 * 86400),
        ("not_yet_valid", {}, "mail", -3600),
        ("unknown_issuer", {"issued_by": "nobody"}, "mail", 0),
        ("self_signed", {"issuer": KEY, "issued_by": "mail"}, "mail", 0),
        ("signature", {"issuer": OTHER}, "mail", 0),
    ],
)
def test_each_bad_certificate_has_its_own_reason(reason, changes, server, later):
    cert = certificate(now=1000.0, **changes)
    assert reason_of(trust().check, cert, server, now=1000.0 + later) == reason


def test_expired_limited_and_revoked_issuers_and_keys_are_told_apart():
    cert = certificate(now=1000.0)
    pub = base64.b64encode(ISSUER.public).decode()
    check = {"now": 1000.0}
    assert reason_of(TrustStore({"acme": Issuer(pub, 10.0)}).check, cert, "mail", **check) == "issuer_expired"
    assert reason_of(TrustStore({"acme": Issuer(pub, 0, ("files",))}).check, cert, "mail", **check) == "issuer_scope"
    for kid in (cert.key.kid, ISSUER.kid):
        assert reason_of(TrustStore({"acme": ISSUER.public}, revoked=(kid,)).check, cert, "mail", **check) == "revoked"


def test_a_self_signed_certificate_passes_where_that_is_allowed():
    cert = certificate(issuer=KEY, issued_by="mail")
    trust().check(cert, "mail", self_signed=True)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_changed_field_of_a_certificate_is_refused(data):
    text = json.dumps(certificate(now=1000.0).to_dict())
    plain = json.loads(text)
    place = data.draw(st.integers(0, len(text) - 1))
    changed = text[:place] + data.draw(st.sampled_from("ax0Z9+")) + text[place + 1 :]
    try:
        found = json.loads(changed)
    except ValueError:
        return
    if found == plain:
        return
    with pytest.raises(SecurityError):
        trust().check(CapabilityCertificate.from_dict(found), "mail", now=1000.0)


@pytest.mark.parametrize("wrong", [None, [], {"v": 2}, {"v": 1}, 7, "x"])
def test_something_else_than_a_certificate_is_malformed(wrong):
    assert reason_of(CapabilityCertificate.from_dict, wrong) == "malformed"


def test_what_cannot_be_certified_is_refused_before_signing():
    with pytest.raises(BadInput, match="capabilities are of"):
        certificate(capabilities=("telepathy",))
    with pytest.raises(BadInput, match="each tool once"):
        certificate(tools=[TOOLS[0], TOOLS[0]])


def test_pins_notice_schema_description_and_annotations():
    before = pin_of(TOOLS[0])
    for change in ({"description": "x"}, {"inputSchema": {}}, {"annotations": {"readOnlyHint": True}}):
        assert pin_of(TOOLS[0] | change) != before
    assert pin_of(TOOLS[0] | {"_meta": {"x": 1}}) == before
    assert [pin.side_effect for pin in pins_of([TOOLS[0] | {"annotations": {"readOnlyHint": True}}])] == ["read"]


# -- trust files -------------------------------------------------------------------------------------------------------


def test_pins_outlive_the_process_and_are_seen_by_another_store(tmp_path):
    first, second = (trust(pins=tmp_path / "pins.json") for _ in range(2))
    first.remember("mail", ServerPin(kid="k", since=1.0))
    assert second.pin("mail") == ServerPin(kid="k", since=1.0)
    second.remember("files", ServerPin())
    assert set(first.pins) == {"mail", "files"}


def test_a_broken_pin_file_is_not_taken_for_an_empty_one(tmp_path):
    (tmp_path / "pins.json").write_text("{")
    with pytest.raises(BadInput, match="downgrade would pass"):
        trust(pins=tmp_path / "pins.json")


def test_a_trust_file_reads_back(tmp_path):
    trust(revoked=("k",)).save(tmp_path / "trust.json")
    again = TrustStore.load(tmp_path / "trust.json")
    again.check(certificate(), "mail")
    assert again.revoked == {"k"}
    (tmp_path / "trust.json").write_text('{"issuers": {"acme": {"pub": "short"}}}')
    with pytest.raises(BadInput, match="32 bytes"):
        TrustStore.load(tmp_path / "trust.json")


# -- messages ----------------------------------------------------------------------------------------------------------


@given(st.dictionaries(TEXT, JSON, max_size=4), st.dictionaries(TEXT, JSON, max_size=4))
@settings(max_examples=150, deadline=None)
def test_a_signed_message_verifies_after_the_sdk_has_written_and_read_it(arguments, content):
    here, there = pair()
    params = {"name": "echo", "arguments": arguments, "_meta": {"progressToken": 3, "own": content}}
    signed, pending = here.sign("tools/call", params)
    wire = types.JSONRPCRequest(jsonrpc="2.0", id=1, method="tools/call", params=signed)
    read = types.JSONRPCRequest.model_validate_json(wire.model_dump_json(by_alias=True))
    bare, auth = there.check_request("tools/call", read.params, "2026-07-28")
    assert bare == params
    result = {"content": [{"type": "text", "text": "x"}], "structuredContent": content}
    answer = there.sign_result(auth, "tools/call", result)
    back = types.JSONRPCResponse.model_validate_json(
        types.JSONRPCResponse(jsonrpc="2.0", id=1, result=answer).model_dump_json(by_alias=True)
    )
    assert here.check_result(pending, back.result) == result


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_flipped_bit_of_a_request_or_its_code_is_refused(data):
    here, there = pair()
    signed, _ = here.sign("tools/call", {"name": "echo", "arguments": {"to": "ann", "n": [1, 2.5, None]}})
    text = json.dumps(signed).encode()
    place, bit = data.draw(st.integers(0, len(text) - 1)), data.draw(st.integers(0, 7))
    flipped = bytearray(text)
    flipped[place] ^= 1 << bit
    try:
        found = json.loads(flipped)
    except (ValueError, UnicodeDecodeError):
        return
    if found == signed:
        return
    with pytest.raises(SecurityError):
        there.check_request("tools/call", found)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_any_flipped_bit_of_an_answer_is_refused(data):
    here, there = pair()
    signed, pending = here.sign("tools/call", {"name": "echo"})
    _, auth = there.check_request("tools/call", signed)
    answer = there.sign_result(auth, "tools/call", {"content": [{"type": "text", "text": "hello"}], "isError": False})
    text = json.dumps(answer).encode()
    place, bit = data.draw(st.integers(0, len(text) - 1)), data.draw(st.integers(0, 7))
    flipped = bytearray(text)
    flipped[place] ^= 1 << bit
    try:
        found = json.loads(flipped)
    except (ValueError, UnicodeDecodeError):
        return
    if found == answer or not isinstance(found, dict):
        return
    with pytest.raises(SecurityError):
        here.check_result(pending, found)


def test_the_same_message_twice_counts_once_and_an_old_one_not_at_all():
    clock = Clock()
    here, there = pair(clock)
    signed, _ = here.sign("tools/call", {"name": "echo"})
    there.check_request("tools/call", signed)
    assert reason_of(there.check_request, "tools/call", signed) == "replay"
    late, _ = here.sign("tools/call", {"name": "echo"})
    clock.now += 31
    assert reason_of(there.check_request, "tools/call", late) == "expired"


def test_an_answer_to_another_request_is_refused():
    here, there = pair()
    first, _ = here.sign("tools/call", {"name": "a"})
    _, pending = here.sign("tools/call", {"name": "b"})
    _, auth = there.check_request("tools/call", first)
    assert reason_of(here.check_result, pending, there.sign_result(auth, "tools/call", {})) == "replay"


def test_method_version_server_and_kind_are_part_of_the_code():
    here, there = pair()
    signed, pending = here.sign("tools/call", {"name": "echo"})
    assert reason_of(there.check_request, "tools/list", signed) == "mac"
    assert reason_of(there.check_request, "tools/call", signed, "2025-11-25") == "wrong_key"
    stranger = ServerChannel(certificate("files"), KEY)
    assert reason_of(stranger.check_request, "tools/call", signed) == "server_id_mismatch"
    _, auth = there.check_request("tools/call", signed)
    error = there.sign_error(auth, "tools/call", -32602, "bad", {"x": 1})
    assert here.check_error(pending, -32602, "bad", error) == {"x": 1}
    assert reason_of(here.check_error, pending, -32603, "bad", error) == "mac"
    assert reason_of(here.check_result, pending, {"_meta": error}) == "mac"


def test_a_message_without_canonical_form_is_refused_by_its_sender():
    here, _ = pair()
    for value in (2**60, float("inf"), "\ud800"):
        assert reason_of(here.sign, "tools/call", {"arguments": {"x": value}}) == "not_canonical"


def test_equal_numbers_have_equal_codes_and_key_order_is_no_matter():
    here, there = pair()
    signed, _ = here.sign("tools/call", {"arguments": {"b": 1.0, "a": -0.0}})
    body = json.loads(json.dumps({"_meta": signed["_meta"], "arguments": {"a": 0, "b": 1}}))
    there.check_request("tools/call", body)


def test_a_client_with_a_secret_must_use_it_and_an_unknown_one_may_be_refused():
    secret = {"gateway": b"0123456789abcdef"}
    here, there = pair(shared_secrets=secret)
    signed, _ = here.sign("tools/call", {})
    assert reason_of(there.check_request, "tools/call", signed) == "mac"
    here, there = pair(require_known=True)
    signed, _ = here.sign("tools/call", {})
    assert reason_of(there.check_request, "tools/call", signed) == "unknown_client"


def test_offers_rotate_with_an_overlap():
    clock = Clock()
    here, there = pair(clock, offer_s=100.0)
    clock.now += 101
    there.hello()
    signed, _ = here.sign("tools/call", {})
    there.check_request("tools/call", signed)
    clock.now += 100
    there.hello()
    clock.now += 60
    fresh, _ = ClientChannel(here.certificate, here.offer, client_id="x", version="", now=clock).sign("a", {})
    assert reason_of(there.check_request, "a", fresh) == "mac"


def test_an_offer_by_another_key_or_for_another_certificate_is_refused():
    cert = certificate()
    offer = msgspec.convert(ServerChannel(certificate("files"), KEY).hello()["offer"], KeyOffer)
    assert reason_of(offer.check, cert, 0.0, 30.0) == "offer"
    with pytest.raises(BadInput, match="not the one in the certificate"):
        ServerChannel(cert, OTHER)


def test_messages_overtake_each_other_within_the_window():
    here, there = pair()
    signed = [here.sign("tools/call", {"n": n})[0] for n in range(5)]
    for one in reversed(signed):
        there.check_request("tools/call", one)


def test_either_key_of_meta_is_read_and_both_are_taken_out():
    assert own_fields({"mcpsec": 1}) == own_fields({EXTENSION: 1}) == 1
    assert without_fields({"_meta": {"mcpsec": 1, EXTENSION: 2, "a": 3}}) == {"_meta": {"a": 3}}
    assert without_fields({"x": 1, "_meta": {EXTENSION: 2}}) == {"x": 1}


# -- nonces ------------------------------------------------------------------------------------------------------------


def _admit(path, nonce, queue):
    try:
        SharedNonces(path).admit("k", nonce, 100.0, 100.0)
        queue.put("ok")
    except IdentityError as error:
        queue.put(error.reason)


def test_a_nonce_counts_once_among_processes(tmp_path):
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    workers = [fork.Process(target=_admit, args=(tmp_path / "n.db", "same", queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = sorted(queue.get(timeout=20) for _ in workers)
    for worker in workers:
        worker.join(20)
    assert found == ["ok", "replay"]


def test_a_request_to_one_worker_is_refused_by_the_other(tmp_path):
    clock, exchange = Clock(), bytes(32)
    cert = certificate(now=clock())
    workers = [
        ServerChannel(cert, KEY, nonces=SharedNonces(tmp_path / "n.db"), exchange_key=exchange, now=clock)
        for _ in range(2)
    ]
    offer = msgspec.convert(workers[0].hello()["offer"], KeyOffer)
    here = ClientChannel(cert, offer, client_id="g", version="", now=clock)
    signed, pending = here.sign("tools/call", {})
    _, auth = workers[1].check_request("tools/call", signed)
    here.check_result(pending, workers[1].sign_result(auth, "tools/call", {}))
    assert reason_of(workers[0].check_request, "tools/call", signed) == "replay"


def test_the_evicted_nonce_is_still_refused_and_memory_stays_bounded(tmp_path):
    store = SharedNonces(tmp_path / "n.db", capacity=10)
    for number in range(12):
        store.admit("k", f"n{number}", 100.0 + number / 100, 100.5)
    assert len(store) == 10
    with pytest.raises(IdentityError) as caught:
        store.admit("k", "n0", 100.0, 100.5)
    assert caught.value.reason == "replay"
    assert store.prune(1000.0) == 10


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=40))
@settings(max_examples=30, deadline=None)
def test_a_message_is_never_admitted_twice_however_it_is_repeated(events):
    store = SharedNonces(":memory:", window_s=10.0, capacity=3)
    admitted, signed_at, now = set(), {}, 100.0
    for message, step in events:
        now += step / 20
        signed_at.setdefault(message, now)
        try:
            store.admit("k", str(message), signed_at[message], now)
        except IdentityError:
            continue
        assert message not in admitted
        admitted.add(message)
    store.close()


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "n.db").write_text("not a database, but long enough to be read as one" * 40)
    with pytest.raises(BadInput, match=r"n\.db"):
        SharedNonces(tmp_path / "n.db")
