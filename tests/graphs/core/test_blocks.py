import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch_geometric.data import Data
from torch_geometric.nn import GATv2Conv, GCNConv, GINConv, GINEConv
from torch_geometric.testing import assert_module

from heliograph.errors import BadInput
from heliograph.graphs.core.blocks import (
    EdgeStem,
    GatedGCNMixer,
    GCNMixer,
    GINMixer,
    NodeBlock,
    NodeStem,
    PyGMixer,
    halving_head,
    mlp_head,
)
from heliograph.graphs.core.encodings import RWSE

from .graphs_for_tests import odd_graphs

C = 6
MIXERS = (GCNMixer, GINMixer, GatedGCNMixer)


def first(out):
    return out[0] if isinstance(out, tuple) else out


class Swapped(nn.Module):
    """A mixer under the argument names that PyTorch Geometric's conformance test permutes."""

    def __init__(self, mixer):
        super().__init__()
        self.mixer = mixer

    def forward(self, x, edge_index, edge_attr=None):
        return first(self.mixer(x, edge_index, edge_attr))


@pytest.mark.parametrize("edges", [False, True])
@pytest.mark.parametrize("kind", MIXERS)
def test_mixers_pass_pyg_conformance(kind, edges):
    x, edge_index = torch.randn(5, C), torch.tensor([[0, 1, 2, 3, 0, 1, 1], [1, 0, 3, 2, 0, 2, 2]])
    extra = {"edge_attr": torch.randn(7, C)} if edges else {}
    assert_module(
        Swapped(kind(C, edges)), x, edge_index, expected_size=(5, C), test_sparse_layouts=[], atol=1e-5, **extra
    )


