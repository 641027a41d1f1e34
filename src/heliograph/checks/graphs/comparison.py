"""What the graphs family registers for ``heliograph compare``: networks, tasks, and training for equal seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from heliograph.checks.graphs.contenders import build_model, model_names, reference_parameters
from heliograph.checks.graphs.floydnet_parts.learning import algorithm_batches, counting_batches
from heliograph.checks.graphs.graph_tasks import (
    SIZES,
    adopt_graphs,
    graph_loss,
    graph_score,
    load_graph_task,
    make_matched,
    task_batches,
)
from heliograph.data.algorithms import TASKS
from heliograph.errors import HeliographError
from heliograph.graphs.core.message_passing import count_parameters
from heliograph.graphs.floydnet.algorithms import TaskBatch, task_error, task_loss, task_score
from heliograph.graphs.models import MODELS, Shape
from heliograph.trials.check import Contender, Context, Workload
from heliograph.trials.compare import Comparison

__all__ = ["COMPARE", "measure"]

EVALUATIONS = 12
COUNTING = {"graphs": 400, "vertices": 12, "batch": 20, "label_noise": 0.0}
SHAPE = {"width": 32, "depth": 6, "rate": 1e-3}
GRAPH_SHAPE = {"layers": 4, "width": 32, "batch": 32, "rate": 1e-3}
LEARN = {"train": [4, 8], "test": 16, "batch": 24, "wrong_labels": 0.0}


def measure(context: Context) -> Mapping[str, Any]:
    """Trains one network for the workload's seconds and scores it on what it has not seen.

    The clock runs only while training: imports, data, construction and evaluations are outside it.
    """
    begin = time.perf_counter()
    torch.manual_seed(context.seed)
    prepared = _prepare_graphs(context) if context.workload["kind"] in ("task", "graphs") else _prepare_dense(context)
    setup_s = time.perf_counter() - begin
    curve, steps, spent = _train_for(context, *prepared)
    return {
        "quality": curve[-1][1],
        "parameters": count_parameters(prepared[0]),
        "steps": steps,
        "train_s": spent,
        "setup_s": setup_s,
    }


Loss = Callable[[nn.Module, Any], Tensor]
Score = Callable[[nn.Module], float]


def _prepare_graphs(context: Context) -> tuple[nn.Module, list[Any], Loss, Score]:
    load, task = context.workload, load_graph_task(context)
    model = make_matched(context, task, Shape(load["layers"], load["width"])).to(context.device)
    train, test = task_batches(model, task, load["batch"], context.device)
    return model, train, partial(graph_loss, task), lambda network: graph_score(task, network, test)


def _prepare_dense(context: Context) -> tuple[nn.Module, list[Any], Loss, Score]:
    load = context.workload
    counting = load["kind"] == "counting"
    train, test = counting_batches(context) if counting else algorithm_batches(context)
    reference = reference_parameters(train[0], load["width"], load["depth"]) if load["match"] else None
    model = build_model(context.contender, train[0], load["width"], load["depth"], context.seed, reference)
    score = task_error if counting else task_score
    return model.to(context.device), train, _dense_loss, lambda network: score(network, test)


def _dense_loss(model: nn.Module, batch: TaskBatch) -> Tensor:
    return task_loss(model, batch)


def _train_for(
    context: Context, model: nn.Module, train: list[Any], loss_of: Loss, score: Score
) -> tuple[list[list[float]], int, float]:
    budget, random = context.workload["budget_s"], torch.Generator().manual_seed(context.seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=context.workload["rate"], weight_decay=0.0)
    curve, spent, steps = [[0.0, score(model)]], 0.0, 0
    order: list[int] = []
    while spent < budget:
        begin = time.perf_counter()
        model.train()
        order = order or torch.randperm(len(train), generator=random).tolist()
        optimiser.zero_grad(set_to_none=True)
        loss = loss_of(model, train[order.pop()])
        if not torch.isfinite(loss):
            raise HeliographError(f"the loss became {loss.item()} at step {steps}")
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_value_(model.parameters(), 10.0)
        optimiser.step()
        steps += 1
        spent += time.perf_counter() - begin
        if spent >= budget * len(curve) / EVALUATIONS:
            curve.append([spent, score(model)])
            context.progress(min(1.0, spent / budget), f"{context.contender} {curve[-1][1]:.3g}")
    if curve[-1][0] != spent:
        curve.append([spent, score(model)])
    context.keep("curves", {"quality": curve})
    return curve, steps, spent


def adopt(path: Path, target: str = "") -> Workload:
    """The user's graphs as a workload, at the size that all comparisons on graphs have."""
    workload = adopt_graphs(path, target)
    return workload.with_params(**GRAPH_SHAPE)


def fits(workload: Workload) -> tuple[str, ...]:
    """Who can work on a workload: dense tasks and tasks of graphs have networks of their own."""
    return tuple(MODELS) if workload.params["kind"] in ("task", "graphs") else model_names()


def _workloads() -> dict[str, Workload]:
    counting = {
        name: Workload(name, {"kind": "counting", "patterns": patterns, **COUNTING, **SHAPE})
        for name, patterns in (
            ("counting", ["cycle3", "cycle4"]),
            ("counting_six", ["cycle3", "cycle4", "cycle5", "cycle6", "chordal4", "chordal5"]),
        )
    }
    algorithms = {task: Workload(task, {"kind": "algorithm", "task": task, **LEARN, **SHAPE}) for task in TASKS}
    graphs = {task: Workload(task, {"kind": "task", "task": task, **GRAPH_SHAPE}) for task in SIZES}
    return counting | algorithms | graphs


Quality = tuple[str, Literal["higher", "lower"]]
ERROR: Quality = ("mean absolute error / standard deviation", "lower")
BALANCED: Quality = ("balanced accuracy", "higher")


NOTES = {name: kind.note for name, kind in MODELS.items()} | {"mpnn": "max aggregation over all vertices"}
SYSTEMS = ("floydnet", "gnn_plus", "grit", "graph_mamba")

COMPARE = Comparison(
    family="graphs",
    contenders=tuple(
        Contender(name, "system" if name in SYSTEMS else "baseline", note) for name, note in NOTES.items()
    ),
    tasks=_workloads(),
    measure=measure,
    quality={
        "counting": ERROR,
        "counting_six": ERROR,
        "molecules.zinc": ("mean absolute error", "lower"),
        "tu.mutag": ("accuracy", "higher"),
        "peptides": ("average precision", "higher"),
        **dict.fromkeys(("sbm.pattern", "sbm.cluster", "minesweeper"), BALANCED),
        "": ("score", "higher"),
    },
    adopt=adopt,
    fits=fits,
    accepts="your graphs (.pt, SMILES table, GraphML, or a folder with edges.csv)",
    preload=("torch", "torch_geometric.nn", "torch_geometric.data", "networkx"),
)
