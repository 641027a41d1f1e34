"""The OpenAI-compatible server over an engine or a cluster of them: routes, streams, limits, draining.

A client that goes away ends its request within a step, whether it streamed or not. On SIGTERM the server refuses new
requests, ends those that it has, and only then goes.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException as AnyHTTPException

from heliograph import __version__
from heliograph.errors import HeliographError
from heliograph.lm.core.tokens import Tokenizer
from heliograph.serving.core.async_engine import AsyncEngine, EngineClosed, Overloaded, StreamEvent
from heliograph.serving.core.engine import EngineStats
from heliograph.serving.core.metrics import Metrics
from heliograph.serving.core.openai_api import (
    ChatRequest,
    CompletionRequest,
    Generation,
    chat_generations,
    chat_logprobs,
    completion_generations,
    completion_logprobs,
    describe_fault,
    error_body,
    head_body,
    usage_body,
)
from heliograph.serving.core.request import Sample

__all__ = ["Backend", "EngineBackend", "Server", "ServerConfig", "create_app"]

Phase = Literal["ready", "draining", "stopped"]


class Backend(Protocol):
    """Who generates: one engine, or a cluster of instances behind a router.

    Attributes:
        name: of the model. tokenizer: of the model. context: its longest sequence.
    """

    name: str
    tokenizer: Tokenizer
    context: int

    def stream(self, generation: Generation) -> AsyncIterator[StreamEvent]:
        """One answer; leaving the loop early ends it."""
        ...

    async def stats(self) -> EngineStats:
        """Of all instances together."""
        ...

    async def reset_prefix_cache(self) -> int:
        """Forgets all texts."""
        ...

    async def unfinished(self) -> int:
        """Requests and transfers that a drain waits for."""
        ...

    async def abort_all(self) -> None:
        """Ends all requests."""
        ...

    async def close(self) -> None:
        """Ends everything."""
        ...


class EngineBackend:
    """One engine of this process."""

    def __init__(self, engine: AsyncEngine, name: str | None = None) -> None:
        model = engine.engine.model
        self.name, self.tokenizer, self.context = name or model.name, model.tokenizer, model.config.context
        self._engine = engine

    async def stream(self, generation: Generation) -> AsyncIterator[StreamEvent]:
        """One answer."""
        request = self._engine.engine.request(
            generation.prompt,
            generation.params,
            logprobs=generation.logprobs,
            prompt_logprobs=generation.prompt_logprobs,
            priority=generation.priority,
            salt=generation.salt,
        )
        async for event in self._engine.stream(request):
            yield event

    async def stats(self) -> EngineStats:
        """Of the engine."""
        return await self._engine.stats()

    async def reset_prefix_cache(self) -> int:
        """Forgets all texts."""
        return await self._engine.reset_prefix_cache()

    async def unfinished(self) -> int:
        """Requests and leases."""
        return self._engine.unfinished

    async def abort_all(self) -> None:
        """Ends all requests."""
        await self._engine.abort_all()

    async def close(self) -> None:
        """Ends the engine's thread."""
        await asyncio.to_thread(self._engine.close)


@dataclass(frozen=True)
class ServerConfig:
    """How a server treats its clients.

    Attributes:
        api_keys: one of which clients must send as a bearer token; none for an open server.
        max_body_bytes: of a request.
        max_requests: answers being generated or waiting at once.
        drain_timeout_s: how long requests may go on after SIGTERM.
    """

    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 4 * 2**20
    max_requests: int = 512
    drain_timeout_s: float = 30.0


