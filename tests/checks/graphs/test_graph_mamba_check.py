import importlib.util

import pytest
import torch
from torch_geometric.data import Data

from heliograph.catalog.registry import get_card
from heliograph.checks.graphs.graph_mamba import BOARDS, CHECK, PEPTIDES_LOAD, PUBLISHED, TINY
from heliograph.checks.graphs.graph_mamba_parts import growth, learning
from heliograph.checks.graphs.graph_mamba_parts.arms import ABLATIONS, GPS, TOLERANCE, build_arm
from heliograph.checks.graphs.graph_mamba_parts.boards import KINDS, make_board, split_board
from heliograph.graphs.core.message_passing import count_parameters
from heliograph.graphs.graph_mamba import GraphMamba
from heliograph.trials.session import CheckOptions, check_systems

OURS = ("scan_equality", "two_directions", "attention_growth", "minesweeper_not_worse")


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
    outcome, _, _ = check_systems(["graph_mamba"], CheckOptions(preset="smoke"), lambda *_: None, lambda *_: None)
    judged = outcome.judgements["graph_mamba"]
    exact = ("scan_equality", "two_directions")
    by_claim = {finding.claim: finding for finding in judged.findings}
    assert all(by_claim[claim].verdict == "holds" for claim in exact)
    assert all(f.verdict == "void" and f.declared for c, f in by_claim.items() if c not in exact)
    assert {c.name: c.passed for c in judged.controls}["one direction"] is True
    assert all(record.status == "ok" for record in outcome.records)


def test_every_claim_is_on_the_card_and_ours_are_marked():
    card = {claim.id: claim for claim in get_card("graph_mamba").claims}
    assert {claim.claim for claim in CHECK.claims} <= set(card)
    assert {name for name in card if card[name].source == "ours"} == set(OURS)


@pytest.mark.parametrize(
    "workload", [TINY, BOARDS, PUBLISHED, PEPTIDES_LOAD], ids=["tiny", "boards", "published", "peptides"]
)
def test_arms_have_equal_parameters(workload):
    inputs = {"out_dim": 2, "node_types": KINDS, "pool": None}
    reference = count_parameters(build_arm("graph_mamba", inputs, workload, 0))
    for name in (*ABLATIONS, "gcn", *(("gps",) if workload in (PUBLISHED, PEPTIDES_LOAD) else ())):
        assert abs(count_parameters(build_arm(name, inputs, workload, 0)) - reference) <= TOLERANCE * reference, name


def test_a_board_shows_the_mines_around_each_cell():
    board = make_board(5, seed=3)
    assert board.num_nodes == 25
    assert board.edge_index.shape[1] == 2 * (5 * 4 * 2 + 4 * 4 * 2)
    around = torch.zeros(25, dtype=torch.long).index_add(0, board.edge_index[1], board.y[board.edge_index[0]])
    shown = board.x < KINDS - 1
    assert 0 < int(shown.sum()) < 25
    assert torch.equal(board.x[shown], around[shown])


def test_the_published_board_has_the_published_size():
    board = make_board(100, seed=0)
    assert board.num_nodes == 10_000
    assert board.edge_index.shape[1] == 2 * 39_402
    assert 0.18 < float(board.y.float().mean()) < 0.22


def test_parts_of_a_split_board_ask_different_cells():
    train, test = split_board(make_board(10, seed=0), seed=1)
    asked, tested = train.y >= 0, test.y >= 0
    assert (int(asked.sum()), int(tested.sum())) == (50, 25)
    assert not bool((asked & tested).any())


def test_shuffled_boards_keep_their_share_of_mines_and_lose_the_rest():
    plain = learning.load_boards(TINY, seed=0)
    mixed = learning.load_boards(TINY.with_params(shuffle=True), seed=0)
    assert len(plain.train) == 3
    for one, other in zip(plain.train + plain.test, mixed.train + mixed.test, strict=True):
        assert torch.equal(one.x, other.x)
        assert not torch.equal(one.y, other.y)
        assert int(one.y.sum()) == int(other.y.sum())


def test_a_split_board_trains_every_arm():
    load = PUBLISHED.with_params(side=10, epochs=1)
    for name in ("graph_mamba", *ABLATIONS, "gcn", "gps"):
        found = learning.measure_trained(Here(load, name))
        assert 0 <= found["auroc"] <= 1


def test_peptides_run_at_a_small_size():
    if importlib.util.find_spec("modlamp") is None or importlib.util.find_spec("rdkit") is None:
        pytest.skip("modlamp and rdkit are not installed")
    load = PEPTIDES_LOAD.with_params(train=6, test=8, batch=3, epochs=1, layers=1, hidden=16, shuffle=True)
    assert 0 <= learning.measure_trained(Here(load, "graph_mamba"))["average_precision"] <= 1


def test_the_meter_counts_each_storage_once_and_no_parameters():
    layer = torch.nn.Linear(3, 4)
    x = torch.randn(5, 3)
    assert growth.saved_bytes(layer, x) == 5 * 3 * 4
    assert growth.saved_bytes(lambda_module(lambda x: x.exp() + x.detach().exp()), x.requires_grad_()) == 5 * 3 * 4


def lambda_module(call):
    module = torch.nn.Module()
    module.forward = call
    return module


def test_the_meter_sees_quadratic_growth_where_all_scores_are_kept():
    load = CHECK.experiment("growth").sizes["smoke"].workloads[0].with_params(vertices=[200, 400, 800], graphs=[1] * 3)
    assert growth.measure_growth(Here(load, "gps, stored scores"))["exponent"] > 1.4
    context = Here(load, "graph_mamba")
    assert growth.measure_growth(context)["exponent"] < 1.1
    assert context.kept["growth"]["vertices"] == [200, 400, 800]
    assert growth.measure_large(Here(load, "gps"))["fits"] is True


def test_storing_scores_changes_no_answer():
    torch.manual_seed(0)
    fused, stored = (GPS(2, in_dim=3, layers=1, hidden=8, store_scores=s).eval() for s in (False, True))
    stored.load_state_dict(fused.state_dict())
    graph = Data(x=torch.randn(6, 3), edge_index=growth.regular_graph(6, 0))
    torch.testing.assert_close(stored(graph), fused(graph), atol=1e-5, rtol=1e-4)


def test_regular_graphs_have_three_edges_a_vertex_each_way():
    edges = growth.regular_graph(10, seed=2)
    assert torch.equal(torch.bincount(edges[1]), torch.full((10,), 3))
    assert {tuple(e) for e in edges.t().tolist()} == {tuple(e) for e in edges.flip(0).t().tolist()}


def test_the_gps_and_mamba_arms_share_their_messages():
    assert isinstance(build_arm("graph_mamba", {"out_dim": 2, "in_dim": 3}, TINY, 0), GraphMamba)
    with pytest.raises(KeyError):
        build_arm("mlp", {"out_dim": 2, "in_dim": 3}, TINY, 0)
