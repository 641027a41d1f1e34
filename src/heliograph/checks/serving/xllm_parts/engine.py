"""The engine itself: the tokens of a plain forward pass whatever happens on the way, and steps planned ahead."""

from __future__ import annotations

import argparse
import decimal
import itertools
import random
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from heliograph.lm.core.config import DecoderConfig, RopeSpec
from heliograph.lm.core.decoder import Decoder, fingerprint
from heliograph.lm.core.generate import generate
from heliograph.lm.core.load import LanguageModel, load_model
from heliograph.lm.core.sampling import SamplingParams
from heliograph.serving.core.engine import Engine
from heliograph.serving.core.request import RequestState, StepPlan
from heliograph.serving.core.torch_executor import TorchExecutor
from heliograph.trials.check import Context, Workload

__all__ = ["measure_overlap", "measure_tokens", "prompts_of"]


def prompts_of(model: LanguageModel, count: int, longest: int, seed: int) -> list[list[int]]:
    """Pieces of the standard library's documentation strings, as tokens.

    Every other prompt begins like the first, so that the prefix cache has something to find.
    """
    text = "\n\n".join(str(module.__doc__) for module in (argparse, decimal, random, statistics, textwrap))
    tokens = model.tokenizer.encode(text)
    draw = random.Random(seed)
    found: list[list[int]] = []
    for number in range(count):
        length = draw.randint(longest // 4, longest // 2) if number % 2 else draw.randint(longest // 2, longest)
        at = draw.randrange(len(tokens) - length)
        piece = tokens[at : at + length]
        found.append(found[0][: longest // 2] + piece if number % 2 else piece)
    return found


def measure_tokens(context: Context) -> Mapping[str, Any]:
    """Whether each request's tokens are those of a plain forward pass, in all settings together and in each."""
    load = context.workload
    model = _model(load, context)
    prompts = prompts_of(model, load["prompts"], load["longest"], context.seed)
    params = SamplingParams(max_tokens=load["output"], temperature=0, ignore_end=True)
    plain = [completion.tokens for completion in generate(model, prompts, params)]
    same: list[bool] = []
    preempted = hits = 0
    settings = list(itertools.product((False, True), load["chunks"], (False, True)))
    for number, (prefix, chunk, overlap) in enumerate(settings):
        with Engine(
            model,
            block_size=load["block_size"],
            num_blocks=load["blocks"],
            max_tokens_per_step=64 if chunk is None else max(64, chunk),
            chunk_limit=chunk,
            prefix_cache=prefix,
            overlap=overlap,
        ) as engine:
            found = _serve(engine, prompts, params, random.Random(context.seed + number))
            stats = engine.stats()
            engine.core.kv.check()
        same += [tuple(tokens) == expected for tokens, expected in zip(found, plain, strict=True)]
        preempted += stats.preemptions
        hits += stats.hit_tokens
        context.progress((number + 1) / (len(settings) + 1), f"{sum(same)} of {len(same)} requests agree")
    made = lambda m, n, size: _Misplaced(m, n, size)  # noqa: E731
    with Engine(model, block_size=load["block_size"], num_blocks=4 * load["blocks"], executor=made) as broken:
        wrong = _serve(broken, prompts, params, random.Random(context.seed))
    differ = [tuple(tokens) != expected for tokens, expected in zip(wrong, plain, strict=True)]
    return {
        "same": same,
        "was_hard": [preempted > 0, hits > 0],
        "fault_noticed": [any(differ), preempted > 0, hits > 0],
        "preemptions": preempted,
        "hit_tokens": hits,
    }


def measure_overlap(context: Context) -> Mapping[str, Callable[[], object]]:
    """A whole batch of requests, with each step planned behind the one before or after it."""
    load = context.workload
    model = _model(load, context)
    prompts = prompts_of(model, load["prompts"], load["longest"], context.seed)
    params = SamplingParams(max_tokens=load["output"], temperature=0, ignore_end=True)

    def arm(overlap: bool) -> Callable[[], object]:
        engine = Engine(model, num_blocks=load["blocks"], prefix_cache=False, overlap=overlap)
        return lambda: engine.generate(prompts, params)

    return {"overlapped": arm(True), "one after the other": arm(False), "one after the other, again": arm(False)}


class _Bytes:
    """A tokenizer whose tokens are bytes."""

    size, end_tokens, begin_token, template = 256, (), None, ""

    def encode(self, text: str, *, special: bool = True) -> list[int]:  # noqa: ARG002
        return list(text.encode())

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:  # noqa: ARG002
        return bytes(tokens).decode(errors="replace")

    def text_of(self, token: int | None) -> str:
        return "" if token is None else chr(token)


def random_model(layers: int) -> LanguageModel:
    """A small decoder with random weights, for the smoke preset."""
    import torch

    generator = torch.Generator().manual_seed(0)
    rope = RopeSpec(1e4, 8)
    decoder = Decoder(
        DecoderConfig(
            "llama",
            vocabulary=256,
            layers=layers,
            hidden=32,
            feed_forward=64,
            heads=4,
            kv_heads=2,
            head_dim=8,
            context=512,
            norm_eps=1e-5,
            rope=rope,
        )
    ).eval()
    for weight in decoder.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2, generator=generator)
    return LanguageModel(decoder, cast("Any", _Bytes()), "random", fingerprint(decoder))


class _Misplaced(TorchExecutor):
    """Reads a request's second block in the place of its first: a fault that tokens must show."""

    def launch(self, plan: StepPlan) -> Any:
        rows = tuple(
            replace(row, blocks=(row.blocks[1], *row.blocks[1:])) if row.count == 1 and len(row.blocks) > 2 else row
            for row in plan.rows
        )
        return super().launch(replace(plan, rows=rows))


def _serve(
    engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams, draw: random.Random
) -> list[list[int]]:
    """Requests that come at random while others are being served; their tokens."""
    waiting = [engine.request(prompt, params) for prompt in prompts]
    requests = list(waiting)
    while waiting or engine.has_work:
        for _ in range(draw.randint(0, 3)):
            if waiting:
                engine.add(waiting.pop(0))
        engine.step()
    assert all(request.state is RequestState.FINISHED for request in requests)
    return [request.output for request in requests]


def _model(load: Workload, context: Context) -> LanguageModel:
    import torch

    torch.set_num_threads(load.params.get("threads", 1))
    if load["model"] == "random":
        return random_model(load["layers"])
    return load_model(load["model"], device=context.device, layers=load["layers"])
