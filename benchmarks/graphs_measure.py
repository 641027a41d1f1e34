"""How the graph benchmarks measure: interleaved times, peaks in processes of their own, and the record they write."""

from __future__ import annotations

import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

Step = Callable[[], Any]


def interleaved_seconds(steps: Mapping[str, Step], repeats: int, warmup: int, device: str) -> dict[str, list[float]]:
    """Seconds of each step, A B A B; on a GPU until its work is done."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + warmup):
        for name, step in steps.items():
            synchronise(device)
            start = time.perf_counter()
            step()
            synchronise(device)
            if repeat >= warmup:
                times[name].append(time.perf_counter() - start)
    return times


def ratio_to(times: Mapping[str, list[float]], peer: str, name: str) -> float:
    """The median of the paired ratios."""
    return statistics.median(b / a for a, b in zip(times[peer], times[name], strict=True))


def peak_bytes(make: Callable[[], Step], warm: Callable[[], Step], device: str) -> int:
    """The peak of two steps above what model, inputs and libraries hold.

    Args:
        make: makes the step to measure.
        warm: makes a small one, run before, so that libraries have loaded what they need.
        device: "cuda" asks the allocator here; "cpu" forks a process and reads its high-water mark (Linux). Call it
            before this process has run steps of its own, whose freed memory a fork would take over.
    """
    if device == "cuda":
        step = make()
        step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure_peak, args=(make, warm, theirs))
    process.start()
    theirs.close()
    try:
        return int(ours.recv())
    finally:
        process.join()


def write_record(path: Path, device: str, rows: list[Any], **settings: Any) -> None:
    """The rows with what they were measured on, as JSON."""
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu_name()
    record = {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **settings,
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def synchronise(device: str) -> None:
    """Waits for the GPU, if there is one in use."""
    if device == "cuda":
        torch.cuda.synchronize()


def _measure_peak(make: Callable[[], Step], warm: Callable[[], Step], answer: Any) -> None:
    warm()()
    step = make()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is held now
    before = _high_water_bytes()
    for _ in range(2):
        step()
    answer.send(_high_water_bytes() - before)


def _high_water_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
