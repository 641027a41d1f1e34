import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents.mod_x.state import ConversationState, LeaseGroup, LeaseLost
from heliograph.errors import BadInput


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from("sadc"), st.integers(0, 2)), max_size=25),
)
def test_peers_with_the_same_events_see_the_same_in_any_order(seed, steps):
    noise = random.Random(seed)
    wall = [1000]
    nodes = [ConversationState("c", f"n{n}", lambda: wall[0]) for n in range(3)]
    for node, kind, value in steps:
        wall[0] += noise.randrange(-2, 3)  # clocks may go back
        one = nodes[node]
        if kind == "s":
            one.set("register", value)
        elif kind == "a":
            one.add("set", value)
        elif kind == "d":
            one.discard("set", value)
        else:
            one.count("counter", value - 1)
        if noise.random() < 0.3:
            other = nodes[noise.randrange(3)]
            events = one.events()
            noise.shuffle(events)
            other.merge(events[: noise.randrange(len(events) + 1)])
    everything = [event for one in nodes for event in one.events()] * 2
    for one in nodes:
        noise.shuffle(everything)
        one.merge(everything)
    assert nodes[0].view() == nodes[1].view() == nodes[2].view()


def test_an_effect_comes_after_its_cause_in_spite_of_a_slow_clock():
    fast, slow = ConversationState("c", "a", lambda: 9000), ConversationState("c", "b", lambda: 1)
    slow_view = slow
    fast.set("k", "cause")
    slow._clock._wall_ms = lambda: 8990
    slow_view.merge(fast.events())
    slow.set("k", "effect")
    fast.merge(slow.events())
    assert fast.view() == slow.view() == {"k": "effect"}


def test_an_addition_that_was_not_seen_survives_a_discard():
    one, other = (ConversationState("c", name, lambda: 5) for name in "ab")
    one.add("s", "x")
    other.add("s", "x")
    one.discard("s", "x")
    one.merge(other.events())
    assert one.view() == {"s": ["x"]}


def test_readers_see_what_they_were_granted():
    state = ConversationState("c", "a", lambda: 5)
    state.set("trip.city", "Rome")
    state.set("card.number", "4")
    assert state.view(["trip."]) == {"trip.city": "Rome"}


def test_events_from_the_future_and_forged_ids_are_refused_whole():
    state, ahead = ConversationState("c", "a", lambda: 5), ConversationState("c", "b", lambda: 10**7)
    ahead.set("k", 1)
    with pytest.raises(BadInput, match="ahead"):
        state.merge(ahead.events())
    one = ConversationState("c", "x", lambda: 5)
    two = ConversationState("c", "x", lambda: 5)
    one.set("k", 1)
    two.set("k", 2)
    with pytest.raises(BadInput, match="faulty"):
        state.merge([*one.events(), *two.events()])
    assert state.view() == {}


def test_a_paused_lease_holder_cannot_write_after_another_took_over():
    now = [0.0]
    group = LeaseGroup(3, lambda: now[0])
    first = group.acquire("booking", "a", 10)
    group.write(first, "by a")
    with pytest.raises(LeaseLost, match="held by a"):
        group.acquire("booking", "b", 10)
    now[0] = 30.0
    second = group.acquire("booking", "b", 10)
    group.write(second, "by b")
    with pytest.raises(LeaseLost, match="token"):
        group.write(first, "zombie")
    assert group.read("booking") == "by b"


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["take", "write", "wait", "down", "up"]), st.integers(0, 4)), max_size=30))
def test_tokens_of_accepted_writes_never_go_back(steps):
    now = [0.0]
    group = LeaseGroup(5, lambda: now[0])
    leases, tokens = {}, []
    for kind, which in steps:
        try:
            if kind == "take":
                leases[which] = group.acquire("k", f"h{which}", 5)
            elif kind == "write" and which in leases:
                group.write(leases[which], which)
                tokens.append(leases[which].token)
                assert group.read("k") == which
            elif kind == "wait":
                now[0] += which
            else:
                group.members[which].up = kind == "up"
        except LeaseLost:
            continue
    assert tokens == sorted(tokens)


def test_no_majority_no_lease():
    group = LeaseGroup(3, lambda: 0.0)
    group.members[0].up = group.members[1].up = False
    with pytest.raises(LeaseLost, match="1 of 3"):
        group.acquire("k", "a", 1)
    with pytest.raises(BadInput):
        LeaseGroup(2, lambda: 0.0)
