"""An instance of a group as a process: the common worker, which also answers offers and sends contiguous caches.

Its settings are one JSON object on standard input's first line; it lives as long as its gateway's connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from heliograph.errors import BadInput
from heliograph.serving.core.async_engine import AsyncEngine
from heliograph.serving.core.engine import Engine
from heliograph.serving.core.frames import Pace, write_frame
from heliograph.serving.core.torch_executor import TorchExecutor
from heliograph.serving.core.worker import Worker, WorkerConfig, event_to_wire
from heliograph.serving.pd_serve.admission import Accept, Offer, PrefillAdmission, PrefillLimits
from heliograph.serving.pd_serve.transfer import ContiguousKV, KVShape
from heliograph.serving.pd_serve.wire import ContiguousFetch, ContiguousKVServer

__all__ = ["PDWorkerConfig", "main"]


@dataclass(frozen=True)
class PDWorkerConfig:
    """How an instance of a group is set up.

    Attributes:
        worker: settings of the common worker.
        slots: prompts computed at once.
        send_buffer_bytes: for keys and values on their way out.
        reservation_s: how long an accepted prompt may take to come.
        layers_per_message: of transfers; None for one message.
    """

    worker: WorkerConfig = field(default_factory=WorkerConfig)
    slots: int = 1
    send_buffer_bytes: int = 2**28
    reservation_s: float = 5.0
    layers_per_message: int | None = None

    @classmethod
    def from_json(cls, text: str) -> PDWorkerConfig:
        """From the JSON of its fields."""
        value = json.loads(text)
        return cls(**{**value, "worker": WorkerConfig(**value["worker"])})


class PDWorker(Worker):
    """Carries out what a gateway asks."""

    def __init__(self, config: PDWorkerConfig) -> None:
        import torch

        from heliograph.lm.core.load import load_model

        own = config.worker
        if own.threads is not None:
            torch.set_num_threads(own.threads)
        settings = dict(own.engine or {})
        device, dtype = settings.pop("device", "cpu"), settings.pop("dtype", "float32")
        model = load_model(own.model, device=device, dtype=getattr(torch, dtype), layers=own.layers)
        engine = Engine(model, **settings)
        pool = engine.core.kv.pool
        self.transfers: ContiguousKVServer = ContiguousKVServer(
            own.host, transfer=ContiguousKV(config.layers_per_message), pace=Pace(own.bytes_per_s)
        )
        self.engine = AsyncEngine(
            engine,
            max_waiting=own.max_waiting,
            address=self.transfers.address,
            fetch=ContiguousFetch(pool.block_size),
            lease_s=own.lease_s,
            on_transfer_failure="fail" if own.on_transfer_failure == "fail" else "recompute",
        )
        self.transfers.engine = self.engine
        self.tasks: dict[str, asyncio.Task[None]] = {}
        limits = PrefillLimits(
            config.slots,
            pool.num_blocks,
            pool.block_size,
            config.send_buffer_bytes,
            engine.kv_bytes_per_token,
            config.reservation_s,
        )
        leases = engine.core.kv.leases
        self.admission = PrefillAdmission(limits, engine.core.clock.now, lambda key: key in leases)

    async def _generate(self, name: str, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        """A producer's request comes under its reservation's key; everything that it reserved ends with it."""
        if not message.get("producer"):
            await super()._generate(name, message, writer)
            return
        if not self.admission.start(name):
            self.tasks.pop(name, None)
            await write_frame(writer, {"id": name, "overloaded": 1.0})
            return
        leaves = False
        try:
            request = self._request(name, message)
            async for event in self.engine.stream(request):
                if event.finish == "length" and event.ticket is not None:
                    leaves = True
                    self.admission.prefilled(name)  # before the gateway hears of it: the slot is free
                await write_frame(writer, {"id": name, "event": event_to_wire(event)})
        except BadInput as error:
            await write_frame(writer, {"id": name, "refused": str(error)})
        except ConnectionError:
            pass
        finally:
            self.tasks.pop(name, None)
            if not leaves:
                self.admission.release(name)

    async def _call(self, name: str, message: dict[str, Any]) -> dict[str, Any]:
        what = message.get("what")
        if what == "offer":
            offer = Offer(
                str(message["request"]), int(message["attempt"]), int(message["tokens"]), bool(message["hands_over"])
            )
            answer = self.admission.offer(offer)
            value = {"accept": answer.key} if isinstance(answer, Accept) else {"reject": answer.reason}
            return {"id": name, "value": value}
        if what == "withdraw":
            return {"id": name, "value": self.admission.release(str(message["key"]))}
        if what == "drain":
            self.admission.draining = True
            return {"id": name, "value": True}
        if what == "shape":
            executor = self.engine.engine.core.executor
            assert isinstance(executor, TorchExecutor)
            shape = KVShape.of(executor.cache.data, self.engine.engine.model.fingerprint)
            return {"id": name, "value": asdict(shape)}
        if what == "door":
            door = self.admission
            door.settle()
            return {
                "id": name,
                "value": {
                    "busy_slots": door.busy_slots,
                    "reserved_blocks": door.reserved_blocks,
                    "reserved_bytes": door.reserved_bytes,
                    "accept_rate": door.accept_rate,
                    "messages": self.transfers.messages,
                    "sent_bytes": self.transfers.sent_bytes,
                },
            }
        return await super()._call(name, message)


async def _main(config: PDWorkerConfig) -> None:
    worker = PDWorker(config)
    done = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await worker.serve(reader, writer)
        finally:
            writer.close()
            done.set()

    server = await asyncio.start_server(connected, config.worker.host, 0, limit=2**20)
    engine = worker.engine.engine
    ready = {
        "port": server.sockets[0].getsockname()[1],
        "transfer_port": worker.transfers.address[1],
        "fingerprint": engine.model.fingerprint,
        "num_blocks": engine.core.kv.pool.num_blocks,
        "block_size": engine.core.kv.pool.block_size,
        "pid": os.getpid(),
    }
    print(json.dumps(ready), flush=True)  # noqa: T201 - the parent reads it
    async with server:
        await done.wait()
    worker.transfers.close()
    with contextlib.suppress(Exception):
        worker.engine.close()


def main() -> None:
    """Runs an instance."""
    asyncio.run(_main(PDWorkerConfig.from_json(sys.stdin.readline())))
    os._exit(0)  # threads that wait for peers must not keep the process


if __name__ == "__main__":
    main()
