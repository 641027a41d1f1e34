"""The check runs, its claims are on the card, and its measurements notice what they should."""

from typing import Any

import pytest

from heliograph.catalog.registry import get_card
from heliograph.checks.serving.prfaas import (
    CHECK,
    FALLS,
    FEW,
    PREFIXES,
    SHORT,
    SMALL_FALL,
    STEADY,
    TABLE,
    TINY_ANSWERED,
    TINY_LONG,
)
from heliograph.checks.serving.prfaas_parts import caches, clusters, links
from heliograph.trials.session import CheckOptions, check_systems

PAPER = {"throughput_gain", "throughput_over_naive", "ttft_mean", "ttft_p90", "link_use", "kv_rate_hybrid"}


class Here:
    """A context without an engine around it."""

    preset, device, block, seed = "smoke", "cpu", 0, 3

    def __init__(self, workload: Any, contender: str = "") -> None:
        self.workload, self.contender, self.kept = workload, contender, {}

    def progress(self, fraction: float, latest: str = "") -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def keep(self, name: str, value: Any) -> None:
        self.kept[name] = value


@pytest.mark.integration
def test_smoke_runs_and_judges() -> None:
    outcome, _, _ = check_systems(["prfaas"], CheckOptions(preset="smoke"), lambda *_: None, lambda *_: None)
    judged = outcome.judgements["prfaas"]
    verdicts = {finding.claim: finding.verdict for finding in judged.findings}
    exact = ("table_reproduced", "prefix_identical", "tokens_identical")
    assert {verdicts[name] for name in exact} == {"holds"}
    assert all(record.status == "ok" for record in outcome.records)
    assert {"another profile", "stale state", "shifted keys"} <= {c.name for c in judged.controls if c.passed}


def test_every_claim_is_on_the_card_and_ours_are_marked() -> None:
    card = {claim.id: claim for claim in get_card("prfaas").claims}
    assert {claim.claim for claim in CHECK.claims} <= set(card)
    assert {claim.claim for claim in CHECK.claims if card[claim.claim].source == "paper"} == PAPER


def test_what_is_simulated_is_marked() -> None:
    marked = {claim.provenance for claim in CHECK.claims if claim.experiment in ("deployments", "fluctuation")}
    assert marked == {"simulated"}
    assert {c.provenance for c in CHECK.claims if c.experiment in ("rates", "hiding", "answers")} == {"measured"}


def test_every_claim_with_an_interval_has_five_blocks() -> None:
    for name in ("deployments", "fluctuation", "rates", "hiding"):
        assert CHECK.experiment(name).sizes["laptop"].blocks >= 5


def test_the_table_comes_out_and_another_profile_misses_it() -> None:
    found = clusters.measure_table(Here(TABLE))
    assert all(found["table"])
    assert all(found["notices"])
    assert found["egress_gbps"] == pytest.approx(12, rel=0.01)


def test_a_threshold_above_all_is_told_from_the_solved_one() -> None:
    found = clusters.measure_above_all(Here(FEW))
    assert all(found["same"])
    assert all(found["notices"])


@pytest.mark.parametrize("contender", [c.name for c in CHECK.experiment("deployments").contenders])
def test_every_deployment_is_measured_on_the_same_scale(contender: str) -> None:
    found = clusters.measure_deployments(Here(SHORT.with_params(requests=100), contender))
    assert 0 < found["ttft_mean"] <= found["ttft_p90"] <= found["ttft_p99"]
    assert (found["egress_gbps"] == 0) == (contender == "homogeneous")


def test_a_fall_of_the_link_is_felt_and_the_threshold_moves() -> None:
    load = FALLS.with_params(requests=600, begin_s=100.0)
    fixed, context = clusters.measure_fluctuation(Here(load, "fixed")), Here(load, "adaptive")
    clusters.measure_fluctuation(context)
    steady = clusters.measure_fluctuation(Here(STEADY.with_params(requests=600), "fixed"))
    assert fixed["queue_mib"] > 2 * steady["queue_mib"]
    assert any(100 <= when <= 165 for when, _ in context.kept["thresholds"])
    assert clusters.measure_fluctuation(Here(SMALL_FALL, "least loaded"))["ttft_p99"] > 0


def test_windows_keep_fewer_bytes_and_the_formula_agrees() -> None:
    found = {c: caches.measure_rates(Here(TINY_LONG, c)) for c in ("windowed", "all layers full")}
    assert all(all(each["exact"]) for each in found.values())
    assert found["windowed"]["bytes"] < found["all layers full"]["bytes"] / 2


def test_reuse_beyond_the_common_length_is_noticed() -> None:
    right = caches.measure_prefixes(Here(PREFIXES.with_params(prompts=2)))
    assert all(right["identical"])
    assert all(right["notices"])


@pytest.mark.integration
def test_answers_of_a_remote_process_are_the_local_ones() -> None:
    found = links.measure_answers(Here(TINY_ANSWERED.with_params(lengths=[40])))
    assert all(found["tokens"])
    assert all(found["notices"])
