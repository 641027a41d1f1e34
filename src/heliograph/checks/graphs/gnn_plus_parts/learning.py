"""Training of the arms: for equal epochs or for equal seconds, on the same molecules or peptides, then one test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from heliograph.checks.graphs.gnn_plus_parts.arms import build_arm, encoding_of
from heliograph.checks.graphs.supervised import batches_of, score, shuffle_targets, train_arm
from heliograph.graphs.core.encodings import cached
from heliograph.graphs.core.message_passing import count_parameters
from heliograph.graphs.core.tasks import GraphTask, load_task
from heliograph.graphs.gnn_plus import SWITCHES
from heliograph.trials.check import Context

__all__ = ["load_graphs", "measure_ablation", "measure_steps", "measure_trained"]


def measure_trained(context: Context) -> Mapping[str, Any]:
    """One arm's quality on graphs it has not seen, by the names of the task's metrics."""
    task = load_graphs(context)
    model = build_arm(context.contender, task, context.workload, context.seed).to(context.device)
    steps = train_arm(context, model, task)
    metrics = score(model, task, context.device)
    passes = steps * context.workload["batch"] / len(task.train)
    return {**metrics.values, "parameters": count_parameters(model), "steps": steps, "epochs": passes}


def measure_ablation(context: Context) -> Mapping[str, Any]:
    """How many of the six techniques raise the error when they are left out, one at a time."""
    task = load_graphs(context)
    errors = {}
    for off in ("", *SWITCHES):
        model = build_arm("gcn+", task, context.workload, context.seed, off).to(context.device)
        train_arm(context, model, task, f"without {off}" if off else "all six")
        errors[off or "all"] = score(model, task, context.device).mae
    context.keep("ablation", errors)
    return {
        "parts": float(sum(errors[off] > errors["all"] for off in SWITCHES)),
        **{f"mae {k}": v for k, v in errors.items()},
    }


def measure_steps(context: Context) -> Mapping[str, Callable[[], None]]:
    """One pass over the same batches, forward, backward and update, for each arm."""
    task = load_graphs(context)
    batches = batches_of(task, context.workload["batch"], context.device)

    def stepper(name: str) -> Callable[[], None]:
        model = build_arm(name.removesuffix(", again"), task, context.workload, context.seed).to(context.device)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)

        def run() -> None:
            for batch in batches:
                optimiser.zero_grad(set_to_none=True)
                task.target.loss(model(batch), batch.y).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            if context.device == "cuda":
                torch.cuda.synchronize()

        return run

    return {name: stepper(name) for name in ("gcn+", "gps", "gcn+, again")}


def load_graphs(context: Context) -> GraphTask:
    """The workload's task with walk encodings; targets change places where it says so."""
    load = context.workload
    task = load_task(load["task"], seed=context.seed, train=load["train"], valid=0, test=load["test"])
    encoding = [encoding_of(load)]
    task = replace(task, train=tuple(cached(task.train, encoding)), test=tuple(cached(task.test, encoding)))
    if load["wrong_labels"]:
        task = shuffle_targets(task, context.seed, load["wrong_labels"])
    return task
