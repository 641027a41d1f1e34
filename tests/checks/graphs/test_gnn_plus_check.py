from dataclasses import replace

import pytest
import torch

from heliograph.catalog.registry import get_card
from heliograph.checks.graphs.contenders import build_model, model_names
from heliograph.checks.graphs.floydnet_parts.learning import algorithm_batches
from heliograph.checks.graphs.gnn_plus import CHECK, LARGE, TINY, ZINC
from heliograph.checks.graphs.gnn_plus_parts import learning
from heliograph.checks.graphs.gnn_plus_parts.arms import TOLERANCE, build_arm
from heliograph.graphs.core.message_passing import count_parameters
from heliograph.graphs.core.tasks import load_task
from heliograph.graphs.floydnet.algorithms import TaskBatch
from heliograph.trials.check import Workload
from heliograph.trials.session import CheckOptions, check_systems


class Here:
    """A context without an engine around it."""

    preset, device, block, seed = "smoke", "cpu", 0, 0

    def __init__(self, workload, contender=""):
        self.workload, self.contender, self.kept = workload, contender, {}

    def progress(self, fraction, latest=""):
        pass

    def keep(self, name, value):
        self.kept[name] = value


def test_smoke_runs_and_judges():
    outcome, _, _ = check_systems(["gnn_plus"], CheckOptions(preset="smoke"), lambda *_: None, lambda *_: None)
    judged = outcome.judgements["gnn_plus"]
    by_claim = {finding.claim: finding for finding in judged.findings}
    assert by_claim["layer_equality"].verdict == "holds"
    assert all(f.verdict == "void" and f.declared for c, f in by_claim.items() if c != "layer_equality")
    assert {c.name: c.passed for c in judged.controls}["switches and labels"] is True
    assert all(record.status == "ok" for record in outcome.records)


def test_every_claim_is_on_the_card_and_ours_are_marked():
    card = {claim.id: claim for claim in get_card("gnn_plus").claims}
    assert {claim.claim for claim in CHECK.claims} <= set(card)
    for name in ("layer_equality", "plain_equal_seconds", "transformer_equal_seconds"):
        assert card[name].source == "ours"


@pytest.mark.parametrize("workload", [TINY, ZINC, LARGE], ids=lambda w: w.name)
def test_arms_have_equal_parameters(workload):
    task = load_task("minesweeper", train=4, valid=0, test=2)
    for conv in ("gcn", "gin", "gatedgcn"):
        sizes = [count_parameters(build_arm(name, task, workload, 0)) for name in (f"{conv}+", conv)]
        assert abs(sizes[0] - sizes[1]) <= TOLERANCE * sizes[0]
    gps, plus = (count_parameters(build_arm(name, task, workload, 0)) for name in ("gps", "gcn+"))
    assert abs(gps - plus) <= TOLERANCE * plus


def test_shuffled_targets_stay_the_same_set():
    task = (
        load_task("tu.mutag", train=40, valid=0, test=20) if _has("grakel") else pytest.skip("grakel is not installed")
    )
    mixed = learning.shuffle_targets(task, seed=1)
    for part in ("train", "test"):
        first, second = (torch.cat([g.y for g in getattr(t, part)]) for t in (task, mixed))
        assert not torch.equal(first, second)
        assert torch.equal(first.sort().values, second.sort().values)
    some = learning.shuffle_targets(task, seed=1, share=0.5)
    changed = sum(int(a.y != b.y) for a, b in zip(task.train, some.train, strict=True))
    assert 0 < changed <= 20
    assert all(torch.equal(a.y, b.y) for a, b in zip(task.test, some.test, strict=True))


def test_the_ablation_trains_seven_networks_and_counts():
    if not _has("moses") or not _has("rdkit"):
        pytest.skip("molsets and rdkit are not installed")
    tiny = ZINC.with_params(train=16, test=8, batch=8, epochs=1, layers=1, dropout=0.1)
    context = Here(tiny, "gcn+")
    found = learning.measure_ablation(context)
    assert 0 <= found["parts"] <= 6
    assert set(context.kept["ablation"]) == {"all", "edge_features", "norm", "dropout", "residual", "ffn", "pe"}


def test_peptides_run_at_a_small_size():
    if not _has("modlamp") or not _has("rdkit"):
        pytest.skip("modlamp and rdkit are not installed")
    load = (
        CHECK.experiment("peptides").sizes["gpu"].workloads[0].with_params(train=6, test=8, batch=3, epochs=1, layers=1)
    )
    assert 0 <= learning.measure_trained(Here(load, "gps"))["average_precision"] <= 1


@pytest.mark.parametrize("name", ["gnn_plus", "gatedgcn", "gcn", "gps"])
def test_contenders_of_the_comparison_answer_alone_as_in_a_batch(name):
    load = Workload("bfs", {"task": "bfs", "train": [4, 6], "test": 8, "batch": 3, "wrong_labels": 0.0})
    train, _ = algorithm_batches(Here(load))
    assert name in model_names()
    model = build_model(name, train[0], width=8, depth=2, seed=0).eval()
    wide = train[0]
    together = model(wide)
    for place in range(len(wide.vertex)):
        one = slice(place, place + 1)
        targets = tuple(replace(t, values=t.values[one]) for t in wide.targets)
        alone = model(TaskBatch(wide.vertex[one], wide.edge[one], wide.graph[one], wide.mask[one], targets))
        for first, second in zip(alone, together, strict=True):
            torch.testing.assert_close(first[0], second[place], atol=1e-5, rtol=1e-4)


def _has(package):
    import importlib.util

    return importlib.util.find_spec(package) is not None
