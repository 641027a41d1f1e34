"""What a run showed: rates, latencies with intervals, and failures apart from both.

Rates count successful requests alone; latencies too. A quantile comes with an interval from order statistics, which
assumes nothing about the distribution; where the sample is too small to bound it, that end is infinite.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import special

from heliograph.errors import BadInput
from heliograph.serving.load.drive import LoadRun
from heliograph.serving.load.record import RequestRecord

__all__ = ["LoadSummary", "Quantile", "latencies_are_alike", "quantile", "summarise"]

SHARES = (0.5, 0.95, 0.99)
LEVEL = 0.95


@dataclass(frozen=True)
class Quantile:
    """A quantile with its interval.

    Attributes:
        share: which one, for example 0.99.
        value, low, high: in the unit of the sample; an end that the sample cannot bound is infinite.
        count: observations behind it.
    """

    share: float
    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class LoadSummary:
    """One run in numbers; times in seconds, rates a second.

    Attributes:
        requests, succeeded: how many. failures: number by kind.
        loop, concurrency, duration_s: how they were sent.
        request_rate, input_token_rate, output_token_rate, total_token_rate: of successful requests; the total hides how
            much of it was only read. image_token_rate: NaN where the server does not say.
        output_tokens: of the successful ones together.
        ttft_s, tpot_s, itl_s, latency_s: quantiles at 0.5, 0.95 and 0.99; empty where nothing was observed.
        cached_share: prompt tokens from the server's prefix cache; NaN where it does not say.
        client_share: processor share of the client; late_s: the client's largest delay in sending.
        refused: honest refusals among the failures.
    """

    requests: int
    succeeded: int
    failures: tuple[tuple[str, int], ...]
    loop: str
    concurrency: int
    duration_s: float
    request_rate: float
    input_token_rate: float
    output_token_rate: float
    total_token_rate: float
    image_token_rate: float
    output_tokens: int
    ttft_s: tuple[Quantile, ...]
    tpot_s: tuple[Quantile, ...]
    itl_s: tuple[Quantile, ...]
    latency_s: tuple[Quantile, ...]
    cached_share: float
    client_share: float
    late_s: float
    refused: int

    @property
    def success_share(self) -> float:
        """Successful over all requests."""
        return self.succeeded / self.requests if self.requests else math.nan

    def at(self, name: str, share: float) -> float:
        """The quantile ``share`` of ``ttft_s``, ``tpot_s``, ``itl_s`` or ``latency_s``; NaN where none was observed."""
        found = [q.value for q in getattr(self, name) if q.share == share]
        return found[0] if found else math.nan

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is not finite becomes null."""
        return _finite(asdict(self))  # type: ignore[no-any-return]


def summarise(run: LoadRun) -> LoadSummary:
    """Reduces a run to numbers.

    Raises:
        BadInput: the run has no request.
    """
    if not run.records:
        raise BadInput("a run without requests has nothing to summarise")
    good = [record for record in run.records if record.ok]
    seconds = run.duration_s if run.duration_s > 0 else math.nan
    prompts = sum(record.prompt_tokens for record in good)
    outputs = sum(record.output_tokens for record in good)
    images = [record.image_tokens for record in good if record.image_tokens >= 0]
    known = [record for record in good if record.cached_tokens >= 0 and record.prompt_tokens]
    return LoadSummary(
        requests=len(run.records),
        succeeded=len(good),
        failures=tuple(sorted(Counter(record.failure for record in run.records if not record.ok).items())),
        loop=run.loop,
        concurrency=run.concurrency,
        duration_s=run.duration_s,
        request_rate=len(good) / seconds,
        input_token_rate=prompts / seconds,
        output_token_rate=outputs / seconds,
        total_token_rate=(prompts + outputs) / seconds,
        image_token_rate=sum(images) / seconds if images else math.nan,
        output_tokens=outputs,
        ttft_s=_quantiles(record.ttft_s for record in good),
        tpot_s=_quantiles(record.tpot_s for record in good),
        itl_s=_quantiles(gap for record in good for gap in record.itl_s()),
        latency_s=_quantiles(record.latency_s for record in good),
        cached_share=sum(r.cached_tokens for r in known) / sum(r.prompt_tokens for r in known) if known else math.nan,
        client_share=run.client_share,
        late_s=run.late_s,
        refused=sum(record.failure == "refused" for record in run.records),
    )


def quantile(sample: Sequence[float], share: float, level: float = LEVEL) -> Quantile:
    """A quantile with its interval from order statistics (binomial counts of values below it).

    Raises:
        BadInput: an empty sample, or a share or level outside (0, 1).
    """
    if not len(sample) or not 0 < share < 1 or not 0 < level < 1:
        raise BadInput(f"a quantile needs values, and a share and level in (0, 1); got {len(sample)}, {share}, {level}")
    ordered = np.sort(np.asarray(sample, dtype=float))
    count = len(ordered)
    tail = (1 - level) / 2
    below = special.bdtr(np.arange(count), count, share)  # chance of at most k values below the quantile
    low = int(np.searchsorted(below, tail, side="right"))  # the low-th smallest lies below it with 1 - tail or more
    high = int(np.searchsorted(below, 1 - tail, side="left")) + 1
    return Quantile(
        share,
        float(np.quantile(ordered, share, method="inverted_cdf")),
        float(ordered[low - 1]) if low >= 1 else -math.inf,
        float(ordered[high - 1]) if high <= count else math.inf,
        count,
    )


def latencies_are_alike(runs: Sequence[LoadRun], level: float = LEVEL) -> bool:
    """Whether latencies of these runs may be pooled: Kruskal and Wallis' test does not tell the runs apart.

    Requests of one run depend on each other, so the test separates runs too readily: a refusal to pool is cautious.
    """
    rows = [[record.latency_s for record in run.records if record.ok] for run in runs]
    if len(rows) < 2 or min(map(len, rows)) < 2:
        return len(rows) == 1
    if len({value for row in rows for value in row}) == 1:
        return True
    from scipy import stats

    return bool(stats.kruskal(*rows).pvalue >= 1 - level)


def pooled_latency(runs: Sequence[LoadRun]) -> tuple[Quantile, ...]:
    """Latency quantiles over all runs; empty where :func:`latencies_are_alike` says that they differ."""
    return _quantiles(r.latency_s for run in runs for r in _good(run)) if latencies_are_alike(runs) else ()


def _good(run: LoadRun) -> list[RequestRecord]:
    return [record for record in run.records if record.ok]


def _quantiles(values: Iterable[float | None]) -> tuple[Quantile, ...]:
    sample = [value for value in values if value is not None]
    return tuple(quantile(sample, share) for share in SHARES) if sample else ()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
