"""What checks that train on PyG graphs share: batches, one training recipe, the test, and targets that say nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from heliograph.checks.graphs.contenders import thin
from heliograph.graphs.core.fit import one_cycle, train_supervised
from heliograph.graphs.core.tasks import GraphTask, Metrics, TargetSpec
from heliograph.trials.check import Context

if TYPE_CHECKING:
    from torch_geometric.data import Batch

__all__ = ["batches_of", "score", "shuffle_targets", "train_arm", "train_batches"]


def train_arm(context: Context, model: nn.Module, task: GraphTask, label: str = "") -> int:
    """Trains on a task for the workload's ``epochs``, or ``seconds`` where those are above 0; see train_batches."""
    load = context.workload
    batches = batches_of(task, load["batch"], context.device)
    return train_batches(context, model, batches, task.target, load["seconds"] or None, label)


def train_batches(
    context: Context,
    model: nn.Module,
    batches: Sequence[Batch],
    target: TargetSpec,
    seconds: float | None = None,
    label: str = "",
) -> int:
    """Trains for the workload's ``epochs`` or for ``seconds``; keeps the curve and returns the number of steps.

    AdamW at the workload's ``rate`` with one cycle, weight decay 1e-5, gradients clipped at 1: the same for every arm.
    """
    load = context.workload
    steps, count = load["epochs"] * len(batches), 0
    if seconds is not None and context.device == "cuda":
        _load_kernels(model, batches[0], target)

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        return target.loss(network(batch), batch.y)

    def tell(step: int, value: float) -> None:
        nonlocal count
        count = step
        if step % 10 == 0:
            context.progress(
                min(0.99, step / steps) if not seconds else 0.5, f"{label or context.contender} loss {value:.3g}"
            )

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


def _load_kernels(model: nn.Module, batch: Batch, target: TargetSpec) -> None:
    """One pass of a copy both ways, so that what a GPU loads at first use is nobody's training time."""
    with torch.random.fork_rng():
        twin = copy.deepcopy(model).train()
        target.loss(twin(batch), batch.y).backward()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def batches_of(task: GraphTask, size: int, device: str) -> list[Batch]:
    """The training graphs, batched once, so that no arm pays for collation; the order of batches is drawn later."""
    from torch_geometric.data import Batch

    return [Batch.from_data_list(list(task.train[i : i + size])).to(device) for i in range(0, len(task.train), size)]


def score(model: nn.Module, task: GraphTask, device: str, size: int = 256) -> Metrics:
    """The metrics on the test graphs."""
    from torch_geometric.data import Batch

    model.eval()
    with torch.no_grad():
        parts = [
            task.target.decode(model(Batch.from_data_list(list(task.test[i : i + size])).to(device))).cpu()
            for i in range(0, len(task.test), size)
        ]
    return task.target.score(torch.cat(parts), torch.cat([graph.y for graph in task.test]))


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
