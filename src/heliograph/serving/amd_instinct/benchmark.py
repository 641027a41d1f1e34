"""A load benchmark in phases, with repeats, intervals and status rules, against any OpenAI-compatible server.

Phases, levels and status rules follow arXiv:2603.10031 and its public deployment guide; the statistics are ours: every
level is run several times, means come with Student's interval, and percentiles are pooled over runs only where the runs
are alike. Each run has prompts that no earlier run had, so that no prefix cache is measured unless that is wanted.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal

from heliograph.errors import BadInput, HeliographError
from heliograph.serving.amd_instinct.capacity import saturation_point
from heliograph.serving.load.client import CompletionClient
from heliograph.serving.load.compare import Comparison, coefficient_of_variation, compare_runs
from heliograph.serving.load.drive import LoadRun, run_closed_loop, run_open_loop
from heliograph.serving.load.launch import echo_command, free_port, launch_server
from heliograph.serving.load.prompts import make_requests
from heliograph.serving.load.summary import LoadSummary, Quantile, pooled_latency, summarise
from heliograph.statistics import Interval, paired_t
from heliograph.workload.arrivals import arrival_times

__all__ = ["LEVELS", "BenchmarkReport", "LevelRow", "LoadBenchmark", "LoadPhase", "LoadStatus", "status_of"]

LEVELS = (10, 25, 50, 100, 250, 500, 750, 1000)
MODES = {"quick": 0.5, "standard": 1.0, "thorough": 3.0}
HEADROOM = 10.0


class LoadPhase(Enum):
    """What a run is for."""

    WARMUP = "warm-up"
    BASELINE = "baseline"
    SCALING = "scaling"
    STRESS = "stress"
    SATURATION = "saturation"


class LoadStatus(Enum):
    """How a level went, the worst first."""

    FAILING = "failing"
    SATURATED = "saturated"
    DEGRADED = "degraded"
    OK = "ok"


class NoBaseline(HeliographError):
    """No request of the baseline succeeded; the message holds the first failure."""

    exit_code = 1


def status_of(
    success_share: float, rate: float, p99_s: float, baseline_p99_s: float, previous_rate: float | None
) -> LoadStatus:
    """The guide's rules: failing below 95 % success, saturated below 1.05 x the previous level's rate, degraded above
    twice the baseline's 99th percentile."""
    if success_share < 0.95:
        return LoadStatus.FAILING
    if previous_rate is not None and rate < 1.05 * previous_rate:
        return LoadStatus.SATURATED
    return LoadStatus.DEGRADED if p99_s > 2 * baseline_p99_s else LoadStatus.OK


@dataclass(frozen=True)
class LevelRow:
    """All runs of one level.

    Attributes:
        phase: of the level. concurrency: of the closed loop, or 0; arrival_rate: of the open loop, or 0.
        prompt, output: tokens of a request.
        runs: one summary each.
        status: by the rules.
        latency_s: pooled quantiles; empty where runs differ too much to be pooled.
        output_rate: mean of the runs with its interval; None for one run.
    """

    phase: LoadPhase
    concurrency: int
    arrival_rate: float
    prompt: int
    output: int
    runs: tuple[LoadSummary, ...]
    status: LoadStatus
    latency_s: tuple[Quantile, ...] = ()
    output_rate: Interval | None = None

    @property
    def rates(self) -> tuple[float, ...]:
        """Output tokens a second of each run."""
        return tuple(run.output_token_rate for run in self.runs)

    @property
    def rate(self) -> float:
        """Their mean."""
        return sum(self.rates) / len(self.rates)

    @property
    def variation(self) -> float:
        """Their coefficient of variation; NaN for one run."""
        return coefficient_of_variation(self.rates) if len(self.rates) > 1 and self.rate > 0 else math.nan

    @property
    def success_share(self) -> float:
        """Successful over all requests of all runs."""
        return sum(run.succeeded for run in self.runs) / sum(run.requests for run in self.runs)


