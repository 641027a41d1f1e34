"""One decision a request: the envelope's optimum and its neighbours, corrected by what transfers really took.

Source: arXiv:2605.13734. Bandwidth is measured goodput, never a nominal value.
"""

from __future__ import annotations

import math
import random
import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from heliograph.errors import BadInput
from heliograph.serving.kv_serve.profile import (
    NO_COMPRESSION,
    UNIFIED,
    CompressionProfile,
    Envelope,
    ProfileSet,
    lower_envelope,
)

__all__ = ["BandwidthEstimate", "CompressionController", "Decision", "TransferContext", "Transferred"]

Reason = Literal["exploit", "explore", "no_gain", "quality", "slo", "cooldown"]
BUCKETS = (0.96, 0.99)
SMALL_BYTES = 64 * 2**10


@dataclass(frozen=True)
class TransferContext:
    """What is known when keys and values are about to move.

    Attributes:
        nbytes: of them, uncompressed.
        tokens: of the request.
        workload: label; profiles for every workload are used where it is unknown.
        min_quality: relative to the uncompressed cache.
        slo_s: what is left for the transfer; infinite for no limit.
        bytes_per_s: of the link, where the caller knows better than the estimate.
    """

    nbytes: int
    tokens: int
    workload: str = UNIFIED
    min_quality: float = 0.0
    slo_s: float = math.inf
    bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        """Refuses sizes and bandwidths that make no sense."""
        if self.nbytes < 1 or self.tokens < 1:
            raise BadInput(f"a transfer has at least one byte and token; got {self.nbytes} and {self.tokens}")
        if self.bytes_per_s is not None and not self.bytes_per_s > 0:
            raise BadInput(f"a link carries more than 0 bytes a second; got {self.bytes_per_s}")


@dataclass(frozen=True)
class Decision:
    """What was chosen for a request, for its whole life.

    Attributes:
        profile: chosen.
        reason: exploit, explore; no_gain: sending as it is is fastest; quality: no profile keeps enough of it;
            slo: none is predicted to be in time; cooldown: the fastest one has been too slow too often.
        t_hat: seconds of the transfer by the formula; the corrected prediction is ``expected``.
        expected: ``t_hat`` and what such transfers took longer.
        key: the environment that the observation belongs to: workload, quality bucket, octave of the length, and the
            envelope's optimum.
        context: it was chosen for.
        slowdown, bytes_per_s: that it was chosen with.
    """

    profile: CompressionProfile
    reason: Reason
    t_hat: float
    expected: float
    key: tuple[str, int, int, str]
    context: TransferContext
    slowdown: float
    bytes_per_s: float


@dataclass(frozen=True)
class Transferred:
    """What a transfer took.

    Attributes:
        compress_s, send_s, restore_s: seconds of the stages.
        sent_bytes: of whole frames.
        wall_s: from begin to end, where stages overlap; None where they come one after the other.
    """

    compress_s: float
    send_s: float
    restore_s: float
    sent_bytes: int
    wall_s: float | None = None

    @property
    def seconds(self) -> float:
        """From begin to end."""
        return self.compress_s + self.send_s + self.restore_s if self.wall_s is None else self.wall_s


class BandwidthEstimate:
    """Goodput, as a moving geometric mean; small payloads, whose time is latency, are counted apart.

    Args:
        bytes_per_s: assumed before the first transfer.
        alpha: weight of the newest transfer; 0 keeps what was assumed.
    """

    def __init__(self, bytes_per_s: float = 1e9, alpha: float = 0.5) -> None:
        if not bytes_per_s > 0 or not 0 <= alpha <= 1:
            raise BadInput(f"a bandwidth above 0 and a weight in [0, 1]; got {bytes_per_s} and {alpha}")
        self.alpha = alpha
        self._large, self._small, self._seen = math.log(bytes_per_s), math.log(bytes_per_s), False
        self._seen_small = False

    def observe(self, nbytes: int, seconds: float) -> None:
        """One transfer."""
        if nbytes < 1 or not seconds > 0 or self.alpha == 0:
            return
        value = math.log(nbytes / seconds)
        if nbytes < SMALL_BYTES:
            self._small += (self.alpha if self._seen_small else 1.0) * (value - self._small)
            self._seen_small = True
        else:
            self._large += (self.alpha if self._seen else 1.0) * (value - self._large)
            self._seen = True

    def value(self, nbytes: int) -> float:
        """Bytes a second for a payload of that size."""
        small = nbytes < SMALL_BYTES and self._seen_small
        return math.exp(self._small if small or (self._seen_small and not self._seen) else self._large)


@dataclass
class _Record:
    """Of a profile in an environment: residual, and whether its last uses were late."""

    residual: float = 0.0
    late: deque[bool] = field(default_factory=deque)
    out_until: int = 0


