"""The selective scan on CUDA: chunks of steps side by side, in three passes each way. Imported only where it runs.

Forward: the state with which every chunk would end from 0, and its product of decays; then what enters each chunk, by a
scan over chunks; then the answers. Backward: the same from the other end for the gradient of the state, with the states
of a chunk recomputed. States are float32; sums over channels are kept apart and added in a fixed order, so that equal
calls give equal bits.

Shapes: R sequences, K steps, D channels, S numbers of state a channel; a program holds a tile of T steps, G channels
and W >= S numbers of state.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["TritonScan"]

CHUNK = 64
TILE_NUMBERS = 4096


@triton.jit
def _compose(decay_1, inject_1, decay_2, inject_2):
    return decay_1 * decay_2, decay_2 * inject_1 + inject_2


@triton.jit
def _load_steps(pointer, row, position, K, channel, D):
    """A [T, G] tile, 0 outside."""
    inside = ((position >= 0) & (position < K))[:, None] & (channel < D)[None, :]
    at = (row * K + position)[:, None] * D + channel[None, :]
    return tl.load(pointer + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _decays(step, rate, cut_pointer, row, order, K, CUTS: tl.constexpr):
    """exp(dt A) of a tile, [T, G, W]; 0 where a sequence begins."""
    decay = tl.exp(step[:, :, None] * rate[None, :, :])
    if CUTS:
        cut = tl.load(cut_pointer + row * K + order, mask=order < K, other=0)
        decay = tl.where((cut != 0)[:, None, None], 0.0, decay)
    return decay


@triton.jit
def _chunk_ends(
    u_pointer, dt_pointer, rate_pointer, into_pointer, cut_pointer, product_pointer, end_pointer,
    K, D, S, chunks,
    REVERSE: tl.constexpr, CUTS: tl.constexpr, T: tl.constexpr, G: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    row, chunk = place // chunks, place % chunks
    order = chunk * T + tl.arange(0, T)
    position = K - 1 - order if REVERSE else order
    channel, number = tl.program_id(1) * G + tl.arange(0, G), tl.arange(0, W)
    held = (channel < D)[:, None] & (number < S)[None, :]
    rate = tl.load(rate_pointer + channel[:, None] * S + number[None, :], mask=held, other=0.0).to(tl.float32)
    u, step = (
        _load_steps(u_pointer, row, position, K, channel, D),
        _load_steps(dt_pointer, row, position, K, channel, D),
    )
    into = _load_steps(into_pointer, row, position, K, number, S)
    decay = _decays(step, rate, cut_pointer, row, order, K, CUTS)
    inject = (step * u)[:, :, None] * into[:, None, :]
    product, state = tl.associative_scan((decay, inject), 0, _compose)
    last = (tl.arange(0, T) == T - 1)[:, None, None]
    at = (place * D + channel)[:, None] * S + number[None, :]
    tl.store(product_pointer + at, tl.sum(tl.where(last, product, 0.0), 0), mask=held)
    tl.store(end_pointer + at, tl.sum(tl.where(last, state, 0.0), 0), mask=held)


@triton.jit
def _carry_over(product_pointer, end_pointer, D_S, chunks, BACKWARD: tl.constexpr, T: tl.constexpr, N: tl.constexpr):
    """In place: the end of every chunk, from the chunk's own end and the end of the chunk before it."""
    row = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1) * N + tl.arange(0, N)
    carry = tl.zeros([N], dtype=tl.float32)
    for first in range(0, chunks, T):
        order = first + tl.arange(0, T)
        chunk = chunks - 1 - order if BACKWARD else order
        inside = (order < chunks)[:, None] & (number < D_S)[None, :]
        at = (row * chunks + chunk)[:, None] * D_S + number[None, :]
        product = tl.load(product_pointer + at, mask=inside, other=1.0)
        end = tl.load(end_pointer + at, mask=inside, other=0.0)
        product, end = tl.associative_scan((product, end), 0, _compose)
        end = end + product * carry[None, :]
        tl.store(end_pointer + at, end, mask=inside)
        carry = tl.sum(tl.where((tl.arange(0, T) == T - 1)[:, None], end, 0.0), 0)


