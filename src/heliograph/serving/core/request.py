"""What a serving engine is asked, and what passes between its scheduler and its executor in a step.

A request has tokens, of which some are computed: their keys and values are in the cache. A step gives each chosen
request some tokens to compute. Prompt chunks, prefix hits, decoding and resuming after a transfer are this one case.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from heliograph.errors import BadInput
from heliograph.lm.core.sampling import SamplingParams

__all__ = ["FinishReason", "Request", "RequestState", "Row", "Sample", "StepPlan", "StepResult", "Ticket"]

FinishReason = Literal["stop", "length", "abort", "error"]
_ORDER = itertools.count()


class RequestState(Enum):
    """Where a request stands."""

    WAITING = "waiting"
    WAITING_KV = "waiting for keys and values"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True)
class Ticket:
    """Keys and values that another instance holds for a request, until they are fetched or the lease ends.

    Attributes:
        host, port: of the holder's transfer server.
        key: names the held blocks there.
        tokens: how many are computed.
        fingerprint: of the model; caches of other models are refused.
        nbytes: of the transfer.
    """

    host: str
    port: int
    key: str
    tokens: int
    fingerprint: str
    nbytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """A plain object that :meth:`from_json` reads."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Ticket:
        """From :meth:`to_json`.

        Raises:
            BadInput: fields that are missing or of another type.
        """
        try:
            return cls(
                str(value["host"]),
                int(value["port"]),
                str(value["key"]),
                int(value["tokens"]),
                str(value["fingerprint"]),
                int(value.get("nbytes", 0)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"this is no ticket of held keys and values: {error!r}") from None


@dataclass(eq=False)
class Request:
    """One sequence being served.

    Attributes:
        id: unique among the requests of an engine.
        prompt: token numbers.
        params: how tokens are drawn.
        priority: 0 is online; larger numbers yield to smaller ones (offline work is 1).
        arrival_s: on the engine's clock.
        salt: of the prefix cache: requests with different salts (tenant, adapter, images) never share blocks.
        logprobs: how many alternatives are reported with each token; None for no log-probabilities.
        prompt_logprobs: whether those of the prompt are reported too.
        producer: whether keys and values are held for another instance once the prompt is computed.
        ticket: where the prompt's keys and values can be fetched.
        expected_tokens: of the answer, where a trace knows it; simulations use it, policies must not.
        deadline_s: on the engine's clock, after which it is aborted.

        tokens: the prompt and the answer so far.
        num_prompt: tokens of the prompt.
        room: tokens that the answer may have where it is served; 0 until it is.
        num_computed: tokens whose keys and values are in the cache, or will be once the step in flight ends.
        num_pending: sampled tokens of the step in flight, which are not yet known.
        num_in_flight: steps under way that it takes part in.
        blocks: of the cache, in order.
        state, finish: where it stands, and why it ended.
        hashes, num_published: names of its full blocks, and how many of them others can find.
        epoch: how often its blocks were taken away; results of an older epoch do not count for the cache.
        num_cached: tokens found in the prefix cache when it started.
        recomputed, preemptions: tokens computed again, and how often it was pre-empted.
    """

    id: str
    prompt: Sequence[int]
    params: SamplingParams = SamplingParams()  # noqa: RUF009 - frozen
    priority: int = 0
    arrival_s: float = 0.0
    salt: str = ""
    logprobs: int | None = None
    prompt_logprobs: bool = False
    producer: bool = False
    ticket: Ticket | None = None
    expected_tokens: int | None = None
    deadline_s: float | None = None

    tokens: list[int] = field(init=False)
    num_prompt: int = field(init=False)
    room: int = field(init=False, default=0)
    num_computed: int = 0
    num_pending: int = 0
    blocks: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    state: RequestState = RequestState.WAITING
    finish: FinishReason | None = None
    epoch: int = 0
    order: int = field(default_factory=lambda: next(_ORDER))
    num_cached: int = 0
    recomputed: int = 0
    preemptions: int = 0
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    num_published: int = 0
    num_in_flight: int = 0

    def __post_init__(self) -> None:
        """Refuses a prompt without tokens."""
        if not self.prompt:
            raise BadInput(f"request {self.id} has an empty prompt; a model needs at least one token to go on from")
        self.tokens, self.num_prompt = list(self.prompt), len(self.prompt)

    @property
    def output(self) -> list[int]:
        """The answer so far."""
        return self.tokens[self.num_prompt :]

    @property
    def num_output(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.num_prompt

    @property
    def need(self) -> int:
        """Tokens that have to be computed before the next one can be sampled."""
        return len(self.tokens) + self.num_pending - self.num_computed

    @property
    def decoding(self) -> bool:
        """Whether only the newest token is missing from the cache."""
        return self.need == 1 and self.num_output + self.num_pending > 0

    @property
    def rank(self) -> tuple[int, float, int]:
        """Order of service: priority, then arrival."""
        return (self.priority, self.arrival_s, self.order)


@dataclass(frozen=True)
class Row:
    """What one request computes in a step.

    Attributes:
        request: its own.
        start: position of the first token.
        count: of tokens.
        blocks: the request's blocks when the step was planned.
        sample: whether the next token is drawn.
        pending: whether the last token is the one that the step in flight draws.
        epoch: of the request when the step was planned.
    """

    request: Request
    start: int
    count: int
    blocks: tuple[int, ...]
    sample: bool
    pending: bool = False
    epoch: int = 0


@dataclass(frozen=True)
class StepPlan:
    """One step: rows, those that decode first; and the requests that ended since the last step."""

    rows: tuple[Row, ...]
    ended: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens computed by the step."""
        return sum(row.count for row in self.rows)


@dataclass(frozen=True)
class Sample:
    """A drawn token.

    Attributes:
        token: its number.
        logprob: of it, where asked for.
        top: the most likely alternatives (token, log-probability).
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class StepResult:
    """What a step gave.

    Attributes:
        samples: one a row, None where none was asked for.
        seconds: that the step took.
        prompts: by row, log-probabilities of the prompt's tokens after each computed one, where asked for.
    """

    samples: tuple[Sample | None, ...]
    seconds: float
    prompts: Mapping[int, tuple[Sample, ...]] = field(default_factory=dict)
