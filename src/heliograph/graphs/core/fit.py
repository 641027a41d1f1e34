"""The one supervised training loop for comparisons: same steps or seconds, same optimiser, seeded, for all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from heliograph.errors import BadInput, HeliographError

__all__ = ["DivergenceError", "one_cycle", "train_supervised"]

Batch = TypeVar("Batch")


class DivergenceError(HeliographError, FloatingPointError):
    """The loss stopped being a finite number; ``step`` says when."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"the loss became {loss} at step {step}; lower the learning rate or check the inputs")
        self.step, self.loss = step, loss


def train_supervised(
    model: nn.Module,
    batches: Sequence[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    *,
    steps: int = 0,
    seconds: float | None = None,
    learning_rate: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.9),
    weight_decay: float = 0.0,
    clip_value: float | None = 10.0,
    clip_norm: float | None = None,
    schedule: Callable[[float], float] | None = None,
    seed: int = 0,
    callback: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Trains in place with AdamW, gradients clipped, and returns the loss of every step.

    Args:
        batches: visited in a new order each pass, drawn from ``seed``.
        loss: ``loss(model, batch)`` gives the scalar to minimise.
        steps: number of optimiser steps; not used where ``seconds`` is given.
        seconds: train for this long instead: processor seconds of this process on a CPU, so that a busy neighbour
            costs nobody steps, wall seconds elsewhere.
        clip_value, clip_norm: limits of the gradient, by entry and as a whole; None for no limit.
        schedule: from the share done, 0 to 1, to a factor of the learning rate; constant where None.
        callback: called with (step, loss) after each step, steps counted from 1.

    Returns:
        The losses before each update. The model is left in eval mode.

    Raises:
        DivergenceError: a loss that is not finite; the step is in the message and no update is made from it.
    """
    if not batches or steps < 0:
        raise BadInput(f"training needs batches and steps >= 0; got {len(batches)} batches and {steps} steps")
    cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    clock = time.process_time if cpu else time.perf_counter
    generator = torch.Generator().manual_seed(seed)
    # foreach: the same numbers as one parameter at a time, which is what torch does on a CPU by itself, in less time
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay, foreach=True
    )
    history: list[float] = []
    order: list[int] = []
    model.train()
    with torch.random.fork_rng(enabled=True):  # dropout draws from the global generator: seeded here, restored after
        torch.manual_seed(seed)
        begin, step = clock(), 0
        while (done := _share(step, steps) if seconds is None else (clock() - begin) / seconds) < 1:
            step += 1
            if schedule is not None:
                optimiser.param_groups[0]["lr"] = learning_rate * schedule(done)
            if not order:
                order = torch.randperm(len(batches), generator=generator).tolist()
            optimiser.zero_grad(set_to_none=True)
            value = loss(model, batches[order.pop()])
            history.append(float(value.detach()))
            if not math.isfinite(history[-1]):
                raise DivergenceError(step, history[-1])
            value.backward()  # type: ignore[no-untyped-call]
            if clip_value is not None:
                torch.nn.utils.clip_grad_value_(model.parameters(), clip_value)
            if clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            optimiser.step()
            if callback is not None:
                callback(step, history[-1])
    model.eval()
    return history


def _share(step: int, steps: int) -> float:
    return step / steps if steps else 1.0


def one_cycle(share: float, warm: float = 0.15) -> float:
    """A linear rise from 1/25 over the first ``warm`` of the training, then a cosine to 0."""
    if share < warm:
        return 0.04 + 0.96 * share / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (share - warm) / (1 - warm))))