@triton.jit
def _answers(
    u_pointer, dt_pointer, rate_pointer, into_pointer, out_of_pointer, cut_pointer, end_pointer, y_pointer,
    K, D, S, chunks,
    REVERSE: tl.constexpr, CUTS: tl.constexpr, T: tl.constexpr, G: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    row, chunk = place // chunks, place % chunks
    order = chunk * T + tl.arange(0, T)
    position = K - 1 - order if REVERSE else order
    channel, number = tl.program_id(1) * G + tl.arange(0, G), tl.arange(0, W)
    held = (channel < D)[:, None] & (number < S)[None, :]
    rate = tl.load(rate_pointer + channel[:, None] * S + number[None, :], mask=held, other=0.0).to(tl.float32)
    u, step = (
        _load_steps(u_pointer, row, position, K, channel, D),
        _load_steps(dt_pointer, row, position, K, channel, D),
    )
    into = _load_steps(into_pointer, row, position, K, number, S)
    out_of = _load_steps(out_of_pointer, row, position, K, number, S)
    decay = _decays(step, rate, cut_pointer, row, order, K, CUTS)
    inject = (step * u)[:, :, None] * into[:, None, :]
    before = (tl.where(chunk > 0, place - 1, place) * D + channel)[:, None] * S + number[None, :]
    entering = tl.where(chunk > 0, tl.load(end_pointer + before, mask=held, other=0.0), 0.0)
    product, state = tl.associative_scan((decay, inject), 0, _compose)
    state = state + product * entering[None, :, :]
    y = tl.sum(state * out_of[:, None, :], 2)
    inside = (order < K)[:, None] & (channel < D)[None, :]
    at = (row * K + position)[:, None] * D + channel[None, :]
    tl.store(y_pointer + at, y.to(y_pointer.dtype.element_ty), mask=inside)


@triton.jit
def _chunk_ends_backward(
    dt_pointer, rate_pointer, out_of_pointer, cut_pointer, grad_pointer, product_pointer, end_pointer,
    K, D, S, chunks,
    REVERSE: tl.constexpr, CUTS: tl.constexpr, T: tl.constexpr, G: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """The gradient of each chunk's first state, were nothing to arrive from later chunks; and what it is weighed by."""
    place = tl.program_id(0).to(tl.int64)
    row, chunk = place // chunks, place % chunks
    order = chunk * T + tl.arange(0, T)
    position = K - 1 - order if REVERSE else order
    following = position - 1 if REVERSE else position + 1
    channel, number = tl.program_id(1) * G + tl.arange(0, G), tl.arange(0, W)
    held = (channel < D)[:, None] & (number < S)[None, :]
    rate = tl.load(rate_pointer + channel[:, None] * S + number[None, :], mask=held, other=0.0).to(tl.float32)
    step = _load_steps(dt_pointer, row, following, K, channel, D)
    out_of = _load_steps(out_of_pointer, row, position, K, number, S)
    given = _load_steps(grad_pointer, row, position, K, channel, D)
    decay = _decays(step, rate, cut_pointer, row, order + 1, K, CUTS)
    asked = given[:, :, None] * out_of[:, None, :]
    product, gradient = tl.associative_scan((decay, asked), 0, _compose, reverse=True)
    first = (tl.arange(0, T) == 0)[:, None, None]
    at = (place * D + channel)[:, None] * S + number[None, :]
    tl.store(product_pointer + at, tl.sum(tl.where(first, product, 0.0), 0), mask=held)
    tl.store(end_pointer + at, tl.sum(tl.where(first, gradient, 0.0), 0), mask=held)


@triton.jit
def _gradients(
    u_pointer, dt_pointer, rate_pointer, into_pointer, out_of_pointer, cut_pointer, grad_pointer,
    state_pointer, arriving_pointer,
    grad_u_pointer, grad_dt_pointer, grad_rate_pointer, grad_into_pointer, grad_out_of_pointer,
    rows, K, D, S, chunks,
    REVERSE: tl.constexpr, CUTS: tl.constexpr, T: tl.constexpr, G: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64)
    row, chunk = place // chunks, place % chunks
    order = chunk * T + tl.arange(0, T)
    position = K - 1 - order if REVERSE else order
    following = position - 1 if REVERSE else position + 1
    group = tl.program_id(1)
    channel, number = group * G + tl.arange(0, G), tl.arange(0, W)
    held = (channel < D)[:, None] & (number < S)[None, :]
    rate = tl.load(rate_pointer + channel[:, None] * S + number[None, :], mask=held, other=0.0).to(tl.float32)
    u, step = (
        _load_steps(u_pointer, row, position, K, channel, D),
        _load_steps(dt_pointer, row, position, K, channel, D),
    )
    into = _load_steps(into_pointer, row, position, K, number, S)
    out_of = _load_steps(out_of_pointer, row, position, K, number, S)
    given = _load_steps(grad_pointer, row, position, K, channel, D)
    scaled = step * u

    decay = _decays(step, rate, cut_pointer, row, order, K, CUTS)
    inject = scaled[:, :, None] * into[:, None, :]
    before = (tl.where(chunk > 0, place - 1, place) * D + channel)[:, None] * S + number[None, :]
    entering = tl.where(chunk > 0, tl.load(state_pointer + before, mask=held, other=0.0), 0.0)
    product, state = tl.associative_scan((decay, inject), 0, _compose)
    state = state + product * entering[None, :, :]

    later = _load_steps(dt_pointer, row, following, K, channel, D)
    decay = _decays(later, rate, cut_pointer, row, order + 1, K, CUTS)
    more = chunk + 1 < chunks
    after = (tl.where(more, place + 1, place) * D + channel)[:, None] * S + number[None, :]
    arriving = tl.where(more, tl.load(arriving_pointer + after, mask=held, other=0.0), 0.0)
    asked = given[:, :, None] * out_of[:, None, :]
    product, gradient = tl.associative_scan((decay, asked), 0, _compose, reverse=True)
    gradient = gradient + product * arriving[None, :, :]

    by_input = tl.sum(gradient * into[:, None, :], 2)
    kept = gradient * (state - inject)  # the decayed past is what the state holds beyond its input
    inside = (order < K)[:, None] & (channel < D)[None, :]
    at = (row * K + position)[:, None] * D + channel[None, :]
    tl.store(grad_u_pointer + at, (by_input * step).to(grad_u_pointer.dtype.element_ty), mask=inside)
    by_step = by_input * u + tl.sum(kept * rate[None, :, :], 2)
    tl.store(grad_dt_pointer + at, by_step.to(grad_dt_pointer.dtype.element_ty), mask=inside)
    kept = tl.where((order < K)[:, None, None], kept, 0.0)
    own = (place * D + channel)[:, None] * S + number[None, :]
    tl.store(grad_rate_pointer + own, tl.sum(kept * step[:, :, None], 0), mask=held)
    listed = (order < K)[:, None] & (number < S)[None, :]
    part = ((group.to(tl.int64) * rows + row) * K + position)[:, None] * S + number[None, :]
    tl.store(grad_into_pointer + part, tl.sum(gradient * scaled[:, :, None], 1), mask=listed)
    tl.store(grad_out_of_pointer + part, tl.sum(given[:, :, None] * state, 1), mask=listed)


class TritonScan(torch.autograd.Function):
    """``y = TritonScan.apply(u, dt, A, B, C, cut, reverse)``; ``cut`` is boolean [R, K] in the order of the scan."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, cut: Tensor | None, reverse: bool
    ) -> Tensor:
        """y [R, K, D]."""
        u, dt, A, B, C = (value.contiguous() for value in (u, dt, A, B, C))
        flags = u.new_zeros(1, dtype=torch.uint8) if cut is None else cut.to(torch.uint8).contiguous()
        shape = _Shape(u, A)
        options = {"REVERSE": reverse, "CUTS": cut is not None, **shape.tile}
        y = torch.empty_like(u)
        product, end = shape.new_ends(u)
        with torch.cuda.device(u.device):
            _chunk_ends[shape.grid](u, dt, A, B, flags, product, end, *shape.sizes, **options)
            shape.carry_over(product, end, backward=False)
            _answers[shape.grid](u, dt, A, B, C, flags, end, y, *shape.sizes, **options)
        ctx.save_for_backward(u, dt, A, B, C, flags, end)
        ctx.options, ctx.shape = options, shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of u, dt, A, B and C."""
        u, dt, A, B, C, flags, state = ctx.saved_tensors
        shape, options = ctx.shape, ctx.options
        given = gradients[0].contiguous()
        product, arriving = shape.new_ends(u)
        grad_u, grad_dt = torch.empty_like(u), torch.empty_like(dt)
        grad_rate = torch.empty_like(state)
        parts = [state.new_empty(shape.groups, *B.shape) for _ in range(2)]
        with torch.cuda.device(u.device):
            _chunk_ends_backward[shape.grid](dt, A, C, flags, given, product, arriving, *shape.sizes, **options)
            shape.carry_over(product, arriving, backward=True)
            _gradients[shape.grid](
                u, dt, A, B, C, flags, given, state, arriving, grad_u, grad_dt, grad_rate, *parts,
                len(u), *shape.sizes, **options,
            )  # fmt: skip
        grad_B, grad_C = (part.sum(0) for part in parts)
        grad_A = grad_rate.sum((0, 1)).to(A.dtype)
        return grad_u, grad_dt, grad_A, grad_B.to(B.dtype), grad_C.to(C.dtype), None, None


class _Shape:
    """How tiles cover a problem."""

    def __init__(self, u: Tensor, A: Tensor) -> None:
        self.rows, steps, channels = u.shape
        state = A.shape[1]
        chunk = min(CHUNK, max(2, triton.next_power_of_2(steps)))
        width = triton.next_power_of_2(state)
        group = max(1, min(triton.next_power_of_2(channels), TILE_NUMBERS // (chunk * width)))
        self.chunks, self.groups = triton.cdiv(steps, chunk), triton.cdiv(channels, group)
        self.sizes = (steps, channels, state, self.chunks)
        self.tile = {"T": chunk, "G": group, "W": width}
        self.grid = (self.rows * self.chunks, self.groups)
        self.numbers = channels * state

    def new_ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Products of decays and last states of all chunks, [R, chunks, D, S] each."""
        _, channels, state, chunks = self.sizes
        made = like.new_empty(2, self.rows, chunks, channels, state, dtype=torch.float32)
        return made[0], made[1]

    def carry_over(self, product: Tensor, end: Tensor, backward: bool) -> None:
        """Replaces every chunk's own end by its end given all chunks before it."""
        grid = (self.rows, triton.cdiv(self.numbers, 32))
        _carry_over[grid](product, end, self.numbers, self.chunks, BACKWARD=backward, T=32, N=32)
