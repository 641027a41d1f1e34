r"""Bidirectional selective state-space blocks on sequences that lie side by side or end to end.

Both directions have weights of their own; the backward one convolves and scans from the last step to the first of each
sequence (arXiv:2402.08678, algorithm 2; inner sizes and initial values as in Mamba, arXiv:2312.00752).

Shapes: R rows, K steps, C channels, D inner channels, S numbers of state a channel. A row is one sequence, or, with
:class:`Borders`, several end to end.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heliograph.errors import BadInput
from heliograph.lm.core.scan import selective_scan

__all__ = ["BidirectionalSSM", "Borders", "SelectiveSSM"]

SMALLEST_STEP, LARGEST_STEP = 1e-3, 1e-1


@dataclass(frozen=True, eq=False)
class Borders:
    """Where the sequences of packed rows begin and end.

    Attributes:
        reset: [R, K], True at the first step of a sequence.
        before, after: [R, K], how many steps of the same sequence come before and after each step.
    """

    reset: Tensor
    before: Tensor
    after: Tensor

    @classmethod
    def of_sizes(cls, sizes: Tensor) -> Borders:
        """One row of sequences of these sizes, [B], end to end."""
        start = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        before = torch.arange(len(start), device=sizes.device) - start
        after = sizes.repeat_interleave(sizes) - 1 - before
        return cls((before == 0).unsqueeze(0), before.unsqueeze(0), after.unsqueeze(0))


class SelectiveSSM(nn.Module):
    r"""One direction: a short convolution, a selective scan and a gate.

    .. math:: u = \mathrm{silu}(\mathrm{conv}(W_{in} x)), \quad
              \Delta = \mathrm{softplus}(W_{\Delta} u), \quad
              Y = W_1 \big(\mathrm{scan}(u, \Delta, A, W_B u, W_C u) \odot \mathrm{silu}(W_2 x)\big)

    Args:
        dim: C.
        state: S.
        expand: D = expand C.
        kernel: steps that the convolution sees: the present one and those before it in the direction of the scan.
        reverse: the direction.
    """

    def __init__(self, dim: int, state: int = 16, expand: int = 1, kernel: int = 4, reverse: bool = False) -> None:
        super().__init__()
        inner, rank = expand * dim, max(1, -(-dim // 16))
        self.reverse, self.state, self.rank = reverse, state, rank
        self.into = nn.Linear(dim, inner, bias=False)
        self.gate = nn.Linear(dim, inner, bias=False)
        self.kernel = nn.Parameter(torch.empty(kernel, inner).uniform_(-1, 1) / math.sqrt(kernel))
        self.kernel_bias = nn.Parameter(torch.zeros(inner))
        self.select = nn.Linear(inner, rank + 2 * state, bias=False)
        self.step = nn.Linear(rank, inner)
        self.log_rate = nn.Parameter(torch.arange(1, state + 1).float().log().repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, dim, bias=False)
        nn.init.uniform_(self.step.weight, -(rank**-0.5), rank**-0.5)
        steps = torch.empty(inner).uniform_(math.log(SMALLEST_STEP), math.log(LARGEST_STEP)).exp()
        with torch.no_grad():
            self.step.bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # the inverse of softplus

    def forward(self, x_RKC: Tensor, borders: Borders | None = None) -> Tensor:
        """[R, K, C]."""
        u = nn.functional.silu(self._convolve(self.into(x_RKC), borders))
        small, B, C = self.select(u).split((self.rank, self.state, self.state), dim=-1)
        dt = nn.functional.softplus(self.step(small))
        reset = None if borders is None else borders.reset
        log_rate = self.log_rate.to(torch.promote_types(self.log_rate.dtype, torch.float32))
        y = selective_scan(u, dt, -log_rate.exp(), B, C, self.skip, reset, self.reverse)
        out: Tensor = self.out(y * nn.functional.silu(self.gate(x_RKC)))
        return out

    def _convolve(self, x_RKD: Tensor, borders: Borders | None) -> Tensor:
        """Channel by channel over the present and earlier steps of the same sequence, earlier as the scan goes."""
        out = torch.addcmul(self.kernel_bias, x_RKD, self.kernel[0])
        room = None if borders is None else borders.after if self.reverse else borders.before
        for lag in range(1, min(len(self.kernel), x_RKD.shape[1])):
            if self.reverse:
                shifted = nn.functional.pad(x_RKD[:, lag:], (0, 0, 0, lag))
            else:
                shifted = nn.functional.pad(x_RKD[:, :-lag], (0, 0, lag, 0))
            if room is not None:
                shifted = shifted * (room >= lag).unsqueeze(-1)
            out = torch.addcmul(out, shifted, self.kernel[lag])
        return out


class BidirectionalSSM(nn.Module):
    r"""x + W_out(forward(norm(x)) + backward(norm(x))).

    Args:
        dim: C.
        state, expand, kernel: as in :class:`SelectiveSSM`.
        bidirectional: False leaves the backward direction out.
        dropout: of what is added to x.

    Raises:
        BadInput: sizes below 1.
    """

    def __init__(
        self,
        dim: int,
        state: int = 16,
        expand: int = 1,
        kernel: int = 4,
        bidirectional: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if min(dim, state, expand, kernel) < 1:
            raise BadInput(f"dim, state, expand and kernel must be 1 or more; got {dim}, {state}, {expand}, {kernel}")
        self.norm = nn.LayerNorm(dim)
        directions = (False, True) if bidirectional else (False,)
        self.scans = nn.ModuleList(SelectiveSSM(dim, state, expand, kernel, reverse) for reverse in directions)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_RKC: Tensor, borders: Borders | None = None) -> Tensor:
        """[R, K, C]; with ``borders`` no sequence of a row hears another."""
        normed = self.norm(x_RKC)
        mixed = functools.reduce(torch.add, [scan(normed, borders) for scan in self.scans])
        out: Tensor = x_RKC + self.dropout(self.out(mixed))
        return out
