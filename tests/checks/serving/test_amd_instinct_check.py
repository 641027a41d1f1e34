import pytest

from heliograph.catalog.registry import get_card
from heliograph.checks.serving.amd_instinct import CHECK, DRAWN, GROUPED_PAGES, SWEEP
from heliograph.checks.serving.amd_instinct_parts import advice, loads, method, pages
from heliograph.serving.amd_instinct.advisor import ServingAdvisor
from heliograph.serving.amd_instinct.rules import RULES
from heliograph.trials.session import CheckOptions, check_systems


class Here:
    """A context without an engine around it."""

    preset, device, block, seed = "smoke", "cpu", 0, 3

    def __init__(self, workload, contender=""):
        self.workload, self.contender, self.kept = workload, contender, {}

    def progress(self, fraction, latest=""):
        pass

    def say(self, text):
        pass

    def keep(self, name, value):
        self.kept[name] = value


def test_smoke_runs_and_judges():
    outcome, _, _ = check_systems(["amd_instinct"], CheckOptions(preset="smoke"), lambda *_: None, lambda *_: None)
    judged = outcome.judgements["amd_instinct"]
    by_claim = {finding.claim: finding for finding in judged.findings}
    for claim in ("study_flags", "table_flags", "failures_told_apart"):
        assert by_claim[claim].verdict == "holds"
    assert all(record.status == "ok" for record in outcome.records)
    assert {c.name for c in judged.controls if c.passed} == {"other facts", "healthy requests"}


def test_every_claim_is_on_the_card_and_ours_are_marked():
    card = {claim.id: claim for claim in get_card("amd_instinct").claims}
    assert {claim.claim for claim in CHECK.claims} <= set(card)
    ours = {claim.claim for claim in CHECK.claims} - {"saturation", "reliability"}
    assert {card[name].source for name in ours} == {"ours"}


def test_without_the_rules_of_latent_attention_the_study_is_not_matched(monkeypatch):
    fewer = tuple(rule for rule in RULES if rule.id not in ("R1", "R2", "R4"))
    monkeypatch.setattr(advice, "ServingAdvisor", lambda: ServingAdvisor(fewer))
    assert not all(advice.studied_decisions())


def test_the_sweep_runs_against_a_modelled_server_whose_saturation_is_known():
    tiny = SWEEP.with_params(
        server="echo",
        flags=["--step-s", "0.02", "--token-step-s", "0.002"],
        levels=[1, 2, 4, 8],
        short=[8, 4],
        long=[16, 4],
        least_requests=2,
    )
    found = loads.measure_saturation(Here(tiny, "server"))
    assert {"short_over_long", "factor", "headroom", "same", "naive_factor"} <= set(found)
    assert 1 <= found["saturation, short"] <= 16


def test_a_flood_of_refusals_is_handled_and_a_broken_server_is_not():
    load = CHECK.experiment("robustness").sizes["smoke"].workloads[0].with_params(streams=12, ramp_s=0.0)
    refusing = loads.measure_robustness(Here(load.with_params(flags=["--slots", "3"]), "server"))
    assert all(refusing["handled"])
    slow = ["--step-s", "5"]
    broken = loads.measure_robustness(Here(load.with_params(flags=slow, limit_s=0.2), "server"))
    assert not any(broken["handled"])


@pytest.mark.parametrize("arm", ["planted", "same flag twice", "blocked order"])
def test_drawn_ablations_show_what_each_arm_is_for(arm):
    found = method.measure(Here(DRAWN.with_params(repeats=20, drift=0.01 if arm == "blocked order" else 0.001), arm))
    if arm == "planted":
        assert found["found"] >= 0.8
    elif arm == "same flag twice":
        assert found["no_difference"] >= 0.8
    else:
        assert found["no_difference"] < 0.5


def test_page_sizes_are_measured_against_the_best():
    small = GROUPED_PAGES.with_params(rows=2, context=64, warmup=1, repeats=2, steps=1)
    assert 0 < pages.measure_sweep(Here(small, "advisor"))["share_of_best"] <= 1
    assert set(pages.measure_times(Here(small))) == {"recommended", "fixed", "recommended, again"}
