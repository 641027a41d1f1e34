"""From a check to the list of trials to run, and the key that decides whether a run may be resumed."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

from heliograph.devices import Machine, package_versions
from heliograph.errors import BadInput, UnknownSystem
from heliograph.trials.check import PRESETS, Check, Experiment, Size, Workload

__all__ = ["CheckRef", "Plan", "Trial", "load_check", "load_experiments", "make_plan", "resume_key"]

SEED_STRIDE = 1000


@dataclass(frozen=True)
class CheckRef:
    """Where a check is found: ``module:attribute``, importable in any process."""

    module: str
    attribute: str = "CHECK"

    def __str__(self) -> str:
        """The form that :func:`load_check` takes."""
        return f"{self.module}:{self.attribute}"


@dataclass(frozen=True)
class Trial:
    """One process's worth of work.

    Attributes:
        check: where its check is found.
        id: unique within a run, readable.
        contender: the arm; ``""`` where all arms are interleaved.
    """

    check: str
    id: str
    slug: str
    preset: str
    experiment: str
    workload: Workload
    block: int
    seed: int
    contender: str
    exclusive: bool
    repeats: int
    warmup: int
    time_limit_s: float
    memory_limit_bytes: int
    estimate_s: float
    device: str = "cpu"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trial:
        """The inverse of :meth:`to_json`."""
        return cls(**{**data, "workload": Workload(**data["workload"])})


@dataclass(frozen=True)
class Plan:
    """All trials of one check at one preset, in the order in which they run."""

    ref: str
    check: Check
    preset: str
    trials: tuple[Trial, ...]

    @property
    def estimate_s(self) -> float:
        """Expected wall seconds with one trial at a time."""
        return sum(trial.estimate_s for trial in self.trials)


class HasExperiments(Protocol):
    """What a trial looks its experiment up in: a check, or a family's comparison."""

    def experiment(self, name: str) -> Experiment:
        """The experiment of this name."""
        ...


def load_check(ref: str | CheckRef) -> Check:
    """Imports the check that ``ref`` names.

    Raises:
        UnknownSystem: the module does not exist.
        BadInput: the attribute is no check.
    """
    check = load_experiments(ref)
    if not isinstance(check, Check):
        raise BadInput(f"{ref} is not a heliograph check")
    return check


def load_experiments(ref: str | CheckRef) -> HasExperiments:
    """Imports whatever holds the experiments that ``ref`` names.

    Raises:
        UnknownSystem: the module does not exist.
        BadInput: the attribute holds no experiments.
    """
    module_name, _, attribute = str(ref).partition(":")
    try:
        found = importlib.util.find_spec(module_name) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise UnknownSystem(f"there is no check module {module_name}")
    holder = getattr(importlib.import_module(module_name), attribute or "CHECK", None)
    if not hasattr(holder, "experiment"):
        raise BadInput(f"{module_name}.{attribute or 'CHECK'} holds no experiments")
    return cast(HasExperiments, holder)


