import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import TransformerConv

from heliograph.errors import BadInput
from heliograph.graphs.core.message_passing import count_parameters
from heliograph.graphs.mesh_transformer import MeshGraphNet, MeshTransformer
from heliograph.graphs.mesh_transformer.mesh_graph_net import edge_geometry
from heliograph.graphs.mesh_transformer.model import MeshAttentionBlock, RMSNorm, rotate
from heliograph.graphs.mesh_transformer.supports import edge_set, khop
from tests.graphs.core.graphs_for_tests import odd_batches, odd_graphs

OPTIONS = {
    "plain": {},
    "rotated": {"rope_dim": 2, "hidden": 24},
    "gated": {"gated_attention": True, "double_norm": True},
    "shared": {"shared_qkv": True, "activation": "silu", "mlp_layers": 2},
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def transformer(**options):
    return MeshTransformer(3, 2, **{"hidden": 12, "layers": 2, "heads": 3, **options})


def graph_net(**options):
    return MeshGraphNet(3, 2, **{"hidden": 8, "layers": 2, **options})


MODELS = {**{name: (lambda o=options: transformer(**o)) for name, options in OPTIONS.items()}, "mgn": graph_net}


def inputs(size, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, generator=random), torch.randn(size, 2, generator=random)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=10, deadline=None)
@given(sample=odd_batches())
def test_a_graph_is_answered_alone_as_in_a_batch_in_any_order(name, sample):
    model = MODELS[name]().eval()
    graphs = []
    for seed, (edges, size) in enumerate(sample[2]):
        x, pos = inputs(size, seed)
        graphs.append(Data(x=x, pos=pos, edge_index=edges))
    alone = [model(graph) for graph in graphs]
    torch.testing.assert_close(model(Batch.from_data_list(graphs)), torch.cat(alone), atol=1e-5, rtol=1e-4)
    reverse = model(Batch.from_data_list(graphs[::-1]))
    torch.testing.assert_close(reverse, torch.cat(alone[::-1]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=10, deadline=None)
@given(sample=odd_graphs())
def test_renumbering_vertices_and_edges_renumbers_the_answer(name, sample):
    edges, size = sample
    model = MODELS[name]().eval()
    x, pos = inputs(size)
    order, shuffle = torch.randperm(size), torch.randperm(edges.shape[1])
    place = torch.argsort(order)
    moved = model(x[order], place[edges][:, shuffle], pos[order])
    torch.testing.assert_close(moved, model(x, edges, pos)[order], atol=1e-5, rtol=1e-4)


def test_parallel_edges_count_once_in_attention():
    model = transformer().eval()
    x, pos = inputs(4)
    edges = torch.tensor([[0, 1, 2], [1, 2, 2]])
    assert torch.equal(model(x, edges, pos), model(x, edges.repeat(1, 3), pos))


def test_a_vertex_that_hears_nobody_gets_nothing_from_attention():
    block = MeshAttentionBlock(8, 2)
    x = torch.randn(3, 8)
    empty = edge_set(torch.zeros(2, 0, dtype=torch.long), 3)
    assert torch.equal(block._attend(block.norm_attention(x), empty, None), torch.zeros(3, 8))
    assert block(x[:1], edge_set(torch.zeros(2, 0, dtype=torch.long), 1)).isfinite().all()


def test_attention_is_that_of_pyg():
    size, block = 6, MeshAttentionBlock(8, 2).double()
    edges = torch.unique(torch.randint(0, size, (2, 20)), dim=1)
    conv = TransformerConv(8, 4, heads=2, root_weight=False).double()
    for number, layer in enumerate((conv.lin_query, conv.lin_key, conv.lin_value)):
        layer.weight.data = block.project.weight.data[8 * number : 8 * (number + 1)]
        layer.bias.data = block.project.bias.data[8 * number : 8 * (number + 1)]
    u = torch.randn(size, 8, dtype=torch.float64)
    torch.testing.assert_close(block._attend(u, edge_set(edges, size), None), conv(u, edges))


def test_an_answer_depends_on_what_lies_within_the_blocks_reach_only():
    size = 9
    path = torch.stack([torch.arange(size - 1), torch.arange(1, size)])
    both = torch.cat([path, path.flip(0)], 1)
    x = torch.randn(size, 3, requires_grad=True)
    for support, reach in ((edge_set(both, size), 2), (khop(2).build(both, size), 4)):
        (slope,) = torch.autograd.grad(transformer(layers=2)(x, support=support)[0].sum(), x)
        assert (slope.abs().sum(1) > 0).tolist() == [vertex <= reach for vertex in range(size)]


def test_gradients_are_right_to_second_digits_in_float64():
    model = transformer(layers=1, rope_dim=2, heads=2, gated_attention=True).double()
    edges = torch.tensor([[0, 1, 2, 2, 0], [1, 2, 0, 2, 1]])
    x, pos = (values.double() for values in inputs(4))
    assert torch.autograd.gradcheck(lambda v: model(v, edges, pos), x.requires_grad_())
    mgn = graph_net(layers=1, hidden=4).double()
    assert torch.autograd.gradcheck(lambda v: mgn(v, edges, pos), x)


def test_rotated_scores_depend_on_the_distance_only():
    angles = torch.rand(5, 2, 2, dtype=torch.float64)
    q, k = (torch.randn(5, 2, 9, dtype=torch.float64) for _ in range(2))
    shift = torch.rand(1, 2, 2, dtype=torch.float64)
    near = (rotate(q, angles) * rotate(k, angles.flip(0))).sum(-1)
    far = (rotate(q, angles + shift) * rotate(k, angles.flip(0) + shift)).sum(-1)
    torch.testing.assert_close(near, far)
    assert torch.equal(rotate(q, angles)[..., 8:], q[..., 8:])
    torch.testing.assert_close(rotate(q, angles).norm(dim=-1), q.norm(dim=-1))


def test_rms_norm_follows_its_equation_and_takes_zero():
    norm = RMSNorm(4)
    x = torch.tensor([[1.0, 2.0, 2.0, 4.0], [0.0, 0, 0, 0]], requires_grad=True)
    torch.testing.assert_close(norm(x)[0], x[0] / 2.5)
    norm(x).sum().backward()
    assert x.grad.isfinite().all()


def test_a_round_of_meshgraphnet_follows_its_equation():
    model = graph_net(layers=1).double()
    one = model.rounds[0]
    edges = torch.tensor([[0, 1, 2, 0], [1, 2, 0, 2]])
    x, edge = torch.randn(3, 8, dtype=torch.float64), torch.randn(4, 8, dtype=torch.float64)
    weight = torch.cat([one.from_edge.weight, one.from_ends.weight[:8], one.from_ends.weight[8:]], 1)
    joined = torch.cat([edge, x[edges[1]], x[edges[0]]], 1) @ weight.t() + one.from_edge.bias
    renewed = edge + one.edge_rest(joined)
    heard = torch.stack([renewed[edges[1] == v].sum(0) for v in range(3)])
    found = one(x, edge, edges)
    torch.testing.assert_close(found[1], renewed)
    torch.testing.assert_close(found[0], x + one.vertex(torch.cat([x, heard], 1)))


def test_published_sizes():
    assert count_parameters(MeshTransformer(11, 2)) == 566_722
    assert count_parameters(MeshGraphNet(11, 2)) == 2_332_930


@pytest.mark.parametrize("name", MODELS)
def test_sixteen_bits_are_finite_and_near(name):
    model = MODELS[name]().eval()
    x, pos = inputs(6)
    edges = torch.randint(0, 6, (2, 14))
    exact = model(x, edges, pos)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(x, edges, pos).float(), exact, atol=0.15, rtol=0.15)
    narrow = model.bfloat16()(x.bfloat16(), edges, pos.bfloat16())
    assert narrow.dtype == torch.bfloat16
    assert narrow.isfinite().all()


