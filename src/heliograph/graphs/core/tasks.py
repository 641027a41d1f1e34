"""Tasks: graphs with targets, what kind of target it is, and how answers are scored; real ones by name.

The names and where their data lie: ``molecules.zinc`` (wheel ``molsets`` + ``rdkit``), ``tu.mutag`` (``grakel``),
``peptides`` (``modlamp`` + ``rdkit``); ``sbm.pattern``, ``sbm.cluster`` and ``minesweeper`` are generated.

Shapes: B graphs, N vertices, C outputs of a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from heliograph.data import communities, molecules, peptides, tu
from heliograph.errors import BadInput

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["TASKS", "Answers", "GraphTask", "Metrics", "TargetSpec", "infer_target", "load_task", "random_split"]

Level = Literal["graph", "vertex"]
Kind = Literal["value", "class", "labels"]
UNKNOWN = -1  # a class that is not asked for
MOST_CLASSES = 100


@dataclass(frozen=True)
class TargetSpec:
    """What ``y`` is.

    Attributes:
        level: of the graph or of each vertex.
        kind: "value" (numbers, L1 loss), "class" (one of several; -1 is not scored), or "labels" (several yes or no).
        outputs: numbers that a model gives: values, classes or labels.
        weighted: whether rare classes weigh as much as common ones, in the loss and in the accuracy.
        mean, deviation: of the training values; models are trained on (y - mean) / deviation.
        class_weights: of the loss, (V - n_c) / V of the training targets, where ``weighted``.
        columns: names of the targets, where the user's file gave them.
    """

    level: Level
    kind: Kind
    outputs: int
    weighted: bool = False
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    class_weights: tuple[float, ...] = ()
    columns: tuple[str, ...] = ()

    def fitted(self, graphs: Sequence[Any]) -> TargetSpec:
        """With the statistics of these training graphs."""
        y = self.targets(graphs)
        if self.kind == "value":
            deviation = y.double().std(0, unbiased=False)
            scale = tuple(torch.where(deviation > 0, deviation, 1.0).tolist())
            return replace(self, mean=tuple(y.double().mean(0).tolist()), deviation=scale)
        if self.kind == "class" and self.weighted:
            counts = torch.bincount(y[y != UNKNOWN], minlength=self.outputs).double()
            return replace(self, class_weights=tuple(((counts.sum() - counts) / counts.sum()).tolist()))
        return self

    def targets(self, graphs: Sequence[Any]) -> Tensor:
        """All targets: [rows] of classes, or [rows, outputs]."""
        return self.read(torch.cat([graph.y.reshape(-1, *graph.y.shape[1:]) for graph in graphs]))

    def read(self, y: Tensor) -> Tensor:
        """A batch's ``y`` in the shape of the answers: [rows] of classes, or [rows, outputs] of numbers."""
        return y.reshape(-1) if self.kind == "class" else y.reshape(-1, self.outputs).float()

    def loss(self, answer: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch: L1 on standardised values, cross-entropy, or binary cross-entropy."""
        y, answer = self.read(y), answer.float()
        if self.kind == "value":
            mean, deviation = answer.new_tensor(self.mean), answer.new_tensor(self.deviation)
            return torch.nn.functional.l1_loss(answer, (y - mean) / deviation)
        if self.kind == "labels":
            known = y.isfinite()
            losses = torch.nn.functional.binary_cross_entropy_with_logits(answer, y.nan_to_num(), reduction="none")
            return (losses * known).sum() / known.sum().clamp(min=1)
        weight = answer.new_tensor(self.class_weights) if self.class_weights else None
        if weight is None:
            return torch.nn.functional.cross_entropy(answer, y, ignore_index=UNKNOWN)
        # the mean over vertices, not over weights: a batch of common classes must not count as much as one of rare
        losses = torch.nn.functional.cross_entropy(answer, y, weight, ignore_index=UNKNOWN, reduction="sum")
        return losses / (y != UNKNOWN).sum().clamp(min=1)

    def decode(self, answer: Tensor) -> Tensor:
        """A model's answer in the unit of the targets: values, or logits as they are."""
        if self.kind != "value":
            return answer.float()
        return answer.float() * answer.new_tensor(self.deviation) + answer.new_tensor(self.mean)

    def score(self, decoded: Tensor, y: Tensor) -> Metrics:
        """The metrics of all answers at once."""
        y = self.read(y)
        if self.kind == "value":
            return _value_metrics(decoded, y)
        return _class_metrics(self, decoded, y) if self.kind == "class" else _label_metrics(decoded, y)

    def oracle(self, y: Tensor) -> Tensor:
        """Targets as a perfect model would answer them, after :meth:`decode`."""
        y = self.read(y)
        if self.kind == "value":
            return y
        if self.kind == "labels":
            return (y.nan_to_num() * 2 - 1) * 20
        return torch.nn.functional.one_hot(y.clamp(min=0), self.outputs).float() * 20

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TargetSpec:
        """From :meth:`to_json`."""
        options: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in data.items()}
        return cls(**options)

    def __str__(self) -> str:
        """In words."""
        what = {
            "value": f"{self.outputs} number{'s' * (self.outputs > 1)}",
            "class": f"one of {self.outputs} classes",
            "labels": f"{self.outputs} yes-or-no label{'s' * (self.outputs > 1)}",
        }
        return f"{what[self.kind]} for each {self.level}"


