"""Ends a server when the process that launched it is gone, however that ended.

``python -m heliograph.serving.load.watch`` reads the server's process id from standard input, a pipe of the launching
process, and then waits for the end of the pipe: the system closes it for a process that was killed, too. It stays in a
session of its own, so that what kills the launching process's group leaves it alive, and it works for any command.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

__all__ = ["end_server", "guarded"]

GRACE_S = 10.0


@contextmanager
def guarded() -> Iterator[Callable[[int], None]]:
    """For the time of a ``with`` block, a process that ends a server should this process die.

    The block is given a function that takes the server's process id, to be called as soon as it is known.
    """
    watcher = subprocess.Popen(
        [sys.executable, "-m", "heliograph.serving.load.watch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    pipe = watcher.stdin
    assert pipe is not None

    def watch(pid: int) -> None:
        with contextlib.suppress(BrokenPipeError):
            pipe.write(f"{pid}\n".encode())
            pipe.flush()

    try:
        yield watch
    finally:
        watcher.kill()
        watcher.wait()
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


def end_server(server: psutil.Process, grace_s: float = GRACE_S) -> None:
    """First a request to end, then force; children of the server as well."""
    try:
        family = server.children(recursive=True)
        server.terminate()
    except psutil.NoSuchProcess:
        return
    with contextlib.suppress(psutil.TimeoutExpired):
        server.wait(grace_s)
    for process in (server, *family):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def main() -> None:
    """Waits and ends the server whose process id it is told."""
    told = sys.stdin.buffer.readline()
    if not told:  # there is no server yet
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        server = psutil.Process(int(told))  # knows it by its start, too, should another process get its id
        sys.stdin.buffer.read()
        end_server(server)


if __name__ == "__main__":
    main()
