"""What a simulated cluster is asked, what became of each request, and how that is summed up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from heliograph.errors import BadInput
from heliograph.serving.core.cluster import Placement, Role
from heliograph.serving.core.request import FinishReason

__all__ = ["RequestRecord", "SimReport", "SimRequest", "Slo"]


@dataclass(frozen=True)
class SimRequest:
    """A request of a trace.

    Attributes:
        id: unique in the run.
        arrival_s: since its start.
        prompt: token numbers; a ``range`` will do where no prefix is shared.
        output_tokens: of the answer, which policies do not see.
        max_tokens: the limit that its sender stated, which they see.
        priority: 0 online, 1 offline.
    """

    id: str
    arrival_s: float
    prompt: Sequence[int]
    output_tokens: int
    max_tokens: int = 1024
    priority: int = 0

    def __post_init__(self) -> None:
        """Refuses what cannot be served."""
        if not self.prompt or not 1 <= self.output_tokens <= self.max_tokens:
            raise BadInput(
                f"request {self.id}: a prompt and 1 <= output_tokens <= max_tokens are needed; got {len(self.prompt)} "
                f"prompt tokens, {self.output_tokens} and {self.max_tokens}"
            )
        if not (self.arrival_s >= 0 and math.isfinite(self.arrival_s)):
            raise BadInput(f"request {self.id}: arrival_s is {self.arrival_s}; seconds of 0 or more are expected")


@dataclass(frozen=True)
class Slo:
    """Limits that an online request's sender waits for: first token, and mean time of each later one."""

    ttft_s: float
    tpot_s: float


@dataclass
class RequestRecord:
    """What became of a request.

    Attributes:
        request: as it came.
        placements: where it was sent, with the time of each.
        first_token_s, finished_s: on the simulation's clock; None where it did not get there.
        tokens: of the answer.
        finish: why it ended; None where the run ended first, "error" where nobody could take it.
        preemptions, recomputed_tokens: on its way.
        moved_bytes: of keys and values between instances.
    """

    request: SimRequest
    placements: list[tuple[float, Placement]] = field(default_factory=list)
    first_token_s: float | None = None
    finished_s: float | None = None
    tokens: int = 0
    finish: FinishReason | None = None
    preemptions: int = 0
    recomputed_tokens: int = 0
    moved_bytes: int = 0

    @property
    def ttft_s(self) -> float:
        """From arrival to the first token; infinite where there was none."""
        return math.inf if self.first_token_s is None else self.first_token_s - self.request.arrival_s

    @property
    def tpot_s(self) -> float:
        """Mean time of a token after the first; 0 for an answer of one, infinite for one that did not end."""
        if self.finished_s is None or self.first_token_s is None:
            return math.inf
        return (self.finished_s - self.first_token_s) / max(1, self.tokens - 1)

    @property
    def completed(self) -> bool:
        """Whether the whole answer came."""
        return self.finish in ("stop", "length")

    def meets(self, slo: Slo) -> bool:
        """Whether the answer came within both limits."""
        return self.completed and self.ttft_s <= slo.ttft_s and self.tpot_s <= slo.tpot_s


@dataclass(frozen=True)
class SimReport:
    """A run.

    Attributes:
        records: one a request, in order of arrival.
        seconds: from the start to the last event.
        preemptions, recomputed_tokens: by lack of blocks, over all instances.
        moved_bytes: of keys and values.
        broken_steps: that were interrupted.
        roles: changes (time, instance, role).
        refused_actions: that came while a hand-over forbade them.
        busy_s: of each instance.
    """

    records: tuple[RequestRecord, ...]
    seconds: float
    preemptions: int
    recomputed_tokens: int
    moved_bytes: int
    broken_steps: int
    roles: tuple[tuple[float, str, Role], ...]
    refused_actions: int
    busy_s: dict[str, float]

    def attainment(self, slo: Slo, priority: int = 0) -> float:
        """Share of the requests of that priority that met the limits; what did not end did not meet them."""
        mine = [r for r in self.records if r.request.priority == priority]
        return sum(r.meets(slo) for r in mine) / len(mine) if mine else math.nan

    def goodput(self, slo: Slo, seconds: float, priority: int = 0) -> float:
        """Requests a second that met the limits, over a period stated by the caller (the same for all contenders)."""
        return sum(r.meets(slo) for r in self.records if r.request.priority == priority) / seconds

    def tokens_by(self, when_s: float, priority: int) -> int:
        """Answer tokens of requests of that priority that had ended by then."""
        return sum(
            r.tokens
            for r in self.records
            if r.request.priority == priority and r.completed and (r.finished_s or 0.0) <= when_s
        )
