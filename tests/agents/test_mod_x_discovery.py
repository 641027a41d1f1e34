import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents.core.identity import Identity, IdentityError, KeyRing
from heliograph.agents.mod_x.discovery import DAY_S, Capability, CapabilityIndex, HashedNgrams, Trust
from heliograph.errors import BadInput

A, B = Identity.from_seed(b"a" * 32), Identity.from_seed(b"b" * 32)
KEYS = KeyRing({"a": A.public, "b": B.public})


def index(*capabilities, **options):
    made = CapabilityIndex(HashedNgrams(), **options)
    for one in capabilities:
        made.add(one)
    return made


HOTEL = Capability(
    name="find_hotels",
    agent="a",
    description="Hotels of a city by price.",
    outputs=("travel.hotel",),
    inputs={"city": "city"},
    concepts=("travel.hotel",),
)
FLIGHT = Capability(
    name="search_flights",
    agent="b",
    description="Flights between two cities.",
    outputs=("travel.flight",),
    concepts=("travel.flight",),
)
MONEY = Capability(name="send_money", agent="b", description="Pays an amount to an account.", effects="write")


@pytest.mark.parametrize("method", ["hybrid", "embedding", "bm25", "keyword"])
def test_every_method_finds_what_is_called_by_its_name(method):
    hits = index(HOTEL, FLIGHT, MONEY).search("find hotels in a city", method=method)
    assert hits[0].capability == HOTEL


def test_what_does_not_fit_is_never_found():
    made = index(HOTEL, FLIGHT, MONEY)
    assert [h.capability for h in made.search("pay", output="travel")] != []
    assert {h.capability.name for h in made.search("pay", output="travel")} == {"find_hotels", "search_flights"}
    assert {h.capability.name for h in made.search("x", available=[])} == {"search_flights", "send_money"}
    assert {h.capability.name for h in made.search("x", allowed=lambda one: one.effects == "read")} == {
        "find_hotels",
        "search_flights",
    }


def test_concepts_and_trust_break_a_tie_of_identical_descriptions():
    twin = msgspec.structs.replace(HOTEL, agent="b")
    made = index(HOTEL, twin)
    assert made.search("hotels")[0].capability == HOTEL
    made.trust.observe("b", True, 0.0)
    assert made.search("hotels")[0].capability == twin


def test_an_empty_index_finds_nothing_and_an_empty_query_is_refused():
    assert index().search("x") == []
    with pytest.raises(BadInput):
        index(HOTEL).search("  ")
    with pytest.raises(BadInput):
        index(HOTEL).search("x", method="magic")


def test_words_in_other_scripts_are_no_error():
    assert len(index(HOTEL, FLIGHT).search("ホテルを探す")) == 2


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4))
def test_indexes_agree_after_gossip_in_any_order(seed, count):
    noise = random.Random(seed)
    peers = [CapabilityIndex(HashedNgrams()) for _ in range(count)]
    for _ in range(12):
        one = noise.choice(peers)
        name, version = noise.choice("xyz"), noise.randrange(1, 4)
        if noise.random() < 0.3:
            one.remove(f"a/{name}")
        else:
            one.add(Capability(name=name, agent="a", version=version, description=noise.choice("pq")))
        if noise.random() < 0.4:
            noise.choice(peers).merge(one.snapshot())
    for _ in range(2):
        order = [(a, b) for a in peers for b in peers]
        noise.shuffle(order)
        for a, b in order:
            a.merge(b.snapshot())
    assert all(one.snapshot() == peers[0].snapshot() for one in peers)


def test_forged_unsigned_and_changed_descriptors_are_refused():
    made = index(keys=KEYS)
    made.add(HOTEL.signed(A))
    with pytest.raises(IdentityError):
        made.add(HOTEL)
    with pytest.raises(IdentityError):
        made.add(FLIGHT.signed(A))
    changed = msgspec.structs.replace(HOTEL.signed(A), price=1.0)
    gone = msgspec.structs.replace(HOTEL.signed(A), withdrawn=True)
    assert made.merge([msgspec.to_builtins(changed), msgspec.to_builtins(gone), {}, 3, None]) == 0
    assert [one.name for one in made] == ["find_hotels"]


def test_a_withdrawal_by_its_owner_spreads():
    one, other = index(HOTEL.signed(A), keys=KEYS), index(HOTEL.signed(A), keys=KEYS)
    one.remove("a/find_hotels", A)
    other.merge(one.snapshot())
    assert len(other) == 0
    one.merge(index(HOTEL.signed(A), keys=KEYS).snapshot())
    assert len(one) == 0


def test_agents_that_are_away_are_not_offered():
    made = index(HOTEL, FLIGHT)
    made.set_away(["a"])
    assert [one.agent for one in made] == ["b"]
    assert made.get(HOTEL.id) is None
    made.set_away([])
    assert len(made) == 2


def test_trust_starts_at_one_half_and_forgets():
    trust = Trust()
    assert trust.mean("a", 0) == 0.5
    for _ in range(8):
        trust.observe("a", False, 0)
    assert trust.mean("a", 0) == pytest.approx(0.1)
    assert trust.mean("a", 30 * DAY_S) == pytest.approx(1 / 6)
    with pytest.raises(BadInput):
        trust.observe("a", True, 0, weight=2)
