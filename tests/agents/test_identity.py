from __future__ import annotations

import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents import Envelope, Identity, NonceStore, Principal, TokenVerifier
from heliograph.agents.core.canonical import canonical_bytes
from heliograph.agents.core.identity import IdentityError, KeyRing, StaticTokens, verify_envelope
from heliograph.errors import BadInput

ALICE = Identity.from_seed(bytes(range(32)))
MALLORY = Identity.from_seed(bytes(32))


def checked(env, nonces=None, now=1000.0):
    return verify_envelope(
        env, KeyRing({"alice": ALICE.public}), NonceStore() if nonces is None else nonces, now=lambda: now
    )


def signed(now=1000.0, **fields):
    return ALICE.sign_envelope(Envelope(topic="a", payload={"n": 1}, **fields), now=lambda: now)


def test_canonical_form_sorts_keys_by_utf16_and_writes_numbers_shortest():
    assert canonical_bytes({"b": 1.0, "a": [1e21, "é"], "\U0001f600": 0, "\ufb33": 0}) == (
        '{"a":[1e+21,"é"],"b":1,"\U0001f600":0,"\ufb33":0}'.encode()
    )


@pytest.mark.parametrize("value", [float("nan"), 2**60, {1: 2}, object(), "\ud800"])
def test_value_without_canonical_form_is_refused(value):
    with pytest.raises(BadInput, match="canonical"):
        canonical_bytes(value)


def test_signed_envelope_verifies_after_crossing_the_wire():
    assert checked(Envelope.from_json(signed().to_json())) == "alice"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_changed_bit_of_the_line_is_refused(data):
    line = bytearray(signed().to_json())
    at = data.draw(st.integers(0, len(line) - 1))
    line[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        changed = Envelope.from_json(bytes(line))
    except BadInput:
        return
    with pytest.raises((IdentityError, BadInput)):
        checked(changed)


def test_replay_is_refused_and_the_first_one_was_not():
    nonces, env = NonceStore(), signed()
    checked(env, nonces)
    with pytest.raises(IdentityError, match="used before") as caught:
        checked(env, nonces)
    assert caught.value.reason == "replay"


@pytest.mark.parametrize("now", [1031.0, 969.0])
def test_message_outside_the_window_is_refused(now):
    with pytest.raises(IdentityError) as caught:
        checked(signed(), now=now)
    assert caught.value.reason == "expired"


def test_forgotten_nonce_stays_refused():
    nonces = NonceStore(capacity=3)
    replayed = signed(1000.0)
    checked(replayed, nonces)
    for second in range(1, 5):
        checked(signed(1000.0 + second), nonces, now=1005.0)
    assert len(nonces) == 3
    with pytest.raises(IdentityError, match="may be a replay"):
        checked(replayed, nonces, now=1005.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(0, 40)), max_size=60))
def test_no_nonce_is_ever_admitted_twice_and_memory_is_bounded(arrivals):
    nonces, admitted, now = NonceStore(window_s=10, capacity=4, max_keys=2), set(), 100.0
    for key, nonce, step in arrivals:
        now += step / 10
        try:
            nonces.admit(f"k{key}", f"{key}-{nonce}", 100.0 + nonce, now)
        except IdentityError:
            continue
        assert (key, nonce) not in admitted
        admitted.add((key, nonce))
        assert len(nonces) <= 8


def test_forger_cannot_use_up_anothers_nonce():
    nonces, env = NonceStore(), signed()
    forged = env.replace(payload="other")
    with pytest.raises(IdentityError):
        checked(forged, nonces)
    assert checked(env, nonces) == "alice"


def test_unknown_and_revoked_keys_are_refused():
    keys = KeyRing({"alice": ALICE.public})
    with pytest.raises(IdentityError, match="no trusted key"):
        verify_envelope(MALLORY.sign_envelope(Envelope(topic="a")), keys, NonceStore())
    keys.revoke(ALICE.kid)
    with pytest.raises(IdentityError, match="no trusted key"):
        verify_envelope(ALICE.sign_envelope(Envelope(topic="a")), keys, NonceStore())


def test_key_file_is_private_reads_back_and_is_never_replaced(tmp_path):
    path = tmp_path / "key.pem"
    ALICE.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Identity.load(path).kid == ALICE.kid
    with pytest.raises(BadInput, match="cannot write"):
        MALLORY.save(path)


PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
JWK = {**json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(PRIVATE.public_key())), "kid": "k1", "alg": "EdDSA"}
VERIFIER = TokenVerifier({"keys": [JWK]}, audience="https://gw", issuer="https://idp")


def token(key=PRIVATE, algorithm="EdDSA", kid="k1", **changes):
    claims = {"sub": "ann", "iss": "https://idp", "aud": "https://gw", "exp": time.time() + 60, "tenant_id": "t1"}
    claims |= {"scope": "read write", "roles": ["agent"], **changes}
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, key, algorithm, headers={"kid": kid})


def test_good_token_names_its_caller():
    who = VERIFIER.verify(token())
    assert (who.subject, who.tenant, who.scopes, who.roles) == ("ann", "t1", {"read", "write"}, {"agent"})


def test_expiry_has_thirty_seconds_of_leeway():
    VERIFIER.verify(token(exp=time.time() - 20))
    with pytest.raises(IdentityError, match="expired"):
        VERIFIER.verify(token(exp=time.time() - 40))


PUBLIC_BYTES = PRIVATE.public_key().public_bytes_raw()
OTHER = Ed25519PrivateKey.generate()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda: token(aud="https://other"), "audience"),
        (lambda: token(iss="https://evil"), "token"),
        (lambda: token(key=OTHER), "token"),
        (lambda: token(kid="k2"), "unknown_key"),
        (lambda: token(exp=None), "token"),
        (lambda: token(sub=None), "token"),
        (lambda: token(nbf=time.time() + 300), "expired"),
        (lambda: token(key="", algorithm="none"), "algorithm"),
        (lambda: token(key=PUBLIC_BYTES, algorithm="HS256"), "algorithm"),
        (lambda: "garbage", "token"),
        (lambda: token()[:-4] + "AAAA", "token"),
    ],
)
@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_bad_token_is_refused(bad, reason):
    with pytest.raises(IdentityError) as caught:
        VERIFIER.verify(bad())
    assert caught.value.reason == reason


def test_key_set_without_a_public_key_is_refused():
    with pytest.raises(BadInput, match="no public key"):
        TokenVerifier({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "x"}]}, audience="a", issuer="b")


def test_static_token_names_its_caller_and_others_are_refused():
    tokens = StaticTokens({"0123456789abcdef": Principal("ann")})
    assert tokens.verify("0123456789abcdef").subject == "ann"
    for wrong in ("", "0123456789abcdeg", "\udc80" * 16):
        with pytest.raises(IdentityError):
            tokens.verify(wrong)
    with pytest.raises(BadInput, match="16"):
        StaticTokens({"short": Principal("ann")})
