"""Bytes and seconds of a windowed model's caches, and answers that begin from a prefix of the pool."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from heliograph.random import CounterRng
from heliograph.serving.prfaas.pool import CacheGroup, HybridKVPool
from heliograph.serving.prfaas.profile import kv_throughput
from heliograph.serving.prfaas.remote import RemoteSettings, load_settings_model
from heliograph.serving.prfaas.windowed import WindowedKV, continue_greedily, prefill, random_decoder, windowed_shape
from heliograph.trials.check import Context

__all__ = ["measure_prefixes", "measure_rates"]


def tokens_of(seed: int, count: int, vocabulary: int, stream: int = 0) -> list[int]:
    """Random token numbers."""
    return [int(n) for n in CounterRng(seed).at(item=stream).integers(0, vocabulary, count)]


def measure_rates(context: Context) -> Mapping[str, Any]:
    """``kv_rate`` in bytes a second, ``bytes``, ``prefill_s`` at the long prompt, ``kv_rate_window`` at one no longer
    than the window; ``exact``: bytes are those of the formula; ``notices``: not those without windows."""
    load = context.workload
    dtype = "bfloat16" if context.device == "cuda" else "float32"
    settings = RemoteSettings(
        load["model"], load["layers"], load["full_every"], load["window"], device=context.device, dtype=dtype
    )
    model, windows = load_settings_model(settings)
    if context.contender == "all layers full":
        windows = (None,) * len(windows)
    tokens = tokens_of(context.seed, load["tokens"], min(20_000, model.config.vocabulary))
    shape = windowed_shape(model.config, windows)
    dense, number = (None,) * len(windows), next(model.decoder.parameters()).element_size()
    prefill(model, tokens[:128], WindowedKV(windows))  # allocators and kernels are ready

    def rate(length: int, runs: int) -> tuple[int, float, bool]:
        seconds = []
        for _ in range(runs):
            kv = WindowedKV(windows)
            begin = time.perf_counter()
            prefill(model, tokens[:length], kv)
            if context.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
        expected = shape.kv_bytes(length, kv.keys[0].element_size())
        return kv.nbytes, statistics.median(seconds), kv.nbytes == expected

    window_bytes, window_s, window_exact = rate(load["window"], 3)
    nbytes, seconds, exact = rate(load["tokens"], load["runs"])
    return {
        "kv_rate": kv_throughput(nbytes, seconds),
        "kv_rate_window": kv_throughput(window_bytes, window_s),
        "bytes": nbytes,
        "prefill_s": seconds,
        "exact": [exact, window_exact],
        "notices": [nbytes != windowed_shape(model.config, dense).kv_bytes(load["tokens"], number)],
    }


def measure_prefixes(context: Context) -> Mapping[str, Any]:
    """``identical``: answers from the pool's common length equal those from the start; ``notices``: from the longest
    length of the full layers alone, with the last saved state, they do not."""
    load = context.workload
    block, step, window = load["block"], load["checkpoint"], load["window"]
    model = random_decoder(context.seed)
    windows = tuple(None if n % 3 == 2 else window for n in range(model.config.layers))
    groups = CacheGroup.of(windowed_shape(model.config, windows), 4.0)
    identical, notices = [], []
    for number in range(load["prompts"]):
        pool = HybridKVPool(groups, 1024, 4096, block_tokens=block, checkpoint_tokens=step)
        first = tokens_of(context.seed, load["tokens"], 256, 2 * number)
        shared = load["tokens"] - step // 2 - 7 * number
        second = first[:shared] + tokens_of(context.seed, 60, 256, 2 * number + 1)
        kv, saved = WindowedKV(windows), {}
        pool.begin("first", first)
        for stop in [*range(step, len(first), step), len(first) // block * block, len(first)]:
            if stop > kv.length:
                prefill(model, first[kv.length : stop], kv)
                saved[stop] = kv.copy()
        pool.extend("first", len(first))
        pool.end("first")
        hit = pool.begin("second", second)
        pool.check()
        plain = WindowedKV(windows)
        answer = continue_greedily(model, plain, prefill(model, second, plain), load["answer"])
        again = _resume(kv, saved[hit.length], hit.length) if hit.length else WindowedKV(windows)
        token = prefill(model, second[hit.length :], again)
        identical += [hit.length > 0, continue_greedily(model, again, token, load["answer"]) == answer]
        longest = hit.by_group["full"]
        if longest > hit.length:
            wrong = _resume(kv, saved[hit.length], longest)
            token = prefill(model, second[longest:], wrong)
            continue_greedily(model, wrong, token, load["answer"])
            notices.append(not torch.allclose(wrong.keys[-1][-1], plain.keys[-1][-1], atol=1e-4))
    return {"identical": identical, "notices": notices}


def _resume(whole: WindowedKV, state: WindowedKV, length: int) -> WindowedKV:
    """Token caches of the full layers up to a length, and saved windows of the others."""
    keys, values = [], []
    for layer, window in enumerate(whole.windows):
        source = whole if window is None else state
        stop = length if window is None else None
        keys.append(source.keys[layer][:stop])
        values.append(source.values[layer][:stop])
    return WindowedKV.filled(whole.windows, keys, values, length)
