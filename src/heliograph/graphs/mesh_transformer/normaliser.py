"""Means and deviations that are counted while a model trains, and stay as they are afterwards."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["RunningNormaliser"]

COUNTED_BATCHES = 100_000
CONSTANT = 1e-8


class RunningNormaliser(nn.Module):
    """(values - mean) / deviation by channel, over all rows that came by in training mode.

    Sums, squares and count are buffers, so that a checkpoint holds them; in eval mode nothing is counted. A channel
    that never changes is divided by 1. Nothing waits for the device.

    Args:
        channels: C.
        batches: after so many calls nothing more is counted.
    """

    count: Tensor
    total: Tensor
    squares: Tensor
    calls: Tensor

    def __init__(self, channels: int, batches: int = COUNTED_BATCHES) -> None:
        super().__init__()
        self.batches = batches
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("total", torch.zeros(channels, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(channels, dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, values: Tensor) -> Tensor:
        """values [N, C], counted first if in training mode."""
        if self.training:
            with torch.no_grad():
                wide = values.detach().double()
                counted = (self.calls < self.batches).double()
                self.count += counted * len(wide)
                self.total += counted * wide.sum(0)
                self.squares += counted * wide.square().sum(0)
                self.calls += 1
        mean, deviation = self.statistics()
        return (values - mean.to(values.dtype)) / deviation.to(values.dtype)

    def inverse(self, normal: Tensor) -> Tensor:
        """From normalised values [N, C] back to the field's unit."""
        mean, deviation = self.statistics()
        return normal * deviation.to(normal.dtype) + mean.to(normal.dtype)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel, float64; 0 and 1 before anything was counted."""
        rows = self.count.clamp(min=1)
        mean = self.total / rows
        deviation = (self.squares / rows - mean.square()).clamp(min=0).sqrt()
        # what rounding leaves of a constant is no deviation
        return mean, torch.where(deviation > CONSTANT * (1 + mean.abs()), deviation, 1.0)
