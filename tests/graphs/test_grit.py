import itertools
import json

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric import seed_everything
from torch_geometric.data import Batch, Data
from torch_geometric.datasets import FakeDataset
from torch_geometric.loader import DataLoader
from torch_geometric.utils import from_networkx

from heliograph.data.wl_pairs import rook_pair
from heliograph.errors import BadInput, MemoryEstimateError
from heliograph.graphs.core.encodings import RRWP, DegreeEncoding, cached
from heliograph.graphs.core.message_passing import count_parameters
from heliograph.graphs.core.states import PairBatch
from heliograph.graphs.core.support import complete_support
from heliograph.graphs.core.train import FittedModel, fit, load_model, predict
from heliograph.graphs.grit import GRIT, GRITLayer, pairs
from heliograph.graphs.grit.pairs import PairLayout, estimate_bytes
from tests.graphs.core.graphs_for_tests import odd_batches

C, H, K = 8, 2, 5
BACKENDS = ("dense", "edges")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def model_of(**options):
    options = {"layers": 2, "hidden": C, "heads": H, "walk_steps": K, "attention_dropout": 0.0, **options}
    return GRIT(2, node_types=5, edge_types=3, **options)


def graph_of(edge_index, size, seed=0):
    random = torch.Generator().manual_seed(seed)
    edges = edge_index.shape[1]
    return Data(
        x=torch.randint(0, 5, (size,), generator=random),
        edge_index=edge_index,
        edge_attr=torch.randint(0, 3, (edges,), generator=random),
    )


def path_of(size, seed=0):
    steps = torch.arange(size - 1)
    return graph_of(torch.stack([torch.cat([steps, steps + 1]), torch.cat([steps + 1, steps])]), size, seed)


def rows_of(sizes, dtype=torch.float64):
    """A layer's inputs on complete supports of these sizes."""
    batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    support = complete_support(len(batch), batch)
    x, e = torch.randn(len(batch), C, dtype=dtype), torch.randn(support.num_edges, C, dtype=dtype)
    return support, x, e, torch.rand(len(batch), 1, dtype=dtype)


# --- the layer ---


@pytest.mark.parametrize("training", [True, False])
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_back_ends_agree_in_values_gradients_and_statistics(training, sizes):
    support, x, e, log_degree = rows_of(sizes)
    inputs = [x.requires_grad_(), e.requires_grad_()]
    found = []
    for backend in BACKENDS:
        torch.manual_seed(1)
        layer = GRITLayer(C, H).double().train(training)
        layout = PairLayout.of(support, backend, hidden=C)
        out = layer.exchange(x, e, layout, log_degree, keep_weights=True)
        total = out[0].square().sum() + out[1].pow(3).sum()
        found.append([*out, *torch.autograd.grad(total, [*inputs, *layer.parameters()]), *layer.buffers()])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, atol=1e-9, rtol=1e-7)


def test_graphs_of_unlike_sizes_lie_in_blocks_of_their_own():
    support, *_ = rows_of([2, 30, 3, 28, 1])
    layout = PairLayout.of(support, "dense", hidden=C)
    assert [(block.graphs, block.size) for block in layout.blocks] == [(2, 30), (1, 3), (1, 2), (1, 1)]
    assert [int(block.mask.sum()) for block in layout.blocks] == [58, 3, 2, 1]
    assert len(set(layout.pair_place.tolist())) == support.num_edges
    one_large = estimate_bytes([200, *[20] * 31], C, 1)
    assert one_large["dense"] * pairs.KEPT["edges"] == one_large["edges"] * pairs.KEPT["dense"]


