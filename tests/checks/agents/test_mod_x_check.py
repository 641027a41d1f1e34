import random
from importlib.util import find_spec

import pytest

from heliograph.catalog.registry import get_card
from heliograph.checks.agents.mod_x import CHECK
from heliograph.checks.agents.mod_x_parts import discovery, interop, ledger, members, travel, workflow
from heliograph.trials.check import Workload
from heliograph.trials.session import CheckOptions, check_systems


class Here:
    """A context without an engine around it."""

    preset, device, block, seed = "smoke", "cpu", 0, 7

    def __init__(self, contender="", **params):
        self.workload, self.contender, self.kept = Workload("x", params), contender, {}

    def progress(self, fraction, latest=""):
        pass

    def keep(self, name, value):
        self.kept[name] = value


def test_smoke_runs_and_judges():
    outcome, _, _ = check_systems(["mod_x"], CheckOptions(preset="smoke"), lambda *_: None, lambda *_: None)
    by_claim = {finding.claim: finding for finding in outcome.judgements["mod_x"].findings}
    for claim in CHECK.claims:
        if "smoke" in claim.presets:
            assert by_claim[claim.claim].verdict == "holds", claim.claim
    assert all(record.status == "ok" for record in outcome.records)


def test_every_claim_is_on_the_card():
    card = {claim.id: claim for claim in get_card("mod_x").claims}
    assert {claim.claim for claim in CHECK.claims} == set(card)
    assert sum(claim.source == "paper" for claim in card.values()) == 6


def test_a_receiver_that_ignores_units_is_caught(monkeypatch):
    monkeypatch.setitem(interop.CODECS, "human", interop._codec("legacy"))
    assert interop.measure(Here(messages=100))["understood"] < 0.95


def test_a_report_that_names_no_loss_is_caught(monkeypatch):
    from heliograph.agents.mod_x.codec import LossReport, MessageCodec

    lower = MessageCodec.lower
    monkeypatch.setattr(MessageCodec, "lower", lambda self, record: (lower(self, record)[0], LossReport()))
    assert not all(interop.measure(Here(messages=100))["loss_named"])


def test_a_ledger_that_accepts_everything_is_caught(monkeypatch):
    monkeypatch.setattr(ledger, "verify_chain", lambda data, ring: [])
    assert not all(ledger.tamper(Here(entries=12, trials=8))["all_found"])


def test_shuffled_labels_and_a_random_order_find_less():
    plain = discovery.measure(Here("hybrid", source="ours", letters=True))
    assert plain["recall"] > discovery.measure(Here("hybrid", source="ours", letters=True, shuffled=True))["recall"]
    assert plain["recall"] > discovery.measure(Here("random", source="ours", letters=True, shuffled=True))["recall"]


def test_contenders_are_equal_where_nothing_fails():
    arms = [workflow.measure(Here(arm, goals=5, failures=0))["reached"] for arm in ("replan", "one spare", "fixed")]
    assert arms == [1.0, 1.0, 1.0]


def test_steps_done_twice_are_caught(monkeypatch):
    class Forgetful(workflow.OnceStore):
        async def run(self, key, work):
            return await work()

    monkeypatch.setattr(workflow, "OnceStore", Forgetful)
    assert not all(workflow.resume(Here(runs=15))["once"])


def test_members_that_never_suspect_are_caught(monkeypatch):
    from heliograph.agents.mod_x.membership import Swim

    monkeypatch.setattr(Swim, "tick", lambda self, now: [])
    assert not all(members.measure(Here(swarms=1, members=5))["agreed"])


def test_new_plans_are_judged_on_trips_where_their_data_are_installed():
    (claim,) = (claim for claim in CHECK.claims if claim.claim == "dynamic_replanning")
    assert claim.experiment == ("travel" if find_spec("agentdojo") else "workflow")
    assert claim.kind.tau == 0.2
    assert "workflow" in {experiment.name for experiment in CHECK.experiments}


@pytest.fixture(scope="module")
def market():
    pytest.importorskip("agentdojo")
    from heliograph.agents.mod_x.travel_agents import TravelMarket

    return TravelMarket()


def test_every_goal_that_is_drawn_has_a_trip_and_a_budget_for_it(market):
    noise = random.Random(3)
    for _ in range(200):
        goal = travel.draw_goal(noise, market)
        assert goal.budget >= travel._cheapest(goal, market)


def test_trips_without_failures_are_all_reached_and_sound():
    pytest.importorskip("agentdojo")
    for arm in ("replan", "fixed"):
        found = travel.measure(Here(arm, goals=5, failures=0))
        assert found["reached"] == 1.0
        assert all(found["sound"])
        assert len(found["sound"]) == 10
        assert all(found["notices"])


def test_a_budget_agent_that_ignores_the_budget_is_caught(monkeypatch, market):
    from heliograph.agents.mod_x import travel_agents

    monkeypatch.setattr(travel_agents, "_total", lambda trip, nights: 0.0)
    monkeypatch.setattr(travel_agents, "_rated", lambda trip: sum(offer["price"] for offer in trip if offer))
    found = travel.measure(Here("replan", goals=6, failures=0))
    assert not all(found["sound"])
    assert found["reached"] < 1.0
