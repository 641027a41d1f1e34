"""The one supervised training loop for comparisons: same steps, same optimiser, seeded, for every contender alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from heliograph.errors import BadInput, HeliographError

__all__ = ["DivergenceError", "train_supervised"]

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
    steps: int,
    learning_rate: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.9),
    weight_decay: float = 0.0,
    clip_value: float = 10.0,
    seed: int = 0,
    callback: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Trains in place with AdamW, gradients clipped by value, and returns the loss of every step.

    Args:
        batches: visited in a new order each pass, drawn from ``seed``.
        loss: ``loss(model, batch)`` gives the scalar to minimise.
        steps: number of optimiser steps.
        callback: called with (step, loss) after each step, steps counted from 1.

    Returns:
        The losses before each update. The model is left in eval mode.

    Raises:
        DivergenceError: a loss that is not finite; the step is in the message and no update is made from it.
    """
    if not batches or steps < 0:
        raise BadInput(f"training needs batches and steps >= 0; got {len(batches)} batches and {steps} steps")
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay)
    history: list[float] = []
    order: list[int] = []
    model.train()
    with torch.random.fork_rng(enabled=True):  # dropout draws from the global generator: seeded here, restored after
        torch.manual_seed(seed)
        for step in range(1, steps + 1):
            if not order:
                order = torch.randperm(len(batches), generator=generator).tolist()
            optimiser.zero_grad(set_to_none=True)
            value = loss(model, batches[order.pop()])
            history.append(float(value.detach()))
            if not math.isfinite(history[-1]):
                raise DivergenceError(step, history[-1])
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_value_(model.parameters(), clip_value)
            optimiser.step()
            if callback is not None:
                callback(step, history[-1])
    model.eval()
    return history
