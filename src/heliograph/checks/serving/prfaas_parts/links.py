"""A windowed model's caches over a paced link to another process: answers, and what sending by layer hides."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from heliograph.checks.serving.prfaas_parts.caches import tokens_of
from heliograph.lm.core.load import LanguageModel
from heliograph.serving.prfaas.offload import RemotePrefill
from heliograph.serving.prfaas.remote import RemoteProcess, RemoteSettings, load_settings_model
from heliograph.serving.prfaas.windowed import WindowedKV, continue_greedily, prefill
from heliograph.trials.check import Context, Workload

__all__ = ["measure_answers", "measure_hiding"]


def _settings(load: Workload, device: str) -> RemoteSettings:
    return RemoteSettings(
        load["model"],
        load["layers"],
        load["full_every"],
        load["window"],
        load["bytes_per_s"],
        load["delay_s"],
        load["chunk_bytes"],
        device=device,
        dtype="bfloat16" if device == "cuda" else "float32",
    )


@contextmanager
def _both_sides(settings: RemoteSettings) -> Iterator[tuple[RemoteProcess, LanguageModel, tuple[int | None, ...]]]:
    """A remote process and the model here, loaded at the same time."""
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(RemoteProcess, settings)
        try:
            model, windows = load_settings_model(settings)
        finally:
            process = starting.result()
    with process:
        yield process, model, windows


def measure_answers(context: Context) -> Mapping[str, Any]:
    """``tokens``: greedy answers from a cache that came from another process equal local ones, whichever way it came;
    ``notices``: with keys shifted by one token they do not."""
    load = context.workload
    settings = _settings(load, context.device)
    tokens, notices = [], []
    with _both_sides(settings) as (process, model, windows):
        remote = RemotePrefill(process.address, model, windows)
        for number, length in enumerate(load["lengths"]):
            prompt = tokens_of(context.seed, length, min(20_000, model.config.vocabulary), number)
            here = WindowedKV(windows)
            answer = continue_greedily(model, here, prefill(model, prompt, here), load["answer"])
            for layerwise in (True, False):
                came = remote.fetch(prompt, layerwise=layerwise)
                shifted = came.kv.copy()
                shifted.keys = [k.roll(1, dims=0) for k in shifted.keys]
                tokens.append(continue_greedily(model, came.kv, came.first_token, load["answer"]) == answer)
            wrong = continue_greedily(model, shifted, came.first_token, load["answer"])
            # one damaged answer may equal the right one by chance; the last keys cannot
            same = torch.equal(shifted.keys[-1][-1], came.kv.keys[-1][-1])
            notices.append(wrong != answer or not same)
            context.progress((number + 1) / len(load["lengths"]))
    return {"tokens": tokens, "notices": notices}


def measure_hiding(context: Context) -> Mapping[str, Any]:
    """``hidden``: seconds that sending by layer takes off the first token, as a share of the smaller of prefill and
    transfer; ``still``: sending after the prompt against itself hides nothing."""
    load = context.workload
    settings = _settings(load, context.device)
    arms = {"by layer": True, "after": False, "after, again": False}
    hidden, still, ttft = [], [], {}
    with _both_sides(settings) as (process, model, windows):
        remote = RemotePrefill(process.address, model, windows)
        remote.fetch(tokens_of(context.seed, 64, 256, 99))
        for number, length in enumerate(load["lengths"]):
            prompt = tokens_of(context.seed, length, min(20_000, model.config.vocabulary), number)
            times: dict[str, list[float]] = {arm: [] for arm in arms}
            computed = []
            for _ in range(load["runs"]):
                for arm, layerwise in arms.items():
                    came = remote.fetch(prompt, layerwise=layerwise)
                    times[arm].append(came.elapsed_s)
                    if not layerwise:
                        computed.append(came.prefill_s)
            middle = {arm: statistics.median(seconds) for arm, seconds in times.items()}
            prefill_s = statistics.median(computed)
            transfer_s = sum(remote.layer_sizes(length)) / load["bytes_per_s"]
            smaller = min(prefill_s, transfer_s)
            hidden.append((middle["after"] - middle["by layer"]) / smaller)
            still.append(abs(middle["after"] - middle["after, again"]) / smaller <= load["still"])
            ttft[str(length)] = {**middle, "prefill": prefill_s, "transfer": transfer_s}
            context.progress((number + 1) / len(load["lengths"]))
    context.keep("seconds to the first token", ttft)
    return {"hidden": statistics.mean(hidden), "still": still}
