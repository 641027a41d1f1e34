"""Sends many requests: at a fixed concurrency (closed loop), at given times (open loop), or as a trace says.

In the closed loop a slow server slows its clients, which hides queues: report which loop it was. In the open loop a
request's clock starts when it should have been sent, whether or not the client came to it in time.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import psutil

from heliograph.errors import BadInput
from heliograph.serving.load.client import CompletionClient, LoadRequest
from heliograph.serving.load.prompts import salted_text, salted_tokens
from heliograph.serving.load.record import RequestRecord
from heliograph.workload.requests import RequestTrace, TraceRequest

__all__ = ["LoadRun", "run_closed_loop", "run_open_loop", "run_trace"]


@dataclass(frozen=True)
class LoadRun:
    """All requests of one run.

    Attributes:
        records: in the order in which they ended.
        loop: closed or open. concurrency: clients of the closed loop, 0 in the open one.
        start_s, end_s: on the client's clock, from the first intended sending to the last end.
        ramp_s: over which the closed loop's clients came in.
        client_share: processor seconds of this process over wall seconds: near 1, the client itself is the limit.
        late_s: the largest delay between intention and sending, the client's own fault.
    """

    records: tuple[RequestRecord, ...]
    loop: Literal["closed", "open"]
    concurrency: int
    start_s: float
    end_s: float
    ramp_s: float = 0.0
    client_share: float = 0.0
    late_s: float = 0.0

    @property
    def duration_s(self) -> float:
        """Wall seconds."""
        return self.end_s - self.start_s


async def run_closed_loop(
    client: CompletionClient, requests: Iterable[LoadRequest], concurrency: int, *, ramp_s: float = 0.0
) -> LoadRun:
    """Keeps ``concurrency`` requests in flight until all have ended.

    Args:
        client: an open client.
        requests: taken one after the other by whichever client is free.
        concurrency: clients; each sends its next request when its last one ended.
        ramp_s: seconds over which the clients start, evenly: a thousand at once would measure the accept queue.

    Raises:
        BadInput: a concurrency below 1 or a negative ramp.
    """
    if concurrency < 1 or ramp_s < 0:
        raise BadInput(f"need a concurrency of 1 or more and a ramp of 0 s or more; got {concurrency} and {ramp_s}")
    waiting = iter(requests)
    records: list[RequestRecord] = []
    busy = _Busy()
    start = client.now()

    async def worker(index: int) -> None:
        if ramp_s and index:
            await asyncio.sleep(ramp_s * index / concurrency)
        for request in waiting:
            records.append(await client.send(request))

    async with asyncio.TaskGroup() as group:
        for index in range(concurrency):
            group.create_task(worker(index))
    return _finish(records, "closed", concurrency, start, client.now(), ramp_s, busy)


async def run_open_loop(client: CompletionClient, requests: Iterable[LoadRequest], times_s: Sequence[float]) -> LoadRun:
    """Sends each request at its time, whatever the server does.

    Args:
        client: an open client.
        requests: as many as times.
        times_s: seconds after the start, never decreasing.
    """
    listed = list(requests)
    if len(listed) != len(times_s) or any(b < a for a, b in itertools.pairwise(times_s)):
        raise BadInput(f"{len(listed)} requests need as many times in order; got {len(times_s)}")
    records: list[RequestRecord] = []
    busy = _Busy()
    start = client.now()

    async def one(request: LoadRequest, at: float) -> None:
        records.append(await client.send(request, intended_s=start + at))

    async with asyncio.TaskGroup() as group:
        for request, at in zip(listed, times_s, strict=True):
            await asyncio.sleep(max(0.0, start + at - client.now()))
            group.create_task(one(request, at))
    return _finish(records, "open", 0, start, client.now(), 0.0, busy)


async def run_trace(
    client: CompletionClient, trace: RequestTrace, *, vocabulary: int = 0, salt: int = 0, speed: float = 1.0
) -> LoadRun:
    """Replays a trace: arrivals as an open loop; a turn with ``after_s`` waits for the end of the previous one.

    Prompts that the trace gives only by length are drawn from ``salt``; requests that share a prefix share its tokens.

    Raises:
        BadInput: incremental turns, which would need the server's answers to be replayed as prompts.
    """
    if trace.turns == "incremental":
        raise BadInput("incremental turns cannot be replayed yet; write the trace with cumulative turns")
    trace = trace if speed == 1.0 else trace.scaled(speed)
    records: list[RequestRecord] = []
    busy, ended = _Busy(), dict[str, asyncio.Task[RequestRecord]]()
    start = client.now()

    async def one(item: int, request: TraceRequest, previous: asyncio.Task[RequestRecord] | None) -> RequestRecord:
        intended = start + (request.arrival_s or 0.0)
        if previous is not None:
            before = await previous
            intended = max(intended, before.end_s + (request.after_s or 0.0))
        elif request.after_s is not None:
            raise BadInput(f"request {item + 1} follows a turn that is not in the trace")
        await asyncio.sleep(max(0.0, intended - client.now()))
        record = await client.send(_as_load(client, request, item, salt, vocabulary), intended_s=intended)
        records.append(record)
        return record

    async with asyncio.TaskGroup() as group:
        for item, request in enumerate(trace):
            if request.arrival_s is not None:
                await asyncio.sleep(max(0.0, start + request.arrival_s - client.now()))
            previous = ended.get(request.session) if request.session else None
            task = group.create_task(one(item, request, previous))
            if request.session:
                ended[request.session] = task
    return _finish(records, "open", 0, start, client.now(), 0.0, busy)


def _as_load(client: CompletionClient, request: TraceRequest, item: int, salt: int, vocabulary: int) -> LoadRequest:
    if request.prompt is not None:
        prompt: str | tuple[int, ...] = request.prompt
    elif request.prompt_token_ids is not None:
        prompt = request.prompt_token_ids
    else:
        prompt = _drawn(client, request, item, salt, vocabulary)
    return LoadRequest(
        prompt, request.output_tokens, request.prompt_length or 0, request.priority, tag=request.id or str(item)
    )


def _drawn(
    client: CompletionClient, request: TraceRequest, item: int, salt: int, vocabulary: int
) -> str | tuple[int, ...]:
    """A prompt of the right length, whose shared parts are those of the requests that share them."""
    length = request.prompt_tokens or 1
    if client.endpoint == "chat":
        return salted_text(length, salt, item)
    tokens: list[int] = []
    if request.prefix_block_ids:
        for block in request.prefix_block_ids:
            tokens += salted_tokens(request.prefix_block_tokens, salt, block % 2**32, vocabulary, family=1)
    elif request.prefix_id:
        number = zlib.crc32(request.prefix_id.encode())
        tokens += salted_tokens(request.prefix_tokens, salt, number, vocabulary, family=2)
    tokens = tokens[:length]
    if len(tokens) < length:
        tokens += salted_tokens(length - len(tokens), salt, item, vocabulary)
    return tuple(tokens)


class _Busy:
    """Processor and wall seconds of this process since a moment."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.wall, self.cpu = time.perf_counter(), self._cpu()

    def _cpu(self) -> float:
        used = self.process.cpu_times()
        return float(used.user + used.system)

    def share(self) -> float:
        wall = time.perf_counter() - self.wall
        return (self._cpu() - self.cpu) / wall if wall > 0 else 0.0


def _finish(
    records: list[RequestRecord],
    loop: Literal["closed", "open"],
    concurrency: int,
    start: float,
    end: float,
    ramp_s: float,
    busy: _Busy,
) -> LoadRun:
    late = max((record.sent_s - record.intended_s for record in records), default=0.0)
    last = max((record.end_s for record in records), default=end)
    run = LoadRun(tuple(records), loop, concurrency, start, last, ramp_s, late_s=late)
    return replace(run, client_share=busy.share())
