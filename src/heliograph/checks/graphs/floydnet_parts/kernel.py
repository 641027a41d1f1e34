"""Part E: the chunked kernel against the equation as it stands: results, memory, time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from heliograph.graphs.floydnet.attention import (
    pivotal_attention,
    pivotal_attention3,
    reference_attention,
    reference_attention3,
)
from heliograph.trials.check import Context

__all__ = ["measure_equality", "measure_memory", "measure_time"]

ROUNDING = 1e-10


def measure_equality(context: Context) -> Mapping[str, Any]:
    """Outputs and gradients of both forms in float64, orders 2 and 3, with and without masks."""
    equal, notices = [], []
    for size in context.workload["sizes"]:
        for order in (2, 3):
            fast, plain = (
                (pivotal_attention, reference_attention) if order == 2 else (pivotal_attention3, reference_attention3)
            )
            states = _states(size, order, 1, 2, 4, context.seed, torch.float64, "cpu")
            moved = [s.detach().clone() for s in states]
            moved[-1].view(-1)[0] += 1e-6
            for mask in (None, _pivot_mask(size, order, context.seed)):
                chunked = _with_gradients(partial(fast, attn_mask=mask, chunk=2), states)
                equal.append(_agree(chunked, _with_gradients(partial(plain, attn_mask=mask), states)))
            notices.append(not _agree(_with_gradients(partial(fast, chunk=2), states), _with_gradients(plain, moved)))
    context.say(f"chunked and five-index pivotal attention: {sum(equal)} of {len(equal)} cases equal to rounding")
    return {"equal": equal, "notices": notices}


def measure_memory(context: Context) -> Mapping[str, Any]:
    """Runs one pass; the engine reads the peak above the inputs, which are the same for every arm."""
    warm = _states(4, 2, 1, 1, 4, context.seed, torch.float32, context.device)
    _with_gradients(reference_attention, warm)  # libraries load what they need at the first backward pass
    states, run = _pass(context, context.contender)
    context.reset_memory()
    run()
    return {"elements": sum(s.numel() for s in states)}


def measure_time(context: Context) -> Mapping[str, Callable[[], Any]]:
    """The arms as calls that the engine interleaves and times."""
    return {arm: _pass(context, arm)[1] for arm in ("chunked", "five-index", "five-index, again")}


def _pass(context: Context, arm: str) -> tuple[list[Tensor], Callable[[], Any]]:
    load = context.workload
    states = _states(
        load["vertices"], 2, load["batch"], load["heads"], load["channels"], context.seed, torch.float32, context.device
    )
    if arm == "chunked":
        return states, lambda: _with_gradients(partial(pivotal_attention, chunk=load["chunk"]), states)
    return states, lambda: _with_gradients(reference_attention, states)


def _states(
    size: int, order: int, batch: int, heads: int, channels: int, seed: int, dtype: torch.dtype, device: str
) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    shape = (batch, heads, *[size] * order, channels)
    return [torch.randn(shape, generator=random, dtype=dtype).to(device).requires_grad_() for _ in range(2 * order + 1)]


def _pivot_mask(size: int, order: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed + 1)
    return torch.rand((1, 1, *[size] * (order + 1)), generator=random) < 0.7


def _with_gradients(form: Callable[..., Tensor], states: list[Tensor]) -> list[Tensor]:
    leaves = [s.detach().requires_grad_() for s in states]
    out = form(*leaves)
    out.square().sum().backward()  # type: ignore[no-untyped-call]
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def _agree(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(bool(((a - b).abs() <= ROUNDING * (1 + b.abs())).all()) for a, b in zip(first, second, strict=True))
