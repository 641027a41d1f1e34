"""What a run is doing this moment, in a small file that any other process may read."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["LiveFile", "LiveState", "read_live"]

WRITE_EVERY_S = 0.4


@dataclass(frozen=True)
class LiveState:
    """The state of a running check.

    Attributes:
        run: its id.
        pid: the process that runs it.
        done: trials finished.
        planned: trials in all.
        current: the trials now running, readable.
        latest: the latest metric in words.
        said: the last lines that trials showed.
        seconds_left: estimate, or ``None``.
        updated_at: Unix time of writing.
    """

    run: str
    pid: int
    done: int
    planned: int
    current: tuple[str, ...]
    latest: str
    said: tuple[str, ...]
    seconds_left: float | None
    updated_at: float


class LiveFile:
    """Writes a :class:`LiveState` at most every 0.4 s; a full disk never stops the run for it."""

    def __init__(self, folder: Path, run: str) -> None:
        self.path = folder / "live" / f"{run}.json"
        self._written = 0.0

    def write(self, state: LiveState, *, force: bool = False) -> None:
        """Replaces the file's contents in one step."""
        now = time.monotonic()
        if not force and now - self._written < WRITE_EVERY_S:
            return
        self._written = now
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(asdict(state)), encoding="utf-8")
            part.replace(self.path)

    def remove(self) -> None:
        """Takes the file away when the run has ended."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def read_live(folder: Path, run: str) -> LiveState | None:
    """The state of a run, or ``None`` if it is not running; a file left by a killed process counts as not running."""
    try:
        data = json.loads((folder / "live" / f"{run}.json").read_text(encoding="utf-8"))
        state = LiveState(**{**data, "current": tuple(data["current"]), "said": tuple(data["said"])})
        os.kill(state.pid, 0)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return state
