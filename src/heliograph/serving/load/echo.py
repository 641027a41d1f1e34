"""An OpenAI-compatible server that answers at once: what the client alone can do, and faults on purpose.

``python -m heliograph.serving.load.echo --port 8001`` starts it. By default each answer has as many tokens as were
asked for, without waiting. With ``--step-s`` and ``--token-step-s`` it behaves like an engine that gives every running
request one token a step of ``step_s + running * token_step_s``: a server with a known point of saturation. A body may
ask for a fault, ``{"echo_fault": "drop"}`` and the like (:data:`FAULTS`), so that clients can be tested.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["FAULTS", "EchoServer", "EchoSettings"]

FAULTS = ("drop", "no_end", "no_finish", "short", "error_event", "garbage", "http_500", "refuse", "refuse_bare")
REASONS = {200: "OK", 404: "Not Found", 400: "Bad Request", 429: "Too Many Requests", 500: "Internal Server Error"}


@dataclass(frozen=True)
class EchoSettings:
    """How it answers.

    Attributes:
        step_s, token_step_s: seconds of a step, and of a step for each running request; both 0 for no waiting.
        tokens_per_chunk: tokens of one event. usage_each: whether every event carries the usage so far.
        slots: requests at once; more are refused with 429 and ``Retry-After: 1``. 0 for no limit.
        model: the name that it goes by.
    """

    step_s: float = 0.0
    token_step_s: float = 0.0
    tokens_per_chunk: int = 1
    usage_each: bool = True
    slots: int = 0
    model: str = "echo"


class EchoServer:
    """The server; use it as an asynchronous context, or :meth:`serve` it for ever.

    Attributes:
        served: requests that it has answered in full.
        prompts: the last prompts, newest last, for tests.
    """

    def __init__(self, settings: EchoSettings | None = None, host: str = "127.0.0.1", port: int = 0) -> None:
        self.settings = settings or EchoSettings()
        self.host, self.port = host, port
        self.served, self.running = 0, 0
        self.prompts: list[Any] = []
        self._step = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._stepper: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.host}:{self.port}"

    async def __aenter__(self) -> EchoServer:
        """Listens; port 0 becomes a free one."""
        self._server = await asyncio.start_server(self._connection, self.host, self.port, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]
        if self.settings.step_s or self.settings.token_step_s:
            self._stepper = asyncio.create_task(self._steps())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops listening."""
        if self._stepper:
            self._stepper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._stepper
        assert self._server is not None
        self._server.close()

    async def _steps(self) -> None:
        """One token for everybody who runs, then the next."""
        while True:
            if not self.running:
                await asyncio.sleep(0.0005)
                continue
            await asyncio.sleep(self.settings.step_s + self.running * self.settings.token_step_s)
            self._step.set()
            self._step = asyncio.Event()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode("latin-1").split("\r\n")
                method, path, _ = lines[0].split(" ", 2)
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                if not await self._answer(method, path.partition("?")[0], body, writer):
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError, ValueError):
            pass  # the client left, or the server ends
        finally:
            writer.close()

    async def _answer(self, method: str, path: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answers one request; False ends the connection."""
        if path in ("/health", "/v1/models", "/reset_prefix_cache"):
            named = {"object": "list", "data": [{"id": self.settings.model, "object": "model"}]}
            return self._whole(writer, 200, named if path == "/v1/models" else {"status": "ready"})
        if method != "POST" or path not in ("/v1/completions", "/v1/chat/completions"):
            return self._whole(writer, 404, {"error": {"message": f"no route {path}"}})
        try:
            asked = json.loads(body)
            count, chat = int(asked.get("max_tokens", 16)), path.endswith("chat/completions")
        except (ValueError, TypeError, AttributeError):
            return self._whole(writer, 400, {"error": {"message": "the body is not a JSON object"}})
        fault = asked.get("echo_fault", "")
        if fault == "http_500":
            return self._whole(writer, 500, {"error": {"message": "a fault on purpose"}})
        full = bool(self.settings.slots) and self.running >= self.settings.slots
        if full or fault in ("refuse", "refuse_bare"):
            extra = () if fault == "refuse_bare" else ("Retry-After: 1",)
            return self._whole(writer, 429, {"error": {"message": "busy"}}, extra)
        self.running += 1
        try:
            return await self._stream(writer, asked, count, chat, fault)
        finally:
            self.running -= 1

    async def _stream(
        self, writer: asyncio.StreamWriter, asked: dict[str, Any], count: int, chat: bool, fault: str
    ) -> bool:
        prompt = asked.get("prompt") if not chat else asked.get("messages", [{}])[-1].get("content")
        self.prompts = [*self.prompts[-99:], prompt]
        length = len(prompt) if isinstance(prompt, list) else len(str(prompt).split())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        if chat:
            self._event(
                writer, {"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}, chat=chat
            )
        if fault == "garbage":
            self._data(writer, "{not json")
        given, wanted = 0, count // 2 if fault in ("short", "drop", "no_end", "error_event") else count
        while given < wanted:
            if self._stepper:
                await self._step.wait()
            now = min(self.settings.tokens_per_chunk, wanted - given)
            given += now
            text = " tok" * now
            last = given >= wanted and fault not in ("no_finish", "drop", "no_end")
            choice: dict[str, Any] = {"index": 0, "finish_reason": ("length" if last else None)}
            choice |= {"delta": {"content": text}} if chat else {"text": text}
            event: dict[str, Any] = {"choices": [choice]}
            if self.settings.usage_each:
                event["usage"] = {"prompt_tokens": length, "completion_tokens": given, "total_tokens": length + given}
            self._event(writer, event, chat=chat)
            if given % 64 == 0:
                await writer.drain()
        if fault == "drop":
            await writer.drain()
            writer.transport.abort()
            return False
        if fault == "error_event":
            self._event(writer, {"error": {"message": "a fault on purpose"}}, chat=chat)
        if fault != "no_end":
            usage = {"prompt_tokens": length, "completion_tokens": given, "total_tokens": length + given}
            self._event(writer, {"choices": [], "usage": usage}, chat=chat)
            self._data(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        self.served += 1
        return True

    def _event(self, writer: asyncio.StreamWriter, event: dict[str, Any], *, chat: bool) -> None:
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = {"id": "echo", "object": kind, "created": 0, "model": self.settings.model}
        self._data(writer, json.dumps(head | event))

    def _data(self, writer: asyncio.StreamWriter, text: str) -> None:
        data = f"data: {text}\n\n".encode()
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _whole(
        self, writer: asyncio.StreamWriter, status: int, value: dict[str, Any], extra: Sequence[str] = ()
    ) -> bool:
        data = json.dumps(value).encode()
        lines = [f"HTTP/1.1 {status} {REASONS[status]}", "Content-Type: application/json", *extra]
        head = "\r\n".join([*lines, f"Content-Length: {len(data)}"]).encode()
        writer.write(head + b"\r\n\r\n" + data)
        return True


async def _serve(settings: EchoSettings, host: str, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with EchoServer(settings, host, port):
        await stop.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the server until it is told to end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--step-s", type=float, default=0.0, help="seconds of a step")
    parser.add_argument("--token-step-s", type=float, default=0.0, help="seconds of a step for each running request")
    parser.add_argument("--tokens-per-chunk", type=int, default=1)
    parser.add_argument("--slots", type=int, default=0, help="requests at once; 0 for no limit")
    given = parser.parse_args(arguments)
    settings = EchoSettings(given.step_s, given.token_step_s, given.tokens_per_chunk, slots=given.slots)
    asyncio.run(_serve(settings, given.host, given.port))


if __name__ == "__main__":
    main()