@dataclass(frozen=True)
class Metrics:
    """Scores by name; ``main`` names the one that decides, and ``higher`` says which way is better.

    Each is also an attribute: ``metrics.mae``.
    """

    values: Mapping[str, float]
    main: str
    higher: bool

    def __getattr__(self, name: str) -> float:
        """A score by name."""
        if not name.startswith("_") and name in self.values:
            return self.values[name]
        raise AttributeError(f"these metrics are {', '.join(self.values)}; no {name}")

    @property
    def quality(self) -> float:
        """The value of ``main``."""
        return self.values[self.main]


@dataclass(frozen=True)
class Answers:
    """Decoded answers [rows, outputs] and the targets they belong to."""

    decoded: Tensor
    targets: Tensor


@dataclass(frozen=True)
class GraphTask:
    """Graphs of one task, split.

    Attributes:
        name: of the task, or of the user's file.
        train, valid, test: PyTorch Geometric ``Data``; ``valid`` may be empty.
        target: what ``y`` is, with the statistics of ``train``.
        node_types, in_dim, edge_types, edge_dim: what ``x`` and ``edge_attr`` hold, as :class:`GNNPlus` takes them.
        notes: sentences about the data that a report must carry.
    """

    name: str
    train: tuple[Any, ...]
    valid: tuple[Any, ...]
    test: tuple[Any, ...]
    target: TargetSpec
    node_types: int | tuple[int, ...] | None = None
    in_dim: int = 0
    edge_types: int | tuple[int, ...] | None = None
    edge_dim: int = 0
    notes: tuple[str, ...] = field(default=())

    def inputs(self) -> dict[str, Any]:
        """The arguments of a model that depend on the data."""
        names = ("node_types", "in_dim", "edge_types", "edge_dim")
        return {name: getattr(self, name) for name in names} | {"out_dim": self.target.outputs}


def load_task(name: str, seed: int = 0, **sizes: int) -> GraphTask:
    """A task of :data:`TASKS` by name; those of :data:`prepared.MAKERS` come from a kept file where there is one.

    Args:
        seed: of the draw and the split.
        sizes: of the task: ``train``, ``valid`` and ``test`` graphs.

    Raises:
        BadInput: no such task. MissingData: the package that carries its data is not installed.
    """
    if name not in TASKS:
        raise BadInput(f"no task {name!r}; choose from {', '.join(TASKS)}")
    from heliograph.graphs.core import prepared  # which knows this module's classes

    def make() -> GraphTask:
        return TASKS[name](seed, **sizes)

    return prepared.keep_task(name, seed, sizes, make) if name in prepared.MAKERS else make()


def infer_target(graphs: Sequence[Any], where: str = "the graphs") -> TargetSpec:
    """What ``y`` is, from its type, shape and values.

    Whole numbers from 0 (or -1 for unknown) below 100 are classes; several columns of 0 and 1 are labels; else values.

    Raises:
        BadInput: no ``y``, shapes that differ, NaN or infinity, or the same target everywhere.
    """
    for place, graph in enumerate(graphs):
        if graph.get("y") is None:
            raise BadInput(f"{where}: graph {place} has no target y")
    rows = [len(graph.y) if graph.y.dim() else 1 for graph in graphs]
    per_vertex = all(count == graph.num_nodes for count, graph in zip(rows, graphs, strict=True))
    if not per_vertex and set(rows) != {1}:
        wrong = next(p for p, count in enumerate(rows) if count not in (1, graphs[p].num_nodes))
        raise BadInput(
            f"{where}: graph {wrong} has {rows[wrong]} rows of y; one a graph or one a vertex "
            f"({graphs[wrong].num_nodes}) is expected"
        )
    level: Level = "vertex" if per_vertex and set(rows) != {1} else "graph"
    widths = {graph.y.shape[1] if graph.y.dim() == 2 else 1 for graph in graphs}
    if len(widths) > 1:
        raise BadInput(f"{where}: y has {sorted(widths)} columns in different graphs; one number is expected")
    width = widths.pop()
    values = torch.cat([graph.y.reshape(-1, width).double() for graph in graphs])
    if not bool(values.isfinite().all()):
        row = int((~values.isfinite()).any(1).nonzero()[0])
        raise BadInput(f"{where}: target row {row} holds NaN or infinity; leave those rows out first")
    for column in range(width):
        if bool((values[:, column] == values[0, column]).all()):
            raise BadInput(
                f"{where}: target column {column} is {values[0, column].item():g} everywhere; there is nothing to learn"
            )
    whole = not any(graph.y.is_floating_point() for graph in graphs)
    if whole and width == 1 and values.min() >= UNKNOWN and values.max() < MOST_CLASSES:
        return TargetSpec(level, "class", int(values.max()) + 1)
    if width > 1 and bool(((values == 0) | (values == 1)).all()):
        return TargetSpec(level, "labels", width)
    return TargetSpec(level, "value", width)


