"""FloydNet: equivariance, padding, inputs, read-outs and the things that a toy version gets wrong."""

import io

import networkx as nx
import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data

from heliograph.errors import BadInput, MemoryEstimateError
from heliograph.graphs import FloydNet, PivotalAttentionBlock
from heliograph.graphs.floydnet import batch_graphs, batch_pyg

LEVELS = ("graph", "vertex", "edge")


def awake(model, seed=0, scale=0.3):
    """Random values in place of the zero-initialised matrices, in float64 and eval mode."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    for parameter in model.parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def small_net(**options):
    settings = {"dim": 8, "heads": 2, "depth": 3, "levels": LEVELS, "out_dim": 5} | options
    torch.manual_seed(0)
    return awake(FloydNet(**settings))


def random_inputs(batch=2, size=5, edges=4, nodes=3, seed=0):
    """Directed, with self-loops."""
    generator = torch.Generator().manual_seed(seed)
    adj = (torch.rand(batch, size, size, generator=generator) > 0.5).long()
    edge_attr = torch.randint(edges, (batch, size, size), generator=generator)
    node_attr = torch.randint(nodes, (batch, size), generator=generator)
    return adj, edge_attr, node_attr


def assert_outputs_close(one, other, atol=1e-10):
    for level in LEVELS:
        torch.testing.assert_close(getattr(one, level), getattr(other, level), atol=atol, rtol=0)


CONFIGURATIONS = [
    {},
    {"norm": "layer", "activation": "relu", "chunk": 2},
    {"prenorm": False, "norm": "layer"},
    {"feed_forward": False, "softmax_cap": 5.0, "bias": True},
    {"head_layers": 3, "super_node": True},
    {"order": 3, "depth": 2, "chunk": 2},
    {"order": 3, "depth": 2, "super_node": True},
]


@pytest.mark.parametrize("options", CONFIGURATIONS)
@pytest.mark.parametrize("features", [False, True])
def test_permuting_vertices_permutes_the_outputs(options, features):
    model = small_net(**options, **({"edge_vocab": 4, "node_vocab": 3} if features else {}))
    adj, edge_attr, node_attr = random_inputs()
    order = torch.tensor([3, 0, 4, 1, 2])
    extra = (edge_attr, node_attr) if features else ()
    moved = (edge_attr[:, order][:, :, order], node_attr[:, order]) if features else ()
    out, permuted = model(adj, *extra), model(adj[:, order][:, :, order], *moved)
    torch.testing.assert_close(permuted.graph, out.graph, atol=1e-10, rtol=1e-12)
    torch.testing.assert_close(permuted.vertex, out.vertex[:, order], atol=1e-10, rtol=1e-12)
    torch.testing.assert_close(permuted.edge, out.edge[:, order][:, :, order], atol=1e-10, rtol=1e-12)


@pytest.mark.parametrize("options", CONFIGURATIONS)
def test_padding_changes_nothing_and_padded_outputs_are_zero(options):
    model = small_net(edge_vocab=4, node_vocab=3, **options)
    adj, edge_attr, node_attr = random_inputs()
    out = model(adj, edge_attr, node_attr)
    padded = random_inputs(size=8, seed=9)  # rubbish in the padding
    padded[0][:, :5, :5], padded[1][:, :5, :5], padded[2][:, :5] = adj, edge_attr, node_attr
    padded[0][:, 5:], padded[1][:, 5:], padded[2][:, 5:] = 77, -5, 99  # even outside every vocabulary
    mask = torch.arange(8).expand(2, 8) < 5
    wide = model(*padded, mask=mask)
    torch.testing.assert_close(wide.graph, out.graph, atol=1e-10, rtol=1e-12)
    torch.testing.assert_close(wide.vertex[:, :5], out.vertex, atol=1e-10, rtol=1e-12)
    torch.testing.assert_close(wide.edge[:, :5, :5], out.edge, atol=1e-10, rtol=1e-12)
    assert (wide.vertex[:, 5:] == 0).all()
    assert (wide.edge[:, 5:] == 0).all()
    assert (wide.edge[:, :, 5:] == 0).all()


def test_a_graph_is_unaffected_by_its_companions_in_the_batch():
    model = small_net(edge_vocab=4, node_vocab=3)
    inputs = random_inputs(batch=3)
    together = model(*inputs)
    for number in range(3):
        alone = model(*(x[number : number + 1] for x in inputs))
        torch.testing.assert_close(alone.edge[0], together.edge[number], atol=1e-10, rtol=1e-12)


def test_a_fully_padded_graph_is_finite_with_finite_gradients():
    for order in (2, 3):
        model = small_net(order=order, depth=2).train()
        adj, *_ = random_inputs()
        out = model(adj, mask=torch.tensor([[True] * 5, [False] * 5]))
        assert all(getattr(out, level).isfinite().all() for level in LEVELS)
        assert (out.edge[1] == 0).all()
        (out.graph.sum() + out.vertex.sum() + out.edge.sum()).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("size", [1, 4])
def test_a_graph_without_edges_is_finite(order, size):
    out = small_net(order=order, depth=2)(torch.zeros(1, size, size, dtype=torch.long))
    assert all(getattr(out, level).isfinite().all() for level in LEVELS)


@pytest.mark.parametrize("order", [2, 3])
def test_direction_and_self_loops_reach_the_output(order):
    model = small_net(order=order, depth=2)
    path = torch.tensor([[[0, 1, 0], [0, 0, 1], [0, 0, 0]]])
    fork = torch.tensor([[[0, 1, 0], [0, 0, 0], [0, 1, 0]]])
    loop = path.clone()
    loop[0, 0, 0] = 1
    one, other, looped = (model(adj).graph for adj in (path, fork, loop))
    assert (one - other).abs().max() > 1e-6
    assert (one - looped).abs().max() > 1e-6


def test_a_self_loop_differs_from_an_edge():
    embedding = small_net().embedding
    state, _ = embedding(torch.ones(1, 2, 2, dtype=torch.long))
    assert (state[0, 0, 0] - state[0, 0, 1]).abs().max() > 1e-6


def test_a_value_outside_the_vocabulary_is_named_with_its_place():
    adj, edge_attr, node_attr = random_inputs()
    model = small_net(edge_vocab=4, node_vocab=3)
    edge_attr[1, 2, 3] = 17
    with pytest.raises(BadInput, match=r"edge_attr.* holds 17 at \(1, 2, 3\).*0 to 3"):
        model(adj, edge_attr, node_attr)
    edge_attr[1, 2, 3], node_attr[0, 4] = 0, -2
    with pytest.raises(BadInput, match=r"node_attr.* holds -2 at \(0, 4\)"):
        model(adj, edge_attr, node_attr)
    with pytest.raises(BadInput, match=r"adj holds 2 at"):
        model(adj * 2, edge_attr, node_attr.clamp(min=0))


def test_a_fraction_is_not_rounded_into_the_vocabulary():
    adj, edge_attr, _ = random_inputs()
    with pytest.raises(BadInput, match=r"holds 0\.5"):
        small_net(edge_vocab=4)(adj, edge_attr.double() * 0 + 0.5)


def test_vertex_features_bring_the_super_node_by_themselves():
    model = small_net(node_vocab=3)
    adj, _, node_attr = random_inputs()
    assert model.has_super_node
    assert not small_net().has_super_node
    out = model(adj, node_attr=node_attr)
    assert out.vertex.shape == (2, 5, 5)
    assert out.edge.shape == (2, 5, 5, 5)
    other = model(adj, node_attr=(node_attr + 1) % 3)
    assert (out.graph - other.graph).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(torch.zeros(2, 3, 4)), r"square; got \(2, 3, 4\)"),
        (lambda m: m(torch.zeros(3, 3)), r"square; got \(3, 3\)"),
        (lambda m: m(torch.zeros(2, 3, 3), mask=torch.ones(2, 4, dtype=torch.bool)), r"\(2, 4\)"),
        (lambda m: m(torch.zeros(2, 3, 3), mask=torch.ones(2, 3)), "bool"),
        (lambda m: m(torch.zeros(2, 3, 3), torch.zeros(2, 3, 3)), "set edge_vocab"),
        (lambda m: m(torch.zeros(2, 3, 3), node_attr=torch.zeros(2, 3)), "set node_vocab"),
        (lambda m: m(torch.zeros(2, 3, 3), noisy=torch.zeros(2, 3, 3), log_snr=torch.zeros(2)), "diffusion=True"),
    ],
)
def test_bad_inputs_are_refused_by_shape(call, message):
    with pytest.raises(BadInput, match=message):
        call(small_net())


@pytest.mark.parametrize(
    "options",
    [
        {"dim": 10, "heads": 4},
        {"order": 4},
        {"levels": ("face",)},
        {"levels": ()},
        {"norm": "batch"},
        {"activation": "swish"},
        {"head_layers": 0},
        {"edge_vocab": 0},
        {"order": 3, "diffusion": True},
    ],
)
def test_bad_options_are_refused_at_construction(options):
    with pytest.raises(BadInput):
        small_net(**options)


def test_missing_features_are_refused():
    with pytest.raises(BadInput, match="needs edge_attr"):
        small_net(edge_vocab=4)(torch.zeros(1, 3, 3))


@pytest.mark.parametrize("order", [2, 3])
def test_a_fresh_block_is_the_identity(order):
    block = PivotalAttentionBlock(8, 2, order=order)
    state = torch.randn(2, *([4] * order), 8)
    torch.testing.assert_close(block(state), state, atol=0, rtol=0)


def test_a_deep_fresh_network_passes_gradients_to_its_first_block():
    torch.manual_seed(0)
    model = FloydNet(dim=8, heads=2, depth=64, levels=("edge",))
    adj, *_ = random_inputs()
    out = model(adj).edge
    assert out.isfinite().all()
    assert out.abs().max() < 20
    out.square().mean().backward()
    first = model.stack.blocks[0]
    assert first.out.weight.grad.abs().max() > 0
    assert first.out.weight.grad.isfinite().all()


def test_dropout_acts_in_training_and_is_off_in_eval():
    model = small_net(dropout=0.5, attention_dropout=0.5)
    adj, *_ = random_inputs()
    assert_outputs_close(model(adj), model(adj), atol=0)
    model.train()
    assert (model(adj).graph - model(adj).graph).abs().max() > 1e-6
    plain = small_net()
    plain.load_state_dict(model.state_dict())
    assert_outputs_close(model.eval()(adj), plain(adj), atol=0)


@pytest.mark.parametrize("options", [{}, {"order": 3, "depth": 2}])
def test_checkpointed_and_chunked_networks_have_the_same_gradients(options):
    plain, frugal = small_net(**options), small_net(checkpoint_blocks=True, chunk=2, **options)
    frugal.load_state_dict(plain.state_dict())
    adj, *_ = random_inputs()
    for model in (plain, frugal):
        model(adj, mask=torch.arange(5).expand(2, 5) < 4).graph.square().sum().backward()
    for one, other in zip(plain.parameters(), frugal.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-8, rtol=1e-9)


def test_checkpointed_dropout_draws_the_same_noise_again():
    adj, *_ = random_inputs()
    gradients = []
    for checkpoint_blocks in (False, True):
        model = small_net(checkpoint_blocks=checkpoint_blocks, dropout=0.3, attention_dropout=0.3).train()
        torch.manual_seed(5)
        model(adj).graph.square().sum().backward()
        gradients.append(model.stack.blocks[0].qkv.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=0)


def test_the_state_survives_a_round_trip_through_a_file():
    model, other = small_net(edge_vocab=4, node_vocab=3), small_net(edge_vocab=4, node_vocab=3)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    for parameter in other.parameters():
        parameter.data.zero_()
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert_outputs_close(model(*random_inputs()), other(*random_inputs()), atol=0)


@pytest.mark.parametrize("order", [2, 3])
def test_autocast_in_bfloat16_is_finite_and_near(order):
    model = small_net(order=order, depth=2, chunk=2).float()
    adj, *_ = random_inputs()
    exact = model(adj).graph
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(adj)
        loss = out.graph.float().square().mean()
    loss.backward()
    assert out.graph.isfinite().all()
    assert (out.graph.float() - exact).norm() < 0.1 * exact.norm()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_byte_budget_refuses_a_large_graph_before_it_allocates():
    model = FloydNet(dim=8, heads=2, depth=1, byte_budget=2_000_000)
    with pytest.raises(MemoryEstimateError, match=r"chunk=\d+ would fit|not even"):
        model(torch.zeros(1, 128, 128))


def test_adjacency_readout_reads_edges_only():
    model = small_net(readout_adjacency=True)
    adj, *_ = random_inputs()
    edge = model(adj).edge
    bias = model.heads["edge"][-1].bias
    torch.testing.assert_close(edge[adj == 0], bias.expand_as(edge[adj == 0]))
    assert (model(torch.zeros_like(adj)).vertex == model.heads["vertex"][-1].bias).all()


def test_a_ragged_pyg_batch_gives_each_graph_what_it_gets_alone():
    model = small_net(edge_vocab=(4, 2), node_vocab=3)
    generator = torch.Generator().manual_seed(0)
    graphs = []
    for size in (1, 5, 3):
        adj = torch.rand(size, size, generator=generator) > 0.4
        edge_index = adj.nonzero().T
        attributes = torch.stack([torch.randint(n, (edge_index.shape[1],), generator=generator) for n in (4, 2)], dim=1)
        nodes = torch.randint(3, (size, 1), generator=generator)
        graphs.append(Data(x=nodes, edge_index=edge_index, edge_attr=attributes, num_nodes=size))
    out = model.forward_pyg(Batch.from_data_list(graphs))
    vertex, edge = 0, 0
    for number, graph in enumerate(graphs):
        alone = model.forward_pyg(graph)
        torch.testing.assert_close(out.graph[number], alone.graph[0], atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(out.vertex[vertex : vertex + graph.num_nodes], alone.vertex, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(out.edge[edge : edge + graph.num_edges], alone.edge, atol=1e-10, rtol=1e-10)
        vertex, edge = vertex + graph.num_nodes, edge + graph.num_edges


def test_duplicate_edges_merge_when_they_agree_and_are_refused_when_not():
    edge_index = torch.tensor([[0, 0, 1], [1, 1, 0]])
    dense = batch_pyg(Data(edge_index=edge_index, edge_attr=torch.tensor([2, 2, 1]), num_nodes=2))
    assert dense.adj[0].tolist() == [[0, 1], [1, 0]]
    assert dense.edge_attr[0, :, :, 0].tolist() == [[0, 2], [1, 0]]
    with pytest.raises(BadInput, match="0 -> 1 occurs more than once"):
        batch_pyg(Data(edge_index=edge_index, edge_attr=torch.tensor([2, 3, 1]), num_nodes=2))


def test_floating_pyg_features_are_refused():
    with pytest.raises(BadInput, match="quantise"):
        batch_pyg(Data(x=torch.rand(2, 3), edge_index=torch.zeros(2, 0, dtype=torch.long)))


def test_a_pyg_graph_without_edges_runs():
    out = small_net().forward_pyg(Data(edge_index=torch.zeros(2, 0, dtype=torch.long), num_nodes=3))
    assert out.edge.shape == (0, 5)
    assert out.vertex.shape == (3, 5)
    assert out.graph.isfinite().all()


def test_networkx_graphs_and_arrays_give_the_same_batch():
    graph = nx.gnp_random_graph(6, 0.5, seed=1, directed=True)
    graph.add_edge(2, 2)
    array = nx.to_numpy_array(graph, dtype=int)
    dense = batch_graphs([graph, array, torch.tensor(array), np.zeros((2, 2))])
    assert (dense.adj[0] == dense.adj[1]).all()
    assert (dense.adj[0] == dense.adj[2]).all()
    assert dense.adj[0, 2, 2] == 1
    assert dense.mask.sum(dim=1).tolist() == [6, 6, 6, 2]


def test_networkx_attributes_come_along():
    graph = nx.Graph()
    graph.add_node("a", kind=2)
    graph.add_node("b", kind=0)
    graph.add_edge("a", "b", bond=3)
    dense = batch_graphs([graph], edge_feature="bond", node_feature="kind")
    assert dense.edge_attr[0, :, :, 0].tolist() == [[0, 3], [3, 0]]
    assert dense.node_attr[0, :, 0].tolist() == [2, 0]
    with pytest.raises(BadInput, match="no attribute 'weight'"):
        batch_graphs([graph], edge_feature="weight")


def test_several_graphs_of_networkx_need_at_least_one():
    with pytest.raises(BadInput):
        batch_graphs([])
