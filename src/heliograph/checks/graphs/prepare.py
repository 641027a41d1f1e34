"""Writes the graphs that checks read into a folder, for a machine without the packages that make them.

``python -m heliograph.checks.graphs.prepare grit gnn_plus --preset gpu --output FOLDER`` where RDKit is installed; then
carry FOLDER, and run the check with ``HELIOGRAPH_HOME=FOLDER``. Files that are there already are kept.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from heliograph.errors import BadInput, HeliographError
from heliograph.graphs.core.prepared import MAKERS, task_path
from heliograph.graphs.core.tasks import load_task
from heliograph.trials.check import PRESETS
from heliograph.trials.plan import make_plan
from heliograph.trials.run import find_check

__all__ = ["Draw", "draws_of", "main", "prepare"]

Draw = tuple[str, int, tuple[tuple[str, int], ...]]
"""Name of a task, seed, and its sizes by side."""


def draws_of(slugs: Sequence[str], preset: str) -> list[Draw]:
    """What the checks of these systems draw at a preset, each once.

    Raises:
        UnknownSystem: there is no such check. BadInput: none of them reads graphs that are kept.
    """
    found: dict[Draw, None] = {}
    for slug in slugs:
        for trial in make_plan(find_check(slug), preset).trials:
            load = trial.workload.params
            if load.get("task") in MAKERS:
                sizes = tuple(sorted({"train": load["train"], "valid": 0, "test": load["test"]}.items()))
                found[load["task"], trial.seed, sizes] = None
    if not found:
        raise BadInput(f"{', '.join(slugs)} at preset {preset} read no graphs of {' or '.join(MAKERS)}")
    return list(found)


def prepare(slugs: Sequence[str], preset: str, folder: Path) -> list[Path]:
    """Writes the file of every draw below ``folder / "cache" / "tasks"``, and says where they are.

    Raises:
        BadInput: the cache folder of this machine cannot be written. MissingData: a package is missing here too.
    """
    home = folder / "cache" / "tasks"
    home.mkdir(parents=True, exist_ok=True)
    out = []
    for name, seed, sizes in draws_of(slugs, preset):
        kept = task_path(name, seed, dict(sizes))
        place = home / kept.name
        if not place.is_file():
            load_task(name, seed, **dict(sizes))
            if not kept.is_file():
                raise BadInput(f"{kept} could not be written; let HELIOGRAPH_HOME name a folder with room")
            shutil.copyfile(kept, place)
            sys.stderr.write(f"{place.name}: {place.stat().st_size / 2**20:.2f} MiB\n")
        out.append(place)
    return out


def main(arguments: list[str] | None = None) -> int:
    """The command; 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m heliograph.checks.graphs.prepare", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("slugs", nargs="+", metavar="SLUG", help="systems whose checks shall run elsewhere")
    parser.add_argument("--preset", choices=PRESETS, default="gpu")
    parser.add_argument("--output", type=Path, required=True, help="folder to carry; HELIOGRAPH_HOME there")
    options = parser.parse_args(arguments)
    try:
        files = prepare(options.slugs, options.preset, options.output)
    except HeliographError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    total = sum(file.stat().st_size for file in files)
    sys.stdout.write(f"{len(files)} files, {total / 2**20:.1f} MiB in {options.output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
