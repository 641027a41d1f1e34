"""Uncached tokens decide, what is scarce decides whose cache counts, and neither switch nor threshold flutters."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.serving import InstanceView
from heliograph.serving.core.async_engine import Overloaded
from heliograph.serving.core.cluster import RoutingRequest
from heliograph.serving.core.cost_model import CostModel
from heliograph.serving.core.sim_cluster import InstanceSpec, SimCluster, SimRequest
from heliograph.serving.prfaas import (
    AdaptiveThreshold,
    ClusterFacts,
    ClusterOffloading,
    ClusterRefused,
    CongestionMonitor,
    GlobalPrefixIndex,
    HybridRouter,
    LinkReport,
    LogNormalLengths,
    OffloadRequest,
    RoleController,
    case_study,
    check_clusters,
)
from heliograph.serving.prfaas.service_model import CASE_LENGTHS

MIB = 2**20
NAMES = [f"block {n}" for n in range(80)]


def router(t: float = 20_000, *, remote: int = 0, local: int = 0, scarce: bool = False) -> HybridRouter:
    index = GlobalPrefixIndex(("remote", "local"), 1000)
    index.record("remote", NAMES[:remote])
    index.record("local", NAMES[:local])
    made = HybridRouter(t, index)
    made.monitor.scarce = scarce
    return made


def test_a_long_prompt_that_is_cached_here_stays_here() -> None:
    placed = router(local=78).route(OffloadRequest(80_000, NAMES))
    assert (placed.cluster, placed.uncached_tokens, placed.reuse_from) == ("local", 2_000, "local")


def test_a_long_prompt_that_nobody_has_leaves() -> None:
    placed = router().route(OffloadRequest(80_000, NAMES))
    assert (placed.cluster, placed.reuse_from, placed.moved_tokens) == ("remote", "", 0)
    assert "above 20000" in placed.reason


def test_a_prompt_of_exactly_the_threshold_stays() -> None:
    assert router(5_000).route(OffloadRequest(5_000)).cluster == "local"
    assert router(5_000).route(OffloadRequest(5_001)).cluster == "remote"


def test_while_computing_is_scarce_the_other_clusters_prefix_is_moved_here() -> None:
    placed = router(remote=70, local=10).route(OffloadRequest(80_000, NAMES))
    assert (placed.cluster, placed.reuse_from) == ("local", "remote")
    assert (placed.reused_tokens, placed.moved_tokens, placed.uncached_tokens) == (70_000, 60_000, 10_000)


def test_while_bandwidth_is_scarce_no_cache_moves_and_the_local_one_decides() -> None:
    placed = router(remote=70, local=10, scarce=True).route(OffloadRequest(80_000, NAMES))
    assert (placed.cluster, placed.moved_tokens) == ("remote", 0)
    assert placed.uncached_tokens == 10_000  # the remote cluster computes what its own cache lacks
    stays = router(remote=70, local=65, scarce=True).route(OffloadRequest(80_000, NAMES))
    assert (stays.cluster, stays.uncached_tokens) == ("local", 15_000)


def test_nothing_leaves_for_a_cluster_that_is_away() -> None:
    made = router(remote=70)
    made.remote_alive = False
    placed = made.route(OffloadRequest(80_000, NAMES))
    assert (placed.cluster, placed.reuse_from, placed.uncached_tokens) == ("local", "", 80_000)


@given(st.integers(1, 80_000), st.integers(0, 80), st.integers(0, 80), st.booleans(), st.floats(0, 90_000))
@settings(max_examples=100, deadline=None)
def test_placements_add_up(tokens: int, remote: int, local: int, scarce: bool, t: float) -> None:
    placed = router(t, remote=remote, local=local, scarce=scarce).route(OffloadRequest(tokens, NAMES))
    assert placed.uncached_tokens + placed.reused_tokens == tokens
    assert placed.uncached_tokens >= 1
    assert 0 <= placed.moved_tokens <= placed.reused_tokens
    assert not (scarce and placed.moved_tokens)
    if not scarce:
        assert (placed.cluster == "remote") == (placed.uncached_tokens > t)


@pytest.mark.parametrize("t", [-1.0, math.nan])
def test_a_threshold_that_is_none_is_refused(t: float) -> None:
    with pytest.raises(BadInput, match="threshold"):
        HybridRouter(t)


def test_an_index_of_other_clusters_is_refused() -> None:
    with pytest.raises(BadInput, match="index"):
        HybridRouter(1.0, GlobalPrefixIndex(("a", "b"), 16))


@pytest.mark.parametrize(
    "change", [{"fingerprint": "other"}, {"dtype": "float16"}, {"page_bytes": 9}, {"groups": ("window", "full")}]
)
def test_clusters_that_differ_are_refused_with_both_values(change: dict[str, object]) -> None:
    here = ClusterFacts("model", groups=("full", "window"))
    there = ClusterFacts(**{**here.__dict__, **change})  # type: ignore[arg-type]
    with pytest.raises(ClusterRefused, match=next(iter(change))):
        check_clusters(there, here)
    with pytest.raises(ClusterRefused):
        HybridRouter(1.0, clusters={"remote": there, "local": here})
    with pytest.raises(BadInput, match="remote and local"):
        HybridRouter(1.0, clusters={"here": here})


def views(*names: str) -> list[InstanceView]:
    return [InstanceView(name, "decode" if name.startswith("d") else "prefill") for name in names]


def test_in_a_running_cluster_long_prompts_go_to_remote_instances_and_answers_stay() -> None:
    placed = ClusterOffloading(HybridRouter(100.0), ["far"])
    long, short = RoutingRequest(range(200), 8), RoutingRequest(range(50), 8)
    there, here = placed.route(long, views("far", "near", "d")), placed.route(short, views("far", "near", "d"))
    assert (there.prefill, there.decode) == ("far", "d")
    assert (here.prefill, here.decode) == ("near", "d")
    assert placed.route(long, views("near", "d")).prefill == "near"
    with pytest.raises(Overloaded):
        placed.route(long, [])


def test_in_a_running_cluster_a_prompt_seen_before_stays_where_its_prefix_is() -> None:
    made = HybridRouter(100.0, GlobalPrefixIndex(("remote", "local"), 16))
    placed = ClusterOffloading(made, ["far"])
    prompt = list(range(96))
    assert placed.route(RoutingRequest(prompt, 8), views("far", "near", "d")).prefill == "near"
    longer = RoutingRequest([*prompt, *range(50)], 8)
    assert placed.route(longer, views("far", "near", "d")).prefill == "near"


def test_a_simulated_cluster_of_the_core_takes_the_same_decision() -> None:
    cost = CostModel(0.01, 0.001, 0.0, 0.002, 0.0, kv_bytes_per_token=1000)
    specs = [InstanceSpec("far", "prefill"), InstanceSpec("near", "prefill"), InstanceSpec("d", "decode")]
    cluster = SimCluster(specs, ClusterOffloading(HybridRouter(100.0), ["far"]), cost)
    asked = [SimRequest(f"r{n}", 0.1 * n, range(50 + 100 * (n % 2)), 5) for n in range(6)]
    found = cluster.run(asked)
    cluster.check()
    assert [r.placements[0][1].prefill for r in found.records] == ["near", "far"] * 3
    assert all(r.tokens == 5 for r in found.records)


def report(now: float, sent: float = 0.0, queued: float = 0.0, rate: float = 100 * MIB) -> LinkReport:
    return LinkReport(now, sent, queued, rate)


def test_a_standing_queue_makes_bandwidth_scarce_and_a_burst_does_not() -> None:
    monitor = CongestionMonitor(standing_s=1.0)
    assert not monitor.observe(report(0.0))
    assert not monitor.observe(report(0.5, queued=500 * MIB))
    assert not monitor.observe(report(1.0, queued=500 * MIB))
    assert monitor.observe(report(1.6, queued=500 * MIB))


def test_between_the_two_levels_the_answer_stays() -> None:
    monitor = CongestionMonitor(standing_s=0.0, window_s=1.0)
    answers = [monitor.observe(report(t, queued=q * MIB)) for t, q in enumerate((0, 40, 70, 40, 17, 10, 40))]
    assert answers == [False, False, True, True, True, False, False]
    assert monitor.switches == 2


def test_use_of_the_link_alone_makes_it_scarce() -> None:
    monitor = CongestionMonitor(window_s=10.0)
    sent = 0.0
    for second in range(11):
        monitor.observe(report(float(second), sent=sent))
        sent += 90 * MIB
    assert monitor.scarce
    for second in range(11, 30):
        monitor.observe(report(float(second), sent=sent))
        sent += 30 * MIB
    assert not monitor.scarce
    assert monitor.switches == 2


def test_no_link_at_all_is_scarce() -> None:
    assert CongestionMonitor().observe(report(0.0, rate=0.0))


def test_reports_of_two_clocks_and_levels_without_a_gap_are_refused() -> None:
    monitor = CongestionMonitor()
    monitor.observe(report(5.0))
    with pytest.raises(BadInput, match="one clock"):
        monitor.observe(report(4.0))
    for wrong in ({"high": 0.5, "low": 0.5}, {"queue_high": 1.0, "queue_low": 1.0}, {"window_s": 0.0}):
        with pytest.raises(BadInput, match="need"):
            CongestionMonitor(**wrong)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 200)), min_size=2, max_size=60))
@settings(max_examples=60, deadline=None)
def test_the_switch_turns_only_outside_the_gap(steps: list[tuple[float, float]]) -> None:
    monitor = CongestionMonitor(standing_s=0.0, window_s=0.5)
    sent, before = 0.0, False
    for second, (share, queued) in enumerate(steps):
        sent += share * 100 * MIB
        after = monitor.observe(report(float(second), sent, queued * MIB))
        if after and not before:
            assert monitor.utilisation > 0.8 or queued > 64
        if before and not after:
            assert monitor.utilisation <= 0.6
            assert queued <= 16
        before = after


def fed(**more: float) -> AdaptiveThreshold:
    model = case_study()
    lengths = LogNormalLengths(*CASE_LENGTHS)
    best = model.optimise(lengths)
    made = AdaptiveThreshold(model, best.t, best.n_p, **more)  # type: ignore[arg-type]
    for length in lengths.sample(1000, 3):
        made.saw(float(length))
    return made


def test_the_threshold_rises_while_bandwidth_is_scarce_and_comes_back() -> None:
    made = fed()
    start = made.update(0.0, False, 12.5e9)
    high = made.update(10.0, True, 0.4e9)
    assert high > 1.1 * start
    assert made.update(20.0, False, 12.5e9) == pytest.approx(start, rel=0.11)


def test_without_bandwidth_nothing_leaves() -> None:
    assert fed().update(0.0, True, 0.0) == math.inf


def test_small_differences_and_early_calls_do_not_move_the_threshold() -> None:
    made = fed()
    first = made.update(0.0, False, 12.5e9)
    assert made.update(1.0, False, 0.1e9) == first  # too early
    assert made.update(10.0, False, 12.0e9) == first
    assert AdaptiveThreshold(case_study(), 5.0, 3).update(0.0, True, 1.0) == 5.0  # no lengths yet


@pytest.mark.parametrize("wrong", [{"least": 0}, {"recent": 5, "least": 6}, {"headroom": 0.0}, {"change": -1.0}])
def test_impossible_settings_of_a_threshold_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="need"):
        AdaptiveThreshold(case_study(), 1.0, 1, **wrong)  # type: ignore[arg-type]


def window(made: RoleController, length: float, output: int, count: int = 50) -> None:
    for _ in range(count):
        made.saw(length, output)


def test_a_lasting_gap_turns_one_instance_and_then_rests() -> None:
    made = RoleController(case_study())
    found = []
    for _ in range(5):
        window(made, 15_000, 100)  # short answers: decode could do far more
        found.append(made.judge(3, 5, math.inf))
    assert found == [0, 1, 0, 0, 0]


def test_long_answers_turn_an_instance_to_decoding() -> None:
    made = RoleController(case_study(), windows=1)
    window(made, 2_000, 4_000)
    assert made.judge(6, 2, math.inf) == -1


def test_the_last_instance_of_a_role_and_windows_with_few_requests_change_nothing() -> None:
    made = RoleController(case_study(), windows=1)
    window(made, 60_000, 10)
    assert made.judge(7, 1, math.inf) == 0
    window(made, 500, 8_000)
    assert made.judge(1, 7, math.inf) == 0
    window(made, 15_000, 100, count=5)
    assert made.judge(3, 5, math.inf) == 0


def test_a_small_gap_changes_nothing() -> None:
    made = RoleController(case_study(), windows=1)
    window(made, 27_000, 1024)
    assert made.judge(6, 2, math.inf) == 0
