"""Simulators trained for equal seconds on solved flows, and scored on flows that they have not seen."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree

from heliograph.data.mesh import MeshSchema, MeshTrajectory, cylinder_trajectory, mesh_set
from heliograph.data.mesh_files import read_h5
from heliograph.errors import BadInput
from heliograph.graphs.core.message_passing import count_parameters
from heliograph.graphs.mesh_transformer import MeshGraphNet, MeshSimulator, MeshTransformer
from heliograph.trials.check import Context, Workload

__all__ = [
    "adopt_flows",
    "build_simulator",
    "flows_of",
    "measure_flow",
    "measure_permuted",
    "measure_trained",
    "other_changes",
]


def measure_flow(context: Context) -> Mapping[str, Any]:
    """Solves and keeps the flows that later trials of this block read."""
    flows = flows_of(context, context.workload["part"])
    still = [float(np.sqrt(np.square(flow.fields[1:] - flow.fields[:1]).mean())) for flow in flows]
    return {"flows": len(flows), "rms_change": float(np.mean(still))}


def measure_trained(context: Context) -> Mapping[str, Any]:
    """Errors of one arm on unseen flows; persistence is not trained."""
    load = context.workload
    flows = flows_of(context)
    train, test = flows[: load["train"]], flows[load["train"] :]
    if context.contender == "persistence":
        still, stays = zip(*(_persistence(flow) for flow in test), strict=True)
        return {"one_step_mse": float(np.mean(still)), "rollout_rmse": float(np.sqrt(np.mean(stays)))}
    simulator = build_simulator(context.contender, train[0].schema, load, context.seed).to(context.device)
    losses = _train(context, simulator, train, seconds=load["seconds"])
    score = simulator.score(test)
    by_step = [[step, error] for step, error in enumerate(score.by_step, start=1)]
    context.keep("curves", {"training loss": _thinned(losses), "roll-out error by step": by_step})
    context.say(
        f"{context.contender}: {len(losses)} steps, one-step RMSE {score.one_step_rmse:.4f} (persistence "
        f"{score.one_step_persistence:.4f}), roll-out RMSE {score.all_rollout_rmse:.4f} (persistence "
        f"{score.persistence_rmse:.4f}), diverged: {len(score.diverged)}"
    )
    return {
        "one_step_mse": score.one_step_rmse**2,
        "rollout_rmse": score.all_rollout_rmse,
        "steps": len(losses),
        "parameters": count_parameters(simulator.model),
        "diverged": len(score.diverged),
    }


def measure_permuted(context: Context) -> Mapping[str, Any]:
    """The same with each frame's change taken from another flow, in training and in the test: nothing to be learned."""
    load = context.workload
    flows = flows_of(context)
    random = np.random.default_rng(context.seed)
    train = other_changes(flows[: load["train"]], load["pairs"], random)
    test = other_changes(flows[load["train"] :], load["pairs"] // 2, random)
    simulator = build_simulator(context.contender, train[0].schema, load, context.seed).to(context.device)
    losses = _train(context, simulator, train, steps=load["steps"])
    squares = []
    for pair in test:
        free = np.isin(pair.node_type, simulator.loss_types)
        squares.append(np.square(simulator.one_step(pair).numpy()[0, free] - pair.fields[1, free]).mean())
    return {"one_step_mse": float(np.mean(squares)), "steps": len(losses)}


def flows_of(context: Context, part: Sequence[int] = ()) -> list[MeshTrajectory]:
    """The flows of this block, training ones first; or those with the numbers ``part[0]`` to ``part[1]`` only.

    Those of the user's file change places from block to block.
    """
    load = context.workload
    if load.path:
        given = read_h5(load.path)
        return [given[i] for i in np.random.default_rng(context.seed).permutation(len(given))]
    numbers = range(*part) if part else range(load["train"] + load["test"])
    return [
        cylinder_trajectory(
            number, vertices=load["vertices"], frames=load["frames"], warmup=load["warmup"], seed=context.seed
        )
        for number in numbers
    ]


def adopt_flows(path: Path, like: Workload) -> Workload:
    """The user's trajectories in place of solved flows; noise is a fiftieth of their deviation.

    Raises:
        BadInput: fewer than four trajectories, several schemas, or a file that cannot be read.
    """
    flows = read_h5(path)
    if len(flows) < 4:
        raise BadInput(
            f"{path} holds {len(flows)} trajectories; the check needs 4, two to train on and two for the test"
        )
    mesh_set(flows)
    test = max(2, len(flows) // 4)
    noise = 0.02 * float(np.mean([flow.fields.std() for flow in flows]))
    made = like.with_params(train=len(flows) - test, test=test, noise=noise)
    return replace(made, name=path.name, path=str(path))


def build_simulator(name: str, schema: MeshSchema, load: Any, seed: int) -> MeshSimulator:
    """An untrained arm: "mt", "mt large" or "mgn" with the layers and channels that the workload gives it."""
    layers, hidden = load["sizes"][name]
    width = schema.input_width()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: torch.nn.Module
        if name == "mgn":
            model = MeshGraphNet(width, schema.channels, hidden=hidden, layers=layers, dimensions=schema.dimensions)
        else:
            model = MeshTransformer(width, schema.channels, hidden=hidden, layers=layers, heads=load["heads"])
    return MeshSimulator(model, schema, noise_std=load["noise"])


def other_changes(flows: Sequence[MeshTrajectory], count: int, random: np.random.Generator) -> list[MeshTrajectory]:
    """Pairs of frames: a true one, and itself plus another flow's change at another time, by nearest vertices."""
    pairs = []
    for _ in range(count):
        own, other = (flows[i] for i in random.choice(len(flows), size=2, replace=False))
        frame, then = (int(random.integers(flow.frames - 1)) for flow in (own, other))
        _, nearest = cKDTree(other.pos).query(own.pos)
        now = own.fields[frame]
        pairs.append(own.with_fields(np.stack([now, now + (other.fields[then + 1] - other.fields[then])[nearest]])))
    return pairs


def _persistence(flow: MeshTrajectory) -> tuple[float, float]:
    """Mean square of the change between frames where it is predicted, and of that since the first frame."""
    free = np.isin(flow.node_type, (0, 5))
    still = np.square(np.diff(flow.fields, axis=0))[:, free].mean()
    moved = np.square(flow.fields[1:] - flow.fields[:1]) * free[None, :, None]
    return float(still), float(moved.mean())


def _thinned(losses: Sequence[float], points: int = 60) -> list[list[float]]:
    """[step, loss] of at most ``points`` stretches, each its mean."""
    parts = np.array_split(np.asarray(losses), min(points, max(1, len(losses))))
    ends = np.cumsum([len(part) for part in parts])
    return [[float(end), float(part.mean())] for end, part in zip(ends, parts, strict=True) if len(part)]


def _train(context: Context, simulator: MeshSimulator, train: Sequence[MeshTrajectory], **amount: Any) -> list[float]:
    def tell(step: int, done: float, loss: float) -> None:
        if step % 10 == 0:
            context.progress(0.9 * min(1.0, done), f"{context.contender} step {step}, loss {loss:.3g}")

    clock = time.process_time if context.device == "cpu" else time.perf_counter
    return list(simulator.fit(train, seed=context.seed, clock=clock, callback=tell, **amount).losses)
