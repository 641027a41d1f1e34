import asyncio

import numpy as np
import pytest

from heliograph.agents.error_cascade.judges import RELATIONS
from heliograph.catalog.registry import get_card
from heliograph.checks.agents.error_cascade import CHECK, ORDERS
from heliograph.checks.agents.error_cascade_parts import exact, governance, society, spread
from heliograph.trials.check import Workload
from heliograph.trials.session import CheckOptions, check_systems


class Here:
    """A context without an engine around it."""

    preset, device, block, seed = "smoke", "cpu", 0, 7

    def __init__(self, workload, contender="governor"):
        self.workload, self.contender, self.kept = workload, contender, {}

    def say(self, text):
        pass

    def progress(self, fraction, latest=""):
        pass

    def keep(self, name, value):
        self.kept[name] = value


def outcomes(arm, runs=6, **changes):
    setting = society.Setting(**{"judge": "exact", "anchored": 1.0, **changes})
    return [asyncio.run(society.play(arm, setting, seed)) for seed in range(runs)]


def test_smoke_runs_and_judges():
    outcome, _, _ = check_systems(["error_cascade"], CheckOptions(preset="smoke"), lambda *_: None, lambda *_: None)
    by_claim = {finding.claim: finding for finding in outcome.judgements["error_cascade"].findings}
    for claim in ("process_equals_reference", "rollback_complete", "no_late_delivery", "replay_identical"):
        assert by_claim[claim].verdict == "holds"
    assert by_claim["defence_rate"].declared
    assert all(record.status == "ok" for record in outcome.records)


def test_every_decided_claim_is_on_the_card_and_the_rest_need_real_models():
    card = {claim.id for claim in get_card("error_cascade").claims}
    decided = {claim.claim for claim in CHECK.claims}
    assert decided <= card
    assert card - decided == {"token_cost", "time_cost", "attack_trace_fit", "packaged_attack_success"}


def test_planted_mistakes_are_noticed_by_the_exact_part(monkeypatch):
    load = Workload("x", {"cases": 20})
    assert all(exact.measure(Here(load))["notices"])
    monkeypatch.setattr(exact, "reference_below", lambda graph, start: set(graph.nodes))
    assert not all(exact.measure(Here(load))["rolled_back"])


@pytest.mark.parametrize("arm", ["speed", "balanced", "strict"])
def test_with_an_exact_judge_and_the_truth_known_no_run_is_infected(arm):
    assert not any(o.infected for o in outcomes(arm))


@pytest.mark.parametrize("arm", ["none", "control flow", "without atoms", "without detection", "without blocking"])
def test_what_cannot_see_or_stop_a_claim_lets_it_through(arm):
    assert sum(o.infected for o in outcomes(arm)) >= 5


def test_an_exact_judge_withholds_nothing_true():
    for arm in ("speed", "balanced"):
        assert sum(o.withheld[0] for o in outcomes(arm, framework="LangChain", slips=0.0)) == 0


def test_the_same_seed_is_the_same_world_for_every_arm():
    first, again = outcomes("none", runs=2), outcomes("control flow", runs=2)
    assert all(np.array_equal(a.adoption, b.adoption) for a, b in zip(first, again, strict=True))


def test_rollback_reaches_an_agent_that_sends_nothing_more():
    load = Workload("x", {"frameworks": ["LangChain"], "packaging": "compliance", "late": 2, "runs": 8})
    with_it, without = (
        governance.measure_late(Here(load, arm))["believed"] for arm in ("speed", "speed without rollback")
    )
    assert with_it < without


def test_confusions_give_the_figures_of_the_paper():
    for name, accuracy, false_green, precision in (
        ("v3-small", 0.712, 0.023, 0.8), ("v3-large", 0.827, 0.0, 1.0), ("GPT-4o-mini", 0.788, 0.205, 0.438),
    ):  # fmt: skip
        rows, follows = society.JUDGES[name], 0.175
        assert all(sum(rows[relation]) == pytest.approx(1) for relation in RELATIONS)
        right = follows * rows["entails"][0] + (1 - follows) * rows["contradicts"][1]
        green = follows * rows["entails"][0] / (follows * rows["entails"][0] + (1 - follows) * rows["contradicts"][0])
        assert right == pytest.approx(accuracy, abs=0.003)
        assert rows["contradicts"][0] == false_green
        assert green == pytest.approx(precision, abs=0.003)


def test_a_judge_that_guesses_withholds_alike():
    load = Workload("x", {"claims": 600})
    held = [governance.measure_chance(Here(load, arm))["withheld"] for arm in ("false claims", "true claims")]
    assert held[0] == pytest.approx(held[1], abs=0.1)
    assert held[0] == pytest.approx(1 / 3, abs=0.1)


def test_arms_are_measured_on_all_cells():
    load = ORDERS.with_params(runs=1, sweep=1)
    context = Here(load, "speed")
    found = governance.measure(context)
    assert len(context.kept["cells"]) == 9
    assert set(context.kept["by false-green rate and by judge"]) >= {"0", "0.25", "exact"}
    assert 0 <= found["beta"] <= 1


def test_area_under_the_curve_equals_counting_pairs():
    scores, labels = [3.0, 1.0, 2.0, 2.0], [True, False, True, False]
    assert spread.auc(scores, labels) == (1 + 1 + 1 + 0.5) / 4
    assert np.isnan(spread.auc(scores, [True] * 4))


def test_the_margin_misses_spread_that_the_gain_foretells():
    context = Here(Workload("x", {"graphs": 60, "cascades": 50}), "spectral margin")
    margin = spread.measure_warning(context)
    gain = spread.measure_warning(Here(context.workload, "finite-horizon gain"))
    assert margin["missed_by_margin"] > 0
    assert gain["auc"] > margin["auc"]
