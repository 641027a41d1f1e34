"""Placement, roles, prediction and co-location: what the policies decide, and what a cluster does with it."""

import pytest

from heliograph.errors import BadInput
from heliograph.serving.core.cluster import InstanceView, Placement, RoutingRequest
from heliograph.serving.core.cost_model import CostModel
from heliograph.serving.core.scheduler import SchedulerConfig
from heliograph.serving.core.sim_cluster import InstanceSpec, SetRole, SimCluster, SimRequest, Slo, Snapshot
from heliograph.serving.xllm.colocation import ColocationPolicy, preferred_length
from heliograph.serving.xllm.predictor import ProfilePoint, TimePredictor
from heliograph.serving.xllm.recovery import fetch_or_recompute
from heliograph.serving.xllm.routing import SloAwareRouter

COST = CostModel(0.01, 0.001, 0.0, 0.002, 0.0, kv_bytes_per_token=1000)
PREDICTOR = TimePredictor.from_cost_model(COST)  # TTFT = 10 ms + 1 ms a token; TPOT = 10 ms + 2 ms a request
ASK = RoutingRequest(range(100), 64)


def router(**settings):
    return SloAwareRouter(PREDICTOR, **({"ttft_ms": 1000, "tpot_ms": 50} | settings))


def prefill(name, requests=0, tokens=0, **more):
    return InstanceView(name, "prefill", prefill_requests=requests, prefill_tokens=tokens, **more)


def decode(name, requests=0, tokens=0, **more):
    return InstanceView(name, "decode", decode_requests=requests, decode_tokens=tokens, **more)


def test_a_prompt_goes_where_least_time_is_outstanding():
    views = [prefill("p0", 1, 500), prefill("p1", 3, 300), decode("d0")]
    assert router().route(ASK, views).prefill == "p1"


def test_answers_are_packed_on_the_first_instance_that_meets_the_limit():
    views = [prefill("p0"), decode("d0", 10), decode("d1", 2)]
    assert router().route(ASK, views).decode == "d0"
    assert router(tpot_ms=30).route(ASK, views).decode == "d1"


def test_promises_count_until_the_prompt_is_computed():
    own = router(tpot_ms=10 + 2 * 3 + 1)  # room for three
    views = [prefill("p0"), decode("d0"), decode("d1")]
    places = []
    for _ in range(5):
        places.append(own.route(ASK, views).decode)
        views[0].prefill_requests += 1
    assert places == ["d0", "d0", "d0", "d1", "d1"]
    views[0].prefill_requests = 0  # all cancelled: nothing is left of the promises
    assert own.route(ASK, views).decode == "d0"


def test_a_decode_instance_with_little_work_is_lent_a_prompt():
    views = [prefill("p0", 3, 3000), decode("d0", 12), decode("d1", 1)]
    own = router()
    assert own.route(ASK, views) == Placement("d1", "d0")
    assert own.lent == 1


def test_a_prefill_instance_becomes_a_decode_one_when_no_answer_meets_the_limit():
    own = router(tpot_ms=12)
    views = [prefill("p0"), prefill("p1"), decode("d0", 5)]
    chosen = own.route(ASK, views).prefill
    assert own.observe(Snapshot(0.0, tuple(views))) == [SetRole(chosen, "decode")]
    assert own.observe(Snapshot(0.0, tuple(views))) == []


def test_the_last_prefill_instance_stays_one():
    own = router(tpot_ms=12)
    views = [prefill("p0"), decode("d0", 5)]
    own.route(ASK, views)
    assert own.observe(Snapshot(0.0, tuple(views))) == []


def test_an_instance_does_not_flip_while_keys_and_values_are_on_their_way():
    own = router(tpot_ms=12)
    views = [prefill("p0", transfers=1), prefill("p1", 9, 9000), decode("d0", 5)]
    assert own.route(ASK, views).prefill == "p0"
    assert own.observe(Snapshot(0.0, tuple(views))) == []
    views[0].transfers = 0
    assert own.observe(Snapshot(0.0, tuple(views))) == [SetRole("p0", "decode")]


@pytest.mark.parametrize(
    ("idle", "flips"),
    [
        ([decode("d0"), decode("d1", 1)], ["d0"]),
        ([decode("d0"), decode("d1")], ["d0"]),
        ([decode("d0")], []),
        ([decode("d0", transfers=1), decode("d1", 1)], []),
    ],
)
def test_a_decode_instance_without_work_becomes_a_prefill_one_but_never_the_last(idle, flips):
    actions = router().observe(Snapshot(0.0, (prefill("p0"), *idle)))
    assert [action.instance for action in actions] == flips


def test_a_decode_instance_with_promised_work_does_not_flip():
    own, views = router(), [prefill("p0"), decode("d0"), decode("d1", 3)]
    assert own.route(ASK, views).decode == "d0"
    views[0].prefill_requests = 1
    assert own.observe(Snapshot(0.0, tuple(views))) == []


