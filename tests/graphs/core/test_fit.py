"""Training: seeded, equal steps, and loud when the loss stops being a number."""

import pytest
import torch
from torch import nn

from heliograph.errors import BadInput
from heliograph.graphs.core.fit import DivergenceError, train_supervised


def problem(dropout=0.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 1))
    x = torch.randn(6, 16, 3)
    return model, [(part, part.sum(dim=1, keepdim=True)) for part in x]


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def test_the_loss_falls():
    model, batches = problem()
    history = train_supervised(model, batches, loss, steps=200, learning_rate=1e-2)
    assert len(history) == 200
    assert sum(history[-6:]) < 0.05 * sum(history[:6])
    assert not model.training


def test_the_same_seed_gives_the_same_history_and_leaves_the_global_generator():
    histories = []
    for seed in (1, 1, 2):
        model, batches = problem(dropout=0.5)
        before = torch.get_rng_state()
        histories.append(train_supervised(model, batches, loss, steps=12, seed=seed))
        assert torch.equal(before, torch.get_rng_state())
        torch.rand(1)
    assert histories[0] == histories[1] != histories[2]


def test_each_pass_visits_every_batch_once():
    model, batches = problem()
    seen = []

    def watch(model, batch):
        seen.append(id(batch))
        return loss(model, batch)

    train_supervised(model, batches, watch, steps=12)
    assert sorted(seen[:6]) == sorted(seen[6:]) == sorted(map(id, batches))


def test_the_callback_gets_every_step_and_loss():
    model, batches = problem()
    calls = []
    history = train_supervised(model, batches, loss, steps=5, callback=lambda *call: calls.append(call))
    assert calls == list(enumerate(history, start=1))


def test_a_loss_that_is_no_number_names_its_step_and_does_not_reach_the_weights():
    model, batches = problem()
    batches[0] = (batches[0][0] * float("nan"), batches[0][1])
    with pytest.raises(DivergenceError, match="at step") as caught:
        train_supervised(model, batches, loss, steps=50)
    assert 1 <= caught.value.step <= 6
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_gradients_are_clipped_by_value():
    model = nn.Linear(1, 1, bias=False)
    clipped = []

    def steep(model, batch):
        return 1e6 * model(torch.ones(1, 1)).sum()

    train_supervised(
        model, [0], steep, steps=1, clip_value=2.0, callback=lambda *_: clipped.append(model.weight.grad.item())
    )
    assert clipped == [2.0]


def test_training_without_batches_is_refused():
    with pytest.raises(BadInput):
        train_supervised(nn.Linear(1, 1), [], loss, steps=1)
