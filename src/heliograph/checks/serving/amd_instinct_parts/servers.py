"""Which server a workload means: heliograph's engine with a model or a random one, or the echo server."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heliograph.serving.load.launch import ServerProcess, echo_command, free_port, launch_server, serve_command

__all__ = ["open_server"]


@contextmanager
def open_server(load: Any) -> Iterator[ServerProcess]:
    """The server of a workload, one thread, on this machine.

    ``server`` is "echo", "random" for random weights of the shape ``config`` on a GPU, or the name or path of a model;
    ``flags`` are those of its command.
    """
    port = free_port()
    flags = [str(flag) for flag in load["flags"]]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        if load["server"] == "echo":
            command = echo_command(port, flags)
        elif load["server"] == "random":
            (Path(folder) / "config.json").write_text(json.dumps(load["config"]))
            drawn = ["--random-weights", "--device", "cuda", "--dtype", "bfloat16"]
            command = serve_command(folder, port, [*drawn, *flags])
        else:
            command = serve_command(load["server"], port, flags)
        with launch_server(command, port, timeout_s=90.0, env=env) as server:
            yield server
