"""A comparison: no claims, the user's workload, the same training seconds for every contender and seed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from heliograph.errors import BadInput
from heliograph.statistics import paired_t
from heliograph.trials.check import Contender, Context, Experiment, Size, Workload
from heliograph.trials.plan import Trial
from heliograph.trials.record import TrialRecord

__all__ = ["Comparison", "ComparisonRow", "comparison_rows", "comparison_trials", "parse_budget"]

LEVEL = 0.95
MIN_TRIAL_S = 0.5


@dataclass(frozen=True)
class Comparison:
    """What a family registers: who can be compared, on which tasks, and how one of them is trained and scored.

    Attributes:
        family: the family.
        contenders: by name, with a note.
        tasks: built-in tasks: name to a workload.
        measure: trains ``context.contender`` on ``context.workload`` for ``workload["budget_s"]`` seconds (imports and
            encodings excluded) and returns at least ``quality``, ``parameters`` and ``steps``.
        quality: name, unit and direction of the quality, by task; ``""`` for the rest.
        adopt: turns the user's path, and the name of the target in it, into a workload. It says by the parameters
            ``quality`` and ``direction`` what is scored.
        fits: the contenders that can work on a workload; all where None.
        accepts: which paths ``adopt`` takes, in words.
        preload: modules imported once.
    """

    family: str
    contenders: tuple[Contender, ...]
    tasks: Mapping[str, Workload]
    measure: Callable[[Context], Mapping[str, Any]]
    quality: Mapping[str, tuple[str, Literal["higher", "lower"]]]
    adopt: Callable[[Path, str], Workload] | None = None
    fits: Callable[[Workload], Sequence[str]] | None = None
    accepts: str = ""
    preload: tuple[str, ...] = field(default=())

    def experiment(self, name: str) -> Experiment:
        """The one experiment of a comparison, as trials look it up.

        Raises:
            KeyError: another name.
        """
        if name != "compare":
            raise KeyError(name)
        return Experiment("compare", "equal training seconds", self.contenders, self.measure, {})

    def workload(self, name: str, target: str = "") -> Workload:
        """A built-in task by name, or the user's own path with the name of its target.

        Raises:
            BadInput: neither, or a target for a built-in task.
        """
        if name in self.tasks:
            if target:
                raise BadInput(f"the task {name} has its own target; --target is for your own data")
            return self.tasks[name]
        path = Path(name)
        if path.exists() and self.adopt is not None:
            return self.adopt(path, target)
        close = get_close_matches(name, self.tasks, n=2)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        own = f" or a path to {self.accepts}" if self.adopt else ""
        raise BadInput(f"no task or file {name!r}; {hint}expected one of {', '.join(self.tasks)}{own}")

    def quality_of(self, workload: Workload) -> tuple[str, Literal["higher", "lower"]]:
        """Name and direction of the quality on a workload; the user's own names them itself."""
        if "direction" in workload.params:
            return workload.params["quality"], workload.params["direction"]
        return self.quality.get(workload.name, self.quality[""])

    def contenders_for(self, workload: Workload) -> tuple[str, ...]:
        """The names of those who can work on a workload."""
        fit = None if self.fits is None else set(self.fits(workload))
        return tuple(c.name for c in self.contenders if fit is None or c.name in fit)


