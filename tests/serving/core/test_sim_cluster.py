"""A cluster in virtual time: exact times where they can be computed by hand, and accounts that always close."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.serving.core.cluster import LeastOutstanding, Placement, RoundRobin
from heliograph.serving.core.cost_model import CostModel
from heliograph.serving.core.scheduler import SchedulerConfig
from heliograph.serving.core.sim_cluster import (
    InstanceSpec,
    Migrate,
    SetRole,
    SimCluster,
    SimRequest,
    Slo,
    Wire,
)

COST = CostModel(0.1, 0.01, 0.0, 0.02, 0.0, kv_bytes_per_token=1000)
PAIR = [InstanceSpec("p", "prefill"), InstanceSpec("d", "decode")]


def idle(cluster):
    return all(
        (v.prefill_requests, v.prefill_tokens, v.decode_requests, v.decode_tokens, v.transfers) == (0, 0, 0, 0, 0)
        for v in cluster.views
    ) and all(i.core.kv.usage == 0 for i in cluster.instances.values() if not i.dead)


def test_one_request_takes_the_seconds_of_its_steps():
    (record,) = SimCluster([InstanceSpec("one")], RoundRobin(), COST).run([SimRequest("a", 2.0, range(10), 4)]).records
    assert record.ttft_s == pytest.approx(0.1 + 10 * 0.01)
    assert record.finished_s == pytest.approx(2.0 + 0.2 + 3 * 0.12)
    assert record.tpot_s == pytest.approx(0.12)
    assert (record.tokens, record.finish) == (4, "stop")


def test_a_hand_over_takes_latency_and_bytes_over_bandwidth():
    cluster = SimCluster(PAIR, RoundRobin(), COST, wire=Wire(0.5, 10_000.0))
    report = cluster.run([SimRequest("a", 0.0, range(10), 3)])
    (record,) = report.records
    assert record.moved_bytes == report.moved_bytes == 10 * 1000
    assert record.ttft_s == pytest.approx(0.2)
    assert record.finished_s == pytest.approx(0.2 + 0.5 + 1.0 + 2 * 0.12)
    assert idle(cluster)


def test_an_answer_of_one_token_is_not_handed_over():
    report = SimCluster(PAIR, RoundRobin(), COST).run([SimRequest("a", 0.0, range(10), 1)])
    assert (report.moved_bytes, report.records[0].completed) == (0, True)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 3), st.integers(1, 40), st.integers(1, 30), st.integers(0, 1)), min_size=1, max_size=15
    ),
    st.sampled_from(["mix", "pair", "two pairs"]),
    st.integers(12, 40),
)
def test_every_request_ends_with_all_its_tokens_and_nothing_is_left_behind(rows, shape, blocks):
    count = {"mix": 0, "pair": 1, "two pairs": 2}[shape]
    limits = SchedulerConfig(max_tokens_per_step=32, max_sequences=8)
    specs = [
        InstanceSpec(f"{role}{n}", role, blocks, 8, limits)
        for role, number in (("mix", 1), ("prefill", 0), ("decode", 0))
        if not count
        for n in range(number)
    ] or [InstanceSpec(f"{role}{n}", role, blocks, 8, limits) for role in ("prefill", "decode") for n in range(count)]
    cluster = SimCluster(specs, LeastOutstanding(), COST)
    requests = [SimRequest(f"r{n}", at, range(p), o, priority=q) for n, (at, p, o, q) in enumerate(rows)]
    report = cluster.run(requests)
    cluster.check()
    assert [r.completed for r in report.records] == [True] * len(rows)
    assert {r.request.id: r.tokens for r in report.records} == {r.id: r.output_tokens for r in requests}
    assert idle(cluster)


def test_two_runs_of_the_same_trace_are_the_same_run():
    requests = [SimRequest(f"r{n}", n / 7, range(5 + n), 3 + n % 5) for n in range(20)]
    first, second = (SimCluster(PAIR, LeastOutstanding(), COST).run(requests) for _ in range(2))
    assert first.records == second.records


class _Once:
    def __init__(self, *actions):
        self.actions, self.at_s = list(actions), 0.35

    def observe(self, snapshot):
        if snapshot.now_s < self.at_s:
            return []
        actions, self.actions = self.actions, []
        return actions


class _To:
    def __init__(self, prefill, decode):
        self.placement = Placement(prefill, decode)

    def route(self, request, views):
        return self.placement


def test_a_role_does_not_change_while_a_hand_over_is_under_way():
    cluster = SimCluster(
        PAIR,
        RoundRobin(),
        COST,
        wire=Wire(1.0, 1e9),
        controller=_Once(SetRole("d", "prefill")),
        observe_every_s=0.1,
    )
    report = cluster.run([SimRequest("a", 0.0, range(10), 3)])
    assert (report.roles, report.refused_actions) == ((), 1)


def test_a_migrated_request_goes_on_where_it_was():
    cluster = SimCluster(
        [InstanceSpec("a"), InstanceSpec("b")],
        _To("a", "a"),
        COST,
        wire=Wire(0.25, 1e9),
        controller=_Once(Migrate("x/0", "a", "b")),
        observe_every_s=0.1,
    )
    report = cluster.run([SimRequest("x", 0.0, range(10), 12)])
    (record,) = report.records
    assert (record.tokens, record.recomputed_tokens) == (12, 0)
    assert record.finished_s == pytest.approx(0.2 + 11 * 0.12 + 0.25, abs=1e-4)
    assert cluster.instances["b"].core.generated_tokens + cluster.instances["a"].core.generated_tokens == 12
    assert cluster.instances["b"].core.generated_tokens > 0
    assert idle(cluster)


def test_requests_of_a_dead_instance_end_elsewhere_with_all_their_tokens():
    specs = [InstanceSpec("p", "prefill"), InstanceSpec("d0", "decode"), InstanceSpec("d1", "decode")]
    cluster = SimCluster(specs, LeastOutstanding(), COST, remove_s=2.0)
    cluster.kill("d0", 1.5)
    requests = [SimRequest(f"r{n}", n * 0.3, range(20), 15) for n in range(12)]
    report = cluster.run(requests)
    cluster.check()
    assert all(r.completed and r.tokens == 15 for r in report.records)
    assert any(len(r.placements) > 1 for r in report.records)
    assert cluster.views == tuple(cluster.instances[n].view for n in ("p", "d1"))
    assert idle(cluster)


def test_what_has_not_ended_has_not_met_its_limits():
    report = SimCluster([InstanceSpec("one")], RoundRobin(), COST).run(
        [SimRequest("a", 0.0, range(10), 2), SimRequest("b", 0.0, range(10), 900)], until_s=5.0
    )
    assert report.attainment(Slo(10, 10)) == 0.5
    assert report.goodput(Slo(10, 10), 5.0) == pytest.approx(0.2)


def test_a_prompt_that_can_never_run_ends_with_an_error():
    (record,) = (
        SimCluster([InstanceSpec("one", num_blocks=2)], RoundRobin(), COST)
        .run([SimRequest("a", 0.0, range(100), 2)])
        .records
    )
    assert (record.finish, record.tokens) == ("error", 0)


@pytest.mark.parametrize("fields", [{"prompt": ()}, {"output_tokens": 0}, {"arrival_s": -1.0}])
def test_a_request_that_makes_no_sense_is_refused(fields):
    with pytest.raises(BadInput, match="request a"):
        SimRequest(**({"id": "a", "arrival_s": 0.0, "prompt": range(3), "output_tokens": 2} | fields))


def test_two_requests_of_one_id_are_refused():
    with pytest.raises(BadInput, match="ids"):
        SimCluster(PAIR, RoundRobin(), COST).run([SimRequest("a", 0.0, range(3), 2)] * 2)