def test_without_flips_nothing_changes():
    own = router(tpot_ms=12, flips=False)
    views = [prefill("p0"), prefill("p1"), decode("d0", 5)]
    own.route(ASK, views)
    assert own.observe(Snapshot(0.0, tuple(views))) == []


def test_limits_that_are_not_above_0_are_refused():
    with pytest.raises(BadInput, match="tpot_ms=0"):
        router(tpot_ms=0)


def test_roles_follow_a_load_that_changes_and_every_request_ends():
    own = router(ttft_ms=500, tpot_ms=25)
    specs = [InstanceSpec(f"m{n}", "prefill" if n < 2 else "decode") for n in range(4)]
    cluster = SimCluster(specs, own, COST, controller=own)
    prompts = [SimRequest(f"p{n}", n * 0.15, range(300), 3) for n in range(40)]
    answers = [SimRequest(f"a{n}", 6 + n * 0.05, range(10), 120) for n in range(80)]
    report = cluster.run([*prompts, *answers])
    cluster.check()
    assert all(r.completed for r in report.records)
    assert {role for _, _, role in report.roles} == {"prefill", "decode"}
    assert {v.role for v in cluster.views} == {"prefill", "decode"}


def test_below_the_shortest_profiled_prompt_nothing_turns_negative():
    points = [ProfilePoint(n, s) for n, s in ((100, 0.02), (200, 0.1), (400, 0.42))]
    fitted = TimePredictor.fit([*points, *(ProfilePoint(10 * b, 0.1 + b, b) for b in (1, 2, 4))])
    assert fitted.ttft_s(1) == fitted.ttft_s(100) > 0
    assert fitted.ttft_s(0) == 0
    times = [fitted.ttft_s(n) for n in range(1, 2000, 7)]
    assert times == sorted(times)


def test_the_predictor_recovers_a_cost_model():
    assert PREDICTOR.ttft_s(333) == pytest.approx(COST.prefill_seconds(333))
    assert PREDICTOR.tpot_s(7, 900) == pytest.approx(COST.decode_seconds(7, 900))


def test_a_profile_with_too_few_points_is_refused():
    with pytest.raises(BadInput, match="at least 3"):
        TimePredictor.fit([ProfilePoint(10, 0.1), ProfilePoint(20, 0.2)])


@pytest.mark.parametrize(("bandwidth", "how"), [(1e9, "fetch"), (1e5, "recompute")])
def test_keys_and_values_are_fetched_where_that_is_faster(bandwidth, how):
    found = fetch_or_recompute(1000, 800, PREDICTOR, kv_bytes_per_token=1000, bytes_per_s=bandwidth)
    assert found.how == how
    assert found.recompute_s == pytest.approx(1.01)
    assert found.fetch_s == pytest.approx(800_000 / bandwidth + 0.21)


def test_what_nobody_holds_is_computed():
    assert fetch_or_recompute(50, 0, PREDICTOR, kv_bytes_per_token=1, bytes_per_s=1e9).how == "recompute"


def test_the_preferred_length_fills_the_batch_up_to_the_limit():
    slope = TimePredictor((0, 0, 0), (0.01, 0.001, 1e-5), 1, 2)
    wanted = preferred_length(slope, batch=2, contexts=100, saturation_batch=10, limit_s=0.05, longest=10_000)
    assert slope.tpot_s(10, 100 + 8 * wanted) <= 0.05 < slope.tpot_s(10, 100 + 8 * (wanted + 1))
    assert preferred_length(slope, 2, 100, 10, 0.001, 10_000) == 0


TIDES_SLO = Slo(0.6, 0.05)


def run_tides(*, colocated):
    """Online requests now and then, over a backlog of offline ones."""
    online = [SimRequest(f"n{n}", n * 0.5, range(200), 20) for n in range(20)]
    offline = [SimRequest(f"f{n}", 0.0, range(150), 60, priority=1) for n in range(40)]
    specs = [
        InstanceSpec("p", "prefill", limits=SchedulerConfig(max_tokens_per_step=1024)),
        InstanceSpec("d", "decode"),
    ]
    own = router(ttft_ms=600, flips=False)
    policy = ColocationPolicy(own, PREDICTOR, tpot_ms=50)
    if colocated:
        cluster = SimCluster(specs, policy, COST, policy=policy, admission=lambda: policy)
    else:
        cluster = SimCluster(specs, own, COST)
    report = cluster.run([*online, *offline])
    cluster.check()
    return report, policy


def test_offline_work_ends_and_online_requests_keep_their_limits():
    report, policy = run_tides(colocated=True)
    assert all(r.completed and r.tokens == r.request.output_tokens for r in report.records)
    assert report.attainment(TIDES_SLO) == 1.0
    assert report.broken_steps > 0
    assert policy.pulled > 0


def test_without_the_policy_online_requests_wait_for_offline_ones():
    report, _ = run_tides(colocated=False)
    assert report.attainment(TIDES_SLO) < 1.0
