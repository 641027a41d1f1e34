import json

import pytest
import torch
from hypothesis import given, settings
from torch_geometric import seed_everything
from torch_geometric.data import Batch, Data
from torch_geometric.datasets import FakeDataset
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GATv2Conv

from heliograph.errors import BadInput
from heliograph.graphs import RWSE, GNNPlus
from heliograph.graphs.gnn_plus import SWITCHES
from tests.graphs.core.graphs_for_tests import odd_batches

CONVS = ("gcn", "gin", "gatedgcn")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def model_of(conv="gcn", pool="sum", **options):
    options = {"layers": 3, "hidden": 12, "pe": RWSE(4, dim=4), **options}
    return GNNPlus(2, node_types=5, edge_types=3, conv=conv, pool=pool, **options)


def graph_of(edge_index, size, seed=0):
    random = torch.Generator().manual_seed(seed)
    edges = edge_index.shape[1]
    return Data(
        x=torch.randint(0, 5, (size,), generator=random),
        edge_index=edge_index,
        edge_attr=torch.randint(0, 3, (edges,), generator=random),
    )


@pytest.mark.parametrize("pool", ["sum", "mean", "max", None])
@pytest.mark.parametrize("conv", CONVS)
@settings(max_examples=8, deadline=None)
@given(sample=odd_batches())
def test_a_graph_is_answered_alone_as_in_a_batch_in_any_order(conv, pool, sample):
    model = model_of(conv, pool).eval()
    graphs = [graph_of(edges, size, seed) for seed, (edges, size) in enumerate(sample[2])]
    alone = [model(graph) for graph in graphs]
    together = model(Batch.from_data_list(graphs))
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)
    reverse = model(Batch.from_data_list(graphs[::-1]))
    torch.testing.assert_close(reverse, torch.cat(alone[::-1]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("conv", CONVS)
@settings(max_examples=8, deadline=None)
@given(sample=odd_batches(most=1))
def test_renumbering_vertices_and_edges_renumbers_the_answer(conv, sample):
    (edges, size), *_ = sample[2]
    model, graph = model_of(conv, pool=None).eval(), graph_of(edges, size)
    order, shuffle = torch.randperm(size), torch.randperm(edges.shape[1])
    place = torch.argsort(order)
    moved = Data(x=graph.x[order], edge_index=place[edges][:, shuffle], edge_attr=graph.edge_attr[shuffle])
    torch.testing.assert_close(model(moved), model(graph)[order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("conv", CONVS)
def test_each_switch_changes_its_own_part_only(conv):
    full = model_of(conv, dropout=0.1)
    for switch in SWITCHES:
        ablated = full.ablate(switch)
        on = {name: getattr(ablated.config, name) not in (False, None, 0.0) for name in SWITCHES}
        assert on == {name: name != switch for name in SWITCHES}
        assert ablated(graph_of(torch.tensor([[0, 1], [1, 2]]), 4)).shape == (1, 2)
    plain = full.plain()
    names = " ".join(name for name, _ in plain.named_parameters())
    for part in ("norm", "feed_forward", "encoding", "edge_stem"):
        assert part not in names
    assert not any(block.residual for block in plain.blocks)
    with pytest.raises(BadInput, match="no switch"):
        full.ablate("attention")


@pytest.mark.parametrize("conv", CONVS)
def test_the_norm_switch_is_never_without_effect(conv):
    for ffn in (True, False):
        names = [name for name, _ in model_of(conv, ffn=ffn).blocks.named_parameters()]
        assert any("norm" in name for name in names)


@pytest.mark.parametrize("conv", CONVS)
def test_edges_reach_the_answer_only_with_edge_features(conv):
    # two edges arrive at vertex 1: the gates of a single one would cancel
    graph = graph_of(torch.tensor([[0, 1, 2, 2], [1, 2, 0, 1]]), 3)
    other = graph.clone()
    other.edge_attr = (graph.edge_attr + 1) % 3
    model = model_of(conv).eval()
    # vertex states: a small head may answer with its bias alone
    assert not torch.allclose(model.encode(graph), model.encode(other))
    without = model.ablate("edge_features").eval()
    assert torch.equal(without(graph), without(other))


def test_a_given_encoding_is_used_and_a_missing_one_computed():
    graph, model = graph_of(torch.tensor([[0, 1, 2], [1, 2, 0]]), 3), model_of().eval()
    torch.testing.assert_close(model(RWSE(4)(graph)), model(graph))
    wrong = graph.clone()
    wrong.rwse = torch.rand(3, 4)
    assert not torch.allclose(model.encode(wrong), model.encode(graph))


@pytest.mark.parametrize("conv", CONVS)
def test_a_single_atom_trains(conv):
    graph, model = graph_of(torch.zeros(2, 0, dtype=torch.long), 1), model_of(conv)
    with pytest.warns(UserWarning, match="running statistics"):
        model(graph).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("conv", CONVS)
def test_evaluation_is_deterministic_and_leaves_statistics_alone(conv):
    model, graph = model_of(conv, dropout=0.5), graph_of(torch.randint(0, 6, (2, 12)), 6)
    model.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(model(graph), model(graph))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.train()
    assert not torch.equal(model.encode(graph), model.encode(graph))


def test_bfloat16_autocast_gives_finite_answers_near_float32():
    model, graph = model_of("gatedgcn").eval(), graph_of(torch.randint(0, 6, (2, 12)), 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        small = model(graph)
    torch.testing.assert_close(small.float(), model(graph), atol=0.2, rtol=0.2)


def test_it_trains_in_a_loop_of_pyg_on_pyg_data():
    seed_everything(0)  # the data set is drawn from the global generators
    graphs = FakeDataset(8, avg_num_nodes=10, num_classes=2, edge_dim=3)
    model = GNNPlus(2, in_dim=graphs.num_features, edge_dim=3, layers=2, hidden=16, pe=RWSE(4, dim=4))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        for batch in DataLoader(graphs, batch_size=8):
            loss = torch.nn.functional.cross_entropy(model(batch), batch.y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_layer_of_pyg_takes_the_place_of_the_convolution():
    graph = graph_of(torch.tensor([[0, 1, 2], [1, 2, 0]]), 3)
    model = model_of(lambda dim: GATv2Conv(dim, dim, edge_dim=dim))
    assert model(graph).shape == (1, 2)
    assert model.ablate("ffn").config.ffn is False
    with pytest.raises(BadInput, match="state_dict"):
        model.describe()


def test_a_model_comes_back_from_its_description():
    model = model_of("gin", pool=None, dropout=0.1)
    again = GNNPlus.from_description(json.loads(json.dumps(model.describe())))
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    graph = graph_of(torch.tensor([[0, 1], [1, 2]]), 3)
    assert torch.equal(again.eval()(graph), model.eval()(graph))


@pytest.mark.parametrize(
    "options", [{"conv": "gat"}, {"layers": 0}, {"norm": "group"}, {"pool": "median"}, {"pe": RWSE(4, dim=12)}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(BadInput):
        model_of(**{"pool": "sum", **options})