@dataclass(frozen=True)
class BenchmarkReport:
    """Levels with their runs, and what bounds the numbers.

    Attributes:
        url, model: of the server. loop: closed or open.
        rows: in the order in which they ran.
        client_rate: output tokens a second that this client reaches against a server that answers at once; NaN if not
            measured.
        notes: what a reader must know.
    """

    url: str
    model: str
    loop: str
    rows: tuple[LevelRow, ...]
    client_rate: float = math.nan
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def saturation(self) -> float:
        """The measured point of saturation over the scaling levels; infinite where the curve does not bend."""
        return saturation_point([(row.concurrency, row.rate) for row in self.scaling()])

    @property
    def headroom(self) -> float:
        """The client's own rate over the highest measured; below 10 the client may be part of what is measured."""
        best = max((row.rate for row in self.rows), default=math.nan)
        return self.client_rate / best if best > 0 else math.nan

    def scaling(self) -> tuple[LevelRow, ...]:
        """The rows of the scaling phase."""
        return tuple(row for row in self.rows if row.phase is LoadPhase.SCALING)

    def table(self) -> str:
        """The report as text; percentiles with their intervals."""
        head = f"{self.model} at {self.url}, {self.loop} loop"
        columns = f"{'phase':<11} {'load':>6} {'out tok/s':>18} {'CoV':>6} {'in tok/s':>9} {'req/s':>7} "
        columns += f"{'TTFT p50':>9} {'TPOT p50':>9} {'latency p50 / p99 [interval]':>34} {'success':>8} status"
        lines = [head, columns]
        lines += [_line(row) for row in self.rows]
        if math.isfinite(self.client_rate):
            lines.append(f"client alone: {self.client_rate:,.0f} tok/s, {self.headroom:.1f} times the highest rate")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def compare(self, other: BenchmarkReport | Path | str) -> dict[int, Comparison]:
        """By concurrency, the other report's output rates against this one's.

        Raises:
            BadInput: no level in common with two runs or more of each.
        """
        theirs = other if isinstance(other, BenchmarkReport) else load_report(other)
        second = {row.concurrency: row for row in theirs.scaling()}
        both = {
            row.concurrency: compare_runs(row.rates, second[row.concurrency].rates)
            for row in self.scaling()
            if row.concurrency in second and min(len(row.runs), len(second[row.concurrency].runs)) > 1
        }
        if not both:
            raise BadInput("the reports share no level with two runs or more of each")
        return both

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rows = []
        for row in self.rows:
            rows.append(
                {
                    "phase": row.phase.value,
                    "concurrency": row.concurrency,
                    "arrival_rate": row.arrival_rate,
                    "prompt": row.prompt,
                    "output": row.output,
                    "status": row.status.value,
                    "output_rates": list(row.rates),
                    "runs": [run.to_json() for run in row.runs],
                }
            )
        client = self.client_rate if math.isfinite(self.client_rate) else None
        return {
            "heliograph_benchmark": 1,
            "url": self.url,
            "model": self.model,
            "loop": self.loop,
            "client_rate": client,
            "notes": list(self.notes),
            "settings": self.settings,
            "rows": rows,
        }

    def save(self, path: Path | str) -> None:
        """Writes the report as JSON; :func:`load_report` reads it."""
        Path(path).write_text(json.dumps(self.to_json(), indent=1), encoding="utf-8")


@dataclass(frozen=True)
class _Closed:
    """What a closed-loop benchmark runs."""

    levels: tuple[int, ...]
    isl: int
    osl: int
    runs: int
    scale: float
    each: int | None
    ramp_s: float

    def count(self, level: int) -> int:
        """Requests of one run of this level."""
        return max(level, round(self.scale * (self.each or max(8, 2 * level))))


