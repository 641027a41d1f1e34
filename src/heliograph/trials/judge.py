"""From records to findings: a pure function, so that any run can be judged again without running.

For each claim the paired effect is oriented so that larger favours the claim; its interval ``[l, u]`` meets the claim's
line ``tau``:

======== ============================================
holds    ``l >= tau``
weaker   ``0 < l < tau`` (superiority only)
fails    ``u < 0``, or ``l <= 0`` and ``u < tau``
undecided ``l <= 0`` and ``u >= tau``
void     control failed, trials missing, or the preset is too small
======== ============================================

For ``NotWorse`` and ``Bound`` the effect is measured from the margin or bound itself, so ``tau`` is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from heliograph.catalog.card import Card
from heliograph.statistics import Interval, mcnemar_difference, paired_t, simultaneous_level
from heliograph.trials.check import MIN_BLOCKS, Bound, Check, Claim, Control, Exact, NotWorse, Superior
from heliograph.trials.record import TrialRecord

__all__ = ["ControlResult", "Finding", "Judgement", "Verdict", "exit_code", "judge", "verdict_of"]

LEVEL = 0.95
Verdict = Literal["holds", "weaker", "fails", "undecided", "void"]


@dataclass(frozen=True)
class Finding:
    """What was found about one claim.

    ``ours``, ``low``, ``high`` and ``threshold`` are in the shown unit: a ratio, a difference, or the contender's own
    value for a bound. ``values`` holds each arm's mean of the metric.
    """

    system: str
    claim: str
    kind: str
    metric: str
    direction: str
    contender: str
    baseline: str
    workload: str
    paper: str
    paper_reached: bool | None
    ours: float | None
    low: float | None
    high: float | None
    level: float | None
    blocks: int
    threshold: float | None
    unit: str
    provenance: str
    verdict: Verdict
    note: str
    declared: bool = False
    effect: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    deviation: float | None = None
    cannot_show: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class ControlResult:
    """Whether a negative control behaved; ``passed`` is ``None`` where this preset does not judge it."""

    system: str
    name: str
    passed: bool | None
    text: str
    low: float | None = None
    high: float | None = None
    margin: float | None = None
    effect: str = ""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Judgement:
    """All findings and controls of one system in one run."""

    findings: tuple[Finding, ...]
    controls: tuple[ControlResult, ...]


@dataclass(frozen=True)
class _Measured:
    """The part of a run that one claim or control looks at."""

    records: tuple[TrialRecord, ...]
    missing: tuple[str, ...]
    workloads: tuple[str, ...]
    blocks: tuple[int, ...]

    def value(self, arm: str, metric: str, workload: str, block: int) -> Any:
        for record in self.records:
            if record.workload == workload and record.block == block and metric in record.metrics.get(arm, {}):
                return record.metrics[arm][metric]
        raise KeyError(f"{arm} has no {metric} on {workload}, block {block}")

    def mean(self, arm: str, metric: str) -> float | None:
        numbers = [
            sum(v) / len(v) if isinstance(v, list) else float(v)
            for r in self.records
            if (v := r.metrics.get(arm, {}).get(metric)) is not None and v != []
        ]
        return sum(numbers) / len(numbers) if numbers else None


def verdict_of(low: float, high: float, tau: float, *, superiority: bool) -> Verdict:
    """The verdict for an interval of the oriented effect against the claim's line."""
    if low >= tau:
        return "holds"
    if superiority and low > 0:
        return "weaker"
    if high < 0 or (low <= 0 and high < tau):
        return "fails"
    return "undecided"


def judge(
    check: Check,
    card: Card | None,
    preset: str,
    records: Iterable[TrialRecord],
    planned: Sequence[Mapping[str, Any]] = (),
) -> Judgement:
    """Decides every claim and control of a check.

    Args:
        check: the rules.
        card: the paper's figures; ``None`` for a system without a card.
        preset: the preset that ran.
        records: what the trials left.
        planned: all trials that should have run, each with id, experiment, workload, block and contender.
    """
    own = tuple(r for r in records if r.slug == check.slug)
    planned = [p for p in planned if p.get("slug", check.slug) == check.slug]
    controls = tuple(_judge_control(check, control, preset, own, planned) for control in check.controls)
    bad = {
        claim: result
        for control, result in zip(check.controls, controls, strict=True)
        if result.passed is False
        for claim in check.guards_of(control)
    }
    level = simultaneous_level(LEVEL, max(1, check.interval_claims(preset)))
    findings = tuple(
        _judge_claim(check, claim, card, preset, own, planned, level, bad.get(claim.claim)) for claim in check.claims
    )
    return Judgement(findings, controls)