def test_pair_statistics_are_those_of_all_real_pairs_of_the_batch():
    support, x, e, log_degree = rows_of([9, 2, 3])
    layer = GRITLayer(C, H).double()
    seen = []
    layer.pair_norm.register_forward_hook(lambda _, given, __: seen.append(given[0].detach()))
    layout = PairLayout.of(support, "dense", hidden=C)
    assert len(layout.blocks) == 3
    _, new_e, _ = layer.exchange(x, e, layout, log_degree)
    assert seen[0].shape == (81 + 4 + 9, C)
    torch.testing.assert_close(new_e.mean(0), torch.zeros(C, dtype=torch.float64), atol=1e-9, rtol=0)
    expected = 0.1 * seen[0].mean(0)
    torch.testing.assert_close(layer.pair_norm.running_mean, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_changes_nothing_and_is_zero(backend):
    layer = GRITLayer(C, H).double()
    x, e, log_degree = torch.randn(2, 4, C), torch.randn(2, 4, 4, C), torch.rand(2, 4)
    x, e, log_degree = x.double(), e.double(), log_degree.double()
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]])

    def wider(garbage):
        wide_x = torch.full((2, 6, C), garbage, dtype=torch.float64)
        wide_e = torch.full((2, 6, 6, C), garbage, dtype=torch.float64)
        wide_x[:, :4], wide_e[:, :4, :4] = x, e
        pad = torch.nn.functional.pad
        return wide_x, wide_e, pad(mask, (0, 2)), pad(log_degree, (0, 2), value=garbage)

    torch.manual_seed(1)
    expected = layer(x, e, mask, log_degree, backend)
    for garbage in (0.0, 1e6, torch.nan):
        found_x, found_e = layer(*wider(garbage), backend)
        torch.testing.assert_close(found_x[:, :4], expected[0])
        torch.testing.assert_close(found_e[:, :4, :4], expected[1])
        assert found_x[:, 4:].eq(0).all()
        assert found_e[:, 4:].eq(0).all()
        assert found_e[1, 3].eq(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_renumbering_vertices_renumbers_both_states(backend):
    layer = GRITLayer(C, H).double()
    x, e, log_degree = torch.randn(1, 6, C).double(), torch.randn(1, 6, 6, C).double(), torch.rand(1, 6).double()
    order = torch.randperm(6)
    found_x, found_e = layer(x, e, None, log_degree, backend)
    moved_x, moved_e = layer(x[:, order], e[:, order][:, :, order], None, log_degree[:, order], backend)
    torch.testing.assert_close(moved_x, found_x[:, order])
    torch.testing.assert_close(moved_e, found_e[:, order][:, :, order])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    support, x, e, log_degree = rows_of([3, 1, 2])
    layer, layout = GRITLayer(C, H).double(), PairLayout.of(support, backend, hidden=C)

    def run(x, e):
        return layer.exchange(x, e, layout, log_degree)[:2]

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), e.requires_grad_()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_exact_zeros_have_finite_gradients(backend):
    layer = GRITLayer(C, H)
    x, e = torch.zeros(2, 3, C, requires_grad=True), torch.zeros(2, 3, 3, C, requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    torch.stack([part.sum() for part in layer(x, e, mask, torch.zeros(2, 3), backend)]).sum().backward()
    assert x.grad.isfinite().all()
    assert e.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_attention_is_over_sources():
    support, x, e, log_degree = rows_of([4])
    layer = GRITLayer(C, H).double()
    for backend in BACKENDS:
        weights = layer.exchange(x, e, PairLayout.of(support, backend, hidden=C), log_degree, keep_weights=True)[2]
        by_target = weights.unflatten(0, (4, 4)).sum(1)
        torch.testing.assert_close(by_target, torch.ones(4, H, dtype=torch.float64))
        # a change of e[i, j] reaches vertex i alone, but for the norms
        layer.eval()
        other = e.clone()
        other[1 * 4 + 2] += 1
        layout = PairLayout.of(support, backend, hidden=C)
        first, second = (layer.exchange(x, pair, layout, log_degree)[0] for pair in (e, other))
        assert ((first - second).abs().sum(-1) > 1e-9).tolist() == [False, True, False, False]


def test_a_high_degree_can_be_read_from_a_layer_with_a_scaler():
    support, x, e, log_degree = rows_of([3])
    layout = PairLayout.of(support, hidden=C)
    with_scaler, without = GRITLayer(C, H).double(), GRITLayer(C, H, degree_scaler=False).double()
    changed = [
        layer.exchange(x, e, layout, log_degree)[0] - layer.exchange(x, e, layout, log_degree.flip(0))[0]
        for layer in (with_scaler, without)
    ]
    assert not changed[0].eq(0).all()
    assert changed[1].eq(0).all()
    with pytest.raises(BadInput, match="log_degree"):
        with_scaler(*PairBatch.from_rows(x, e, support).masked().__dict__.values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("whole", [True, False])
def test_bfloat16_stays_near_float32(backend, whole):
    layer = GRITLayer(16, H).eval()
    x, e, log_degree = torch.randn(2, 5, 16), torch.randn(2, 5, 5, 16), torch.rand(2, 5)
    expected = layer(x, e, None, log_degree, backend)
    if whole:
        small = layer.bfloat16()(x.bfloat16(), e.bfloat16(), None, log_degree.bfloat16(), backend)
        assert small[0].dtype == torch.bfloat16
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            small = layer(x, e, None, log_degree, backend)
    for first, second in zip(small, expected, strict=True):
        torch.testing.assert_close(first.float(), second, atol=0.15, rtol=0.1)


def test_frozen_pairs_come_back_as_they_are():
    support, x, e, log_degree = rows_of([3, 2])
    layer = GRITLayer(C, H, update_pairs=False).double()
    assert layer.exchange(x, e, PairLayout.of(support, hidden=C), log_degree)[1] is e
    assert not any("pair_out" in name or "pair_norm" in name for name, _ in layer.named_parameters())


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"heads": 3}, "divide"),
        ({"dropout": 1.0}, "share"),
        ({"attention_dropout": -0.1}, "share"),
        ({"clamp": 0.0}, "positive"),
    ],
)
def test_a_layer_refuses_what_makes_no_sense(options, word):
    with pytest.raises(BadInput, match=word):
        GRITLayer(**{"hidden": C, "heads": H, **options})


