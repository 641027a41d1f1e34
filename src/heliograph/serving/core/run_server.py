"""A server as a process: it listens, tells when it is ready, and drains on SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import uvicorn

from heliograph.errors import BadInput
from heliograph.lm.core.load import load_model
from heliograph.serving.core.async_engine import AsyncEngine
from heliograph.serving.core.cluster import Cluster, ClusterBackend
from heliograph.serving.core.engine import Engine
from heliograph.serving.core.server import EngineBackend, Server, ServerConfig, create_app

__all__ = ["ServeOptions", "bind", "run_server", "serve", "serve_model"]


@dataclass(frozen=True)
class ServeOptions:
    """What is served, and how.

    Attributes:
        model: what :func:`~heliograph.lm.core.load.load_model` takes.
        name: under which it is served; ``model`` itself for a name, the file's stem for a path, where None.
        engine: settings of :class:`~heliograph.serving.core.engine.Engine`.
        device, dtype, layers: of the weights.
        roles: instances by role; one engine in this process where empty.
        max_waiting, max_requests: limits, beyond which clients get 429.
        api_keys: of which clients must send one.
        drain_timeout_s: how long requests may go on after SIGTERM.
        lease_s, on_transfer_failure: of hand-overs.
        on: where instances run, "local" or "ray".
        random_weights: ``model`` is a ``config.json`` or its folder, and weights are drawn, for measurements of speed.
    """

    model: str = "smollm2-135m"
    name: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    dtype: str = "float32"
    layers: int | None = None
    roles: Mapping[str, int] = field(default_factory=dict)
    max_waiting: int = 256
    max_requests: int = 512
    api_keys: tuple[str, ...] = ()
    drain_timeout_s: float = 30.0
    lease_s: float = 30.0
    on_transfer_failure: str = "recompute"
    on: Literal["local", "ray"] = "local"
    random_weights: bool = False


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


def serve_model(options: ServeOptions, listening: socket.socket, ready: Callable[[str, str], object]) -> int:
    """Loads a model and serves it until a signal comes; the number of requests that had to be ended.

    Args:
        options: what and how.
        listening: from :func:`bind`.
        ready: called with address and name once requests are taken.

    Raises:
        BadInput: the model cannot be read, or an instance cannot start.
    """
    import torch

    config = ServerConfig(options.api_keys, max_requests=options.max_requests, drain_timeout_s=options.drain_timeout_s)
    dtype: torch.dtype = getattr(torch, options.dtype)
    if not options.roles:
        model = load_model(
            options.model,
            device=options.device,
            dtype=dtype,
            layers=options.layers,
            random_weights=options.random_weights,
        )
        warm = Engine(model, **options.engine)
        warm.warm_up()
        engine = AsyncEngine(warm, max_waiting=options.max_waiting)
        server = Server(EngineBackend(engine, _served_name(options)), config)
        return run_server(server, listening, lambda url: ready(url, server.backend.name))
    if options.random_weights:
        raise BadInput("random weights are served by one engine, without roles")
    return asyncio.run(_serve_cluster(options, config, listening, ready))


def serve(model: str = "smollm2-135m", *, host: str = "127.0.0.1", port: int = 8000, **options: Any) -> int:
    """Serves a model to OpenAI clients until SIGTERM or SIGINT; the number of requests that had to be ended.

    Args:
        model: a ``.gguf`` file, a Hugging Face folder, ``"smollm2-135m"`` or ``"gemma3-270m"``.
        host, port: to listen on; port 0 takes a free one.
        options: other fields of :class:`ServeOptions`.

    Raises:
        BadInput: the address is in use, or the model cannot be read.
    """
    return serve_model(ServeOptions(model, **options), bind(host, port), _say_nothing)


def _say_nothing(url: str, name: str) -> None:
    """Nobody waits for the server to be ready."""


def _served_name(options: ServeOptions) -> str:
    if options.random_weights and options.name is None:
        return "random"
    return options.name or options.model.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")


async def _serve_cluster(
    options: ServeOptions, config: ServerConfig, listening: socket.socket, ready: Callable[[str, str], object]
) -> int:
    # the model of this process gives tokenizer and context; one layer is all that is loaded of its weights
    model = load_model(options.model, layers=1)
    cluster = Cluster.local(
        options.model,
        dict(options.roles),  # type: ignore[arg-type]
        engine={**options.engine, "device": options.device, "dtype": options.dtype},
        layers=options.layers,
        max_waiting=options.max_waiting,
        lease_s=options.lease_s,
        on_transfer_failure=options.on_transfer_failure,
        on=options.on,
    )
    await cluster.start()
    server = Server(ClusterBackend(cluster, model, _served_name(options)), config)
    return await _serve(server, listening, lambda url: ready(url, server.backend.name))


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
