"""What must be so without any doubt: bits, bounds, the envelope, damaged frames, answers through real engines."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from heliograph.checks.serving.kv_serve_parts.caches import BASELINES, language_model
from heliograph.lm.core.load import LanguageModel
from heliograph.lm.core.sampling import SamplingParams
from heliograph.serving.core.async_engine import AsyncEngine
from heliograph.serving.core.engine import Engine
from heliograph.serving.core.frames import Pace
from heliograph.serving.core.request import Ticket
from heliograph.serving.kv_serve.controller import CompressionController, TransferContext
from heliograph.serving.kv_serve.frame import FrameDamaged
from heliograph.serving.kv_serve.link import CompressedLink, KVReceiver
from heliograph.serving.kv_serve.pipeline import KVPipeline, restore
from heliograph.serving.kv_serve.point import METHODS, CompressionPoint
from heliograph.serving.kv_serve.profile import CompressionProfile, Envelope, lower_envelope
from heliograph.serving.kv_serve.wire import CompressedFetch, CompressedKVServer
from heliograph.trials.check import Context

__all__ = ["EnginePair", "measure"]

GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_end=True)
SURE = CompressionProfile("lossless", METHODS["lossless"], (1,), (1.3,), (1e12,), (1e12,))


def measure(context: Context) -> Mapping[str, Any]:
    """Booleans by kind; see the claims and controls of the check."""
    load = context.workload
    found: dict[str, list[bool]] = {}
    for name, part in (
        ("lossless", _lossless),
        ("bounded", _bounded),
        ("envelope", _envelope),
        ("refused", _damaged),
        ("unlimited", _unlimited),
        ("directions", _directions),
    ):
        found[name] = part(load.params, context.seed)
    model = language_model(load["model"], context.seed)
    found |= asyncio.run(_answers(model, load["prompts"]))
    return found


def _caches(load: Mapping[str, Any], seed: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(2, 2, tokens, 3, dim, generator=draw) * 2 + 1).to(dtype)
        for tokens in load["lengths"]
        for dim in load["dims"]
        for dtype in (torch.bfloat16, torch.float32)
    ]


def _lossless(load: Mapping[str, Any], seed: int) -> list[bool]:
    """Every codec, with NaN, infinities and minus zero among the numbers."""
    same = []
    for kv in _caches(load, seed):
        kv.view(-1)[: min(4, kv.numel())] = torch.tensor([math.nan, math.inf, -math.inf, -0.0])[: kv.numel()]
        for codec in load["codecs"]:
            frame = KVPipeline(CompressionPoint(quantizer="none", codec=codec)).compress(kv)
            same.append(torch.equal(restore(frame).kv.view(torch.uint8), kv.view(torch.uint8)))
    return same


def _points(load: Mapping[str, Any]) -> list[CompressionPoint]:
    base = [
        CompressionPoint(
            transform=transform, quantizer=quantizer, key_high=10, key_low=6, value_high=8, value_low=4,
            hybrid_ratio=0.5, group=group, key_axis=axis, codec=load["codecs"][0],
        )
        for transform in ("none", "delta", "affine", "hadamard")
        for quantizer in ("minmax", "absmax")
        for axis, group in (("channel", 0), ("token", 7))
    ]  # fmt: skip
    return [*base, *(point for name, point in BASELINES.items() if name != "none")]


def _bounded(load: Mapping[str, Any], seed: int) -> list[bool]:
    scores = torch.rand(2, 3, generator=torch.Generator().manual_seed(seed))
    inside = []
    for kv in _caches(load, seed):
        for point in _points(load):
            found = restore(KVPipeline(point, scores=scores).compress(kv), with_bound=True)
            assert found.bound is not None
            inside.append(bool(((found.kv.float() - kv.float()).abs() <= found.bound).all()))
    return inside


def _envelope(load: Mapping[str, Any], seed: int) -> list[bool]:
    """Against trying every profile, at random bandwidths and just beside each break."""
    draw, same = random.Random(seed), []
    for _ in range(load["envelopes"]):
        profiles = [
            CompressionProfile(
                str(n), METHODS["kivi"], (1,), (draw.uniform(0.8, 30),), (10 ** draw.uniform(6, 11),),
                (10 ** draw.uniform(6, 11),),
            )
            for n in range(draw.randint(0, 10))
        ]  # fmt: skip
        envelope = Envelope(*lower_envelope(profiles, 1))
        by_id = {each.id: each for each in profiles}
        beside = [1 / (x * f) for x in envelope.breaks for f in (0.999, 1.001)]
        for bandwidth in [*(10 ** draw.uniform(5, 12) for _ in range(5)), *beside]:
            times = {name: each.seconds(1, 1, bandwidth) for name, each in by_id.items()} | {"none": 1 / bandwidth}
            same.append(times[envelope.best(bandwidth)] <= min(times.values()) * (1 + 1e-9))
    return same


class _Here:
    """A link whose other end is in this process; it may damage what it carries."""

    def __init__(self, receiver: KVReceiver, damage: Any = None) -> None:
        self.receiver, self.damage = receiver, damage

    def call(self, header: Mapping[str, Any], body: bytes | memoryview) -> dict[str, Any]:
        data = bytes(body)
        return self.receiver.take(header, data if self.damage is None else self.damage(data))


def _damaged(load: Mapping[str, Any], seed: int) -> list[bool]:
    """Cut and changed frames, another model: refused, counted, nothing delivered, and the link goes on."""
    draw, refused = random.Random(seed), []
    kv = _caches(load, seed)[0]
    for _ in range(load["damages"]):
        arrived: list[Any] = []
        receiver = KVReceiver(None, lambda *row: arrived.append(row), fingerprint="a")  # type: ignore[arg-type]  # noqa: B023
        controller = CompressionController([SURE], epsilon=0)
        cut, flip = draw.random(), draw.randint(1, 255)

        def damage(data: bytes, cut: float = cut, flip: int = flip) -> bytes:
            at = int(cut * len(data))
            return data[:at] if flip % 2 else data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]

        link = CompressedLink(_Here(receiver, damage), controller, fingerprint="a")
        asked = TransferContext(kv.nbytes, kv.shape[2], bytes_per_s=1e6)
        gone = link.send(kv, context=asked)
        refused.append(not gone.arrived and not arrived and sum(receiver.failures.values()) == 1)
        refused.append(sum(controller.failures.values()) == 1)
        link.base = _Here(receiver)
        whole = link.send(kv, context=asked).arrived
        refused.append(whole and torch.equal(arrived[0][3].view(torch.uint8), kv.view(torch.uint8)))
    frame = KVPipeline("lossless", fingerprint="a").compress(kv)
    try:
        restore(frame, fingerprint="b")
        refused.append(False)
    except FrameDamaged as error:
        refused.append(error.reason == "fingerprint")
    return refused


def _unlimited(load: Mapping[str, Any], seed: int) -> list[bool]:
    """The negative control: with unlimited bandwidth compressing can only cost time, so nothing is compressed."""
    draw, none = random.Random(seed), []
    for _ in range(load["envelopes"]):
        profiles = [
            CompressionProfile(str(n), METHODS["kivi"], (1,), (draw.uniform(1, 30),), (1e9,), (1e9,)) for n in range(6)
        ]
        controller = CompressionController(profiles, epsilon=0)
        asked = TransferContext(draw.randint(1, 10**9), draw.randint(1, 10**5), bytes_per_s=math.inf)
        decision = controller.select(asked)
        none.append((decision.profile.id, decision.reason) == ("none", "no_gain"))
    return none


def _directions(load: Mapping[str, Any], seed: int) -> list[bool]:  # noqa: ARG001
    """The four directions that the official artefact asks for."""

    def made(name: str, ratio: float, rate: float, quality: float) -> CompressionProfile:
        return CompressionProfile(name, METHODS["kivi"], (1,), (ratio,), (rate,), (rate,), quality, quality, quality)

    profiles = [made("light", 3.0, 4e9, 0.995), made("heavy", 9.0, 1e9, 0.96)]
    asked = TransferContext(10**8, 4096, bytes_per_s=6.25e8)

    def choice(**settings: Any) -> str:
        return CompressionController(profiles, epsilon=0).select(replace(asked, **settings)).profile.id

    slow = CompressionController(profiles, epsilon=0)
    first = slow.select(asked)
    for _ in range(8):
        slow.observe(first, first.t_hat * 10)
    return [
        choice(bytes_per_s=1e8) == "heavy",
        choice(bytes_per_s=150e9 / 8) == "none",
        choice(bytes_per_s=1e8, min_quality=0.99) == "light",
        choice(bytes_per_s=1e8, min_quality=0.999) == "none",
        first.profile.id != "none" and slow.select(asked).profile.id != first.profile.id,
    ]


class EnginePair:
    """Two engines of one model; the second fetches the first one's keys and values, compressed.

    Args:
        model: of both.
        controller: of the first one's transfers.
        pace: of the link.
        dtype: in which keys and values travel.
        tokens: of the longest request.
    """

    def __init__(
        self,
        model: LanguageModel,
        controller: CompressionController,
        *,
        pace: Pace | None = None,
        dtype: str | None = None,
        tokens: int = 256,
    ) -> None:
        self.model = model
        self.server = CompressedKVServer(controller, pace=pace, dtype=dtype)
        blocks = -(-tokens // 8) + 4
        self.fetch = CompressedFetch(8, dtype="float32", timeout_s=60)
        self.sender = AsyncEngine(Engine(model, block_size=16, num_blocks=blocks), address=self.server.address)
        self.receiver = AsyncEngine(Engine(model, block_size=8, num_blocks=blocks * 2), fetch=self.fetch)
        self.server.engine = self.sender
        self._serial = 0

    async def answer(self, prompt: list[int], *, spoil: Any = None, tokens: int = 8) -> list[int]:
        """The prompt is computed by the first engine, the answer by the second."""
        self._serial += 1
        params = replace(GREEDY, max_tokens=tokens)
        first = await self._run(self.sender, prompt, replace(GREEDY, max_tokens=1), f"p{self._serial}", producer=True)
        drawn, ticket = first
        assert ticket is not None
        if spoil is not None:
            ticket = spoil(ticket)
        request = {"ticket": ticket, "answer": drawn}
        rest, _ = await self._run(self.receiver, prompt, params, f"d{self._serial}", **request)
        return [*drawn, *rest]

    async def _run(
        self, engine: AsyncEngine, prompt: list[int], params: SamplingParams, name: str, **settings: Any
    ) -> tuple[list[int], Ticket | None]:
        request = engine.engine.request(prompt, params, request_id=name, **settings)
        drawn, ticket = [], None
        async for event in engine.stream(request):
            if event.sample is not None:
                drawn.append(event.sample.token)
            ticket = event.ticket or ticket
        return drawn, ticket

    def close(self) -> None:
        """Ends both engines and the server."""
        self.server.close()
        self.sender.close()
        self.receiver.close()


async def _answers(model: LanguageModel, prompts: int) -> dict[str, list[bool]]:
    """``tokens``: answers over a lossless link are those of one engine; ``recomputed``: so are those after a fetch that
    failed; ``notices``: a cache of which little is kept gives other answers."""
    texts = [model.tokenizer.encode(f"Note {n}. A cache travels {n * 7} times. " * 3) for n in range(prompts)]
    alone_engine = Engine(model, block_size=16, num_blocks=64)
    alone = [list(done.tokens) for done in alone_engine.generate(texts, GREEDY)]
    alone_engine.close()
    slow: dict[str, Any] = {"epsilon": 0, "bytes_per_s": 1.0, "bandwidth_alpha": 0, "learn": False}
    controller = CompressionController([SURE], **slow)  # a fast link would end the compression that is to be tested
    pair = EnginePair(model, controller)
    few = CompressionPoint(quantizer="absmax", key_high=4, key_low=4, value_high=4, value_low=4)
    coarse = CompressionProfile("coarse", few, (1,), (9.0,), (1e12,), (1e12,))
    rough = EnginePair(model, CompressionController([coarse], **slow))
    try:
        tokens = [await pair.answer(text) == own for text, own in zip(texts, alone, strict=True)]
        tokens.append(pair.fetch.profiles == {"lossless": len(texts)})
        tokens.append(pair.server.sent_bytes < pair.server.raw_bytes)
        failed: list[bool] = []
        for spoil in (
            lambda ticket: replace(ticket, key="gone"),
            lambda ticket: replace(ticket, port=9),
            lambda ticket: replace(ticket, tokens=ticket.tokens - 1),
        ):
            failed.append(await pair.answer(texts[0], spoil=spoil) == alone[0])
        failed.append(sum(pair.fetch.failures.values()) == 3)
        changed = [await rough.answer(text) != own for text, own in zip(texts, alone, strict=True)]
        return {"tokens": tokens, "recomputed": failed, "notices": [any(changed)]}
    finally:
        pair.close()
        rough.close()
