"""An engine in a thread of its own, for many callers: one thread owns scheduler and cache, others send commands.

Keys and values that another instance waits for are held under a lease; those that this one waits for are fetched by
another thread and put into the cache between two steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from torch import Tensor

from heliograph.errors import BadInput, HeliographError
from heliograph.serving.core.engine import Engine, EngineStats
from heliograph.serving.core.request import FinishReason, Request, RequestState, Sample, Ticket
from heliograph.serving.core.torch_executor import TorchExecutor

__all__ = ["AsyncEngine", "EngineClosed", "Fetch", "Held", "Overloaded", "StreamEvent"]

T = TypeVar("T")
OnTransferFailure = Literal["fail", "recompute"]


class EngineClosed(HeliographError):
    """The engine takes no requests any more."""


class Overloaded(HeliographError):
    """Too many requests wait; try again later.

    Attributes:
        retry_after_s: a guess of when there will be room.
    """

    def __init__(self, waiting: int, limit: int, retry_after_s: float) -> None:
        super().__init__(f"{waiting} requests wait already; the limit is {limit}. Try again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class StreamEvent:
    """What a caller hears of its request.

    Attributes:
        text: new text.
        sample: the new token; None where only the end is told.
        finish: why it ended; None while it goes on.
        error: what went wrong, where ``finish`` is "error".
        ticket: under which the keys and values of the prompt can be fetched, where the request asked for that.
        prompt: log-probabilities of the prompt, with the first event, where the request asked for them.
        num_prompt, num_cached: tokens of the prompt, and how many of them were found in the prefix cache.
    """

    text: str
    sample: Sample | None
    finish: FinishReason | None
    error: str = ""
    ticket: Ticket | None = None
    prompt: tuple[Sample, ...] = ()
    num_prompt: int = 0
    num_cached: int = 0


@dataclass(frozen=True)
class Held:
    """Blocks held under a lease.

    Attributes:
        contents: [L, 2, blocks, block_size, G, D].
        tokens: that are computed in them.
    """

    contents: Tensor
    tokens: int


class Fetch(Protocol):
    """Brings the blocks of a ticket, and tells the holder that they are no longer needed."""

    def __call__(self, ticket: Ticket) -> Tensor:
        """[L, 2, blocks, block_size, G, D].

        Raises:
            Exception: the holder is gone, the lease has ended, or the bytes are damaged.
        """
        ...


def _nobody_listens(phase: str, request_id: str) -> None:
    """What happens at a named phase of a transfer, where no test wants to interfere."""


@dataclass(eq=False)
class _Listener:
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[StreamEvent]
    taken_in: bool = False

    def tell(self, event: StreamEvent) -> None:
        with contextlib.suppress(RuntimeError):  # the caller's loop has ended, and nobody listens
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class AsyncEngine:
    """Requests from any number of asyncio callers.

    Args:
        engine: driven by the thread; nobody else may call it from now on.
        max_waiting: requests that may wait; more are refused with :class:`Overloaded`.
        address: host and port under which others fetch held blocks; None where this instance holds none.
        fetch: brings blocks from others; None where this instance fetches none.
        lease_s: how long blocks are held for somebody who does not come.
        on_transfer_failure: whether a request whose blocks do not come fails, or its prompt is computed here.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_waiting: int = 256,
        address: tuple[str, int] | None = None,
        fetch: Fetch | None = None,
        lease_s: float = 30.0,
        on_transfer_failure: OnTransferFailure = "recompute",
    ) -> None:
        self.engine, self.max_waiting, self.address, self.lease_s = engine, max_waiting, address, lease_s
        self.on_transfer_failure = on_transfer_failure
        self.phase: Callable[[str, str], object] = _nobody_listens
        self._fetch = fetch
        self._fetchers = ThreadPoolExecutor(4, thread_name_prefix="fetch") if fetch is not None else None
        if fetch is not None:
            engine.core.scheduler.on_load = self._start_load
        self._commands: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._listeners: dict[str, _Listener] = {}
        self._closed = False
        self._failed_transfers = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def unfinished(self) -> int:
        """Requests and leases that a drain waits for."""
        return len(self._listeners) + len(self.engine.core.kv.leases)

    async def stream(self, request: Request) -> AsyncIterator[StreamEvent]:
        """Serves a request; leaving the loop early ends it.

        Raises:
            BadInput: it can never run here.
            Overloaded: too many wait. EngineClosed: the engine is closed.
        """
        listener = _Listener(asyncio.get_running_loop(), asyncio.Queue())
        told = False
        try:
            await self.call(lambda: self._add(request, listener))
            while not told:
                event = await listener.events.get()
                told = event.finish is not None
                yield event
        finally:
            if not told:  # it may have been taken in, and may even have ended, without the caller having heard of it
                self._post(lambda: self._abort(request) if listener.taken_in else None)

    async def abort_all(self) -> None:
        """Ends all requests; their callers hear ``finish="abort"``."""
        await self.call(self._abort_all)

    async def stats(self) -> EngineStats:
        """Where the engine stands."""
        return await self.call(self.engine.stats)

    async def reset_prefix_cache(self) -> int:
        """Forgets all texts; the number of blocks that could be found before."""
        return await self.call(self.engine.core.kv.pool.forget_all)

    async def check(self) -> None:
        """Compares the cache's counts with its holders.

        Raises:
            LeakError: a difference.
        """
        await self.call(self.engine.core.kv.check)

    async def call(self, action: Callable[[], T]) -> T:
        """Runs something in the engine's thread, between two steps."""
        return await asyncio.wrap_future(self.submit(action))

    def submit(self, action: Callable[[], T]) -> Future[T]:
        """:meth:`call` for callers without a loop."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(action())
            except BaseException as error:
                future.set_exception(error)

        if self._closed:
            future.set_exception(EngineClosed("this engine has been closed"))
        else:
            self._post(run)
        return future

    def held(self, key: str, *, on_device: bool = False) -> Held:
        """The blocks of a lease; to be called in the engine's thread.

        Args:
            key: of the lease.
            on_device: leave the copy where the cache lies.

        Raises:
            BadInput: the lease has ended.
        """
        lease = self.engine.core.kv.leases.get(key)
        executor = self.engine.core.executor
        if lease is None or not isinstance(executor, TorchExecutor):
            raise BadInput(f"nothing is held under {key!r}; the lease has ended")
        lease.deadline_s = self.engine.core.clock.now() + self.lease_s
        contents = executor.cache.read(lease.blocks)
        return Held(contents if on_device else contents.cpu(), lease.tokens)

    def close(self) -> None:
        """Ends all requests and the thread; a second time does nothing."""
        if self._closed:
            return
        self._post(self._abort_all)
        self._closed = True
        self._commands.put(None)
        self._thread.join()
        if self._fetchers is not None:
            self._fetchers.shutdown(wait=False, cancel_futures=True)
        self.engine.close()

    def _post(self, action: Callable[[], object]) -> None:
        self._commands.put(action)

    def _run(self) -> None:
        while True:
            commands = []
            if not self.engine.has_work:
                with contextlib.suppress(queue.Empty):
                    commands.append(self._commands.get(timeout=0.2 if self._needs_time() else None))
            # those that are here now, and no more: who asks without end must not keep the steps waiting
            commands += [self._commands.get_nowait() for _ in range(self._commands.qsize())]
            for command in commands:
                if command is None:
                    return
                command()
            self._step()

    def _needs_time(self) -> bool:
        core = self.engine.core
        return bool(core.kv.leases) or bool(core.scheduler.loading)

    def _step(self) -> None:
        engine = self.engine
        if not engine.has_work:
            engine.core.kv.expire(engine.core.clock.now())
            for request in engine.core.expired():
                self._tell(request, StreamEvent("", None, request.finish))
            return
        try:
            outputs = engine.step()
        except Exception as error:
            self._fail_ended(f"{type(error).__name__}: {error}")
            return
        for output in outputs:
            request, ticket = output.request, None
            if request.producer and output.finish == "length":
                ticket = self._hold(request)
            prompt = tuple(engine.prompt_samples(request.id)) if request.prompt_logprobs else ()
            event = StreamEvent(
                output.text,
                output.sample,
                output.finish,
                "",
                ticket,
                prompt,
                request.num_prompt,
                request.num_cached,
            )
            self._tell(request, event)

    def _fail_ended(self, reason: str) -> None:
        """Tells the callers of requests that ended by an error of the step."""
        served = self.engine.core.requests
        for name in [name for name in self._listeners if name not in served]:
            self._listeners.pop(name).tell(StreamEvent("", None, "error", reason))

    def _tell(self, request: Request, event: StreamEvent) -> None:
        if event.finish is None:
            listener = self._listeners.get(request.id)
        else:
            listener = self._listeners.pop(request.id, None)
        if listener is not None:
            listener.tell(event)

    def _add(self, request: Request, listener: _Listener) -> None:
        waiting = len(self.engine.core.scheduler.waiting)
        if waiting >= self.max_waiting:
            raise Overloaded(waiting, self.max_waiting, retry_after_s=1.0 + waiting / 32)
        if request.ticket is not None:
            if self._fetch is None:
                raise BadInput("this instance does not fetch keys and values from others")
            if request.ticket.fingerprint != self.engine.model.fingerprint:
                raise BadInput("the held keys and values are of another model")
        self.engine.add(request)
        self._listeners[request.id], listener.taken_in = listener, True
        if request.state is RequestState.FINISHED:
            self._tell(request, StreamEvent("", None, request.finish, num_prompt=request.num_prompt))

    def _abort_all(self) -> None:
        for request in list(self.engine.core.requests.values()):
            self._abort(request)

    def _abort(self, request: Request) -> None:
        if self.engine.core.requests.get(request.id) is request:
            self.engine.abort(request.id)
        if request.producer:
            self.engine.core.kv.release(request.id)
        self._tell(request, StreamEvent("", None, "abort", num_prompt=request.num_prompt))

    def _hold(self, request: Request) -> Ticket | None:
        core = self.engine.core
        if self.address is None or not request.blocks:
            core.kv.free(request)
            return None
        lease = core.kv.hold(request, request.id, request.num_prompt, core.clock.now() + self.lease_s)
        nbytes = self.engine.kv_bytes_per_token * len(lease.blocks) * core.kv.pool.block_size
        self.phase("held", request.id)
        return Ticket(*self.address, lease.key, lease.tokens, self.engine.model.fingerprint, nbytes)

    def _start_load(self, request: Request) -> None:
        assert self._fetchers is not None
        assert self._fetch is not None
        assert request.ticket is not None
        self.phase("fetching", request.id)
        future = self._fetchers.submit(self._fetch, request.ticket)
        future.add_done_callback(lambda done: self._post(lambda: self._loaded(request, done)))

    def _loaded(self, request: Request, done: Future[Tensor]) -> None:
        if done.cancelled() or request.state is RequestState.FINISHED:
            return
        core, ticket = self.engine.core, request.ticket
        executor = core.executor
        assert ticket is not None
        assert isinstance(executor, TorchExecutor)
        try:
            blocks = request.blocks[: core.kv.blocks_for(ticket.tokens)]
            executor.cache.write(blocks, done.result())
        except Exception as error:
            self._failed_transfers += 1
            if self.on_transfer_failure == "recompute":
                core.scheduler.loaded(request, 0)
            else:
                core.abort(request.id, "error")
                self._tell(request, StreamEvent("", None, "error", f"keys and values did not arrive: {error}"))
            return
        self.phase("loaded", request.id)
        core.scheduler.loaded(request, ticket.tokens)
