"""How many instances compute prompts and how many decode: solved from a profile, then kept by watching.

With batches b_p and b_d, a prefill batch of T_p seconds, answers of G tokens and T_d = G TPOT(b_d) (arXiv:2408.08147,
performance model):

.. math:: C_p = n_p b_p / T_p, \\quad C_d = n_d b_d / T_d, \\quad \\Phi = \\min(C_p, C_d) / (n_p + n_d)

The detector looks at the end-to-end time T and at the share of it that passes before the first token: both up means
that prefill is the bottleneck, T up and the share down that decode is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from heliograph.errors import BadInput
from heliograph.serving.core.cost_model import CostModel, StepShape

__all__ = [
    "BalancedRatio",
    "Finished",
    "Proposal",
    "RatioController",
    "ScenarioProfile",
    "balance_ratio",
]

Bottleneck = Literal["prefill", "decode"]
DECODE_BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class ScenarioProfile:
    """What a scenario's requests cost one instance.

    Attributes:
        name: of the scenario.
        output_tokens: mean length of an answer, the first token included.
        prefill_s: (batch size, seconds of a batch of prompts).
        tpot_s: (batch size, seconds of a decode step).
        transfer_s: of a prompt's keys and values.
    """

    name: str
    output_tokens: float
    prefill_s: tuple[tuple[int, float], ...]
    tpot_s: tuple[tuple[int, float], ...]
    transfer_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuses a profile without measurements."""
        pairs = (*self.prefill_s, *self.tpot_s)
        if not self.prefill_s or not self.tpot_s or any(b < 1 or not s > 0 for b, s in pairs):
            raise BadInput(f"profile {self.name}: batches of 1 or more and their seconds are needed, for both roles")
        if not self.output_tokens >= 1:
            raise BadInput(f"profile {self.name}: an answer has at least one token; got {self.output_tokens}")

    @classmethod
    def from_cost(
        cls,
        cost: CostModel,
        prompt_tokens: int,
        output_tokens: float,
        *,
        name: str = "",
        tokens_per_step: int = 512,
        prefill_batches: Sequence[int] = (1,),
        decode_batches: Sequence[int] = DECODE_BATCHES,
        bytes_per_s: float = 1.25e9,
    ) -> ScenarioProfile:
        """From fitted step times and mean lengths.

        Args:
            cost: of a step.
            prompt_tokens, output_tokens: of a usual request.
            name: of the scenario.
            tokens_per_step: limit of the scheduler; longer prompts are computed in chunks.
            prefill_batches, decode_batches: that are profiled.
            bytes_per_s: of the link.
        """
        prefill = []
        for batch in prefill_batches:
            seconds, done, whole = 0.0, 0, batch * prompt_tokens
            while done < whole:
                take = min(tokens_per_step, whole - done)
                seconds += cost.seconds(StepShape(prompts=((take, done % prompt_tokens),)))
                done += take
            prefill.append((batch, seconds))
        context = prompt_tokens + output_tokens / 2
        tpot = tuple((batch, cost.decode_seconds(batch, batch * context)) for batch in decode_batches)
        return cls(name, output_tokens, tuple(prefill), tpot, prompt_tokens * cost.kv_bytes_per_token / bytes_per_s)

    def prefill_load_s(self, ttft_s: float = math.inf) -> tuple[int, float]:
        """Batch size and seconds of one instance for a request's prompt, at the best batch within the limit."""
        batch, seconds = max(_within(self.prefill_s, ttft_s), key=lambda pair: pair[0] / pair[1])
        return batch, seconds / batch

    def decode_load_s(self, tpot_s: float = math.inf) -> tuple[int, float]:
        """Batch size and seconds of one instance for a request's further tokens, at the best batch in the limit."""
        batch, seconds = max(_within(self.tpot_s, tpot_s), key=lambda pair: pair[0] / pair[1])
        return batch, max(0.0, self.output_tokens - 1) * seconds / batch

    def end_to_end(self, ttft_s: float = math.inf, tpot_s: float = math.inf) -> tuple[float, float]:
        """T without queueing, and the share T_p / T, at those batches."""
        prefill_batch, decode_batch = self.prefill_load_s(ttft_s)[0], self.decode_load_s(tpot_s)[0]
        prefill = dict(self.prefill_s)[prefill_batch]
        whole = prefill + self.transfer_s + (self.output_tokens - 1) * dict(self.tpot_s)[decode_batch]
        return whole, prefill / whole


def _within(pairs: Sequence[tuple[int, float]], limit_s: float) -> list[tuple[int, float]]:
    """Measured batches within a limit; the smallest where none is."""
    return [pair for pair in pairs if pair[1] <= limit_s] or [min(pairs)]


class BalancedRatio(NamedTuple):
    """The best split: instances of each role, requests a second and instance, and the batch sizes that give it."""

    prefill: int
    decode: int
    phi: float
    prefill_batch: int
    decode_batch: int


