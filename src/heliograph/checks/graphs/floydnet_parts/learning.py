"""Parts B and C: networks of equal parameters trained on the same data, then scored on graphs they have not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from heliograph.checks.graphs.contenders import build_model, reference_parameters, thin
from heliograph.data.algorithms import sample_batch
from heliograph.data.counting import CountingGraphs, random_counting_graphs
from heliograph.graphs.core.fit import train_supervised
from heliograph.graphs.core.message_passing import count_parameters
from heliograph.graphs.floydnet.algorithms import (
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
from heliograph.trials.check import Context

__all__ = ["algorithm_batches", "counting_batches", "measure_algorithm", "measure_counting"]

HELD_OUT = 0.25
TEST_BATCHES, TRAIN_BATCHES = 4, 60
TEST_SEED = 1_000_000


def measure_counting(context: Context) -> Mapping[str, Any]:
    """Mean absolute error of held-out counts per edge, in standard deviations of the training targets."""
    name, shuffled = context.contender.removesuffix(", shuffled"), context.contender.endswith(", shuffled")
    train, test = counting_batches(context, shuffled=shuffled)
    steps = context.workload["steps"] if name == "floydnet" else context.workload["gin_steps"]
    if shuffled:  # a control needs no more than to show that nothing is there
        steps = context.workload["shuffled_steps"]
    model = _train(context, name, train, steps)
    return {"error": task_error(model, test), "parameters": count_parameters(model), "steps": steps}


def measure_algorithm(context: Context) -> Mapping[str, Any]:
    """The benchmark's score, between 0 and 1, on larger graphs than those trained on."""
    train, test = algorithm_batches(context)
    name = context.contender
    steps = context.workload["steps"] if name == "floydnet" else context.workload["mpnn_steps"]
    model = _train(context, name, train, steps)
    return {"score": task_score(model, test), "parameters": count_parameters(model), "steps": steps}


def counting_batches(context: Context, *, shuffled: bool = False) -> tuple[list[TaskBatch], list[TaskBatch]]:
    """Training and held-out batches of a counting workload, in units of the training targets' standard deviation."""
    load, device = context.workload, context.device
    graphs = random_counting_graphs(load["graphs"], load["vertices"], patterns=load["patterns"], seed=context.seed)
    kept = round(load["graphs"] * (1 - HELD_OUT))
    scales = counting_scales(graphs.select(slice(0, kept)))
    random = torch.Generator().manual_seed(context.seed)

    def batches(part: CountingGraphs, noise: float) -> list[TaskBatch]:
        size = load["batch"]
        made = [counting_tensors(part.select(slice(i, i + size)), scales) for i in range(0, len(part), size)]
        made = _shuffle(made, random) if shuffled else made
        return [_to(_with_noise(batch, noise, random), device) for batch in made]

    train = batches(graphs.select(slice(0, kept)), load["label_noise"])
    return train, batches(graphs.select(slice(kept, load["graphs"])), 0.0)


def algorithm_batches(context: Context) -> tuple[list[TaskBatch], list[TaskBatch]]:
    """Training batches of small graphs (no two alike) and test batches of large ones."""
    load, device = context.workload, context.device
    least, most = load["train"]
    start = TEST_SEED * 2 * (context.seed + 1)
    sizes = range(least, most + 1)
    random = torch.Generator().manual_seed(context.seed)
    train = [
        algorithm_tensors(sample_batch(load["task"], load["batch"], sizes[i % len(sizes)], seed=start + i))
        for i in range(TRAIN_BATCHES)
    ]
    test = [
        algorithm_tensors(sample_batch(load["task"], load["batch"], load["test"], seed=start + TEST_SEED + i))
        for i in range(TEST_BATCHES)
    ]
    wrong = load["wrong_labels"]
    train = [_with_wrong_targets(b, wrong, random) for b in train] if wrong else train
    # With nothing but wrong labels the question is whether anything is learned of them: then the test has them too.
    test = [_with_wrong_targets(b, wrong, random) for b in test] if wrong == 1.0 else test
    return [_to(b, device) for b in train], [_to(b, device) for b in test]


def _train(context: Context, name: str, train: Sequence[TaskBatch], steps: int) -> TaskModel:
    load = context.workload
    parameters = None if name == "floydnet" else reference_parameters(train[0], load["width"], load["depth"])
    model = build_model(name, train[0], load["width"], load["depth"], context.seed, parameters).to(context.device)
    history = train_supervised(
        model,
        train,
        task_loss,
        steps=steps,
        learning_rate=load["rate"],
        seed=context.seed,
        callback=lambda step, loss: context.progress(step / steps, f"{name} loss {loss:.3g}"),
    )
    context.keep("curves", {"training loss": thin(history)})
    return model


def _to(batch: TaskBatch, device: str) -> TaskBatch:
    targets = tuple(replace(t, values=t.values.to(device)) for t in batch.targets)
    return TaskBatch(
        batch.vertex.to(device), batch.edge.to(device), batch.graph.to(device), batch.mask.to(device), targets
    )


def _shuffle(batches: Sequence[TaskBatch], random: torch.Generator) -> list[TaskBatch]:
    """Targets change places among the scored entries of each batch, so that inputs say nothing about them."""

    def mix(target: TaskTarget) -> TaskTarget:
        values = target.values.clone()
        scored = ~values[..., 0].isnan()
        rows = values[scored]
        values[scored] = rows[torch.randperm(len(rows), generator=random)]
        return replace(target, values=values)

    return [replace(b, targets=tuple(mix(t) for t in b.targets)) for b in batches]


def _with_noise(batch: TaskBatch, deviation: float, random: torch.Generator) -> TaskBatch:
    if not deviation:
        return batch
    targets = tuple(
        replace(t, values=t.values + deviation * torch.randn(t.values.shape, generator=random)) for t in batch.targets
    )
    return replace(batch, targets=targets)


def _with_wrong_targets(batch: TaskBatch, share: float, random: torch.Generator) -> TaskBatch:
    """A share of the scored targets is replaced by classes or vertices drawn uniformly."""

    def spoil(target: TaskTarget) -> TaskTarget:
        values = target.values
        choices = {"mask": 2, "mask_one": 2, "pair_category": target.outputs}.get(target.kind, values.shape[-1])
        drawn = torch.randint(choices, values.shape, generator=random)
        hit = (values >= 0) & (torch.rand(values.shape, generator=random) < share)
        return replace(target, values=torch.where(hit, drawn, values))

    return replace(batch, targets=tuple(spoil(t) for t in batch.targets))
