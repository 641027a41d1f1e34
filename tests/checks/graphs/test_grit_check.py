import importlib.util
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.data import Batch
from torch_geometric.utils import from_networkx

from heliograph.catalog.registry import get_card
from heliograph.checks.graphs.grit import CHECK, LARGE, PATHS, TINY, ZINC
from heliograph.checks.graphs.grit_parts import distances, exact, learning, refinement
from heliograph.checks.graphs.grit_parts.arms import ABLATIONS, TOLERANCE, build_arm, encoding_of
from heliograph.data.wl_pairs import prism_pair, rook_pair
from heliograph.graphs import RRWP, RWSE
from heliograph.graphs.core.message_passing import count_parameters
from heliograph.graphs.core.tasks import load_task
from heliograph.graphs.grit import GRITLayer
from heliograph.trials.check import Workload
from heliograph.trials.session import CheckOptions, check_systems


class Here:
    """A context without an engine around it."""

    preset, device, block, seed = "smoke", "cpu", 0, 0

    def __init__(self, workload, contender=""):
        self.workload, self.contender, self.kept, self.said = workload, contender, {}, []

    def progress(self, fraction, latest=""):
        pass

    def say(self, text):
        self.said.append(text)

    def keep(self, name, value):
        self.kept[name] = value


def test_smoke_runs_and_judges():
    outcome, _, _ = check_systems(["grit"], CheckOptions(preset="smoke"), lambda *_: None, lambda *_: None)
    judged = outcome.judgements["grit"]
    by_claim = {finding.claim: finding for finding in judged.findings}
    exactly = {"layer_equality", "rrwp_gdwl"}
    assert {by_claim[claim].verdict for claim in exactly} == {"holds"}
    assert all(f.verdict == "void" and f.declared for c, f in by_claim.items() if c not in exactly)
    passed = {c.name: c.passed for c in judged.controls}
    assert [passed[name] for name in ("parts and inputs", "rook and Shrikhande")] == [True, True]
    assert all(record.status == "ok" for record in outcome.records)


def test_every_claim_is_on_the_card_and_ours_are_marked():
    card = {claim.id: claim for claim in get_card("grit").claims}
    assert {claim.claim for claim in CHECK.claims} <= set(card)
    for name in ("layer_equality", "log_walk_distances", "plain_transformer", "gps_equal_seconds"):
        assert card[name].source == "ours"


@pytest.mark.parametrize("kinds", [20, 36])  # the vocabulary of a draw of molecules
@pytest.mark.parametrize("workload", [TINY, ZINC, LARGE], ids=lambda w: w.name)
def test_arms_have_equal_parameters(workload, kinds):
    task = load_task("minesweeper", train=4, valid=0, test=2)
    if workload is not TINY:
        task = replace(task, node_types=kinds, edge_types=4, target=replace(task.target, level="graph", outputs=1))
    names = ("grit", "plain", "gps", "gatedgcn+")
    grit, *others = (count_parameters(build_arm(name, task, workload, 0)) for name in names)
    assert all(abs(other - grit) <= TOLERANCE * grit for other in others)


@pytest.mark.parametrize("name", ["grit", "plain", "gps", "gatedgcn+", *ABLATIONS])
def test_each_arm_answers_alone_as_in_a_batch(name):
    task = load_task("minesweeper", train=3, valid=0, test=2)
    model = build_arm(name, task, TINY, 0).eval()
    graphs = [encoding_of(name, TINY)(graph) for graph in task.train]
    together = model(Batch.from_data_list(graphs))
    torch.testing.assert_close(together, torch.cat([model(graph) for graph in graphs]), atol=1e-4, rtol=1e-4)


def test_the_plain_transformer_sees_bonds_and_return_probabilities():
    task = load_task("minesweeper", train=2, valid=0, test=1)
    task.train[0].edge_attr = torch.randint(3, (task.train[0].num_edges,))
    model = build_arm("plain", replace(task, edge_types=3), TINY, 0).eval()
    graph = encoding_of("plain", TINY)(task.train[0])
    other, walked = graph.clone(), graph.clone()
    other.edge_attr, walked.rwse = (graph.edge_attr + 1) % 3, torch.rand_like(graph.rwse)
    assert not torch.allclose(model(graph), model(other))
    assert not torch.allclose(model(graph), model(walked))


def test_arms_are_given_the_encoding_that_they_read():
    assert encoding_of("grit", TINY) == RRWP(5)
    assert encoding_of("plain", TINY) == RWSE(5, dim=8)
    assert encoding_of("walks at vertices only", TINY).adds == ("rwse",)
    assert encoding_of("distances for walks", TINY).adds == ("distance",)
    with pytest.raises(KeyError):
        encoding_of("gcn", TINY)


