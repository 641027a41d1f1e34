"""What a Ray actor runs: it starts a worker process beside itself and says where it listens.

Imports the standard library only, so that an actor is up as fast as Ray can start one.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from typing import Any

__all__ = ["Keeper"]


class Keeper:
    """Keeps one worker process of its machine.

    Args:
        module: that the process runs.
        settings: its first line of standard input.
        routed: address of some machine of the cluster, toward which this machine's own address is found.
    """

    def __init__(self, module: str, settings: dict[str, Any], routed: str) -> None:
        self.host = _own_address(routed)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe that nobody reads would fill and stop the worker
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({**settings, "host": self.host}).encode() + b"\n")
        self.process.stdin.flush()
        self._lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        self._lines.put(self.process.stdout.readline())

    def ready(self, timeout_s: float) -> tuple[dict[str, Any] | None, str]:
        """What the worker told and its address, or None and the last line that it said before it ended."""
        try:
            line = self._lines.get(timeout=timeout_s)
            return {**json.loads(line), "host": self.host}, ""
        except (queue.Empty, ValueError):
            self.kill()
            self._said.seek(0)
            last = self._said.read().decode(errors="replace").strip().splitlines()[-1:]
            return None, (last or [f"it said nothing within {timeout_s:g} s"])[0]

    def kill(self) -> None:
        """Ends the worker and what it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _own_address(routed: str) -> str:
    if routed in ("127.0.0.1", "localhost"):
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((routed, 9))  # nothing is sent
        return str(probe.getsockname()[0])
