"""``--try-to-break``: sweeps size, seed and noise, and tells where a claim's verdict changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from heliograph.catalog.card import Card
from heliograph.errors import BadInput
from heliograph.trials.header import planned_row
from heliograph.trials.judge import Finding, judge
from heliograph.trials.local import Event, Executor
from heliograph.trials.plan import SEED_STRIDE, Plan, Trial
from heliograph.trials.record import TrialRecord

__all__ = ["StressPoint", "break_claims", "flips", "stress_trials"]

SEEDS = (1, 2)


@dataclass(frozen=True)
class StressPoint:
    """The findings of one experiment under one changed condition."""

    experiment: str
    axis: str
    value: Any
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class _Variation:
    experiment: str
    axis: str
    value: Any
    trials: tuple[Trial, ...]


def stress_trials(plan: Plan) -> list[_Variation]:
    """Every variation with its trials: other base seeds, then each axis of the check."""
    return list(_variations(plan))


def _variations(plan: Plan) -> Iterator[_Variation]:
    decided = {claim.experiment for claim in plan.check.claims if plan.preset in claim.presets}
    for experiment in dict.fromkeys(t.experiment for t in plan.trials):
        if experiment not in decided:
            continue
        own = [t for t in plan.trials if t.experiment == experiment]
        for seed in SEEDS:
            trials = [replace(t, seed=t.seed + seed * SEED_STRIDE, id=f"{t.id}/seed{seed}") for t in own]
            yield _Variation(experiment, "base seed", seed, tuple(trials))
        for axis in plan.check.stress:
            if axis.experiment != experiment:
                continue
            for value in axis.values:
                trials = [
                    replace(
                        t,
                        workload=t.workload.with_params(**{axis.parameter: value}),
                        id=f"{t.id}/{axis.parameter}={value}",
                    )
                    for t in own
                ]
                yield _Variation(experiment, axis.label or axis.parameter, value, tuple(trials))


def break_claims(
    plan: Plan,
    card: Card | None,
    executor: Executor,
    on_event: Callable[[Event], None],
    on_point: Callable[[StressPoint], None],
) -> list[StressPoint]:
    """Runs every variation and judges it by the check's own rules.

    Raises:
        BadInput: nothing at this preset can be decided, so nothing can be broken.
    """
    variations = stress_trials(plan)
    if not variations:
        raise BadInput(f"{plan.check.slug} decides nothing at {plan.preset}, so there is nothing to break")
    points = []
    for variation in variations:
        records: list[TrialRecord] = []

        def keep(event: Event, records: list[TrialRecord] = records) -> None:
            if event.record is not None:
                records.append(event.record)
            on_event(event)

        executor.run(variation.trials, keep)
        planned = [planned_row(t) for t in variation.trials]
        judged = judge(plan.check, card, plan.preset, records, planned)
        concerned = {c.claim for c in plan.check.claims if c.experiment == variation.experiment}
        found = tuple(f for f in judged.findings if f.claim in concerned and not f.declared)
        point = StressPoint(variation.experiment, variation.axis, variation.value, found)
        points.append(point)
        on_point(point)
    return points


def flips(points: Sequence[StressPoint], original: Sequence[Finding]) -> list[str]:
    """Where a verdict differs from the original run's, in words; empty if nothing flipped."""
    was = {f.claim: f.verdict for f in original}
    return [
        f"{finding.claim}: {was[finding.claim]} becomes {finding.verdict} at {point.axis} {point.value}"
        for point in points
        for finding in point.findings
        if was.get(finding.claim) not in (None, finding.verdict)
    ]
