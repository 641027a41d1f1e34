"""The remote side: a process that computes prompts one after another and sends their caches.

Run as ``python -m heliograph.serving.prfaas.remote``, it reads its settings from the first line of standard input,
prints one line once it is ready, and ends when its standard input does.
"""

from __future__ import annotations

import json
import queue
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import torch

from heliograph.errors import BadInput, HeliographError
from heliograph.lm.core.load import LanguageModel, load_model
from heliograph.serving.core.frames import FrameError, Pace, receive_frame, send_frame
from heliograph.serving.prfaas.transfer import CacheSender, LinkShape, layer_bytes
from heliograph.serving.prfaas.windowed import WindowedKV, prefill, random_decoder, windowed_layers

__all__ = ["RemoteProcess", "RemoteServer", "RemoteSettings", "load_settings_model"]


@dataclass(frozen=True)
class RemoteSettings:
    """What both sides are started with.

    Attributes:
        model: a ``.gguf`` file, a Hugging Face folder, ``smollm2-135m``, ``random`` for a small untrained
            one, or ``random-wide`` for one of some hundred million weights and a long context.
        layers: only the first so many.
        full_every, window: every so many-th layer sees all, the others a window; ``window`` None for none.
        bytes_per_s, delay_s, chunk_bytes: of the link that leaves the remote side; None for as fast as it goes.
        threads: of computing.
        lease_s: how long a computed cache is kept for a receiver that does not come back.
        seed: of a random model.
        device, dtype: of the weights.
    """

    model: str = "smollm2-135m"
    layers: int | None = None
    full_every: int = 6
    window: int | None = 512
    bytes_per_s: float | None = None
    delay_s: float = 0.0
    chunk_bytes: int = 2**20
    threads: int = 1
    lease_s: float = 60.0
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"


def load_settings_model(settings: RemoteSettings) -> tuple[LanguageModel, tuple[int | None, ...]]:
    """The model of some settings, and the window of each of its layers."""
    if settings.model in ("random", "random-wide"):
        wide = settings.model == "random-wide"
        layers = settings.layers or (12 if wide else 6)
        model = random_decoder(settings.seed, layers, wide=wide, device=settings.device, dtype=settings.dtype)
    else:
        dtype: torch.dtype = getattr(torch, settings.dtype)
        model = load_model(settings.model, layers=settings.layers, device=settings.device, dtype=dtype)
    windows = windowed_layers(model.config.layers, full_every=settings.full_every, window=settings.window)
    return model, windows


