"""Pivotal attention: a tuple of vertices attends to those that have one member replaced by a pivot (arXiv:2601.19094).

A state of order m has m vertex axes. Term t scores the tuple against the one whose t-th member is the pivot, so each
term is a plain matrix product over axis t, batched over the other axes. Rows of the first axis go through in chunks and
the backward pass recomputes the weights, so the live memory is O(B H c N^m) and not O(B H N^(m+1)).

Shapes: B graphs, H heads, I J K positions of the tuple, P pivots (P is called J at order 2), D channels a head,
S all vertex axes of the tuple together, c rows a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heliograph.errors import BadInput, MemoryEstimateError

__all__ = [
    "AttentionSize",
    "attend_tuples",
    "check_budget",
    "estimate_bytes",
    "largest_chunk",
    "pivotal_attention",
    "pivotal_attention3",
    "reference_attention",
    "reference_attention3",
]

# which member of the tuple each term's pivot replaces
_AXES = {
    2: (1, 0),  # k1[i, j] the second member of (i, k), k2[j, k] the first
    3: (0, 1, 2),  # k1[p, j, k], k2[i, p, k], k3[i, j, p]
}
_FORMS = ("chunked", "five_index")


def pivotal_attention(
    q: Tensor,
    k1: Tensor,
    k2: Tensor,
    v1: Tensor,
    v2: Tensor,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    softmax_cap: float | None = None,
    chunk: int | None = None,
    *,
    dropout: float = 0.0,
    byte_budget: int | None = None,
) -> Tensor:
    r"""Every pair (i, k) collects messages from the two-step paths i -> j -> k (arXiv:2601.19094, level 2).

    .. math:: a_{ikj} = \mathrm{softmax}_j\, s\,(q_{ik} \cdot k^1_{ij} + q_{ik} \cdot k^2_{jk}), \qquad
              y_{ik} = \sum_j a_{ikj} (v^1_{ij} + v^2_{jk})

    Args:
        q: [B, H, I, K, D].
        k1, v1: [B, H, I, J, D] and [B, H, I, J, E].
        k2, v2: [B, H, J, K, D] and [B, H, J, K, E]; the number of pivots J may differ from I and K.
        attn_mask: broadcasts to [B, H, I, K, J]. Boolean: True means that the pivot takes part. Float: added to the
            capped scores; minus infinity excludes. A row without any pivot gives 0.
        scale: multiplies the scores; default 1 / sqrt(2 D).
        softmax_cap: if given, scores become cap * tanh(score / cap) before the mask.
        chunk: rows i at a time; None means all at once. The weights are recomputed in the backward pass either way.
        dropout: probability of dropping a weight. A function has no eval mode: callers pass 0 there.
        byte_budget: refuse, before allocating, what is estimated to need more.

    Returns:
        [B, H, I, K, E]. Under 16-bit inputs or autocast the softmax runs in float32; float64 stays float64.

    Raises:
        BadInput: shapes that do not fit each other, a mask that does not broadcast, chunk < 1.
        MemoryEstimateError: the estimate exceeds ``byte_budget``; the message names the chunk that would fit.
    """
    return attend_tuples(q, (k1, k2), (v1, v2), attn_mask, scale, softmax_cap, chunk, dropout, byte_budget)


def pivotal_attention3(
    q: Tensor,
    k1: Tensor,
    k2: Tensor,
    k3: Tensor,
    v1: Tensor,
    v2: Tensor,
    v3: Tensor,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    softmax_cap: float | None = None,
    chunk: int | None = None,
    *,
    dropout: float = 0.0,
    byte_budget: int | None = None,
) -> Tensor:
    r"""Every triple (i, j, k) collects from the triples with one member replaced by a pivot p (level 3).

    .. math:: a_{ijkp} = \mathrm{softmax}_p\, s\,q_{ijk} \cdot (k^1_{pjk} + k^2_{ipk} + k^3_{ijp}), \qquad
              y_{ijk} = \sum_p a_{ijkp} (v^1_{pjk} + v^2_{ipk} + v^3_{ijp})

    Args:
        q: [B, H, I, J, K, D].
        k1, v1: [B, H, P, J, K, D or E]; k2, v2: [B, H, I, P, K, D or E]; k3, v3: [B, H, I, J, P, D or E].
        attn_mask: broadcasts to [B, H, I, J, K, P]; otherwise as in :func:`pivotal_attention`.
        scale: default 1 / sqrt(3 D).

    Returns:
        [B, H, I, J, K, E].
    """
    keys, values = (k1, k2, k3), (v1, v2, v3)
    return attend_tuples(q, keys, values, attn_mask, scale, softmax_cap, chunk, dropout, byte_budget)


def reference_attention(
    q: Tensor,
    k1: Tensor,
    k2: Tensor,
    v1: Tensor,
    v2: Tensor,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    softmax_cap: float | None = None,
) -> Tensor:
    """The level-2 equation as it stands, its weights [B, H, I, K, J] kept by autograd: the oracle and the baseline."""
    score_BHIKJ = torch.einsum("bhikd,bhijd->bhikj", q, k1) + torch.einsum("bhikd,bhjkd->bhikj", q, k2)
    weight_BHIKJ = _reference_weights(score_BHIKJ, attn_mask, scale or 1 / math.sqrt(2 * q.shape[-1]), softmax_cap)
    return torch.einsum("bhikj,bhije->bhike", weight_BHIKJ, v1) + torch.einsum("bhikj,bhjke->bhike", weight_BHIKJ, v2)


def reference_attention3(
    q: Tensor,
    k1: Tensor,
    k2: Tensor,
    k3: Tensor,
    v1: Tensor,
    v2: Tensor,
    v3: Tensor,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    softmax_cap: float | None = None,
) -> Tensor:
    """The level-3 equation as it stands, with its weights [B, H, I, J, K, P] kept by autograd."""
    equations = ("bhijkd,bhpjkd->bhijkp", "bhijkd,bhipkd->bhijkp", "bhijkd,bhijpd->bhijkp")
    parts = [torch.einsum(equation, q, key) for equation, key in zip(equations, (k1, k2, k3), strict=True)]
    score = parts[0] + parts[1] + parts[2]
    weight = _reference_weights(score, attn_mask, scale or 1 / math.sqrt(3 * q.shape[-1]), softmax_cap)
    equations = ("bhijkp,bhpjke->bhijke", "bhijkp,bhipke->bhijke", "bhijkp,bhijpe->bhijke")
    parts = [torch.einsum(equation, weight, value) for equation, value in zip(equations, (v1, v2, v3), strict=True)]
    return parts[0] + parts[1] + parts[2]


def _reference_weights(score: Tensor, mask: Tensor | None, scale: float, cap: float | None) -> Tensor:
    score = score * scale
    if cap:
        score = cap * torch.tanh(score / cap)
    if mask is not None:
        score = score.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else score + mask
    empty = (score == -math.inf).all(dim=-1, keepdim=True)
    return torch.softmax(score.masked_fill(empty, 0.0), dim=-1).masked_fill(empty, 0.0)


@dataclass(frozen=True)
class AttentionSize:
    """The extent of one attention: B, H, the vertex axes of the tuple, pivots, channels a head, bytes a number."""

    batch: int
    heads: int
    tuple_axes: tuple[int, ...]
    pivots: int
    channels: int
    item_bytes: int = 4

    @property
    def order(self) -> int:
        """The number of vertices in a tuple."""
        return len(self.tuple_axes)


def estimate_bytes(size: AttentionSize, chunk: int | None = None, form: str = "chunked", backward: bool = True) -> int:
    """Estimates the peak of what one attention allocates beside its inputs, in bytes.

    ``chunked`` counts the output, the re-laid-out keys and values, their gradients, and the score-sized buffers alive
    at once within a chunk; ``five_index`` the score-sized tensors that autograd keeps in :func:`reference_attention`.
    """
    if form not in _FORMS:
        raise BadInput(f"form is one of {_FORMS}; got {form!r}")
    rows = size.tuple_axes[0]
    chunk_rows = rows if chunk is None or form == "five_index" else max(1, min(chunk, rows))
    score_item = max(size.item_bytes, 4)  # the softmax is in float32 under 16-bit inputs
    per_row = size.batch * size.heads * math.prod(size.tuple_axes[1:])
    state_bytes = per_row * rows * size.channels * size.item_bytes
    score_bytes = per_row * chunk_rows * size.pivots * score_item
    if form == "five_index":
        return score_bytes * ((size.order + 6) if backward else 4) + state_bytes * (1 + 2 * size.order * backward)
    return score_bytes * (6 if backward else 4) + state_bytes * (3 + 2 * size.order * (2 if backward else 1))


def largest_chunk(size: AttentionSize, byte_budget: int, backward: bool = True) -> int | None:
    """The largest chunk whose estimate fits the budget, or None when not even one row does."""
    fitting = [c for c in range(1, size.tuple_axes[0] + 1) if estimate_bytes(size, c, backward=backward) <= byte_budget]
    return max(fitting, default=None)


def check_budget(size: AttentionSize, chunk: int | None, byte_budget: int | None, backward: bool = True) -> None:
    """Raises MemoryEstimateError, naming the chunk that would fit, when the estimate exceeds the budget."""
    if byte_budget is None:
        return
    needed = estimate_bytes(size, chunk, backward=backward)
    if needed <= byte_budget:
        return
    fitting = largest_chunk(size, byte_budget, backward)
    way_out = (
        f"chunk={fitting} would fit"
        if fitting
        else f"not even chunk=1 fits ({estimate_bytes(size, 1, backward=backward):,} bytes): use smaller graphs"
    )
    raise MemoryEstimateError(
        f"pivotal attention of order {size.order} on {size.batch} graphs x {size.heads} heads x {size.tuple_axes} with "
        f"chunk={chunk} is estimated at {needed:,} bytes, above the budget of {byte_budget:,}; {way_out}"
    )


def attend_tuples(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    softmax_cap: float | None = None,
    chunk: int | None = None,
    dropout: float = 0.0,
    byte_budget: int | None = None,
) -> Tensor:
    """Pivotal attention of the order that ``keys`` has terms; see :func:`pivotal_attention` for the arguments."""
    axes, mask, cap = _AXES[len(keys)], attn_mask, softmax_cap
    pivots = _check_shapes(q, keys, values, axes)
    if chunk is not None and chunk < 1:
        raise BadInput(f"chunk is a number of rows and must be at least 1; got {chunk}")
    if cap is not None and cap < 0:
        raise BadInput(f"softmax_cap must be positive, or None for no cap; got {cap}")
    if not 0 <= dropout < 1:
        raise BadInput(f"dropout is a probability in [0, 1); got {dropout}")
    score_shape = (*q.shape[:-1], pivots)
    if mask is not None:
        mask = _check_mask(mask, score_shape)
    device = q.device.type
    if torch.is_autocast_enabled(device):
        low = torch.get_autocast_dtype(device)
        q, *rest = (x.to(low) if x.dtype == torch.float32 else x for x in (q, *keys, *values))
        keys, values = rest[: len(keys)], rest[len(keys) :]
    size = AttentionSize(q.shape[0], q.shape[1], tuple(q.shape[2:-1]), pivots, q.shape[-1], q.element_size())
    check_budget(size, chunk, byte_budget, backward=torch.is_grad_enabled())
    if pivots == 0 or q.numel() == 0:
        return q.new_zeros((*q.shape[:-1], values[0].shape[-1]))
    settings = _Settings(
        axes=axes,
        scale=1 / math.sqrt(len(axes) * q.shape[-1]) if scale is None else scale,
        cap=cap or None,
        chunk=q.shape[2] if chunk is None else min(chunk, q.shape[2]),
        dropout=dropout,
        dropout_seed=int(torch.randint(2**31, ()).item()) if dropout else 0,
    )
    out: Tensor = _PivotalFunction.apply(settings, mask, q, *keys, *values)  # type: ignore[no-untyped-call]
    return out


def _check_shapes(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], axes: tuple[int, ...]) -> int:
    order = len(axes)
    if q.dim() != order + 3:
        raise BadInput(f"q needs {order + 3} axes (graphs, heads, {order} vertex axes, channels); got {tuple(q.shape)}")
    pivots = keys[0].shape[2 + axes[0]] if keys[0].dim() == q.dim() else -1
    for name, tensors in (("key", keys), ("value", values)):
        channels = q.shape[-1] if name == "key" else tensors[0].shape[-1]
        for number, (tensor, axis) in enumerate(zip(tensors, axes, strict=True), start=1):
            expected = [*q.shape[:-1], channels]
            expected[2 + axis] = pivots
            if list(tensor.shape) != expected:
                raise BadInput(f"{name} {number} must have shape {tuple(expected)}; got {tuple(tensor.shape)}")
    return pivots


def _check_mask(mask: Tensor, score_shape: tuple[int, ...]) -> Tensor:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise BadInput(f"attn_mask must be boolean (True takes part) or floating (added); got {mask.dtype}")
    padded = (1,) * (len(score_shape) - mask.dim()) + tuple(mask.shape)
    if len(padded) != len(score_shape) or any(m not in (1, s) for m, s in zip(padded, score_shape, strict=True)):
        raise BadInput(f"attn_mask of shape {tuple(mask.shape)} does not broadcast to {tuple(score_shape)}")
    return mask.reshape(padded)


@dataclass(frozen=True)
class _Settings:
    axes: tuple[int, ...]
    scale: float
    cap: float | None
    chunk: int
    dropout: float
    dropout_seed: int


class _PivotalFunction(torch.autograd.Function):
    """Forward in chunks of rows; backward recomputes each chunk's weights instead of keeping them."""

    @staticmethod
    def forward(ctx: Any, settings: _Settings, mask: Tensor | None, q: Tensor, *keys_values: Tensor) -> Tensor:
        ctx.settings, ctx.has_mask = settings, mask is not None
        ctx.save_for_backward(*(() if mask is None else (mask,)), q, *keys_values)
        order = len(settings.axes)
        with torch.autocast(q.device.type, enabled=False):
            keys, values = _lay_out(keys_values[:order], settings), _lay_out(keys_values[order:], settings)
            out = q.new_empty((*q.shape[:-1], values[0].shape[-1]))
            for rows in _chunks(q.shape[2], settings.chunk):
                score = _scores(q[:, :, rows], keys, rows, settings)
                _, weight = _weights(score, mask, rows, settings)
                weight = _drop(weight, rows, settings).to(q.dtype)
                out[:, :, rows] = _mix(weight, values, rows, settings)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        settings: _Settings = ctx.settings
        saved = list(ctx.saved_tensors)
        mask = saved.pop(0) if ctx.has_mask else None
        q, *keys_values = saved
        order = len(settings.axes)
        grad_mask = torch.zeros_like(mask) if mask is not None and ctx.needs_input_grad[1] else None
        with torch.autocast(q.device.type, enabled=False):
            keys, values = _lay_out(keys_values[:order], settings), _lay_out(keys_values[order:], settings)
            grad_q = torch.empty_like(q)
            grad_keys, grad_values = [torch.zeros_like(k) for k in keys], [torch.zeros_like(v) for v in values]
            for rows in _chunks(q.shape[2], settings.chunk):
                q_rows, grad_rows = q[:, :, rows], grad_out[:, :, rows]
                slope, weight = _weights(_scores(q_rows, keys, rows, settings), mask, rows, settings)
                _collect(grad_values, _drop(weight, rows, settings).to(q.dtype), grad_rows, rows, settings)
                # y is linear in the weights: its gradient has the form of a score, with the values in the keys' place
                grad_weight = _scores(grad_rows, values, rows, settings).to(weight.dtype)
                grad_weight = _drop(grad_weight, rows, settings)
                inner = torch.einsum("...p,...p->...", weight, grad_weight).unsqueeze(-1)
                grad_score = grad_weight.sub_(inner).mul_(weight)
                if grad_mask is not None:
                    part = grad_mask if grad_mask.shape[2] == 1 else grad_mask[:, :, rows]
                    part += grad_score.sum_to_size(part.shape)
                if slope is not None:
                    grad_score = grad_score.mul_(slope)
                grad_score = grad_score.mul_(settings.scale).to(q.dtype)
                grad_q[:, :, rows] = _mix(grad_score, keys, rows, settings)
                _collect(grad_keys, grad_score, q_rows, rows, settings)
        grads = [g.movedim(-2, 2 + axis) for g, axis in zip(grad_keys, settings.axes, strict=True)]
        grads += [g.movedim(-2, 2 + axis) for g, axis in zip(grad_values, settings.axes, strict=True)]
        return (None, grad_mask, grad_q, *grads)


