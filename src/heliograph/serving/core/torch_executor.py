"""Steps of a real model in torch: ragged tokens of many requests go through the decoder together.

Shapes: T tokens of the step, R rows, M blocks a row at most, V tokens of the vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from heliograph.errors import BadInput
from heliograph.lm.core.load import LanguageModel
from heliograph.lm.core.packed import PackedDecoder
from heliograph.lm.core.sampling import SamplingParams, sample_tokens
from heliograph.serving.core.cost_model import StepShape
from heliograph.serving.core.executor import Launched
from heliograph.serving.core.paged_attention import BlockCache, PagedAttention, PagedBatch
from heliograph.serving.core.request import Request, Row, Sample, StepPlan, StepResult

__all__ = ["TorchExecutor"]


class TorchExecutor:
    """Carries out steps on one device, in the order in which they are launched.

    Args:
        model: decoder and tokenizer.
        num_blocks, block_size: of the cache.
        overlap: whether :meth:`launch` returns at once and a thread computes; else it computes itself.
        compiled: whether a CPU uses compiled loops.
        packed: whether these take a second copy of the weights, in the order in which products read them.

    Attributes:
        cache: of keys and values.
        decoder: the model's, or its packed form.
    """

    def __init__(
        self,
        model: LanguageModel,
        num_blocks: int,
        block_size: int,
        *,
        overlap: bool = False,
        compiled: bool = True,
        packed: bool = True,
    ) -> None:
        config = model.config
        weight = model.decoder.embedding.weight
        self.model, self.device, self.compiled = model, weight.device, compiled
        self.cache = BlockCache(
            config.layers, num_blocks, block_size, config.kv_heads, config.head_dim, weight.dtype, str(weight.device)
        )
        self.decoder = (
            PackedDecoder(model.decoder, copies=packed)
            if compiled and PackedDecoder.fits(model.decoder)
            else model.decoder
        )
        self._drawn: dict[str, int] = {}  # the newest token of each request, which the planner may not know yet
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="executor") if overlap else None

    def launch(self, plan: StepPlan) -> Launched:
        """Starts a step."""
        if self._thread is None:
            return _Done(self._execute(plan))
        return _Running(self._thread.submit(self._execute, plan))

    def close(self) -> None:
        """Ends the thread once the steps that were launched have ended."""
        if self._thread is not None:
            self._thread.shutdown()

    def run_shape(self, shape: StepShape) -> float:
        """Carries out a step of that shape on random tokens, for measurements; its seconds.

        Contents of the cache are overwritten.

        Raises:
            BadInput: the cache is too small for it.
        """
        rows, block = [], 0
        size, total = self.cache.block_size, self.cache.data.shape[2]
        for count, start in [*((1, start) for start in shape.decodes), *shape.prompts]:
            used = -(-(start + count) // size)
            if block + used > total:
                raise BadInput(f"a step of {shape} takes more than the {total} blocks of this cache")
            request = Request(f"measured-{block}", [1] * (start + count), SamplingParams(temperature=0))
            rows.append(Row(request, start, count, tuple(range(block, block + used)), sample=True))
            block += used
        seconds = self._execute(StepPlan(tuple(rows))).seconds
        self._forget(row.request.id for row in rows)
        return seconds

    @torch.inference_mode()
    def _execute(self, plan: StepPlan) -> StepResult:
        begin = time.perf_counter()
        self._forget(plan.ended)
        if not plan.rows:
            return StepResult((), 0.0)
        tokens, positions, batch, wanted = self._prepare(plan)
        decoder = self.decoder
        attention = PagedAttention(self.cache, batch, compiled=self.compiled)
        hidden = decoder(decoder.embed(tokens), positions, attention)
        samples: list[Sample | None] = [None] * len(plan.rows)
        sampling = [number for number, row in enumerate(plan.rows) if row.sample]
        if sampling:
            logits = decoder.logits(hidden[wanted])
            for number, sample in zip(sampling, self._draw(logits, [plan.rows[n] for n in sampling]), strict=True):
                samples[number] = sample
                self._drawn[plan.rows[number].request.id] = sample.token
        prompts = self._score_prompts(plan, hidden)
        return StepResult(tuple(samples), time.perf_counter() - begin, prompts)

    def _prepare(self, plan: StepPlan) -> tuple[Tensor, Tensor, PagedBatch, Tensor]:
        """Tokens [T], positions [T], the batch, and the place of each sampling row's last token."""
        size = self.cache.block_size
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        wanted: list[int] = []
        pending: list[tuple[int, str]] = []
        for row in plan.rows:
            tokens += row.request.tokens[row.start : row.start + row.count - row.pending]
            if row.pending:
                pending.append((len(tokens), row.request.id))
                tokens.append(0)
            for position in range(row.start, row.start + row.count):
                positions.append(position)
                slots.append(row.blocks[position // size] * size + position % size)
            if row.sample:
                wanted.append(len(tokens) - 1)
        most = max(len(row.blocks) for row in plan.rows)
        tables = torch.tensor([row.blocks + (0,) * (most - len(row.blocks)) for row in plan.rows], dtype=torch.int32)
        context = torch.tensor([row.start + row.count for row in plan.rows], dtype=torch.int32)
        decodes = next((n for n, row in enumerate(plan.rows) if row.count > 1), len(plan.rows))
        batch = PagedBatch(
            torch.tensor(slots, device=self.device),
            tables.to(self.device),
            context.to(self.device),
            tuple(row.count for row in plan.rows),
            decodes,
        )
        return (
            self._fill_in(torch.tensor(tokens, device=self.device), pending),
            torch.tensor(positions, device=self.device),
            batch,
            torch.tensor(wanted, device=self.device, dtype=torch.long),
        )

    def _draw(self, logits: Tensor, rows: list[Row]) -> list[Sample]:
        prompts = [row.request.prompt for row in rows]
        answers = [self._answer(row) for row in rows]
        drawn = sample_tokens(logits, [row.request.params for row in rows], prompts, answers)
        samples = [Sample(token) for token in drawn]
        for number, row in enumerate(rows):
            if row.request.logprobs is not None:
                samples[number] = _scored(logits[number].log_softmax(-1), drawn[number], row.request.logprobs)
        return samples

    def _answer(self, row: Row) -> list[int]:
        """The answer before the token that this row draws."""
        stop = row.start + row.count - row.pending
        known = row.request.tokens[row.request.num_prompt : stop]
        return [*known, self._newest(row.request.id)] if row.pending else known

    def _forget(self, request_ids: Iterable[str]) -> None:
        """Requests that draw no more."""
        for name in request_ids:
            self._drawn.pop(name, None)

    def _newest(self, request_id: str) -> int:
        """The token that a request drew last, which the planner may not know yet."""
        return self._drawn[request_id]

    def _fill_in(self, tokens: Tensor, pending: list[tuple[int, str]]) -> Tensor:
        """Puts tokens drawn by the step before into their places."""
        for place, name in pending:
            tokens[place] = self._newest(name)
        return tokens

    def _score_prompts(self, plan: StepPlan, hidden: Tensor) -> dict[int, tuple[Sample, ...]]:
        found, at = {}, 0
        for number, row in enumerate(plan.rows):
            request = row.request
            last = min(row.start + row.count, request.num_prompt - 1)  # positions whose next token is the prompt's
            if request.prompt_logprobs and last > row.start:
                scores = self.decoder.logits(hidden[at : at + last - row.start]).log_softmax(-1)
                following = request.prompt[row.start + 1 : last + 1]
                found[number] = tuple(
                    _scored(line, token, request.logprobs or 0) for line, token in zip(scores, following, strict=True)
                )
            at += row.count
        return found


class _Done:
    def __init__(self, result: StepResult) -> None:
        self._result = result

    def wait(self) -> StepResult:
        return self._result


class _Running:
    def __init__(self, future: Future[StepResult]) -> None:
        self._future = future

    def wait(self) -> StepResult:
        return self._future.result()


def _scored(line: Tensor, token: int, alternatives: int) -> Sample:
    """A token with its log-probability and the most likely alternatives, from log-probabilities [V]."""
    values, order = line.topk(min(alternatives, len(line)))
    top = tuple(zip(order.tolist(), values.tolist(), strict=True))
    return Sample(token, float(line[token]), top)
