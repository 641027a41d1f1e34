"""How many requests a second a remote prefill cluster and a local prefill and decode cluster serve together.

With a threshold t on uncached prompt length L, p = P(L > t) and the mean lengths on both sides (arXiv:2604.15039,
throughput model):

.. math::
   \\Theta_{remote} = \\min(N_r / T_r(l_{long}),\\; B_{out} / S_{kv}(l_{long})), \\quad
   \\Theta_{local} = N_p / T_l(l_{short}), \\quad \\Theta_{decode} = N_d\\, BS_{max} / (T_{decode} L_{out})

   \\Lambda_{max} = \\min(\\Theta_{remote} / p,\\; \\Theta_{local} / (1 - p),\\; \\Theta_{decode})
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from heliograph.errors import BadInput
from heliograph.serving.prfaas.profile import PrefillProfile

__all__ = ["CASE_LENGTHS", "CASE_PROFILE", "EmpiricalLengths", "Lengths", "Plan", "PrefillServiceModel", "case_study"]

Stage = Literal["remote prefill", "link", "local prefill", "decode"]
GIGABIT = 1e9 / 8
STEP_TOKENS = 100

CASE_PROFILE = {1024: (190.8, 0.44), 8192: (308.9, 0.72), 32768: (701.3, 1.84), 131072: (2316.3, 7.40)}
"""The paper's profile of its model on one instance of eight devices: tokens to (MiB, seconds)."""
CASE_LENGTHS = (9.90, 1.0, 128, 131072)
"""Its log-normal prompt lengths: mu, sigma, shortest, longest."""


class Lengths(Protocol):
    """A distribution of uncached prompt lengths: measured ones, or :class:`~heliograph.workload.LogNormalLengths`."""

    def mean(self) -> float:
        """Mean length."""
        ...

    def share_above(self, tokens: float) -> float:
        """Chance of a longer one."""
        ...

    def mean_between(self, low: float, high: float) -> float:
        """Mean of those above ``low`` and up to ``high``."""
        ...


class EmpiricalLengths:
    """Lengths as they were seen.

    Raises:
        BadInput: no lengths, or one below 0.
    """

    def __init__(self, samples: Sequence[float] | NDArray[Any]) -> None:
        values = np.sort(np.asarray(samples, dtype=np.float64).reshape(-1))
        if not len(values) or not np.isfinite(values).all() or values[0] < 0:
            raise BadInput(
                f"a distribution of lengths needs one or more, each 0 or more; got {len(values)} lengths"
                + (f" from {values[0]} to {values[-1]}" if len(values) else ": is the trace empty?")
            )
        self.values = values
        self._sums = np.concatenate([[0.0], np.cumsum(values)])

    @property
    def low(self) -> float:
        """The shortest."""
        return float(self.values[0])

    @property
    def high(self) -> float:
        """The longest."""
        return float(self.values[-1])

    def mean(self) -> float:
        """Mean length."""
        return float(self._sums[-1] / len(self.values))

    def share_above(self, tokens: float) -> float:
        """Share of longer ones."""
        return float(1 - np.searchsorted(self.values, tokens, side="right") / len(self.values))

    def mean_between(self, low: float, high: float) -> float:
        """Mean of those above ``low`` and up to ``high``.

        Raises:
            BadInput: there are none.
        """
        first, last = np.searchsorted(self.values, [low, high], side="right")
        if last <= first:
            raise BadInput(f"no length lies above {low} and up to {high}")
        return float((self._sums[last] - self._sums[first]) / (last - first))


