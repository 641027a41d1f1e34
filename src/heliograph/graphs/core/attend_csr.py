r"""Softmax attention over a target-sorted edge list as Triton kernels: no tensor of E H D numbers is ever formed.

One program walks over the edges of one target with an online softmax, all heads at once, so that each source row is
read as one run of memory. Only the log of each row's normaliser is kept; the backward pass recomputes the weights:

.. math:: a_{ij} = e^{s_{ij} - l_i}, \qquad \delta_i = dy_i \cdot y_i, \qquad
          ds_{ij} = a_{ij} (dy_i \cdot v_j - \delta_i)

once along the targets for dq and the bias, and once along the sources (the transposed order) for dk and dv. Nothing is
added atomically, so the same input gives the same bits. Arithmetic is in float32, whatever the type of the tensors.

Shapes: N vertices, E edges, H heads, D channels a head.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from heliograph.graphs.core.support import Support

__all__ = ["INTERPRETED", "attend_csr"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # triton then runs kernels in Python, on any device


def attend_csr(support: Support, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """What each vertex hears, [N, H, D], with weights softmax(scale q . k + bias).

    Args:
        support: who sends to whom.
        q, k, v: [N, H, D], of one type, on one device.
        bias: [E, H] in the order of ``support``, or None.
        scale: by which products are multiplied.
    """
    out: Tensor = _Attend.apply(  # type: ignore[no-untyped-call]
        q.contiguous(), k.contiguous(), v.contiguous(), _lay(bias), support, scale
    )
    return out


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, support: Support, scale: float
    ) -> Tensor:
        out = torch.empty_like(q)
        log_total = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        shape = _Shape(q)
        if len(q):
            _hear[(len(q),)](
                *(q, k, v, bias if bias is not None else q, support.source, support.offsets, out, log_total, scale),
                HAS_BIAS=bias is not None,
                **shape.constants,
            )
        ctx.save_for_backward(q, k, v, bias, out, log_total)
        ctx.support, ctx.scale, ctx.shape = support, scale, shape
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, out, log_total = ctx.saved_tensors
        support: Support = ctx.support
        grad = grad.contiguous()
        delta = (grad.float() * out.float()).sum(-1)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        wants_bias = bias is not None and ctx.needs_input_grad[3]
        grad_bias = torch.empty_like(bias) if wants_bias else None
        table = bias if bias is not None else q
        common = (q, k, v, table, grad, log_total, delta)
        if len(q):
            _pass_to_targets[(len(q),)](
                *common,
                *(support.source, support.offsets, grad_q, grad_bias if wants_bias else q, ctx.scale),
                HAS_BIAS=bias is not None,
                WANTS_BIAS=wants_bias,
                **ctx.shape.constants,
            )
            by_source = support.by_source
            _pass_to_sources[(len(q),)](
                *common,
                *(by_source.target, by_source.edge, by_source.offsets, grad_k, grad_v, ctx.scale),
                HAS_BIAS=bias is not None,
                **ctx.shape.constants,
            )
        return grad_q, grad_k, grad_v, grad_bias, None, None


class _Shape:
    """The constants that a kernel is compiled for."""

    def __init__(self, q: Tensor) -> None:
        heads, dim = q.shape[1:]
        padded_heads, padded_dim = triton.next_power_of_2(heads), triton.next_power_of_2(dim)
        row = padded_heads * padded_dim
        edges = max(2, min(16, 2048 // row))
        self.constants = {
            "H": heads,
            "D": dim,
            "HP": padded_heads,
            "DP": padded_dim,
            "BLOCK": edges,
            "num_warps": max(1, min(8, row * edges // 512)),
        }


def _lay(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()


@triton.jit
def _hear(
    q,
    k,
    v,
    bias,
    source,
    offsets,
    out,
    log_total,
    scale,
    HAS_BIAS: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    HP: tl.constexpr,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head, channel = tl.arange(0, HP), tl.arange(0, DP)
    inside = (head[:, None] < H) & (channel[None, :] < D)
    at = head[:, None] * D + channel[None, :]
    q_HD = tl.load(q + row * H * D + at, mask=inside, other=0.0).to(tl.float32) * scale
    begin, end = tl.load(offsets + row), tl.load(offsets + row + 1)
    peak = tl.full([HP], float("-inf"), tl.float32)
    total = tl.zeros([HP], tl.float32)
    heard = tl.zeros([HP, DP], tl.float32)
    for first in range(begin, end, BLOCK):
        edge = first + tl.arange(0, BLOCK)
        real = edge < end
        sender = tl.load(source + edge, mask=real, other=0).to(tl.int64)
        where = sender[:, None, None] * (H * D) + at[None]
        known = real[:, None, None] & inside[None]
        logit = tl.sum(tl.load(k + where, mask=known, other=0.0).to(tl.float32) * q_HD[None], axis=2)
        if HAS_BIAS:
            allowed = real[:, None] & (head[None, :] < H)
            logit += tl.load(bias + edge[:, None] * H + head[None, :], mask=allowed, other=0.0).to(tl.float32)
        logit = tl.where(real[:, None], logit, float("-inf"))
        higher = tl.maximum(peak, tl.max(logit, axis=0))
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp(logit - finite[None, :])
        shrink = tl.exp(peak - finite)
        v_EHD = tl.load(v + where, mask=known, other=0.0).to(tl.float32)
        total = total * shrink + tl.sum(weight, axis=0)
        heard = heard * shrink[:, None] + tl.sum(weight[:, :, None] * v_EHD, axis=0)
        peak = higher
    some = total > 0
    heard = heard / tl.where(some, total, 1.0)[:, None]
    tl.store(out + row * H * D + at, heard.to(out.dtype.element_ty), mask=inside)
    norm = tl.where(some, peak + tl.log(tl.where(some, total, 1.0)), 0.0)
    tl.store(log_total + row * H + head, norm, mask=head < H)


@triton.jit
def _pass_to_targets(
    q,
    k,
    v,
    bias,
    grad,
    log_total,
    delta,
    source,
    offsets,
    grad_q,
    grad_bias,
    scale,
    HAS_BIAS: tl.constexpr,
    WANTS_BIAS: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    HP: tl.constexpr,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head, channel = tl.arange(0, HP), tl.arange(0, DP)
    inside = (head[:, None] < H) & (channel[None, :] < D)
    at = head[:, None] * D + channel[None, :]
    q_HD = tl.load(q + row * H * D + at, mask=inside, other=0.0).to(tl.float32) * scale
    grad_HD = tl.load(grad + row * H * D + at, mask=inside, other=0.0).to(tl.float32)
    norm = tl.load(log_total + row * H + head, mask=head < H, other=0.0)
    own = tl.load(delta + row * H + head, mask=head < H, other=0.0)
    begin, end = tl.load(offsets + row), tl.load(offsets + row + 1)
    slope_HD = tl.zeros([HP, DP], tl.float32)
    for first in range(begin, end, BLOCK):
        edge = first + tl.arange(0, BLOCK)
        real = edge < end
        sender = tl.load(source + edge, mask=real, other=0).to(tl.int64)
        where = sender[:, None, None] * (H * D) + at[None]
        known = real[:, None, None] & inside[None]
        allowed = real[:, None] & (head[None, :] < H)
        k_EHD = tl.load(k + where, mask=known, other=0.0).to(tl.float32)
        logit = tl.sum(k_EHD * q_HD[None], axis=2)
        if HAS_BIAS:
            logit += tl.load(bias + edge[:, None] * H + head[None, :], mask=allowed, other=0.0).to(tl.float32)
        weight = tl.where(allowed, tl.exp(logit - norm[None, :]), 0.0)
        v_EHD = tl.load(v + where, mask=known, other=0.0).to(tl.float32)
        slope = weight * (tl.sum(v_EHD * grad_HD[None], axis=2) - own[None, :])
        if WANTS_BIAS:
            place = grad_bias + edge[:, None] * H + head[None, :]
            tl.store(place, slope.to(grad_bias.dtype.element_ty), mask=allowed)
        slope_HD += tl.sum(slope[:, :, None] * k_EHD, axis=0)
    tl.store(grad_q + row * H * D + at, (slope_HD * scale).to(grad_q.dtype.element_ty), mask=inside)


@triton.jit
def _pass_to_sources(
    q,
    k,
    v,
    bias,
    grad,
    log_total,
    delta,
    target,
    number,
    offsets,
    grad_k,
    grad_v,
    scale,
    HAS_BIAS: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    HP: tl.constexpr,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head, channel = tl.arange(0, HP), tl.arange(0, DP)
    inside = (head[:, None] < H) & (channel[None, :] < D)
    at = head[:, None] * D + channel[None, :]
    k_HD = tl.load(k + row * H * D + at, mask=inside, other=0.0).to(tl.float32) * scale
    v_HD = tl.load(v + row * H * D + at, mask=inside, other=0.0).to(tl.float32)
    begin, end = tl.load(offsets + row), tl.load(offsets + row + 1)
    to_k = tl.zeros([HP, DP], tl.float32)
    to_v = tl.zeros([HP, DP], tl.float32)
    for first in range(begin, end, BLOCK):
        edge = first + tl.arange(0, BLOCK)
        real = edge < end
        hearer = tl.load(target + edge, mask=real, other=0).to(tl.int64)
        where = hearer[:, None, None] * (H * D) + at[None]
        known = real[:, None, None] & inside[None]
        allowed = real[:, None] & (head[None, :] < H)
        beside = hearer[:, None] * H + head[None, :]
        q_EHD = tl.load(q + where, mask=known, other=0.0).to(tl.float32)
        logit = tl.sum(q_EHD * k_HD[None], axis=2)
        if HAS_BIAS:
            given = tl.load(number + edge, mask=real, other=0).to(tl.int64)
            logit += tl.load(bias + given[:, None] * H + head[None, :], mask=allowed, other=0.0).to(tl.float32)
        norm = tl.load(log_total + beside, mask=allowed, other=0.0)
        weight = tl.where(allowed, tl.exp(logit - norm), 0.0)
        grad_EHD = tl.load(grad + where, mask=known, other=0.0).to(tl.float32)
        to_v += tl.sum(weight[:, :, None] * grad_EHD, axis=0)
        own = tl.load(delta + beside, mask=allowed, other=0.0)
        slope = weight * (tl.sum(grad_EHD * v_HD[None], axis=2) - own)
        to_k += tl.sum(slope[:, :, None] * q_EHD, axis=0)
    tl.store(grad_k + row * H * D + at, (to_k * scale).to(grad_k.dtype.element_ty), mask=inside)
    tl.store(grad_v + row * H * D + at, to_v.to(grad_v.dtype.element_ty), mask=inside)
