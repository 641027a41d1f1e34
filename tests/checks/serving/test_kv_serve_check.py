"""The check runs, its claims are on the card, and its controls notice what they should."""

from typing import Any

import numpy as np
import pytest
import torch

from heliograph.catalog.registry import get_card
from heliograph.checks.serving.kv_serve import CHECK, FACTS, STEADY, SWINGS
from heliograph.checks.serving.kv_serve_parts import caches, drift, exact, links, searches
from heliograph.serving.kv_serve import METHODS, CompressionProfile
from heliograph.serving.kv_serve import pipeline as pipelines
from heliograph.serving.kv_serve.quality import Quality
from heliograph.trials.check import Exact, Workload
from heliograph.trials.session import CheckOptions, check_systems

PAPERS = {
    "search_optimum",
    "search_cost",
    "quality",
    "compression_ratio",
    "low_bandwidth_completion_time",
    "never_slower",
    "pool_first_token",
    "disaggregated_completion_time",
    "decision_time",
    "adaptation_direction",
}


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


def test_smoke_runs_and_judges() -> None:
    outcome, _, _ = check_systems(["kv_serve"], CheckOptions(preset="smoke"), lambda *_: None, lambda *_: None)
    judged = outcome.judgements["kv_serve"]
    verdicts = {finding.claim: finding.verdict for finding in judged.findings}
    exactly = {claim.claim for claim in CHECK.claims if claim.experiment == "facts"}
    assert {verdicts[name] for name in exactly} == {"holds"}
    assert all(record.status == "ok" for record in outcome.records)
    assert {c.name for c in judged.controls if c.passed} >= {"unlimited bandwidth", "coarse cache"}


def test_every_claim_is_on_the_card_and_ours_are_marked() -> None:
    card = {claim.id: claim for claim in get_card("kv_serve").claims}
    assert {claim.claim for claim in CHECK.claims} <= set(card)
    ours = {claim.claim for claim in CHECK.claims} - PAPERS
    assert {card[name].source for name in ours - {"fused_codec"}} == {"ours"}
    assert card["fused_codec"].source == "code"


def test_every_claim_with_an_interval_has_five_blocks() -> None:
    exact = {claim.experiment for claim in CHECK.claims if isinstance(claim.kind, Exact)}
    for experiment in CHECK.experiments:
        for preset in {"laptop", "gpu"} & set(experiment.sizes):
            assert experiment.name in exact or experiment.sizes[preset].blocks >= 5


def test_an_error_beyond_its_bound_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pipelines.restore

    def off(*arguments: Any, **settings: Any) -> Any:
        found = whole(*arguments, **settings)
        found.kv.add_(1)
        return found

    monkeypatch.setattr(exact, "restore", off)
    load = FACTS.with_params(lengths=[19], dims=[8]).params
    assert not all(exact._bounded(load, 0))
    assert not all(exact._lossless(load, 0))


def test_a_wrong_envelope_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "lower_envelope", lambda *_: ((), ("none",)))
    assert not all(exact._envelope({"envelopes": 20}, 0))


def test_every_contender_follows_the_same_trace() -> None:
    short = SWINGS.with_params(requests=6, cycles=1)
    found = {c.name: drift.measure(Here(short, c.name))["latency"] for c in CHECK.experiment("drift").contenders}
    assert all(latency > 0 for latency in found.values())
    again = drift.measure(Here(short, "KVServe"))["latency"]
    assert again == found["KVServe"]


def test_where_nothing_changes_learning_changes_little() -> None:
    with_it, without = (drift.measure(Here(STEADY, c))["latency"] for c in ("KVServe", "no bandit"))
    assert with_it == pytest.approx(without, rel=0.1)


def test_the_static_profile_is_the_best_over_the_sweep() -> None:
    fast = CompressionProfile("fast", METHODS["quarot"], (1,), (3.0,), (1e9,), (1e9,))
    small = CompressionProfile("small", METHODS["quarot"], (1,), (9.0,), (1e7,), (1e7,))
    assert links.best_static([fast, small], 1, [1e5, 1e5]).id == "small"
    assert links.best_static([fast, small], 1, [1e8, 1e8]).id == "fast"
    assert links.best_static([fast, small], 1, [1e11]).id == "none"


def test_a_measured_number_is_kept_and_not_measured_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIOGRAPH_HOME", str(tmp_path))
    load = {"model": "tiny", "tasks": ["quote"], "samples": 2, "tokens": 200, "sample_seed": 1}
    first = caches.Calibration(load, [METHODS["quarot"]])
    quality, ratio = first.quality(0), first.ratio(0)
    first.save()
    monkeypatch.setattr(caches, "QualityEvaluator", None)
    second = caches.Calibration(load, [METHODS["quarot"]])
    assert (second.quality(0), second.ratio(0)) == (quality, ratio)
    assert torch.equal(second.heads, first.heads)


class Scored:
    """A calibration without a model: scores that depend on the settings."""

    def __init__(self, load: Any, points: Any) -> None:
        self.points, self.count = [*points, *caches.SANITY], len(points)

    def ratio(self, index: int) -> float:
        p = self.points[index]
        return (
            16
            / float(np.mean(np.log2([p.key_high, p.key_low, p.value_high, p.value_low])))
            * (1.1 if p.codec == "zstd" else 1.0)
        )

    def quality(self, index: int) -> Quality:
        p = self.points[index]
        value = 1.05 - 0.5 / p.key_low - 0.5 / p.value_low
        return Quality(value, value, value, 6, 1.0, 0.0)

    def save(self) -> None:
        pass


@pytest.mark.parametrize("contender", ["KVServe", "random"])
def test_a_search_reports_its_share_of_the_best(monkeypatch: pytest.MonkeyPatch, contender: str) -> None:
    monkeypatch.setattr(searches, "Calibration", Scored)
    params = CHECK.experiment("search").sizes["laptop"].workloads[0].params
    context = Here(Workload("made up", {**params, "max_evals": 8}), contender)
    found = searches.measure_search(context)
    assert 0.3 < found["share"] <= 1
    assert all(found["notices"])
    assert 1 <= found["evals"] <= context.kept["candidates, of them distinct, feasible"][1]