class CompressionController:
    """Chooses a profile for each request and learns from what it took.

    Args:
        profiles: by workload, or those for every workload.
        epsilon: share of decisions that try a neighbour of the optimum.
        explore_within: of the fastest prediction; a neighbour that is predicted slower than so many times that is not
            tried, since no likely residual would make it the right one.
        alpha: weight of the newest residual.
        neighbours: candidates beside the optimum, on either side.
        violations, window, rest: a profile that missed the limit ``violations`` times in its last ``window`` uses is
            out for ``rest`` decisions of that environment.
        learn: whether residuals and the codecs' speed are learnt; off for a comparison.
        use_lower_quality: whether the low end of a quality's interval must satisfy a request, and not its estimate.
        default: id of the profile where none is predicted in time; the one predicted fastest where None.
        bytes_per_s: assumed before the first transfer.
        bandwidth_alpha: weight of the newest transfer's goodput; 0 keeps what was assumed.
        seed: of the explorations.

    Raises:
        BadInput: settings out of range, or a default that does not exist.
    """

    def __init__(
        self,
        profiles: ProfileSet | Sequence[CompressionProfile],
        *,
        epsilon: float = 0.05,
        explore_within: float = 1.5,
        alpha: float = 0.3,
        neighbours: int = 1,
        violations: int = 3,
        window: int = 10,
        rest: int = 8,
        learn: bool = True,
        use_lower_quality: bool = False,
        default: str | None = None,
        bytes_per_s: float = 1e9,
        bandwidth_alpha: float = 0.5,
        seed: int = 0,
    ) -> None:
        if not isinstance(profiles, ProfileSet):
            profiles = ProfileSet("", "", {UNIFIED: tuple(profiles)})
        if not 0 <= epsilon <= 1 or not 0 < alpha <= 1 or neighbours < 0:
            raise BadInput(f"epsilon in [0, 1], alpha in (0, 1], neighbours >= 0; got {epsilon}, {alpha}, {neighbours}")
        if not explore_within >= 1:
            raise BadInput(f"explore_within is 1 or more times the fastest prediction; got {explore_within}")
        if not 1 <= violations <= window or rest < 0:
            raise BadInput(f"1 <= violations <= window and rest >= 0; got {violations}, {window}, {rest}")
        known = {each.id for found in profiles.workloads.values() for each in found} | {NO_COMPRESSION.id}
        if default is not None and default not in known:
            raise BadInput(f"the default profile is one of {', '.join(sorted(known))}; got {default!r}")
        self.profiles, self.epsilon, self.alpha, self.neighbours = profiles, epsilon, alpha, neighbours
        self.explore_within = explore_within
        self.violations, self.window, self.rest, self.learn = violations, window, rest, learn
        self.use_lower_quality, self.default = use_lower_quality, default
        self.bandwidth = BandwidthEstimate(bytes_per_s, bandwidth_alpha)
        self.slowdown = 1.0
        self.chosen: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self._records: dict[tuple[tuple[str, int, int, str], str], _Record] = {}
        self._decisions: Counter[tuple[str, int, int, str]] = Counter()
        self._envelopes: dict[tuple[str, float, int, float], tuple[Envelope, dict[str, CompressionProfile]]] = {}
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def select(self, context: TransferContext) -> Decision:
        """The profile for a request."""
        with self._lock:
            decision = self._select(context)
            self.chosen[decision.profile.id] += 1
            self.reasons[decision.reason] += 1
            return decision

    def observe(self, decision: Decision, taken: Transferred | float) -> None:
        """What the transfer took: by stages, or seconds in all."""
        with self._lock:
            if isinstance(taken, Transferred):
                self.bandwidth.observe(taken.sent_bytes, taken.send_s)
            seconds = taken.seconds if isinstance(taken, Transferred) else float(taken)
            record = self._record(decision.key, decision.profile.id)
            record.late.append(seconds > decision.context.slo_s)
            while len(record.late) > self.window:
                record.late.popleft()
            if sum(record.late) >= self.violations:
                record.out_until = self._decisions[decision.key] + self.rest
                record.late.clear()
            if not self.learn:
                return
            if isinstance(taken, Transferred) and decision.profile.id != NO_COMPRESSION.id:
                self._learn_speed(decision, taken)
            record.residual += self.alpha * (seconds - self._explained(decision, taken) - record.residual)

    def _explained(self, decision: Decision, taken: Transferred | float) -> float:
        """What the formula gives for this transfer.

        Where the stages are known, by this transfer's own goodput and the slowdown learnt so far: both have estimates
        of their own, and an error of those would otherwise be blamed on whichever profile was in use.
        """
        if not isinstance(taken, Transferred) or not taken.send_s > 0 or taken.sent_bytes < 1:
            return decision.t_hat
        context = decision.context
        goodput = taken.sent_bytes / taken.send_s
        return decision.profile.seconds(context.nbytes, context.tokens, goodput, self.slowdown)

    def failed(self, decision: Decision | None, reason: str) -> None:
        """A frame that could not be used; the prompt is computed by the receiver."""
        with self._lock:
            self.failures[reason] += 1
            if decision is not None:
                record = self._record(decision.key, decision.profile.id)
                record.late.append(True)

    def envelope(self, context: TransferContext) -> Envelope:
        """The envelope that a request is decided by."""
        with self._lock:
            return self._envelope(context)[0]

    def _learn_speed(self, decision: Decision, taken: Transferred) -> None:
        context, profile = decision.context, decision.profile
        usual = profile.compress_seconds(context.nbytes, context.tokens)
        usual += profile.restore_seconds(context.nbytes, context.tokens)
        spent = taken.compress_s + taken.restore_s
        if usual > 0 and spent > 0:
            self.slowdown *= (spent / usual / self.slowdown) ** self.alpha

    def _select(self, context: TransferContext) -> Decision:
        bandwidth = context.bytes_per_s or self.bandwidth.value(context.nbytes)
        envelope, allowed = self._envelope(context)
        slowdown = self._slowdown()
        interval = envelope.interval(bandwidth)
        # an interval is named by its optimum: its number changes when the envelope does
        label = self._label(context)
        key = (label, _bucket(context.min_quality), _octave(context.tokens), envelope.ids[interval])
        self._decisions[key] += 1
        now = self._decisions[key]
        order = envelope.ids[max(0, interval - self.neighbours) : interval + self.neighbours + 1]
        best = envelope.ids[interval]

        def predicted(name: str) -> float:
            return allowed[name].seconds(context.nbytes, context.tokens, bandwidth, slowdown)

        def made(name: str, reason: Reason) -> Decision:
            residual = self._record(key, name).residual
            t_hat = predicted(name)
            return Decision(allowed[name], reason, t_hat, t_hat + residual, key, context, slowdown, bandwidth)

        resting = {name for name in order if self._record(key, name).out_until >= now}
        candidates = [name for name in order if name not in resting and predicted(name) <= context.slo_s]
        if not candidates:
            rested = [name for name in envelope.ids if name not in resting]
            fastest = min(rested or envelope.ids, key=predicted)
            default = self.default if self.default in allowed else None
            return made(default or fastest, "slo" if predicted(fastest) > context.slo_s else "cooldown")
        if len(candidates) > 1 and self._random.random() < self.epsilon:
            enough = self.explore_within * min(map(predicted, candidates))
            return made(self._random.choice([name for name in candidates if predicted(name) <= enough]), "explore")
        chosen = min(candidates, key=lambda name: predicted(name) + self._record(key, name).residual)
        if best in resting:
            return made(chosen, "cooldown")
        if chosen != NO_COMPRESSION.id:
            return made(chosen, "exploit")
        offered = self.profiles.profiles(context.workload)
        return made(chosen, "quality" if len(allowed) == 1 and len(offered) > 0 else "no_gain")

    def _label(self, context: TransferContext) -> str:
        """Of the profiles that hold for a request; labels that nobody knows share one, and its records."""
        return context.workload if context.workload in self.profiles.workloads else UNIFIED

    def _slowdown(self) -> float:
        """In steps of a tenth, so that envelopes can be kept."""
        return round(self.slowdown, 1) or 0.1 if self.learn else 1.0

    def _envelope(self, context: TransferContext) -> tuple[Envelope, dict[str, CompressionProfile]]:
        octave, slowdown = _octave(context.tokens), self._slowdown()
        label = self._label(context)
        key = (label, context.min_quality, octave, slowdown)
        if key not in self._envelopes:
            if len(self._envelopes) > 4096:
                self._envelopes.clear()
            allowed = {
                each.id: each
                for each in self.profiles.profiles(label)
                if (each.quality_low if self.use_lower_quality else each.quality) >= context.min_quality
            }
            allowed = {NO_COMPRESSION.id: NO_COMPRESSION, **allowed}
            breaks, ids = lower_envelope(list(allowed.values()), 2**octave, slowdown)
            self._envelopes[key] = Envelope(breaks, ids), allowed
        return self._envelopes[key]

    def _record(self, key: tuple[str, int, int, str], name: str) -> _Record:
        return self._records.setdefault((key, name), _Record())


def _bucket(min_quality: float) -> int:
    return sum(min_quality >= edge for edge in BUCKETS)


def _octave(tokens: int) -> int:
    return round(math.log2(max(1, tokens)))
