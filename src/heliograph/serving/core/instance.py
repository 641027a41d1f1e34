"""An instance as a router sees it, and as a worker process that is driven over one connection."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from heliograph.errors import BadInput, HeliographError
from heliograph.serving.core.async_engine import Overloaded, StreamEvent
from heliograph.serving.core.frames import pack, read_frame
from heliograph.serving.core.worker import WorkerConfig, event_from_wire

__all__ = ["Health", "Instance", "InstanceLost", "InstanceView", "Role"]

Role = Literal["prefill", "decode", "mix"]
Health = Literal["ready", "suspect", "removed"]


class InstanceLost(HeliographError):
    """An instance died or went silent while it served a request."""


@dataclass
class InstanceView:
    """What a router knows of an instance.

    Attributes:
        name, role, health: its own.
        prefill_requests, prefill_tokens: placed there and not yet computed.
        decode_requests, decode_tokens: decoding there, and their tokens of context.
        promised: requests whose answers will come here once their prompts are computed elsewhere.
        kv_usage: as last reported.
        num_blocks, block_size: of its cache.
        transfers: hand-overs under way, from or to it; its role does not change meanwhile.
    """

    name: str
    role: Role = "mix"
    health: Health = "ready"
    prefill_requests: int = 0
    prefill_tokens: int = 0
    decode_requests: int = 0
    decode_tokens: int = 0
    promised: int = 0
    kv_usage: float = 0.0
    num_blocks: int = 0
    block_size: int = 16
    transfers: int = 0

    @property
    def outstanding(self) -> int:
        """Requests placed there that have not ended."""
        return self.prefill_requests + self.decode_requests + self.promised


class Instance:
    """A worker process, driven over one connection.

    Attributes:
        view: what routers see. config: how it was set up. pid: of the process. fingerprint: of its model.
    """

    module = "heliograph.serving.core.worker"  # that the process runs

    def __init__(self, name: str, role: Role, config: WorkerConfig) -> None:
        self.config = config
        self.view = InstanceView(name, role)
        self.pid, self.fingerprint = 0, ""
        self.heard_at = time.monotonic()
        self._serial = itertools.count()
        self._streams: dict[str, asyncio.Queue[dict[str, Any] | None]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self, timeout_s: float = 120.0) -> None:
        """Starts the process and connects.

        Raises:
            BadInput: it ended before it was ready; the message holds what it printed.
        """
        ready = await self._launch(timeout_s)
        self.pid, self.fingerprint = int(ready["pid"]), str(ready["fingerprint"])
        self.view.num_blocks, self.view.block_size = int(ready["num_blocks"]), int(ready["block_size"])
        reader, self._writer = await asyncio.open_connection(ready.get("host", self.config.host), ready["port"])
        self.heard_at = time.monotonic()
        self._reading = asyncio.create_task(self._read(reader))

    async def _launch(self, timeout_s: float) -> Mapping[str, Any]:
        """Starts the worker; what it tells when it is ready."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self.module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(self._settings()).encode() + b"\n")
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), timeout_s)
            ready: Mapping[str, Any] = json.loads(line)
        except (TimeoutError, ValueError):
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            _, said = await self._process.communicate()
            last = said.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise BadInput(f"instance {self.view.name} did not start: {last[0]}") from None
        return ready

    def _settings(self) -> Mapping[str, Any]:
        """What the worker is told before it starts."""
        return asdict(self.config)

    async def stream(self, message: Mapping[str, Any]) -> AsyncIterator[StreamEvent]:
        """Has a request served; leaving the loop early ends it there.

        Raises:
            InstanceLost: the process died or was removed. Overloaded, BadInput: it refused the request.
        """
        name = str(message["id"])
        ended = False
        try:
            async for answer in self._ask({**message, "op": "generate"}):
                if "overloaded" in answer:
                    ended = True
                    raise Overloaded(0, 0, float(answer["overloaded"]))
                if "refused" in answer:
                    ended = True
                    raise BadInput(str(answer["refused"]))
                event = event_from_wire(answer["event"])
                ended = event.finish is not None
                yield event
                if ended:
                    return
        finally:
            if not ended:
                self._send({"op": "abort", "id": name})

    async def call(self, what: str, timeout_s: float = 30.0, **settings: Any) -> Any:
        """Asks something else of the instance: "stats", "check", "reset" of its engine's thread, or "ping" of it.

        Raises:
            InstanceLost: no answer came in time.
        """
        name = f"call-{next(self._serial)}"
        op = "ping" if what == "ping" else "call"
        try:
            async with asyncio.timeout(timeout_s):
                async for answer in self._ask({"op": op, "id": name, "what": what, **settings}):
                    if "refused" in answer:
                        raise BadInput(str(answer["refused"]))
                    return answer["value"]
        except TimeoutError:
            raise InstanceLost(f"instance {self.view.name} gave no answer within {timeout_s:g} s") from None
        raise InstanceLost(f"instance {self.view.name} is gone")

    def lose(self) -> None:
        """Gives the instance up: its requests fail back, and the process is killed."""
        self.view.health = "removed"
        for queue in self._streams.values():
            queue.put_nowait(None)
        self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def close(self) -> None:
        """Ends the process."""
        if self._writer is not None:
            self._writer.close()
        if self._process is not None and self._process.returncode is None:
            try:
                await asyncio.wait_for(self._process.wait(), 5)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _ask(self, message: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        name = str(message["id"])
        answers: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._streams[name] = answers
        try:
            if self.view.health == "removed" or not self._send(message):
                raise InstanceLost(f"instance {self.view.name} is gone")
            while (answer := await answers.get()) is not None:
                yield answer
            raise InstanceLost(f"instance {self.view.name} went away while it served {name}")
        finally:
            self._streams.pop(name, None)

    def _send(self, message: Mapping[str, Any]) -> bool:
        if self._writer is None or self._writer.is_closing():
            return False
        self._writer.write(pack(message))
        return True

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(HeliographError):
            while (answer := await read_frame(reader)) is not None:
                self.heard_at = time.monotonic()
                queue = self._streams.get(str(answer.get("id")))
                if queue is not None:
                    queue.put_nowait(answer)
        self.lose()
