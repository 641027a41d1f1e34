import json
import pickle

import pytest
import torch
from hypothesis import given, settings
from torch_geometric import seed_everything
from torch_geometric.data import Batch, Data
from torch_geometric.datasets import FakeDataset
from torch_geometric.loader import DataLoader

from heliograph.errors import BadInput, MemoryEstimateError
from heliograph.graphs import RWSE
from heliograph.graphs.core import sampled_walks
from heliograph.graphs.core.sampled_walks import EdgeLookup
from heliograph.graphs.core.tasks import TargetSpec
from heliograph.graphs.core.train import evaluate, fit, load_model, predict
from heliograph.graphs.graph_mamba import BidirectionalSSM, Borders, GraphMamba, SelectiveSSM, WalkTokens
from heliograph.graphs.graph_mamba import tokens as token_module
from tests.graphs.core.graphs_for_tests import odd_batches, odd_graphs

ENCODERS = ("walk", "mpnn", "set")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def model_of(pool=None, **options):
    options = {"hidden": 8, "m": 2, "walks": 3, "samples": 2, "state": 4, **options}
    return GraphMamba(2, node_types=5, edge_types=3, pool=pool, **options)


def graph_of(edge_index, size, seed=0):
    random = torch.Generator().manual_seed(seed)
    return Data(
        x=torch.randint(0, 5, (size,), generator=random),
        edge_index=edge_index,
        edge_attr=torch.randint(0, 3, (edge_index.shape[1],), generator=random),
    )


def ring(size=6):
    here = torch.arange(size)
    one = torch.stack([here, (here + 1) % size])
    return graph_of(torch.cat([one, one.flip(0)], 1), size)


@pytest.mark.parametrize(
    "options",
    [{"m": 0}, {"encoder": "walk"}, {"encoder": "mpnn"}, {"encoder": "set"}, {"order": "ppr"}, {"pool": "mean"}],
    ids=str,
)
@settings(max_examples=8, deadline=None)
@given(sample=odd_batches())
def test_a_graph_is_answered_alone_as_in_a_batch_in_any_order(options, sample):
    model = model_of(**options, pe=RWSE(3, dim=2)).eval()
    graphs = [graph_of(edges, size, seed) for seed, (edges, size) in enumerate(sample[2])]
    alone = [model(graph) for graph in graphs]
    torch.testing.assert_close(model(Batch.from_data_list(graphs)), torch.cat(alone), atol=1e-5, rtol=1e-4)
    reverse = model(Batch.from_data_list(graphs[::-1]))
    torch.testing.assert_close(reverse, torch.cat(alone[::-1]), atol=1e-5, rtol=1e-4)
    if model.tokens is not None:
        given = Batch.from_data_list([model.tokens(graph) for graph in graphs])
        torch.testing.assert_close(model(given), torch.cat(alone), atol=1e-5, rtol=1e-4)


def carry(graph, order):
    """The graph with vertex ``order[i]`` renamed to i; its walks too."""
    place = torch.argsort(order)
    moved = Data(x=graph.x[order], edge_index=place[graph.edge_index], edge_attr=graph.edge_attr)
    walks = graph.walks[order].long()
    moved.walks = torch.where(walks >= 0, place[walks.clamp(min=0)], -1).int()
    return moved


@pytest.mark.parametrize("encoder", ENCODERS)
@settings(max_examples=8, deadline=None)
@given(sample=odd_graphs())
def test_renumbering_changes_answers_by_ties_and_walks_alone(encoder, sample):
    edges, size = sample
    rank = torch.randperm(size)  # no ties, and carried along
    graph = WalkTokens(2, 3, 2)(graph_of(edges, size))
    order = torch.randperm(size)
    model = model_of(encoder=encoder, order=lambda data: rank if data is graph else rank[order]).eval()
    torch.testing.assert_close(model(carry(graph, order)), model(graph)[order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_edges_of_a_graph_may_be_listed_in_any_order(encoder):
    graph, model = ring(), model_of(encoder=encoder).eval()
    shuffle = torch.randperm(graph.num_edges)
    other = Data(x=graph.x, edge_index=graph.edge_index[:, shuffle], edge_attr=graph.edge_attr[shuffle])
    torch.testing.assert_close(model(other), model(graph), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_first_vertex_hears_the_last_only_from_the_backward_scan(bidirectional):
    graph = Data(x=torch.randn(5, 2, requires_grad=True), edge_index=torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]]))
    options = {"hidden": 8, "m": 0, "mpnn": None, "global_layers": 1, "order": lambda data: torch.arange(5)}
    model = GraphMamba(1, in_dim=2, bidirectional=bidirectional, **options).eval()
    (gradient,) = torch.autograd.grad(model(graph)[0, 0], graph.x)
    assert bool((gradient[4] != 0).any()) == bidirectional
    (gradient,) = torch.autograd.grad(model(graph)[4, 0], graph.x)
    assert bool((gradient[0] != 0).any())


