"""Instances on the machines of a Ray cluster: an actor starts the same worker process there, and the router connects.

The actor only keeps the process; requests and transfers go over the workers' own sockets, as they do on one machine.
The worker ends with its router's connection, so that nothing is left behind when the driver goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from heliograph.errors import BadInput, MissingExtra
from heliograph.serving.core.cluster import WORKER_COMMAND, Instance

__all__ = ["RayInstance"]


class _Keeper:
    """Starts a worker beside itself and says where it listens."""

    def __init__(self, config: dict[str, Any]) -> None:
        import ray.util

        self.host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self.process = subprocess.Popen(
            WORKER_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({**config, "host": self.host}) + "\n")
        self.process.stdin.flush()

    def ready(self) -> tuple[dict[str, Any] | None, str]:
        """What the worker told, or what it said when it ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            return None, self.process.communicate()[1]
        return {**json.loads(line), "host": self.host}, ""

    def kill(self) -> None:
        """Ends the worker."""
        self.process.kill()


class RayInstance(Instance):
    """A worker that a Ray actor started, wherever Ray has room; Ray is joined or started when the first one starts."""

    _actor: Any = None

    async def _launch(self, timeout_s: float) -> Mapping[str, Any]:
        try:
            import ray
        except ImportError as error:
            raise MissingExtra("ray", "ray") from error
        if not ray.is_initialized():
            try:
                ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
            except Exception as error:  # Ray raises Exception itself where a node does not come up
                raise BadInput(f"Ray did not start: {error}") from None
        self._actor = ray.remote(_Keeper).options(num_cpus=0.5).remote(asdict(self.config))
        try:
            ready, said = await asyncio.wait_for(asyncio.wrap_future(self._actor.ready.remote().future()), timeout_s)
        except TimeoutError:
            self._kill()
            raise self._not_started(f"no answer within {timeout_s:g} s") from None
        if ready is None:
            self._kill()
            raise self._not_started(said)
        found: Mapping[str, Any] = ready
        return found

    def _kill(self) -> None:
        if self._actor is not None:
            import ray

            with contextlib.suppress(Exception):  # the actor may be gone with its machine
                self._actor.kill.remote()
                ray.kill(self._actor)

    async def close(self) -> None:
        """Ends the worker and its actor."""
        await super().close()
        self._kill()
