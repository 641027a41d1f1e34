"""Do answers stay the same when the prompt is computed elsewhere? By hand, and by two processes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import torch

from heliograph.checks.serving.pd_serve_parts.caches import GREEDY, EnginePair, language_model, prompt_tokens
from heliograph.serving.core.openai_api import Generation
from heliograph.serving.pd_serve.gateway import PDGateway
from heliograph.serving.pd_serve.group import PDGroup
from heliograph.serving.pd_serve.transfer import ContiguousKV
from heliograph.trials.check import Context

__all__ = ["measure"]

LENGTHS = (5, 16, 17, 31, 40)


def measure(context: Context) -> Mapping[str, Any]:
    """``tokens``: answers equal to one engine's; ``processes``: those of worker processes, nothing left held;
    ``notices``: a cache whose keys are shifted against its values gives other answers."""
    load = context.workload
    model = language_model(load["model"], context.seed)
    prompts = [prompt_tokens(model, n, LENGTHS[n % len(LENGTHS)] + n) for n in range(load["prompts"])]
    tokens, notices, alone = [], [], []
    with EnginePair(model, 16, load["receiver_block"], 128) as pair:
        for number, prompt in enumerate(prompts):
            alone.append(pair.alone(prompt))
            first, buffer = pair.prefill(prompt)
            tokens.append(pair.decode(prompt, first, buffer) == alone[-1])
            if number < 2:
                # moved together, keys and values would say the same: attention does not care for their order
                damaged = torch.stack([buffer[:, 0].roll(1, dims=1), buffer[:, 1]], dim=1)
                notices.append(pair.decode(prompt, first, damaged) != alone[-1])
    processes = asyncio.run(_served(load["model"], prompts, alone)) if load["processes"] else []
    return {"tokens": tokens, "notices": notices, **({"processes": processes} if processes else {})}


async def _served(model: str, prompts: list[list[int]], alone: list[list[int]]) -> list[bool]:
    group = PDGroup("all", 1, 1, ContiguousKV(layers_per_message=1))
    settings = {"threads": 1, "engine": {"num_blocks": 256}}
    gateway = PDGateway.local_groups([group], model, worker=settings, ttft_slo_s=120)
    await gateway.start()
    try:

        async def ask(prompt: list[int]) -> list[int]:
            events = [event async for event in gateway.submit(Generation(tuple(prompt), GREEDY))]
            return [event.sample.token for event in events if event.sample is not None]

        found = await asyncio.gather(*(ask(prompt) for prompt in prompts))
        same = [answer == expected for answer, expected in zip(found, alone, strict=True)]
        async with asyncio.timeout(30):
            for instance in gateway.instances.values():
                while (await instance.call("stats"))["kv_usage"]:
                    await asyncio.sleep(0.05)
                await instance.call("check")
        return [*same, gateway.handovers == len(prompts)]
    finally:
        await gateway.close()
