"""Caches that are sent: of the real model on a real prompt, kept between trials, or small random ones."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from heliograph.data.keep import cache_home, read_tables, write_tables
from heliograph.lm.core.config import DecoderConfig, RopeSpec
from heliograph.lm.core.decoder import Decoder, fingerprint
from heliograph.lm.core.load import LanguageModel, load_model
from heliograph.lm.core.sampling import SamplingParams
from heliograph.serving.core.engine import Engine
from heliograph.serving.core.request import Request
from heliograph.serving.core.torch_executor import TorchExecutor

__all__ = ["EnginePair", "language_model", "prompt_tokens", "sent_cache"]

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_end=True)


class _Bytes:
    """A tokenizer whose tokens are bytes."""

    size, end_tokens, begin_token, template = 256, (255,), None, ""

    def encode(self, text: str, *, special: bool = True) -> list[int]:  # noqa: ARG002
        return list(text.encode())

    def decode(self, tokens: list[int], *, special: bool = False) -> str:  # noqa: ARG002
        return bytes(t for t in tokens if t != 255).decode(errors="replace")

    def text_of(self, token: int | None) -> str:
        return "" if token is None else chr(token)


def language_model(name: str, seed: int = 0) -> LanguageModel:
    """A model by name; ``tiny`` is two random layers over bytes."""
    if name != "tiny":
        return load_model(name)
    generator = torch.Generator().manual_seed(seed)
    config = DecoderConfig(
        "llama", vocabulary=256, layers=2, hidden=32, feed_forward=64, heads=4, kv_heads=2, head_dim=8, context=512,
        norm_eps=1e-5, rope=RopeSpec(1e4, 8),
    )  # fmt: skip
    decoder = Decoder(config).eval()
    for weight in decoder.parameters():
        weight.requires_grad_(False)
        if weight.dim() > 1:
            weight.normal_(std=0.2, generator=generator)
    return LanguageModel(decoder, _Bytes(), "tiny", fingerprint(decoder))  # type: ignore[arg-type]


def prompt_tokens(model: LanguageModel, number: int, length: int) -> list[int]:
    """Tokens of a text about a number, repeated to the length."""
    text = f"Note {number}. A cache of keys and values leaves one machine and goes on at another, {number * 7} times. "
    tokens = model.tokenizer.encode(text)
    return (tokens * (length // len(tokens) + 1))[:length]


def sent_cache(model: str, tokens: int, block_size: int, seed: int) -> tuple[Tensor, list[int]]:
    """A cache in bfloat16, [L, 2, N, block_size, G, D], and the blocks of a prompt in it, scattered at random.

    Args:
        model: whose keys and values; ``random`` for numbers of that shape.
        tokens: of the prompt.
        block_size: tokens a block.
        seed: of the blocks' places.
    """
    number = -(-tokens // block_size)
    contents = _prompt_cache(tokens, number * block_size) if model != "random" else _random_cache(number * block_size)
    layers, two, _, heads, channels = contents.shape
    cache = torch.zeros(layers, two, 2 * number, block_size, heads, channels, dtype=torch.bfloat16)
    order = torch.randperm(2 * number, generator=torch.Generator().manual_seed(seed))[:number]
    cache[:, :, order] = contents.view(layers, two, number, block_size, heads, channels)
    return cache, order.tolist()


def _random_cache(tokens: int) -> Tensor:
    return torch.randn(4, 2, tokens, 3, 64, generator=torch.Generator().manual_seed(1)).bfloat16()


def _prompt_cache(tokens: int, padded: int) -> Tensor:
    """Of SmolLM2 on a prompt, [L, 2, padded, G, D]; computed once on a machine."""
    key = hashlib.blake2b(f"smollm2-135m/{tokens}/1".encode(), digest_size=8).hexdigest()
    path = cache_home() / "pd_serve" / f"cache-{key}.npz"
    kept = read_tables(path)
    if kept is None:
        with EnginePair(language_model("smollm2-135m"), 16, 16, tokens) as pair:
            _, found = pair.prefill(prompt_tokens(pair.model, 1, tokens))
        kept = {"bits": found.bfloat16().view(torch.int16).numpy()}
        write_tables(path, kept)
    whole = torch.from_numpy(np.ascontiguousarray(kept["bits"])).view(torch.bfloat16)
    return torch.nn.functional.pad(whole, (0, 0, 0, 0, 0, padded - tokens))


class EnginePair:
    """Two engines of one model whose blocks differ in size; caches pass between them by hand.

    Args:
        model: of both.
        sender, receiver: tokens a block.
        tokens: of the longest prompt.
    """

    def __init__(self, model: LanguageModel, sender: int, receiver: int, tokens: int) -> None:
        from heliograph.serving.pd_serve.transfer import ContiguousKV

        self.model, self.kv = model, ContiguousKV()
        room = tokens + 64
        self.sender = Engine(model, block_size=sender, num_blocks=-(-room // sender) + 4)
        self.receiver = Engine(model, block_size=receiver, num_blocks=-(-room // receiver) + 4)
        self._serial = 0

    def __enter__(self) -> EnginePair:
        return self

    def __exit__(self, *_: object) -> None:
        self.sender.close()
        self.receiver.close()

    def prefill(self, prompt: list[int]) -> tuple[int, Tensor]:
        """The first token, and the prompt's keys and values [L, 2, l, G, D]."""
        core = self.sender.core
        name = f"p{self._serial}"
        self._serial += 1
        first = SamplingParams(max_tokens=1, temperature=0, ignore_end=True)
        request = self.sender.add(self.sender.request(prompt, first, request_id=name, producer=True))
        while self.sender.has_work:
            self.sender.step()
        lease = core.kv.hold(request, name, len(prompt), core.clock.now() + 60)
        assert isinstance(core.executor, TorchExecutor)
        buffer = self.kv.pack(core.executor.cache.data, lease.blocks, lease.tokens)
        core.kv.release(name)
        core.kv.check()
        return request.output[0], buffer

    def decode(self, prompt: list[int], token: int, buffer: Tensor) -> list[int]:
        """The whole answer, from a buffer that arrived."""
        from heliograph.serving.core.request import Ticket
        from heliograph.serving.pd_serve.transfer import recv_scatter

        engine, core = self.receiver, self.receiver.core
        ticket = Ticket("here", 0, "k", len(prompt), self.model.fingerprint)
        name = f"d{self._serial}"
        self._serial += 1
        request: Request = engine.request(prompt, GREEDY, request_id=name, answer=[token], ticket=ticket)
        arrived: list[Request] = []
        core.scheduler.on_load = arrived.append
        engine.add(request)
        engine.step()  # reserves the blocks
        assert isinstance(core.executor, TorchExecutor)
        recv_scatter(buffer, core.executor.cache.data, arrived[0].blocks)
        core.scheduler.loaded(request, len(prompt))
        while engine.has_work:
            engine.step()
        core.kv.check()
        return request.output

    def alone(self, prompt: list[int]) -> list[int]:
        """The answer of one engine."""
        return list(self.sender.generate([prompt], GREEDY)[0].tokens)
