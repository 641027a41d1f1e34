"""Comparison on graphs as they are: the named networks on a task of PyG graphs, or on the user's files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from heliograph.errors import BadInput
from heliograph.graphs.core.message_passing import count_parameters, match_width
from heliograph.graphs.core.tasks import GraphTask, load_task
from heliograph.graphs.core.train import encoded
from heliograph.graphs.inputs import make_task, read_graphs
from heliograph.graphs.models import MODELS, Shape, build_model
from heliograph.trials.check import Context, Workload

if TYPE_CHECKING:
    from torch_geometric.data import Batch

__all__ = [
    "adopt_graphs",
    "graph_loss",
    "graph_score",
    "load_graph_task",
    "make_matched",
    "quality_of_task",
    "task_batches",
]

TOLERANCE = 0.05
FEWEST = 10
SIZES = {
    "molecules.zinc": {"train": 2000, "valid": 0, "test": 500},
    "tu.mutag": {"train": 150, "valid": 0, "test": 38},
    "peptides": {"train": 400, "valid": 0, "test": 200},
    "sbm.pattern": {"train": 200, "valid": 0, "test": 80},
    "sbm.cluster": {"train": 200, "valid": 0, "test": 80},
    "minesweeper": {"train": 16, "valid": 0, "test": 8},
}


def adopt_graphs(path: Path, target: str = "") -> Workload:
    """The user's graphs as a workload; read once here, so that bad input is refused before work starts."""
    read = read_graphs(path, target)
    task = make_task(read, str(path))
    if len(read.graphs) < FEWEST and not _is_split_graph(task):
        raise BadInput(f"{path} holds {len(read.graphs)} graphs; training and testing need at least {FEWEST}")
    quality, direction = quality_of_task(task)
    params = {"kind": "graphs", "target": target, "quality": quality, "direction": direction}
    return Workload("your graphs", params, str(path.resolve()))


def quality_of_task(task: GraphTask) -> tuple[str, Literal["higher", "lower"]]:
    """Name and direction of what a task is scored by, found by scoring its own targets."""
    y = task.target.targets(task.test)
    perfect = task.target.score(task.target.oracle(y), y)
    return perfect.main, "higher" if perfect.higher else "lower"


def load_graph_task(context: Context) -> GraphTask:
    """The workload's graphs, split by the trial's seed."""
    load = context.workload
    if load["kind"] == "task":
        return load_task(load["task"], seed=context.seed, **SIZES[load["task"]])
    path = Path(load.path)
    return make_task(read_graphs(path, load["target"]), str(path), seed=context.seed, valid=0.02, test=0.2)


def make_matched(context: Context, task: GraphTask, shape: Shape) -> nn.Module:
    """The contender, untrained, with as many parameters as the reference within 5 % where the workload says so."""
    name, reference = context.contender, context.workload["match"]
    inputs, level = task.inputs(), task.target.level

    def build(width: int) -> nn.Module:
        return build_model(name, inputs, level, replace(shape, hidden=width))

    width = shape.hidden
    if reference and reference != name:
        with torch.device("meta"):
            wanted = count_parameters(build_model(reference, inputs, level, shape))
        width = match_width(build, wanted, TOLERANCE, multiple=max(2, MODELS[name].multiple), largest=1024)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        return build(width)


def task_batches(model: nn.Module, task: GraphTask, size: int, device: str) -> tuple[list[Batch], list[Batch]]:
    """Training and test graphs with what the model reads beside them, collated once so that nobody pays for it."""
    from torch_geometric.data import Batch

    def batches(graphs: tuple[Any, ...]) -> list[Batch]:
        known = encoded(model, graphs)
        return [Batch.from_data_list(known[i : i + size]).to(device) for i in range(0, len(known), size)]

    return batches((*task.train, *task.valid)) if not _is_split_graph(task) else batches(task.train), batches(task.test)


def graph_loss(task: GraphTask, model: nn.Module, batch: Batch) -> Tensor:
    """The task's loss of one batch."""
    return task.target.loss(model(batch), batch.y)


def graph_score(task: GraphTask, model: nn.Module, batches: list[Batch]) -> float:
    """The task's quality over all test batches."""
    model.eval()
    with torch.no_grad():
        answers = torch.cat([task.target.decode(model(batch)).cpu() for batch in batches])
    return task.target.score(answers, torch.cat([batch.y.cpu() for batch in batches])).quality


def _is_split_graph(task: GraphTask) -> bool:
    """Whether one graph's vertices were split: then each part is that graph, with the other targets unknown."""
    return len(task.train) == len(task.test) == 1