def exit_code(findings: Iterable[Finding]) -> int:
    """0 if every claim is decided or declared too large for the preset; 1 if one is undecided or void."""
    return int(any(f.verdict == "undecided" or (f.verdict == "void" and not f.declared) for f in findings))


def _judge_claim(
    check: Check,
    claim: Claim,
    card: Card | None,
    preset: str,
    records: tuple[TrialRecord, ...],
    planned: Sequence[Mapping[str, Any]],
    level: float,
    bad_control: ControlResult | None,
) -> Finding:
    measured = _select(claim, records, planned)
    exact = isinstance(claim.kind, Exact)
    facts: dict[str, Any] = {}
    if preset not in claim.presets or (preset == "smoke" and not exact):
        fits = " and ".join(p for p in claim.presets if p != "smoke" or exact)
        verdict, note = "void", f"the {preset} preset is declared too small for this claim; it is decided at {fits}"
        facts["declared"] = True
    elif _left_out(claim, planned):
        verdict, note = "void", "its experiment takes no part in this run, which has the user's workload"
        facts["declared"] = True
    elif measured.missing:
        verdict, note = "void", _name_missing(measured)
    elif not measured.blocks:
        verdict, note = "void", "no trial of this claim was run"
    else:
        try:
            verdict, note, facts = (_exact if exact else _by_interval)(claim, measured, level)
        except (KeyError, ValueError) as error:
            verdict, note = "void", f"the records do not carry what the claim needs: {error}"
    if bad_control is not None and not facts.get("declared") and not measured.missing:
        verdict, note = "void", f"the control '{bad_control.name}' misbehaved: {bad_control.note}"
    return _finding(check, claim, card, measured, level, verdict, note, facts)  # type: ignore[arg-type]


def _finding(
    check: Check,
    claim: Claim,
    card: Card | None,
    measured: _Measured,
    level: float,
    verdict: Verdict,
    note: str,
    facts: Mapping[str, Any],
) -> Finding:
    arms = [arm for arm in (claim.contender, claim.baseline) if arm]
    values = {arm: mean for arm in arms if (mean := measured.mean(arm, claim.metric)) is not None}
    on_card = next((c for c in card.claims if c.id == claim.claim), None) if card else None
    reached: bool | None = None
    if on_card is not None and on_card.value is not None and claim.comparable:
        ours = values.get(claim.contender) if claim.comparable == "value" else facts.get("ours")
        if ours is not None:
            reached = ours >= on_card.value if on_card.direction == "higher" else ours <= on_card.value
    return Finding(
        system=check.slug,
        claim=claim.claim,
        kind=type(claim.kind).__name__.lower().replace("notworse", "not_worse"),
        metric=claim.measured,
        direction=claim.better,
        contender=claim.contender,
        baseline=claim.baseline,
        workload=", ".join(measured.workloads),
        paper=on_card.paper if on_card else "not stated",
        paper_reached=reached,
        ours=facts.get("ours"),
        low=facts.get("low"),
        high=facts.get("high"),
        level=None if isinstance(claim.kind, Exact) else level,
        blocks=len(measured.blocks),
        threshold=_threshold(claim),
        unit="x" if claim.effect == "ratio" and not isinstance(claim.kind, Bound) else claim.unit,
        provenance=claim.provenance,
        verdict=verdict,
        note=note,
        declared=bool(facts.get("declared", False)),
        effect=claim.effect,
        values=values,
        deviation=facts.get("deviation"),
        cannot_show=claim.cannot_show,
    )


def _select(part: Claim | Control, records: tuple[TrialRecord, ...], planned: Sequence[Mapping[str, Any]]) -> _Measured:
    """The records that a claim or control looks at, and the planned trials that left none."""
    arms = {"", part.contender, part.baseline}

    def concerns(experiment: str, workload: str, contender: str) -> bool:
        return (
            experiment == part.experiment and contender in arms and (not part.workloads or workload in part.workloads)
        )

    ok = tuple(r for r in records if r.status == "ok" and concerns(r.experiment, r.workload, r.contender))
    done = {r.trial for r in ok}
    asked = [p for p in planned if concerns(p["experiment"], p["workload"], p["contender"])]
    missing = [p["id"] for p in asked if p["id"] not in done]
    if not planned:
        missing = [r.trial for r in records if r.status != "ok" and concerns(r.experiment, r.workload, r.contender)]
    return _Measured(
        records=ok,
        missing=tuple(
            f"{trial} ({next((r.status for r in records if r.trial == trial), 'not run')})" for trial in missing
        ),
        workloads=tuple(dict.fromkeys(r.workload for r in ok)),
        blocks=tuple(sorted({r.block for r in ok})),
    )


