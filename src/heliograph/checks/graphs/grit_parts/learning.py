"""Training of the arms: for equal epochs or for equal seconds, on the same graphs, then one test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from heliograph.checks.graphs.grit_parts.arms import build_arm, encoding_of
from heliograph.checks.graphs.supervised import score, shuffle_targets, train_arm
from heliograph.graphs.core.encodings import cached
from heliograph.graphs.core.message_passing import count_parameters
from heliograph.graphs.core.tasks import GraphTask, load_task
from heliograph.trials.check import Context

__all__ = ["load_graphs", "measure_trained"]

PAIRS_KEPT = 2_500_000


def measure_trained(context: Context) -> Mapping[str, Any]:
    """One arm's quality on graphs it has not seen, by the names of the task's metrics."""
    load = context.workload
    task = load_graphs(context)
    model = build_arm(context.contender, task, load, context.seed).to(context.device)
    steps = train_arm(context, model, task)
    metrics = score(model, task, context.device, size=load["batch"])
    if load.params.get("shown"):
        context.say(f"{context.contender}: {metrics.main} {metrics.quality:.4f} on {load.name}, block {context.block}")
    passes = steps * load["batch"] / len(task.train)
    return {**metrics.values, "parameters": count_parameters(model), "steps": steps, "epochs": passes}


def load_graphs(context: Context) -> GraphTask:
    """The workload's task with the arm's encoding; targets change places where it says so."""
    load = context.workload
    task = load_task(load["task"], seed=context.seed, train=load["train"], valid=0, test=load["test"])
    encoding = [encoding_of(context.contender, load)]
    pairs = sum(int(graph.num_nodes) ** 2 for graph in (*task.train, *task.test))
    small = pairs <= PAIRS_KEPT  # walks between many pairs are computed in less time than a file of them is compressed
    train, test = (tuple(cached(graphs, encoding, use_cache=small)) for graphs in (task.train, task.test))
    task = replace(task, train=train, test=test)
    if not load["wrong_labels"]:
        return task
    if task.target.level == "vertex":
        return _shuffle_within(task, context.seed)
    return shuffle_targets(task, context.seed, load["wrong_labels"])


def _shuffle_within(task: GraphTask, seed: int) -> GraphTask:
    """The same graphs, each with its labels dealt anew among its vertices."""
    generator = torch.Generator().manual_seed(seed)

    def mixed(graphs: tuple[Any, ...]) -> tuple[Any, ...]:
        copies = tuple(graph.clone() for graph in graphs)
        for copy in copies:
            copy.y = copy.y[torch.randperm(len(copy.y), generator=generator)]
        return copies

    return replace(task, train=mixed(task.train), test=mixed(task.test))
