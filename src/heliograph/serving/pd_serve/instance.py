"""An instance of a group as a gateway drives it: the common instance, which also takes offers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from dataclasses import asdict

from heliograph.errors import BadInput
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

    def __init__(self, name: str, role: PDRole, setup: PDWorkerConfig) -> None:
        super().__init__(name, role, setup.worker)
        self.setup = setup

    @property
    def name(self) -> str:
        """Its own."""
        return self.view.name

    async def start(self, timeout_s: float = 120.0) -> None:
        """Starts the process and connects.

        Raises:
            BadInput: it ended before it was ready; the message holds what it printed.
        """
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "heliograph.serving.pd_serve.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(self.setup)).encode() + b"\n")
        try:
            ready = json.loads(await asyncio.wait_for(self._process.stdout.readline(), timeout_s))
        except (TimeoutError, ValueError):
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            _, said = await self._process.communicate()
            last = said.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise BadInput(f"instance {self.name} did not start: {last[0]}") from None
        self.pid, self.fingerprint = int(ready["pid"]), str(ready["fingerprint"])
        self.view.num_blocks, self.view.block_size = int(ready["num_blocks"]), int(ready["block_size"])
        reader, self._writer = await asyncio.open_connection(self.config.host, ready["port"])
        self.heard_at = time.monotonic()
        self._reading = asyncio.create_task(self._read(reader))

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
