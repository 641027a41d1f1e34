r"""Linear recurrences with resets: one associative scan, and two state-space layers on it.

:func:`associative_scan` computes :math:`h_k = a_k h_{k-1} + b_k`. :func:`selective_scan` (Mamba, arXiv:2312.00752)
has a decay for every channel and state, :func:`ssd_scan` (Mamba-2, arXiv:2405.21060) one scalar for every head. A reset
is a decay of 0, so packed sequences never exchange state. Only products of decays are formed, never quotients, so a
decay that underflows costs nothing but the past that it forgets. States are float32 (float64 for float64 inputs).

Shapes: R sequences (rows), K steps, D channels, S numbers of state a channel, H heads, P channels a head.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from heliograph.errors import BadInput

__all__ = ["BACKENDS", "associative_scan", "selective_scan", "ssd_scan"]

Backend = Literal["auto", "reference", "chunked", "triton"]
BACKENDS = ("auto", "reference", "chunked", "triton")

BLOCK_NUMBERS = 1 << 18
"""States that the chunked back end holds at a time, few enough for a processor's cache."""
LANES = 1 << 15
"""How many numbers one step should work on, so that a step costs more than its call."""


def selective_scan(
    u_RKD: Tensor,
    dt_RKD: Tensor,
    A_DS: Tensor,
    B_RKS: Tensor,
    C_RKS: Tensor,
    D_D: Tensor | None = None,
    reset_RK: Tensor | None = None,
    reverse: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    r"""The selective state-space recurrence (arXiv:2312.00752, algorithm 2).

    .. math:: h_k = e^{\Delta_k A} h_{k-1} + \Delta_k B_k u_k, \qquad y_k = C_k h_k + D u_k

    Args:
        u_RKD: inputs.
        dt_RKD: step sizes, positive (after the softplus).
        A_DS: rates, negative for a state that decays.
        B_RKS, C_RKS: what enters and leaves the state, shared by all channels.
        D_D: the skip; none where None.
        reset_RK: boolean, True where a new sequence begins. The state is cut there in both directions.
        reverse: scan from the last step to the first.
        backend: "reference" (a loop), "chunked" (plain torch), "triton" (CUDA, float32 or 16-bit), or "auto".

    Returns:
        y [R, K, D] in the type of ``u``.

    Raises:
        BadInput: shapes that do not fit, or a back end that cannot run here.
    """
    _check_shapes(u_RKD, dt_RKD, A_DS, B_RKS, C_RKS, D_D, reset_RK)
    chosen = _choose(backend, u_RKD)
    cut_RK = None if reset_RK is None else _cuts(reset_RK, reverse)
    if u_RKD.numel() == 0:
        return u_RKD * 0 + dt_RKD * 0
    if chosen == "triton":
        from heliograph.lm.core.scan_triton import TritonScan

        triton_scan: Callable[..., Tensor] = TritonScan.apply
        y = triton_scan(u_RKD, dt_RKD, A_DS, B_RKS, C_RKS, cut_RK, reverse)
    else:
        given = [value.flip(1) if reverse else value for value in (u_RKD, dt_RKD, B_RKS, C_RKS)]
        scan: Callable[..., Tensor] = _reference if chosen == "reference" else _ChunkedScan.apply
        y = scan(given[0], given[1], A_DS, given[2], given[3], cut_RK)
        y = y.flip(1) if reverse else y
    return y if D_D is None else (y + D_D * u_RKD).to(u_RKD.dtype)


def ssd_scan(
    x_RKHP: Tensor,
    dt_RKH: Tensor,
    A_H: Tensor,
    B_RKS: Tensor,
    C_RKS: Tensor,
    D_H: Tensor | None = None,
    reset_RK: Tensor | None = None,
    reverse: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    r"""The recurrence of Mamba-2 (arXiv:2405.21060, section 5): step size and rate are one scalar a head.

    Arguments and errors are those of :func:`selective_scan`; B and C are shared by all heads. This front end repeats
    scalars over a head's channels; it does not use the products of matrices that a scalar decay allows.

    Returns:
        y [R, K, H, P].
    """
    if x_RKHP.dim() != 4 or dt_RKH.shape != x_RKHP.shape[:3] or A_H.shape != x_RKHP.shape[2:3]:
        raise BadInput(
            "ssd_scan needs x of [R, K, H, P], dt of [R, K, H] and A of [H]; got "
            f"{list(x_RKHP.shape)}, {list(dt_RKH.shape)} and {list(A_H.shape)}"
        )
    width, state = x_RKHP.shape[3], B_RKS.shape[-1]
    y = selective_scan(
        x_RKHP.flatten(2),
        dt_RKH.repeat_interleave(width, dim=2),
        A_H.repeat_interleave(width).unsqueeze(1).expand(-1, state),
        B_RKS,
        C_RKS,
        None if D_H is None else D_H.repeat_interleave(width),
        reset_RK,
        reverse,
        backend,
    )
    return y.view(x_RKHP.shape)


def associative_scan(decay: Tensor, inject: Tensor, start: Tensor | None = None, reverse: bool = False) -> Tensor:
    r"""All states of :math:`h_k = a_k h_{k-1} + b_k` along axis 1 (:math:`a_k h_{k+1} + b_k` where ``reverse``).

    Pairs (a, b) compose associatively: the steps are cut into runs that are scanned side by side, the ends of the runs
    are scanned, and what enters each run is added to its states.

    Args:
        decay, inject: a and b, [R, K, ...] of one shape.
        start: the state before the first step, [R, ...]; 0 where None.

    Returns:
        h [R, K, ...]. No graph of autograd is meant to be built through it.
    """
    rows, steps = inject.shape[:2]
    width = max(1, math.prod(inject.shape[2:]) * rows)
    runs = _count_runs(steps, max(1, min(math.isqrt(steps), LANES // width)))
    length = -(-steps // runs)
    runs = -(-steps // length)
    if runs == 1:
        return _loop(decay.unsqueeze(1), inject.unsqueeze(1), start, reverse)[0].squeeze(1)
    padding = runs * length - steps
    if padding:
        decay, inject = _pad(decay, padding, 1.0, reverse), _pad(inject, padding, 0.0, reverse)
    shape = (rows, runs, length, *inject.shape[2:])
    states, through = _loop(decay.reshape(shape), inject.reshape(shape), None, reverse, products=True)
    edge = 0 if reverse else length - 1
    carry = torch.zeros_like(states[:, 0, 0]) if start is None else start
    entering = torch.empty_like(states[:, :, 0])
    for run in reversed(range(runs)) if reverse else range(runs):
        entering[:, run] = carry
        carry = torch.addcmul(states[:, run, edge], through[:, run, edge], carry)
    states.addcmul_(through, entering.unsqueeze(2))
    whole = states.flatten(1, 2)
    return whole[:, padding:] if reverse else whole[:, :steps]


def _count_runs(steps: int, most: int) -> int:
    """The largest number of equal runs up to ``most``; ``most``, with padding, where that is below half of it."""
    equal = next(runs for runs in range(most, 0, -1) if steps % runs == 0)
    return equal if 2 * equal >= most else most


def _loop(
    decay: Tensor, inject: Tensor, start: Tensor | None, reverse: bool, products: bool = False
) -> tuple[Tensor, Tensor]:
    """States of every run, [R, runs, length, ...], and the products of decays up to each step where asked for."""
    states = torch.empty_like(inject)
    through = torch.empty_like(decay) if products else decay
    last, product = None if start is None else start.unsqueeze(1), None
    steps = list(zip(decay.unbind(2), inject.unbind(2), states.unbind(2), through.unbind(2), strict=True))
    for factor, entry, state, passed in reversed(steps) if reverse else steps:
        if last is None:
            state.copy_(entry)
        else:
            torch.addcmul(entry, factor, last, out=state)
        last = state
        if products:
            if product is None:
                passed.copy_(factor)
            else:
                torch.mul(factor, product, out=passed)
            product = passed
    return states, through


def _pad(values: Tensor, count: int, value: float, before: bool) -> Tensor:
    filler = values.new_full((values.shape[0], count, *values.shape[2:]), value)
    return torch.cat([filler, values] if before else [values, filler], dim=1)


def _reference(
    u_RKD: Tensor, dt_RKD: Tensor, A_DS: Tensor, B_RKS: Tensor, C_RKS: Tensor, cut_RK: Tensor | None
) -> Tensor:
    """The recurrence step by step, with autograd through it."""
    u, dt, A, B, C = (_wide(value) for value in (u_RKD, dt_RKD, A_DS, B_RKS, C_RKS))
    state = u.new_zeros(u.shape[0], *A.shape)
    out = []
    for k in range(u.shape[1]):
        decay = torch.exp(dt[:, k, :, None] * A)
        if cut_RK is not None:
            decay = decay.masked_fill(cut_RK[:, k, None, None], 0.0)
        state = decay * state + (dt[:, k] * u[:, k])[:, :, None] * B[:, k, None, :]
        out.append((state * C[:, k, None, :]).sum(-1))
    return torch.stack(out, dim=1).to(u_RKD.dtype)


class _ChunkedScan(torch.autograd.Function):
    """Blocks of steps in order; the backward pass recomputes each block's states from the state that entered it.

    States are [r, k, S, D], so that sums over S and products over D both run along memory.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, cut: Tensor | None) -> Tensor:
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        rate = _wide(A).t().contiguous()
        entered = rate.new_zeros(len(u), _Blocks(u, A).count - 1, *rate.shape)
        for rows, blocks in _Blocks(u, A).in_order():
            state: Tensor | None = None
            for number, steps in blocks:
                if state is not None:
                    entered[rows, number - 1] = state
                decay, _, inject = _transitions(rate, (rows, steps), u, dt, B, cut)
                states = associative_scan(decay, inject, state)
                state = states[:, -1].clone()
                y[rows, steps] = states.mul_(_wide(C[rows, steps]).unsqueeze(-1)).sum(-2).to(y.dtype)
        ctx.save_for_backward(u, dt, A, B, C, cut, entered)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad_y,) = gradients
        u, dt, A, B, C, cut, entered = ctx.saved_tensors
        grad_u, grad_dt, grad_B, grad_C = (
            torch.empty_like(value, memory_format=torch.contiguous_format) for value in (u, dt, B, C)
        )
        rate = _wide(A).t().contiguous()
        grad_rate = torch.zeros_like(rate)
        for rows, blocks in _Blocks(u, A).in_order():
            arriving: Tensor | None = None  # what later blocks ask of this block's last state
            for number, steps in reversed(blocks):
                part = (rows, steps)
                x, step, into, out_of, given = (_wide(value[part]) for value in (u, dt, B, C, grad_y))
                start = entered[rows, number - 1] if number else None
                decay, following, inject = _transitions(rate, part, u, dt, B, cut)
                states = associative_scan(decay, inject, start)
                given_S = given.unsqueeze(-2)
                asked = torch.mul(given_S, out_of.unsqueeze(-1), out=inject)
                g = associative_scan(following, asked, arriving, reverse=True)
                arriving = decay[:, 0] * g[:, 0]
                grad_C[part] = (given_S * states).sum(-1).to(C.dtype)
                grad_B[part] = ((x * step).unsqueeze(-2) * g).sum(-1).to(B.dtype)
                by_input = (g * into.unsqueeze(-1)).sum(-2)
                grad_u[part] = (by_input * step).to(u.dtype)
                decay *= g
                decay[:, 1:] *= states[:, :-1]
                decay[:, :1] *= 0.0 if start is None else start.unsqueeze(1)
                grad_dt[part] = (by_input * x + (decay * rate).sum(-2)).to(dt.dtype)
                grad_rate += decay.mul_(step.unsqueeze(-2)).sum((0, 1))
        return grad_u, grad_dt, grad_rate.t().to(A.dtype), grad_B, grad_C, None


Part = tuple[slice, slice]


def _transitions(
    rate: Tensor, part: Part, u: Tensor, dt: Tensor, B: Tensor, cut: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Decay of every state, decay of the state after it (1 at the end), and input, [r, k, S, D]."""
    step = _wide(dt[part])
    shape = (step.shape[0], step.shape[1] + 1, *rate.shape)
    extended = rate.new_ones(shape)
    decay = extended[:, :-1]
    torch.mul(step.unsqueeze(-2), rate, out=decay).exp_()
    if cut is not None:
        decay.masked_fill_(cut[part][:, :, None, None], 0.0)
    inject = (step * _wide(u[part])).unsqueeze(-2) * _wide(B[part]).unsqueeze(-1)
    return decay, extended[:, 1:], inject


class _Blocks:
    """How rows and steps are cut; steps first, so that short sequences are one block."""

    def __init__(self, u: Tensor, A: Tensor) -> None:
        self.rows, self.steps = u.shape[:2]
        most = max(1, min(self.steps, BLOCK_NUMBERS // A.numel()))
        self.length = -(-self.steps // -(-self.steps // most))
        self.width = max(1, min(self.rows, BLOCK_NUMBERS // (A.numel() * self.length)))
        self.count = -(-self.steps // self.length)

    def in_order(self) -> Iterator[tuple[slice, list[tuple[int, slice]]]]:
        """Rows that go together, and for them the blocks of steps with their numbers."""
        blocks = [(n, slice(n * self.length, (n + 1) * self.length)) for n in range(self.count)]
        for first in range(0, self.rows, self.width):
            yield slice(first, first + self.width), blocks


def _cuts(reset_RK: Tensor, reverse: bool) -> Tensor:
    """Where no state enters, in the order of the scan: a border lies between a new sequence's first step and the last
    of the one before it."""
    if not reverse:
        return reset_RK
    after = torch.cat([reset_RK[:, 1:], torch.zeros_like(reset_RK[:, :1])], dim=1)
    return after.flip(1)


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _choose(backend: Backend, u: Tensor) -> str:
    if backend not in BACKENDS:
        raise BadInput(f"backend is one of {', '.join(BACKENDS)}; got {backend!r}")
    usable = u.is_cuda and _has_triton() and u.dtype != torch.float64
    if backend == "triton" and not usable:
        raise BadInput(
            f"the triton back end needs CUDA tensors of 32 or 16 bits and the package triton; got {u.dtype} on "
            f"{u.device.type}{'' if _has_triton() else ' without triton'}; use backend='auto'"
        )
    return ("triton" if usable else "chunked") if backend == "auto" else backend


def _check_shapes(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, reset: Tensor | None
) -> None:
    if u.dim() != 3 or A.dim() != 2:
        raise BadInput(f"selective_scan needs u of [R, K, D] and A of [D, S]; got {list(u.shape)} and {list(A.shape)}")
    rows, steps, channels = u.shape
    state = A.shape[1]
    wanted = {
        "dt": (dt, (rows, steps, channels)),
        "A": (A, (channels, state)),
        "B": (B, (rows, steps, state)),
        "C": (C, (rows, steps, state)),
        "D": (D, (channels,)),
        "reset": (reset, (rows, steps)),
    }
    for name, (value, shape) in wanted.items():
        if value is not None and tuple(value.shape) != shape:
            raise BadInput(f"with u of {list(u.shape)}, {name} must be {list(shape)}; got {list(value.shape)}")
    if reset is not None and reset.dtype != torch.bool:
        raise BadInput(f"reset says where sequences begin and must be boolean; got {reset.dtype}")