@dataclass(frozen=True)
class Plan:
    """A threshold and a split of the local cluster, and what the model expects of them.

    Attributes:
        t: tokens; longer uncached prompts are computed remotely. inf keeps all local, 0 sends all away, and NaN says
            that length does not decide.
        n_p, n_d: local instances that compute prompts, and that decode.
        n_remote: remote instances in use.
        p: share of requests that leave.
        long_tokens, short_tokens: mean lengths of both sides; 0 where a side has none.
        remote_rate, local_rate, decode_rate: requests a second that each stage could serve of its own kind.
        rate: requests a second of the whole.
        bottleneck: the stage that limits it.
        egress_gbps: average traffic between the clusters at ``rate``.
    """

    t: float
    n_p: int
    n_d: int
    n_remote: int
    p: float
    long_tokens: float
    short_tokens: float
    remote_rate: float
    local_rate: float
    decode_rate: float
    rate: float
    bottleneck: Stage
    egress_gbps: float

    def to_json(self) -> dict[str, Any]:
        """As plain data; what is infinite, or no number, becomes None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class _Sides:
    """A threshold's two sides: share that leaves, mean lengths, seconds and bytes of a prompt of that length."""

    t: float
    p: float
    long: float
    short: float
    remote_s: float
    kv: float
    local_s: float


