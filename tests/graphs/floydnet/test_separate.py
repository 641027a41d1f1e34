"""The untrained protocol agrees with the refinement of its order, on every pair of the claim."""

import networkx as nx
import pytest
import torch

from heliograph.data.wl_pairs import atlas_pairs, cfi_pair, decalin_pair, dodecahedral_pair, rook_pair
from heliograph.errors import BadInput
from heliograph.graphs import FloydNet, wl_distinguishes
from heliograph.graphs.core.expressivity import folklore2_separates, folklore3_separates
from heliograph.graphs.floydnet.separate import BREC_THRESHOLD, PivotalProbe, brec_statistic, measure_separation


@pytest.fixture(scope="module")
def probe():
    return PivotalProbe(order=2, dim=16, heads=2, depth=16)


def test_order_2_separates_every_atlas_pair(probe):
    assert all(wl_distinguishes(probe, pair.first, pair.second, relabellings=3) for pair in atlas_pairs())


@pytest.mark.parametrize(
    "pair",
    [decalin_pair(), dodecahedral_pair(), rook_pair(), *(cfi_pair(nx.cycle_graph(n)) for n in (4, 6)),
     cfi_pair(nx.complete_graph(4))],
    ids=lambda pair: pair.name,
)  # fmt: skip
def test_order_2_agrees_with_2_fwl(probe, pair):
    assert wl_distinguishes(probe, pair.first, pair.second) == folklore2_separates(pair.first, pair.second)


@pytest.mark.parametrize("pair", [rook_pair(), cfi_pair(nx.complete_graph(4))], ids=lambda pair: pair.name)
def test_order_3_separates_what_order_2_cannot(pair):
    probe = PivotalProbe(order=3, dim=8, heads=2, depth=4)
    assert folklore3_separates(pair.first, pair.second)
    assert wl_distinguishes(probe, pair.first, pair.second, relabellings=2)


@pytest.mark.parametrize("order", [2, 3])
def test_a_graph_is_not_separated_from_its_own_relabelling(order):
    probe = PivotalProbe(order=order, depth=6)
    graph = nx.gnp_random_graph(9, 0.4, seed=2)
    moved = nx.relabel_nodes(graph, dict(zip(graph, [4, 2, 8, 0, 1, 7, 3, 6, 5], strict=True)))
    assert not wl_distinguishes(probe, graph, nx.convert_node_labels_to_integers(moved))


def test_without_layers_only_counts_of_edges_separate():
    blind = PivotalProbe(depth=0)
    pair = decalin_pair()
    assert not wl_distinguishes(blind, pair.first, pair.second)
    assert wl_distinguishes(blind, nx.path_graph(5), nx.cycle_graph(5))


def test_the_probe_is_the_same_for_the_same_seed_and_leaves_the_global_generator():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, other, third = (PivotalProbe(seed=seed, depth=2) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    adj = torch.ones(1, 3, 3)
    assert torch.equal(one.fingerprint(adj), other.fingerprint(adj))
    assert not torch.equal(one.fingerprint(adj), third.fingerprint(adj))


def test_a_floydnet_is_measured_in_float64_without_being_touched():
    model = FloydNet(dim=8, heads=2, depth=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.train()
    assert wl_distinguishes(model, nx.path_graph(4), nx.star_graph(3))
    assert model.training
    assert next(model.parameters()).dtype == torch.float32


def test_brecs_statistic_passes_its_threshold_for_a_pair_and_not_for_a_graph_with_itself(probe):
    pair = decalin_pair()
    assert brec_statistic(probe, pair.first, pair.second) > BREC_THRESHOLD
    rook = rook_pair()
    for graph in (pair.first, rook.first, rook.second):  # the reliability run
        assert brec_statistic(probe, graph, graph) < BREC_THRESHOLD


def test_a_graph_is_at_no_distance_from_itself(probe):
    rook = rook_pair()
    assert measure_separation(probe, rook.first, rook.first).distance < 1e-10


@pytest.mark.parametrize(
    "call",
    [
        lambda: PivotalProbe(order=1),
        lambda: PivotalProbe(dim=5, heads=2),
        lambda: wl_distinguishes(PivotalProbe(depth=1), nx.path_graph(3), nx.path_graph(3), relabellings=1),
        lambda: wl_distinguishes(torch.nn.Linear(2, 2), nx.path_graph(3), nx.path_graph(3)),
    ],
)
def test_bad_requests_are_refused(call):
    with pytest.raises(BadInput):
        call()
