"""Runs one trial in the current process: seeds, measures, times, and reads how much it took.

The process is expected to be fresh; the fork server and Ray both see to that. The standard library is enough here.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import resource
import socket
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from heliograph.trials.check import Context, Experiment, Workload
from heliograph.trials.plan import Trial, load_experiments
from heliograph.trials.record import TrialRecord, check_metrics

__all__ = ["Emit", "execute_trial"]

Emit = Callable[[str, Any], None]
"""Receives ``("say", text)`` and ``("progress", (fraction, latest))`` while a trial runs."""

TAIL_CHARACTERS = 8000
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


class TrialContext:
    """The :class:`~heliograph.trials.check.Context` of a running trial."""

    def __init__(self, trial: Trial, emit: Emit) -> None:
        self.workload: Workload = trial.workload
        self.contender = trial.contender
        self.seed, self.block = trial.seed, trial.block
        self.preset, self.device = trial.preset, trial.device
        self.said: list[str] = []
        self.detail: dict[str, Any] = {}
        self._emit = emit
        self.begin_bytes = 0
        self._last_progress = 0.0

    def say(self, text: str) -> None:
        """Shows one line and keeps it with the record."""
        self.said.append(text)
        self._emit("say", text)

    def progress(self, fraction: float, latest: str = "") -> None:
        """Tells how far the trial is; at most ten times a second."""
        now = time.monotonic()
        if now - self._last_progress >= 0.1:
            self._last_progress = now
            self._emit("progress", (fraction, latest))

    def keep(self, name: str, value: Any) -> None:
        """Keeps JSON-ready detail with the record."""
        self.detail[name] = value

    def reset_memory(self) -> None:
        """Counts the peak of memory from here on; freed blocks go back at once, so that the peak is what is live."""
        gc.collect()
        _return_freed_memory()
        self.begin_bytes = _reset_peak()
        if self.device != "cpu":
            import torch

            torch.cuda.reset_peak_memory_stats()


def execute_trial(trial: Trial, emit: Emit) -> TrialRecord:
    """Runs ``trial`` here and now; an exception becomes a ``crashed`` record."""
    context = TrialContext(trial, emit)
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    _seed_everything(trial.seed)
    gc.collect()
    context.begin_bytes = _reset_peak()
    cpu, wall = time.process_time(), time.perf_counter()
    status, tail = "ok", ""
    metrics: Mapping[str, Mapping[str, Any]] = {}
    try:
        experiment = load_experiments(trial.check).experiment(trial.experiment)
        metrics = _measure(trial, experiment, context)
    except MemoryError as error:
        status, tail = "out_of_memory", f"{type(error).__name__}: {error}"
    except Exception:
        status, tail = "crashed", traceback.format_exc()[-TAIL_CHARACTERS:]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak, device_peak = max(0, _peak_bytes() - context.begin_bytes), _device_peak()
    if status == "ok" and trial.contender:
        memory = peak if trial.device == "cpu" else device_peak
        own = {"memory_bytes": memory, "peak_bytes": peak, "peak_device_bytes": device_peak, "seconds": wall}
        metrics = {trial.contender: own | dict(metrics[trial.contender])}
    return TrialRecord(
        trial=trial.id,
        slug=trial.slug,
        experiment=trial.experiment,
        workload=trial.workload.name,
        block=trial.block,
        seed=trial.seed,
        contender=trial.contender,
        status=status,  # type: ignore[arg-type]
        metrics=metrics,
        detail=context.detail,
        said=tuple(context.said),
        wall_s=wall,
        cpu_s=cpu,
        peak_bytes=peak,
        peak_device_bytes=device_peak,
        tail=tail,
        host=socket.gethostname(),
        started_at=started_at,
    )


def _measure(trial: Trial, experiment: Experiment, context: TrialContext) -> dict[str, dict[str, Any]]:
    measured = experiment.measure(context)
    if experiment.kind == "solo":
        return {trial.contender: check_metrics(measured)}
    seconds = _time_interleaved(measured, trial, context)
    context.keep("seconds", seconds)
    return {arm: {"seconds": statistics.median(times)} for arm, times in seconds.items()}


def _time_interleaved(arms: Mapping[str, Any], trial: Trial, context: Context) -> dict[str, list[float]]:
    """Warms each arm up, then times A B A B; on a GPU, waits for the device around each run."""
    wait = _device_wait(trial.device)
    for run in arms.values():
        for _ in range(trial.warmup):
            run()
    wait()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for repeat in range(trial.repeats):
            for name, run in arms.items():
                begin = time.perf_counter()
                run()
                wait()
                seconds[name].append(time.perf_counter() - begin)
            context.progress((repeat + 1) / trial.repeats)
    finally:
        if collecting:
            gc.enable()
    return seconds


def _device_wait(device: str) -> Callable[[], None]:
    if device == "cpu":
        return lambda: None
    import torch

    return torch.cuda.synchronize


def _seed_everything(seed: int) -> None:
    """Seeds the global generators too, so that a library's hidden draw is the same each time."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.manual_seed(seed)
        torch.set_num_threads(1)


def _return_freed_memory() -> None:
    """Fixes glibc's threshold: by itself it moves with what was freed before, and equal work shows unequal peaks."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 20)
            libc.mallopt(M_TRIM_THRESHOLD, 1 << 20)
            libc.malloc_trim(0)


def _reset_peak() -> int:
    """Resets the kernel's mark of the highest resident size; returns the bytes resident now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status_bytes("VmRSS")
    except (OSError, ValueError):
        return _rusage_peak()


def _peak_bytes() -> int:
    try:
        return _status_bytes("VmHWM")
    except (OSError, ValueError):
        return _rusage_peak()


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(field)


def _rusage_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _device_peak() -> int:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.max_memory_allocated())


def one_thread_environment() -> dict[str, str]:
    """The environment in which trials run: one thread each, a fixed hash seed."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, "1"), "PYTHONHASHSEED": "0"}
