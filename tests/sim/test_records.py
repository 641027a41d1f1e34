"""Timelines, ledgers and plans of faults."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.sim import Fault, FaultPlan, Ledger, Sim, Timeline

spans = st.lists(st.tuples(st.floats(0, 50), st.floats(0, 10), st.sampled_from("ab")), max_size=15)


def timeline_of(found):
    timeline = Timeline()
    for begin, length, row in found:
        timeline.record(row, "work", begin, begin + length)
    return timeline


@given(found=spans)
def test_busy_and_exposed_time_add_up(found):
    timeline = timeline_of(found)
    a, b, both = timeline.busy("a"), timeline.busy("b"), timeline.busy("a", "b")
    assert max(a, b) <= both + 1e-9
    assert both <= a + b + 1e-9
    assert timeline.exposed("a", "b") == pytest.approx(both - b, abs=1e-9)
    assert timeline.exposed("b", "a") == pytest.approx(both - a, abs=1e-9)


def test_trace_opens_as_chrome_expects_it(tmp_path):
    timeline = Timeline()
    timeline.record("gpu 0", "matmul", 0.001, 0.003, flops=12)
    path = tmp_path / "trace.json"
    timeline.write_chrome_trace(path)
    name, event = json.loads(path.read_text())["traceEvents"]
    assert name["args"]["name"] == "gpu 0"
    assert (event["ts"], event["dur"], event["args"]) == (pytest.approx(1000), pytest.approx(2000), {"flops": 12})
    with pytest.raises(BadInput, match="cannot write"):
        timeline.write_chrome_trace(tmp_path / "none" / "trace.json")
    with pytest.raises(BadInput, match="ends before it begins"):
        timeline.record("x", "y", 2, 1)


@given(moves=st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from("xyz"), st.integers(0, 10**9)), max_size=30))
def test_ledger_conserves_bytes_and_does_not_depend_on_order(moves):
    forward, backward = Ledger(), Ledger()
    for source, target, nbytes in moves:
        forward.move(source, target, nbytes)
    for source, target, nbytes in reversed(moves):
        backward.move(source, target, nbytes)
    forward.check()
    assert forward.total("bytes") == backward.total("bytes") == sum(n for *_, n in moves)
    assert forward.categories("bytes") == backward.categories("bytes")
    assert sum(forward.given(p) for p in "xyz") == sum(forward.got(p) for p in "xyz")


@pytest.mark.parametrize("amount", [-1, float("nan"), float("inf")])
def test_ledger_refuses_what_is_no_amount(amount):
    with pytest.raises(BadInput, match="finite"):
        Ledger().spend("joules", "dram", amount)
    with pytest.raises(BadInput, match="bytes, joules or seconds"):
        Ledger().spend("apples", "dram", 1)


def test_random_plans_repeat_and_do_not_depend_on_the_other_targets():
    def plan(targets):
        return FaultPlan.random(3, targets, ["kill", "hang"], rate=0.5, horizon=40, duration=2)

    alone, together = plan(["w1"]), plan(["w0", "w1"])
    assert plan(["w0", "w1"]) == together
    assert tuple(f for f in together.faults if f.target == "w1") == alone.faults
    assert 5 < len(alone.faults) < 50
    assert FaultPlan.from_json(together.to_json()) == together


def test_faults_strike_at_their_time_and_at_their_visit_of_a_phase():
    sim, seen = Sim(), []
    plan = FaultPlan((Fault("kill", "a", at=2), Fault("slow", "b", phase="commit", visit=2)))
    run = plan.install(sim, {"kill": seen.append, "slow": seen.append})

    def program():
        for _ in range(3):
            yield sim.wait(1)
            run.reach("commit")

    sim.spawn(program())
    sim.run()
    assert [(when, fault.target) for when, fault in run.struck] == [(2, "a"), (2, "b")]
    assert [fault.target for fault in seen] == ["a", "b"]


def test_bad_plans_are_refused_before_anything_is_scheduled():
    sim = Sim()
    with pytest.raises(BadInput, match="no actuator for kill"):
        FaultPlan((Fault("kill", "a", at=1),)).install(sim, {"hang": print})
    sim.run()
    assert sim.now == 0
    for wrong in ({}, {"at": 1, "phase": "x"}, {"at": -1}, {"at": float("nan")}, {"phase": "x", "visit": 0}):
        with pytest.raises(BadInput):
            Fault("kill", "a", **wrong)
    for text in ("{", "[3]", '[{"kind": "kill"}]', '[{"kind": "kill", "target": "a", "at": 1, "what": 2}]'):
        with pytest.raises(BadInput, match="no plan of faults"):
            FaultPlan.from_json(text)
