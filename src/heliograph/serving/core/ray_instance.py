"""Instances on the machines of a Ray cluster: an actor starts the same worker process there, and the router connects.

The actor only keeps the process; requests and transfers go over the workers' own sockets, as they do on one machine.
The worker ends with its router's connection, so that nothing is left behind when the driver goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Mapping
from typing import Any

from heliograph.errors import BadInput, MissingExtra
from heliograph.serving.core.instance import Instance, Role
from heliograph.serving.core.ray_keeper import Keeper
from heliograph.serving.core.worker import WorkerConfig

__all__ = ["RayInstance"]


class RayInstance(Instance):
    """A worker that a Ray actor started, wherever Ray has room; Ray is joined, or started here, when the first starts.

    Args:
        name, role, config: as of :class:`~heliograph.serving.core.cluster.Instance`; the host is the machine's own.
        resources: what Ray sets aside for it, for example ``{"num_cpus": 4}`` or ``{"num_gpus": 1}``.
    """

    def __init__(
        self, name: str, role: Role, config: WorkerConfig, *, resources: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(name, role, config)
        self.resources = {"num_cpus": 0.1, **(resources or {})}
        self._actor: Any = None

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
        alive = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        here = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        routed = "127.0.0.1" if set(alive) == {here} else here
        keeper: Any = ray.remote(Keeper)
        self._actor = keeper.options(max_restarts=0, **self.resources).remote(
            self.module, dict(self._settings()), routed
        )
        answer = self._actor.ready.remote(timeout_s).future()
        try:
            ready, said = await asyncio.wait_for(asyncio.wrap_future(answer), timeout_s + 30)
        except TimeoutError:
            self._kill()
            there = ray.cluster_resources()  # type: ignore[no-untyped-call]
            raise BadInput(
                f"instance {self.view.name} did not start: Ray gave its actor no place within {timeout_s + 30:g} s "
                f"(it asks for {self.resources}; the cluster has {there})"
            ) from None
        except ray.exceptions.RayError as error:
            self._kill()
            raise BadInput(f"instance {self.view.name} did not start: {error}") from None
        if ready is None:
            self._kill()
            raise BadInput(f"instance {self.view.name} did not start: {said}")
        found: Mapping[str, Any] = ready
        return found

    def _kill(self) -> None:
        actor, self._actor = self._actor, None
        if actor is not None:  # beside the loop: a machine that is gone does not answer
            threading.Thread(target=_end, args=(actor,)).start()

    async def close(self) -> None:
        """Ends the worker and its actor."""
        await super().close()
        actor, self._actor = self._actor, None
        if actor is not None:
            await asyncio.to_thread(_end, actor)


def _end(actor: Any) -> None:
    import ray

    with contextlib.suppress(Exception):  # the actor may be gone with its machine
        ray.get(actor.kill.remote(), timeout=5)
    with contextlib.suppress(Exception):
        ray.kill(actor)
