"""Runs the same trials on a Ray cluster.

A Ray task holds a machine's cores and runs its trial there by the local executor, so a trial has the same fresh
process, limits and record wherever it runs. Timed trials take all cores of their machine.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from heliograph.errors import BadInput, MissingExtra
from heliograph.trials.local import Event, LocalExecutor, OnEvent
from heliograph.trials.plan import Trial
from heliograph.trials.record import TrialRecord, failed_record

__all__ = ["RayExecutor"]

POLL_S = 0.5


def _execute(trial: dict[str, Any], preload: tuple[str, ...], paths: list[str]) -> dict[str, Any]:
    """In a Ray worker: runs one trial as this machine would; what it says comes back with the record."""
    sys.path[:0] = [p for p in paths if p not in sys.path]
    records: list[TrialRecord] = []

    def keep(event: Event) -> None:
        if event.record is not None:
            records.append(event.record)

    LocalExecutor(preload, workers=1).run([Trial.from_json(trial)], keep)
    return records[0].to_json()


class RayExecutor:
    """Trials as Ray tasks.

    Connects to ``RAY_ADDRESS`` where set, else starts a local cluster and ends it afterwards.

    Args:
        preload: modules that each trial's fork server imports.
        address: of the cluster.

    Raises:
        MissingExtra: Ray is not installed.
    """

    def __init__(self, preload: Sequence[str] = (), address: str | None = None) -> None:
        try:
            import ray
        except ImportError:
            raise MissingExtra("ray", "ray") from None
        self._ray = ray
        self._preload = tuple(preload)
        self._address = address or os.environ.get("RAY_ADDRESS")

    def run(self, trials: Sequence[Trial], on_event: OnEvent) -> None:
        """Runs all trials; a lost worker becomes a failed record.

        Raises:
            BadInput: the cluster cannot be reached.
        """
        if not trials:
            return
        ours = not self._ray.is_initialized()
        if ours:
            self._connect()
        try:
            self._run_all(trials, on_event)
        finally:
            if ours:
                self._ray.shutdown()

    def _connect(self) -> None:
        try:
            self._ray.init(
                address=self._address, logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise BadInput(f"no Ray cluster at {self._address or 'this machine'}: {error}") from None

    def _run_all(self, trials: Sequence[Trial], on_event: OnEvent) -> None:
        remote = self._ray.remote(max_retries=0)(_execute)
        nodes = self._ray.nodes()  # type: ignore[no-untyped-call]
        whole = max((node["Resources"].get("CPU", 0) for node in nodes if node["Alive"]), default=1)
        paths = [str(Path(p).resolve()) for p in sys.path if p]
        waiting: dict[Any, Trial] = {}
        try:
            for trial in trials:
                options = {"num_cpus": whole if trial.exclusive else 1, "num_gpus": int(trial.device == "cuda")}
                reference = remote.options(**options).remote(trial.to_json(), self._preload, paths)
                waiting[reference] = trial
                on_event(Event("started", trial))
            while waiting:
                ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=POLL_S)
                for reference in ready:
                    trial = waiting.pop(reference)
                    record = self._record(reference, trial)
                    for line in record.said:
                        on_event(Event("said", trial, line))
                    on_event(Event("finished", trial, record=record))
        finally:
            for reference in waiting:
                self._ray.cancel(reference, force=True)

    def _record(self, reference: Any, trial: Trial) -> TrialRecord:
        try:
            return TrialRecord.from_json(self._ray.get(reference))
        except self._ray.exceptions.OutOfMemoryError as error:
            return failed_record(trial, "out_of_memory", str(error))
        except self._ray.exceptions.RayError as error:
            return failed_record(trial, "crashed", str(error))