@dataclass
class Server:
    """The state of a running server.

    Attributes:
        backend: who generates.
        config: limits.
        phase: "ready", then "draining", then "stopped".
        active: answers under way.
    """

    backend: Backend
    config: ServerConfig = field(default_factory=ServerConfig)
    phase: Phase = "ready"
    active: int = 0

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.backend.name)
        self.started = int(time.time())

    async def drain(self) -> int:
        """Refuses new requests and waits for those that are here; the number that had to be ended after the limit."""
        self.phase = "draining"
        deadline = time.monotonic() + self.config.drain_timeout_s
        while (self.active or await self.backend.unfinished()) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        left = self.active
        if left:
            await self.backend.abort_all()
            for _ in range(100):  # clients hear of it before the connections close
                if not self.active:
                    break
                await asyncio.sleep(0.02)
        self.phase = "stopped"
        return left

    async def answer(self, generation: Generation) -> AsyncIterator[StreamEvent]:
        """One answer, with its times measured."""
        begin = last = time.perf_counter()
        self.active += 1
        finish = "abort"
        try:
            first = True
            async for event in self.backend.stream(generation):
                now = time.perf_counter()
                if event.sample is not None:
                    self.metrics.first_token(now - begin) if first else self.metrics.next_token(now - last)
                    first, last = False, now
                if event.finish is not None:
                    finish = event.finish
                yield event
        finally:
            self.active -= 1
            self.metrics.finished(time.perf_counter() - begin, finish)

    async def answers(self, generations: Sequence[Generation]) -> AsyncIterator[tuple[int, StreamEvent]]:
        """Several answers at once, as (choice, event); copies of a prompt begin once the first has its first token.

        Raises:
            HeliographError: one of them was refused; the others are ended.
        """
        events: asyncio.Queue[tuple[int, StreamEvent | BaseException | None]] = asyncio.Queue()
        begun = {g.choice: asyncio.Event() for g in generations}

        async def run(generation: Generation) -> None:
            try:
                if generation.copy_of is not None:
                    await begun[generation.copy_of].wait()
                async for event in self.answer(generation):
                    begun[generation.choice].set()
                    events.put_nowait((generation.choice, event))
                events.put_nowait((generation.choice, None))
            except Exception as error:
                events.put_nowait((generation.choice, error))
            finally:
                begun[generation.choice].set()

        tasks = [asyncio.create_task(run(generation)) for generation in generations]
        try:
            left = len(tasks)
            while left:
                choice, event = await events.get()
                if isinstance(event, BaseException):
                    raise event
                if event is None:
                    left -= 1
                else:
                    yield choice, event
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class _Choice:
    """One answer as it grows."""

    text: str = ""
    samples: list[Sample] = field(default_factory=list)
    prompt: list[Sample] = field(default_factory=list)
    finish: str | None = None
    error: str = ""
    cached: int = 0

    def take(self, event: StreamEvent) -> None:
        self.text += event.text
        self.prompt += event.prompt
        self.cached = max(self.cached, event.num_cached)
        if event.sample is not None:
            self.samples.append(event.sample)
        if event.finish is not None:
            self.finish, self.error = event.finish, event.error


class _Tokenize(BaseModel):
    prompt: str
    add_special_tokens: bool = True


class _Detokenize(BaseModel):
    tokens: list[int]


