"""Plain generation: one padded batch, one forward pass a token. Serving engines must equal it, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from heliograph.errors import BadInput
from heliograph.lm.core.decoder import CachedAttention, KVCache
from heliograph.lm.core.load import LanguageModel
from heliograph.lm.core.masks import MaskSpec
from heliograph.lm.core.sampling import SamplingParams, sample_tokens
from heliograph.lm.core.tokens import StopText, TextStream

__all__ = ["Completion", "generate", "score_tokens"]


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        tokens: drawn, an end token included.
        text: of them, cut before a stop text.
        finish: "stop" for an end token or a stop text, "length" for ``max_tokens`` or the model's context.
    """

    tokens: tuple[int, ...]
    text: str
    finish: Literal["stop", "length"]


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: Sequence[str | Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),  # noqa: B008 - frozen
    progress: Callable[[int], None] | None = None,
) -> list[Completion]:
    """Answers to prompts, in one batch padded on the left.

    Args:
        model: from :func:`load_model`.
        prompts: texts, or token numbers.
        params: for all, or one a prompt.
        progress: called with the number of tokens drawn so far for each prompt.

    Raises:
        BadInput: an empty prompt, or one that leaves no room in the model's context.
    """
    tokens = [model.tokenizer.encode(p) if isinstance(p, str) else list(p) for p in prompts]
    each = [params] * len(tokens) if isinstance(params, SamplingParams) else list(params)
    if len(each) != len(tokens):
        raise BadInput(f"{len(each)} settings for {len(tokens)} prompts")
    for number, prompt in enumerate(tokens):
        if not prompt or len(prompt) >= model.config.context:
            raise BadInput(
                f"prompt {number} has {len(prompt)} tokens; 1 to {model.config.context - 1} fit this model's context"
            )
    runs = [_Run(model, prompt, own) for prompt, own in zip(tokens, each, strict=True)]
    cache = KVCache(model.fingerprint)
    block, positions = _pad(tokens)
    device = next(model.decoder.parameters()).device
    seen = positions
    steps = 0
    while any(not run.finish for run in runs):
        mask = MaskSpec(positions.to(device), seen.to(device))
        embeds = (
            model.decoder.embed(block).to(device) if device.type == "cpu" else model.decoder.embed(block.to(device))
        )
        hidden = model.decoder(embeds, positions.clamp(min=0).to(device), CachedAttention(mask, cache))
        logits = model.decoder.logits(hidden[:, -1]).cpu()
        drawn = sample_tokens(logits, each, tokens, [run.tokens for run in runs])
        for run, token in zip(runs, drawn, strict=True):
            run.take(token)
        steps += 1
        if progress is not None:
            progress(steps)
        block = torch.tensor(drawn)[:, None]
        positions = positions[:, -1:] + 1
        seen = torch.cat([seen, positions], dim=1)
    return [Completion(tuple(run.tokens), run.text, run.finish or "length") for run in runs]


@torch.no_grad()
def score_tokens(model: LanguageModel, tokens: Sequence[int]) -> Tensor:
    """Log-probability of each token but the first, given those before it, [T - 1] in float32.

    Raises:
        BadInput: fewer than two tokens, or more than the context.
    """
    if not 2 <= len(tokens) <= model.config.context:
        raise BadInput(f"scoring takes 2 to {model.config.context} tokens; got {len(tokens)}")
    device = next(model.decoder.parameters()).device
    row = torch.tensor([list(tokens)])
    hidden = model.decoder(
        model.decoder.embed(row.to(device)), torch.arange(len(tokens), device=device)[None], CachedAttention()
    )
    chance = model.decoder.logits(hidden[0, :-1]).log_softmax(-1).cpu()
    return chance.gather(1, row[0, 1:, None]).squeeze(1)


class _Run:
    """One prompt's answer while it grows."""

    def __init__(self, model: LanguageModel, prompt: Sequence[int], params: SamplingParams) -> None:
        self.tokens: list[int] = []
        self.finish: Literal["", "stop", "length"] = "" if params.max_tokens else "length"
        self._stream, self._answer = TextStream(model.tokenizer), StopText(params.stop)
        self._ends = () if params.ignore_end else model.tokenizer.end_tokens
        self._room = min(params.max_tokens, model.config.context - len(prompt))

    @property
    def text(self) -> str:
        """So far."""
        return self._answer.text

    def take(self, token: int) -> None:
        """The next token; nothing once the answer is finished."""
        if self.finish:
            return
        self.tokens.append(token)
        ended = token in self._ends
        self._answer.push(self._stream.finish() if ended else self._stream.push(token))
        if ended or self._answer.stopped:
            self.finish = "stop"
        elif len(self.tokens) >= self._room:
            self._answer.push(self._stream.finish(), last=True)
            self.finish = "length"


def _pad(tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Tokens [B, T] padded on the left, and positions, -1 where padded."""
    longest = max(map(len, tokens))
    block = torch.zeros(len(tokens), longest, dtype=torch.long)
    positions = torch.full((len(tokens), longest), -1)
    for row, prompt in enumerate(tokens):
        block[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        positions[row, longest - len(prompt) :] = torch.arange(len(prompt))
    return block, positions
