"""The peers: independent of padding and company, and matched in parameters."""

import pytest
import torch
from torch import nn

from heliograph.errors import BadInput
from heliograph.graphs.core.message_passing import (
    GraphIsomorphismNetwork,
    MaxMessagePassing,
    count_parameters,
    match_width,
)

PEERS = {"max": lambda: MaxMessagePassing(2, 3, 1, 8), "gin": lambda: GraphIsomorphismNetwork(2, 3, 1, 8, depth=3)}


def inputs(batch=2, size=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vertex, graph = torch.randn(batch, size, 2, generator=generator), torch.randn(batch, 1, generator=generator)
    edge = torch.randn(batch, size, size, 3, generator=generator)
    edge[..., 0] = (edge[..., 0] > 0).float()
    return vertex.double(), edge.double(), graph.double(), torch.ones(batch, size, dtype=torch.bool)


@pytest.mark.parametrize("name", PEERS)
def test_a_graph_is_unaffected_by_padding_and_company(name):
    torch.manual_seed(0)
    model = PEERS[name]().double().eval()
    vertex, edge, graph, mask = inputs()
    alone = model(vertex[:1, :3], edge[:1, :3, :3], graph[:1], mask[:1, :3])
    mask[0, 3:] = False
    together = model(vertex, edge, graph, mask)
    torch.testing.assert_close(together.vertex[0, :3], alone.vertex[0], atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(together.pair[0, :3, :3], alone.pair[0], atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(together.graph[0], alone.graph[0], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", PEERS)
def test_a_fully_padded_graph_is_finite(name):
    model = PEERS[name]().double()
    vertex, edge, graph, mask = inputs()
    states = model(vertex, edge, graph, mask & torch.tensor([[True], [False]]))
    assert states.vertex.isfinite().all()
    assert states.pair.isfinite().all()
    assert (states.graph[1] == 0).all()


def test_max_messages_hear_edge_direction():
    torch.manual_seed(0)
    model = MaxMessagePassing(2, 3, 1, 8).double()
    vertex, edge, graph, mask = inputs()
    assert (
        model(vertex, edge, graph, mask).vertex - model(vertex, edge.transpose(1, 2), graph, mask).vertex
    ).norm() > 0


def test_inputs_of_no_channels_are_taken():
    for model in (MaxMessagePassing(0, 1, 0, 8), GraphIsomorphismNetwork(0, 1, 0, 8)):
        states = model(torch.zeros(2, 4, 0), torch.ones(2, 4, 4, 1), torch.zeros(2, 0), torch.ones(2, 4).bool())
        assert states.vertex.shape == (2, 4, 8)
        assert states.pair.shape == (2, 4, 4, 8)
        assert states.graph.shape == (2, 8)


def test_gin_without_an_adjacency_is_refused():
    with pytest.raises(BadInput, match="adjacency"):
        GraphIsomorphismNetwork(1, 0, 0, 8)


@pytest.mark.parametrize("wanted", [3_000, 50_000, 400_000])
@pytest.mark.parametrize(
    "build", [lambda w: MaxMessagePassing(2, 1, 0, w), lambda w: GraphIsomorphismNetwork(2, 1, 0, w)]
)
def test_the_matched_width_is_within_ten_per_cent(build, wanted):
    width = match_width(build, wanted)
    assert abs(count_parameters(build(width)) - wanted) <= 0.1 * wanted


def test_the_width_is_a_multiple_and_the_nearest():
    width = match_width(lambda w: nn.Linear(w, w), 100_000, multiple=8)
    assert width % 8 == 0
    distance = [abs(count_parameters(nn.Linear(w, w)) - 100_000) for w in (width - 8, width, width + 8)]
    assert distance[1] == min(distance)


def test_a_width_out_of_reach_is_refused_with_the_nearest():
    with pytest.raises(BadInput, match="nearest"):
        match_width(lambda w: nn.Linear(w, w), 7, tolerance=0.01, multiple=16)


def test_frozen_parameters_do_not_count():
    linear = nn.Linear(3, 2)
    linear.bias.requires_grad_(False)
    assert count_parameters(linear) == 6