def _left_out(part: Claim | Control, planned: Sequence[Mapping[str, Any]]) -> bool:
    """Whether nothing of its experiment was planned: the user's workload fits other experiments only."""
    return bool(planned) and not any(p["experiment"] == part.experiment for p in planned)


def _name_missing(measured: _Measured) -> str:
    first = ", ".join(measured.missing[:2])
    more = f" and {len(measured.missing) - 2} more" if len(measured.missing) > 2 else ""
    return f"trials are missing: {first}{more}"


def _exact(claim: Claim | Control, measured: _Measured, _: float) -> tuple[Verdict, str, dict[str, Any]]:
    outcomes: list[bool] = []
    for workload in measured.workloads:
        for block in measured.blocks:
            value = measured.value(claim.contender, claim.metric, workload, block)
            row = value if isinstance(value, list) else [value]
            if not row or not all(isinstance(item, bool) for item in row):
                raise ValueError(f"{claim.metric} must be true or false, got {value!r}")
            outcomes.extend(row)
    true = sum(outcomes)
    verdict: Verdict = "holds" if true == len(outcomes) else "fails"
    share = true / len(outcomes)
    return verdict, f"{true} of {len(outcomes)} cases agree exactly", {"ours": share}


def _by_interval(claim: Claim, measured: _Measured, level: float) -> tuple[Verdict, str, dict[str, Any]]:
    sign = 1.0 if claim.better == "higher" else -1.0
    deviation: float | None = None
    if claim.effect == "outcomes":
        interval = _outcome_interval(claim, measured, level, sign)
    else:
        if len(measured.blocks) < MIN_BLOCKS:
            return "void", f"too few blocks: {len(measured.blocks)}; an interval needs {MIN_BLOCKS}", {}
        effects = _effects(claim, measured, sign)
        interval = paired_t(effects, level)
        deviation = _deviation(effects)
    shift, tau = _line(claim, sign)
    oriented = interval.shifted(shift)
    verdict = verdict_of(oriented.low, oriented.high, tau, superiority=isinstance(claim.kind, Superior))
    ours, low, high = (_shown(claim, sign, v) for v in (interval.estimate, interval.low, interval.high))
    low, high = min(low, high), max(low, high)
    facts = {"ours": ours, "low": low, "high": high, "deviation": deviation}
    return verdict, _why(claim, verdict, low, high), facts


def _effects(part: Claim | Control, measured: _Measured, sign: float) -> list[float]:
    """One oriented effect a block: the mean over the workloads."""
    bound = part.kind.value if isinstance(part, Claim) and isinstance(part.kind, Bound) else None
    effects = []
    for block in measured.blocks:
        each = []
        for workload in measured.workloads:
            ours = float(measured.value(part.contender, part.metric, workload, block))
            other = bound if bound is not None else float(measured.value(part.baseline, part.metric, workload, block))
            if part.effect == "ratio":
                if ours <= 0 or other <= 0:
                    raise ValueError(f"a ratio needs positive values; got {ours:g} and {other:g} in block {block}")
                each.append(sign * math.log(ours / other))
            else:
                each.append(sign * (ours - other))
        effects.append(sum(each) / len(each))
    return effects


def _outcome_interval(part: Claim | Control, measured: _Measured, level: float, sign: float) -> Interval:
    rows: dict[str, list[bool]] = {part.contender: [], part.baseline: []}
    for workload in measured.workloads:
        for block in measured.blocks:
            for arm, row in rows.items():
                row.extend(measured.value(arm, part.metric, workload, block))
    first, second = rows[part.contender], rows[part.baseline]
    return mcnemar_difference(first, second, level) if sign > 0 else mcnemar_difference(second, first, level)


def _deviation(effects: Sequence[float]) -> float:
    mean = sum(effects) / len(effects)
    return math.sqrt(sum((e - mean) ** 2 for e in effects) / (len(effects) - 1))


