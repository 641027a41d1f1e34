from __future__ import annotations

from pathlib import Path

import networkx as nx
import pytest

from heliograph.catalog.registry import get_card
from heliograph.checks.graphs.contenders import build_model, reference_parameters
from heliograph.checks.graphs.floydnet import CHECK
from heliograph.checks.graphs.floydnet_parts.learning import algorithm_batches, counting_batches
from heliograph.errors import BadInput
from heliograph.graphs.core.message_passing import count_parameters
from heliograph.graphs.floydnet.algorithms import task_error
from heliograph.trials.check import Exact
from heliograph.trials.execute import TrialContext, execute_trial
from heliograph.trials.judge import judge
from heliograph.trials.plan import make_plan

REF = "heliograph.checks.graphs.floydnet:CHECK"


def records(trials):
    return [execute_trial(trial, lambda *_: None) for trial in trials]


def context(experiment: str, preset: str = "laptop") -> TrialContext:
    trial = next(t for t in make_plan(REF, preset).trials if t.experiment == experiment)
    return TrialContext(trial, lambda *_: None)


def test_every_claim_is_on_the_card_and_every_claim_of_the_card_is_checked() -> None:
    assert {c.claim for c in CHECK.claims} == {c.id for c in get_card("floydnet").claims}


def test_smoke_decides_the_exact_claims_and_declares_the_rest() -> None:
    plan = make_plan(REF, "smoke")
    rows = records(plan.trials)
    assert [r.status for r in rows] == ["ok"] * len(rows), [r.tail for r in rows if r.status != "ok"]
    verdicts = {f.claim: f for f in judge(CHECK, get_card("floydnet"), "smoke", rows).findings}
    exact = {c.claim for c in CHECK.claims if isinstance(c.kind, Exact)}
    assert all(verdicts[c].verdict == "holds" for c in exact)
    assert all(f.declared for c, f in verdicts.items() if c not in exact)


def test_named_pairs_agree_with_refinement_and_are_told_in_words() -> None:
    trials = [
        t for t in make_plan(REF, "laptop").trials if t.experiment == "expressiveness" and t.contender == "floydnet"
    ]
    named = next(t for t in trials if t.workload.name == "named pairs")
    (row,) = records([named])
    assert all(row.metrics["floydnet"]["agrees"])
    assert "rook and Shrikhande: 2-FWL cannot tell them apart, level 2 cannot" in row.said
    assert len(row.detail["drawings"]) == 4


def test_own_graph6_pairs_are_adopted(tmp_path: Path) -> None:
    path = tmp_path / "pairs.g6"
    graphs = [nx.complete_bipartite_graph(3, 3), nx.circular_ladder_graph(3)]
    path.write_bytes(b"".join(nx.to_graph6_bytes(g, header=False) for g in graphs))
    plan = make_plan(REF, "laptop", workload=path)
    assert {t.experiment for t in plan.trials} == {"expressiveness"}
    rows = records([t for t in plan.trials if t.contender == "floydnet"])
    assert rows[0].metrics["floydnet"]["agrees"] == [True]


@pytest.mark.parametrize("content", [b"", b"not graph6 at all \xff", b"@\n"])
def test_bad_graph6_file_is_refused_before_work_starts(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pairs.g6"
    path.write_bytes(content)
    with pytest.raises(BadInput):
        make_plan(REF, "laptop", workload=path)


@pytest.mark.parametrize("experiment", ["counting", "algorithms"])
def test_contenders_have_equal_parameters(experiment: str) -> None:
    made = context(experiment)
    train, _ = counting_batches(made) if experiment == "counting" else algorithm_batches(made)
    load = made.workload
    wanted = reference_parameters(train[0], load["width"], load["depth"])
    for name in ("floydnet", "gin", "mpnn"):
        parameters = None if name == "floydnet" else wanted
        model = build_model(name, train[0], load["width"], load["depth"], 0, parameters)
        assert abs(count_parameters(model) - wanted) <= 0.05 * wanted


def test_shuffled_counts_carry_no_information() -> None:
    made = context("counting")
    plain, _ = counting_batches(made)
    shuffled, _ = counting_batches(made, shuffled=True)
    first, second = plain[0].targets[0].values, shuffled[0].targets[0].values
    assert (first.isnan() == second.isnan()).all()
    assert first.nan_to_num().sum() == pytest.approx(float(second.nan_to_num().sum()), rel=1e-5)
    assert (first.nan_to_num() != second.nan_to_num()).any()


def test_no_test_graph_is_a_training_graph() -> None:
    train, test = algorithm_batches(context("algorithms"))
    assert {b.mask.shape[1] for b in train} <= set(range(4, 9))
    assert {b.mask.shape[1] for b in test} == {16}


def test_labels_fed_as_predictions_give_error_zero() -> None:
    class Oracle:
        training = False

        def __call__(self, batch):
            return [t.values.nan_to_num() for t in batch.targets]

        def eval(self):
            return self

        def train(self, _):
            return self

    _, test = counting_batches(context("counting"))
    assert task_error(Oracle(), test) == 0.0