@dataclass(frozen=True)
class PrefillServiceModel:
    """Two clusters and the link between them.

    Attributes:
        remote, local: profiles of one prefill instance in each; bytes matter in the remote one.
        n_remote, n_local: instances.
        egress_gbps: of the link, 1e9 bits a second; 0 where there is none.
        decode_tok_s: tokens a second of one decode instance at its largest batch, BS_max / T_decode.
        out_len: mean tokens of an answer.
        decode_batch: BS_max, the answers that one instance decodes at once.
        kv_ratio: original over sent bytes, where caches are compressed on the way.
    """

    remote: PrefillProfile
    local: PrefillProfile
    n_remote: int
    n_local: int
    egress_gbps: float
    decode_tok_s: float
    out_len: float
    decode_batch: int = 32
    kv_ratio: float = 1.0

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be."""
        if self.n_remote < 0 or self.n_local < 1 or not self.egress_gbps >= 0:
            raise BadInput(
                f"need local instances, and remote ones and a link of 0 or more; got {self.n_local}, {self.n_remote} "
                f"and {self.egress_gbps} Gbit/s"
            )
        if not (self.decode_tok_s > 0 and self.out_len >= 1 and self.decode_batch >= 1 and self.kv_ratio > 0):
            raise BadInput(
                "need decode_tok_s, out_len, decode_batch and kv_ratio above 0; got "
                f"{self.decode_tok_s}, {self.out_len}, {self.decode_batch}, {self.kv_ratio}"
            )

    @property
    def decode_step_s(self) -> float:
        """T_decode: seconds of a step at the largest batch."""
        return self.decode_batch / self.decode_tok_s

    def at(self, lengths: Lengths, t: float, n_p: int) -> Plan:
        """What the model expects of a threshold and a split.

        Raises:
            BadInput: more local prefill instances than there are, or a threshold below 0.
        """
        if not 0 <= n_p <= self.n_local or not t >= 0:
            raise BadInput(
                f"need a threshold of 0 or more and 0 to {self.n_local} prefill instances; got {t} and {n_p}"
            )
        return self._plan(self._sides(lengths, t), n_p)

    def _sides(self, lengths: Lengths, t: float) -> _Sides:
        p, long, short = _split(lengths, t)
        return _Sides(
            float(t), p, long, short,
            self.remote.seconds(long) if p else math.inf,
            self.remote.kv_bytes(long) if p else 0.0,
            self.local.seconds(short) if p < 1 else math.inf,
        )  # fmt: skip

    def _plan(self, sides: _Sides, n_p: int) -> Plan:
        p, n_d = sides.p, self.n_local - n_p
        link = self.egress_gbps * GIGABIT * self.kv_ratio
        compute = self.n_remote / sides.remote_s if p else math.inf
        wire = link / sides.kv if sides.kv else math.inf
        remote = min(compute, wire)
        local = n_p / sides.local_s if p < 1 else math.inf
        decode = n_d * self.decode_tok_s / self.out_len
        limits: list[tuple[float, Stage]] = [
            (remote / p if p else math.inf, "link" if wire < compute else "remote prefill"),
            (local / (1 - p) if p < 1 else math.inf, "local prefill"),
            (decode, "decode"),
        ]
        rate, stage = min(limits, key=lambda pair: pair[0])
        return Plan(
            sides.t, n_p, n_d, self.n_remote, p, sides.long, sides.short, remote, local, decode, rate, stage,
            rate * p * sides.kv / self.kv_ratio / GIGABIT,
        )  # fmt: skip

    def optimise(self, lengths: Lengths, *, n_p: int | None = None, step_tokens: int = STEP_TOKENS) -> Plan:
        """The threshold and split of the highest rate; of equals the one that sends least.

        Both prefill sides saturate together at the best threshold, and one falls while the other grows with it, so that
        a grid finds it.

        Args:
            lengths: of uncached prompts.
            n_p: keeps the split and searches for the threshold only.
            step_tokens: of the grid.
        """
        if step_tokens < 1:
            raise BadInput(f"a grid has steps of one token or more; got {step_tokens}")
        low, high = float(getattr(lengths, "low", 0)), float(getattr(lengths, "high", 2**20))
        steps = max(1, math.ceil((high - low) / step_tokens))
        if steps > 20_000:
            step_tokens = math.ceil((high - low) / 20_000)
        first = int(low // step_tokens) * step_tokens
        grid = [0.0, *np.arange(max(first, step_tokens), high, step_tokens).tolist(), math.inf]
        splits = range(self.n_local + 1) if n_p is None else (n_p,)
        if n_p is not None:
            self.at(lengths, math.inf, n_p)  # refuses a split that cannot be
        found = (self._plan(sides, split) for sides in (self._sides(lengths, t) for t in grid) for split in splits)
        return max(found, key=lambda plan: (round(plan.rate, 9), -plan.egress_gbps))

    def homogeneous(self, lengths: Lengths, *, n_local: int | None = None) -> Plan:
        """Local instances only, at their best split; ``n_local`` for a cluster of another size."""
        size = self.n_local if n_local is None else n_local
        alone = replace(self, n_remote=0, n_local=size, egress_gbps=0.0)
        return max((alone.at(lengths, math.inf, n_p) for n_p in range(size + 1)), key=lambda plan: plan.rate)

    def naive(self, lengths: Lengths) -> Plan:
        """Every prompt computed remotely, every answer decoded locally."""
        return self.at(lengths, 0.0, 0)

    def least_loaded(self, lengths: Lengths) -> Plan:
        """Prompts go wherever fewest wait, whatever their length: both sides fill up; at its best split.

        Both sides see the mean of all lengths, so their rates add up to that of all prefills.
        """
        mean = lengths.mean()
        sizes = self.remote.kv_bytes(mean)
        compute = self.n_remote / self.remote.seconds(mean)
        wire = self.egress_gbps * GIGABIT * self.kv_ratio / sizes if sizes else math.inf
        remote = min(compute, wire)
        plans = []
        for n_p in range(self.n_local + 1):
            local = n_p / self.local.seconds(mean)
            decode = (self.n_local - n_p) * self.decode_tok_s / self.out_len
            rate = min(remote + local, decode)
            p = remote / (remote + local) if remote + local else 0.0
            stage: Stage = "decode" if decode <= remote + local else "link" if wire < compute else "remote prefill"
            plans.append(
                Plan(
                    math.nan, n_p, self.n_local - n_p, self.n_remote, p, mean, mean, remote, local, decode, rate, stage,
                    rate * p * sizes / self.kv_ratio / GIGABIT,
                )
            )  # fmt: skip
        return max(plans, key=lambda plan: plan.rate)


def _split(lengths: Lengths, t: float) -> tuple[float, float, float]:
    """Share above t, mean length above, mean length up to t."""
    p = lengths.share_above(t)
    long = lengths.mean_between(t, math.inf) if p > 0 else 0.0
    short = lengths.mean_between(-1.0 if t == 0 else 0.0, t) if p < 1 else 0.0
    return p, long, short


def case_study() -> PrefillServiceModel:
    """The paper's clusters: 4 remote and 8 local instances of eight devices, 100 Gbit/s between them.

    Seconds of a local prompt and the rate of decoding are derived from the paper's table of rates, which prints
    neither.
    """
    return PrefillServiceModel(
        remote=PrefillProfile.from_points(CASE_PROFILE),
        local=PrefillProfile.linear(0.39, 0.141e-3),
        n_remote=4,
        n_local=8,
        egress_gbps=100,
        decode_tok_s=800,
        out_len=1024,
    )
