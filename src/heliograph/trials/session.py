"""One invocation of ``check``: plans, executor, resume, live state, findings."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heliograph.catalog.card import Card
from heliograph.catalog.registry import check_ref, get_card
from heliograph.errors import BadInput, StoreError
from heliograph.trials.header import new_header, resume_refusal
from heliograph.trials.live import LiveFile, LiveState
from heliograph.trials.local import Event, Executor, LocalExecutor
from heliograph.trials.plan import Plan, Trial, make_plan
from heliograph.trials.record import RunHeader, TrialRecord
from heliograph.trials.run import pick_device
from heliograph.trials.runner import Outcome, Run
from heliograph.trials.store import Store, data_folder

__all__ = ["CheckOptions", "RunProgress", "check_systems", "make_executor", "plan_systems"]


@dataclass(frozen=True)
class CheckOptions:
    """What the user chose for a check.

    Attributes:
        preset: ``smoke``, ``laptop`` or ``gpu``.
        blocks: independent seeds, or the preset's own number.
        seed: base seed.
        workload: the user's own input.
        on: ``local`` or ``ray``.
        resume: go on with the newest unfinished run of the same systems and preset.
        rerun: start anew even if a run could not be resumed.
        store_url: where runs are kept.
        workers: trials at a time.
    """

    preset: str = "laptop"
    blocks: int | None = None
    seed: int = 0
    workload: Path | None = None
    on: str = "local"
    resume: bool = False
    rerun: bool = False
    store_url: str | None = None
    workers: int | None = None

    def command(self, slugs: Sequence[str], *, resume: bool = False) -> str:
        """The command line that repeats this, or resumes it."""
        parts = ["heliograph", "check", *slugs, "--preset", self.preset]
        parts += ["--seeds", str(self.blocks)] if self.blocks is not None else []
        parts += ["--seed", str(self.seed)] if self.seed else []
        parts += ["--workload", str(self.workload)] if self.workload else []
        parts += ["--on", self.on] if self.on != "local" else []
        return shlex.join([*parts, *(["--resume"] if resume else [])])


@dataclass
class RunProgress:
    """Where a run stands; the terminal and the live file both show it.

    Attributes:
        planned: expected wall seconds of every trial.
        left: the same of the trials not finished.
        done: trials finished.
        running: trials under way, with their fraction.
    """

    planned: dict[str, float]
    left: dict[str, float]
    workers: int
    done: int = 0
    latest: str = ""
    running: dict[str, float] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    _finished_estimate: float = 0.0

    def take(self, event: Event) -> None:
        """Notes what happened."""
        trial = event.trial.id
        if event.kind == "started":
            self.running[trial] = 0.0
        elif event.kind == "progress":
            self.running[trial] = event.fraction
            self.latest = event.text or self.latest
        elif event.kind == "said":
            self.said.append(event.text)
        elif event.record is not None:
            self.running.pop(trial, None)
            self._finished_estimate += self.left.pop(trial, 0.0)
            self.done += 1
            self.latest = latest_metric(event.record) or self.latest

    @property
    def seconds_left(self) -> float | None:
        """Expected seconds to the end; ``None`` until something has finished."""
        if self._finished_estimate <= 0:
            return None
        pace = (time.monotonic() - self.began) / self._finished_estimate
        return pace * sum(s * (1 - self.running.get(t, 0.0)) for t, s in self.left.items())

    def live(self, run: str) -> LiveState:
        """The state as other processes see it."""
        return LiveState(
            run=run,
            pid=os.getpid(),
            done=self.done,
            planned=len(self.planned),
            current=tuple(self.running),
            latest=self.latest,
            said=tuple(self.said[-30:]),
            seconds_left=self.seconds_left,
            updated_at=time.time(),
        )


def latest_metric(record: TrialRecord) -> str:
    """The first metric of a record's own, in words."""
    engine = ("memory_bytes", "peak_bytes", "peak_device_bytes", "seconds", "parameters", "steps")
    for arm, metrics in record.metrics.items():
        for name, value in metrics.items():
            if name not in engine and isinstance(value, int | float):
                return f"{record.experiment} {arm}: {name.replace('_', ' ')} {value:.3g}"
    return ""