def test_vertices_of_most_neighbours_come_last_and_ties_keep_their_order():
    star = Data(x=torch.zeros(4), edge_index=torch.tensor([[1, 2, 3, 0], [0, 0, 0, 1]]))
    batch = torch.zeros(4, dtype=torch.long)
    assert model_of()._arrange(star, batch, None).tolist() == [2, 3, 1, 0]
    assert model_of(order="ppr")._arrange(star, batch, None).tolist() == [2, 3, 1, 0]
    orders = {tuple(model_of()._arrange(star, batch, torch.Generator().manual_seed(s)).tolist()) for s in range(20)}
    assert orders == {(2, 3, 1, 0), (3, 2, 1, 0)}


@pytest.mark.parametrize("reverse", [False, True])
@settings(max_examples=10, deadline=None)
@given(sample=odd_batches())
def test_packed_sequences_do_not_hear_each_other(reverse, sample):
    sizes = torch.bincount(sample[1])
    layer = SelectiveSSM(4, state=3, reverse=reverse)
    x = torch.randn(1, int(sizes.sum()), 4)
    alone = torch.cat([layer(part) for part in x.split(sizes.tolist(), dim=1)], dim=1)
    torch.testing.assert_close(layer(x, Borders.of_sizes(sizes)), alone, atol=1e-6, rtol=1e-5)


def test_the_backward_direction_is_the_forward_one_between_flips():
    there, back = SelectiveSSM(4, state=3), SelectiveSSM(4, state=3, reverse=True)
    back.load_state_dict(there.state_dict())
    x = torch.randn(2, 7, 4)
    torch.testing.assert_close(back(x), there(x.flip(1)).flip(1))
    both = BidirectionalSSM(4, state=3)
    assert not torch.equal(both.scans[0].into.weight, both.scans[1].into.weight)


def test_gradients_of_the_block_are_those_of_finite_differences():
    block = BidirectionalSSM(2, state=2).double()
    borders = Borders.of_sizes(torch.tensor([2, 3]))
    x = torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True)
    names, values = zip(*block.named_parameters(), strict=True)

    def run(x, *values):
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x, borders))

    assert torch.autograd.gradcheck(run, (x, *values))


@settings(max_examples=20, deadline=None)
@given(sample=odd_graphs())
def test_tokens_are_walks_of_their_length(sample):
    edges, size = sample
    walks = WalkTokens(m=3, walks=2, samples=2, seed=4)(graph_of(edges, size)).walks
    assert walks.dtype == torch.int32
    assert walks.shape == (size, 6, 2, 4)
    lengths = (walks >= 0).sum(-1) - 1
    assert torch.equal(lengths, torch.tensor([1, 1, 2, 2, 3, 3]).view(1, 6, 1).expand(size, -1, 2))
    assert bool((walks[..., 0] == torch.arange(size).view(-1, 1, 1)).all())


def test_tokens_are_drawn_once_or_anew():
    graph = ring(20)
    assert torch.equal(WalkTokens(seed=1)(graph).walks, WalkTokens(seed=1)(graph).walks)
    assert not torch.equal(WalkTokens(seed=1)(graph).walks, WalkTokens(seed=2)(graph).walks)
    fresh = WalkTokens(seed=None)
    assert not torch.equal(fresh(graph).walks, fresh(graph).walks)


def test_walk_features_say_where_a_walk_returns_and_what_is_adjacent():
    triangle = torch.tensor([[0, 1, 2, 1], [1, 2, 0, 0]])
    encoder = token_module.WalkEncoder(4, 2, edges=False)
    walks = torch.tensor([[[[0, 1, 0]]], [[[0, 1, 2]]]])
    bits, arrived = encoder._structure(walks, EdgeLookup(triangle, 3))
    back_1, back_2, joined_1, joined_2 = (bits[:, 0, 0, 2, k].tolist() for k in range(4))
    assert back_1 == [False, False]
    assert back_2 == [True, False]
    assert joined_1 == [True, True]
    assert joined_2 == [False, False]  # no loop at 0; no edge from 0 to 2
    assert arrived[:, 0, 0].tolist() == [[-1, 0, 3], [-1, 0, 1]]