def test_a_layer_names_shapes_that_do_not_fit():
    layer = GRITLayer(C, H)
    good = torch.zeros(1, 3, C), torch.zeros(1, 3, 3, C), torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3)
    bad = (torch.zeros(1, 3, 4), torch.zeros(1, 3, 2, C), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 3, 1))
    layer(*good)
    for place, value in enumerate(bad):
        with pytest.raises(BadInput, match="must be"):
            layer(*good[:place], value, *good[place + 1 :])
    with pytest.raises(BadInput, match="backend"):
        layer(*good, "sparse")


# --- the model ---


def test_it_has_the_published_number_of_parameters():
    published = GRIT(1, node_types=21, edge_types=4, hidden=64, layers=10, heads=8, walk_steps=21, pair_outputs=True)
    assert count_parameters(published) == 473_473
    # the last layer's unused update of pairs: a linear map and a norm
    assert 473_473 - count_parameters(published.with_options(pair_outputs=False)) == 64 * 64 + 64 + 2 * 64


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pool", ["sum", "mean", "max", None])
@settings(max_examples=8, deadline=None)
@given(sample=odd_batches())
def test_a_graph_is_answered_alone_as_in_a_batch_in_any_order(pool, backend, sample):
    model = model_of(pool=pool, backend=backend).eval()
    graphs = [graph_of(edges, size, seed) for seed, (edges, size) in enumerate(sample[2])]
    alone = [model(graph) for graph in graphs]
    torch.testing.assert_close(model(Batch.from_data_list(graphs)), torch.cat(alone), atol=1e-5, rtol=1e-4)
    reverse = model(Batch.from_data_list(graphs[::-1]))
    torch.testing.assert_close(reverse, torch.cat(alone[::-1]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("positions", ["rrwp", "rwse", "distance"])
@settings(max_examples=8, deadline=None)
@given(sample=odd_batches(most=1))
def test_renumbering_vertices_and_edges_renumbers_the_answer(positions, sample):
    (edges, size), *_ = sample[2]
    model, graph = model_of(pool=None, positions=positions).eval(), graph_of(edges, size)
    order, shuffle = torch.randperm(size), torch.randperm(edges.shape[1])
    place = torch.argsort(order)
    moved = Data(x=graph.x[order], edge_index=place[edges][:, shuffle], edge_attr=graph.edge_attr[shuffle])
    torch.testing.assert_close(model(moved), model(graph)[order], atol=1e-5, rtol=1e-4)


def test_pairs_carry_the_walk_from_their_target_to_their_source():
    # a star: from a leaf the first step leads to the centre for sure, from the centre to one of three leaves
    graph = graph_of(torch.tensor([[0, 0, 0, 1, 2, 3], [1, 2, 3, 0, 0, 0]]), 4)
    model = model_of()
    seen = []
    model.relative.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    model.encode(graph)
    walks = seen[0].unflatten(0, (4, 4))
    assert walks[1, 0, 1] == 1
    assert walks[0, 1, 1] == pytest.approx(1 / 3)


def test_bonds_reach_the_pair_whose_target_they_point_to():
    graph = graph_of(torch.tensor([[0, 0], [1, 1]]), 3)  # two parallel edges from 0 to 1
    model = model_of(positions="rwse", layers=1, update_pairs=False, pair_outputs=True)
    _, e = model.encode_pairs(graph)
    table = model.edge_stem.embeddings[0].weight
    expected = torch.zeros(9, C)
    expected[1 * 3 + 0] = table[graph.edge_attr].sum(0)
    torch.testing.assert_close(e, expected)


def test_a_given_encoding_is_used_and_a_missing_or_other_one_computed():
    graph = path_of(4)
    for positions in ("rrwp", "rwse", "distance"):
        model = model_of(positions=positions).eval()
        torch.testing.assert_close(model(model.encoding(graph)), model(graph))
    model = model_of().eval()
    torch.testing.assert_close(model(RRWP(K + 2)(graph)), model(graph))
    wrong = model.encoding(graph)
    wrong.rrwp = torch.rand(16, K)
    assert not torch.allclose(model.encode(wrong), model.encode(graph))
    wrong.rrwp = wrong.rrwp[:3]
    with pytest.raises(BadInput, match="3 rows of its encoding"):
        model(wrong)


def test_encodings_from_the_cache_are_collated_by_pyg(tmp_path):
    model = model_of().eval()
    graphs = [path_of(size, size) for size in (1, 5, 3)]
    kept = cached(graphs, [model.encoding], folder=tmp_path)
    batch = next(iter(DataLoader(kept, batch_size=3)))
    assert batch.rrwp.shape == (1 + 25 + 9, K)
    torch.testing.assert_close(model(batch), torch.cat([model(graph) for graph in graphs]), atol=1e-5, rtol=1e-4)


def test_degrees_are_those_of_the_graph_and_loops_and_weights_count_as_documented():
    graph = graph_of(torch.tensor([[0, 1, 1], [1, 0, 1]]), 3)
    assert DegreeEncoding()(graph).log_degree.exp().sub(1).round().flatten().tolist() == [1, 2, 0]
    model = model_of().eval()
    heavy = graph.clone()
    heavy.edge_weight = torch.tensor([1.0, 1.0, 9.0])
    assert not torch.allclose(model.encode(heavy), model.encode(graph))
    heavy.edge_weight = torch.tensor([2.0, 5.0, 5.0])  # no walk differs
    torch.testing.assert_close(model(heavy), model(graph))


@pytest.mark.parametrize("edges", [torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 1, dtype=torch.long)])
def test_a_single_vertex_trains(edges):
    model = model_of()
    model(graph_of(edges, 1)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_graph_without_vertices_pools_to_zero():
    model = model_of().eval()
    graphs = [path_of(3), graph_of(torch.zeros(2, 0, dtype=torch.long), 0), path_of(2)]
    answers = model(Batch.from_data_list(graphs))
    torch.testing.assert_close(answers[1], model.head(torch.zeros(C)))
    torch.testing.assert_close(answers[[0, 2]], torch.cat([model(graphs[0]), model(graphs[2])]))


def test_evaluation_is_deterministic_and_leaves_statistics_alone():
    model, graph = model_of(dropout=0.3, attention_dropout=0.5), path_of(6)
    model.eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(model(graph), model(graph))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.train()
    assert not torch.equal(model.encode(graph), model.encode(graph))


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_maps_have_a_row_for_each_target(backend):
    model, graph = model_of(layers=3, backend=backend, attention_dropout=0.5), path_of(5)
    maps = model.attention_maps(graph)
    assert [m.shape for m in maps] == [(H, 5, 5)] * 3
    for m in maps:
        torch.testing.assert_close(m.sum(-1), torch.ones(H, 5))
    assert model.training
    with pytest.raises(BadInput, match="one graph"):
        model.attention_maps(Batch.from_data_list([graph, graph]))


def test_pair_outputs_must_be_asked_for():
    graph = path_of(4)
    x, e = model_of(pair_outputs=True).encode_pairs(graph)
    assert (x.shape, e.shape) == ((4, C), (16, C))
    with pytest.raises(BadInput, match="pair_outputs=True"):
        model_of().encode_pairs(graph)


def test_it_separates_pairs_that_message_passing_confuses_but_not_rook_from_shrikhande():
    model = GRIT(2, layers=2, hidden=16, heads=2, walk_steps=8).double().eval()
    pair = nx.complete_bipartite_graph(3, 3), nx.circular_ladder_graph(3)
    first, second = (model.encode(from_networkx(graph)).sum(0) for graph in pair)
    assert not torch.allclose(first, second, rtol=1e-4)
    rook = rook_pair()
    first, second = (model.encode(from_networkx(graph)).sum(0) for graph in (rook.first, rook.second))
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-6)


def test_bfloat16_autocast_gives_answers_near_float32():
    graph = path_of(6)
    for backend in BACKENDS:
        model = model_of(hidden=16, backend=backend).eval()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            small = model(graph)
        torch.testing.assert_close(small.float(), model(graph), atol=0.2, rtol=0.2)


def test_it_trains_in_a_loop_of_pyg_on_pyg_data():
    seed_everything(0)  # the data set is drawn from the global generators
    graphs = FakeDataset(8, avg_num_nodes=10, num_classes=2, edge_dim=3)
    model = GRIT(2, in_dim=graphs.num_features, edge_dim=3, layers=2, hidden=16, heads=2, walk_steps=4)
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


def test_it_is_fitted_saved_and_loaded(tmp_path):
    graphs = [path_of(2 + n % 4, n) for n in range(12)]
    for graph in graphs:
        graph.y = torch.tensor([float(graph.num_nodes)])
    fitted = fit(GRIT(1, node_types=5, edge_types=3, layers=1, hidden=8, heads=2, walk_steps=4), graphs, epochs=2)
    fitted.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert isinstance(again, FittedModel)
    assert torch.equal(predict(again, graphs), predict(fitted, graphs))


def test_a_model_comes_back_from_its_description():
    model = model_of(pool=None, positions="distance", clamp=None, update_pairs=False, backend="edges")
    again = GRIT.from_description(json.loads(json.dumps(model.describe())))
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    assert torch.equal(again.eval()(path_of(4)), model.eval()(path_of(4)))


@pytest.mark.parametrize(
    "options",
    [
        {"heads": 3},
        {"layers": 0},
        {"walk_steps": 1},
        {"walk_steps": 2, "positions": "distance"},
        {"positions": "laplacian"},
        {"pool": "median"},
        {"backend": "sparse"},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(BadInput):
        model_of(**options)


def test_bad_graphs_are_named():
    model, graph = model_of(), path_of(3)
    for wrong, word in ((torch.tensor([[0], [5]]), "holds 5"), (torch.tensor([[-1], [0]]), "holds -1")):
        bad = graph_of(wrong, 3)
        with pytest.raises(BadInput, match=word):
            model(bad)
    bad = graph.clone()
    bad.edge_weight = torch.tensor([1.0, 1.0, torch.nan, 1.0])
    with pytest.raises(BadInput, match="edge 2 weighs nan"):
        model(bad)
    bad = graph.clone()
    bad.edge_attr = bad.edge_attr[:2]
    with pytest.raises(BadInput, match="2 rows for 4 edges"):
        model(bad)
    joined = Batch.from_data_list([graph, graph])
    joined.edge_index[1, 0] = 4
    with pytest.raises(BadInput, match="joins two graphs"):
        model(joined)
    with pytest.raises(BadInput, match="no edge_index"):
        model(Data(x=torch.tensor([1, 2])))


# --- memory ---


def test_pairs_that_do_not_fit_are_refused_before_the_first_layer(monkeypatch):
    model, graph = model_of(layers=4), path_of(60)
    monkeypatch.setattr(pairs, "UNQUESTIONED_BYTES", 0)
    need = estimate_bytes([60], C, 4)["dense"]
    assert need == 60 * 60 * C * 4 * 4 * pairs.KEPT["dense"]
    monkeypatch.setattr(pairs, "available_bytes", lambda device: need - 1)
    with pytest.raises(MemoryEstimateError, match=r"3,600 pairs of 1 graphs \(largest: 60 vertices\).*smaller batches"):
        model(graph)
    with torch.no_grad():  # one layer at a time
        model(graph)
    monkeypatch.setattr(pairs, "available_bytes", lambda device: need)
    model(graph)


def test_where_padding_does_not_fit_the_edge_list_may(monkeypatch):
    monkeypatch.setattr(pairs, "UNQUESTIONED_BYTES", 0)
    support, *_ = rows_of([10, 8, 8, 8])
    need = estimate_bytes([10, 8, 8, 8], C, 1)
    assert need["edges"] < need["dense"] < 2 * need["edges"]
    assert PairLayout.of(support, hidden=C).blocks
    monkeypatch.setattr(pairs, "available_bytes", lambda device: need["edges"])
    assert not PairLayout.of(support, hidden=C).blocks


def test_the_estimate_is_near_what_autograd_keeps():
    model = model_of(hidden=32, layers=4, pair_outputs=True)
    sizes = [12, 11, 10, 12, 9, 12, 11, 10]
    batch = Batch.from_data_list([path_of(size, seed) for seed, size in enumerate(sizes)])
    for backend in BACKENDS:
        model.backend = backend
        kept = {}

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(batch)
        total = sum(size for size, _ in kept.values())
        assert total == pytest.approx(estimate_bytes(sizes, 32, 4)[backend], rel=0.25)


def test_graphs_of_one_size_are_laid_out_without_copies():
    same, *_ = rows_of([5, 5, 5])
    other, *_ = rows_of([5, 4, 5])
    assert PairLayout.of(same, "dense", hidden=C).pair_place is None
    assert PairLayout.of(other, "dense", hidden=C).pair_place is not None


def test_sizes_of_all_kinds_are_laid_out_without_overlap():
    for sizes in itertools.product((0, 1, 3, 9), repeat=3):
        batch = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
        support = complete_support(len(batch), batch)
        layout = PairLayout.of(support, "dense", hidden=C)
        if sum(sizes) and layout.pair_place is not None:  # None where all graphs have one size
            assert len(set(layout.pair_place.tolist())) == sum(n * n for n in sizes)
            assert len(set(layout.vertex_place.tolist())) == sum(sizes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gpu_gives_the_numbers_of_the_cpu(backend):
    model = model_of(backend=backend)
    batch = Batch.from_data_list([path_of(size, size) for size in (3, 11, 1)])
    expected = model(batch)
    found = model.cuda()(batch.cuda())
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)