def _chunks(rows: int, chunk: int) -> Iterator[slice]:
    for start in range(0, rows, chunk):
        yield slice(start, min(start + chunk, rows))


def _lay_out(tensors: Sequence[Tensor], settings: _Settings) -> list[Tensor]:
    """Moves each term's pivot axis next to its channels, once, so that every chunk is a batched matrix product."""
    return [x.movedim(2 + axis, -2).contiguous() for x, axis in zip(tensors, settings.axes, strict=True)]


def _term(tensor: Tensor, axis: int, rows: slice) -> Tensor:
    # the term whose pivot replaces the first member has no row axis of its own: all rows share it
    return tensor if axis == 0 else tensor[:, :, rows]


def _scores(q_rows: Tensor, keys: Sequence[Tensor], rows: slice, settings: _Settings) -> Tensor:
    """The sum over terms of q . key, [B, H, c, S', P]."""
    total: Tensor | None = None
    for key, axis in zip(keys, settings.axes, strict=True):
        part = (q_rows.movedim(2 + axis, -2) @ _term(key, axis, rows).mT).movedim(-2, 2 + axis)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _weights(score: Tensor, mask: Tensor | None, rows: slice, settings: _Settings) -> tuple[Tensor | None, Tensor]:
    """The slope of the cap (None without one) and the softmax over pivots; overwrites ``score``."""
    if score.dtype in (torch.float16, torch.bfloat16):
        score = score.float()
    score = score.mul_(settings.scale)
    slope = None
    if settings.cap is not None:
        tanh = score.div_(settings.cap).tanh_()
        slope = 1 - tanh * tanh
        score = tanh * settings.cap
    if mask is None:
        return slope, torch.softmax(score, dim=-1)
    part = mask if mask.shape[2] == 1 else mask[:, :, rows]
    score = score.masked_fill_(~part, -math.inf) if part.dtype == torch.bool else score.add_(part)
    empty = score.amax(dim=-1, keepdim=True) == -math.inf
    return slope, torch.softmax(score, dim=-1).masked_fill_(empty, 0.0)