def test_the_subgraph_of_a_token_has_the_edges_between_its_vertices():
    edges = torch.tensor([[0, 1, 1, 2, 2, 0], [1, 0, 2, 1, 3, 2]])
    walks = torch.tensor([[[[0, 1, 2], [0, 1, -1]]], [[[3, 3, 3], [3, 3, 3]]]])
    token, vertex, keys = token_module._members(walks, 4)
    assert list(zip(token.tolist(), vertex.tolist(), strict=True)) == [(0, 0), (0, 1), (0, 2), (1, 3)]
    inner, which = token_module._induced_edges(vertex, token, keys, edges, 4)
    found = sorted((int(vertex[a]), int(vertex[b]), int(e)) for (a, b), e in zip(inner.t(), which, strict=True))
    assert found == [(0, 1, 0), (0, 2, 5), (1, 0, 1), (1, 2, 2), (2, 1, 3)]


def test_structure_reaches_the_answer_through_walks_and_subgraphs_but_not_through_sets():
    triangle = torch.tensor([[0, 1, 2, 0, 1, 2], [1, 2, 0, 2, 0, 1]])
    path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    walks = torch.tensor([[0, 1, 2], [1, 2, 1], [2, 1, 0]]).view(3, 1, 1, 3).expand(-1, 2, -1, -1).clone()
    walks[:, 0, :, 2] = -1
    for encoder in ENCODERS:
        options = {"hidden": 8, "walks": 1, "samples": 1, "mpnn": None, "order": lambda data: torch.arange(3)}
        model = GraphMamba(2, node_types=5, encoder=encoder, **options).eval()
        answers = []
        for edges in (triangle, path):
            graph = Data(x=torch.ones(3, dtype=torch.long), edge_index=edges, walks=walks.int())
            answers.append(model.encode(graph))
        assert torch.equal(*answers) == (encoder == "set")


def test_training_draws_and_evaluation_does_not():
    graph, model = ring(12), model_of()
    assert torch.equal(model.eval()(graph), model(graph))
    model.train()
    first, second = model(graph), model(graph)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    first = model(graph)
    torch.manual_seed(3)
    assert torch.equal(first, model(graph))


def test_walks_are_drawn_anew_in_training_only_where_asked(monkeypatch):
    graph = WalkTokens(2, 3, 2)(ring(8))
    drawn = []
    original = WalkTokens.draw
    monkeypatch.setattr(WalkTokens, "draw", lambda self, data, seed: drawn.append(seed) or original(self, data, seed))
    model_of()(graph)
    model_of(resample=True).eval()(graph)
    assert drawn == []
    model = model_of(resample=True)
    model(graph)
    model(graph)
    assert len(set(drawn)) == 2


def test_several_draws_give_a_mean_and_a_spread():
    graph, model = ring(10), model_of(eval_samples=4)
    found = model.sample_answers(graph, samples=4, seed=0)
    assert found.mean.shape == found.spread.shape == (10, 2)
    assert float(found.spread.max()) > 0
    assert model.training
    torch.testing.assert_close(model.eval()(graph), found.mean)
    with pytest.raises(BadInput, match="2 draws"):
        model.sample_answers(graph, samples=1)


def test_no_ties_and_no_walks_leave_nothing_to_draw():
    model = model_of(m=0, order=lambda data: torch.arange(6))
    assert float(model.sample_answers(ring(6)).spread.max()) < 1e-6


