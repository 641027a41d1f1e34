"""What a page size costs: the decoding attention of heliograph's engine over blocks of 1 to 64 tokens.

Latent attention is computed as decoding does, with the latent as the one key and value head of all query heads.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from heliograph.errors import HeliographError
from heliograph.serving.amd_instinct.advisor import ServingAdvisor
from heliograph.trials.check import Context
from heliograph.workload.config_reader import read_shape
from heliograph.workload.device_spec import DeviceSpec

__all__ = ["measure_sweep", "measure_times"]


def measure_sweep(context: Context) -> Mapping[str, Any]:
    """``share_of_best``: time of a step at the best page size over that at the recommended one, interleaved."""
    load = context.workload
    sizes, recommended = tuple(load["block_sizes"]), _recommended(load, context.device)
    if recommended not in sizes:
        raise HeliographError(f"the recommended page of {recommended} tokens is not in the sweep {sizes}")
    steps = {size: _steps(load, size, context) for size in sizes}
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for repeat in range(load["warmup"] + load["repeats"]):
        for size, step in steps.items():
            begin = time.perf_counter()
            step()
            if repeat >= load["warmup"]:
                seconds[size].append(time.perf_counter() - begin)
    median = {size: statistics.median(values) for size, values in seconds.items()}
    context.keep("seconds by page size", {str(size): value for size, value in median.items()})
    return {"share_of_best": min(median.values()) / median[recommended], "recommended": recommended}


def measure_times(context: Context) -> Mapping[str, Callable[[], None]]:
    """The same steps at the recommended and the fixed page size, and the recommended one once more."""
    load = context.workload
    recommended = _recommended(load, context.device)
    return {
        "recommended": _steps(load, recommended, context),
        "fixed": _steps(load, load["fixed"], context),
        "recommended, again": _steps(load, recommended, context),
    }


def _recommended(load: Any, device: str) -> int:
    host = DeviceSpec("host", "cpu", "any", 16e9, 2e10, {"fp32": 1e11})
    if device != "cpu":
        host = DeviceSpec("gpu", "nvidia", "sm90", 141e9, 4.8e12, {"fp16": 9.9e14})
    return ServingAdvisor().recommend(read_shape(load["config"]), host, "heliograph", concurrency=8).block_size


def _steps(load: Any, block: int, context: Context) -> Callable[[], None]:
    import torch

    from heliograph.serving.core.paged_attention import BlockCache, PagedAttention, PagedBatch

    rows, past, heads, grouped, size = (load[k] for k in ("rows", "context", "heads", "kv_heads", "head_dim"))
    device, dtype = context.device, torch.float32 if context.device == "cpu" else torch.bfloat16
    each = -(-past // block)
    cache = BlockCache(1, rows * each, block, grouped, size, dtype, device)
    generator = torch.Generator(device).manual_seed(context.seed)
    cache.data.normal_(generator=generator)
    # pages lie anywhere, as after hours of use
    order = torch.randperm(rows * each, generator=generator, device=device).to(torch.int32)
    tables = order.reshape(rows, each)
    last = past - 1
    slots = tables[:, last // block].long() * block + last % block
    lengths = torch.full((rows,), past, dtype=torch.int32, device=device)
    attention = PagedAttention(cache, PagedBatch(slots, tables, lengths, (1,) * rows, rows))
    q = torch.randn(rows, heads, size, generator=generator, dtype=dtype, device=device)
    k = torch.randn(rows, grouped, size, generator=generator, dtype=dtype, device=device)
    v = torch.randn(rows, grouped, size, generator=generator, dtype=dtype, device=device)

    def run() -> None:
        for _ in range(load["steps"]):
            attention.attend(0, q, k, v)
        if device != "cpu":
            torch.cuda.synchronize()

    return run
