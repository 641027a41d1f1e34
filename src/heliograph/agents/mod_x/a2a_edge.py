"""A peer as an A2A agent: its card, and the JSON-RPC binding of the A2A protocol, version 1.0.

A message that names a skill (one data part ``{"capability", "arguments"}``) becomes a task; one in plain text is a
wish, answered by a message with the skills that fit it. A call whose arguments are not complete waits for the rest in
``TASK_STATE_INPUT_REQUIRED``. Push notifications and extended cards are not served, and the card says so.

Whoever reaches the endpoint is one client: it sees all tasks. Put a proxy that authenticates before it where more than
one party does.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from heliograph.agents.core.envelope import new_id
from heliograph.agents.mod_x.a2a_tasks import (
    CANCELED,
    COMPLETED,
    FAILED,
    INPUT_REQUIRED,
    PAUSED,
    REJECTED,
    STATES,
    TERMINAL,
    WORKING,
    A2aTask,
    TaskStore,
)
from heliograph.agents.mod_x.discovery import words
from heliograph.agents.mod_x.edges import DISCOVER, find_tools, input_schema, tool_names
from heliograph.agents.mod_x.peer import CallFailed, ModXPeer
from heliograph.agents.mod_x.wire import Exchange, read, write
from heliograph.errors import BadInput, HeliographError, MissingExtra

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["A2A_VERSION", "serve_a2a"]

A2A_VERSION = "1.0"
JSON, TEXT = "application/json", "text/plain"
MAX_REQUEST_BYTES = 8 * 1024 * 1024
MAX_AT_WORK = 256
MAX_PAGE = 100
CARD_AGE_S = 60

Result = dict[str, Any] | AsyncIterator[dict[str, Any]]

_LOG = logging.getLogger(__name__)
_REASONS = {
    -32001: "TASK_NOT_FOUND",
    -32002: "TASK_NOT_CANCELABLE",
    -32003: "PUSH_NOTIFICATION_NOT_SUPPORTED",
    -32004: "UNSUPPORTED_OPERATION",
    -32005: "CONTENT_TYPE_NOT_SUPPORTED",
    -32009: "VERSION_NOT_SUPPORTED",
}


class _Fault(HeliographError):
    """An error of the protocol, by its code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message

    def to_json(self, number: Any) -> dict[str, Any]:
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.code in _REASONS:
            kind = "type.googleapis.com/google.rpc.ErrorInfo"
            error["data"] = [{"@type": kind, "reason": _REASONS[self.code], "domain": "a2a-protocol.org"}]
        return {"jsonrpc": "2.0", "id": number, "error": error}


def _text(params: Mapping[str, Any], name: str, *, needed: bool = False) -> str:
    value = params.get(name)
    if value is None:
        value = ""
    if not isinstance(value, str) or (needed and not value):
        raise _Fault(-32602, f"{name} is {'needed, as ' if needed else ''}text")
    return value


def _number(params: Mapping[str, Any], name: str, low: int, high: int | None = None) -> int | None:
    value = params.get(name)
    if value is None:
        return None
    good = isinstance(value, int) and not isinstance(value, bool) and value >= low and (high is None or value <= high)
    if not good:
        raise _Fault(-32602, f"{name} is an integer, {low} or more{'' if high is None else f', at most {high}'}")
    return int(value)


