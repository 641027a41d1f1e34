"""What the graphs family registers for ``heliograph compare``: networks, tasks, and training for equal seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from heliograph.checks.graphs.contenders import build_model, reference_parameters
from heliograph.checks.graphs.floydnet_parts.learning import algorithm_batches, counting_batches
from heliograph.data.algorithms import TASKS
from heliograph.errors import HeliographError
from heliograph.graphs.core.message_passing import count_parameters
from heliograph.graphs.floydnet.algorithms import TaskBatch, TaskModel, task_error, task_loss, task_score
from heliograph.graphs.user_data import load_task, read_task
from heliograph.trials.check import Contender, Context, Workload
from heliograph.trials.compare import Comparison

__all__ = ["COMPARE", "measure"]

EVALUATIONS = 12
COUNTING = {"graphs": 400, "vertices": 12, "batch": 20, "label_noise": 0.0}
SHAPE = {"width": 32, "depth": 6, "rate": 1e-3}
LEARN = {"train": [4, 8], "test": 16, "batch": 24, "wrong_labels": 0.0}


def measure(context: Context) -> Mapping[str, Any]:
    """Trains one network for the workload's seconds and scores it on what it has not seen.

    The clock runs only while training: imports, data, construction and evaluations are outside it.
    """
    load = context.workload
    begin = time.perf_counter()
    train, test, quality = _data(context)
    torch.manual_seed(context.seed)
    reference = reference_parameters(train[0], load["width"], load["depth"]) if load["match"] else None
    model = build_model(context.contender, train[0], load["width"], load["depth"], context.seed, reference)
    model.to(context.device)
    setup_s = time.perf_counter() - begin
    curve, steps, spent = _train_for(context, model, train, test, quality)
    return {
        "quality": curve[-1][1],
        "parameters": count_parameters(model),
        "steps": steps,
        "train_s": spent,
        "setup_s": setup_s,
    }


def _data(context: Context) -> tuple[list[TaskBatch], list[TaskBatch], str]:
    kind = context.workload["kind"]
    if kind == "counting":
        return (*counting_batches(context), "error")
    if kind == "algorithm":
        return (*algorithm_batches(context), "score")
    return load_task(Path(context.workload.path), context.workload["batch"], context.seed)


def _train_for(
    context: Context, model: TaskModel, train: list[TaskBatch], test: list[TaskBatch], quality: str
) -> tuple[list[list[float]], int, float]:
    budget, random = context.workload["budget_s"], torch.Generator().manual_seed(context.seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=context.workload["rate"], weight_decay=0.0)
    score = task_error if quality == "error" else task_score
    curve, spent, steps = [[0.0, score(model, test)]], 0.0, 0
    order: list[int] = []
    while spent < budget:
        begin = time.perf_counter()
        model.train()
        order = order or torch.randperm(len(train), generator=random).tolist()
        optimiser.zero_grad(set_to_none=True)
        loss = task_loss(model, train[order.pop()])
        if not torch.isfinite(loss):
            raise HeliographError(f"the loss became {loss.item()} at step {steps}")
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_value_(model.parameters(), 10.0)
        optimiser.step()
        steps += 1
        spent += time.perf_counter() - begin
        if spent >= budget * len(curve) / EVALUATIONS:
            curve.append([spent, score(model, test)])
            context.progress(min(1.0, spent / budget), f"{context.contender} {quality} {curve[-1][1]:.3g}")
    if curve[-1][0] != spent:
        curve.append([spent, score(model, test)])
    context.keep("curves", {"quality": curve})
    return curve, steps, spent


def adopt(path: Path) -> Workload:
    """The user's graphs as a workload; read once here, so that bad input is refused before work starts."""
    task = read_task(path)
    return Workload("your graphs", {"kind": "user", "batch": 16, "quality": task.quality, **SHAPE}, str(path.resolve()))


def _workloads() -> dict[str, Workload]:
    counting = {
        name: Workload(name, {"kind": "counting", "patterns": patterns, **COUNTING, **SHAPE})
        for name, patterns in (
            ("counting", ["cycle3", "cycle4"]),
            ("counting_six", ["cycle3", "cycle4", "cycle5", "cycle6", "chordal4", "chordal5"]),
        )
    }
    algorithms = {task: Workload(task, {"kind": "algorithm", "task": task, **LEARN, **SHAPE}) for task in TASKS}
    return counting | algorithms


ERROR = ("mean absolute error / standard deviation", "lower")


COMPARE = Comparison(
    family="graphs",
    contenders=(
        Contender("floydnet", "system", "pair states with pivotal attention"),
        Contender("gin", "baseline", "GINE layers"),
        Contender("mpnn", "baseline", "max aggregation over all vertices"),
        Contender("gnn_plus", "system", "GatedGCN with the techniques of GNN+, without its walk encoding"),
        Contender("gatedgcn", "baseline", "GatedGCN without edge features and techniques"),
        Contender("gcn", "baseline", "GCN without edge features and techniques"),
        Contender("gps", "baseline", "PyG's GPSConv: GINE beside attention over all vertices"),
    ),
    tasks=_workloads(),
    measure=measure,
    quality={"counting": ERROR, "counting_six": ERROR, "error": ERROR, "": ("score", "higher")},  # type: ignore[dict-item]
    adopt=adopt,
    accepts="a PyTorch Geometric .pt file (a list of graphs with y)",
    preload=("torch", "torch_geometric.nn", "torch_geometric.data", "networkx"),
)