def parse_budget(text: str) -> float:
    """Seconds of ``"90"``, ``"90s"``, ``"5min"`` or ``"1h"``.

    Raises:
        BadInput: anything else, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|m|min|h)?\s*", text)
    if not match or float(match[1]) <= 0:
        raise BadInput(f"a budget is a time such as 90s, 5min or 1h; got {text!r}")
    return float(match[1]) * {"m": 60, "min": 60, "h": 3600}.get(match[2] or "s", 1)


def comparison_trials(
    comparison: Comparison,
    ref: str,
    workload: Workload,
    contenders: Sequence[str],
    budget_s: float,
    *,
    seeds: int = 5,
    seed: int = 0,
    match: bool = True,
    device: str = "cpu",
) -> list[Trial]:
    """The trials of a comparison: contenders alternate within a seed, and each has the same training seconds.

    Args:
        comparison: the family's registration.
        ref: ``module:attribute`` of it.
        workload: what to work on.
        contenders: who; the first is the reference of the differences.
        budget_s: training seconds of the whole comparison, shared equally.
        seeds: independent seeds.
        seed: base seed.
        match: whether parameters are matched within 5 % of the first contender's.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        BadInput: unknown or repeated contenders, or less than half a second for each.
    """
    known = [c.name for c in comparison.contenders]
    unknown = [c for c in contenders if c not in known]
    if unknown:
        raise BadInput(f"no contender {unknown[0]!r} in {comparison.family}; choose from {', '.join(known)}")
    fit = comparison.contenders_for(workload)
    if unfit := [c for c in contenders if c not in fit]:
        raise BadInput(f"{unfit[0]} does not take the task {workload.name}; choose from {', '.join(fit)}")
    if len(set(contenders)) != len(contenders) or not contenders:
        raise BadInput(f"name each contender once; got {', '.join(contenders) or 'none'}")
    if seeds < 1:
        raise BadInput(f"--seeds must be 1 or more; got {seeds}")
    each = budget_s / (len(contenders) * seeds)
    if each < MIN_TRIAL_S:
        raise BadInput(
            f"{budget_s:g} s shared by {len(contenders)} contenders and {seeds} seeds is {each:.2f} s each; "
            f"give --budget {len(contenders) * seeds * MIN_TRIAL_S:g}s or more, or fewer seeds"
        )
    load = workload.with_params(budget_s=each, match=contenders[0] if match else "")
    return [
        Trial(
            check=ref,
            id=f"compare/{workload.name}/block{block}/{arm}",
            slug=f"compare-{comparison.family}",
            preset="laptop",
            experiment="compare",
            workload=load,
            block=block,
            seed=seed * 1000 + block,
            contender=arm,
            exclusive=True,  # equal seconds mean little beside a busy neighbour
            repeats=1,
            warmup=0,
            time_limit_s=4 * each + 120,
            memory_limit_bytes=Size((load,), 1).memory_limit_bytes * 4,
            estimate_s=each + 2,
            device=device,
        )
        for block in range(seeds)
        for arm in contenders
    ]


@dataclass(frozen=True)
class ComparisonRow:
    """One contender's result: quality with its interval over seeds, and what it cost."""

    contender: str
    quality: float | None
    low: float | None
    high: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    parameters: int
    steps: float
    train_s: float
    setup_s: float
    peak_mib: float
    seeds: int
    failed: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def comparison_rows(records: Sequence[TrialRecord], contenders: Sequence[str]) -> list[ComparisonRow]:
    """The table: a contender's quality, and its paired difference to the first contender's where both have 2 seeds."""
    by_arm = {
        arm: {r.block: r.metrics[arm] for r in records if r.contender == arm and r.status == "ok"} for arm in contenders
    }
    reference = by_arm[contenders[0]]
    rows = []
    for arm in contenders:
        own = by_arm[arm]
        qualities = [m["quality"] for m in own.values()]
        both = sorted(set(own) & set(reference)) if arm != contenders[0] else []
        own_interval = paired_t(qualities, LEVEL) if len(qualities) > 1 else None
        gaps = [own[b]["quality"] - reference[b]["quality"] for b in both]
        gap = paired_t(gaps, LEVEL) if len(gaps) > 1 else None

        def mean(metric: str, own: dict[int, Any] = own) -> float:
            values = [m.get(metric, 0.0) for m in own.values()]
            return float(sum(values) / len(values)) if values else 0.0

        rows.append(
            ComparisonRow(
                contender=arm,
                quality=sum(qualities) / len(qualities) if qualities else None,
                low=own_interval.low if own_interval else None,
                high=own_interval.high if own_interval else None,
                difference=gap.estimate if gap else None,
                difference_low=gap.low if gap else None,
                difference_high=gap.high if gap else None,
                parameters=int(mean("parameters")),
                steps=mean("steps"),
                train_s=mean("train_s"),
                setup_s=mean("setup_s"),
                peak_mib=mean("peak_bytes") / 2**20,
                seeds=len(own),
                failed=sum(1 for r in records if r.contender == arm and r.status != "ok"),
            )
        )
    return rows
