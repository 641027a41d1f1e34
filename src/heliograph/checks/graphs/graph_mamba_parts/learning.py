"""Training of the arms for the same steps on the same boards or peptides, then one test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from heliograph.checks.graphs.graph_mamba_parts.arms import build_arm
from heliograph.checks.graphs.graph_mamba_parts.boards import KINDS, make_board, split_board
from heliograph.checks.graphs.supervised import train_batches
from heliograph.graphs.core.encodings import RWSE, cached
from heliograph.graphs.core.message_passing import count_parameters
from heliograph.graphs.core.tasks import TargetSpec, load_task
from heliograph.graphs.graph_mamba import WalkTokens
from heliograph.trials.check import Context

__all__ = ["Learning", "load_boards", "load_peptides", "measure_trained"]

TEST_BATCH = 8


@dataclass(frozen=True)
class Learning:
    """What is learned: graphs of both sides, what a model reads, and what its answers mean."""

    train: tuple[Any, ...]
    test: tuple[Any, ...]
    inputs: Mapping[str, Any]
    target: TargetSpec


def measure_trained(context: Context) -> Mapping[str, Any]:
    """One arm's scores on what it has not seen, by the names of the task's metrics."""
    from torch_geometric.data import Batch

    load = context.workload
    learning = load_peptides(load, context.seed) if load["task"] == "peptides" else load_boards(load, context.seed)
    model = build_arm(context.contender, learning.inputs, load, context.seed).to(context.device)
    size = load["batch"]
    parts = [learning.train[i : i + size] for i in range(0, len(learning.train), size)]
    batches = [Batch.from_data_list(list(part)).to(context.device) for part in parts]
    steps = train_batches(context, model, batches, learning.target)
    values = _score(model, learning, context.device)
    return {**values, "parameters": count_parameters(model), "steps": steps}


def load_boards(load: Any, seed: int) -> Learning:
    """Boards: whole ones on both sides, or one board whose vertices are split."""
    side, split = load["side"], load["test"] == 0
    count = 1 if split else load["train"] + load["test"]
    boards = [make_board(side, seed * 10_007 + number) for number in range(count)]
    if load["shuffle"]:
        random = torch.Generator().manual_seed(seed)
        for board in boards:
            board.y = board.y[torch.randperm(len(board.y), generator=random)]
    (grid,) = cached(boards[:1], [RWSE(load["pe_steps"], dim=load["pe_dim"])])
    tokens = WalkTokens(load["m"], load["walks"], load["samples"], seed)
    for number, board in enumerate(boards):
        board.rwse = grid.rwse  # all boards are the same graph
        boards[number] = tokens(board)
    train, test = split_board(boards[0], seed) if split else (None, None)
    sides = ((train,), (test,)) if split else (tuple(boards[: load["train"]]), tuple(boards[load["train"] :]))
    inputs = {"out_dim": 2, "node_types": KINDS, "pool": None}
    return Learning(*sides, inputs, TargetSpec("vertex", "class", 2))


def load_peptides(load: Any, seed: int) -> Learning:
    """Heavy-atom graphs of peptides: antimicrobial or not."""
    task = load_task("peptides", seed=seed, train=load["train"], valid=0, test=load["test"])
    encodings = [RWSE(load["pe_steps"], dim=load["pe_dim"])]
    tokens = WalkTokens(load["m"], load["walks"], load["samples"], seed)
    sides = []
    for number, graphs in enumerate((task.train, task.test)):
        made = [tokens(graph) for graph in cached(graphs, encodings)]
        sides.append(tuple(_shuffled(made, seed + number) if load["shuffle"] else made))
    return Learning(sides[0], sides[1], {**task.inputs(), "pool": "mean"}, task.target)


def _shuffled(graphs: Sequence[Any], seed: int) -> list[Any]:
    order = torch.randperm(len(graphs), generator=torch.Generator().manual_seed(seed)).tolist()
    targets = [graphs[place].y for place in order]
    for graph, y in zip(graphs, targets, strict=True):
        graph.y = y
    return list(graphs)


def _score(model: nn.Module, learning: Learning, device: str) -> dict[str, float]:
    from torch_geometric.data import Batch

    model.eval()
    graphs = list(learning.test)
    with torch.no_grad():
        parts = [
            learning.target.decode(model(Batch.from_data_list(graphs[i : i + TEST_BATCH]).to(device))).cpu()
            for i in range(0, len(graphs), TEST_BATCH)
        ]
    y = torch.cat([graph.y for graph in graphs])
    return dict(learning.target.score(torch.cat(parts), y).values)