def test_recomputing_changes_memory_and_not_gradients():
    plain, saving = transformer(), transformer(recompute=True)
    saving.load_state_dict(plain.state_dict())
    x, _ = inputs(5)
    edges = torch.randint(0, 5, (2, 12))
    for model in (plain, saving):
        model(x, edges).square().sum().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_it_trains_in_a_loop_of_pyg():
    graphs = []
    for seed in range(4):
        x, pos = inputs(8, seed)
        edges = torch.randint(0, 8, (2, 24), generator=torch.Generator().manual_seed(seed))
        y = torch.zeros(8, 2).index_add(0, edges[1], x[edges[0], :2])
        graphs.append(Data(x=x, pos=pos, edge_index=edges, y=y))
    model = transformer(hidden=24)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        for batch in DataLoader(graphs, batch_size=2):
            loss = torch.nn.functional.mse_loss(model(batch.x, batch.edge_index, batch.pos, batch.batch), batch.y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("name", MODELS)
def test_models_come_back_from_descriptions_pickles_and_folders(name, tmp_path):
    model = MODELS[name]().eval()
    x, pos = inputs(5)
    edges = torch.randint(0, 5, (2, 9))
    again = type(model).from_description(json.loads(json.dumps(model.describe())))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x, edges, pos), model(x, edges, pos))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x, edges, pos), model(x, edges, pos))