class LoadBenchmark:
    """Measures one server.

    Args:
        url, model: of the server; its first model where empty.
        endpoint: "completions" sends token ids of exact length, "chat" words.
        vocabulary: of the model, for token ids.
        seed: of prompts; every run has its own.
        warm_prefix_tokens: first tokens that all prompts of a run share: measures a warm prefix cache on purpose.
        timeout_s: of one request.
        say: hears of progress.
    """

    def __init__(
        self,
        url: str,
        model: str = "",
        *,
        endpoint: Literal["completions", "chat"] = "completions",
        vocabulary: int = 32000,
        seed: int = 0,
        warm_prefix_tokens: int = 0,
        timeout_s: float = 600.0,
        api_key: str = "",
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.url, self.model, self.endpoint = url, model, endpoint
        self.vocabulary, self.seed, self.warm = vocabulary, seed, warm_prefix_tokens
        self.timeout_s, self.api_key, self.say = timeout_s, api_key, say
        self._salt = seed * 1_000_003

    def run(
        self,
        levels: Sequence[int] = LEVELS,
        *,
        isl: int = 512,
        osl: int = 64,
        runs: int = 5,
        mode: Literal["quick", "standard", "thorough"] = "standard",
        requests_per_level: int | None = None,
        ramp_s: float = 0.0,
        stress: Sequence[tuple[int, int]] = (),
        extreme: Sequence[int] = (),
        validate_client: bool = True,
    ) -> BenchmarkReport:
        """All phases, closed loop.

        Args:
            levels: concurrencies of the scaling phase.
            isl, osl: prompt and output tokens.
            runs: independent ones of each level; levels are visited once a run, in order.
            mode: multiplies the requests of a level by 0.5, 1 or 3.
            requests_per_level: at the mode "standard"; twice the concurrency, 8 or more, where None.
            ramp_s: over which the clients of a level start.
            stress: pairs of prompt and output tokens to try at the middle level.
            extreme: further concurrencies, run once each.
            validate_client: whether the client is measured against a server that answers at once.

        Raises:
            BadInput: sizes out of range. NoBaseline: nothing succeeds at concurrency 1.
        """
        if not levels or min(levels) < 1 or runs < 1 or min(isl, osl) < 1 or mode not in MODES:
            raise BadInput(
                f"need levels, runs and lengths of 1 or more; got {list(levels)}, {runs}, {isl}, {osl}, {mode}"
            )
        plan = _Closed(tuple(sorted(set(levels))), isl, osl, runs, MODES[mode], requests_per_level, ramp_s)
        report = asyncio.run(self._run(plan, stress, extreme))
        return self._with_client(report, max(levels), osl) if validate_client else report

    def run_rates(
        self, rates: Sequence[float], *, isl: int, osl: int, runs: int = 5, requests: int = 100
    ) -> BenchmarkReport:
        """Open loop: Poisson arrivals at each rate a second; latencies count from the intended sending.

        Raises:
            BadInput: a rate that is not positive.
        """
        return asyncio.run(self._run_rates(sorted(set(rates)), isl, osl, runs, requests))

    async def _run(self, plan: _Closed, stress: Sequence[tuple[int, int]], extreme: Sequence[int]) -> BenchmarkReport:
        rows: list[LevelRow] = []
        isl, osl = plan.isl, plan.osl
        async with self._client(max([*plan.levels, *extreme])) as client:
            await self._closed(client, 1, 2, isl, osl)  # warm-up, not kept
            count = max(3, round(4 * plan.scale))
            first = [await self._closed(client, 1, count, isl, osl) for _ in range(plan.runs)]
            baseline = self._row(LoadPhase.BASELINE, 1, 0.0, isl, osl, first, math.inf, None)
            if not any(run.succeeded for run in baseline.runs):
                raise NoBaseline(f"no request succeeds at concurrency 1: {_first_error(first)}")
            p99 = max(run.at("latency_s", 0.99) for run in baseline.runs if run.succeeded)
            rows.append(baseline)
            found = await self._scale(client, plan)
            previous: float | None = None
            for level in plan.levels:
                row = self._row(LoadPhase.SCALING, level, 0.0, isl, osl, found[level], p99, previous)
                previous = row.rate
                rows.append(row)
            middle = plan.levels[len(plan.levels) // 2]
            for prompt, output in stress:
                some = [
                    await self._closed(client, middle, plan.count(middle), prompt, output) for _ in range(plan.runs)
                ]
                rows.append(self._row(LoadPhase.STRESS, middle, 0.0, prompt, output, some, math.inf, None))
            for level in extreme:
                one = [await self._closed(client, level, plan.count(level), isl, osl, max(plan.ramp_s, 1.0))]
                rows.append(self._row(LoadPhase.SATURATION, level, 0.0, isl, osl, one, p99, previous))
            name = client.model
        settings = {"levels": list(plan.levels), "runs": plan.runs, "ramp_s": plan.ramp_s}
        return self._report("closed", name, rows, settings)

    async def _scale(self, client: CompletionClient, plan: _Closed) -> dict[int, list[LoadRun]]:
        """Each run visits all levels, so that a drift meets every level alike."""
        found: dict[int, list[LoadRun]] = {level: [] for level in plan.levels}
        for number in range(plan.runs):
            for level in plan.levels:
                run = await self._closed(client, level, plan.count(level), plan.isl, plan.osl, plan.ramp_s)
                found[level].append(run)
                self.say(f"run {number + 1} of {plan.runs}, concurrency {level}: {_short(run)}")
        return found

    async def _run_rates(self, rates: Sequence[float], isl: int, osl: int, runs: int, requests: int) -> BenchmarkReport:
        rows: list[LevelRow] = []
        async with self._client(1024) as client:
            await self._closed(client, 1, 2, isl, osl)
            first = [await self._closed(client, 1, 3, isl, osl)]
            baseline = self._row(LoadPhase.BASELINE, 1, 0.0, isl, osl, first, math.inf, None)
            if not any(run.succeeded for run in baseline.runs):
                raise NoBaseline(f"no request succeeds at concurrency 1: {_first_error(first)}")
            p99 = baseline.runs[0].at("latency_s", 0.99)
            rows.append(baseline)
            for rate in rates:
                found = []
                for number in range(runs):
                    times = arrival_times(requests, rate, seed=self.seed * 1000 + number)
                    found.append(await run_open_loop(client, self._requests(requests, isl, osl), list(times)))
                    self.say(f"run {number + 1} of {runs}, {rate:g} requests/s: {_short(found[-1])}")
                rows.append(self._row(LoadPhase.SCALING, 0, rate, isl, osl, found, p99, None))
            name = client.model
        return self._report("open", name, rows, {"rates": list(rates), "runs": runs})

    def _client(self, connections: int) -> CompletionClient:
        return CompletionClient(
            self.url,
            self.model,
            endpoint=self.endpoint,
            connections=connections,
            timeout_s=self.timeout_s,
            api_key=self.api_key,
        )

    def _requests(self, count: int, isl: int, osl: int) -> Iterable[Any]:
        self._salt += 1
        return make_requests(
            count,
            prompt_tokens=isl,
            output_tokens=osl,
            salt=self._salt,
            vocabulary=self.vocabulary,
            form="text" if self.endpoint == "chat" else "tokens",
            shared_prefix_tokens=min(self.warm, isl - 1),
        )

    async def _closed(
        self, client: CompletionClient, level: int, count: int, isl: int, osl: int, ramp_s: float = 0.0
    ) -> LoadRun:
        return await run_closed_loop(client, self._requests(count, isl, osl), level, ramp_s=ramp_s)

    def _with_client(self, report: BenchmarkReport, level: int, osl: int) -> BenchmarkReport:
        """Adds the rate of the same client against a server that answers at once, in a process of its own."""
        port = free_port()
        with launch_server(echo_command(port), port) as server:
            rate = asyncio.run(client_rate(server.url, level, osl))
        report = replace(report, client_rate=rate)
        if report.headroom < HEADROOM:
            more = f"the client alone reaches only {report.headroom:.1f} times the highest rate: it may be the limit"
            report = replace(report, notes=(*report.notes, more))
        return report

    def _row(
        self,
        phase: LoadPhase,
        level: int,
        arrival_rate: float,
        isl: int,
        osl: int,
        runs: Sequence[LoadRun],
        baseline_p99_s: float,
        previous: float | None,
    ) -> LevelRow:
        summaries = tuple(summarise(run) for run in runs)
        pooled = pooled_latency(runs)
        row = LevelRow(phase, level, arrival_rate, isl, osl, summaries, LoadStatus.OK, pooled)
        if len(summaries) > 1:
            row = replace(row, output_rate=paired_t(row.rates))
        p99 = max((s.at("latency_s", 0.99) for s in summaries if s.succeeded), default=math.inf)
        return replace(row, status=status_of(row.success_share, row.rate, p99, baseline_p99_s, previous))

    def _report(self, loop: str, name: str, rows: Sequence[LevelRow], settings: dict[str, Any]) -> BenchmarkReport:
        notes = []
        if loop == "closed":
            notes.append("closed loop: clients wait for a slow server, which hides queues")
        shares = [run.cached_share for row in rows for run in row.runs if not math.isnan(run.cached_share)]
        cached = f"{max(shares):.0%} of prompt tokens at most" if shares else "the server does not say"
        notes.append(f"from the prefix cache: {cached}")
        busy = max(run.client_share for row in rows for run in row.runs)
        notes.append(f"the client used up to {busy:.0%} of one core, on the same machine if the server is local")
        if any(not row.latency_s for row in rows if len(row.runs) > 1):
            notes.append("levels without pooled percentiles: their runs differ too much")
        return BenchmarkReport(self.url, name, loop, tuple(rows), math.nan, tuple(notes), settings)


async def client_rate(url: str, level: int, osl: int) -> float:
    """Output tokens a second that this client reaches against a server at ``url``, with short prompts."""
    async with CompletionClient(url, "echo", connections=level) as client:
        requests = make_requests(max(32, 2 * level), prompt_tokens=16, output_tokens=osl, salt=level, vocabulary=32000)
        return summarise(await run_closed_loop(client, requests, level)).output_token_rate


def load_report(path: Path | str) -> BenchmarkReport:
    """Reads a saved report; only what :meth:`BenchmarkReport.compare` and the table's rates need.

    Raises:
        BadInput: unreadable, or no such report.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data.get("heliograph_benchmark") != 1:
            raise ValueError("heliograph_benchmark is not 1")
        rows = tuple(_row_from(row) for row in data["rows"])
        rate = data["client_rate"] if data["client_rate"] is not None else math.nan
        return BenchmarkReport(
            data["url"], data["model"], data["loop"], rows, rate, tuple(data["notes"]), data["settings"]
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} is no benchmark report: {error!r}") from None


def _row_from(row: dict[str, Any]) -> LevelRow:
    runs = []
    for run in row["runs"]:
        values: dict[str, Any] = {key: math.nan if value is None else value for key, value in run.items()}
        for name in ("ttft_s", "tpot_s", "itl_s", "latency_s"):
            values[name] = tuple(_quantile_from(entry) for entry in run[name])
        values["failures"] = tuple((kind, count) for kind, count in run["failures"])
        runs.append(LoadSummary(**values))
    built = LevelRow(
        LoadPhase(row["phase"]),
        row["concurrency"],
        row["arrival_rate"],
        row["prompt"],
        row["output"],
        tuple(runs),
        LoadStatus(row["status"]),
    )
    return replace(built, output_rate=paired_t(built.rates)) if len(runs) > 1 else built


def _quantile_from(entry: dict[str, Any]) -> Quantile:
    low = -math.inf if entry["low"] is None else entry["low"]
    high = math.inf if entry["high"] is None else entry["high"]
    return Quantile(entry["share"], entry["value"], low, high, entry["count"])


def _line(row: LevelRow) -> str:
    load = f"{row.arrival_rate:g}/s" if row.arrival_rate else str(row.concurrency)
    half = (row.output_rate.high - row.output_rate.low) / 2 if row.output_rate else math.nan
    rate = f"{row.rate:,.1f} +- {half:,.1f}" if math.isfinite(half) else f"{row.rate:,.1f}"
    spread = f"{row.variation:.1%}" if math.isfinite(row.variation) else "-"
    first = row.runs[0]
    by_share = {q.share: q for q in row.latency_s}
    if by_share:
        high = by_share[0.99]
        top = f"{high.high:.2f}" if math.isfinite(high.high) else "unbounded"
        latency = f"{by_share[0.5].value:.2f} / {high.value:.2f} [{high.low:.2f}, {top}] s"
    else:
        latency = "runs differ"
    return (
        f"{row.phase.value:<11} {load:>6} {rate:>18} {spread:>6} {first.input_token_rate:>9,.0f} "
        f"{first.request_rate:>7.2f} {first.at('ttft_s', 0.5):>8.3f}s {1000 * first.at('tpot_s', 0.5):>7.1f}ms "
        f"{latency:>34} {row.success_share:>8.1%} {row.status.value}"
    )


def _short(run: LoadRun) -> str:
    summary = summarise(run)
    return f"{summary.output_token_rate:,.1f} tok/s, {summary.success_share:.0%} of {summary.requests} succeeded"


def _first_error(runs: Sequence[LoadRun]) -> str:
    return next((record.error for run in runs for record in run.records if record.error), "no reason given")
