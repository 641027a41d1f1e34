"""What the author of a check writes: contenders, workloads, controls and claims.

A check holds *experiments*. An experiment measures contenders on workloads in independent blocks; a block is one seed.
*Claims* and *controls* say which numbers of which experiment decide, and how; they are fixed before anything runs.
The standard library is all this module needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from heliograph.errors import BadInput

__all__ = [
    "PRESETS",
    "Bound",
    "Check",
    "Claim",
    "Contender",
    "Context",
    "Control",
    "Exact",
    "Experiment",
    "NotWorse",
    "Size",
    "StressAxis",
    "Superior",
    "Workload",
]

PRESETS: tuple[str, ...] = ("smoke", "laptop", "gpu")
MIN_BLOCKS = 5

Role = Literal["system", "baseline", "ablation", "control"]
Effect = Literal["ratio", "difference", "outcomes"]


@dataclass(frozen=True)
class Contender:
    """One arm: the system, an honest baseline, an ablation, or an arm of a control."""

    name: str
    role: Role
    note: str = ""


@dataclass(frozen=True)
class Workload:
    """What every contender of an experiment works on, as plain data.

    Attributes:
        name: short and unique within the experiment.
        params: sizes and settings, JSON-ready.
        path: the user's own file, or ``""``; its bytes are part of the resume key.
    """

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""

    def __getitem__(self, key: str) -> Any:
        return self.params[key]

    def with_params(self, **changes: Any) -> Workload:
        """The same workload with some parameters changed."""
        return replace(self, params={**self.params, **changes})


@dataclass(frozen=True)
class Size:
    """How large an experiment is in one preset.

    Attributes:
        workloads: each is run for every block.
        blocks: independent seeds; a claim with an interval needs five or more.
        repeats: timed runs of each contender in an interleaved trial, reduced to their median.
        warmup: runs of each contender before the first timed one.
        time_limit_s: wall seconds a trial may take before it is killed.
        memory_limit_bytes: resident bytes a trial may reach before it is killed.
        estimate_s: wall seconds a trial is expected to take on the preset's machine, for ``--dry-run``.
    """

    workloads: tuple[Workload, ...]
    blocks: int
    repeats: int = 7
    warmup: int = 1
    time_limit_s: float = 120.0
    memory_limit_bytes: int = 4 * 2**30
    estimate_s: float = 1.0


class Context(Protocol):
    """What a measuring function receives.

    Attributes:
        workload: what to work on.
        contender: which arm; empty in an interleaved trial.
        seed: the block's seed, the same for all contenders.
        block: the block's index.
        preset: ``smoke``, ``laptop`` or ``gpu``.
        device: ``"cpu"`` or ``"cuda"``.
    """

    workload: Workload
    contender: str
    seed: int
    block: int
    preset: str
    device: str

    def say(self, text: str) -> None:
        """Shows one line to whoever watches the run."""

    def progress(self, fraction: float, latest: str = "") -> None:
        """Tells how far the trial is, from 0 to 1, and its latest metric in words."""

    def keep(self, name: str, value: Any) -> None:
        """Keeps JSON-ready detail with the record: curves, drawings, tables."""

    def reset_memory(self) -> None:
        """Counts the peak of memory from here on, so that set-up is outside it."""


@dataclass(frozen=True)
class Experiment:
    """Contenders measured on workloads.

    Attributes:
        name: unique within the check.
        title: one line for people.
        contenders: the arms.
        measure: for ``solo``, returns the metrics of ``context.contender`` by name (numbers, booleans, or lists of
            booleans for outcomes per shot). For ``interleaved``, returns one zero-argument callable a contender,
            which the engine warms up, runs A B A B and times; its metric is ``seconds``.
        sizes: by preset; an experiment without an entry does not run there.
        alone: whether its trials must have the machine to themselves, for example because they train for a given time;
            interleaved trials always have.
        kind: ``solo`` for quality and memory (the engine adds ``seconds`` and ``memory_bytes``, the peak on the trial's
            device), else ``interleaved``.
    """

    name: str
    title: str
    contenders: tuple[Contender, ...]
    measure: Callable[[Context], Mapping[str, Any]]
    sizes: Mapping[str, Size]
    kind: Literal["solo", "interleaved"] = "solo"
    alone: bool = False


@dataclass(frozen=True)
class Superior:
    """The contender beats the baseline by ``tau`` or more: a ratio above 1, or a difference above 0."""

    tau: float


@dataclass(frozen=True)
class NotWorse:
    """The contender loses to the baseline by at most ``margin``: a ratio of 1 or more, or a difference of 0 or more."""

    margin: float


@dataclass(frozen=True)
class Bound:
    """The contender's own value lies on the right side of ``value``; no baseline."""

    value: float