def test_a_fitted_model_is_kept_and_predicts_the_same(tmp_path):
    train = pytest.importorskip("heliograph.graphs.core.train")
    x, pos = inputs(6)
    edges = torch.randint(0, 6, (2, 12))
    graph = Data(x=x, pos=pos, edge_index=edges, y=x[:, :2].clone())
    fitted = train.fit(transformer(), [graph], epochs=1)
    fitted.save(Path(tmp_path / "model"))
    kept = train.load_model(tmp_path / "model")
    assert torch.equal(train.predict(kept, [graph]), train.predict(fitted, [graph]))


@pytest.mark.parametrize(
    "options",
    [{"hidden": 10}, {"layers": 0}, {"activation": "tanh"}, {"rope_dim": 3, "hidden": 12}, {"heads": 0}],
)
def test_bad_sizes_are_refused(options):
    with pytest.raises(BadInput):
        transformer(**options)


def test_bad_inputs_are_refused():
    x, pos = inputs(4)
    edges = torch.tensor([[0], [1]])
    for call in (
        lambda: transformer()(x[:, :2], edges),
        lambda: transformer()(x),
        lambda: transformer()(x, edges + 3),
        lambda: transformer()(x, support=edge_set(edges, 3)),
        lambda: transformer(rope_dim=2, hidden=24)(x, edges),
        lambda: graph_net()(x, edges),
        lambda: graph_net()(x, edges + 3, pos),
        lambda: graph_net()(x, edges, pos[:, :1]),
        lambda: graph_net()(x, edges, edge_attr=torch.zeros(2, 3)),
        lambda: graph_net(mlp_layers=1),
    ):
        with pytest.raises(BadInput):
            call()


def test_edges_may_bring_their_own_features():
    x, pos = inputs(4)
    edges = torch.tensor([[0, 1], [1, 2]])
    model = graph_net()
    given = edge_geometry(pos, edges)
    assert torch.equal(model(x, edges, edge_attr=given), model(x, edges, pos))
    torch.testing.assert_close(given[:, 2], (pos[edges[0]] - pos[edges[1]]).norm(dim=1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_answer_and_gradients_of_the_cpu():
    model = transformer()
    x, _ = inputs(40)
    edges = torch.randint(0, 40, (2, 200))
    model(x, edges).square().sum().backward()
    there = transformer().cuda()
    there.load_state_dict(model.state_dict())
    there(x.cuda(), edges.cuda()).square().sum().backward()
    for a, b in zip(model.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad.cpu(), atol=1e-4, rtol=1e-3)
