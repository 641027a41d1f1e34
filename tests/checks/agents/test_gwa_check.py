import math

import numpy as np
import pytest

from heliograph.agents.core.lm import Scripted
from heliograph.catalog.registry import get_card
from heliograph.checks.agents.gwa import CHECK, FACTS, URN
from heliograph.checks.agents.gwa_parts import exact, memory, real, thinker
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
    outcome, _, _ = check_systems(["gwa"], CheckOptions(preset="smoke"), lambda *_: None, lambda *_: None)
    by_claim = {finding.claim: finding for finding in outcome.judgements["gwa"].findings}
    decided = {name for name, finding in by_claim.items() if finding.verdict == "holds"}
    assert decided == {
        "drive_law", "idle_demo_entropy", "idle_demo_temperature", "stops_leave_no_trace",
        "resume_equals_uninterrupted", "stage_within_capacity",
    }  # fmt: skip
    assert all(finding.declared for name, finding in by_claim.items() if name not in decided)
    assert all(record.status == "ok" for record in outcome.records)


def test_every_claim_is_on_the_card_and_those_that_the_paper_does_not_make_are_ours():
    card = {claim.id: claim for claim in get_card("gwa").claims}
    assert {claim.claim for claim in CHECK.claims} == set(card)
    papers = {"deadlock_escape", "sustained_cognition", "bounded_memory", "idle_demo_entropy", "idle_demo_temperature"}
    assert {name for name, claim in card.items() if claim.source != "ours"} == papers


def test_planted_mistakes_are_noticed_by_the_exact_part(monkeypatch):
    assert all(exact.law(10, 3)[0])
    assert exact.law(10, 3)[1]
    monkeypatch.setattr(exact, "entropy_floor", lambda *_: 0.0)
    assert not all(exact.law(10, 3)[0])


def test_the_log_fits_the_published_settings_only():
    entropies, temperatures = exact.demo(0.5, exact.DEMO_ENTROPIES)
    assert all(entropies)
    assert all(temperatures)
    assert not all(exact.demo(0.1, exact.DEMO_ENTROPIES)[0])
    assert not all(exact.demo(0.5, (1.0, *exact.DEMO_ENTROPIES[1:]))[0])
    assert not all(exact.demo(0.5, (*exact.DEMO_ENTROPIES[:-1], 1.5))[0])


def test_a_mind_that_writes_before_its_tick_ends_is_caught(monkeypatch):
    from heliograph.agents import GlobalWorkspaceAgent

    ask = GlobalWorkspaceAgent._ask

    async def leaky(self, *args):
        ws = self.workspace
        ws._state = ws.state.change(stage=(*ws.state.stage, ws.entry("Me", "half a thought")))
        return await ask(self, *args)

    load = Workload("x", {"cases": 8})
    assert all(exact.measure_minds(Here(load))["no_trace"])
    monkeypatch.setattr(GlobalWorkspaceAgent, "_ask", leaky)
    assert not all(exact.measure_minds(Here(load))["no_trace"])


def test_all_arms_see_the_same_draws_and_a_drive_without_strength_is_a_constant():
    first, again = thinker.draws(5, 20), thinker.draws(5, 20)
    assert np.array_equal(first.uniform, again.uniform)
    assert all(thinker.measure_constant(Here(URN.with_params(runs=2)))["same"])


def test_neighbouring_blocks_share_no_run():
    blocks = [thinker.seeds(block, 40) for block in range(5)]
    assert len({seed for block in blocks for seed in block}) == 200


def test_a_matched_constant_has_the_mean_temperature_of_its_drive():
    params = URN.params
    driven = thinker.run_arm("sharp drive", 3, params)
    matched = thinker.run_arm("matched to sharp drive", 3, params)
    assert set(matched.temperatures) == {float(np.mean(driven.temperatures))}


def test_the_thinker_gets_stuck_when_cold_and_not_without_reinforcement():
    shared = thinker.draws(1, 60)
    cold = thinker.think(shared, 0.6, 12, None, 0.2)
    free = thinker.think(shared, 0.0, 12, None, 0.2)
    assert cold.entropy(30) == 0.0
    assert sum(cold.stuck()) > 40
    assert free.entropy(30) > 1.8
    assert not any(free.stuck())


def test_entropy_and_attractors_are_counted_by_hand():
    run = thinker.Run((1,) * 8 + (2,) * 8, (1.0,) * 16)
    assert run.entropy(16) == pytest.approx(math.log(2))
    assert run.stuck() == ([False] * 6 + [True] * 2) * 2


def test_truncation_recalls_what_is_still_there_and_the_archive_more():
    load = FACTS.with_params(ticks=120, facts=20, theta=200)
    both, one = (memory.measure(Here(load, arm)) for arm in ("two memories", "truncation"))
    assert all(both["within"])
    assert both["recall"] > one["recall"]
    room = load.with_params(theta=10**7)
    assert [memory.measure(Here(room, arm))["recall"] for arm in ("two memories", "truncation")] == [1.0, 1.0]


def test_facts_are_different_questions_with_one_answer_each():
    rows = memory.session(3, 100, 40)[1]
    assert len({question for question, _, _ in rows}) == len({answer for _, answer, _ in rows}) == 40


def test_the_arms_of_the_real_model_make_the_same_number_of_calls():
    params = {"ticks": 3, "candidates": 2, "tokens": 8, "theta": 120, "roles": ["generator"]}
    one, other = (Scripted(lambda _: "1. rain on a rope\n2. salt on a stair") for _ in range(2))
    found = real.mind(one, params, 3)
    assert found.exact
    real.chat(other, params, 3, params["ticks"] * len(params["roles"]))
    assert len(one.prompts) == len(other.prompts) == 3
    same = real.variety(["rain on a rope"] * 6)
    assert same["repetition"] == pytest.approx(1)
    assert same["distinct_2"] < 0.2


def test_word_salad_is_less_likely_than_language():
    model = Scripted(score=lambda context, text: -1.0 if "rain" in text else -9.0)
    assert real.likelihood(model, ["rain falls", " "]) == -1.0
    assert real.likelihood(model, ["rain falls", "qux zorb"]) == -5.0
