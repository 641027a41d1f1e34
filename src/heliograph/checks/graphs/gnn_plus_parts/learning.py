"""Training of the arms: for equal epochs or for equal seconds, on the same molecules or peptides, then one test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from heliograph.checks.graphs.contenders import thin
from heliograph.checks.graphs.gnn_plus_parts.arms import build_arm, encoding_of
from heliograph.graphs.core.encodings import cached
from heliograph.graphs.core.fit import one_cycle, train_supervised
from heliograph.graphs.core.message_passing import count_parameters
from heliograph.graphs.core.tasks import GraphTask, Metrics, load_task
from heliograph.graphs.gnn_plus import SWITCHES
from heliograph.trials.check import Context

__all__ = [
    "batches_of",
    "load_graphs",
    "measure_ablation",
    "measure_steps",
    "measure_trained",
    "score",
    "shuffle_targets",
]


def measure_trained(context: Context) -> Mapping[str, Any]:
    """One arm's quality on graphs it has not seen, by the names of the task's metrics."""
    task = load_graphs(context)
    model = build_arm(context.contender, task, context.workload, context.seed).to(context.device)
    steps = _train(context, model, task, context.contender)
    metrics = score(model, task, context.device)
    passes = steps * context.workload["batch"] / len(task.train)
    return {**metrics.values, "parameters": count_parameters(model), "steps": steps, "epochs": passes}


def measure_ablation(context: Context) -> Mapping[str, Any]:
    """How many of the six techniques raise the error when they are left out, one at a time."""
    task = load_graphs(context)
    errors = {}
    for off in ("", *SWITCHES):
        model = build_arm("gcn+", task, context.workload, context.seed, off).to(context.device)
        _train(context, model, task, f"without {off}" if off else "all six")
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


def shuffle_targets(task: GraphTask, seed: int, share: float = 1.0) -> GraphTask:
    """The same graphs; a share of the training targets, or with 1 all of both sides, change places among themselves."""
    generator = torch.Generator().manual_seed(seed)

    def mixed(graphs: Sequence[Any]) -> tuple[Any, ...]:
        chosen = torch.randperm(len(graphs), generator=generator)[: round(share * len(graphs))]
        partner = chosen[torch.randperm(len(chosen), generator=generator)]
        targets = [graph.y for graph in graphs]
        for place, other in zip(chosen.tolist(), partner.tolist(), strict=True):
            targets[place] = graphs[other].y
        out = []
        for graph, y in zip(graphs, targets, strict=True):
            copy = graph.clone()
            copy.y = y
            out.append(copy)
        return tuple(out)

    return replace(task, train=mixed(task.train), test=mixed(task.test) if share == 1.0 else task.test)


def batches_of(task: GraphTask, size: int, device: str) -> list[Batch]:
    """The training graphs, batched once, so that no arm pays for collation; the order of batches is drawn later."""
    return [Batch.from_data_list(list(task.train[i : i + size])).to(device) for i in range(0, len(task.train), size)]


def score(model: nn.Module, task: GraphTask, device: str, size: int = 256) -> Metrics:
    """The metrics on the test graphs."""
    model.eval()
    with torch.no_grad():
        parts = [
            task.target.decode(model(Batch.from_data_list(list(task.test[i : i + size])).to(device))).cpu()
            for i in range(0, len(task.test), size)
        ]
    return task.target.score(torch.cat(parts), torch.cat([graph.y for graph in task.test]))


def _train(context: Context, model: nn.Module, task: GraphTask, label: str) -> int:
    load = context.workload
    batches = batches_of(task, load["batch"], context.device)
    steps, seconds = load["epochs"] * len(batches), load["seconds"] or None
    count = 0

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        return task.target.loss(network(batch), batch.y)

    def tell(step: int, value: float) -> None:
        nonlocal count
        count = step
        if step % 10 == 0:
            context.progress(min(0.99, step / steps) if not seconds else 0.5, f"{label} loss {value:.3g}")

    history = train_supervised(
        model,
        batches,
        loss,
        steps=steps,
        seconds=seconds,
        learning_rate=load["rate"],
        betas=(0.9, 0.999),
        weight_decay=1e-5,
        clip_value=None,
        clip_norm=1.0,
        schedule=one_cycle,
        seed=context.seed,
        callback=tell,
    )
    context.keep("curves", {"training loss": thin(history)})
    return count