def random_split(
    graphs: Sequence[Any], seed: int, valid: float = 0.1, test: float = 0.1
) -> tuple[list[Any], list[Any], list[Any]]:
    """A seeded split; each part has at least one graph.

    Raises:
        BadInput: fewer than three graphs, or shares that leave nothing for training.
    """
    if len(graphs) < 3 or not 0 < valid < 1 or not 0 < test < 1 or valid + test >= 1:
        raise BadInput(
            f"a split needs 3 graphs or more and shares that leave some for training; got {len(graphs)} graphs, "
            f"{valid:g} for validation and {test:g} for testing"
        )
    order = torch.randperm(len(graphs), generator=torch.Generator().manual_seed(seed)).tolist()
    n_valid, n_test = max(1, round(valid * len(order))), max(1, round(test * len(order)))
    mixed = [graphs[place] for place in order]
    return mixed[n_valid + n_test :], mixed[:n_valid], mixed[n_valid : n_valid + n_test]


def molecule_graph(mol: molecules.Molecule, vocabulary: Sequence[molecules.AtomKind]) -> Data:
    """A molecule as ``Data``: x [n] numbers of atom kinds (0 unknown), edge_attr [E] bond orders."""
    from torch_geometric.data import Data

    number = {kind: place + 1 for place, kind in enumerate(vocabulary)}
    return Data(
        x=torch.tensor([number.get(kind, 0) for kind in mol.kinds]),
        edge_index=torch.from_numpy(mol.edge_index),
        edge_attr=torch.from_numpy(mol.bonds),
    )


def _zinc(seed: int, train: int = 2000, valid: int = 200, test: int = 500) -> GraphTask:
    first, last = molecules.zinc(train + valid, test, seed)

    def graphs(sample: molecules.MoleculeSample) -> list[Data]:
        out = []
        for mol, y in zip(sample.molecules, sample.targets, strict=True):
            graph = molecule_graph(mol, first.vocabulary)
            graph.y = torch.tensor([y], dtype=torch.float32)
            out.append(graph)
        return out

    known, held = graphs(first), graphs(last)
    target = TargetSpec("graph", "value", 1).fitted(known[:train])
    note = "targets are standardised over this sample, so errors compare with the benchmark's in kind, not in digits"
    return GraphTask(
        "molecules.zinc", tuple(known[:train]), tuple(known[train:]), tuple(held), target,
        node_types=first.node_types, edge_types=molecules.BOND_TYPES, notes=(note,),
    )  # fmt: skip


def _mutag(seed: int, train: int = 140, valid: int = 20, test: int = 28) -> GraphTask:
    from torch_geometric.data import Data

    graphs = [
        Data(
            x=torch.from_numpy(g.node_labels),
            edge_index=torch.from_numpy(g.edge_index),
            edge_attr=torch.from_numpy(g.edge_labels),
            y=torch.tensor([g.target]),
        )
        for g in tu.mutag()
    ]
    parts = _draw(graphs, seed, train, valid, test)
    node, edge = (max(int(g[name].max()) for g in graphs) + 1 for name in ("x", "edge_attr"))
    return GraphTask("tu.mutag", *parts, TargetSpec("graph", "class", 2).fitted(parts[0]), node, 0, edge)


