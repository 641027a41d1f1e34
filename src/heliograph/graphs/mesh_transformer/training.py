"""Training of a simulator: pairs of frames in a drawn order, noise on normal vertices, clean targets.

AdamW (betas 0.9, 0.95; weight decay 1e-4), a linear warm-up and a cosine down to a thousandth, gradients clipped at a
norm of 1 (arXiv:2508.18051, code). All that is drawn depends on seed and step alone, so that a run that was interrupted
goes on as if it had not been.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heliograph.data.mesh import MeshTrajectory
from heliograph.errors import BadInput
from heliograph.graphs.core.fit import DivergenceError
from heliograph.graphs.mesh_transformer.frame import MeshFrame
from heliograph.graphs.mesh_transformer.simulator import MeshSimulator

__all__ = ["FitReport", "fit_simulator", "warm_cosine"]

Sample = tuple[int, int]
"""Trajectory and frame."""
SEED_STRIDE = 1_000_003
RATE_FLOOR = 1e-3


@dataclass(frozen=True)
class FitReport:
    """What a training run did: the loss of every step, its seconds, and the step it went on from (0: the beginning)."""

    losses: tuple[float, ...]
    seconds: float
    resumed_at: int = 0

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return len(self.losses)


@dataclass
class _Progress:
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def fit_simulator(
    simulator: MeshSimulator,
    trajectories: Sequence[MeshTrajectory],
    *,
    steps: int | None = None,
    seconds: float | None = None,
    batch: int = 1,
    learning_rate: float = 1e-3,
    warmup: float = 0.05,
    weight_decay: float = 1e-4,
    clip_norm: float = 1.0,
    seed: int = 0,
    folder: Path | None = None,
    resume: bool = False,
    save_every_s: float = 60.0,
    clock: Callable[[], float] = time.perf_counter,
    callback: Callable[[int, float, float], None] | None = None,
) -> FitReport:
    """Trains in place on the device where the simulator is; it is left in eval mode.

    Args:
        simulator: what to train.
        trajectories: of the simulator's schema.
        steps, seconds: how long; one of them.
        batch: frames a step, of any trajectories.
        learning_rate: the peak.
        warmup: share of the training that rises to it.
        weight_decay, clip_norm: of AdamW and the gradient.
        seed: of order, noise and random edges.
        folder: where the state of training is kept, at most every ``save_every_s`` seconds and at the end.
        resume: go on from there, if there is a state. With ``steps`` the result is that of a run that was never
            interrupted; with ``seconds`` the seconds already spent count.
        save_every_s: seconds between two states.
        clock: what seconds are read from; ``time.process_time`` leaves out what busy neighbours cost.
        callback: called after each step with (step, share done, loss).

    Raises:
        BadInput: no or unfit trajectories, both or neither of steps and seconds, a state of another run.
        DivergenceError: a loss that is not finite; no update is made from it.
    """
    simulator.require(trajectories)
    if (steps is None) == (seconds is None) or (steps or 1) < 1 or (seconds or 1.0) <= 0 or batch < 1:
        raise BadInput(f"give steps or seconds, positive, and a batch of 1 or more; got {steps}, {seconds} and {batch}")
    if resume and folder is None:
        raise BadInput("resume needs the folder of the run that was interrupted")
    samples = [(i, t) for i, one in enumerate(trajectories) for t in range(int(simulator.history), one.frames - 1)]
    loaded = [_Loaded(simulator, one) for one in trajectories]
    optimiser = torch.optim.AdamW(
        simulator.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True
    )
    state, key = _Progress(), _key(trajectories, batch, learning_rate, seed)
    path = None if folder is None else Path(folder) / "training.pt"
    if resume and path is not None and path.is_file():
        state = _read_state(path, key, simulator, optimiser)
    resumed_at = state.step
    with torch.no_grad():
        for one in loaded:
            simulator.largest.copy_(torch.maximum(simulator.largest, one.fields.abs().amax((0, 1))))
    begin, saved = clock() - state.seconds, time.monotonic()
    devices = [simulator.device] if simulator.device.type == "cuda" else []
    simulator.train()
    try:
        with torch.random.fork_rng(devices=devices):
            while True:
                state.seconds = clock() - begin
                done = state.step / steps if steps is not None else state.seconds / (seconds or 1.0)
                if done >= 1:
                    break
                state.step += 1
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate * warm_cosine(done, warmup)
                torch.manual_seed(seed * SEED_STRIDE + state.step)
                chosen = _chosen(samples, state.step - 1, batch, seed)
                loss = _loss(simulator, [(loaded[i], t) for i, t in chosen], state.step)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise DivergenceError(state.step, value)
                torch.nn.utils.clip_grad_norm_(simulator.parameters(), clip_norm)
                optimiser.step()
                state.losses.append(value)
                if callback is not None:
                    callback(state.step, done, value)
                if path is not None and time.monotonic() - saved >= save_every_s:
                    state.seconds = clock() - begin
                    _write_state(path, key, simulator, optimiser, state)
                    saved = time.monotonic()
    finally:
        simulator.eval()
    if path is not None:
        _write_state(path, key, simulator, optimiser, state)
    return FitReport(tuple(state.losses), state.seconds, resumed_at)


class _Loaded:
    """A trajectory on the simulator's device; its mesh is prepared once, unless every sample draws edges anew."""

    def __init__(self, simulator: MeshSimulator, trajectory: MeshTrajectory) -> None:
        self.fields = torch.from_numpy(trajectory.fields).to(simulator.device)
        self.trajectory = trajectory
        self.frame = None if simulator.support.random else simulator.mesh_of(trajectory)

    def mesh(self, simulator: MeshSimulator, seed: int) -> MeshFrame:
        return simulator.mesh_of(self.trajectory, seed) if self.frame is None else self.frame


