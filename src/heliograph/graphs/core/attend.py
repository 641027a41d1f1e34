"""``attend``: each target weighs its sources by a score and takes their values, on any support.

Three back ends compute the same. ``edges`` works on the edge list (bytes grow with the number of edges), ``dense`` pads
graphs to equal size (bytes grow with the square of the largest), and ``csr``, for softmax of dot products on a GPU, is
a Triton kernel that keeps nothing of an edge but its bias. ``auto`` takes ``dense`` where it is small, else ``csr``
where it applies, else ``edges``.

Shapes: N vertices, E edges of the support, H heads, D channels a head; B graphs padded to M vertices.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from heliograph.errors import BadInput, MemoryEstimateError
from heliograph.graphs.core.aggregate import segment_mean, segment_softmax, segment_sum, take_rows
from heliograph.graphs.core.support import Support

__all__ = [
    "Attended",
    "Backend",
    "ConstantScore",
    "DotScore",
    "GatedScore",
    "GritScore",
    "L2Score",
    "Score",
    "Scored",
    "attend",
    "attend_with_pairs",
    "choose_backend",
    "estimate_bytes",
]

Backend = Literal["auto", "edges", "dense", "csr"]
Chosen = Literal["edges", "dense", "csr"]
Aggregate = Literal["softmax", "ratio", "sum", "mean"]
ATTEND_BUDGET_BYTES = 8 * 2**30
RATIO_FLOOR = 1e-6
ROOT_SHIFT = 1e-6


@dataclass(frozen=True)
class Scored:
    """logits [..., H] or, by channel, [..., H, D]; pair: a new state of each pair, [..., H, D], or None."""

    logits: Tensor
    pair: Tensor | None = None


@dataclass(frozen=True)
class Attended:
    """out [N, H, D]; pair [E, H, D] and its weighted sum pair_out [N, H, D], where the score makes pair states."""

    out: Tensor
    pair: Tensor | None = None
    pair_out: Tensor | None = None


class Score(Protocol):
    """Rates pairs; ``q`` and ``k`` [..., H, D] broadcast against each other, ``pair`` [..., H] or [..., H, C]."""

    def __call__(self, q: Tensor, k: Tensor, pair: Tensor | None) -> Scored:
        """The score of each pair."""
        ...


@dataclass(frozen=True)
class DotScore:
    """q . k / sqrt(D), plus ``pair`` [..., H] as a bias."""

    def __call__(self, q: Tensor, k: Tensor, pair: Tensor | None) -> Scored:
        """The score of each pair."""
        # a product of matrices where q and k come as dense blocks, so that [B, M, M, H, D] is never formed
        if q.dim() == 5:
            raw = torch.einsum("bihd,bjhd->bijh", q[:, :, 0], k[:, 0])
        else:
            raw = (q * k).sum(-1)
        return Scored(_with_bias(raw / math.sqrt(q.shape[-1]), pair))


@dataclass(frozen=True)
class L2Score:
    """-|q - k|^2 / (2 sqrt(D)), plus ``pair`` [..., H] as a bias."""

    def __call__(self, q: Tensor, k: Tensor, pair: Tensor | None) -> Scored:
        """The score of each pair."""
        return Scored(_with_bias(-(q - k).square().sum(-1) / (2 * math.sqrt(q.shape[-1])), pair))


@dataclass(frozen=True)
class GatedScore:
    """By channel, q + k, plus ``pair`` [..., H, D]: the gate of GatedGCN, with ``aggregate="ratio"``."""

    def __call__(self, q: Tensor, k: Tensor, pair: Tensor | None) -> Scored:
        """The score of each pair."""
        logits = q + k if pair is None else q + k + pair
        return Scored(logits, logits)


@dataclass(frozen=True)
class ConstantScore:
    """The same for every source: softmax of it is the mean, ``sum`` of it the sum."""

    def __call__(self, q: Tensor, k: Tensor, pair: Tensor | None) -> Scored:
        """The score of each pair."""
        return Scored(_with_bias(torch.ones_like(q[..., 0] + k[..., 0]), pair))


class GritScore(nn.Module):
    r"""The score of GRIT (arXiv:2305.17589), which also renews the state of each pair.

    .. math:: t_{ij} = \mathrm{relu}(\rho((q_i + k_j) \odot w_{ij}) + b_{ij}), \qquad
              \rho(z) = \mathrm{sign}(z)\sqrt{|z|}, \qquad
              s_{ij} = \mathrm{clamp}(w_A \cdot t_{ij}, -c, c)

    ``pair`` holds w and b side by side, [..., H, 2 D].

    Args:
        heads, dim: H and D.
        clamp: c; None for no limit.
    """

    def __init__(self, heads: int, dim: int, clamp: float | None = 5.0) -> None:
        super().__init__()
        self.clamp = clamp
        self.weight = nn.Parameter(torch.empty(heads, dim))
        nn.init.xavier_normal_(self.weight)

    def forward(self, q: Tensor, k: Tensor, pair: Tensor | None) -> Scored:
        """The score of each pair, and its new state."""
        if pair is None or pair.shape[-1] != 2 * q.shape[-1]:
            found = "none" if pair is None else str(pair.shape[-1])
            raise BadInput(f"GRIT's score needs pair states of 2 D = {2 * q.shape[-1]} channels a head; got {found}")
        scale, shift = pair.chunk(2, dim=-1)
        state = _GritState.apply(q, k, scale, shift)  # type: ignore[no-untyped-call]
        one_type = state.dtype == self.weight.dtype  # else the sum is taken in the wider type
        logits = torch.einsum("...hd,hd->...h", state, self.weight) if one_type else (state * self.weight).sum(-1)
        return Scored(logits if self.clamp is None else logits.clamp(-self.clamp, self.clamp), state)


def attend(
    support: Support,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pair: Tensor | None = None,
    score: Score | None = None,
    aggregate: Aggregate = "softmax",
    backend: Backend = "auto",
) -> Tensor:
    r"""What each vertex hears, [N, H, D].

    .. math:: y_i = \sum_{j \to i} a_{ij} v_j

    Args:
        support: who sends to whom.
        q, k, v: [N, H, D]; ``v`` may have another D.
        pair: [E, H] or [E, H, C] in the order of ``support`` (see ``Support.gather``), as the score takes it.
        score: rates the pairs; :class:`DotScore` where None.
        aggregate: how scores become weights a. ``softmax`` over the sources, in float32 for 16-bit types; ``ratio`` is
            sigmoid(s) / (sum of sigmoid(s) + 1e-6); ``sum`` takes the scores as they are; ``mean`` divides those by the
            number of sources. A vertex without sources gets 0.
        backend: ``edges``, ``dense``, ``csr``, or ``auto`` by :func:`choose_backend`.

    Raises:
        BadInput: shapes that do not fit, ``dense`` on parallel edges, or ``csr`` where it does not apply.
        MemoryEstimateError: the back end would take more than ``ATTEND_BUDGET_BYTES``.
    """
    return attend_with_pairs(support, q, k, v, pair, score, aggregate, backend).out


def attend_with_pairs(
    support: Support,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pair: Tensor | None = None,
    score: Score | None = None,
    aggregate: Aggregate = "softmax",
    backend: Backend = "auto",
) -> Attended:
    """As :func:`attend`, with the pair states that the score makes, and their sum under the same weights."""
    _check(support, q, k, v, pair)
    widest = max(q.shape[2], v.shape[2])
    rate = DotScore() if score is None else score
    chosen: Backend = backend
    if backend == "auto":
        applies = q.is_cuda and not _why_not_csr(q, v, pair, rate, aggregate)
        chosen = choose_backend(support, q.shape[1], widest, q.element_size(), csr=applies)
    if chosen == "dense":
        return _dense(support, q, k, v, pair, rate, aggregate)
    if chosen == "csr":
        return Attended(_csr(support, q, k, v, pair, rate, aggregate))
    scored = rate(take_rows(q, support.target), take_rows(k, support.source), pair)
    weights = _weights(scored.logits, support, aggregate)
    out = segment_sum(_spread(weights, v) * take_rows(v, support.source), support.target, support.num_vertices)
    if scored.pair is None:
        return Attended(out)
    heard = segment_sum(_spread(weights, scored.pair) * scored.pair, support.target, support.num_vertices)
    return Attended(out, scored.pair, heard)


def estimate_bytes(support: Support, heads: int, dim: int, element_size: int = 4) -> dict[Chosen, int]:
    """Bytes that each back end keeps for its backward pass.

    ``edges`` and ``dense``: three tensors of H D a pair, and two of H. ``csr``: the order of the edges by source, and a
    vertex's output with one number a head.
    """
    a_pair = heads * (3 * dim + 2) * element_size
    largest = support.largest
    return {
        "edges": support.num_edges * a_pair,
        "dense": support.num_graphs * largest**2 * a_pair,
        "csr": support.num_edges * 16 + support.num_vertices * heads * (dim * element_size + 4),
    }


def choose_backend(support: Support, heads: int, dim: int, element_size: int = 4, *, csr: bool = False) -> Chosen:
    """``dense`` where it takes at most twice the bytes of ``edges`` and there are no parallel edges, else a sparse one.

    Args:
        support: who sends to whom.
        heads, dim, element_size: H, D, and bytes a number.
        csr: whether the sparse one may be ``csr``.

    Raises:
        MemoryEstimateError: the smaller estimate is above ``ATTEND_BUDGET_BYTES``.
    """
    need = estimate_bytes(support, heads, dim, element_size)
    # a dense pair costs less time than a gathered one, so dense may take up to twice the bytes
    dense = need["dense"] <= 2 * need["edges"] and not support.has_parallel
    chosen: Chosen = "dense" if dense else "csr" if csr else "edges"
    if need[chosen] > ATTEND_BUDGET_BYTES:
        raise MemoryEstimateError(
            f"attention over {support.num_edges:,} pairs takes about {need[chosen] / 2**30:.1f} GiB, above the budget "
            f"of {ATTEND_BUDGET_BYTES / 2**30:.0f} GiB; use smaller batches or a sparser support"
        )
    return chosen


def _why_not_csr(q: Tensor, v: Tensor, pair: Tensor | None, score: Score, aggregate: Aggregate) -> str:
    if not isinstance(score, DotScore) or aggregate != "softmax":
        return "it knows the softmax of dot products only"
    if q.shape != v.shape or q.dtype != v.dtype or q.dtype == torch.float64:
        return "q and v must have one shape and one type of 16 or 32 bits"
    if pair is not None and pair.dim() != 2:
        return "a bias must be [E, H]"
    if math.prod(1 << (size - 1).bit_length() for size in q.shape[1:]) > 1024:
        return f"H D = {q.shape[1] * q.shape[2]} channels, rounded up, exceed 1024"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return ""


def _csr(
    support: Support, q: Tensor, k: Tensor, v: Tensor, pair: Tensor | None, score: Score, aggregate: Aggregate
) -> Tensor:
    reason = _why_not_csr(q, v, pair, score, aggregate)
    if reason:
        raise BadInput(f"backend='csr' does not apply here: {reason}; use backend='edges'")
    from heliograph.graphs.core import attend_csr as kernels  # needs triton, which not every machine has

    if not q.is_cuda and not kernels.INTERPRETED:
        raise BadInput("backend='csr' runs on a GPU; the tensors are on the CPU: use backend='edges'")
    return kernels.attend_csr(support, q, k, v, pair, 1 / math.sqrt(q.shape[2]))


def _weights(logits: Tensor, support: Support, aggregate: Aggregate) -> Tensor:
    size, target = support.num_vertices, support.target
    if aggregate == "softmax":
        return segment_softmax(logits, target, size)
    if aggregate == "ratio":
        gate = torch.sigmoid(logits)
        return gate / (segment_sum(gate, target, size) + RATIO_FLOOR)[target]
    if aggregate == "mean":
        # the mean of ones is 1 at every vertex with sources: dividing each edge by its target's number of edges
        share = segment_mean(torch.ones_like(logits), target, size)
        count = segment_sum(torch.ones_like(logits), target, size)
        return logits * share[target] / count[target].clamp(min=1)
    return logits


def _dense(
    support: Support, q: Tensor, k: Tensor, v: Tensor, pair: Tensor | None, score: Score, aggregate: Aggregate
) -> Attended:
    if support.has_parallel:
        raise BadInput("the dense back end has one place a pair and cannot hold parallel edges; use backend='edges'")
    size = int(support.sizes.max()) if support.num_vertices else 0
    rows, place, graphs = support.batch, support.place, support.num_graphs
    at = (rows[support.target], place[support.target], place[support.source])

    def pad(values: Tensor) -> Tensor:
        return values.new_zeros((graphs, size, *values.shape[1:])).index_put((rows, place), values)

    mask = torch.zeros((graphs, size, size), dtype=torch.bool, device=q.device)
    mask[at] = True
    full = None
    if pair is not None:
        full = pair.new_zeros((graphs, size, size, *pair.shape[1:])).index_put(at, pair)
    scored = score(pad(q)[:, :, None], pad(k)[:, None], full)
    logits = scored.logits.expand(graphs, size, size, *scored.logits.shape[3:])
    allowed = mask.reshape(*mask.shape, *([1] * (logits.dim() - 3)))
    weights = _dense_weights(logits, allowed, aggregate)
    out = _mix(weights, pad(v))[rows, place]
    if scored.pair is None:
        return Attended(out)
    heard = (_spread(weights, scored.pair) * scored.pair).sum(2)
    return Attended(out, scored.pair[at], heard[rows, place])


def _dense_weights(logits: Tensor, allowed: Tensor, aggregate: Aggregate) -> Tensor:
    if aggregate == "softmax":
        wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        # rows without sources: softmax over equal finite numbers, then set to 0, so that no NaN enters the gradient
        weights = wide.masked_fill(~allowed, torch.finfo(wide.dtype).min).softmax(dim=2).to(logits.dtype)
        return torch.where(allowed, weights, 0.0)
    if aggregate == "ratio":
        gate = torch.where(allowed, torch.sigmoid(logits), 0.0)
        return gate / (gate.sum(2, keepdim=True) + RATIO_FLOOR)
    weights = torch.where(allowed, logits, 0.0)
    if aggregate == "mean":
        return weights / allowed.sum(2, keepdim=True).clamp(min=1)
    return weights


def _mix(weights: Tensor, v_BMHD: Tensor) -> Tensor:
    equation = "bijh,bjhd->bihd" if weights.dim() == 4 else "bijhd,bjhd->bihd"
    return torch.einsum(equation, weights, v_BMHD)


def _spread(weights: Tensor, values: Tensor) -> Tensor:
    return weights if weights.dim() == values.dim() else weights.unsqueeze(-1)


def _with_bias(logits: Tensor, pair: Tensor | None) -> Tensor:
    return logits if pair is None else logits + pair


class _GritState(torch.autograd.Function):
    """relu(rho((q + k) w) + b), rho(z) = sign(z) sqrt(|z|), shifted under the root so that its slope at 0 is finite.

    The backward pass computes z again from q, k and w, so that of all pairs only the result is kept beside w.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        z = (q + k) * scale
        root = z.abs().add_(ROOT_SHIFT).sqrt_().sub_(math.sqrt(ROOT_SHIFT))
        state = root.mul_(z.sign_()).add(shift).relu_()
        ctx.save_for_backward(q, k, scale, state)
        ctx.shift_shape = shift.shape
        return state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, scale, state = ctx.saved_tensors
        through = grad * (state > 0)
        both = q + k
        z = both * scale
        slope = z.abs().add_(ROOT_SHIFT).sqrt_().mul_(2)
        at_z = (through / slope).masked_fill_(z == 0, 0.0)
        at_scale = both.mul_(at_z) if both.shape == at_z.shape and both.dtype == at_z.dtype else both * at_z
        at_both = at_z.mul_(scale)
        found = (at_both, at_both, at_scale, through)
        wanted = (q.shape, k.shape, scale.shape, ctx.shift_shape)
        return tuple(part.sum_to_size(shape) for part, shape in zip(found, wanted, strict=True))


def _check(support: Support, q: Tensor, k: Tensor, v: Tensor, pair: Tensor | None) -> None:
    for name, values in (("q", q), ("k", k), ("v", v)):
        if values.dim() != 3 or len(values) != support.num_vertices or values.shape[1] != q.shape[1]:
            raise BadInput(
                f"{name} must be [N, H, D] with N={support.num_vertices} and H={q.shape[1]}; got {list(values.shape)}"
            )
    if q.shape != k.shape:
        raise BadInput(f"q and k must have one shape; got {list(q.shape)} and {list(k.shape)}")
    if pair is not None and len(pair) != support.num_edges:
        raise BadInput(f"pair must have a row for each of the support's {support.num_edges} edges; got {len(pair)}")