def make_plan(
    ref: str | CheckRef,
    preset: str,
    *,
    blocks: int | None = None,
    seed: int = 0,
    workload: Path | None = None,
    device: str = "cpu",
) -> Plan:
    """Lists the trials of a check.

    Args:
        ref: where the check is found.
        preset: ``smoke``, ``laptop`` or ``gpu``.
        blocks: independent seeds an experiment; the preset's own number where ``None``.
        seed: base seed; block ``b`` uses ``seed * 1000 + b``.
        workload: the user's own file, for checks that take one.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        BadInput: unknown preset, or a workload that the check cannot use.
    """
    check = load_check(ref)
    if preset not in PRESETS:
        raise BadInput(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    if blocks is not None and blocks < 1:
        raise BadInput(f"--seeds is the number of independent blocks and must be 1 or more; got {blocks}")
    if seed < 0:
        raise BadInput(f"the base seed must be 0 or more; got {seed}")
    adopted = _adopt(check, workload, preset)
    trials: list[Trial] = []
    for experiment in check.experiments:
        size = experiment.sizes.get(preset)
        if size is None or (adopted and experiment.name not in adopted):
            continue
        if experiment.name in adopted:
            size = replace(size, workloads=(adopted[experiment.name],))
        trials.extend(_trials(str(ref), check, experiment, size, preset, blocks, seed, device))
    if not trials:
        raise BadInput(f"{check.slug} has nothing to run at preset {preset}")
    return Plan(str(ref), check, preset, tuple(trials))


def _adopt(check: Check, path: Path | None, preset: str) -> Mapping[str, Workload]:
    if path is None:
        return {}
    if check.adopt is None:
        raise BadInput(f"{check.slug} takes no --workload")
    if not path.exists():
        raise BadInput(f"the workload {path} does not exist; {check.slug} accepts {check.accepts}")
    if path.is_file() and not os.access(path, os.R_OK):
        raise BadInput(f"the workload {path} cannot be read: permission denied")
    adopted = check.adopt(path, preset)
    return {name: replace(load, path=str(path.resolve())) for name, load in adopted.items()}


def _trials(
    ref: str,
    check: Check,
    experiment: Experiment,
    size: Size,
    preset: str,
    blocks: int | None,
    seed: int,
    device: str,
) -> Iterator[Trial]:
    solo = experiment.kind == "solo"
    # An experiment that the preset runs once (an exact one, say) gains nothing from more seeds.
    count = size.blocks if blocks is None or size.blocks == 1 else blocks
    for block in range(count):
        for workload in size.workloads:
            for arm in [c.name for c in experiment.contenders] if solo else [""]:
                yield Trial(
                    check=ref,
                    id="/".join(filter(None, (check.slug, experiment.name, workload.name, f"block{block}", arm))),
                    slug=check.slug,
                    preset=preset,
                    experiment=experiment.name,
                    workload=workload,
                    block=block,
                    seed=seed * SEED_STRIDE + block,
                    contender=arm,
                    exclusive=experiment.alone or not solo,
                    repeats=size.repeats,
                    warmup=size.warmup,
                    time_limit_s=size.time_limit_s,
                    memory_limit_bytes=size.memory_limit_bytes,
                    estimate_s=size.estimate_s,
                    device=device,
                )


def resume_key(plan: Plan, machine: Machine) -> dict[str, str]:
    """The fields that must agree for a run to be resumed, each as a short text.

    They are: the source of the check and of the modules it names, the plan, the bytes of the user's workload, package
    versions, and the machine.
    """
    facts = machine.to_json()
    return {
        "check source": _digest(*sorted(_source_bytes(plan))),
        "plan": _digest(json.dumps([t.to_json() for t in plan.trials], sort_keys=True).encode()),
        "workload": _digest(*sorted(_workload_bytes(plan))),
        "packages": json.dumps(package_versions(), sort_keys=True),
        "machine": json.dumps([facts[k] for k in ("cpu", "cores", "memory_bytes", "gpus")]),
    }


def _digest(*parts: bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:16]


def _source_bytes(plan: Plan) -> Iterator[bytes]:
    modules = {plan.ref.partition(":")[0], *plan.check.sources, "heliograph.trials.execute"}
    for name in modules:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        origin = Path(spec.origin)
        for path in sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]:
            yield path.name.encode() + b"\0" + path.read_bytes()


def _workload_bytes(plan: Plan) -> Iterator[bytes]:
    for path in {trial.workload.path for trial in plan.trials if trial.workload.path}:
        root = Path(path)
        for file in sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]:
            try:
                with file.open("rb") as stream:
                    yield file.name.encode() + hashlib.file_digest(stream, "sha256").digest()
            except OSError as error:
                raise BadInput(f"cannot read the workload {file}: {error.strerror}") from None