def plan_systems(slugs: Sequence[str], options: CheckOptions) -> tuple[list[Plan], dict[str, Card]]:
    """Plans and cards of some systems.

    Raises:
        UnknownSystem: no such slug.
        BadInput: a system without a check, the same system twice, or a workload or preset that does not fit.
    """
    if len(set(slugs)) != len(slugs):
        raise BadInput(f"a system is named twice: {' '.join(slugs)}")
    cards = {}
    for slug in slugs:
        card = get_card(slug)
        cards[card.slug] = card
    device = pick_device(options.preset)
    plans = []
    for card in cards.values():
        ref = check_ref(card)
        if not _exists(ref.partition(":")[0]):
            raise BadInput(
                f"{card.slug} is planned: its card is here, its check is not yet. "
                "`heliograph systems --status working` lists those that can be checked"
            )
        plans.append(
            make_plan(
                ref,
                options.preset,
                blocks=options.blocks,
                seed=options.seed,
                workload=options.workload,
                device=device,
            )
        )
    return plans, cards


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def make_executor(plans: Sequence[Plan], options: CheckOptions) -> Executor:
    """The executor that the user chose.

    Raises:
        BadInput: an unknown one.
        MissingExtra: Ray is not installed.
    """
    # Libraries before checks: the fork server imports in this order.
    preload = list(
        dict.fromkeys([*(m for p in plans for m in p.check.preload), *(p.ref.partition(":")[0] for p in plans)])
    )
    if options.on == "local":
        return LocalExecutor(preload, options.workers)
    if options.on == "ray":
        from heliograph.trials.ray_executor import RayExecutor

        return RayExecutor(preload)
    raise BadInput(f"--on takes local or ray; got {options.on!r}")


def check_systems(
    slugs: Sequence[str],
    options: CheckOptions,
    on_start: Callable[[RunHeader, RunProgress, int], None] = lambda *_: None,
    on_event: Callable[[Event], None] = lambda *_: None,
) -> tuple[Outcome, list[Plan], dict[str, Card]]:
    """Runs the checks of some systems to their findings.

    Args:
        slugs: which systems.
        options: how.
        on_start: called once with the header, the progress and how many trials a resumed run already has.
        on_event: called for every event, after the progress has taken it.

    Raises:
        HeliographError: bad input, a store that cannot be written, or a resume that does not match.
    """
    plans, cards = plan_systems(slugs, options)
    executor = make_executor(plans, options)
    store = Store(options.store_url)
    try:
        slug_names = [plan.check.slug for plan in plans]
        settings = {"seed": options.seed, "seeds": options.blocks, "executor": options.on}
        header = new_header(plans, options.command(slug_names), settings)
        header, done, resumed = _resumed(store, header, options)
        progress = _progress(plans, done, executor)
        live = LiveFile(data_folder(), header.run)
        on_start(header, progress, len(done))

        def watch(event: Event) -> None:
            progress.take(event)
            live.write(progress.live(header.run), force=event.kind == "finished")
            on_event(event)

        run = Run(header, plans, cards, done)
        try:
            with _terminate_like_interrupt():
                outcome = run.execute(executor, store, data_folder() / "spool", watch, resumed=resumed)
        finally:
            live.remove()
    finally:
        store.close()
    return outcome, plans, cards


def _resumed(store: Store, header: RunHeader, options: CheckOptions) -> tuple[RunHeader, list[TrialRecord], bool]:
    if not options.resume:
        return header, [], False
    run = store.latest_unfinished(header.slugs, header.preset)
    if run is None:
        raise BadInput(
            f"there is no unfinished run of {' '.join(header.slugs)} at {header.preset} to resume; leave --resume out"
        )
    old, records = store.load(run)
    refusal = resume_refusal(old, header)
    if refusal is None:
        return old, records, True
    if options.rerun:
        return header, [], False
    raise refusal


def _progress(plans: Sequence[Plan], done: Sequence[TrialRecord], executor: Executor) -> RunProgress:
    workers = getattr(executor, "workers", 1)

    def cost(trial: Trial) -> float:
        return max(trial.estimate_s, 0.01) / (1 if trial.exclusive else workers)

    planned = {trial.id: cost(trial) for plan in plans for trial in plan.trials}
    finished = {record.trial for record in done}
    left = {trial: seconds for trial, seconds in planned.items() if trial not in finished}
    return RunProgress(planned, left, workers, done=len(planned) - len(left))


@contextlib.contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: what is finished is kept."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread: whoever owns it decides
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def import_record(path: Path, store: Store) -> RunHeader:
    """Adds a record file to the store, completing a run that is partly there.

    Raises:
        BadInput: not a record.
        StoreError: the store cannot be written.
    """
    from heliograph.trials.record import read_records

    header, records = read_records(path)
    try:
        store.create_run(header)
        have: set[str] = set()
    except StoreError:
        have = {record.trial for record in store.load(header.run)[1]}
    for record in records:
        if record.trial not in have:
            store.append(header.run, record)
    planned = {p["id"] for p in header.settings.get("planned", ())}
    everything = have | {record.trial for record in records}
    store.finish(header.run, "finished" if planned <= everything else "interrupted")
    return header
