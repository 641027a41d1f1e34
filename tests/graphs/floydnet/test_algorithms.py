"""Tasks: encoding respects symmetry and padding, oracle answers score 1, each kind of target trains."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from heliograph.data.algorithms import TASKS, sample_batch
from heliograph.data.counting import random_counting_graphs
from heliograph.errors import BadInput
from heliograph.graphs.core.fit import train_supervised
from heliograph.graphs.core.message_passing import GraphIsomorphismNetwork, MaxMessagePassing
from heliograph.graphs.floydnet.algorithms import (
    FloydReasoner,
    TaskBatch,
    TaskModel,
    TaskTarget,
    algorithm_tensors,
    counting_scales,
    counting_tensors,
    task_error,
    task_loss,
    task_score,
)

LEVELS = ("graph", "vertex", "edge")


def backbones(channels, dim=8):
    return {
        "floyd": FloydReasoner(*channels, dim=dim, heads=2, depth=2),
        "max": MaxMessagePassing(*channels, dim=dim, rounds=2),
        "gin": GraphIsomorphismNetwork(*channels, dim=dim, depth=2),
    }


def awake(model):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.double().eval()


def in_double(batch):
    return replace(batch, vertex=batch.vertex.double(), edge=batch.edge.double(), graph=batch.graph.double())


@pytest.mark.parametrize("name", ["floyd", "max", "gin"])
def test_permuting_vertices_permutes_the_states(name):
    batch = in_double(algorithm_tensors(sample_batch("mst_prim", 2, 6)))
    backbone = awake(backbones(batch.channels)[name])
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    one = backbone(batch.vertex, batch.edge, batch.graph, batch.mask)
    other = backbone(batch.vertex[:, order], batch.edge[:, order][:, :, order], batch.graph, batch.mask)
    torch.testing.assert_close(other.vertex, one.vertex[:, order], atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(other.pair, one.pair[:, order][:, :, order], atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(other.graph, one.graph, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", ["floyd", "max", "gin"])
@pytest.mark.parametrize("task", ["floyd_warshall", "topological_sort", "lcs_length"])
def test_padding_changes_neither_loss_nor_score(name, task):
    plain = in_double(algorithm_tensors(sample_batch(task, 3, 5)))
    vertex = torch.full((3, 8, plain.vertex.shape[-1]), 7.0, dtype=torch.float64)
    edge = torch.full((3, 8, 8, plain.edge.shape[-1]), 7.0, dtype=torch.float64)
    vertex[:, :5], edge[:, :5, :5] = plain.vertex, plain.edge
    targets = []
    for target in plain.targets:
        values = torch.full((3, *([8] * (target.values.dim() - 1))), -1)
        values[(slice(None), *([slice(5)] * (target.values.dim() - 1)))] = target.values
        targets.append(replace(target, values=values))
    padded = TaskBatch(vertex, edge, plain.graph, torch.arange(8).expand(3, 8) < 5, tuple(targets))
    model = awake(TaskModel(backbones(plain.channels)[name], 8, plain.targets))
    torch.testing.assert_close(task_loss(model, padded), task_loss(model, plain), atol=1e-10, rtol=1e-10)
    assert task_score(model, [padded]) == task_score(model, [plain])


class Answer(torch.nn.Module):
    """Feeds the labels back as predictions."""

    def forward(self, batch):
        outs = []
        for target in batch.targets:
            values = target.values.clamp(min=0)
            if target.kind in ("mask", "mask_one"):
                outs.append(values.double() * 20 - 10)
            else:
                size = target.outputs if target.kind == "pair_category" else batch.mask.shape[1]
                outs.append(torch.nn.functional.one_hot(values, size).double() * 50)
        return tuple(outs)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_true_answer_scores_one_and_loses_nothing(task):
    batch = algorithm_tensors(sample_batch(task, 4, 9))
    assert task_score(Answer(), [batch, batch]) == 1.0
    assert task_loss(Answer(), batch) < 1e-3


def test_micro_f1_of_masks():
    values = torch.tensor([[1, 1, 0, -1]])
    batch = TaskBatch(torch.zeros(1, 4, 0), torch.zeros(1, 4, 4, 1), torch.zeros(1, 0), torch.ones(1, 4).bool(),
                      (TaskTarget("mask", values),))  # fmt: skip

    class Fixed(torch.nn.Module):
        def forward(self, batch):
            return (torch.tensor([[1.0, -1.0, 1.0, 1.0]]),)

    assert task_score(Fixed(), [batch]) == pytest.approx(2 * 1 / (2 + 2))  # one hit, two chosen, two wanted


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_task_trains_on_floydnet(task):
    torch.manual_seed(0)
    batches = [algorithm_tensors(sample_batch(task, 8, 5, seed)) for seed in range(2)]
    model = TaskModel(FloydReasoner(*batches[0].channels, dim=16, heads=2, depth=2), 16, batches[0].targets)
    history = train_supervised(model, batches, task_loss, steps=30, learning_rate=3e-3)
    assert np.mean(history[-4:]) < 0.9 * np.mean(history[:4])


@pytest.mark.parametrize("name", ["floyd", "max", "gin"])
def test_counting_at_all_levels_trains_on_every_backbone(name):
    torch.manual_seed(0)
    graphs = random_counting_graphs(16, 8)
    scales = counting_scales(graphs, LEVELS)
    batch = counting_tensors(graphs, scales, LEVELS)
    model = TaskModel(backbones(batch.channels, dim=16)[name], 16, batch.targets)
    history = train_supervised(model, [batch], task_loss, steps=30, learning_rate=3e-3)
    assert history[-1] < history[0]


def test_counts_are_scored_on_edges_and_real_vertices_in_units_of_their_spread():
    graphs = random_counting_graphs(12, 9)
    batch = counting_tensors(graphs, counting_scales(graphs, LEVELS), LEVELS)
    graph, vertex, edge = (target.values for target in batch.targets)
    assert torch.equal(~edge[..., 0].isnan(), torch.from_numpy(graphs.adj > 0))
    assert torch.equal(~vertex[..., 0].isnan(), batch.mask)
    for values in (graph, vertex, edge):
        for column in values.flatten(0, -2).T:
            assert column[~column.isnan()].std(unbiased=False).item() == pytest.approx(1, rel=1e-4)


def test_the_error_of_a_constant_is_its_mean_absolute_distance():
    graphs = random_counting_graphs(6, 8)
    batch = counting_tensors(graphs, counting_scales(graphs))

    class Zero(torch.nn.Module):
        def forward(self, batch):
            return (torch.zeros_like(batch.targets[0].values),)

    values = batch.targets[0].values
    expected = values[~values.isnan()].abs().mean().item()
    assert task_error(Zero(), [batch]) == pytest.approx(expected, rel=1e-5)


def test_unknown_kinds_and_levels_are_refused():
    with pytest.raises(BadInput, match="kind"):
        TaskModel(torch.nn.Identity(), 4, [TaskTarget("route", torch.zeros(1))])
    with pytest.raises(BadInput, match="levels"):
        counting_scales(random_counting_graphs(2, 8), ("face",))
    batch = algorithm_tensors(sample_batch("bfs", 2, 4))
    with pytest.raises(BadInput, match="regressed"):
        task_error(Answer(), [batch])
