"""From logits to the next token: one row a request, each with settings and a seed of its own.

What is drawn depends on the request's seed and the token's place alone, never on who else is in the batch.

Shapes: R requests, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heliograph.errors import BadInput
from heliograph.random import CounterRng

__all__ = ["DAMAGED", "SamplingParams", "sample_tokens"]

DAMAGED = "the logits hold NaN, or a row without a finite one; the weights or inputs are damaged"


@dataclass(frozen=True)
class SamplingParams:
    """How one request's tokens are drawn.

    Attributes:
        max_tokens: of the answer.
        temperature: 0 takes the most likely token.
        top_k: only the k most likely; 0 for all.
        top_p: only the most likely that together reach this probability.
        min_p: only those with at least this share of the most likely one's probability.
        presence_penalty, frequency_penalty: taken from the logit of a token that the answer has, once or each time.
        repetition_penalty: divides positive and multiplies negative logits of tokens of prompt and answer.
        seed: of the draws.
        stop: texts that end the answer.
        ignore_end: whether the model's end tokens are ordinary ones.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_end: bool = False

    def __post_init__(self) -> None:
        """Refuses settings outside their range."""
        if self.max_tokens < 0 or self.temperature < 0 or self.top_k < 0:
            raise BadInput(
                f"max_tokens, temperature and top_k must be 0 or more; got {self.max_tokens}, {self.temperature:g} and "
                f"{self.top_k}"
            )
        if not 0 < self.top_p <= 1 or not 0 <= self.min_p <= 1 or not self.repetition_penalty > 0:
            raise BadInput(
                f"top_p must lie in (0, 1], min_p in [0, 1], repetition_penalty above 0; got {self.top_p:g}, "
                f"{self.min_p:g} and {self.repetition_penalty:g}"
            )
        if not 0 <= self.seed < 2**64 or any(not text for text in self.stop):
            raise BadInput(f"seed must lie in [0, 2^64) and stop texts must not be empty; got {self.seed}, {self.stop}")


def sample_tokens(
    logits: Tensor,
    params: Sequence[SamplingParams],
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
) -> list[int]:
    """The next token of each request.

    Args:
        logits: [R, V].
        params: R settings.
        prompts, answers: R lists of tokens so far; penalties and the place of the draw follow from them.

    Raises:
        BadInput: lengths that do not fit, or logits that are not numbers.
    """
    if not len(logits) == len(params) == len(prompts) == len(answers):
        raise BadInput(f"{len(logits)} rows of logits for {len(params)} settings and {len(prompts)} prompts")
    scores = logits.float()
    top = scores.max(-1)  # NaN where a row holds one
    if bool((top.values.isnan() | (top.values == -torch.inf)).any()):
        raise BadInput(DAMAGED)
    if all(p.temperature == 0 and not _penalised(p) for p in params):
        greedy: list[int] = top.indices.tolist()
        return greedy
    return [
        _sample_one(row, p, prompt, answer)
        for row, p, prompt, answer in zip(scores, params, prompts, answers, strict=True)
    ]


def _penalised(params: SamplingParams) -> bool:
    return bool(params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1)


def _sample_one(row: Tensor, params: SamplingParams, prompt: Sequence[int], answer: Sequence[int]) -> int:
    if _penalised(params):
        row = _penalise(row, params, prompt, answer)
    if params.temperature == 0:
        return int(row.argmax())
    values, order = (row / params.temperature).sort(descending=True, stable=True)
    if params.top_k:
        values, order = values[: params.top_k], order[: params.top_k]
    chance = values.double().softmax(-1)
    # each token is kept whose more likely ones do not reach top_p without it
    kept = (chance.cumsum(-1) - chance < params.top_p) & (chance >= params.min_p * chance[0])
    kept[0] = True
    chance = torch.where(kept, chance, 0.0)
    drawn = float(CounterRng(params.seed).at(step=len(answer)).uniform(1)[0])
    place = int(torch.searchsorted(chance.cumsum(-1), torch.tensor(drawn * float(chance.sum()), dtype=torch.double)))
    last = int(kept.nonzero()[-1])
    return int(order[min(place, last)])


def _penalise(row: Tensor, params: SamplingParams, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    row = row.clone()
    if params.repetition_penalty != 1:
        seen = torch.tensor(sorted({*prompt, *answer}), dtype=torch.long, device=row.device)
        old = row[seen]
        row[seen] = torch.where(old > 0, old / params.repetition_penalty, old * params.repetition_penalty)
    if answer and (params.presence_penalty or params.frequency_penalty):
        count = torch.bincount(torch.tensor(list(answer), device=row.device), minlength=len(row))
        row = row - params.presence_penalty * (count > 0) - params.frequency_penalty * count
    return row