def create_app(server: Server) -> FastAPI:
    """The routes over a server's state."""
    app = FastAPI(title="heliograph", version=__version__, docs_url=None, redoc_url=None)
    backend = server.backend
    app.add_middleware(_Guard, server=server)

    @app.exception_handler(HeliographError)
    async def refuse(_: Request, error: HeliographError) -> Response:
        return _refusal(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        text, field_name = describe_fault(error.errors()[0])
        return JSONResponse(error_body(text, param=field_name or None), 400)

    @app.exception_handler(AnyHTTPException)
    async def unknown(request: Request, error: AnyHTTPException) -> Response:
        return JSONResponse(error_body(f"{request.url.path}: {error.detail}"), error.status_code)

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": server.phase}, 200 if server.phase == "ready" else 503)

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @app.get("/metrics")
    async def metrics() -> Response:
        text = server.metrics.render(await backend.stats())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        entry = {
            "id": backend.name,
            "object": "model",
            "created": server.started,
            "owned_by": "heliograph",
            "max_model_len": backend.context,
        }
        return {"object": "list", "data": [entry]}

    @app.post("/tokenize")
    async def tokenize(body: _Tokenize) -> dict[str, Any]:
        tokens = backend.tokenizer.encode(body.prompt)
        return {"tokens": tokens, "count": len(tokens), "max_model_len": backend.context}

    @app.post("/detokenize")
    async def detokenize(body: _Detokenize) -> dict[str, str]:
        return {"prompt": backend.tokenizer.decode(body.tokens, special=True)}

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> dict[str, Any]:
        tokenizer = backend.tokenizer
        end = next(iter(tokenizer.end_tokens), None)
        return {
            "tokenizer_class": "heliograph",
            "model_max_length": backend.context,
            "vocab_size": tokenizer.size,
            "bos_token": tokenizer.text_of(tokenizer.begin_token) or None,
            "eos_token": tokenizer.text_of(end) or None,
            "pad_token": tokenizer.text_of(end) or None,
            "chat_template": tokenizer.template or None,
        }

    @app.post("/reset_prefix_cache")
    async def reset() -> dict[str, int]:
        return {"blocks": await backend.reset_prefix_cache()}

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        _check_model(body.model, backend.name)
        generations = completion_generations(body, backend.tokenizer, backend.context)
        _admit(server, len(generations))
        head = head_body("text_completion", backend.name)
        if body.stream:
            return await _stream(_completion_chunks(server, body, generations, head))
        choices = await _collect(server, request, generations)
        shown = [
            {"index": g.choice, "finish_reason": c.finish, **_completion_choice(body, g, c, backend.tokenizer)}
            for g, c in zip(generations, choices, strict=True)
        ]
        return JSONResponse({**head, "choices": shown, "usage": _usage(generations, choices, body.max_tokens)})

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        _check_model(body.model, backend.name)
        generations = chat_generations(body, backend.tokenizer, backend.context)
        _admit(server, len(generations))
        if body.stream:
            head = head_body("chat.completion.chunk", backend.name)
            return await _stream(_chat_chunks(server, body, generations, head))
        choices = await _collect(server, request, generations)
        shown = [
            {
                "index": g.choice,
                "message": {"role": "assistant", "content": c.text, "refusal": None},
                "logprobs": chat_logprobs(c.samples, backend.tokenizer) if body.logprobs else None,
                "finish_reason": c.finish,
            }
            for g, c in zip(generations, choices, strict=True)
        ]
        head = head_body("chat.completion", backend.name)
        return JSONResponse({**head, "choices": shown, "usage": _usage(generations, choices)})

    return app


def _check_model(asked: str, name: str) -> None:
    if asked and asked != name:
        raise UnknownModel(f"the model {asked!r} is not served here; {name!r} is")


class UnknownModel(HeliographError):
    """Another model is served."""


class Draining(HeliographError):
    """The server is about to end."""


def _admit(server: Server, count: int) -> None:
    if server.phase != "ready":
        raise Draining("this server is about to end and takes no requests; send it to another one")
    if server.active + count > server.config.max_requests:
        raise Overloaded(server.active, server.config.max_requests, retry_after_s=2.0)


def _refusal(error: HeliographError) -> JSONResponse:
    status, kind, headers = 400, "invalid_request_error", {}
    if isinstance(error, Overloaded):
        status, kind = 429, "rate_limit_error"
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    elif isinstance(error, Draining | EngineClosed):
        status, kind = 503, "service_unavailable"
        headers["Retry-After"] = "5"
    elif isinstance(error, UnknownModel):
        status, kind = 404, "not_found_error"
    return JSONResponse(error_body(str(error), kind), status, headers)


async def _collect(server: Server, request: Request, generations: Sequence[Generation]) -> list[_Choice]:
    """All answers, complete; ended when the client goes away."""
    choices = [_Choice() for _ in generations]

    async def work() -> None:
        async for number, event in server.answers(generations):
            choices[number].take(event)

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work()), asyncio.create_task(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(499, "the client has gone")
        await working
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
    failed = next((choice for choice in choices if choice.finish == "error"), None)
    if failed is not None:
        raise HTTPException(500, failed.error or "the model failed")
    return choices


async def _stream(chunks: AsyncIterator[dict[str, Any]]) -> Response:
    """Server-sent events; an error before the first chunk is a proper HTTP error."""
    iterator = chunks.__aiter__()
    try:
        first = await anext(iterator)
    except StopAsyncIteration:
        first = None

    async def lines() -> AsyncIterator[str]:
        try:
            if first is not None:
                yield _event(first)
            async for chunk in iterator:
                yield _event(chunk)
            yield "data: [DONE]\n\n"
        except HeliographError as error:
            yield _event(error_body(str(error)))
        finally:
            closing: Callable[[], Awaitable[None]] | None = getattr(iterator, "aclose", None)
            if closing is not None:
                await closing()

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _completion_chunks(
    server: Server, body: CompletionRequest, generations: Sequence[Generation], head: dict[str, Any]
) -> AsyncIterator[dict[str, Any]]:
    tokenizer = server.backend.tokenizer
    choices = [_Choice() for _ in generations]
    async for number, event in server.answers(generations):
        generation, choice = generations[number], choices[number]
        if event.finish == "error":
            yield error_body(event.error or "the model failed", "server_error")
            return
        begins = not choice.samples
        before = len(choice.text)
        choice.take(event)
        text = event.text if body.max_tokens else ""
        samples: list[Sample | int] = [event.sample] if event.sample is not None and body.max_tokens else []
        if begins and body.echo:
            text = tokenizer.decode(generation.prompt, special=True) + text
            if generation.prompt_logprobs:
                samples = [generation.prompt[0], *event.prompt, *samples]
        logprobs = completion_logprobs(samples, tokenizer, before) if body.logprobs is not None else None
        shown = {"index": number, "text": text, "logprobs": logprobs, "finish_reason": event.finish}
        running = {"usage": _usage(generations, choices, body.max_tokens)} if body.wants_running_usage else {}
        yield {**head, "choices": [shown], **running}
    if body.wants_usage:
        yield {**head, "choices": [], "usage": _usage(generations, choices, body.max_tokens)}


async def _chat_chunks(
    server: Server, body: ChatRequest, generations: Sequence[Generation], head: dict[str, Any]
) -> AsyncIterator[dict[str, Any]]:
    tokenizer = server.backend.tokenizer
    choices = [_Choice() for _ in generations]
    greeted: set[int] = set()
    async for number, event in server.answers(generations):
        if event.finish == "error":
            yield error_body(event.error or "the model failed", "server_error")
            return
        choices[number].take(event)
        if number not in greeted:
            greeted.add(number)
            delta = {"role": "assistant", "content": ""}
            yield {**head, "choices": [{"index": number, "delta": delta, "logprobs": None, "finish_reason": None}]}
        samples = [event.sample] if event.sample is not None else []
        shown = {
            "index": number,
            "delta": {"content": event.text} if event.text or samples else {},
            "logprobs": chat_logprobs(samples, tokenizer) if body.logprobs else None,
            "finish_reason": event.finish,
        }
        running = {"usage": _usage(generations, choices)} if body.wants_running_usage else {}
        yield {**head, "choices": [shown], **running}
    if body.wants_usage:
        yield {**head, "choices": [], "usage": _usage(generations, choices)}


def _completion_choice(
    body: CompletionRequest, generation: Generation, choice: _Choice, tokenizer: Tokenizer
) -> dict[str, Any]:
    text, samples = choice.text, list[Sample | int](choice.samples)
    if body.max_tokens == 0:
        text, samples = "", []
    if body.echo:
        text = tokenizer.decode(generation.prompt, special=True) + text
        if generation.prompt_logprobs:
            samples = [generation.prompt[0], *choice.prompt, *samples]
    return {"text": text, "logprobs": completion_logprobs(samples, tokenizer) if body.logprobs is not None else None}


def _usage(
    generations: Sequence[Generation], choices: Sequence[_Choice], max_tokens: int | None = None
) -> dict[str, Any]:
    prompts = sum(len(g.prompt) for g in generations if g.copy_of is None)
    generated = 0 if max_tokens == 0 else sum(len(c.samples) for c in choices)
    return usage_body(
        prompts, generated, sum(c.cached for g, c in zip(generations, choices, strict=True) if g.copy_of is None)
    )


class _Guard:
    """Refuses bodies that are too large and clients without a key, before anything is read or parsed."""

    def __init__(self, app: Any, server: Server) -> None:
        self.app, self.server = app, server

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        config = self.server.config
        headers = {name.lower(): value for name, value in scope["headers"]}
        if config.api_keys and scope["path"] != "/health":
            given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            if not any(hmac.compare_digest(given, key.encode()) for key in config.api_keys):
                body = error_body("a valid API key is needed: Authorization: Bearer KEY", "authentication_error")
                await JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
                return
        limit, taken = config.max_body_bytes, 0
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > limit:
            await JSONResponse(error_body(self._too_large), 413, {"Connection": "close"})(scope, receive, send)
            return

        async def counted() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise HTTPException(413, self._too_large)
            return message

        await self.app(scope, counted, send)

    @property
    def _too_large(self) -> str:
        return f"the request is larger than {self.server.config.max_body_bytes} bytes"
