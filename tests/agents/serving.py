"""Starts ASGI applications and the fixture server for the gateway's tests."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from heliograph.agents import Gateway
from heliograph.agents.core.config import Listen
from heliograph.agents.core.http_front import HttpFront

FIXTURE = Path(__file__).with_name("fixture_server.py")


def run(scenario: Any, seconds: float = 40) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(seconds):
            return await scenario()

    return asyncio.run(limited())


@contextlib.asynccontextmanager
async def serving(app: Any, path: str = "/mcp", port: int = 0) -> AsyncIterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1))
    server.install_signal_handlers = lambda: None
    server.capture_signals = contextlib.nullcontext
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
        if task.done():
            task.result()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}{path}"
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def gateway_before(upstreams: Any, interceptors: Any = (), **options: Any) -> AsyncIterator[tuple[Gateway, str]]:
    gateway = Gateway(upstreams, interceptors)
    async with serving(HttpFront(gateway, Listen(**options.pop("listen", {})), **options)) as url:
        yield gateway, url


@contextlib.contextmanager
def all_closed() -> Iterator[None]:
    """Fails if what ran inside left a file, a socket or a child's pipe for the garbage collector to close.

    What tests before it left is collected first, so that it is not blamed on this one.
    """
    left: list[str] = []

    def note(what: Any) -> None:
        left.append(str(what.exc_value))

    gc.collect()
    before, sys.unraisablehook = sys.unraisablehook, note
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ResourceWarning)
            yield
            gc.collect()
    finally:
        sys.unraisablehook = before
    assert left == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def fixture_process(port: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(FIXTURE), "http", str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "READY"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
