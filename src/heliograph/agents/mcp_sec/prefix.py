"""Scores of candidates that share a long context: what was computed for it once is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heliograph.agents.core.lm import Generation, LocalGGUF, Message
from heliograph.errors import BadInput

if TYPE_CHECKING:
    from heliograph.lm.core.load import LanguageModel

__all__ = ["PrefixScorer"]


class PrefixScorer:
    """As :class:`~heliograph.agents.LocalGGUF`, with the keys and values of the last context kept between scores.

    Args:
        path: a GGUF file or a Hugging Face folder; SmolLM2-135M-Instruct by default.
        model: one that is loaded already, instead.
    """

    def __init__(self, path: str | Path | None = None, *, model: LanguageModel | None = None) -> None:
        self._plain = LocalGGUF(path, model=model)
        self.model = self._plain.model
        self._tokens: list[int] = []
        self._cache: Any = None

    def generate(self, prompt: str | Sequence[Message], **settings: Any) -> Generation:
        """As LocalGGUF."""
        return self._plain.generate(prompt, **settings)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """As LocalGGUF."""
        return self._plain.embed(texts)

    def score(self, context: str, candidates: Sequence[str]) -> NDArray[np.float64]:
        """Mean log-probability a token of each candidate, equal to LocalGGUF's up to rounding.

        Raises:
            BadInput: an empty context or candidate, or more tokens than the model takes.
        """
        import torch

        tokenizer = self.model.tokenizer
        before = tokenizer.encode(context)
        after = [tokenizer.encode(candidate, special=False) for candidate in candidates]
        if not before or not all(after):
            raise BadInput("a context and its candidates have one token or more")
        longest = len(before) + max(map(len, after), default=0)
        if longest > self.model.config.context:
            raise BadInput(f"scoring takes {self.model.config.context} tokens; got {longest}")
        means = []
        with torch.inference_mode():
            kept, last = self._prefix(before)
            for tokens in after:
                rows = [last]
                if len(tokens) > 1:
                    rows.append(self._run(tokens[:-1], len(before), kept.slice(0, len(before))))
                chance = self.model.decoder.logits(torch.cat(rows)).float().log_softmax(-1).cpu()
                picked = chance.gather(1, torch.tensor(tokens)[:, None])
                means.append(float(picked.double().mean()))
        return np.asarray(means)

    def _prefix(self, tokens: list[int]) -> tuple[Any, Any]:
        """The cache of a context, and the hidden state of its last token."""
        from heliograph.lm.core.decoder import KVCache

        shared = 0
        while shared < min(len(tokens) - 1, len(self._tokens)) and tokens[shared] == self._tokens[shared]:
            shared += 1
        cache = self._cache.slice(0, shared) if shared else KVCache()
        hidden = self._run(tokens[shared:], shared, cache)
        self._tokens, self._cache = list(tokens), cache
        return cache, hidden[-1:]

    def _run(self, tokens: Sequence[int], start: int, cache: Any) -> Any:
        import torch

        from heliograph.lm.core.decoder import CachedAttention

        decoder = self.model.decoder
        device = next(decoder.parameters()).device
        row = torch.tensor([list(tokens)], device=device)
        places = torch.arange(start, start + len(tokens), device=device)[None]
        return decoder(decoder.embed(row), places, CachedAttention(cache=cache))[0]
