"""The check of the pre-decoder: its rules, its smoke run, and what its measuring functions return."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import stim

from heliograph.catalog.registry import get_card
from heliograph.checks.graphs.surface_predecoder import CHECK
from heliograph.errors import BadInput
from heliograph.trials.check import Exact
from heliograph.trials.execute import execute_trial
from heliograph.trials.plan import make_plan

REF = "heliograph.checks.graphs.surface_predecoder"


def run(preset, **changes):
    plan = make_plan(REF, preset, **changes)
    return [execute_trial(trial, lambda *_: None) for trial in plan.trials]


def test_every_claim_is_on_the_card_and_guarded():
    card = get_card("surface_predecoder")
    on_card = {claim.id for claim in card.claims}
    judged = {claim.claim for claim in CHECK.claims}
    assert judged <= on_card
    assert on_card - judged == {"parallel_latency"}  # needs several GPUs at once
    for claim in CHECK.claims:
        assert any(claim.claim in CHECK.guards_of(control) for control in CHECK.controls)


def test_the_smoke_run_measures_everything_it_names_and_holds_exactly():
    records = run("smoke")
    assert {r.status for r in records} == {"ok"}, [r.tail for r in records if r.status != "ok"]
    by_arm = {(r.experiment, r.contender): r.metrics[r.contender] for r in records if r.contender}
    for claim in CHECK.claims:
        if isinstance(claim.kind, Exact):
            assert all(by_arm[claim.experiment, claim.contender][claim.metric])
    assert all(by_arm["exactness", "pre-decoder"]["notices"])
    assert by_arm["weights", "learned, other detectors"]["no_better"] in (True, False)
    assert len(by_arm["residual", "pre-decoder"]["correct"]) == len(by_arm["residual", "matching"]["correct"])


def test_arms_see_the_same_shots():
    records = {r.contender: r.metrics[r.contender] for r in run("smoke") if r.experiment == "residual"}
    other, plain = records["labels of other shots"], records["matching"]
    # After this little training both networks still say no everywhere: what is left is the whole syndrome.
    assert other["density_d3"] == plain["density_d3"]
    assert other["correct"] == plain["correct"]


def test_a_circuit_of_ones_own_is_adopted(tmp_path):
    path = tmp_path / "own.stim"
    rates = {"before_round_data_depolarization": 0.1, "before_measure_flip_probability": 0.1}
    stim.Circuit.generated("repetition_code:memory", distance=3, rounds=3, **rates).to_file(str(path))
    plan = make_plan(REF, "smoke", workload=path)
    learned = next(t for t in plan.trials if t.experiment == "weights" and t.contender == "learned weights")
    record = execute_trial(learned, lambda *_: None)
    assert record.status == "ok", record.tail
    assert 0 < record.metrics["learned weights"]["error_rate"] < 0.5


@pytest.mark.parametrize(
    ("text", "words"),
    [("NOT A CIRCUIT", "is no Stim circuit"), ("X_ERROR(0.1) 0\nM 0\nDETECTOR rec[-1]", "no observable")],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, text, words):
    path = tmp_path / "bad.stim"
    path.write_text(text)
    with pytest.raises(BadInput, match=words):
        CHECK.adopt(path, "laptop")


def test_latency_and_matching_time_are_measured():
    from heliograph.checks.graphs.surface_predecoder import TINY
    from heliograph.checks.graphs.surface_predecoder_parts import network

    context = SimpleNamespace(
        workload=TINY.with_params(batch_shots=20, repeats=1), contender="pre-decoder", seed=0, block=0, preset="smoke",
        device="cpu", say=lambda text: None, progress=lambda *a: None, keep=lambda *a: None,
    )  # fmt: skip
    found = network.measure_latency(context)
    assert found["us_per_round"] == found["network_us_per_round"] + found["matching_us_per_round"]
    arms = network.measure_time(context)
    assert set(arms) == {"whole, d = 3", "residual, d = 3", "whole, d = 3, again"}
    for run_once in arms.values():
        run_once()
