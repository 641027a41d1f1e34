"""What compression costs in answers: prompts are computed once, their caches compressed, the answers scored.

Shapes: B samples, L layers, T tokens, G key and value heads, H query heads, D channels, A tokens of answers.
"""

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
from heliograph.serving.kv_serve.pipeline import KVPipeline, restore
from heliograph.serving.kv_serve.point import CompressionPoint
from heliograph.serving.kv_serve.tasks import TaskSample
from heliograph.statistics import paired_t

__all__ = ["Quality", "QualityEvaluator", "prompt_cache", "retrieval_scores"]

Score = Literal["probability", "exact"]


@dataclass(frozen=True)
class Quality:
    """How well answers come out of a compressed cache.

    Attributes:
        relative: mean score over that of the uncompressed cache.
        low, high: 95 % interval over the samples; the estimate itself where there is one sample only.
        samples: how many.
        agreement: share of answer tokens of which the most likely one stays the same.
        divergence: mean Kullback-Leibler divergence of the next token's distribution, in nats.
    """

    relative: float
    low: float
    high: float
    samples: int
    agreement: float
    divergence: float


@torch.inference_mode()
def prompt_cache(model: LanguageModel, tokens: Sequence[int], dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Keys and values of a prompt, [L, 2, T, G, D].

    Raises:
        BadInput: no tokens.
    """
    if not tokens:
        raise BadInput("a prompt has at least one token")
    cache = KVCache(model.fingerprint)
    row = torch.tensor([list(tokens)], device=model.decoder.embedding.weight.device)
    model.decoder(
        model.decoder.embed(row), torch.arange(row.shape[1], device=row.device)[None], CachedAttention(cache=cache)
    )
    layers = [torch.stack([k[0], v[0]]) for k, v in zip(cache.keys, cache.values, strict=True)]
    return torch.stack(layers).to(dtype).cpu()


class QualityEvaluator:
    """Scores points on samples.

    Args:
        model: that answers.
        samples: with their answers.
        score: ``probability`` is the mean over tokens of the answer's probability, geometric within an answer;
            ``exact`` is whether every token of the answer is the most likely one, as greedy decoding would draw it.
        scores: [L, G] of the heads, for points that tell them apart.
        dtype: of the cache.
        progress: told the share of prompts that are computed.

    Attributes:
        caches: of each prompt but its last token, which the receiver computes itself.
        reference: mean score of the uncompressed caches.
        evaluations: points that were really evaluated.
    """

    def __init__(
        self,
        model: LanguageModel,
        samples: Sequence[TaskSample],
        *,
        score: Score = "probability",
        scores: Tensor | None = None,
        dtype: torch.dtype = torch.bfloat16,
        progress: Callable[[float], object] | None = None,
    ) -> None:
        if not samples:
            raise BadInput("quality is measured on at least one sample")
        if score not in ("probability", "exact"):
            raise BadInput(f"scores are probability and exact; got {score!r}")
        self.model, self.samples, self.score, self.scores = model, list(samples), score, scores
        self.caches = []
        for number, sample in enumerate(self.samples):
            self.caches.append(prompt_cache(model, sample.prompt[:-1], dtype))
            if progress is not None:
                progress((number + 1) / len(self.samples))
        self._known: dict[CompressionPoint, Quality] = {}
        self._logs = self._answer(self.caches)
        self._own = self._scored(self._logs)
        self.reference = sum(self._own) / len(self._own)
        if self.reference <= 0:
            raise BadInput(
                "the uncompressed cache answers nothing correctly; use an easier task or score='probability'"
            )
        self.evaluations = 0

    def __call__(self, point: CompressionPoint) -> Quality:
        """The quality of a point; points that lose the same bits are evaluated once."""
        own = point.lossy_part
        if own not in self._known:
            self._known[own] = self._evaluate(own)
            self.evaluations += 1
        return self._known[own]

    def ratio(self, point: CompressionPoint, samples: int = 1) -> float:
        """Uncompressed bytes over bytes of whole frames."""
        pipeline = self._pipeline(point)
        caches = self.caches[:samples]
        return sum(kv.nbytes for kv in caches) / sum(len(pipeline.compress(kv)) for kv in caches)

    def _pipeline(self, point: CompressionPoint) -> KVPipeline:
        return KVPipeline(point, scores=self.scores, fingerprint=self.model.fingerprint)

    def _evaluate(self, point: CompressionPoint) -> Quality:
        if point.lossless:
            return Quality(1.0, 1.0, 1.0, len(self.samples), 1.0, 0.0)
        pipeline = self._pipeline(point)
        logs = self._answer([restore(pipeline.compress(kv)).kv for kv in self.caches])
        scored = self._scored(logs)
        relative = sum(scored) / len(scored) / self.reference
        low = high = relative
        if len(scored) > 1:
            interval = paired_t([(a - b) / self.reference for a, b in zip(scored, self._own, strict=True)])
            low, high = 1 + interval.low, 1 + interval.high
        agree = [(a.argmax(-1) == b.argmax(-1)).float().mean() for a, b in zip(logs, self._logs, strict=True)]
        apart = [(b.exp() * (b - a)).sum(-1).mean() for a, b in zip(logs, self._logs, strict=True)]
        return Quality(
            relative, low, high, len(scored), float(torch.stack(agree).mean()), float(torch.stack(apart).mean())
        )

    def _scored(self, logs: Sequence[Tensor]) -> list[float]:
        found = []
        for sample, log in zip(self.samples, logs, strict=True):
            answer = torch.tensor(sample.answer)
            if self.score == "exact":
                found.append(float((log.argmax(-1) == answer).all()))
            else:
                found.append(float(log.gather(1, answer[:, None]).mean().exp()))
        return found

    @torch.inference_mode()
    def _answer(self, caches: Sequence[Tensor]) -> list[Tensor]:
        """Log-probabilities at the answer's tokens, [A, vocabulary] each; caches are padded on the left."""
        weight = self.model.decoder.embedding.weight
        longest = max(kv.shape[2] for kv in caches)
        asked = [[sample.prompt[-1], *sample.answer[:-1]] for sample in self.samples]
        width = max(map(len, asked))
        keys, block = torch.full((len(caches), longest + width), -1), torch.zeros(len(caches), width, dtype=torch.long)
        queries = torch.zeros(len(caches), width, dtype=torch.long)
        filled = torch.zeros(len(caches), *caches[0].shape[:2], longest, *caches[0].shape[3:], dtype=weight.dtype)
        for row, (kv, tokens) in enumerate(zip(caches, asked, strict=True)):
            known = kv.shape[2]
            filled[row, :, :, longest - known :] = kv
            keys[row, longest - known : longest] = torch.arange(known)
            keys[row, longest : longest + len(tokens)] = torch.arange(known, known + len(tokens))
            queries[row, : len(tokens)] = torch.arange(known, known + len(tokens))
            block[row, : len(tokens)] = torch.tensor(tokens)
        device = weight.device
        filled = filled.to(device)
        cache = KVCache(
            self.model.fingerprint,
            [filled[:, layer, 0] for layer in range(filled.shape[1])],
            [filled[:, layer, 1] for layer in range(filled.shape[1])],
        )
        attention = CachedAttention(MaskSpec(queries.to(device), keys.to(device)), cache)
        hidden = self.model.decoder(self.model.decoder.embed(block.to(device)), queries.to(device), attention)
        found = []
        for row, sample in enumerate(self.samples):
            logits = self.model.decoder.logits(hidden[row, : len(sample.answer)])
            found.append(logits.log_softmax(-1).cpu())
        return found


class _Induction:
    """Causal attention that adds up, for each query head, what looks at the token after the same one before."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.mass: list[Tensor] = []
        self._plain = CachedAttention()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = self.length
        grouped = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
        rows = torch.arange(n - 1, device=q.device)
        scores = torch.einsum("qhd,khd->hqk", q[0, n + rows].float(), grouped[0].float()) / q.shape[-1] ** 0.5
        later = torch.arange(2 * n, device=q.device)[None] > (n + rows)[:, None]
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        self.mass.append(weights[:, rows, rows + 1].mean(-1).cpu())
        return self._plain.attend(layer, q, k, v)


@torch.inference_mode()
def retrieval_scores(model: LanguageModel, *, length: int = 64, seed: int = 0) -> Tensor:
    """How much each key and value head is used to look things up, [L, G].

    A random sequence of tokens is read twice; the score is the attention from each token of the second copy to the
    token that followed it in the first, averaged over the query heads of a group.

    Raises:
        BadInput: two copies do not fit the model's context.
    """
    if not 2 <= length <= model.config.context // 2:
        raise BadInput(f"two copies of 2 to {model.config.context // 2} tokens fit this model; got {length}")
    draw = torch.Generator().manual_seed(seed)
    once = torch.randint(0, model.config.vocabulary, (length,), generator=draw)
    row = torch.cat([once, once])[None].to(model.decoder.embedding.weight.device)
    induction = _Induction(length)
    model.decoder(model.decoder.embed(row), torch.arange(2 * length, device=row.device)[None], induction)
    mass = torch.stack(induction.mass)
    return mass.view(len(mass), model.config.kv_heads, -1).mean(-1)
