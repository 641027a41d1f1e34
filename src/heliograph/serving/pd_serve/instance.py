"""An instance of a group as a gateway drives it: the common instance, which also takes offers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from heliograph.serving.core.cluster import Instance, InstanceLost
from heliograph.serving.pd_serve.admission import Accept, Offer, Reject
from heliograph.serving.pd_serve.group import PDRole
from heliograph.serving.pd_serve.transfer import KVShape
from heliograph.serving.pd_serve.worker import PDWorkerConfig

__all__ = ["PDInstance"]


class PDInstance(Instance):
    """A worker process of a group.

    Args:
        name, role: its own; the role is given here, the process does not know it.
        setup: of the process.
    """

    module = "heliograph.serving.pd_serve.worker"

    def __init__(self, name: str, role: PDRole, setup: PDWorkerConfig) -> None:
        super().__init__(name, role, setup.worker)
        self.setup = setup

    @property
    def name(self) -> str:
        """Its own."""
        return self.view.name

    def _settings(self) -> Mapping[str, Any]:
        return asdict(self.setup)

    async def offer(self, offer: Offer) -> Accept | Reject:
        """Asks whether a prompt can start there now; an instance that is gone says no."""
        try:
            answer = await self.call("offer", 5.0, **asdict(offer))
        except InstanceLost:
            return Reject("draining")
        return Accept(str(answer["accept"])) if "accept" in answer else Reject(answer["reject"])

    async def withdraw(self, key: str) -> None:
        """Gives a reservation back."""
        with contextlib.suppress(InstanceLost):
            await self.call("withdraw", 5.0, key=key)

    async def shape(self) -> KVShape:
        """Of its cache."""
        return KVShape(**await self.call("shape"))
