"""Runs the web application on this machine."""

from __future__ import annotations

import ipaddress
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence

from heliograph.errors import BadInput, MissingExtra, StoreError

try:
    import uvicorn
except ImportError:
    raise MissingExtra("uvicorn", "web") from None

from heliograph.trials.store import Store
from heliograph.web.app import create_app

__all__ = ["serve"]


def serve(
    host: str = "127.0.0.1",
    port: int = 8765,
    store_url: str | None = None,
    open_browser: bool = False,
    *,
    allow_remote: bool = False,
    names: Sequence[str] = (),
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serves the catalog and the runs until Ctrl-C.

    Args:
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        store_url: the store; the default store where ``None``. One that cannot be read is reported on the pages.
        open_browser: whether to open a browser once the server answers.
        allow_remote: permits a ``host`` that other machines can reach; there is no login, so whoever reaches it reads
            every run.
        names: further host names under which browsers call this server.
        on_ready: receives the address once the server listens; by default it is written to standard error.

    Raises:
        BadInput: the host is not loopback, the address cannot be used, the port is taken, or the store's URL is none.
        MissingExtra: FastAPI, uvicorn or the store's driver is not installed.
    """
    if not allow_remote and not _is_loopback(host):
        raise BadInput(
            f"{host} can be reached by other machines, and this server has no login: whoever reaches it reads every "
            "run. Keep 127.0.0.1 (from elsewhere: ssh -L 8765:127.0.0.1:8765 MACHINE), or allow it with --allow-remote."
        )
    _check_store(store_url)
    listener = _listen(host, port)
    with listener:
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}/"
        app = create_app(store_url, hosts=[*_own_names(host), *names])
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=1
        )
        server = _Server(config, lambda: _announce(url, on_ready, open_browser))
        server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """Calls ``ready`` once it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


def _announce(url: str, on_ready: Callable[[str], None] | None, open_browser: bool) -> None:
    if on_ready is not None:
        on_ready(url)
    else:
        sys.stderr.write(f"heliograph is at {url} (Ctrl-C ends it)\n")
    if open_browser:
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_store(url: str | None) -> None:
    """Refuses a URL that is none; a store that cannot be opened now may be later."""
    try:
        Store(url).close()
    except StoreError:
        return


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise BadInput(f"a port lies between 0 and 65535; got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise BadInput(f"{host} is not an address of this machine: {error.strerror}") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise BadInput(
            f"cannot listen on {host}, port {port}: {error.strerror}. Name another port with --port, or take a free "
            "one with --port 0."
        ) from None
    return listener


def _own_names(host: str) -> list[str]:
    """The names by which a browser calls a server that listens on ``host``."""
    if host in ("0.0.0.0", "::"):
        return [socket.gethostname(), socket.getfqdn()]
    return [f"[{host}]" if ":" in host else host]