def balance_ratio(
    profile: ScenarioProfile, devices: int, *, ttft_s: float = math.inf, tpot_s: float = math.inf
) -> BalancedRatio:
    """The whole-numbered ratio of roles with the highest throughput an instance.

    >>> step = ((1, 0.5),)
    >>> balance_ratio(ScenarioProfile("a", 7, step, ((4, 1.0),)), 4)[:2]
    (1, 3)

    Args:
        profile: measured times.
        devices: instances, at least 2.
        ttft_s, tpot_s: limits that the batches must keep.

    Raises:
        BadInput: fewer than two devices.
    """
    if devices < 2:
        raise BadInput(f"a group has one instance of each role at least; got {devices} devices")
    prefill_batch, prefill_s = profile.prefill_load_s(ttft_s)
    decode_batch, decode_s = profile.decode_load_s(tpot_s)

    def throughput(prefill: int) -> float:
        decode = (devices - prefill) / decode_s if decode_s else math.inf
        return min(prefill / prefill_s, decode)

    best = max(range(1, devices), key=throughput)
    return BalancedRatio(best, devices - best, throughput(best) / devices, prefill_batch, decode_batch)


@dataclass(frozen=True)
class Finished:
    """A request that ended: when, its end-to-end time, and the part of it before the first token."""

    when_s: float
    end_to_end_s: float
    first_token_s: float


@dataclass(frozen=True)
class Proposal:
    """One more instance for the role that is the bottleneck, taken from the other."""

    bottleneck: Bottleneck
    end_to_end_s: float
    share: float


class RatioController:
    """Watches finished requests and proposes one change of role at a time.

    Args:
        reference_s: end-to-end time in good order, for example the profile's.
        reference_share: of it before the first token.
        window_s, window_requests: a window ends once both are reached.
        band: a window counts as bad above this multiple of the reference.
        share_margin: by which the share must differ from the reference to name a bottleneck.
        windows: bad ones in a row before anything is proposed.
        cooldown: windows after a change in which nothing is proposed.

    Raises:
        BadInput: a parameter that makes no sense.
    """

    def __init__(
        self,
        reference_s: float,
        reference_share: float,
        *,
        window_s: float = 30.0,
        window_requests: int = 200,
        band: float = 1.2,
        share_margin: float = 0.1,
        windows: int = 2,
        cooldown: int = 2,
    ) -> None:
        if not (reference_s > 0 and 0 <= reference_share <= 1 and window_s > 0 and window_requests >= 1 and band > 1):
            raise BadInput(
                "need reference_s > 0, a share in [0, 1], a window of some time and requests, and a band above 1; got "
                f"{reference_s}, {reference_share}, {window_s}, {window_requests}, {band}"
            )
        self.reference_s, self.reference_share = reference_s, reference_share
        self.window_s, self.window_requests, self.band = window_s, window_requests, band
        self.share_margin, self.windows, self.cooldown = share_margin, windows, cooldown
        self.changes: list[tuple[float, Bottleneck]] = []
        self._window: list[Finished] = []
        self._begin: float | None = None
        self._bad = self._rest = 0
        self._latest: Proposal | None = None

    def observe(self, finished: Finished) -> None:
        """Takes a finished request into the window; ends the window once it is full."""
        if self._begin is None:
            self._begin = finished.when_s
        self._window.append(finished)
        if len(self._window) >= self.window_requests and finished.when_s - self._begin >= self.window_s:
            self._judge()
            self._window, self._begin = [], finished.when_s

    def propose(self, prefill: int, decode: int) -> Proposal | None:
        """What is to be changed now, given so many instances of each role; never the last of a role."""
        latest = self._latest
        if latest is None or (decode if latest.bottleneck == "prefill" else prefill) <= 1:
            return None
        return latest

    def apply(self, proposal: Proposal, change: Callable[[Bottleneck], bool], now_s: float = 0.0) -> bool:
        """Has the change made; where ``change`` refuses because of hand-overs, it is proposed again."""
        if not change(proposal.bottleneck):
            return False
        self.changes.append((now_s, proposal.bottleneck))
        self._latest, self._bad, self._rest = None, 0, self.cooldown
        return True

    def _judge(self) -> None:
        whole = statistics.median(f.end_to_end_s for f in self._window)
        share = statistics.median(f.first_token_s / f.end_to_end_s for f in self._window)
        self._latest = None
        if self._rest:
            self._rest -= 1
            return
        if whole <= self.band * self.reference_s:
            self._bad = 0
            return
        self._bad += 1
        if self._bad < self.windows:
            return
        if share > self.reference_share + self.share_margin:
            self._latest = Proposal("prefill", whole, share)
        elif share < self.reference_share - self.share_margin:
            self._latest = Proposal("decode", whole, share)
