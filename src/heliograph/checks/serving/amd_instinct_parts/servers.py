"""Which server a workload means: heliograph's engine with a model, or the echo server with its modelled steps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from heliograph.serving.load.launch import ServerProcess, echo_command, free_port, launch_server, serve_command

__all__ = ["open_server"]


@contextmanager
def open_server(load: Any) -> Iterator[ServerProcess]:
    """The server of a workload, one thread, on this machine.

    ``server`` is "echo" or the name or path of a model; ``flags`` are those of its command.
    """
    port = free_port()
    flags = [str(flag) for flag in load["flags"]]
    command = echo_command(port, flags) if load["server"] == "echo" else serve_command(load["server"], port, flags)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with launch_server(command, port, timeout_s=60.0, env=env) as server:
        yield server
