import numpy as np
import pytest

from heliograph.agents.mcp_broker.allocation import Constant
from heliograph.catalog.registry import get_card
from heliograph.checks.agents.mcp_broker import CHECK, TURNS
from heliograph.checks.agents.mcp_broker_parts import exact, isolation, recovery, turns
from heliograph.trials.check import Workload
from heliograph.trials.session import CheckOptions, check_systems


class Here:
    """A context without an engine around it."""

    preset, device, block, seed = "smoke", "cpu", 0, 7

    def __init__(self, workload, contender=""):
        self.workload, self.contender, self.kept = workload, contender, {}

    def progress(self, fraction, latest=""):
        pass

    def keep(self, name, value):
        self.kept[name] = value


def test_smoke_runs_and_judges():
    outcome, _, _ = check_systems(["mcp_broker"], CheckOptions(preset="smoke"), lambda *_: None, lambda *_: None)
    judged = outcome.judgements["mcp_broker"]
    by_claim = {finding.claim: finding for finding in judged.findings}
    for claim in ("rules_equal_references", "tenant_isolation", "honest_calls_served", "no_unsafe_retries"):
        assert by_claim[claim].verdict == "holds"
    assert by_claim["turn_budget"].verdict == "void"
    assert by_claim["turn_budget"].declared
    assert all(record.status == "ok" for record in outcome.records)


def test_every_claim_is_on_the_card_and_those_that_the_paper_does_not_make_are_ours():
    card = {claim.id: claim for claim in get_card("mcp_broker").claims}
    assert {claim.claim for claim in CHECK.claims} == set(card)
    papers = {"broker_overhead", "tenant_isolation", "turn_budget", "structured_recovery"}
    assert {name for name, claim in card.items() if claim.source == "paper"} == papers


def test_planted_mistakes_are_noticed_by_the_exact_part(monkeypatch):
    load = Workload("x", {"cases": 60})
    assert all(exact.measure(Here(load))["notices"])
    monkeypatch.setattr(exact, "reference_decision", lambda rules, who, tool: True)
    assert not all(exact.measure(Here(load))["equal"])


def test_an_attack_that_succeeds_is_counted(monkeypatch):
    open_door = isolation.Attack("own token, called an attack", isolation._own, query="r0")
    monkeypatch.setattr(isolation, "ATTACKS", (open_door,))
    context = Here(Workload("x", {"tenants": 2, "calls": 1}))
    found = isolation.measure(context)
    assert not all(found["isolated"])
    assert len(context.kept["attacks that succeeded"]) == 2


def test_foreign_records_are_found_in_a_text():
    assert isolation.leaks("marker-of-t1. and marker-of-t12.", "t1") == ["t12"]


def test_two_ways_of_computing_a_constant_limit_agree():
    latency = turns.draw(turns.families()["unlike"], 80, 3, stalls=True)
    for limit in (200.0, 900.0, 30_000.0):
        slow = turns.run_turns(Constant(limit), latency, 5000).completed.mean()
        assert turns.constant_share(latency, 5000, limit) == pytest.approx(slow)


def test_all_policies_meet_the_same_latencies_and_none_runs_late():
    first, again = (turns.draw(turns.families()["like"], 20, 5, stalls=True) for _ in range(2))
    assert np.array_equal(first, again)
    load = TURNS.with_params(families=["paper"], budgets=[2.4], turns=40)
    context = Here(load)
    assert turns.measure(context)["in_time"] is True
    assert set(context.kept["turns"]["paper, 3720 ms"]) >= set(turns.POLICIES)


def test_a_cell_is_won_beyond_chance_only():
    better, worse = np.ones(100, bool), np.array([True] * 80 + [False] * 20)
    assert turns.wins(better, worse)
    assert not turns.wins(worse, better)
    assert not turns.wins(better, better)
    assert not turns.wins(better, np.array([True] * 98 + [False] * 2))


def test_without_faults_every_client_succeeds_at_once():
    load = Workload("x", {"cases": 12, "fault_rate": 0.0})
    for arm in recovery.ARMS:
        found = recovery.measure(Here(load, arm))
        assert (found["recovered"], found["calls"]) == (1.0, 1.0)


def test_a_client_that_repeats_everything_changes_things_twice_and_is_caught():
    load = Workload("x", {"cases": 120, "fault_rate": 1.0})
    assert not all(recovery.measure(Here(load, "retry everything"))["safe"])
    assert all(recovery.measure(Here(load, "structured"))["safe"])


def test_what_cannot_be_mended_is_mended_by_nobody():
    for category in recovery.Category:
        for arm in recovery.ARMS:
            played = recovery.play(arm, recovery.FaultyServer(category, False, False, 0, failures=10))
            assert not played.ok, (category, arm)