def _line(claim: Claim, sign: float) -> tuple[float, float]:
    """How far to shift the effect, and the line it must then reach."""
    kind, ratio = claim.kind, claim.effect == "ratio"
    if isinstance(kind, Superior):
        return 0.0, math.log(kind.tau) if ratio else kind.tau
    if isinstance(kind, NotWorse):
        return (math.log(kind.margin) if ratio else kind.margin), 0.0
    if isinstance(kind, Bound) and claim.effect == "outcomes":
        return -sign * kind.value, 0.0
    return 0.0, 0.0


def _shown(claim: Claim, sign: float, effect: float) -> float:
    """An oriented effect in the unit that people read."""
    if isinstance(claim.kind, Bound):
        return (
            claim.kind.value * math.exp(sign * effect) if claim.effect == "ratio" else claim.kind.value + sign * effect
        )
    return math.exp(effect) if claim.effect == "ratio" else effect


def _threshold(claim: Claim) -> float | None:
    kind = claim.kind
    if isinstance(kind, Superior):
        return kind.tau
    if isinstance(kind, NotWorse):
        return 1 / kind.margin if claim.effect == "ratio" else -kind.margin
    return kind.value if isinstance(kind, Bound) else None


def _why(claim: Claim, verdict: Verdict, low: float, high: float) -> str:
    unit = "x" if claim.effect == "ratio" and not isinstance(claim.kind, Bound) else claim.unit
    line, span = f"{_threshold(claim):.3g}{unit}", f"[{low:.3g}, {high:.3g}]{unit}"
    nothing = "1x" if claim.effect == "ratio" else "0"
    if isinstance(claim.kind, Bound):
        side = {"holds": "on the right side of", "fails": "on the wrong side of"}.get(verdict, "across")
        return f"the interval {span} lies {side} the bound {line}"
    if isinstance(claim.kind, NotWorse):
        where = {"holds": "wholly within", "fails": "wholly beyond"}.get(verdict, "across")
        return f"the interval {span} lies {where} the margin, which ends at {line}"
    if verdict == "holds":
        return f"the whole interval {span} reaches our threshold {line}"
    if verdict == "weaker":
        return f"the interval {span} is better than {nothing} but does not wholly reach our threshold {line}"
    if verdict == "undecided":
        return f"the interval {span} contains both no effect and our threshold {line}: these data cannot tell"
    if high < (1 if claim.effect == "ratio" else 0):
        return f"the whole interval {span} lies on the wrong side of no effect"
    return f"the interval {span} excludes our threshold {line} and does not exclude {nothing}"


def _judge_control(
    check: Check,
    control: Control,
    preset: str,
    records: tuple[TrialRecord, ...],
    planned: Sequence[Mapping[str, Any]],
) -> ControlResult:
    measured = _select(control, records, planned)

    def result(passed: bool | None, note: str, low: float | None = None, high: float | None = None) -> ControlResult:
        return ControlResult(
            check.slug, control.name, passed, control.text, low, high, control.margin, control.effect, note
        )

    exact = control.margin is None
    guarded = [c for c in check.claims if c.claim in check.guards_of(control)]
    if preset == "smoke" and not exact:
        return result(None, "the smoke preset judges exact controls only")
    if not any(preset in claim.presets for claim in guarded):
        return result(None, f"no claim that it guards is judged at {preset}")
    if _left_out(control, planned):
        return result(None, "its experiment takes no part in this run")
    if measured.missing:
        return result(False, _name_missing(measured))
    if not measured.blocks:
        return result(False, "no trial of this control was run")
    try:
        if exact:
            verdict, note, _ = _exact(control, measured, LEVEL)
            return result(verdict == "holds", note)
        assert control.margin is not None
        if control.effect == "outcomes":
            interval = _outcome_interval(control, measured, LEVEL, 1.0)
        else:
            if len(measured.blocks) < MIN_BLOCKS:
                return result(False, f"too few blocks: {len(measured.blocks)}; an interval needs {MIN_BLOCKS}")
            interval = paired_t(_effects(control, measured, 1.0), LEVEL)
    except (KeyError, ValueError) as error:
        return result(False, f"the records do not carry what the control needs: {error}")
    ratio = control.effect == "ratio"
    low, high = (math.exp(v) if ratio else v for v in (interval.low, interval.high))
    floor, ceiling = (1 / control.margin if ratio else -control.margin), control.margin
    inside = floor <= low and high <= ceiling
    unit = "x" if ratio else ""
    where = "inside" if inside else "outside"
    note = f"its effect [{low:.3g}, {high:.3g}]{unit} lies {where} the margin [{floor:.3g}, {ceiling:.3g}]{unit}"
    return result(inside, note, low, high)
