"""Runs a check on a bare machine and writes JSON lines; the standard library and the check's own needs suffice.

Usage: ``python -m heliograph.trials.run SLUG --preset gpu --output record.jsonl``. The record is judged and rendered
elsewhere: ``heliograph rejudge record.jsonl`` and ``heliograph report record.jsonl``.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

from heliograph.errors import HeliographError, UnknownSystem
from heliograph.trials.check import PRESETS
from heliograph.trials.header import new_header, resume_refusal
from heliograph.trials.local import Event, LocalExecutor
from heliograph.trials.plan import CheckRef, make_plan
from heliograph.trials.record import RecordWriter, TrialRecord, read_records

__all__ = ["find_check", "main", "pick_device"]

FAMILIES = ("agents", "serving", "graphs", "lm", "ranks", "chips")


def find_check(slug: str) -> CheckRef:
    """The built-in check of a system; ``module:attribute`` names any other.

    Raises:
        UnknownSystem: no family has it.
    """
    if ":" in slug:
        module, _, attribute = slug.partition(":")
        return CheckRef(module, attribute)
    for family in FAMILIES:
        name = f"heliograph.checks.{family}.{slug}"
        try:
            if importlib.util.find_spec(name) is not None:
                return CheckRef(name)
        except ModuleNotFoundError as error:
            if not name.startswith(f"{error.name}."):  # the family is there, and lacks something that it imports
                raise
    raise UnknownSystem(f"no family has a check {slug!r}")


def pick_device(preset: str) -> str:
    """``"cuda"`` for the gpu preset where a driver shows a GPU, else ``"cpu"``."""
    from heliograph.devices import this_machine

    return "cuda" if preset == "gpu" and this_machine().gpus else "cpu"


def main(arguments: list[str] | None = None) -> int:
    """Runs one check; returns the exit code: 0 when every trial ended well, 1 otherwise, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m heliograph.trials.run", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("slug", help="the system to check, or module:attribute of a check")
    parser.add_argument("--preset", choices=PRESETS, default="laptop")
    parser.add_argument("--output", type=Path, required=True, help="the record to write, JSON lines")
    parser.add_argument("--seeds", type=int, default=None, help="independent blocks an experiment")
    parser.add_argument("--seed", type=int, default=0, help="base seed")
    parser.add_argument("--workload", type=Path, default=None, help="your own input, for checks that take one")
    parser.add_argument("--resume", action="store_true", help="keep what the record has and run the rest")
    parser.add_argument("--only", nargs="*", default=None, help="run only these experiments")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except HeliographError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"interrupted; what had finished is in {options.output}", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    ref = find_check(options.slug)
    device = pick_device(options.preset)
    plan = make_plan(
        ref, options.preset, blocks=options.seeds, seed=options.seed, workload=options.workload, device=device
    )
    command = f"python -m heliograph.trials.run {options.slug} --preset {options.preset}"
    settings = {"device": device, "seed": options.seed, "seeds": options.seeds, "executor": "local"}
    header = new_header([plan], command, settings)
    kept: list[TrialRecord] = []
    if options.resume and options.output.exists():
        old, kept = read_records(options.output)
        refusal = resume_refusal(old, header)
        if refusal is not None:
            raise refusal
        header = old
    done = {record.trial for record in kept}
    trials = [t for t in plan.trials if t.id not in done and (not options.only or t.experiment in options.only)]
    writer = RecordWriter(options.output, header, kept)
    began, failed = time.monotonic(), 0

    def watch(event: Event) -> None:
        nonlocal failed
        stamp = f"{time.monotonic() - began:7.1f} s"
        if event.kind == "said":
            print(f"{stamp}  {event.text}", file=sys.stderr, flush=True)
        elif event.record is not None:
            writer.append(event.record)
            failed += event.record.status != "ok"
            print(f"{stamp}  {_line(event.record)}", file=sys.stderr, flush=True)

    try:
        executor = LocalExecutor((*plan.check.preload, ref.module))
        executor.run(trials, watch)
        for module, reason in executor.missing.items():
            print(f"not imported beforehand: {module}: {reason}", file=sys.stderr)
    finally:
        writer.close()
    print(f"{len(trials) - failed} of {len(trials)} trials ended well; record: {options.output}", file=sys.stderr)
    return int(failed > 0)


def _line(record: TrialRecord) -> str:
    if record.status != "ok":
        last = record.tail.strip().splitlines()[-1:] or [""]
        return f"{record.trial}: {record.status}: {last[0]}"
    numbers = [
        f"{arm or 'all'} {name} {value:.4g}"
        for arm, metrics in record.metrics.items()
        for name, value in metrics.items()
        if isinstance(value, float | int) and name not in ("peak_bytes", "peak_device_bytes")
    ]
    return f"{record.trial}: {', '.join(numbers[:6])}"


if __name__ == "__main__":
    sys.exit(main())