def test_shuffled_vertex_labels_stay_within_their_graph():
    context = Here(TINY.with_params(wrong_labels=1.0), "grit")
    mixed, plain = learning.load_graphs(context), learning.load_graphs(Here(TINY, "grit"))
    for first, second in zip((*plain.train, *plain.test), (*mixed.train, *mixed.test), strict=True):
        assert torch.equal(first.y.sort().values, second.y.sort().values)
        assert not torch.equal(first.y, second.y)


def test_an_ablation_is_said_not_judged():
    context = Here(TINY.with_params(shown=True), "frozen pairs")
    learning.measure_trained(context)
    assert context.said
    assert context.said[0].startswith("frozen pairs: balanced_accuracy")
    judged = {claim.experiment for claim in CHECK.claims}
    assert "ablation" not in judged


def test_communities_run_at_a_small_size():
    loads = CHECK.experiment("three sets").sizes["gpu"].workloads
    assert [load["task"] for load in loads] == ["molecules.zinc", "sbm.pattern", "sbm.cluster"]
    tiny = loads[1].with_params(train=2, test=1, batch=2, epochs=1, layers=1, hidden=16, heads=2, walk_dim=4)
    assert 0 <= learning.measure_trained(Here(tiny, "grit"))["balanced_accuracy"] <= 1


def test_molecules_run_at_a_small_size():
    if not all(importlib.util.find_spec(name) for name in ("moses", "rdkit")):
        pytest.skip("molsets and rdkit are not installed")
    tiny = ZINC.with_params(train=16, test=8, batch=8, epochs=1, layers=1)
    assert learning.measure_trained(Here(tiny, "grit"))["mae"] > 0


# --- refinement ---


def test_whole_number_walks_are_the_floating_point_ones_over_a_common_denominator():
    graph = nx.lollipop_graph(4, 2)
    (table,) = refinement.walk_labels([graph], 5)
    found = np.array([[[float(value) for value in pair] for pair in row] for row in table])
    common = np.lcm.reduce([degree for _, degree in graph.degree()])
    expected = RRWP(5)(from_networkx(graph)).rrwp.numpy().reshape(6, 6, 5)
    np.testing.assert_allclose(found / float(common) ** np.arange(5), expected, atol=1e-7)


def test_refinement_with_walks_is_stronger_than_with_lengths_and_misses_the_rook():
    pair = prism_pair()
    graphs = pair.first, pair.second
    assert refinement.refinement_separates(*refinement.walk_labels(graphs, 16))
    assert not refinement.refinement_separates(*refinement.distance_labels(graphs, 16))
    rook = rook_pair()
    assert not refinement.refinement_separates(*refinement.walk_labels((rook.first, rook.second), 16))


def test_refinement_does_not_see_how_vertices_are_numbered():
    graph = nx.gnp_random_graph(9, 0.4, seed=3)
    moved = nx.relabel_nodes(graph, dict(zip(range(9), np.random.default_rng(0).permutation(9).tolist(), strict=True)))
    moved = nx.convert_node_labels_to_integers(moved, ordering="sorted")
    for labels in (refinement.walk_labels, refinement.distance_labels):
        assert not refinement.refinement_separates(*labels((graph, moved), 8))
    assert refinement.refinement_separates(*refinement.walk_labels((graph, nx.path_graph(9)), 8))
    assert refinement.refinement_separates(*refinement.walk_labels((graph, nx.path_graph(8)), 8))


# --- reading distances ---


def test_distances_are_capped_one_beyond_what_walks_reach():
    graph = from_networkx(nx.path_graph(12))
    assert distances._distances(graph, 8).reshape(12, 12)[0].tolist() == [*range(8), 8, 8, 8, 8]


def test_what_is_read_is_what_the_arm_may_see():
    graph = from_networkx(nx.path_graph(4))
    ends = distances._features(graph, "both ends", 8)
    assert ends.shape == (16, 16)
    assert torch.equal(ends[1 * 4 + 3], torch.cat([RWSE(8)(graph).rwse[1], RWSE(8)(graph).rwse[3]]))
    walks, logs = (distances._features(graph, kind, 8) for kind in ("walks", "log walks"))
    torch.testing.assert_close(logs.exp(), walks + distances.FLOOR)
    found = distances.measure(Here(PATHS.with_params(train=8, test=4, epochs=2), "both ends"))
    assert 0 < found["accuracy"] <= distances.BLIND
    assert found["blind"] is True


# --- exactness ---


def test_the_exact_part_would_notice_a_fault(monkeypatch):
    workload = Workload("few", {"batches": 2, "graphs": 4})
    assert all(exact.measure(Here(workload))["equal"])
    right = GRITLayer.exchange

    def wrong(self, x, e, layout, log_degree, *, keep_weights=False):
        new_x, new_e, weights = right(self, x, e, layout, log_degree, keep_weights=keep_weights)
        return new_x * (1 + 1e-6), new_e, weights

    monkeypatch.setattr(GRITLayer, "exchange", wrong)
    assert not all(exact.measure(Here(workload))["equal"])
