"""An instance as a process of its own: an engine, its transfer server, and a socket over which a router drives it.

The process lives as long as its router's connection, so that no engine is left behind when the router dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import Any

from heliograph.errors import BadInput, HeliographError
from heliograph.lm.core.sampling import SamplingParams
from heliograph.serving.core.async_engine import AsyncEngine, Overloaded, StreamEvent
from heliograph.serving.core.engine import Engine
from heliograph.serving.core.frames import FrameError, Pace, read_frame, write_frame
from heliograph.serving.core.kv_transfer import KVServer, fetch_blocks
from heliograph.serving.core.request import Request, Sample, Ticket

__all__ = ["WorkerConfig", "event_from_wire", "event_to_wire", "main"]


@dataclass(frozen=True)
class WorkerConfig:
    """How an instance is set up.

    Attributes:
        model: what is loaded.
        engine: settings of :class:`Engine`.
        layers: only the first so many, for measurements; None for all.
        host: to listen on.
        threads: of torch.
        lease_s, on_transfer_failure, max_waiting: of :class:`AsyncEngine`.
        bytes_per_s: pace of transfers that go out; None for no limit.
    """

    model: str = "smollm2-135m"
    engine: dict[str, Any] | None = None
    layers: int | None = None
    host: str = "127.0.0.1"
    threads: int | None = None
    lease_s: float = 30.0
    on_transfer_failure: str = "recompute"
    max_waiting: int = 256
    bytes_per_s: float | None = None


def event_to_wire(event: StreamEvent) -> dict[str, Any]:
    """An event as plain values; the text stays behind, since the router makes its own."""
    return {
        "sample": None if event.sample is None else _sample_to_wire(event.sample),
        "finish": event.finish,
        "error": event.error,
        "ticket": None if event.ticket is None else event.ticket.to_json(),
        "prompt": [_sample_to_wire(sample) for sample in event.prompt],
        "num_prompt": event.num_prompt,
        "num_cached": event.num_cached,
    }


def event_from_wire(value: dict[str, Any]) -> StreamEvent:
    """From :func:`event_to_wire`."""
    sample, ticket = value["sample"], value["ticket"]
    return StreamEvent(
        "",
        None if sample is None else _sample_from_wire(sample),
        value["finish"],
        value["error"],
        None if ticket is None else Ticket.from_json(ticket),
        tuple(_sample_from_wire(one) for one in value["prompt"]),
        value["num_prompt"],
        value["num_cached"],
    )


class Worker:
    """Carries out what a router asks."""

    def __init__(self, config: WorkerConfig) -> None:
        if config.threads is not None:
            import torch

            torch.set_num_threads(config.threads)
        from heliograph.lm.core.load import load_model

        settings = dict(config.engine or {})
        device, dtype = settings.pop("device", "cpu"), settings.pop("dtype", "float32")
        import torch

        model = load_model(config.model, device=device, dtype=getattr(torch, dtype), layers=config.layers)
        self.transfers = KVServer(config.host, pace=Pace(config.bytes_per_s))
        engine = Engine(model, **settings)
        engine.warm_up()
        self.engine = AsyncEngine(
            engine,
            max_waiting=config.max_waiting,
            address=self.transfers.address,
            fetch=functools.partial(fetch_blocks, device=device),
            lease_s=config.lease_s,
            on_transfer_failure="fail" if config.on_transfer_failure == "fail" else "recompute",
        )
        self.transfers.engine = self.engine
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One router's connection, until it ends."""
        while (message := await read_frame(reader)) is not None:
            op, name = message.get("op"), str(message.get("id"))
            if op == "generate":
                self.tasks[name] = asyncio.create_task(self._generate(name, message, writer))
            elif op == "abort" and name in self.tasks:
                self.tasks.pop(name).cancel()
            elif op == "ping":  # answered here and not by the engine's thread: a long step is no silence
                kv = self.engine.engine.core.kv
                await write_frame(writer, {"id": name, "value": {"kv_usage": kv.usage}})
            elif op == "call":
                self.tasks[name] = asyncio.create_task(self._answer(name, message, writer))
        for task in self.tasks.values():
            task.cancel()

    async def _answer(self, name: str, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        try:
            await write_frame(writer, await self._call(name, message))
        except ConnectionError:
            pass
        finally:
            self.tasks.pop(name, None)

    async def _generate(self, name: str, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        try:
            request = self._request(name, message)
            async for event in self.engine.stream(request):
                await write_frame(writer, {"id": name, "event": event_to_wire(event)})
        except Overloaded as error:
            await write_frame(writer, {"id": name, "overloaded": error.retry_after_s, "message": str(error)})
        except HeliographError as error:
            await write_frame(writer, {"id": name, "refused": str(error)})
        except (ConnectionError, FrameError):
            pass
        finally:
            self.tasks.pop(name, None)

    def _request(self, name: str, message: dict[str, Any]) -> Request:
        params = dict(message["params"])
        params["stop"] = tuple(params.get("stop", ()))
        ticket = message.get("ticket")
        return self.engine.engine.request(
            message["prompt"],
            SamplingParams(**params),
            request_id=name,
            answer=message.get("answer", ()),
            logprobs=message.get("logprobs"),
            prompt_logprobs=bool(message.get("prompt_logprobs")),
            priority=int(message.get("priority", 0)),
            salt=str(message.get("salt", "")),
            producer=bool(message.get("producer")),
            ticket=None if ticket is None else Ticket.from_json(ticket),
        )

    async def _call(self, name: str, message: dict[str, Any]) -> dict[str, Any]:
        what = message.get("what")
        try:
            if what == "stats":
                value: Any = asdict(await self.engine.stats()) | {"sent_bytes": self.transfers.sent_bytes}
            elif what == "reset":
                value = await self.engine.reset_prefix_cache()
            elif what == "check":
                await self.engine.check()
                value = True
            elif what == "release":
                key = str(message.get("key"))
                value = await self.engine.call(lambda: self.engine.engine.core.kv.release(key))
            else:
                raise BadInput(f"an instance does not know {what!r}")
        except HeliographError as error:
            return {"id": name, "refused": str(error)}
        return {"id": name, "value": value}


async def _main(config: WorkerConfig) -> None:
    worker = Worker(config)
    done = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await worker.serve(reader, writer)
        finally:
            writer.close()
            done.set()

    server = await asyncio.start_server(connected, config.host, 0, limit=2**20)
    model = worker.engine.engine.model
    ready = {
        "port": server.sockets[0].getsockname()[1],
        "transfer_port": worker.transfers.address[1],
        "fingerprint": model.fingerprint,
        "num_blocks": worker.engine.engine.core.kv.pool.num_blocks,
        "block_size": worker.engine.engine.core.kv.pool.block_size,
        "pid": os.getpid(),
    }
    print(json.dumps(ready), flush=True)  # noqa: T201 - the parent reads it
    async with server:
        await done.wait()
    worker.transfers.close()
    with contextlib.suppress(Exception):
        worker.engine.close()


def main() -> None:
    """Runs an instance; its settings are one JSON object on standard input's first line."""
    config = WorkerConfig(**json.loads(sys.stdin.readline()))
    asyncio.run(_main(config))
    os._exit(0)  # threads that wait for peers must not keep the process


def _sample_to_wire(sample: Sample) -> list[Any]:
    return [sample.token, sample.logprob, [list(one) for one in sample.top]]


def _sample_from_wire(value: list[Any]) -> Sample:
    return Sample(value[0], value[1], tuple((token, logprob) for token, logprob in value[2]))


if __name__ == "__main__":
    main()
