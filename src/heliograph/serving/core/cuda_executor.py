"""Steps on a CUDA device: decoding replays a recorded graph, and the host does not wait between steps.

Tokens that were drawn stay on the device until somebody asks: the next step reads them there, so it can be launched
before the host knows them. A decoding step of a usual size is one replay of a graph recorded for the next larger number
of rows; unused rows write into a block of their own that nobody reads.

Shapes: R rows, M blocks a row at most, V tokens of the vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from heliograph.errors import BadInput
from heliograph.lm.core.load import LanguageModel
from heliograph.lm.core.sampling import DAMAGED
from heliograph.serving.core.executor import Launched
from heliograph.serving.core.paged_attention import PagedAttention, PagedBatch
from heliograph.serving.core.request import Row, Sample, StepPlan, StepResult
from heliograph.serving.core.torch_executor import TorchExecutor

__all__ = ["CudaExecutor"]

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
FIELDS = 5  # numbers a row: known token, where else to take it, position, slot, context


@dataclass(frozen=True)
class _Graph:
    """A recorded step of so many rows: its inputs in one buffer, and what it draws."""

    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    logits: Tensor
    drawn: Tensor


class CudaExecutor(TorchExecutor):
    """Carries out steps on a GPU.

    Args:
        model: decoder and tokenizer, on the device.
        num_blocks, block_size: of the cache; one block more is kept for rows that are padding.
        max_sequences: requests that can run at once.
        context: longest sequence.
        graphs: whether decoding steps are recorded and replayed.

    Raises:
        BadInput: the model is not on a CUDA device.
    """

    def __init__(
        self,
        model: LanguageModel,
        num_blocks: int,
        block_size: int,
        *,
        max_sequences: int = 64,
        context: int | None = None,
        graphs: bool = True,
    ) -> None:
        if model.decoder.embedding.weight.device.type != "cuda":
            raise BadInput("this executor takes a model on a CUDA device; load it with device='cuda'")
        super().__init__(model, num_blocks + 1, block_size)
        self._spare = num_blocks
        self._width = -(-(context or model.config.context) // block_size)
        self._newest_tokens = torch.zeros(max_sequences + 2, dtype=torch.long, device=self.device)
        self._places: dict[str, int] = {}
        self._free_places = list(range(max_sequences, 0, -1))  # place 0 belongs to rows that are padding
        self._sizes = [size for size in SIZES if size < max_sequences] + [max_sequences] if graphs else []
        self._graphs: dict[int, _Graph] = {}
        self._pool: Any = None

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Launched:
        """Starts a step; greedy tokens stay on the device until :meth:`_OnDevice.wait`."""
        begin = time.perf_counter()
        self._forget(plan.ended)
        if not plan.rows:
            return _Known(StepResult((), 0.0))
        for row in plan.rows:
            if row.request.id not in self._places:
                if not self._free_places:
                    raise BadInput(f"{len(self._places)} requests run at once; this executor was made for fewer")
                self._places[row.request.id] = self._free_places.pop()
        size = next((n for n in self._sizes if n >= len(plan.rows)), None)
        if size is not None and all(row.count == 1 and row.sample for row in plan.rows):
            logits, drawn = self._replay(plan, size)
            hidden = None
        else:
            hidden, logits, drawn = self._run(plan)
        sampling = [row for row in plan.rows if row.sample]
        plain = all(_is_greedy(row) for row in sampling)
        scored = hidden is not None and any(row.request.prompt_logprobs for row in plan.rows)
        if plain and not scored:
            return _OnDevice(plan, drawn, begin)
        samples = iter(self._draw(logits, sampling) if sampling else [])
        found = tuple(next(samples) if row.sample else None for row in plan.rows)
        tokens = torch.tensor([s.token for s in found if s is not None], dtype=torch.long, device=self.device)
        self._remember(sampling, tokens)
        prompts = self._score_prompts(plan, hidden) if scored and hidden is not None else {}
        return _Known(StepResult(found, time.perf_counter() - begin, prompts))

    def close(self) -> None:
        """Waits for what is under way."""
        torch.cuda.synchronize(self.device)

    def _execute(self, plan: StepPlan) -> StepResult:
        return self.launch(plan).wait()

    def _forget(self, request_ids: Iterable[str]) -> None:
        for name in request_ids:
            place = self._places.pop(name, None)
            if place is not None:
                self._free_places.append(place)

    def _newest(self, request_id: str) -> int:
        return int(self._newest_tokens[self._places[request_id]])

    def _run(self, plan: StepPlan) -> tuple[Tensor, Tensor, Tensor]:
        """Any step, kernel by kernel."""
        tokens, positions, batch, wanted = self._prepare(plan)
        decoder = self.model.decoder
        hidden = decoder(decoder.embed(tokens), positions, PagedAttention(self.cache, batch, compiled=self.compiled))
        logits = decoder.logits(hidden[wanted])
        drawn = _greedy(logits)
        self._remember([row for row in plan.rows if row.sample], drawn)
        return hidden, logits, drawn

    def _fill_in(self, tokens: Tensor, pending: list[tuple[int, str]]) -> Tensor:
        if pending:
            at = torch.tensor([place for place, _ in pending], device=self.device)
            source = torch.tensor([self._places[name] for _, name in pending], device=self.device)
            tokens[at] = self._newest_tokens[source]
        return tokens

    def _remember(self, rows: list[Row], tokens: Tensor) -> None:
        if rows:
            places = torch.tensor([self._places[row.request.id] for row in rows], device=self.device)
            self._newest_tokens[places] = tokens.clamp(min=0)

    def _replay(self, plan: StepPlan, size: int) -> tuple[Tensor, Tensor]:
        """A step of decoding rows as a recorded graph."""
        if size not in self._graphs:
            self._graphs[size] = self._record(size)
        recorded = self._graphs[size]
        block, width = self.cache.block_size, self._width
        lines = torch.zeros(size, FIELDS + 1 + width, dtype=torch.int32, pin_memory=True)
        values = lines.numpy()
        values[:, 3] = self._spare * block
        values[:, 4] = 1
        values[:, FIELDS + 1] = self._spare
        for number, row in enumerate(plan.rows):
            place = self._places[row.request.id]
            known = 0 if row.pending else row.request.tokens[row.start]
            slot = row.blocks[row.start // block] * block + row.start % block
            values[number, : FIELDS + 1] = (known, place if row.pending else -1, row.start, slot, row.start + 1, place)
            values[number, FIELDS + 1 : FIELDS + 1 + len(row.blocks)] = row.blocks
        recorded.inputs.copy_(lines, non_blocking=True)
        recorded.graph.replay()
        rows = len(plan.rows)
        return recorded.logits[:rows], recorded.drawn[:rows].clone()

    def _record(self, size: int) -> _Graph:
        width, device = self._width, self.device
        inputs = torch.zeros(size, FIELDS + 1 + width, dtype=torch.int32, device=device)
        inputs[:, 1], inputs[:, 3], inputs[:, 4] = -1, self._spare * self.cache.block_size, 1
        inputs[:, FIELDS + 1] = self._spare

        def step() -> tuple[Tensor, Tensor]:
            known, source, positions, slots, context, places = (inputs[:, n].long() for n in range(FIELDS + 1))
            tokens = torch.where(source >= 0, self._newest_tokens[source.clamp(min=0)], known)
            batch = PagedBatch(slots, inputs[:, FIELDS + 1 :], context.int(), (1,) * size, size)
            decoder = self.model.decoder
            hidden = decoder(decoder.embed(tokens), positions, PagedAttention(self.cache, batch))
            logits = decoder.logits(hidden)
            drawn = _greedy(logits)
            self._newest_tokens.index_copy_(0, places, drawn.clamp(min=0))
            return logits, drawn

        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(2):  # kernels are compiled and libraries set up before anything is recorded
                step()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits, drawn = step()
        self._pool = graph.pool()
        return _Graph(graph, inputs, logits, drawn)


class _Known:
    def __init__(self, result: StepResult) -> None:
        self._result = result

    def wait(self) -> StepResult:
        return self._result


class _OnDevice:
    """Greedy tokens on their way to the host."""

    def __init__(self, plan: StepPlan, drawn: Tensor, begin: float) -> None:
        self._plan, self._begin = plan, begin
        self._host = torch.empty(len(drawn), dtype=torch.long, pin_memory=True)
        self._host.copy_(drawn, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def wait(self) -> StepResult:
        self._event.synchronize()
        if bool((self._host < 0).any()):
            raise BadInput(DAMAGED)
        tokens = iter(self._host.tolist())
        samples = tuple(Sample(next(tokens)) if row.sample else None for row in self._plan.rows)
        return StepResult(samples, time.perf_counter() - self._begin)


def _greedy(logits: Tensor) -> Tensor:
    """The most likely token of each row; -1 where the row is damaged, since nothing can be raised on the device."""
    top = logits.max(-1)
    return torch.where(top.values.isnan() | (top.values == -torch.inf), -1, top.indices)


def _is_greedy(row: Row) -> bool:
    params = row.request.params
    penalised = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1
    return params.temperature == 0 and not penalised and row.request.logprobs is None