@settings(max_examples=25, deadline=None)
@given(odd_graphs())
def test_gcn_equals_pyg_on_odd_graphs(sample):
    edge_index, size = sample
    ours, theirs = GCNMixer(C), GCNConv(C, C)
    theirs.lin.weight, theirs.bias = ours.linear.weight, ours.bias
    nn.init.normal_(ours.bias)
    x = torch.randn(size, C)
    torch.testing.assert_close(ours(x, edge_index), theirs(x, edge_index), atol=1e-5, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(odd_graphs())
def test_gin_equals_pyg_with_and_without_edges(sample):
    edge_index, size = sample
    x, edge = torch.randn(size, C), torch.randn(edge_index.shape[1], C)
    plain, lined = GINMixer(C, epsilon=0.3), GINMixer(C, True, epsilon=0.3)
    theirs = GINConv(plain.mlp, eps=0.3), GINEConv(lined.mlp, eps=0.3)  # both draw new weights for the MLP they share
    torch.testing.assert_close(plain(x, edge_index), theirs[0](x, edge_index))
    torch.testing.assert_close(lined(x, edge_index, edge), theirs[1](x, edge_index, edge))


@settings(max_examples=25, deadline=None)
@given(odd_graphs(), st.booleans())
def test_gcn_with_edges_and_gatedgcn_equal_their_equations(sample, degree_norm):
    edge_index, size = sample
    pairs = edge_index.t().tolist()
    x, edge = torch.randn(size, C), torch.randn(len(pairs), C)
    gcn, gated = GCNMixer(C, True, degree_norm), GatedGCNMixer(C, True)
    degree = [max(1, sum(v == own for _, v in pairs)) for own in range(size)]
    summed, above, below = (torch.zeros(size, C) for _ in range(3))
    renewed = torch.zeros(len(pairs), C)
    for number, (u, v) in enumerate(pairs):
        share = (degree[u] * degree[v]) ** -0.5 if degree_norm else 1.0
        summed[v] += share * torch.relu(gcn.linear(x[u]) + edge[number])
        renewed[number] = gated.gate_edge(edge[number]) + gated.gate_target(x[v]) + gated.gate_source(x[u])
        below[v] += renewed[number].sigmoid()
        above[v] += renewed[number].sigmoid() * gated.sent(x[u])
    torch.testing.assert_close(gcn(x, edge_index, edge), summed + gcn.bias, atol=1e-5, rtol=1e-4)
    new_x, new_edge = gated(x, edge_index, edge)
    torch.testing.assert_close(new_x, gated.own(x) + above / (below + 1e-6), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(new_edge, renewed, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("edges", [False, True])
@pytest.mark.parametrize("kind", MIXERS)
def test_gradcheck(kind, edges):
    mixer = kind(3, edges).double()
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    edge_index = torch.tensor([[0, 1, 2, 2, 0], [1, 0, 1, 1, 0]])
    edge = torch.randn(5, 3, dtype=torch.float64, requires_grad=edges)
    assert torch.autograd.gradcheck(lambda x, e: mixer(x, edge_index, e if edges else None), (x, edge))


@pytest.mark.parametrize("edges", [False, True])
@pytest.mark.parametrize("kind", MIXERS)
def test_bfloat16_stays_close_to_float32(kind, edges):
    mixer = kind(C, edges)
    x, edge = torch.randn(6, C), torch.randn(9, C)
    edge_index = torch.randint(0, 6, (2, 9))
    exact = first(mixer(x, edge_index, edge if edges else None))
    small = first(mixer.bfloat16()(x.bfloat16(), edge_index, edge.bfloat16() if edges else None))
    assert small.dtype == torch.bfloat16
    torch.testing.assert_close(small.float(), exact, atol=0.15, rtol=0.1)


@pytest.mark.parametrize("kind", MIXERS)
def test_without_edges_a_vertex_keeps_to_itself(kind):
    mixer, none = kind(C, True), torch.zeros(2, 0, dtype=torch.long)
    x = torch.randn(3, C)
    together = first(mixer(x, none, torch.zeros(0, C)))
    alone = torch.cat([first(mixer(row[None], none, torch.zeros(0, C))) for row in x])
    torch.testing.assert_close(together, alone)
    assert together.isfinite().all()


def test_a_missing_edge_state_is_named():
    with pytest.raises(BadInput, match="GINMixer"):
        GINMixer(C, True)(torch.zeros(2, C), torch.zeros(2, 0, dtype=torch.long))


def test_pyg_layers_serve_as_mixers():
    x, edge_index, edge = torch.randn(4, C), torch.tensor([[0, 1], [1, 2]]), torch.randn(2, C)
    with_edges, without = PyGMixer(GATv2Conv(C, C, edge_dim=C)), PyGMixer(GCNConv(C, C))
    assert with_edges.edge_features
    assert not without.edge_features
    assert not torch.equal(with_edges(x, edge_index, edge), with_edges(x, edge_index, edge + 1))
    assert torch.equal(without(x, edge_index, edge), without(x, edge_index))


@settings(max_examples=32, deadline=None)
@given(
    kind=st.sampled_from(MIXERS),
    norm=st.sampled_from(["batch", "layer", None]),
    dropout=st.sampled_from([0.0, 0.3]),
    residual=st.booleans(),
    feed_forward=st.booleans(),
    edges=st.booleans(),
)
def test_the_parts_of_a_block_are_independent(kind, norm, dropout, residual, feed_forward, edges):
    block = NodeBlock(kind(C, edges), C, norm, dropout, residual, feed_forward, edges).eval()
    names = {name.split(".")[0] for name, _ in block.named_parameters()}
    assert ("feed_forward" in names) == feed_forward
    assert ("norm_mixed" in names) == (norm is not None)
    assert ("norm_before" in names) == (norm is not None and feed_forward)
    assert ("norm_edge" in names) == (norm is not None and edges and kind is GatedGCNMixer)
    x, edge_index, edge = torch.randn(4, C), torch.tensor([[0, 1, 3], [1, 2, 3]]), torch.randn(3, C)
    out, new_edge = block(x, edge_index, edge if edges else None)
    assert out.shape == (4, C)
    assert (new_edge is None) == (not edges)
    if edges:
        assert torch.equal(new_edge, edge) == (kind is not GatedGCNMixer)
    if norm is None and not feed_forward:  # the equation itself
        mixed = torch.relu(first(block.mixer(x, edge_index, edge if edges else None)))
        torch.testing.assert_close(out, x + mixed if residual else mixed)


def test_block_order_is_that_of_the_official_code():
    block = NodeBlock(GCNMixer(C), C)
    x, edge_index = torch.randn(5, C), torch.tensor([[0, 1, 2], [1, 2, 0]])
    norms = [nn.BatchNorm1d(C) for _ in range(3)]
    h = x + torch.relu(norms[0](block.mixer(x, edge_index)))
    z = norms[1](h)
    z = norms[2](z + block.feed_forward[3](torch.relu(block.feed_forward[0](z))))
    torch.testing.assert_close(block(x, edge_index)[0], z)


def test_one_row_in_training_takes_running_statistics_and_says_so():
    block = NodeBlock(GCNMixer(C), C)
    with pytest.warns(UserWarning, match="running statistics"):
        block(torch.randn(1, C), torch.zeros(2, 0, dtype=torch.long))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        block.eval()(torch.randn(1, C), torch.zeros(2, 0, dtype=torch.long))


def test_stems_refuse_what_does_not_fit_with_the_numbers():
    none = torch.zeros(2, 0, dtype=torch.long)
    for stem, data, text in (
        (
            NodeStem(8, node_types=3),
            Data(x=torch.tensor([0, 3]), edge_index=none),
            "holds 3; node_types=3 allows 0 to 2",
        ),
        (NodeStem(8, node_types=[3, 2]), Data(x=torch.tensor([0, 1]), edge_index=none), "2 columns; got int64 of"),
        (NodeStem(8, in_dim=2), Data(x=torch.zeros(2, 3), edge_index=none), r"\[N, 2\]; got float32 of \[2, 3\]"),
        (EdgeStem(8, edge_types=2), Data(edge_index=none), "edge_attr of 1 columns; got none"),
        (EdgeStem(8, edge_dim=2), Data(edge_index=none, edge_attr=torch.zeros(0, 1)), r"\[E, 2\]"),
    ):
        with pytest.raises(BadInput, match=text):
            stem(data)
    for make in (
        lambda: NodeStem(8, node_types=2, in_dim=2),
        lambda: EdgeStem(8, edge_types=2, edge_dim=2),
        lambda: NodeStem(8, encoding=RWSE(4, dim=8)),
        lambda: NodeBlock(GCNMixer(C), C, norm="group"),
        lambda: NodeBlock(GCNMixer(C), C, dropout=1.0),
    ):
        with pytest.raises(BadInput):
            make()


def test_stems_read_columns_and_constants():
    none = torch.zeros(2, 0, dtype=torch.long)
    two = NodeStem(8, node_types=[3, 2])
    x = torch.tensor([[0, 1], [2, 0]])
    expected = two.embeddings[0](x[:, 0]) + two.embeddings[1](x[:, 1])
    torch.testing.assert_close(two(Data(x=x, edge_index=none)), expected)
    assert NodeStem(8)(Data(num_nodes=3, edge_index=none)).shape == (3, 8)
    assert EdgeStem(8)(Data(edge_index=torch.zeros(2, 4, dtype=torch.long))).shape == (4, 8)


def test_heads_have_the_published_shapes():
    assert [m.out_features for m in halving_head(64, 1) if isinstance(m, nn.Linear)] == [32, 16, 1]
    assert [m.out_features for m in mlp_head(64, 6) if isinstance(m, nn.Linear)] == [64, 64, 6]
