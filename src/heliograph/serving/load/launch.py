"""Starts a server as a process, waits until it answers, and ends it with all its children."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from heliograph.errors import HeliographError
from heliograph.serving.load.watch import end_server, guarded

__all__ = ["ServerFailed", "ServerProcess", "echo_command", "free_port", "launch_server", "serve_command"]


class ServerFailed(HeliographError):
    """A server did not start, or ended by itself; the message holds the end of what it printed."""

    exit_code = 1


@dataclass(frozen=True)
class ServerProcess:
    """A running server: where it listens, its process, and the file that takes what it prints."""

    url: str
    pid: int
    log: Path

    def cpu_s(self) -> float:
        """Processor seconds of it and its children so far."""
        process = psutil.Process(self.pid)
        total = 0.0
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                used = one.cpu_times()
                total += used.user + used.system
        return total


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve_command(model: str, port: int, flags: Sequence[str] = ()) -> list[str]:
    """The command that serves a model by heliograph's own engine."""
    own = [sys.executable, "-m", "heliograph.cli", "serve", model]
    return [*own, "--host", "127.0.0.1", "--port", str(port), *flags]


def echo_command(port: int, flags: Sequence[str] = ()) -> list[str]:
    """The command that starts the echo server."""
    return [sys.executable, "-m", "heliograph.serving.load.echo", "--port", str(port), *flags]


@contextmanager
def launch_server(
    command: Sequence[str],
    port: int,
    *,
    timeout_s: float = 120.0,
    env: Mapping[str, str] | None = None,
    ready: str = "/health",
) -> Iterator[ServerProcess]:
    """A server for the time of a ``with`` block; it is ended whatever happens inside, and if this process is killed.

    Args:
        command: its arguments.
        port: where it will listen on this host.
        timeout_s: for its start.
        env: of its process; this one's where None.
        ready: the path that answers 200 once it can serve.

    Raises:
        ServerFailed: it cannot be started, ended early, or was not ready in time.
    """
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder, guarded() as watch:
        log = Path(folder) / "server.log"
        with log.open("wb") as output:
            try:
                child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env
                )
            except OSError as error:
                raise ServerFailed(f"cannot start {command[0]}: {error.strerror}") from None
            server = psutil.Process(child.pid)
            try:
                watch(child.pid)
                _await_ready(child, url + ready, timeout_s, log)
                yield ServerProcess(url, child.pid, log)
            finally:
                end_server(server)
                child.wait()


def _await_ready(child: subprocess.Popen[bytes], url: str, timeout_s: float, log: Path) -> None:
    deadline = time.monotonic() + timeout_s
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        if child.poll() is not None:
            raise ServerFailed(f"the server ended with code {child.returncode} before it was ready:\n{_tail(log)}")
        with contextlib.suppress(OSError, urllib.error.URLError), opener.open(url, timeout=2.0) as answer:
            if answer.status == 200:
                return
        if time.monotonic() > deadline:
            raise ServerFailed(f"the server was not ready within {timeout_s:g} s:\n{_tail(log)}")
        time.sleep(0.05)


def _tail(log: Path, characters: int = 2000) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-characters:] or "(it printed nothing)"