def _loss(simulator: MeshSimulator, samples: Sequence[tuple[_Loaded, int]], seed: int) -> Tensor:
    """Mean square error of the normalised change, over the vertices that are predicted."""
    frame = MeshFrame.join([one.mesh(simulator, seed) for one, _ in samples])
    now = torch.cat([one.fields[t] for one, t in samples])
    ahead = torch.cat([one.fields[t + 1] for one, t in samples])
    now = _noisy(simulator, frame, now)
    change = now - torch.cat([one.fields[t - 1] for one, t in samples]) if simulator.history else None
    wanted = simulator.change_normaliser((ahead - now)[frame.free])
    loss: Tensor = (simulator(frame, now, change)[frame.free] - wanted).square().mean()
    return loss


def warm_cosine(share: float, warmup: float = 0.05) -> float:
    """A factor of the learning rate: up from a thousandth over ``warmup``, then a cosine down to a thousandth."""
    if share < warmup:
        return max(RATE_FLOOR, share / warmup)
    return max(RATE_FLOOR, 0.5 * (1 + math.cos(math.pi * min(1.0, (share - warmup) / (1 - warmup)))))


def _noisy(simulator: MeshSimulator, frame: MeshFrame, now: Tensor) -> Tensor:
    if not any(simulator.noise_std):
        return now
    scale = torch.tensor(simulator.noise_std, device=now.device)
    return now + torch.randn_like(now) * scale * frame.normal


def _chosen(samples: Sequence[Sample], step: int, batch: int, seed: int) -> list[Sample]:
    """The samples of a step: every pass has its own order, drawn from seed and pass."""
    chosen = []
    for number in range(step * batch, (step + 1) * batch):
        turn, place = divmod(number, len(samples))
        chosen.append(samples[_order(len(samples), seed * SEED_STRIDE + turn)[place]])
    return chosen


@functools.lru_cache(maxsize=2)
def _order(size: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist())


def _key(trajectories: Sequence[MeshTrajectory], batch: int, rate: float, seed: int) -> str:
    """What a resumed run must share with the one it goes on with."""
    digest = hashlib.sha256(f"{batch} {rate} {seed}".encode())
    for one in trajectories:
        digest.update(one.connectivity.encode() + one.fields.tobytes() + one.node_type.tobytes())
    return digest.hexdigest()


def _write_state(
    path: Path, key: str, simulator: MeshSimulator, optimiser: torch.optim.Optimizer, state: _Progress
) -> None:
    """Whole or not at all."""
    whole = {
        "key": key,
        "weights": simulator.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": state.step,
        "seconds": state.seconds,
        "losses": state.losses,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix="training-", suffix=".part")
    os.close(handle)
    try:
        torch.save(whole, part)
        Path(part).replace(path)
    finally:
        Path(part).unlink(missing_ok=True)


def _read_state(path: Path, key: str, simulator: MeshSimulator, optimiser: torch.optim.Optimizer) -> _Progress:
    try:
        whole: dict[str, Any] = torch.load(path, map_location=simulator.device, weights_only=True)
        found = whole["key"]
    except Exception as error:
        raise BadInput(f"{path} is no state of a training run: {str(error).splitlines()[0][:200]}") from None
    if found != key:
        raise BadInput(f"{path} belongs to a run with other trajectories, batch, rate or seed; choose another folder")
    try:
        simulator.load_state_dict(whole["weights"])
        optimiser.load_state_dict(whole["optimiser"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise BadInput(f"{path} belongs to another model: {str(error).splitlines()[0]}") from None
    return _Progress(whole["step"], whole["seconds"], list(whole["losses"]))