@dataclass(frozen=True)
class Exact:
    """Every boolean of the metric is true; decided without statistics, in every preset."""


@dataclass(frozen=True)
class Claim:
    """How one claim of the card is decided here.

    Attributes:
        claim: the claim's id on the card.
        experiment: where its numbers come from.
        metric: which of them.
        contender: the arm that the claim is about.
        kind: the rule.
        baseline: the arm it is compared with.
        effect: ``ratio`` (paired t on log-ratios), ``difference`` (paired t), or ``outcomes`` (paired booleans, exact
            McNemar).
        better: whether a larger or a smaller metric favours the contender.
        workloads: which of the experiment's workloads; all where empty. Several are averaged within a block.
        presets: presets large enough to decide the claim.
        unit: of the shown effect.
        measured: one line: what is measured, in words.
        cannot_show: one line: what this scale leaves open.
        provenance: where the numbers come from.
        comparable: ``value`` if the contender's own mean, ``effect`` if the effect is in the unit of the paper's
            figure; ``""`` if neither is.
    """

    claim: str
    experiment: str
    metric: str
    contender: str
    kind: Superior | NotWorse | Bound | Exact
    measured: str
    cannot_show: str
    baseline: str = ""
    effect: Effect = "difference"
    better: Literal["higher", "lower"] = "higher"
    workloads: tuple[str, ...] = ()
    presets: tuple[str, ...] = ("laptop", "gpu")
    unit: str = ""
    provenance: Literal["measured", "simulated", "modelled"] = "measured"
    comparable: Literal["value", "effect", ""] = ""


@dataclass(frozen=True)
class Control:
    """An arm in which the effect must vanish; if it does not, the claims it guards are void.

    Attributes:
        name: unique within the check.
        text: what must vanish, in words.
        margin: the effect's interval must lie inside: ``1/margin .. margin`` for a ratio, ``-margin .. margin`` for a
            difference. ``None`` for an exact control, whose booleans must all be true.
        guards: ids of the claims that it guards; those of its experiment where empty.
    """

    name: str
    text: str
    experiment: str
    metric: str
    contender: str
    baseline: str = ""
    effect: Effect = "difference"
    margin: float | None = None
    workloads: tuple[str, ...] = ()
    guards: tuple[str, ...] = ()


@dataclass(frozen=True)
class StressAxis:
    """One way to try to break a claim: a parameter of an experiment's workloads and the values it sweeps."""

    experiment: str
    parameter: str
    values: tuple[Any, ...]
    label: str = ""


