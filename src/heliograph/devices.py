"""What this machine is, and what it measures; the standard library alone reads it, numpy is used to measure.

Rates are measured with plain large operations, so they are what ordinary code can reach here, not a data sheet's.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["Gpu", "Machine", "MachineRates", "measure_machine", "package_versions", "this_machine"]

PACKAGES = (
    *("heliograph", "numpy", "scipy", "torch", "triton", "torch-geometric"),
    *("rdkit", "molsets", "modlamp", "stim", "pymatching", "scikit-fem"),
)


@dataclass(frozen=True)
class Gpu:
    """One accelerator: its name and memory in bytes (0 where the driver does not say)."""

    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Machine:
    """The facts of a machine that decide what a measurement on it means.

    Attributes:
        cpu: model name.
        cores: cores that this process may use.
        memory_bytes: main memory (the container's limit where one is set).
        gpus: accelerators seen by the driver.
        system: operating system and release.
        python: interpreter and version.
    """

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    python: str
    gpus: tuple[Gpu, ...] = field(default=())

    @property
    def label(self) -> str:
        """One line for tables, for example ``"1x NVIDIA H100, 16 cores AMD EPYC, 128 GiB"``."""
        gpus = f"{len(self.gpus)}x {self.gpus[0].name}, " if self.gpus else ""
        return f"{gpus}{self.cores} cores {self.cpu}, {self.memory_bytes / 2**30:.0f} GiB"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"gpus": [asdict(gpu) for gpu in self.gpus], "label": self.label}


@dataclass(frozen=True)
class MachineRates:
    """Measured rates: float32 matrix product and memory copy, one thread."""

    matmul_gflop_per_s: float
    copy_gb_per_s: float


def this_machine() -> Machine:
    """Reads what this machine is, without touching CUDA."""
    return Machine(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        gpus=_gpus(),
    )


def measure_machine(repeats: int = 5) -> MachineRates:
    """Measures this machine in about a second; the best of ``repeats`` runs."""
    import numpy as np

    size = 512
    a, b = np.ones((size, size), np.float32), np.ones((size, size), np.float32)
    source = np.ones(2**23, np.float64)
    target = np.empty_like(source)
    matmul_s, copy_s = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        middle = time.perf_counter()
        np.copyto(target, source)
        matmul_s.append(middle - start)
        copy_s.append(time.perf_counter() - middle)
    return MachineRates(2 * size**3 / min(matmul_s) / 1e9, 2 * source.nbytes / min(copy_s) / 1e9)


def package_versions(
    names: tuple[str, ...] = PACKAGES,
) -> dict[str, str]:
    """Installed versions of the packages that decide a result; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model")) and (name := line.partition(":")[2].split()):
                return " ".join(name)
    except OSError:
        pass
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    try:
        total = max(0, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        total = 0
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = int(Path(path).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        total = min(total, limit) if total else limit
    return total


def _gpus() -> tuple[Gpu, ...]:
    found = []
    lines = _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    for line in lines.splitlines():
        name, _, memory = line.rpartition(",")
        memory = memory.strip()
        if name.strip() and (memory.isdecimal() or memory == "[N/A]"):
            found.append(Gpu(name.strip(), int(memory) * 2**20 if memory.isdecimal() else 0))
    return tuple(found)


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, check=True)
        return done.stdout.decode(errors="replace").strip()
    except (subprocess.SubprocessError, OSError):
        return ""
