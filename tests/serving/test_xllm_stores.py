"""The index of cached blocks, pages of address space, and copies of experts."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.serving.core.blocks import chain_hashes
from heliograph.serving.core.cluster import InstanceView, RoutingRequest
from heliograph.serving.xllm.experts import ReplanRule, place_replicas, replicate
from heliograph.serving.xllm.kv_index import CacheAwareRouter, GlobalKVIndex, Heartbeat, Tier, cache_aware_score
from heliograph.serving.xllm.pages import OutOfPages, PageAccount, PagePool

A, B, C = (bytes([n]) * 16 for n in range(3))


def test_a_match_ends_at_the_first_block_that_is_missing():
    index = GlobalKVIndex()
    index.apply(Heartbeat("one", stored=(A, C)))
    index.apply(Heartbeat("two", stored=(A, B, C)))
    assert index.match([A, B, C]) == {"one": 1, "two": 3}
    assert index.match([B]) == {"two": 1}


def test_offloading_moves_a_block_down_and_then_out():
    index = GlobalKVIndex()
    index.apply(Heartbeat("one", stored=(A,)))
    tiers = []
    for _ in range(3):
        index.apply(Heartbeat("one", offloaded=(A,)))
        tiers.append(index.holders(A).get("one"))
    assert tiers == [Tier.HOST, Tier.DISK, None]


def test_a_match_can_leave_slow_tiers_out():
    index = GlobalKVIndex()
    index.apply(Heartbeat("one", stored=(A, B)))
    index.apply(Heartbeat("one", offloaded=(B,)))
    assert index.match([A, B], Tier.DEVICE) == {"one": 1}
    assert index.match([A, B]) == {"one": 2}


def test_messages_of_an_older_process_are_ignored_and_a_newer_one_begins_empty():
    index = GlobalKVIndex()
    index.apply(Heartbeat("one", 1, stored=(A,)))
    assert index.apply(Heartbeat("one", 2, stored=(B,)))
    assert not index.apply(Heartbeat("one", 1, stored=(C,)))
    assert [bool(index.holders(name)) for name in (A, B, C)] == [False, True, False]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["one", "two"]),
            st.integers(0, 2),
            *(st.lists(st.sampled_from([A, B, C]), max_size=3).map(tuple),) * 3,
            st.booleans(),
        ),
        max_size=20,
    )
)
def test_both_directions_of_the_index_agree_after_any_messages(beats):
    index = GlobalKVIndex()
    for instance, incarnation, stored, offloaded, removed, lost in beats:
        index.apply(Heartbeat(instance, incarnation, stored, offloaded, removed))
        if lost:
            index.forget(instance)
        index.check()


def test_shares_are_real_numbers_and_not_whole_ones():
    assert cache_aware_score(1, 2, 0.25, 1, 4) == pytest.approx(0.5 - 0.25 - 0.25)
    assert cache_aware_score(0, 0, 0.0, 0, 0) == 0.0


def test_a_prompt_goes_where_its_beginning_is():
    index, prompt = GlobalKVIndex(), list(range(16))
    index.apply(Heartbeat("two", stored=tuple(chain_hashes(prompt, 4, "m"))))
    views = [InstanceView("one"), InstanceView("two", kv_usage=0.5)]
    router = CacheAwareRouter(index, 4, "m")
    assert router.route(RoutingRequest(prompt, 8), views).prefill == "two"
    views[1].kv_usage, views[1].prefill_requests = 0.9, 4
    assert router.route(RoutingRequest(prompt, 8), views).prefill == "one"


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_pages_are_free_ahead_or_used_and_the_pool_knows_all_of_them(data):
    pool = PagePool(data.draw(st.integers(1, 60)))
    models = [PageAccount(pool, layers, 8, 2, 4) for layers in (1, 2)]
    used = [[], []]
    for _ in range(data.draw(st.integers(1, 25))):
        number = data.draw(st.integers(0, 1))
        model, mine = models[number], used[number]
        what = data.draw(st.sampled_from(["take", "give", "tend", "sleep", "wake"]))
        if what == "take":
            with contextlib.suppress(OutOfPages):
                mine += model.take(data.draw(st.integers(0, 6)))
        elif what == "give" and mine:
            back = [mine.pop() for _ in range(data.draw(st.integers(1, len(mine))))]
            model.give_back(back)
        elif what == "tend":
            model.tend()
        elif what == "sleep" and not mine:
            model.sleep()
        else:
            model.wake()
        for each, pages in zip(models, used, strict=True):
            usage = each.usage
            assert usage.free + usage.ahead + usage.used == 8
            assert usage.used == len(pages) == len(set(pages))
        assert pool.pages - pool.free == sum(m.mapped() for m in models)
        assert pool.free >= 0


def test_pages_ahead_of_need_are_kept_between_the_two_marks():
    model = PageAccount(PagePool(1000), 1, 100, ahead_low=8, ahead_high=32)
    assert model.tend() == 8
    pages = model.take(40)
    model.give_back(pages)
    assert model.tend() == 32 - 40
    assert model.usage.ahead == 32


def test_a_sleeping_model_leaves_its_memory_to_another():
    pool = PagePool(16)
    first, second = PageAccount(pool, 2, 4), PageAccount(pool, 2, 4)
    first.give_back(first.take(4))
    with pytest.raises(OutOfPages):
        second.take(1)
    assert first.sleep() == 16
    assert len(second.take(4)) == 4
    with pytest.raises(OutOfPages, match="asleep"):
        first.take(1)


def test_a_page_given_back_twice_is_refused():
    model = PageAccount(PagePool(8), 1, 4)
    pages = model.take(2)
    model.give_back(pages)
    with pytest.raises(BadInput, match="not all in use"):
        model.give_back(pages)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 8), st.data())
def test_every_expert_has_a_place_and_no_device_has_two_copies_of_one(devices, data):
    slots = data.draw(st.integers(1, 6))
    experts = data.draw(st.integers(slots, devices * slots))
    loads = data.draw(st.lists(st.floats(0, 100), min_size=experts, max_size=experts))
    found = place_replicas(loads, devices, slots)
    assert all(len(held) == slots == len(set(held)) for held in found.devices)
    counted = [sum(expert in held for held in found.devices) for expert in range(experts)]
    assert tuple(counted) == found.copies
    assert min(counted) >= 1


def test_copies_go_to_the_hottest_expert_by_its_remaining_weight():
    # 10 -> 5; then 6 -> 3; then 5 -> 10/3
    assert replicate([10, 6, 1], 3, 4) == (3, 2, 1)


def test_copies_even_out_a_skewed_load():
    loads = [1 / (1 + n) for n in range(16)]
    plain = place_replicas(loads, 4, 4)
    more = place_replicas(loads, 4, 6)
    assert more.imbalance(loads) < plain.imbalance(loads)
    assert more.imbalance(loads) < 1.1


def test_experts_that_do_not_fit_are_refused():
    with pytest.raises(BadInput, match="cannot hold 9"):
        place_replicas([1] * 9, 4, 2)


def test_a_layer_is_planned_anew_when_its_loads_have_turned():
    rule = ReplanRule(0.9)
    assert [rule.due(0, loads) for loads in ([8, 1, 1], [16, 2, 2], [1, 8, 1], [1, 8, 1.1])] == [
        True,
        False,
        True,
        False,
    ]
    assert rule.due(1, [1, 1, 1])
    always = ReplanRule(1.0)
    assert [always.due(0, [1, 2]) for _ in range(2)] == [True, True]
