"""One request to an OpenAI-compatible server, streamed and read event by event.

Nothing that fails is lost: every request ends as one record, and a record says what happened to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec

from heliograph.errors import BadInput, MissingExtra
from heliograph.serving.load.record import Failure, RequestRecord

try:
    import httpx
except ModuleNotFoundError as error:
    raise MissingExtra("httpx", "serving") from error

__all__ = ["CompletionClient", "LoadRequest"]

REFUSALS = (429, 503)
MOST_ERROR_CHARACTERS = 300
POOLS = 64


@dataclass(frozen=True)
class LoadRequest:
    """What to ask.

    Attributes:
        prompt: text, or token ids (completions only).
        output_tokens: to generate, exactly: end-of-sequence is ignored by servers that can.
        prompt_tokens: its length where known, to compare with what the server counted; 0 if unknown.
        priority: passed on where it is not 0.
        extra: further fields of the body, for servers that know them.
        tag: comes back with the record.
    """

    prompt: str | tuple[int, ...]
    output_tokens: int
    prompt_tokens: int = 0
    priority: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
    tag: str = ""


class CompletionClient:
    """Sends requests to one server; use it as an asynchronous context.

    Args:
        url: of the server, with or without ``/v1``.
        model: its name there; the server's first model where empty.
        endpoint: "completions" takes text and token ids, "chat" text alone.
        connections: at most so many at once; more requests wait, and the wait counts in their latency.
        timeout_s: of a whole request. keep_alive: whether connections are used again.
        api_key: sent as a bearer token.
        check_length: whether another number of output tokens than asked for is a failure.
        transport: for tests.

    Raises:
        BadInput: no URL, or more connections than the system lets this process open.
    """

    def __init__(
        self,
        url: str,
        model: str = "",
        *,
        endpoint: Literal["completions", "chat"] = "completions",
        connections: int = 1024,
        timeout_s: float = 600.0,
        keep_alive: bool = True,
        api_key: str = "",
        check_length: bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise BadInput(f"the server's URL is {url!r}; write it as http://127.0.0.1:8000")
        if endpoint not in ("completions", "chat"):
            raise BadInput(f"the endpoint is completions or chat; got {endpoint!r}")
        _raise_file_limit(connections)
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model, self.endpoint, self.check_length = model, endpoint, check_length
        self.timeout_s, self.now = timeout_s, now
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # A pool looks through all its connections at every step, so that a thousand in one pool slow each other down.
        pools = min(POOLS, connections)
        each = -(-connections // pools)
        limits = httpx.Limits(max_connections=each, max_keepalive_connections=each if keep_alive else 0)
        verify: Any = ssl.create_default_context() if url.startswith("https:") else False
        # one deadline a request, kept by the task: httpx's own would restart with every event
        self._pools = [
            httpx.AsyncClient(
                limits=limits, timeout=None, headers=headers, transport=transport, trust_env=False, verify=verify
            )
            for _ in range(1 if transport else pools)
        ]
        self._in_flight = [0] * len(self._pools)

    async def __aenter__(self) -> CompletionClient:
        """Opens the client; asks for the model's name where none was given."""
        if not self.model:
            self.model = await self._first_model()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes all connections."""
        for pool in self._pools:
            await pool.aclose()

    async def _first_model(self) -> str:
        try:
            answer = await self._pools[0].get(f"{self.url}/v1/models", timeout=30.0)
            return str(answer.raise_for_status().json()["data"][0]["id"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            await self.__aexit__()
            raise BadInput(f"{self.url}/v1/models names no model ({error!r}); is a server running there?") from None

    async def reset_prefix_cache(self) -> bool:
        """Asks the server to forget cached prefixes; whether it knows how to."""
        with contextlib.suppress(httpx.HTTPError):
            return (await self._pools[0].post(f"{self.url}/reset_prefix_cache", timeout=30.0)).is_success
        return False

    async def send(self, request: LoadRequest, intended_s: float | None = None) -> RequestRecord:
        """Sends one request and reads its answer to the end; never raises for what the server does.

        Args:
            request: what to ask.
            intended_s: when it should have been sent, on this client's clock; now where None.
        """
        sent = self.now()
        reader = _Reader(intended_s if intended_s is not None else sent, sent, request)
        failure: Failure = ""
        error = ""
        try:
            async with asyncio.timeout(self.timeout_s):
                await self._exchange(request, reader)
        except TimeoutError:
            failure, error = "timeout", f"no end within {self.timeout_s:g} s"
        except (httpx.RemoteProtocolError, httpx.ReadError) as lost:
            failure, error = ("truncated" if reader.events else "connection"), repr(lost)
        except httpx.HTTPError as lost:
            failure, error = "connection", repr(lost)
        return reader.record(self.now(), failure, error, check_length=self.check_length)

    def body(self, request: LoadRequest) -> dict[str, Any]:
        """The JSON that is sent."""
        if self.endpoint == "chat":
            if not isinstance(request.prompt, str):
                raise BadInput("chat takes text, not token ids; use the completions endpoint")
            asked: dict[str, Any] = {"messages": [{"role": "user", "content": request.prompt}]}
        else:
            asked = {"prompt": request.prompt if isinstance(request.prompt, str) else list(request.prompt)}
        if request.priority:
            asked["priority"] = request.priority
        return {
            "model": self.model,
            **asked,
            "max_tokens": request.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            **request.extra,
        }

    async def _exchange(self, request: LoadRequest, reader: _Reader) -> None:
        path = "/v1/chat/completions" if self.endpoint == "chat" else "/v1/completions"
        pool = min(range(len(self._pools)), key=self._in_flight.__getitem__)
        self._in_flight[pool] += 1
        try:
            async with self._pools[pool].stream("POST", self.url + path, json=self.body(request)) as answer:
                reader.status = answer.status_code
                if answer.status_code >= 400:
                    text = (await answer.aread()).decode(errors="replace")[:MOST_ERROR_CHARACTERS]
                    reader.refuse(text, answer.headers.get("retry-after"))
                    return
                await self._read_events(answer, reader)
        finally:
            self._in_flight[pool] -= 1

    async def _read_events(self, answer: httpx.Response, reader: _Reader) -> None:
        """Server-sent events; only their data lines matter here."""
        rest = b""
        async for data in answer.aiter_bytes():
            now = self.now()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    reader.event(line[5:].strip(), now)
        if rest.startswith(b"data:"):
            reader.event(rest[5:].strip(), self.now())


class _Reader:
    """Collects what the events of one answer say."""

    def __init__(self, intended_s: float, sent_s: float, request: LoadRequest) -> None:
        self.base = RequestRecord(intended_s, sent_s, sent_s, asked_tokens=request.output_tokens, tag=request.tag)
        self.request = request
        self.status, self.events, self.done = 0, 0, False
        self.times: list[float] = []
        self.tokens: list[int] = []
        self.stated = True
        self.counted = 0
        self.usage: Mapping[str, Any] = {}
        self.finish, self.failure, self.error = "", "", ""
        self.retry_after: float | None = None

    def refuse(self, text: str, retry_after: str | None) -> None:
        with contextlib.suppress(ValueError):
            self.retry_after = float(retry_after) if retry_after else None
        self.failure = "refused" if self.status in REFUSALS and self.retry_after is not None else "http"
        self.error = f"{self.status}: {text}"

    def event(self, data: bytes, now: float) -> None:
        self.events += 1
        if data == b"[DONE]":
            self.done = True
            return
        try:
            event = msgspec.json.decode(data)
            choices = event.get("choices") or []
            if event.get("error"):
                self.failure, self.error = "protocol", str(event["error"])[:MOST_ERROR_CHARACTERS]
            usage = event.get("usage")
            self.usage = usage if isinstance(usage, dict) else self.usage
            choice = choices[0] if choices else {}
            text = choice.get("text") or (choice.get("delta") or {}).get("content")
            text = text or (choice.get("delta") or {}).get("reasoning_content")
            ids = choice.get("token_ids")
            self.finish = choice.get("finish_reason") or self.finish
        except (ValueError, AttributeError, LookupError, TypeError) as error:
            self.failure, self.error = "protocol", f"an event cannot be read: {error!r}: {data[:100]!r}"
            return
        if not text and not ids:
            return
        self.times.append(now)
        self.tokens.append(self.tokens_of(ids, usage))

    def tokens_of(self, ids: Any, usage: Any) -> int:
        if isinstance(ids, list) and ids:
            self.counted += len(ids)
            return len(ids)
        total = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if isinstance(total, int) and total > self.counted:
            count, self.counted = total - self.counted, total
            return count
        self.stated = False
        self.counted += 1
        return 1

    def record(self, end: float, failure: Failure, error: str, *, check_length: bool) -> RequestRecord:
        counted = self.usage.get("completion_tokens")
        output = counted if isinstance(counted, int) else sum(self.tokens)
        prompt = self.usage.get("prompt_tokens")
        details = self.usage.get("prompt_tokens_details")
        details = details if isinstance(details, dict) else {}
        failure = failure or self.failure  # type: ignore[assignment]
        error = error or self.error
        if not failure and not (self.finish and self.done):
            lacks = "finish reason" if not self.finish else "end mark"
            failure, error = "truncated", f"the stream ended without its {lacks}"
        if not failure and not self.times and not output:
            failure, error = "protocol", "no event carried text or counted a token"
        if not failure and check_length and output != self.request.output_tokens:
            failure = "wrong_length"
            error = f"{output} tokens came, {self.request.output_tokens} were asked for (finish: {self.finish})"
        return replace(
            self.base,
            end_s=end,
            first_s=self.times[0] if self.times else None,
            prompt_tokens=prompt if isinstance(prompt, int) else self.request.prompt_tokens,
            output_tokens=output,
            chunk_times_s=tuple(self.times),
            chunk_tokens=tuple(self.tokens),
            tokens_known=bool(self.tokens) and (self.stated or sum(self.tokens) == output),
            finish=self.finish,
            failure=failure,
            error=error,
            status=self.status,
            retry_after_s=self.retry_after,
            cached_tokens=_count(details, "cached_tokens"),
            image_tokens=_count(details, "image_tokens"),
        )


def _count(details: Mapping[str, Any], name: str) -> int:
    value = details.get(name)
    return value if isinstance(value, int) else -1


def _raise_file_limit(connections: int) -> None:
    """Each connection is an open file; the soft limit is often 1,024."""
    if connections < 1:
        raise BadInput(f"at least one connection is needed; got {connections}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + 128
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise BadInput(
                f"{connections} connections need {needed} open files, the system allows {hard}; raise it with ulimit -n"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