def _drop(weight: Tensor, rows: slice, settings: _Settings) -> Tensor:
    """Dropout whose noise the backward pass can draw again: seeded by the call and the first row of the chunk."""
    if not settings.dropout:
        return weight
    generator = torch.Generator(weight.device).manual_seed(settings.dropout_seed + rows.start)
    kept = torch.rand(weight.shape, generator=generator, device=weight.device) >= settings.dropout
    return weight * kept / (1 - settings.dropout)


def _mix(weight: Tensor, values: Sequence[Tensor], rows: slice, settings: _Settings) -> Tensor:
    """The sum over terms of weight @ value, [B, H, c, S', E]."""
    total: Tensor | None = None
    for value, axis in zip(values, settings.axes, strict=True):
        part = (weight.movedim(2 + axis, -2) @ _term(value, axis, rows)).movedim(-2, 2 + axis)
        total = part if total is None else total + part
    assert total is not None
    return total


def _collect(grads: list[Tensor], weight: Tensor, rows_state: Tensor, rows: slice, settings: _Settings) -> None:
    """Adds weight^T @ state to each term's gradient, laid out as the terms are."""
    for grad, axis in zip(grads, settings.axes, strict=True):
        part = weight.movedim(2 + axis, -2).mT @ rows_state.movedim(2 + axis, -2)
        if axis == 0:
            grad += part
        else:
            grad[:, :, rows] = part
