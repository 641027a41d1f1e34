"""The envelope is the lower envelope, and a controller picks by it, learns, and keeps off what was too slow."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.serving.kv_serve import (
    METHODS,
    CompressionController,
    CompressionProfile,
    ProfileSet,
    TransferContext,
    Transferred,
    lower_envelope,
)
from heliograph.serving.kv_serve.controller import BandwidthEstimate

RATES = st.floats(1e6, 1e11)


def profile(name, ratio, compress, restore=math.inf, quality=1.0):
    return CompressionProfile(name, METHODS["kivi"], (1,), (ratio,), (compress,), (restore,), quality, quality, quality)


FAST = profile("fast", 3.0, 1e9, quality=0.98)
SMALL = profile("small", 8.0, 1e8, quality=0.95)
SAFE = profile("safe", 1.4, 1e9)
MIB = 2**20


def context(**settings):
    return TransferContext(**{"nbytes": 10 * MIB, "tokens": 512, "bytes_per_s": 1e7, **settings})


@given(st.lists(st.tuples(st.floats(0.5, 40), RATES, RATES), max_size=12), st.lists(RATES, min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_the_envelope_is_what_trying_all_profiles_finds(rows, bandwidths):
    profiles = [profile(str(n), *row) for n, row in enumerate(rows)]
    breaks, ids = lower_envelope(profiles)
    assert list(breaks) == sorted(set(breaks))
    assert len(ids) == len(set(ids)) == len(breaks) + 1
    assert ids[0] == "none"
    by_id = {each.id: each for each in profiles}
    for bandwidth in bandwidths:
        lines = {name: each.seconds(1, 1, bandwidth) for name, each in by_id.items()} | {"none": 1 / bandwidth}
        chosen = ids[sum(edge <= 1 / bandwidth for edge in breaks)]
        assert lines[chosen] <= min(lines.values()) * (1 + 1e-9)


@given(st.floats(1.01, 40), RATES, RATES, st.floats(0.5, 2.0))
@settings(max_examples=60, deadline=None)
def test_a_profile_helps_below_its_break_even_bandwidth_whatever_the_size(ratio, compress, restore, factor):
    assume(abs(factor - 1) > 1e-6)
    one = profile("p", ratio, compress, restore)
    bandwidth = one.break_even(1) * factor
    for nbytes in (1, 1e9):
        assert (one.seconds(nbytes, 1, bandwidth) < nbytes / bandwidth) == (factor < 1)


def test_the_unit_is_bytes_and_rates_of_both_directions_add_up_as_times():
    one = profile("p", 4.0, 2e9, 2e9)
    assert one.rate(1) == pytest.approx(1e9)
    assert one.seconds(4e9, 1, 1e9) == pytest.approx(4 + 1)


def test_numbers_between_measured_lengths_are_interpolated_on_logarithms():
    one = CompressionProfile("p", METHODS["kivi"], (16, 256), (2.0, 8.0), (1e8, 1e8), (1e8, 1e8))
    assert one.ratio(64) == pytest.approx(4.0)
    assert (one.ratio(1), one.ratio(10**6)) == pytest.approx((2.0, 8.0))


def test_an_unlimited_link_picks_none():
    decision = CompressionController([FAST, SMALL], epsilon=0).select(context(bytes_per_s=math.inf))
    assert (decision.profile.id, decision.reason) == ("none", "no_gain")


def test_less_bandwidth_picks_more_compression():
    controller = CompressionController([FAST, SMALL, SAFE], epsilon=0)
    chosen = [controller.select(context(bytes_per_s=b)).profile.id for b in (1e10, 1e8, 1e6)]
    assert chosen == ["none", "fast", "small"]


def test_a_tighter_quality_shrinks_the_choice():
    controller = CompressionController([FAST, SMALL], epsilon=0)
    chosen = [controller.select(context(bytes_per_s=1e6, min_quality=q)) for q in (0.9, 0.97, 0.999)]
    assert [each.profile.id for each in chosen] == ["small", "fast", "none"]
    assert [each.reason for each in chosen] == ["exploit", "exploit", "quality"]


def test_the_low_end_of_the_interval_can_be_asked_for():
    unsure = replace(FAST, quality=0.99, quality_low=0.9)
    asked = context(min_quality=0.97)
    assert CompressionController([unsure], epsilon=0).select(asked).profile.id == "fast"
    assert CompressionController([unsure], epsilon=0, use_lower_quality=True).select(asked).profile.id == "none"


def test_a_limit_that_nothing_meets_picks_what_is_predicted_fastest_or_the_default():
    late = context(slo_s=1e-6, bytes_per_s=1e6)
    decision = CompressionController([FAST, SMALL], epsilon=0).select(late)
    assert (decision.profile.id, decision.reason) == ("small", "slo")
    assert CompressionController([FAST, SMALL], epsilon=0, default="fast").select(late).profile.id == "fast"


def test_slow_transfers_move_later_choices_away_and_fast_ones_back():
    controller = CompressionController([FAST], epsilon=0)
    asked = context(bytes_per_s=2e8)
    first = controller.select(asked)
    assert first.profile.id == "fast"
    for _ in range(4):
        controller.observe(first, first.t_hat * 3)
    assert controller.select(asked).profile.id == "none"
    for _ in range(30):
        controller.observe(first, first.t_hat)
    assert controller.select(asked).profile.id == "fast"


def test_without_learning_nothing_moves():
    controller = CompressionController([FAST], epsilon=0, learn=False)
    first = controller.select(context())
    for _ in range(9):
        controller.observe(first, Transferred(9.0, 9.0, 9.0, MIB))
    assert controller.select(context()) == first


def test_a_slow_codec_is_learnt_for_every_profile_and_interval():
    controller = CompressionController([FAST, SMALL], epsilon=0)
    decision = controller.select(context())
    usual = decision.profile.compress_seconds(10 * MIB, 512)
    for _ in range(20):
        controller.observe(decision, Transferred(3 * usual, 1.0, 0.0, MIB))
    assert controller.slowdown == pytest.approx(3, rel=0.05)
    assert controller.select(context(bytes_per_s=4e8)).profile.id == "none"
    assert CompressionController([FAST, SMALL], epsilon=0).select(context(bytes_per_s=4e8)).profile.id == "fast"


def test_a_profile_that_misses_the_limit_rests_and_comes_back():
    controller = CompressionController([FAST], epsilon=0, learn=False, violations=3, window=10, rest=8)
    asked = context(slo_s=2.0)
    for _ in range(3):
        controller.observe(controller.select(asked), 5.0)
    chosen = [controller.select(asked) for _ in range(9)]
    assert [each.reason for each in chosen[:8]] == ["cooldown"] * 8
    assert {each.profile.id for each in chosen[:8]} == {"none"}
    assert chosen[8].profile.id == "fast"


def test_while_the_optimum_rests_others_of_the_envelope_are_used():
    heavy = profile("heavy", 20.0, 5e7)
    controller = CompressionController([FAST, SMALL, heavy], epsilon=0, learn=False, neighbours=0, rest=5)
    asked = context(bytes_per_s=1e6, slo_s=6.0)
    first = controller.select(asked)
    for _ in range(3):
        controller.observe(first, 99.0)
    assert first.profile.id == "heavy"
    assert controller.select(asked).profile.id == "small"


def test_labels_that_nobody_knows_share_their_records():
    controller = CompressionController([FAST], epsilon=0)
    for number in range(50):
        decision = controller.select(context(workload=f"label {number}"))
        controller.observe(decision, 1.0)
    assert len(controller._records) <= 4


def test_only_the_last_uses_count():
    controller = CompressionController([FAST], epsilon=0, learn=False, violations=3, window=4)
    decision = controller.select(context(slo_s=2.0))
    for seconds in (5, 5, 1, 1, 1, 5, 5):
        controller.observe(decision, float(seconds))
    assert controller.select(context(slo_s=2.0)).reason == "exploit"


def test_exploring_tries_the_neighbours_of_the_optimum_alone():
    tiny = profile("tiny", 30.0, 1e6)
    controller = CompressionController([FAST, SMALL, SAFE, tiny], epsilon=1.0, explore_within=100, seed=3)
    asked = context(bytes_per_s=2e8)
    found = {controller.select(asked).profile.id for _ in range(60)}
    assert found == {"none", "fast", "small"}
    assert controller.reasons["explore"] == 60


def test_a_neighbour_that_is_predicted_far_slower_is_not_tried():
    controller = CompressionController([FAST, SMALL], epsilon=1.0, seed=3)
    asked = context(bytes_per_s=4e8)  # "small" compresses at a quarter of the link's rate
    assert {controller.select(asked).profile.id for _ in range(60)} == {"none", "fast"}


def test_a_swing_of_the_bandwidth_is_not_blamed_on_the_profile():
    controller = CompressionController([FAST], epsilon=0, bytes_per_s=2e8)
    asked = context(bytes_per_s=None)
    first = controller.select(asked)
    sent = 10 * MIB / 3
    controller.observe(first, Transferred(10 * MIB / 1e9, sent / 1e6, 0.0, int(sent)))
    again = controller.select(asked)
    assert again.profile.id == "fast"
    assert again.expected == pytest.approx(again.t_hat, rel=1e-3)


def test_the_same_seed_explores_alike():
    pair = [CompressionController([FAST, SMALL], epsilon=0.5, seed=1) for _ in range(2)]
    one, two = ([c.select(context(bytes_per_s=5e7)).profile.id for _ in range(40)] for c in pair)
    assert one == two


def test_bandwidth_is_what_was_measured_and_small_payloads_are_counted_apart():
    estimate = BandwidthEstimate(1e9)
    estimate.observe(10 * MIB, 1.0)
    estimate.observe(1000, 1.0)
    assert estimate.value(10 * MIB) == pytest.approx(10 * MIB)
    assert estimate.value(1000) == pytest.approx(1000)
    for _ in range(8):
        estimate.observe(MIB, 1.0)
    assert estimate.value(MIB) == pytest.approx(MIB, rel=0.05)


def test_a_transfer_teaches_the_bandwidth():
    controller = CompressionController([FAST], epsilon=0, bytes_per_s=1e12)
    asked = context(bytes_per_s=None)
    decision = controller.select(asked)
    assert decision.profile.id == "none"
    controller.observe(decision, Transferred(0.0, 10.0, 0.0, 10 * MIB))
    assert controller.select(asked).profile.id == "fast"


def test_an_unknown_workload_takes_the_unified_profiles():
    profiles = ProfileSet("m", "f", {"unified": (FAST,), "chat": (SMALL,)})
    controller = CompressionController(profiles, epsilon=0)
    found = [controller.select(context(bytes_per_s=1e6, workload=w)).profile.id for w in ("chat", "unified", "new")]
    assert found == ["small", "fast", "fast"]


def test_profiles_are_saved_and_loaded(tmp_path):
    found = ProfileSet("m", "f", {"unified": (FAST, SMALL)}, ((0.5, 0.25),), {"seed": 1})
    found.save(tmp_path / "p.json")
    assert ProfileSet.load(tmp_path / "p.json") == found
    assert [each.name for each in tmp_path.iterdir()] == ["p.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "heliograph kv profiles 1"}'])
def test_files_without_profiles_are_refused(tmp_path, text):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(BadInput):
        ProfileSet.load(path)


def test_a_damaged_profile_is_named(tmp_path):
    path = tmp_path / "p.json"
    ProfileSet("m", "f", {"unified": (FAST,)}).save(path)
    plain = json.loads(path.read_text())
    plain["workloads"]["unified"][0]["ratios"] = [-1]
    path.write_text(json.dumps(plain))
    with pytest.raises(BadInput, match="fast"):
        ProfileSet.load(path)


@pytest.mark.parametrize(
    "settings", [{"epsilon": 2}, {"alpha": 0}, {"violations": 11}, {"default": "nobody"}, {"bytes_per_s": 0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(BadInput):
        CompressionController([FAST], **settings)


def test_a_set_without_unified_profiles_is_refused():
    with pytest.raises(BadInput, match="unified"):
        ProfileSet("m", "f", {"chat": ()})
