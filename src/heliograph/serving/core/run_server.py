"""A server as a process: it listens, tells when it is ready, and drains on SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable

import uvicorn

from heliograph.errors import BadInput
from heliograph.serving.core.server import Server, create_app

__all__ = ["bind", "run_server"]


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        BadInput: the address is in use or not of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        raise BadInput(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return listening


def run_server(server: Server, listening: socket.socket, ready: Callable[[str], object]) -> int:
    """Serves until a signal comes, then drains; the number of requests that had to be ended.

    Args:
        server: what is served.
        listening: from :func:`bind`.
        ready: called with the address once requests are taken.
    """
    return asyncio.run(_serve(server, listening, ready))


async def _serve(server: Server, listening: socket.socket, ready: Callable[[str], object]) -> int:
    config = uvicorn.Config(
        create_app(server), log_level="warning", access_log=False, timeout_keep_alive=30, lifespan="off", backlog=2048
    )
    web = uvicorn.Server(config)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    web.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    with contextlib.suppress(AttributeError):
        web.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    serving = asyncio.create_task(web.serve(sockets=[listening]))
    while not web.started and not serving.done():
        await asyncio.sleep(0.01)
    host, port = listening.getsockname()[:2]
    ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    await asyncio.wait({serving, asyncio.create_task(stop.wait())}, return_when=asyncio.FIRST_COMPLETED)
    ended = await server.drain()
    web.should_exit = True
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(asyncio.shield(serving), 5)
    web.force_exit = True
    await serving
    await server.backend.close()
    return ended