def _peptides(seed: int, train: int = 400, valid: int = 100, test: int = 200) -> GraphTask:
    sequences, labels = peptides.amp_sequences()
    order = np.random.default_rng(seed).permutation(len(sequences))
    found: list[tuple[molecules.Molecule, int]] = []
    for place in order:  # sequences with letters that stand for no natural amino acid are passed over
        mol = peptides.peptide_molecule(sequences[place])
        if mol is not None:
            found.append((mol, int(labels[place])))
        if len(found) == train + valid + test:
            break
    if len(found) < train + valid + test:
        raise BadInput(f"the file holds {len(found)} peptides; got {train + valid + test}")
    vocabulary = molecules.atom_kinds([mol for mol, _ in found[:train]])
    graphs = []
    for mol, label in found:
        graph = molecule_graph(mol, vocabulary)
        graph.y = torch.tensor([[float(label)]])
        graphs.append(graph)
    parts = tuple(graphs[:train]), tuple(graphs[train : train + valid]), tuple(graphs[train + valid :])
    target = TargetSpec("graph", "labels", 1).fitted(parts[0])
    return GraphTask("peptides", *parts, target, len(vocabulary) + 1, 0, molecules.BOND_TYPES)


def _labelled(
    name: str, make: Callable[[int, int], Sequence[communities.LabelledGraph]], types: int, classes: int
) -> Callable[..., GraphTask]:
    def load(seed: int, train: int = 200, valid: int = 40, test: int = 80) -> GraphTask:
        from torch_geometric.data import Data

        graphs = [
            Data(
                x=torch.from_numpy(g.features), edge_index=torch.from_numpy(g.edge_index), y=torch.from_numpy(g.labels)
            )
            for g in make(train + valid + test, seed)
        ]
        parts = tuple(graphs[:train]), tuple(graphs[train : train + valid]), tuple(graphs[train + valid :])
        target = TargetSpec("vertex", "class", classes, weighted=True).fitted(parts[0])
        return GraphTask(name, *parts, target, node_types=types)

    return load


def _draw(
    graphs: list[Data], seed: int, train: int, valid: int, test: int
) -> tuple[tuple[Data, ...], tuple[Data, ...], tuple[Data, ...]]:
    if train + valid + test > len(graphs) or min(train, test) < 1:
        raise BadInput(f"the file holds {len(graphs)} graphs; got {train} + {valid} + {test}")
    order = np.random.default_rng(seed).permutation(len(graphs))
    mixed = [graphs[place] for place in order]
    return tuple(mixed[:train]), tuple(mixed[train : train + valid]), tuple(mixed[train + valid :][:test])


TASKS: Mapping[str, Callable[..., GraphTask]] = {
    "molecules.zinc": _zinc,
    "tu.mutag": _mutag,
    "peptides": _peptides,
    "sbm.pattern": _labelled("sbm.pattern", communities.pattern, 3, 2),
    "sbm.cluster": _labelled("sbm.cluster", communities.cluster, 7, 6),
    "minesweeper": _labelled("minesweeper", lambda count, seed: communities.minesweeper(count, seed=seed), 10, 2),
}


def _value_metrics(decoded: Tensor, y: Tensor) -> Metrics:
    decoded, y = decoded.double(), y.double()
    residual = decoded - y
    spread = (y - y.mean(0)).square().sum(0)
    r2 = (1 - residual.square().sum(0) / torch.where(spread > 0, spread, torch.nan)).nanmean()
    mae, rmse = residual.abs().mean(), residual.square().mean().sqrt()
    return Metrics({"mae": float(mae), "rmse": float(rmse), "r2": float(r2)}, "mae", higher=False)


def _class_metrics(spec: TargetSpec, logits: Tensor, y: Tensor) -> Metrics:
    asked = y != UNKNOWN
    logits, y = logits[asked], y[asked]
    right = (logits.argmax(-1) == y).double()
    by_class = [right[y == c].mean() for c in range(spec.outputs) if bool((y == c).any())]
    values = {"accuracy": float(right.mean()), "balanced_accuracy": float(torch.stack(by_class).mean())}
    if spec.outputs == 2 and len(by_class) == 2:
        import torchmetrics.functional as scores

        values["auroc"] = _number(scores.auroc(logits.softmax(-1)[:, 1], y, task="binary"))
    return Metrics(values, "balanced_accuracy" if spec.weighted else "accuracy", higher=True)


def _number(value: Tensor | None) -> float:
    return math.nan if value is None else float(value)


def _label_metrics(logits: Tensor, y: Tensor) -> Metrics:
    import torchmetrics.functional as scores

    precision, area = [], []
    for column in range(y.shape[1]):
        known = y[:, column].isfinite()
        truth, given = y[known, column].long(), logits[known, column].sigmoid()
        if 0 < int(truth.sum()) < len(truth):  # without both answers neither is defined
            precision.append(_number(scores.average_precision(given, truth, task="binary")))
            area.append(_number(scores.auroc(given, truth, task="binary")))
    if not precision:
        raise BadInput("no label has both answers among these graphs; average precision is not defined")
    values = {"average_precision": sum(precision) / len(precision), "auroc": sum(area) / len(area)}
    return Metrics(values, "average_precision", higher=True)
