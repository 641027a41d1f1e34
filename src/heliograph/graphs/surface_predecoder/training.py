"""Training on simulated shots: Lion, warm-up, steps of 0.7, an average of the weights (arXiv:2604.12841, code).

Published: 100 epochs of 2**26 shots on 8 GPUs. What changes here is the length, and that the averaging window grows
with the number of steps up to the published one, so that short runs are not averaged with their own beginning.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from heliograph.errors import BadInput
from heliograph.graphs.core.fit import DivergenceError
from heliograph.graphs.surface_predecoder.memory import LabelledShots, SurfaceMemory
from heliograph.random import CounterRng

if TYPE_CHECKING:
    from heliograph.graphs.surface_predecoder.network import PreDecoder

__all__ = ["FitReport", "LabelSource", "Lion", "Progress", "fit_predecoder"]

LabelSource = Callable[[SurfaceMemory, int, int], LabelledShots]
"""(experiment, shots, seed) -> labelled shots."""
Progress = Callable[[int, float, float], None]
"""(step, fraction done, loss)."""

WARM_UP_STEPS = 100
MILESTONES, DROP = (0.25, 0.5), 0.7
AVERAGE_FRACTION = 1e-4
SHOTS_A_DRAW = 512


@dataclass(frozen=True)
class FitReport:
    """What a training run did.

    Attributes:
        losses: mean binary cross-entropy of every step.
        shots: seen in all.
        seconds: of wall time.
    """

    losses: tuple[float, ...]
    shots: int
    seconds: float


class Lion(torch.optim.Optimizer):
    r"""Steps by the sign of an interpolated momentum (Chen et al., arXiv:2302.06675).

    .. math:: u = \mathrm{sign}(\beta_1 m + (1 - \beta_1) g), \quad w \leftarrow w - \eta\,(u + \lambda w), \quad
              m \leftarrow \beta_2 m + (1 - \beta_2) g
    """

    def __init__(
        self, parameters: Any, lr: float, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 1e-7
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update from the gradients; a closure is not evaluated."""
        del closure
        for group in self.param_groups:
            (first, second), rate = group["betas"], group["lr"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                direction = torch.lerp(weight.grad, momentum, first).sign_()
                weight.mul_(1 - rate * group["weight_decay"]).add_(direction, alpha=-rate)
                momentum.lerp_(weight.grad, 1 - second)


def fit_predecoder(
    network: PreDecoder,
    experiments: SurfaceMemory | Sequence[SurfaceMemory],
    *,
    shots: int | None = None,
    seconds: float | None = None,
    batch: int = 512,
    learning_rate: float = 3e-4,
    seed: int = 0,
    scale_noise: bool = True,
    labels: LabelSource | None = None,
    callback: Progress | None = None,
) -> FitReport:
    """Trains ``network`` in place; it is left in eval mode with its averaged weights.

    Args:
        network: on the device where it is to be trained; on a GPU in bfloat16.
        experiments: one, or several whose batches are accumulated in turn (both bases, say).
        shots: how many to see in all; the same seed then gives the same weights on the same machine.
        seconds: or for how long; then the number of steps depends on the machine.
        batch: shots of one experiment a step.
        learning_rate: of Lion, after the warm-up.
        seed: of the shots and of dropout.
        scale_noise: train at rates scaled up to 6e-3, as published; the experiments stay as they are.
        labels: where labelled shots come from, if not from the experiments themselves.
        callback: called after each step with (step, fraction done, loss).

    Raises:
        BadInput: neither or both of shots and seconds, or nothing to train on.
        DivergenceError: a loss that is not finite; no update is made from it.
    """
    given = [experiments] if isinstance(experiments, SurfaceMemory) else list(experiments)
    if not given:
        raise BadInput("training needs at least one experiment")
    if (shots is None) == (seconds is None) or (shots or 1) < 1 or (seconds or 1) <= 0 or batch < 1:
        raise BadInput(f"give shots or seconds, positive, and a batch of 1 or more; got {shots}, {seconds} and {batch}")

    def own_labels(experiment: SurfaceMemory, count: int, number: int) -> LabelledShots:
        raw = experiment.sample_labels(count, number, canonical=False)
        return raw.to(network.device).canonical(experiment.layout)  # where the network is: the slower half of the work

    source = labels or own_labels
    learned_on = [e.for_training() if scale_noise else e for e in given]
    masks = [torch.as_tensor(e.layout.allowed, device=network.device) for e in learned_on]
    seeds = CounterRng(seed)
    optimiser = Lion(network.parameters(), learning_rate)
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    average = [p.detach().clone() for p in network.parameters()]
    steps_planned = None if shots is None else max(1, math.ceil(shots / (batch * len(given))))
    # Small batches are drawn several at a time: making labels costs more per call than per shot.
    steps_a_draw = max(1, min(SHOTS_A_DRAW // batch, steps_planned or SHOTS_A_DRAW))
    drawn: dict[int, LabelledShots] = {}
    losses: list[float] = []
    begin = time.monotonic()
    network.train()
    devices = [network.device] if network.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for step, done in _steps(steps_planned, seconds, begin):
            warm = min(1.0, step / min(WARM_UP_STEPS, (steps_planned or WARM_UP_STEPS * 10) / 10 + 1))
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * warm * DROP ** sum(done >= m for m in MILESTONES)
            optimiser.zero_grad(set_to_none=True)
            total = torch.zeros((), device=network.device)
            for number, (experiment, mask) in enumerate(zip(learned_on, masks, strict=True)):
                turn = (step - 1) % steps_a_draw
                if turn == 0:
                    word = int(seeds.at(step=step, item=number).bits(1)[0]) & (2**63 - 1)
                    drawn[number] = source(experiment, batch * steps_a_draw, word).to(network.device)
                part = drawn[number].select(slice(turn * batch, (turn + 1) * batch))
                loss = _loss(network, part, experiment, mask) / len(learned_on)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            losses.append(float(total))
            if not math.isfinite(losses[-1]):
                raise DivergenceError(step, losses[-1])
            optimiser.step()
            fraction = max(AVERAGE_FRACTION, 9 / (step + 10))
            with torch.no_grad():
                for mean, weight in zip(average, network.parameters(), strict=True):
                    mean.lerp_(weight, fraction)
            if callback is not None:
                callback(step, done, losses[-1])
    with torch.no_grad():
        for mean, weight in zip(average, network.parameters(), strict=True):
            weight.copy_(mean)
    network.eval()
    network.experiment = given[0]
    return FitReport(tuple(losses), len(losses) * batch * len(given), time.monotonic() - begin)


def _steps(planned: int | None, seconds: float | None, begin: float) -> Iterator[tuple[int, float]]:
    """Steps from 1 with the share of the work done before each."""
    step = 0
    while True:
        done = step / planned if planned is not None else (time.monotonic() - begin) / (seconds or 1.0)
        if done >= 1:
            return
        step += 1
        yield step, done


def _loss(network: PreDecoder, shots: LabelledShots, experiment: SurfaceMemory, mask: Tensor) -> Tensor:
    target = torch.cat([shots.data, shots.measured], 1)
    grid = network.inputs(shots.detectors, experiment.layout)
    with torch.autocast(grid.device.type, dtype=torch.bfloat16, enabled=grid.device.type == "cuda"):
        logits = network(grid)
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    return (each * mask).sum() / (len(each) * mask.sum())
