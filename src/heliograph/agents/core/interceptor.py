"""Interceptors: each sees a message on its way in and the answer on its way out.

An interceptor may observe, rewrite, answer by itself, or refuse by raising :class:`Rejected`. A :class:`Chain` calls
them in the order of the list, the first outermost. The same object runs on the bus, in the gateway, and, through
:func:`as_mcp_middleware`, inside a user's own server of the official MCP SDK.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

from heliograph.agents.core.envelope import Envelope
from heliograph.errors import BadInput, HeliographError

__all__ = [
    "CallNext",
    "Chain",
    "Interceptor",
    "Rejected",
    "as_mcp_middleware",
    "interceptor",
    "transparency_faults",
]

CallNext = Callable[[Envelope], Awaitable[Envelope]]
"""Hands the message to the rest of the chain, and returns the answer."""

REJECTED_CODE = -32003
"""JSON-RPC code of a refusal, in the range that JSON-RPC leaves to implementations."""


class Rejected(HeliographError):
    """A message that an interceptor refuses.

    Attributes:
        reason: for people, in one line.
        code: of the JSON-RPC error that it becomes.
        data: JSON for programs, for example what to do next.
        by: name of the interceptor; a chain fills it in.
    """

    exit_code = 1

    def __init__(
        self, reason: str, *, code: int = REJECTED_CODE, data: Mapping[str, Any] | None = None, by: str = ""
    ) -> None:
        super().__init__(reason)
        self.reason, self.code, self.data, self.by = reason, code, dict(data or {}), by

    def to_jsonrpc_error(self) -> dict[str, Any]:
        """The ``error`` member of a JSON-RPC answer."""
        data = {**self.data, "rejected_by": self.by} if self.by else dict(self.data)
        return {"code": self.code, "message": self.reason, **({"data": data} if data else {})}


@runtime_checkable
class Interceptor(Protocol):
    """One stage between a sender and a receiver."""

    @property
    def name(self) -> str:
        """Unique in a chain; stands in audit records and refusals."""
        ...

    async def __call__(self, env: Envelope, call_next: CallNext, /) -> Envelope:
        """Returns the answer: that of ``call_next``, changed or not, or its own.

        Raises:
            Rejected: the message may not pass.
        """
        ...


@dataclass(frozen=True)
class _Function:
    name: str
    body: Callable[[Envelope, CallNext], Awaitable[Envelope]]

    async def __call__(self, env: Envelope, call_next: CallNext) -> Envelope:
        return await self.body(env, call_next)


def interceptor(name: str) -> Callable[[Callable[[Envelope, CallNext], Awaitable[Envelope]]], Interceptor]:
    """Makes an interceptor of a function.

    >>> @interceptor("label")
    ... async def label(env, call_next):
    ...     return await call_next(env.replace(tenant="a"))
    >>> label.name
    'label'
    """
    return partial(_Function, name)


class Chain:
    """Interceptors in a fixed order.

    Args:
        interceptors: the first is outermost.

    Raises:
        BadInput: two have one name, or one has none.
    """

    def __init__(self, interceptors: Iterable[Interceptor] = ()) -> None:
        self.interceptors: tuple[Interceptor, ...] = tuple(interceptors)
        names = [stage.name for stage in self.interceptors]
        twice = sorted({name for name in names if names.count(name) > 1 or not name})
        if twice:
            raise BadInput(f"interceptors need names of their own; given more than once or empty: {twice}")
        self.names = tuple(names)

    async def __call__(self, env: Envelope, handler: CallNext) -> Envelope:
        """Sends a message through all of them to ``handler`` and the answer back."""
        return await self._from(0, env, handler)

    async def _from(self, place: int, env: Envelope, handler: CallNext) -> Envelope:
        if place == len(self.interceptors):
            return await handler(env)
        stage = self.interceptors[place]
        try:
            return await stage(env, lambda onward: self._from(place + 1, onward, handler))
        except Rejected as refusal:
            refusal.by = refusal.by or stage.name
            raise


async def transparency_faults(
    chain: Chain | Interceptor, messages: Sequence[Envelope], answer: CallNext | None = None
) -> list[str]:
    """What a chain that should only observe has changed, refused or answered by itself; empty if nothing.

    Args:
        chain: to test.
        messages: to send through.
        answer: makes the receiver's answers; by default a reply with the same payload.
    """
    whole = chain if isinstance(chain, Chain) else Chain([chain])
    faults: list[str] = []

    async def echo(env: Envelope) -> Envelope:
        return env.answer(env.payload)

    for number, message in enumerate(messages):
        arrived: list[Envelope] = []
        answers: list[Envelope] = []

        async def receive(
            env: Envelope, arrived: list[Envelope] = arrived, answers: list[Envelope] = answers
        ) -> Envelope:
            arrived.append(env)
            answers.append(await (answer or echo)(env))
            return answers[-1]

        try:
            returned = await whole(message, receive)
        except Rejected as refusal:
            faults.append(f"message {number}: refused by {refusal.by}: {refusal.reason}")
            continue
        if len(arrived) != 1:
            faults.append(f"message {number}: reached the receiver {len(arrived)} times instead of once")
        elif arrived[0].to_json() != message.to_json():
            faults.append(f"message {number}: changed on its way in")
        elif returned.to_json() != answers[0].to_json():
            faults.append(f"message {number}: its answer changed on the way out")
    return faults


def as_mcp_middleware(chain: Chain | Interceptor) -> Callable[[Any, Any], Awaitable[Any]]:
    """The chain as a middleware of the official SDK's server: ``Server(...).middleware.append(...)``.

    Requests pass as envelopes whose payload is the JSON-RPC message; a refusal becomes that message's JSON-RPC error.
    Notifications and the handshake pass untouched.
    """
    from dataclasses import replace

    from mcp.shared.exceptions import MCPError
    from pydantic import BaseModel

    whole = chain if isinstance(chain, Chain) else Chain([chain])

    async def middleware(ctx: Any, call_next: Any) -> Any:
        if ctx.request_id is None or ctx.method == "initialize":
            return await call_next(ctx)
        payload = {"jsonrpc": "2.0", "id": ctx.request_id, "method": ctx.method}
        if ctx.params is not None:
            payload["params"] = dict(ctx.params)

        async def handler(env: Envelope) -> Envelope:
            result = await call_next(replace(ctx, params=env.payload.get("params")))
            if isinstance(result, BaseModel):
                result = result.model_dump(by_alias=True, mode="json", exclude_none=True)
            return env.answer({"jsonrpc": "2.0", "id": ctx.request_id, "result": result or {}})

        try:
            reply = await whole(Envelope.from_jsonrpc(payload), handler)
        except Rejected as refusal:
            error = refusal.to_jsonrpc_error()
            raise MCPError(error["code"], error["message"], error.get("data")) from None
        return reply.payload["result"]

    return middleware