@pytest.mark.parametrize("options", [{}, {"m": 0}, {"encoder": "mpnn"}, {"encoder": "set"}, {"mpnn": None}], ids=str)
@pytest.mark.parametrize("size", [0, 1, 3])
def test_few_vertices_without_edges_train(options, size):
    graph = graph_of(torch.zeros(2, 0, dtype=torch.long), size)
    model = model_of(**options)
    if size != 1 or options.get("mpnn", "") is None:
        model(graph).sum().backward()
    else:
        with pytest.warns(UserWarning, match="running statistics"):
            model(graph).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_bfloat16_autocast_gives_answers_near_float32():
    model, graph = model_of().eval(), ring(12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        small = model(graph)
    torch.testing.assert_close(small.float(), model(graph), atol=0.1, rtol=0.1)


def test_it_trains_in_a_loop_of_pyg_on_pyg_data():
    seed_everything(0)
    graphs = FakeDataset(8, avg_num_nodes=10, num_classes=2, edge_dim=3)
    model = GraphMamba(2, in_dim=graphs.num_features, edge_dim=3, hidden=16, walks=2, samples=1, pool="mean")
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        for batch in DataLoader(graphs, batch_size=8):
            loss = torch.nn.functional.cross_entropy(model(batch), batch.y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_it_is_fitted_saved_and_read_on_vertices_with_unknown_classes(tmp_path):
    graphs = []
    for seed in range(6):
        graph = graph_of(torch.randint(0, 9, (2, 24), generator=torch.Generator().manual_seed(seed)), 9, seed)
        graph.y = torch.where(torch.arange(9) % 3 == 0, -1, (graph.x > 2).long())
        graphs.append(graph)
    target = TargetSpec("vertex", "class", 2)
    fitted = fit(model_of(pe=RWSE(3, dim=2)), graphs[:4], graphs[4:], target, epochs=3, batch_size=2, device="cpu")
    fitted.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.model.config == fitted.model.config
    assert torch.equal(predict(again, graphs), predict(fitted, graphs))
    assert evaluate(again, graphs).values == evaluate(fitted, graphs).values
    copy = pickle.loads(pickle.dumps(fitted.model))
    assert torch.equal(copy(graphs[0]), fitted.model(graphs[0]))


def test_a_model_comes_back_from_its_description():
    model = model_of(encoder="set", mpnn=None, pe=RWSE(3, dim=2), order="ppr", eval_samples=2)
    again = GraphMamba.from_description(json.loads(json.dumps(model.describe())))
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    own = model.with_options(order=lambda data: torch.arange(data.num_nodes))
    with pytest.raises(BadInput, match="state_dict"):
        own.describe()


def test_the_encodings_that_a_model_reads_are_named():
    assert model_of(m=0).encodings == ()
    assert model_of(pe=RWSE(3, dim=2)).encodings == (RWSE(3, dim=2), WalkTokens(2, 3, 2, 0))


@pytest.mark.parametrize(
    "options",
    [
        {"m": -1},
        {"walks": 0},
        {"hidden": 0},
        {"samples": -1},
        {"local_layers": 0},
        {"global_layers": -1},
        {"encoder": "tree"},
        {"mpnn": "gat"},
        {"order": "height"},
        {"pool": "median"},
        {"eval_samples": 0},
        {"state": 0},
    ],
    ids=str,
)
def test_bad_options_are_refused(options):
    with pytest.raises(BadInput):
        model_of(**options)


def test_no_samples_mean_no_walks_with_a_warning():
    with pytest.warns(UserWarning, match="m=0"):
        assert model_of(samples=0).config.m == 0


def test_bad_graphs_are_refused(monkeypatch):
    graph = ring(5)
    graph.walks = torch.zeros(5, 2, 3, 3, dtype=torch.int32)
    with pytest.raises(BadInput, match=r"data\.walks"):
        model_of()(graph)
    with pytest.raises(BadInput, match="walks and samples"):
        WalkTokens(samples=0)
    numbers = Data(x=torch.tensor([[1.0], [torch.nan]]), edge_index=torch.zeros(2, 0, dtype=torch.long))
    with pytest.raises(BadInput, match="NaN"):
        GraphMamba(1, in_dim=1)(numbers)
    mixed = ring(4)
    mixed.batch = torch.tensor([0, 1, 0, 1])
    with pytest.raises(BadInput, match="ascend"):
        model_of()(mixed)
    with pytest.raises(BadInput, match="order must give"):
        model_of(order=lambda data: torch.arange(2))(ring(4))
    monkeypatch.setattr(sampled_walks, "SAMPLE_BUDGET_BYTES", 10)
    with pytest.raises(MemoryEstimateError):
        model_of()(ring(5))
    monkeypatch.undo()
    monkeypatch.setattr(token_module, "INDUCED_BUDGET_BYTES", 10)
    with pytest.raises(MemoryEstimateError, match="encoder='walk'"):
        model_of(encoder="mpnn")(ring(5))
