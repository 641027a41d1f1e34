"""Runs a controller on a cluster of worker processes: looks at it now and then and changes roles."""

from __future__ import annotations

import asyncio
import time

from heliograph.serving.core.cluster import Cluster
from heliograph.serving.core.sim_cluster import Controller, SetRole, Snapshot

__all__ = ["control"]


async def control(cluster: Cluster, controller: Controller, every_s: float = 0.2) -> None:
    """Until cancelled. A change that a hand-over forbids is dropped; the controller asks again if it still wants it.

    Moving a request (:class:`Migrate`) is known to simulated clusters only and is ignored here.

    Args:
        cluster: started.
        controller: for example the cluster's own :class:`SloAwareRouter`.
        every_s: between two looks.
    """
    while True:
        for action in controller.observe(Snapshot(time.monotonic(), tuple(cluster.views))):
            if isinstance(action, SetRole):
                cluster.set_role(action.instance, action.role)
        await asyncio.sleep(every_s)