class RemoteServer:
    """Takes prompts over TCP and sends their caches back.

    Args:
        model, windows: as on the receiving side.
        link: what leaves this cluster.
        host: to listen on.
        lease_s: of a cache that is not fetched.

    Attributes:
        address: host and port.
    """

    def __init__(
        self,
        model: LanguageModel,
        windows: tuple[int | None, ...],
        link: LinkShape,
        *,
        host: str = "127.0.0.1",
        lease_s: float = 60.0,
    ) -> None:
        self.model, self.windows, self.link, self.lease_s = model, windows, link, lease_s
        self._pace = Pace(link.bytes_per_s)
        self._jobs: dict[str, CacheSender] = {}
        self._added = threading.Condition()
        self._prompts: queue.Queue[tuple[CacheSender, list[int], bool] | None] = queue.Queue()
        self._listening = socket.create_server((host, 0), backlog=64)
        self.address: tuple[str, int] = self._listening.getsockname()[:2]
        self._accepting = threading.Thread(target=self._accept, name="remote prefill", daemon=True)

    def start(self) -> None:
        """Takes connections."""
        self._accepting.start()

    def serve(self) -> None:
        """Computes prompts until :meth:`close`, in this thread."""
        while (item := self._prompts.get()) is not None:
            sender, tokens, layerwise = item
            with self._added:
                cancelled = self._jobs.get(sender.request) is not sender
            if not cancelled:
                self._compute(sender, tokens, layerwise)

    def close(self) -> None:
        """Takes no more prompts and ends :meth:`serve`."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._prompts.put(None)
        with self._added:
            senders = list(self._jobs.values())
        for sender in senders:
            sender.close()

    def _compute(self, sender: CacheSender, tokens: list[int], layerwise: bool) -> None:
        kv = WindowedKV(self.windows)

        def ready(layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
            sender.put(layer, layer_bytes(k, v), _group(self.windows[layer]))

        if layerwise:
            kv.on_layer = ready
        begin = time.perf_counter()
        try:
            first = prefill(self.model, tokens, kv)
        except HeliographError as error:
            sender.fail(str(error))
            return
        seconds = time.perf_counter() - begin
        if not layerwise:
            for layer, (k, v) in enumerate(zip(kv.keys, kv.values, strict=True)):
                ready(layer, k, v)
        sender.end(first, seconds)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._meet, args=(connection,), name="remote connection", daemon=True).start()

    def _meet(self, connection: socket.socket) -> None:
        """The first message of a connection says what it is for."""
        try:
            connection.settimeout(30)
            asked, body = receive_frame(connection, 2**26)
            time.sleep(self.link.delay_s)  # the way here is as long as the way back
            connection.settimeout(None)
            self._take(connection, asked, bytes(body))
        except (OSError, FrameError, KeyError, TypeError, ValueError) as error:
            with suppress(OSError):
                send_frame(connection, {"op": "refused", "reason": f"no readable request: {error}"})
            connection.close()

    def _take(self, connection: socket.socket, asked: dict[str, Any], body: bytes) -> None:
        name, op = str(asked["request"]), asked["op"]
        if op == "prefill":
            if asked.get("fingerprint") != self.model.fingerprint or list(asked["windows"]) != list(self.windows):
                reason = (
                    f"the remote cluster has model {self.model.fingerprint} with windows {list(self.windows)}, this "
                    f"one {asked.get('fingerprint')} with {asked['windows']}: give both the same version"
                )
                send_frame(connection, {"op": "refused", "reason": reason, "skew": True})
                connection.close()
                return
            sender = CacheSender(name, self.link, self._pace)
            with self._added:
                if name in self._jobs:
                    raise ValueError(f"request {name} is under way")
                self._jobs[name] = sender
                self._added.notify_all()
            tokens = torch.frombuffer(bytearray(body), dtype=torch.int64).tolist() if body else []
            sender.attach([connection], 0, ())
            self._prompts.put((sender, tokens, bool(asked.get("layerwise", True))))
            threading.Thread(target=self._forget, args=(sender,), name="lease", daemon=True).start()
        elif op == "join":
            with self._added:
                known = self._added.wait_for(lambda: name in self._jobs, 5)
                found = self._jobs.get(name)
            attempt = int(asked["attempt"])
            if not known or found is None or attempt < found.attempt:
                send_frame(connection, {"op": "refused", "reason": f"nothing is kept for request {name}"})
                connection.close()
                return
            found.attach([connection], attempt, [int(n) for n in asked.get("held", ())])
        elif op == "cancel":
            with self._added:
                found = self._jobs.pop(name, None)
            if found is not None:
                found.close()
            connection.close()
        else:
            raise ValueError(f"unknown operation {op!r}")

    def _forget(self, sender: CacheSender) -> None:
        """Keeps a cache until it is acknowledged or the lease ends."""
        while not sender.wait(self.lease_s) and sender.busy(self.lease_s):
            pass
        time.sleep(min(1.0, self.lease_s))  # the last acknowledgement may have a connection to close
        with self._added:
            if self._jobs.get(sender.request) is sender:
                del self._jobs[sender.request]
        sender.close()


def _group(window: int | None) -> str:
    return "full" if window is None else f"window {window}"


class RemoteProcess:
    """A remote side in a process of its own.

    Raises:
        BadInput: it does not start; the message holds what it printed last.
    """

    def __init__(self, settings: RemoteSettings, timeout_s: float = 120.0) -> None:
        self.settings = settings
        self.process = subprocess.Popen(
            [sys.executable, "-m", "heliograph.serving.prfaas.remote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        timer = threading.Timer(timeout_s, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps(asdict(settings)).encode() + b"\n")
            self.process.stdin.flush()
            ready = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            self.process.kill()
            _, said = self.process.communicate()
            last = said.decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise BadInput(f"the remote prefill process did not start: {last[0]}") from None
        finally:
            timer.cancel()
        self.address: tuple[str, int] = (str(ready["host"]), int(ready["port"]))
        self.fingerprint = str(ready["fingerprint"])

    def __enter__(self) -> RemoteProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        if self.process.poll() is None:
            self.process.kill()  # it holds nothing that anybody needs
        self.process.communicate()


def main() -> None:
    """Serves until standard input ends."""
    settings = RemoteSettings(**json.loads(sys.stdin.readline()))
    torch.set_num_threads(settings.threads)
    model, windows = load_settings_model(settings)
    link = LinkShape(settings.bytes_per_s, settings.delay_s, settings.chunk_bytes)
    server = RemoteServer(model, windows, link, lease_s=settings.lease_s)
    server.start()
    ready = {"host": server.address[0], "port": server.address[1], "fingerprint": model.fingerprint}
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()

    def watch() -> None:
        sys.stdin.read()
        server.close()

    threading.Thread(target=watch, name="standard input", daemon=True).start()
    server.serve()


if __name__ == "__main__":
    main()
