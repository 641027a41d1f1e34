import pytest

from heliograph.catalog.registry import get_card
from heliograph.checks.agents.mcp_sec import CHECK, FEW
from heliograph.checks.agents.mcp_sec_parts import attacks, formats, unaware
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
    outcome, _, _ = check_systems(["mcp_sec"], CheckOptions(preset="smoke"), lambda *_: None, lambda *_: None)
    judged = outcome.judgements["mcp_sec"]
    by_claim = {finding.claim: finding for finding in judged.findings}
    for claim in ("formats_equal_references", "unaware_peers_unchanged", "protocol_attacks_stopped"):
        assert by_claim[claim].verdict == "holds"
    assert by_claim["defended_cross_server"].declared
    assert all(record.status == "ok" for record in outcome.records)


def test_every_claim_is_on_the_card_and_those_that_the_paper_does_not_make_are_ours():
    card = {claim.id: claim for claim in get_card("mcp_sec").claims}
    assert {claim.claim for claim in CHECK.claims} == set(card)
    ours = {"formats_equal_references", "unaware_peers_unchanged", "protocol_attacks_stopped", "benign_utility"}
    assert {name for name, claim in card.items() if claim.source == "ours"} == ours


def test_planted_faults_are_noticed_and_a_wrong_reference_is_seen(monkeypatch):
    load = Workload("x", {"cases": 30})
    found = formats.measure(Here(load))
    assert all(found["equal"])
    assert all(found["notices"])
    monkeypatch.setattr(formats, "reference_labels", lambda events: [frozenset()] * len(events))
    assert not all(formats.measure(Here(load))["equal"])


def test_a_gateway_that_stops_nothing_fails_the_check(monkeypatch):
    monkeypatch.setitem(attacks.ARMS, "enforced", ("mcp", "off"))
    found = attacks.measure(Here(Workload("x", {"counts": FEW}), "enforced"))
    assert not any(found["stopped"])
    assert found["success_percent"] == 100.0


@pytest.mark.parametrize("arm", ["plain", "enforced", "enforced by value"])
def test_benign_twins_reach_no_goal(arm):
    found = attacks.measure(Here(Workload("x", {"counts": {"V1": 2, "V3": 1, "residual": 1}}), arm))
    assert all(found["silent"])
    assert all(found["quiet"])
    assert found["useful_percent"] == 100.0


def suites(arm, parts=60, block=0):
    here = Here(Workload("x", {"version": "v1", "parts": parts}), arm)
    here.block, here.seed = block, 7000 + block
    return attacks.measure_suites(here), here.kept


def test_cases_of_agentdojo_reach_their_goals_over_the_plain_protocol_only():
    pytest.importorskip("agentdojo", reason="the extra mcpbench is not installed")
    plain, kept = suites("plain")
    assert plain["success_percent"] > 90
    assert (plain["played"], kept["played"]["all"], plain["unread"]) == (11, 11, 0)
    assert all(plain["silent"])
    enforced, _ = suites("enforced")
    assert enforced["cross_percent"] < plain["cross_percent"]
    assert all(enforced["quiet"])
    assert enforced["useful_percent"] == plain["useful_percent"]


def test_blocks_share_no_case_of_agentdojo_and_laptop_plays_200(monkeypatch):
    pytest.importorskip("agentdojo", reason="the extra mcpbench is not installed")
    built = attacks.suite_scenarios()
    monkeypatch.setattr(attacks, "suite_scenarios", lambda version: list(built))
    monkeypatch.setattr(attacks, "_run", lambda context, cases, agent, attack: seen.append(cases) or [])
    for preset, total in (("laptop", 200), ("gpu", 629)):
        size, seen = CHECK.experiment("suites").sizes[preset], []
        for block in range(size.blocks):
            suites("plain", size.workloads[0]["parts"], block)
        assert len({one.id for cases in seen for one in cases}) == total


def test_an_enforcer_that_changes_answers_is_noticed(monkeypatch):
    monkeypatch.setattr(unaware, "untagged", lambda value: value)
    assert not all(unaware.measure(Here(Workload("x")))["same"])