@dataclass(frozen=True)
class Check:
    """Everything that decides a system's claims.

    Attributes:
        slug: the system.
        experiments: in the order in which they run.
        claims: which numbers decide.
        controls: where the effect must vanish.
        preload: modules imported once in the fork server.
        sources: modules and packages whose files are part of the resume key, beside the check's own.
        tuning: how contenders were tuned, in words that end a sentence ("tuned equally: ...").
        stress: axes of ``--try-to-break``.
        adopt: turns the user's file into workloads, by experiment name; raises :class:`BadInput`.
        accepts: which files ``adopt`` takes, in words.
    """

    slug: str
    experiments: tuple[Experiment, ...]
    claims: tuple[Claim, ...]
    controls: tuple[Control, ...]
    preload: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    tuning: str = "one try at the published settings for every contender"
    stress: tuple[StressAxis, ...] = ()
    adopt: Callable[[Path, str], Mapping[str, Workload]] | None = None
    accepts: str = ""

    def __post_init__(self) -> None:
        """Refuses a check whose parts do not fit together."""
        for problem in _problems(self):
            raise BadInput(f"check {self.slug}: {problem}")

    def experiment(self, name: str) -> Experiment:
        """The experiment of this name.

        Raises:
            KeyError: there is none.
        """
        for experiment in self.experiments:
            if experiment.name == name:
                return experiment
        raise KeyError(name)

    def guards_of(self, control: Control) -> tuple[str, ...]:
        """Ids of the claims that become void when ``control`` misbehaves."""
        return control.guards or tuple(c.claim for c in self.claims if c.experiment == control.experiment)

    def interval_claims(self, preset: str) -> int:
        """How many claims share the confidence: all that ``preset`` may decide by an interval."""
        return sum(1 for c in self.claims if not isinstance(c.kind, Exact) and preset in c.presets)


def _problems(check: Check) -> Iterator[str]:
    names = [experiment.name for experiment in check.experiments]
    if len(set(names)) != len(names):
        yield f"two experiments share a name: {names}"
    if not check.claims:
        yield "it decides no claim"
    if not check.controls:
        yield "it has no negative control; one is mandatory"
    for experiment in check.experiments:
        arms = [c.name for c in experiment.contenders]
        if len(set(arms)) != len(arms) or not arms:
            yield f"experiment {experiment.name}: contenders must be named once each; got {arms}"
        for preset, size in experiment.sizes.items():
            loads = [w.name for w in size.workloads]
            if preset not in PRESETS or size.blocks < 1 or not loads or len(set(loads)) != len(loads):
                yield f"experiment {experiment.name}: bad size for preset {preset!r}"
    parts: tuple[Claim | Control, ...] = (*check.claims, *check.controls)
    for part in parts:
        what = f"claim {part.claim}" if isinstance(part, Claim) else f"control {part.name}"
        if part.experiment not in names:
            yield f"{what}: no experiment {part.experiment!r}"
            continue
        arms = [c.name for c in check.experiment(part.experiment).contenders]
        for arm in filter(None, (part.contender, part.baseline)):
            if arm not in arms:
                yield f"{what}: no contender {arm!r} in experiment {part.experiment}"
    for claim in check.claims:
        yield from _kind_problems(claim)
        if not any(claim.claim in check.guards_of(control) for control in check.controls):
            yield f"claim {claim.claim}: no control guards it"
    for control in check.controls:
        if control.margin is not None and not control.margin > (1 if control.effect == "ratio" else 0):
            yield f"control {control.name}: its margin must be above {1 if control.effect == 'ratio' else 0}"


def _kind_problems(claim: Claim) -> Iterator[str]:
    kind, ratio = claim.kind, claim.effect == "ratio"
    needs_baseline = isinstance(kind, Superior | NotWorse)
    if needs_baseline != bool(claim.baseline):
        yield f"claim {claim.claim}: {'needs' if needs_baseline else 'takes no'} baseline"
    if isinstance(kind, Superior) and not kind.tau > (1 if ratio else 0):
        # With a threshold of zero, a useless system could only ever be undecided.
        yield f"claim {claim.claim}: tau must be above {1 if ratio else 0}: the smallest effect worth having"
    if isinstance(kind, NotWorse) and not kind.margin >= (1 if ratio else 0):
        yield f"claim {claim.claim}: a margin must be at least {1 if ratio else 0}"
    if isinstance(kind, Bound) and (not math.isfinite(kind.value) or (ratio and kind.value <= 0)):
        yield f"claim {claim.claim}: a bound must be finite, and above 0 for a ratio"
