"""Roll-outs of a simulator, and their errors: the boundary is given, a value out of range ends a roll-out.

Shapes: N vertices, T frames, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from heliograph.data.mesh import MeshTrajectory
from heliograph.errors import BadInput, HeliographError
from heliograph.graphs.mesh_transformer.frame import MeshFrame

if TYPE_CHECKING:
    from heliograph.graphs.mesh_transformer.simulator import MeshSimulator

__all__ = ["MeshScore", "RolloutDivergence", "one_step", "roll_out", "score"]

DIVERGED = 10.0
CHUNK = 8


class RolloutDivergence(HeliographError, FloatingPointError):
    """A roll-out left the range of the training fields.

    Attributes:
        step: of the first frame outside, counted from 1.
        value, limit: the largest magnitude there, and what was allowed.
        frames: the frames before it, [step - 1, N, C].
    """

    def __init__(self, step: int, value: float, limit: float, frames: Tensor) -> None:
        super().__init__(
            f"the roll-out diverged at step {step}: a value of {value:.3g} is above {limit:.3g}, {DIVERGED:g} times "
            "the largest of training; train longer, with more noise, or roll out fewer steps"
        )
        self.step, self.value, self.limit, self.frames = step, value, limit, frames

    def __reduce__(self) -> tuple[type[RolloutDivergence], tuple[int, float, float, Tensor]]:
        return type(self), (self.step, self.value, self.limit, self.frames)


@dataclass(frozen=True)
class MeshScore:
    """Errors in the unit of the fields.

    Attributes:
        one_step_rmse: from true frames, over the vertices that are predicted.
        one_step_persistence: the same for a field that stays as it is.
        all_rollout_rmse: root of the mean square over trajectories, steps, vertices and channels.
        persistence_rmse: the same for a field that stays as in the first frame (boundary given).
        by_step: root mean square error after each step, for as many steps as all trajectories have.
        diverged: (trajectory, step) of roll-outs that left the range; from there on their last frame counts.
    """

    one_step_rmse: float
    one_step_persistence: float
    all_rollout_rmse: float
    persistence_rmse: float
    by_step: tuple[float, ...]
    diverged: tuple[tuple[int, int], ...] = ()


def roll_out(
    simulator: MeshSimulator,
    trajectory: MeshTrajectory,
    steps: int | None = None,
    start: int | None = None,
    callback: Callable[[int], None] | None = None,
) -> Tensor:
    """See :meth:`MeshSimulator.rollout`."""
    _require_trained(simulator, [trajectory])
    first = int(simulator.history)
    start = first if start is None else start
    if not first <= start < trajectory.frames:
        raise BadInput(f"start must lie in {first} to {trajectory.frames - 1}; got {start}")
    steps = trajectory.frames - 1 - start if steps is None else steps
    if steps < 1:
        raise BadInput(f"a roll-out needs 1 step or more; got {steps}")
    frames = torch.empty((steps, trajectory.num_vertices, simulator.schema.channels))
    limit = _limit(simulator)
    with simulator.evaluating():
        for number, ahead in enumerate(_advance(simulator, [trajectory], start, steps)):
            outside = ~(ahead.abs() <= limit)
            if bool(outside.any()):
                channel = int(outside.any(0).int().argmax())
                value = float(ahead[:, channel].abs().nan_to_num(torch.inf).max())
                raise RolloutDivergence(number + 1, value, float(limit[channel]), frames[:number].clone())
            frames[number] = ahead.cpu()
            if callback is not None:
                callback(number + 1)
    return frames


def _limit(simulator: MeshSimulator) -> Tensor:
    """By channel, [C]; a channel that was 0 in all of training is measured by the largest of the others."""
    largest = simulator.largest
    return DIVERGED * torch.where(largest > 0, largest, largest.max())


def one_step(simulator: MeshSimulator, trajectory: MeshTrajectory) -> Tensor:
    """See :meth:`MeshSimulator.one_step`."""
    simulator.require([trajectory])
    with simulator.evaluating():
        mesh = simulator.mesh_of(trajectory)
        truth = torch.from_numpy(trajectory.fields).to(simulator.device)
        out: list[Tensor] = []
        joined: dict[int, MeshFrame] = {}
        for chunk in torch.split(torch.arange(int(simulator.history), len(truth) - 1), CHUNK):
            if len(chunk) not in joined:
                joined[len(chunk)] = MeshFrame.join([mesh] * len(chunk))
            frame = joined[len(chunk)]
            now, ahead = truth[chunk], truth[chunk + 1]
            change = (now - truth[chunk - 1]).flatten(0, 1) if simulator.history else None
            stepped = simulator.step(frame, now.flatten(0, 1), change)
            out.append(torch.where(frame.held, ahead.flatten(0, 1), stepped).reshape(now.shape).cpu())
        return torch.cat(out)


def score(simulator: MeshSimulator, trajectories: Sequence[MeshTrajectory]) -> MeshScore:
    """See :meth:`MeshSimulator.score`."""
    _require_trained(simulator, trajectories)
    first = int(simulator.history)
    one, still, stays = [], [], []
    for trajectory in trajectories:
        truth = torch.from_numpy(trajectory.fields)
        free = torch.isin(torch.from_numpy(trajectory.node_type), torch.tensor(simulator.loss_types))
        ahead = truth[first + 1 :]
        one.append((one_step(simulator, trajectory) - ahead)[:, free].square().flatten())
        still.append((truth[first:-1] - ahead)[:, free].square().flatten())
        stays.append((torch.where(free.unsqueeze(1), truth[first], ahead) - ahead).square().mean((1, 2)))
    by_length: dict[int, list[int]] = {}
    for number, trajectory in enumerate(trajectories):
        by_length.setdefault(trajectory.frames, []).append(number)
    rolled: dict[int, Tensor] = {}
    diverged: list[tuple[int, int]] = []
    for group in by_length.values():
        for begin in range(0, len(group), CHUNK):
            numbers = group[begin : begin + CHUNK]
            errors, stopped = _errors(simulator, [trajectories[n] for n in numbers])
            rolled |= dict(zip(numbers, errors, strict=True))
            diverged += [(n, step) for n, step in zip(numbers, stopped, strict=True) if step]
    common = min(len(errors) for errors in rolled.values())
    curve = torch.stack([errors[:common] for errors in rolled.values()]).mean(0).sqrt()
    means = [float(torch.cat([*parts]).mean().sqrt()) for parts in (one, still, rolled.values(), stays)]
    return MeshScore(means[0], means[1], means[2], means[3], tuple(curve.tolist()), tuple(sorted(diverged)))


def _errors(simulator: MeshSimulator, trajectories: Sequence[MeshTrajectory]) -> tuple[list[Tensor], list[int]]:
    """Mean square error after each step of roll-outs side by side, and the step where each diverged, or 0.

    A roll-out that diverged keeps its last frame: it costs what it costs, and no other one is touched.
    """
    first = int(simulator.history)
    begins = [0]
    for trajectory in trajectories:
        begins.append(begins[-1] + trajectory.num_vertices)
    truth = torch.cat([torch.from_numpy(t.fields) for t in trajectories], dim=1).to(simulator.device)
    owner = torch.repeat_interleave(
        torch.arange(len(trajectories)), torch.tensor([t.num_vertices for t in trajectories])
    ).to(simulator.device)
    limit = _limit(simulator)
    lost = torch.zeros(len(trajectories), dtype=torch.bool, device=simulator.device)
    stopped = torch.zeros(len(trajectories), dtype=torch.long, device=simulator.device)
    last, squares = truth[first], []
    with simulator.evaluating():
        for number, ahead in enumerate(_advance(simulator, trajectories, first, len(truth) - 1 - first)):
            outside = (~(ahead.abs() <= limit)).any(1)
            lost = lost | (torch.zeros(len(lost), device=lost.device).index_add(0, owner, outside.float()) > 0)
            stopped = torch.where(lost & (stopped == 0), number + 1, stopped)
            last = torch.where(lost[owner].unsqueeze(1), last, ahead)
            squares.append((last - truth[first + number + 1]).square().mean(1).cpu())
    by_vertex = torch.stack(squares)
    each = [by_vertex[:, begins[k] : begins[k + 1]].mean(1) for k in range(len(trajectories))]
    return each, stopped.tolist()


def _advance(
    simulator: MeshSimulator, trajectories: Sequence[MeshTrajectory], start: int, steps: int
) -> Iterator[Tensor]:
    """Frame after frame, [N, C], of trajectories of one length side by side, each from the one before."""
    frame = MeshFrame.join([simulator.mesh_of(trajectory) for trajectory in trajectories])
    truth = torch.cat([torch.from_numpy(t.fields) for t in trajectories], dim=1).to(simulator.device)
    now, before = truth[start], truth[start - 1] if simulator.history else None
    for number in range(steps):
        change = now - before if before is not None else None
        ahead = simulator.step(frame, now, change)
        ahead = torch.where(frame.held, truth[min(start + number + 1, len(truth) - 1)], ahead)
        yield ahead
        now, before = ahead, now if simulator.history else None


def _require_trained(simulator: MeshSimulator, trajectories: Sequence[MeshTrajectory]) -> None:
    simulator.require(trajectories)
    if not bool(simulator.largest.any()):
        raise BadInput("this simulator is not trained: call fit, or load one")
