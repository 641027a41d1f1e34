"""A serving engine: requests come in, tokens come out, one step of the model after the other.

:class:`EngineCore` knows tokens only and runs on real or virtual time; :class:`Engine` adds a model, its tokenizer and
texts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from heliograph.clock import Clock, WallClock
from heliograph.errors import BadInput
from heliograph.lm.core.generate import Completion
from heliograph.lm.core.load import LanguageModel, load_model
from heliograph.lm.core.sampling import SamplingParams
from heliograph.lm.core.tokens import StopText, TextStream
from heliograph.serving.core.blocks import BlockPool, KVManager, LeakError
from heliograph.serving.core.cost_model import StepShape
from heliograph.serving.core.executor import Executor, Launched
from heliograph.serving.core.request import FinishReason, Request, RequestState, Sample, StepPlan, StepResult
from heliograph.serving.core.scheduler import Admission, Scheduler, SchedulerConfig, Taken
from heliograph.serving.core.torch_executor import TorchExecutor

__all__ = ["Engine", "EngineCore", "EngineStats", "Output", "StepFailed"]

DEFAULT_CACHE_BYTES = 2**30
StepFailed = Callable[[StepPlan, Exception], object]


@dataclass(frozen=True)
class EngineStats:
    """Where an engine stands, and what it has done since it began.

    Attributes:
        running, waiting, loading: requests.
        kv_usage: share of the cache's blocks that are held.
        steps, prompt_tokens, generated_tokens: done.
        queried_tokens, hit_tokens: of prompts, looked up and found in the prefix cache.
        preemptions, recomputed_tokens: by lack of blocks.
        leases: transfers that are waited for.
    """

    running: int
    waiting: int
    loading: int
    kv_usage: float
    steps: int
    prompt_tokens: int
    generated_tokens: int
    queried_tokens: int
    hit_tokens: int
    preemptions: int
    recomputed_tokens: int
    leases: int


class EngineCore:
    """The loop over a scheduler and an executor.

    Args:
        scheduler: who computes what.
        executor: how.
        clock: of arrivals, deadlines and leases.
        overlap: whether the next step is planned and launched before the results of this one are known. A request that
            turns out to have ended is then in one step too many; that step's token is dropped.
    """

    def __init__(
        self, scheduler: Scheduler, executor: Executor, clock: Clock | None = None, *, overlap: bool = False
    ) -> None:
        self.scheduler, self.executor, self.overlap = scheduler, executor, overlap
        self.clock = clock or WallClock()
        self.requests: dict[str, Request] = {}
        self.steps = self.prompt_tokens = self.generated_tokens = 0
        self.on_failure: StepFailed | None = None
        self._flight: tuple[StepPlan, Launched] | None = None
        self._deadlines: dict[str, float] = {}

    @property
    def kv(self) -> KVManager:
        """The blocks."""
        return self.scheduler.kv

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything, a step in flight included."""
        return self.scheduler.has_work or self._flight is not None or self._can_load()

    def add(self, request: Request) -> Request:
        """Takes a request in.

        Raises:
            BadInput: its id is in use, or it can never run here.
        """
        if request.id in self.requests:
            raise BadInput(f"a request {request.id!r} is being served already")
        self.scheduler.add(request)
        self.requests[request.id] = request
        if request.deadline_s is not None:
            self._deadlines[request.id] = request.deadline_s
        if request.params.max_tokens == 0 and not request.prompt_logprobs:
            self.scheduler.finish(request, "length", self.clock.now())
            self._forget(request)
        return request

    def abort(self, request_id: str, reason: FinishReason = "abort") -> Request | None:
        """Ends a request wherever it stands; None where it is not served."""
        request = self.requests.get(request_id)
        if request is not None:
            self.scheduler.finish(request, reason, self.clock.now())
            self._forget(request)
        return request

    def begin(self) -> StepPlan | None:
        """Plans the next step; None where there is nothing to compute."""
        now = self.clock.now()
        self.kv.expire(now)
        plan = self.scheduler.schedule(now)
        return plan if plan.rows else None

    def complete(self, plan: StepPlan, result: StepResult) -> list[Taken]:
        """Books a step's results."""
        self.steps += 1
        self.prompt_tokens += sum(row.count for row in plan.rows if row.count > 1 or row.start < row.request.num_prompt)
        taken = self.scheduler.take(plan, result.samples, self.clock.now())
        self.generated_tokens += len(taken)
        for each in taken:
            if each.finish is not None:
                self._forget(each.request)
        return taken

    def step(self) -> tuple[list[Taken], StepPlan | None, StepResult | None]:
        """Runs until a step's results are known: what they mean for each request, the step's plan, and the results.

        Raises:
            Exception: what the executor failed with; the requests of that step have ended with "error".
        """
        plan = self.begin()
        launched = None if plan is None else (plan, self._launch(plan))
        if self.overlap:
            due, self._flight = self._flight, launched
        else:
            due = launched
        if due is None:
            return [], None, None
        done, running = due
        try:
            result = running.wait()
        except Exception:
            self._fail(done)
            raise
        return self.complete(done, result), done, result

    def expired(self) -> list[Request]:
        """Aborts the requests whose deadline has passed."""
        now = self.clock.now()
        late = [name for name, deadline in self._deadlines.items() if deadline <= now]
        return [request for name in late if (request := self.abort(name)) is not None]

    def stats(self) -> EngineStats:
        """Where the engine stands."""
        kv, scheduler = self.kv, self.scheduler
        return EngineStats(
            len(scheduler.running),
            len(scheduler.waiting),
            len(scheduler.loading),
            kv.usage,
            self.steps,
            self.prompt_tokens,
            self.generated_tokens,
            kv.queried_tokens,
            kv.hit_tokens,
            scheduler.preemptions,
            scheduler.recomputed_tokens,
            len(kv.leases),
        )

    def _launch(self, plan: StepPlan) -> Launched:
        try:
            return self.executor.launch(plan)
        except Exception:
            self._fail(plan)
            raise

    def _fail(self, plan: StepPlan) -> None:
        for row in plan.rows:
            self.abort(row.request.id, "error")

    def _can_load(self) -> bool:
        return self.scheduler.on_load is not None and any(not r.blocks for r in self.scheduler.loading.values())

    def _forget(self, request: Request) -> None:
        self.requests.pop(request.id, None)
        self._deadlines.pop(request.id, None)