def _object(params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = params.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _Fault(-32602, f"{name} is an object")
    return value


class _Endpoint:
    def __init__(self, peer: ModXPeer, url: str, timeout_s: float, store: TaskStore) -> None:
        self.peer, self.url, self.timeout_s, self.store = peer, url, timeout_s, store
        self._at_work: set[asyncio.Task[None]] = set()
        self._methods: dict[str, Callable[[Mapping[str, Any]], Awaitable[Result]]] = {
            "SendMessage": self._send,
            "SendStreamingMessage": self._stream,
            "GetTask": self._get,
            "ListTasks": self._list,
            "CancelTask": self._cancel,
            "SubscribeToTask": self._subscribe,
            "GetExtendedAgentCard": self._no_extended_card,
            **{
                f"{verb}TaskPushNotificationConfig{plural}": self._no_push
                for verb, plural in (("Create", ""), ("Get", ""), ("List", "s"), ("Delete", ""))
            },
        }

    async def close(self) -> None:
        for work in list(self._at_work):
            work.cancel()
        await asyncio.gather(*self._at_work, return_exceptions=True)

    # The card

    def card(self, url: str) -> dict[str, Any]:
        skills = [
            {
                "id": name,
                "name": one.name,
                "description": one.description or one.name,
                "tags": list(one.concepts) or words(one.name) or [one.name],
            }
            for name, one in tool_names(self.peer).items()
        ]
        search = {
            "id": DISCOVER,
            "name": DISCOVER,
            "description": "Finds skills for a wish in words: a message in plain text, or query and top.",
            "tags": ["search"],
            "inputModes": [TEXT, JSON],
        }
        return {
            "name": self.peer.name,
            "description": f"Capabilities that the peer {self.peer.name} can reach. A data part "
            '{"capability": SKILL, "arguments": {...}} calls one; plain text finds some.',
            "version": "1",
            "supportedInterfaces": [{"url": url, "protocolBinding": "JSONRPC", "protocolVersion": A2A_VERSION}],
            "capabilities": {"streaming": True, "pushNotifications": False, "extendedAgentCard": False},
            "defaultInputModes": [JSON],
            "defaultOutputModes": [JSON],
            "skills": [search, *skills],
        }

    # Requests

    async def answer(self, raw: bytes, content_type: str, version: str) -> Result:
        """A JSON-RPC response, or the results of a stream and their number under ``id``.

        Raises:
            _Fault: with ``number`` as far as it could be read.
        """
        number: Any = None
        try:
            # A page in a browser can post text to a loopback port without asking, but not JSON.
            if content_type.partition(";")[0].strip().lower() != JSON:
                raise _Fault(-32005, f"requests are {JSON}; got {content_type or 'no content type'}")
            body = _parsed(raw)
            if not isinstance(body, Mapping):
                raise _Fault(-32600, "a request is a JSON object; batches are not served")
            number = body.get("id")
            if isinstance(number, bool) or not isinstance(number, str | int | float):
                number = None
                raise _Fault(-32600, "a request has an id: text, or a number")
            method, params = body.get("method"), body.get("params")
            if body.get("jsonrpc") != "2.0" or not isinstance(method, str) or not method:
                raise _Fault(-32600, 'a request has "jsonrpc": "2.0" and a method')
            # Without a version a request is one of 0.3, whose forms are others.
            if ".".join(version.strip().split(".")[:2]) != A2A_VERSION:
                raise _Fault(
                    -32009,
                    f"A2A {version.strip() or '0.3 (no A2A-Version header)'} is not served; {A2A_VERSION} is",
                )
            if method not in self._methods:
                raise _Fault(-32601, f"{method[:80]} is not served; {', '.join(self._methods)} are")
            if params is not None and not isinstance(params, Mapping):
                raise _Fault(-32602, "params is an object")
            result = await self._methods[method](params or {})
        except _Fault as fault:
            return fault.to_json(number)
        except Exception:
            _LOG.exception("an A2A request failed")
            return _Fault(-32603, "internal error").to_json(number)
        if isinstance(result, dict):
            return {"jsonrpc": "2.0", "id": number, "result": result}

        async def responses(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
            async for event in events:
                yield {"jsonrpc": "2.0", "id": number, "result": event}

        return responses(result)

    async def _send(self, params: Mapping[str, Any]) -> Result:
        length, now = self._configuration(params)
        begun = self._begin(params)
        if isinstance(begun, dict):
            return {"message": begun}
        if not now:
            await begun.wait(PAUSED)
        return {"task": begun.to_json(length)}

    async def _stream(self, params: Mapping[str, Any]) -> Result:
        length, _ = self._configuration(params)
        begun = self._begin(params)
        return _only({"message": begun}) if isinstance(begun, dict) else begun.follow(PAUSED, length)

    async def _get(self, params: Mapping[str, Any]) -> Result:
        length = _number(params, "historyLength", 0)
        return self._task(_text(params, "id", needed=True)).to_json(length)

    async def _cancel(self, params: Mapping[str, Any]) -> Result:
        task = self._task(_text(params, "id", needed=True))
        if task.state in TERMINAL:
            raise _Fault(-32002, f"the task {task.id} is in {task.state}")
        if task.work is not None:
            task.work.cancel()
        task.move(CANCELED, [{"text": "No longer waited for. What the call has done until now is not undone."}])
        return task.to_json()

    async def _subscribe(self, params: Mapping[str, Any]) -> Result:
        task = self._task(_text(params, "id", needed=True))
        if task.state in TERMINAL:
            raise _Fault(-32004, f"the task {task.id} is in {task.state}; GetTask gives its result")
        return task.follow(TERMINAL)

    async def _list(self, params: Mapping[str, Any]) -> Result:
        context, state = _text(params, "contextId"), _text(params, "status")
        size, length = _number(params, "pageSize", 1, MAX_PAGE) or 50, _number(params, "historyLength", 0)
        token, since = _text(params, "pageToken"), _text(params, "statusTimestampAfter")
        artifacts = params.get("includeArtifacts") or False
        if state not in ("", "TASK_STATE_UNSPECIFIED", *STATES) or not isinstance(artifacts, bool):
            raise _Fault(-32602, f"status is one of {', '.join(STATES)}, and includeArtifacts true or false")
        if token and not token.isdecimal():
            raise _Fault(-32602, "pageToken is one that ListTasks gave")
        try:
            after = datetime.fromisoformat(since) if since else None
            found = [
                task
                for task in self.store
                if context in ("", task.context)
                and state in ("", "TASK_STATE_UNSPECIFIED", task.state)
                and (after is None or task.timestamp >= after)
            ]
        except (ValueError, TypeError):
            raise _Fault(-32602, "statusTimestampAfter is a time such as 2026-01-31T12:00:00Z") from None
        # The token is the last change that was shown: what changes meanwhile moves before it, and nothing is skipped.
        left = [task for task in found if not token or task.updated < int(token)]
        page = left[:size]
        return {
            "tasks": [task.to_json(length, artifacts=artifacts) for task in page],
            "nextPageToken": str(page[-1].updated) if len(left) > size else "",
            "pageSize": size,
            "totalSize": len(found),
        }

    async def _no_push(self, _: Mapping[str, Any]) -> Result:
        raise _Fault(-32003, "push notifications are not served; SubscribeToTask and GetTask are")

    async def _no_extended_card(self, _: Mapping[str, Any]) -> Result:
        raise _Fault(-32004, "there is no extended card")

    # Messages and tasks

    def _task(self, task_id: str) -> A2aTask:
        task = self.store.get(task_id)
        if task is None:
            raise _Fault(-32001, f"there is no task {task_id[:80]}, or it was forgotten")
        return task

    def _configuration(self, params: Mapping[str, Any]) -> tuple[int | None, bool]:
        """Messages of history wanted, and whether not to wait."""
        configuration = _object(params, "configuration")
        if _object(configuration, "taskPushNotificationConfig"):
            raise _Fault(-32003, "push notifications are not served; leave taskPushNotificationConfig out")
        now = configuration.get("returnImmediately") or False
        if not isinstance(now, bool):
            raise _Fault(-32602, "returnImmediately is true or false")
        return _number(configuration, "historyLength", 0), now

    def _begin(self, params: Mapping[str, Any]) -> A2aTask | dict[str, Any]:
        """The task that a message begins or continues, or the message that answers it at once."""
        message = _object(params, "message")
        _check_message(message)
        context, task_id = _text(message, "contextId"), _text(message, "taskId")
        try:
            exchange = read(message, "a2a")
        except BadInput as error:
            raise _Fault(-32602, str(error)) from None
        if task_id:
            return self._continue(self._task(task_id), context, message)
        context = context or new_id()
        if all("text" in part for part in message["parts"]):
            wish = " ".join(part["text"] for part in message["parts"])
            try:
                parts = [{"data": {"skills": find_tools(self.peer, {"query": wish})}}]
            except HeliographError as error:
                raise _Fault(-32602, str(error)) from None
            return {"messageId": new_id(), "contextId": context, "role": "ROLE_AGENT", "parts": parts}
        if exchange.kind != "call" or not isinstance(exchange.body, Mapping):
            raise _Fault(-32602, 'name a skill: one data part {"capability": SKILL, "arguments": {...}}, or plain text')
        if exchange.capability != DISCOVER and exchange.capability not in tool_names(self.peer):
            raise _Fault(-32602, f"there is no skill {exchange.capability[:80]}; the card names those that there are")
        task = self.store.new(context, message)
        task.capability, task.arguments = exchange.capability, dict(exchange.body)
        if len(self._at_work) >= MAX_AT_WORK:
            task.move(REJECTED, [{"text": f"{MAX_AT_WORK} tasks are at work; try again later"}])
            return task
        self._start(task)
        return task

    def _continue(self, task: A2aTask, context: str, message: Mapping[str, Any]) -> A2aTask:
        if context and context != task.context:
            raise _Fault(-32602, f"the task {task.id} belongs to another contextId")
        if task.state != INPUT_REQUIRED:
            raise _Fault(-32004, f"the task {task.id} is in {task.state} and takes no further message")
        more: dict[str, Any] = {}
        for part in message["parts"]:
            data = part.get("data")
            given = data.get("arguments", data) if isinstance(data, Mapping) else {}
            more |= given if isinstance(given, Mapping) else {}
        if not more:
            raise _Fault(-32602, "the missing arguments stand in a data part, by name")
        if len(self._at_work) >= MAX_AT_WORK:
            raise _Fault(-32603, f"{MAX_AT_WORK} tasks are at work; try again later")
        task.hear(message)
        task.arguments |= more
        self._start(task)
        return task

    def _start(self, task: A2aTask) -> None:
        capability = tool_names(self.peer).get(task.capability)
        needed = ["query"] if capability is None else input_schema(capability).get("required")
        missing = [name for name in needed if name not in task.arguments] if isinstance(needed, list) else []
        if missing:
            text = f"{task.capability} needs {', '.join(map(str, missing))}"
            task.move(INPUT_REQUIRED, [{"text": text}, {"data": {"missing": missing}}])
            return
        if task.state == INPUT_REQUIRED:
            task.move(WORKING)
        task.work = asyncio.ensure_future(self._work(task))
        self._at_work.add(task.work)
        task.work.add_done_callback(self._at_work.discard)

    async def _work(self, task: A2aTask) -> None:
        if task.state != WORKING:
            task.move(WORKING)
        try:
            async with asyncio.timeout(self.timeout_s):
                answer = Exchange("result", await self._call(task), conv=task.context)
            json.dumps(answer.body, allow_nan=False)
        except asyncio.CancelledError:
            if task.state not in TERMINAL:  # the server ends; no stream may wait for ever
                task.move(CANCELED)
            raise
        except Exception as error:  # an agent's own mistake ends its task, and nothing else
            kind = getattr(error, "kind", "failed")
            said = str(error) if isinstance(error, HeliographError) else f"{type(error).__name__}: {error}"
            failure = {"code": -32000, "message": said, "data": {"kind": kind}}
            parts: list[dict[str, Any]] = [{"text": said}, *write(Exchange("failure", failure), "a2a")["parts"]]
            task.move(REJECTED if kind in ("refused", "unknown") else FAILED, parts)
            return
        task.give(task.capability, write(answer, "a2a")["parts"])
        task.move(COMPLETED)

    async def _call(self, task: A2aTask) -> Any:
        if task.capability == DISCOVER:
            return find_tools(self.peer, task.arguments)
        capability = tool_names(self.peer).get(task.capability)
        if capability is None:
            raise CallFailed(f"{task.capability} is no longer offered", "unknown")
        return await self.peer.call(capability, task.arguments, timeout_s=self.timeout_s)


def _parsed(raw: bytes) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    if len(raw) > MAX_REQUEST_BYTES:
        raise _Fault(-32600, f"a request has {MAX_REQUEST_BYTES} bytes at most")
    try:
        return json.loads(raw, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise _Fault(-32700, "not JSON") from None


def _check_message(message: Mapping[str, Any]) -> None:
    _text(message, "messageId", needed=True)
    if message.get("role") != "ROLE_USER":
        raise _Fault(-32602, "a client's message has the role ROLE_USER")
    parts = message.get("parts")
    if not isinstance(parts, list) or not parts or not all(isinstance(part, Mapping) for part in parts):
        raise _Fault(-32602, "a message has parts: a list with one object or more")
    for part in parts:
        content = [name for name in ("text", "raw", "url", "data") if name in part]
        if len(content) != 1 or (content == ["text"] and not isinstance(part["text"], str)):
            raise _Fault(-32602, "a part has one of text, raw, url and data")
        kind = _text(part, "mediaType").partition(";")[0].strip().lower()
        if content[0] in ("raw", "url") or kind not in ("", TEXT if content == ["text"] else JSON):
            raise _Fault(-32005, f"parts are text ({TEXT}) or data ({JSON}); got {content[0]} {kind}".rstrip())


async def _only(event: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    yield event


async def _read(request: Request) -> bytes:
    """The body; a byte more than is allowed if it has more."""
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_REQUEST_BYTES:
            break
    return raw


def serve_a2a(
    peer: ModXPeer,
    url: str = "",
    *,
    timeout_s: float = 30.0,
    keep_tasks: int = 1000,
    now: Callable[[], float] = time.time,
) -> Starlette:
    """An ASGI application with the peer's agent card and the JSON-RPC binding of A2A 1.0.

    Args:
        peer: whose index and calls it serves.
        url: that the card names; "" for the one under which the client asks.
        timeout_s: for one call.
        keep_tasks: that can be asked for later.
        now: seconds since 1970.
    """
    try:
        from starlette.applications import Starlette
        from starlette.responses import JSONResponse, Response, StreamingResponse
        from starlette.routing import Route
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or "mcp").split(".")[0], "agents") from error
    endpoint = _Endpoint(peer, url, timeout_s, TaskStore(keep_tasks, now=now))

    async def card(request: Request) -> Response:
        content = endpoint.card(endpoint.url or str(request.base_url))
        tag = f'"{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]}"'
        headers = {"ETag": tag, "Cache-Control": f"max-age={CARD_AGE_S}"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return JSONResponse(content, headers=headers)

    async def rpc(request: Request) -> Response:
        asked = request.headers.get("a2a-version") or request.query_params.get("A2A-Version", "")
        answer = await endpoint.answer(await _read(request), request.headers.get("content-type", ""), asked)
        if isinstance(answer, dict):
            return JSONResponse(answer)
        lines = (f"data: {json.dumps(event)}\n\n" async for event in answer)
        return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @contextlib.asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        yield
        await endpoint.close()

    return Starlette(
        routes=[
            Route("/.well-known/agent-card.json", card, methods=["GET"]),
            Route("/", rpc, methods=["POST"]),
        ],
        lifespan=life,
    )
