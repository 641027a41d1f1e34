"""The header of a run, and whether an old run may be resumed; the standard library is enough here."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from heliograph.devices import Machine, package_versions, this_machine
from heliograph.errors import ResumeMismatch
from heliograph.trials.plan import Plan, Trial, resume_key
from heliograph.trials.record import RunHeader

__all__ = ["new_header", "planned_row", "resume_refusal"]


def new_header(
    plans: Sequence[Plan],
    command: str,
    settings: Mapping[str, Any],
    machine: Machine | None = None,
) -> RunHeader:
    """The header of a new run of these plans on this machine."""
    machine = machine or this_machine()
    now = datetime.now(UTC)
    slugs = tuple(plan.check.slug for plan in plans)
    return RunHeader(
        run=f"{now:%Y%m%d-%H%M%S}-{slugs[0]}-{secrets.token_hex(2)}",
        slugs=slugs,
        preset=plans[0].preset,
        command=command,
        started_at=now.isoformat(timespec="milliseconds"),
        machine=machine.to_json(),
        versions=package_versions(),
        key={plan.check.slug: resume_key(plan, machine) for plan in plans},
        settings={**settings, "planned": [planned_row(t) for plan in plans for t in plan.trials]},
    )


def planned_row(trial: Trial) -> dict[str, Any]:
    """What a header says of a trial that should run, as the judge reads it."""
    return {
        "id": trial.id,
        "slug": trial.slug,
        "experiment": trial.experiment,
        "workload": trial.workload.name,
        "block": trial.block,
        "contender": trial.contender,
    }


def resume_refusal(old: RunHeader, new: RunHeader) -> ResumeMismatch | None:
    """Why ``old`` may not be resumed by ``new``, naming the field that differs; ``None`` if it may."""
    for slug, fields in new.key.items():
        for name, value in fields.items():
            was = old.key.get(slug, {}).get(name)
            if was != value:
                return ResumeMismatch(
                    f"run {old.run} cannot be resumed: the {name} of {slug} differs (then {was}, now {value}). "
                    "Results of both would not be comparable; start anew with --rerun."
                )
    return None