@dataclass(frozen=True)
class Output:
    """What a step meant for a request.

    Attributes:
        request: its own.
        sample: the token, with log-probabilities where asked for; None where only the end is told.
        text: new text that can be shown.
        finish: why it ended; None while it goes on.
    """

    request: Request
    sample: Sample | None
    text: str
    finish: FinishReason | None


class _Answer:
    """The text of a request's answer."""

    def __init__(self, model: LanguageModel, request: Request) -> None:
        self.stream, self.stop = TextStream(model.tokenizer), StopText(request.params.stop)
        self.ends = () if request.params.ignore_end else model.tokenizer.end_tokens
        for token in request.output:  # drawn elsewhere before
            self.stop.push(self.stream.push(token))

    def push(self, token: int, ended: bool) -> str:
        if token in self.ends:
            return self.stop.push(self.stream.finish(), last=True)
        new = self.stream.push(token)
        return self.stop.push(new + self.stream.finish() if ended else new, last=ended)


class Engine:
    """A model that serves many requests at once.

    >>> engine = Engine("smollm2-135m")  # doctest: +SKIP
    >>> greedy = SamplingParams(max_tokens=2, temperature=0)  # doctest: +SKIP
    >>> engine.generate(["The capital of France is"], greedy)[0].text  # doctest: +SKIP
    ' Paris.'

    Args:
        model: what :func:`~heliograph.lm.core.load.load_model` takes, or what it gave.
        block_size: tokens a block of the cache.
        num_blocks: of the cache; None for as many as ``cache_bytes`` hold.
        cache_bytes: of keys and values.
        max_tokens_per_step, max_sequences, chunk_limit: see :class:`SchedulerConfig`.
        prefix_cache: whether texts that begin alike share blocks.
        overlap: whether the next step is planned while this one runs.
        packed: whether a CPU keeps a second copy of the weights, in the order in which its products read them.
        admission: who may start; everybody where None.
        clock: of arrivals and deadlines.
        device, dtype: of the weights, where ``model`` is a name.
        executor: another than the one for the model's device, given the model, the number of blocks and their size.

    Raises:
        BadInput: a model that cannot be read, or limits that make no sense.
    """

    def __init__(
        self,
        model: str | Path | LanguageModel = "smollm2-135m",
        *,
        block_size: int = 16,
        num_blocks: int | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        max_tokens_per_step: int = 512,
        max_sequences: int = 64,
        chunk_limit: int | None = None,
        prefix_cache: bool = True,
        overlap: bool = False,
        packed: bool = True,
        admission: Admission | None = None,
        clock: Clock | None = None,
        device: str = "cpu",
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        executor: Callable[[LanguageModel, int, int], Executor] | None = None,
    ) -> None:
        if not isinstance(model, LanguageModel):
            import torch

            model = load_model(model, device=device, dtype=getattr(torch, dtype))
        self.model = model
        config = SchedulerConfig(max_tokens_per_step, max_sequences, chunk_limit, model.config.context)
        if block_size < 1:
            raise BadInput(f"a block holds at least one token; got block_size={block_size}")
        if num_blocks is None:
            num_blocks = max(1, cache_bytes // (block_size * self.kv_bytes_per_token))
        kv = KVManager(BlockPool(num_blocks, block_size), model.fingerprint, prefix_cache=prefix_cache)
        scheduler = Scheduler(kv, config, admission, model.tokenizer.end_tokens)
        if executor is not None:
            made = executor(model, num_blocks, block_size)
        elif model.decoder.embedding.weight.is_cuda:
            from heliograph.serving.core.cuda_executor import CudaExecutor

            made = CudaExecutor(model, num_blocks, block_size, max_sequences=max_sequences)
        else:
            made = TorchExecutor(model, num_blocks, block_size, overlap=overlap, packed=packed)
        self.core = EngineCore(scheduler, made, clock, overlap=overlap)
        self._answers: dict[str, _Answer] = {}
        self._prompts: dict[str, list[Sample]] = {}
        self._names = itertools.count()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the executor's thread."""
        self.core.executor.close()

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.core.has_work

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token keeps, in the model's own number format."""
        config = self.model.config
        return (
            2 * config.layers * config.kv_heads * config.head_dim * self.model.decoder.embedding.weight.element_size()
        )

    def stats(self) -> EngineStats:
        """Where the engine stands."""
        return self.core.stats()

    def warm_up(self) -> None:
        """Runs one small step before any request is served, so that compiling and loading delay nobody."""
        if isinstance(self.core.executor, TorchExecutor) and self.core.kv.pool.num_blocks > 1:
            self.core.executor.run_shape(StepShape(prompts=((1, 0),), decodes=(0,)))

    def request(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams = SamplingParams(),  # noqa: B008 - frozen
        *,
        request_id: str | None = None,
        answer: Sequence[int] = (),
        **settings: Any,
    ) -> Request:
        """A request for this model; :meth:`add` takes it in.

        Args:
            prompt: text, or token numbers.
            params: how tokens are drawn.
            request_id: None for a new one.
            answer: tokens that were drawn elsewhere before.
            settings: other fields of :class:`Request`.

        Raises:
            BadInput: an empty prompt, or tokens outside the vocabulary.
        """
        tokens = self.model.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        size = self.model.config.vocabulary
        wrong = next((token for token in (*tokens, *answer) if not 0 <= token < size), None)
        if wrong is not None:
            raise BadInput(f"token {wrong} is outside the vocabulary of {size}")
        settings.setdefault("arrival_s", self.core.clock.now())
        name = request_id if request_id is not None else f"request-{next(self._names)}"
        request = Request(name, tokens, params, **settings)
        request.tokens += answer
        return request

    def add(self, request: Request) -> Request:
        """Takes a request in; one without tokens to draw has ended when this returns.

        Raises:
            BadInput: its id is in use, or it can never run here; the message gives the numbers.
        """
        self.core.add(request)
        if request.state is not RequestState.FINISHED:
            self._answers[request.id] = _Answer(self.model, request)
        return request

    def abort(self, request_id: str) -> None:
        """Ends a request; its full blocks can still be found."""
        self.core.abort(request_id)
        self._answers.pop(request_id, None)
        self._prompts.pop(request_id, None)

    def prompt_samples(self, request_id: str) -> list[Sample]:
        """Log-probabilities of a prompt's tokens but the first, once computed; asked for once."""
        return self._prompts.pop(request_id, [])

    def step(self) -> list[Output]:
        """Runs until results are known; what they mean for each request. Nothing to do gives an empty list.

        Raises:
            Exception: what the model failed with; the requests of that step have ended with "error".
        """
        outputs = [self._ended(request) for request in self.core.expired()]
        taken, plan, result = self.core.step()
        if plan is not None and result is not None:
            for number, scored in result.prompts.items():
                self._prompts.setdefault(plan.rows[number].request.id, []).extend(scored)
        return outputs + [self._output(each) for each in taken]

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),  # noqa: B008 - frozen
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """Answers to prompts, in their order.

        Args:
            prompts: texts, or token numbers.
            params: for all, or one a prompt.
            progress: called with finished and all requests.

        Raises:
            BadInput: a prompt that can never run; none has been started then.
        """
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise BadInput(f"{len(each)} settings for {len(prompts)} prompts")
        requests = [self.request(prompt, own) for prompt, own in zip(prompts, each, strict=True)]
        texts: dict[str, str] = {request.id: "" for request in requests}
        added: list[Request] = []
        try:
            for request in requests:
                added.append(self.add(request))
            for output in self._until_done(requests, progress):
                if output.request.id in texts:
                    texts[output.request.id] += output.text
        except BaseException:
            for request in added:
                self.abort(request.id)
            raise
        return [
            Completion(tuple(request.output), texts[request.id], "stop" if request.finish == "stop" else "length")
            for request in requests
        ]

    def _until_done(self, requests: Sequence[Request], progress: Callable[[int, int], None] | None) -> Iterator[Output]:
        done = sum(request.state is RequestState.FINISHED for request in requests)
        ours = {request.id for request in requests}
        while done < len(requests):
            outputs = self.step()
            if not outputs and not self.has_work:
                raise LeakError("the engine has nothing to do, but requests have not ended")
            yield from outputs
            ended = sum(output.finish is not None and output.request.id in ours for output in outputs)
            if ended and progress is not None:
                progress(done + ended, len(requests))
            done += ended

    def _output(self, taken: Taken) -> Output:
        request, sample, finish = taken.request, taken.sample, taken.finish
        answer = self._answers[request.id]
        assert sample is not None
        text = answer.push(sample.token, finish is not None)
        if finish is None and answer.stop.stopped:
            finish = "stop"
            self.core.abort(request.id, "stop")
        if finish is not None:
            self._answers.pop(request.id, None)
        return Output(request, sample, text, finish)

    def _ended(self, request: Request) -> Output:
        answer = self._answers.pop(request.id, None)
        rest = answer.stop.push(answer.stream.finish(), last=True) if answer is not None else ""
        return Output(request, None, rest, request.finish)
