"""What the gateway does when one request concerns several servers, or two protocol eras."""

from __future__ import annotations

import asyncio
import base64
import binascii
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mcp_types as types
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import SUBSCRIPTION_ID_META_KEY
from mcp_types import methods
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from heliograph.agents.core.guard import told
from heliograph.agents.core.inbound import Inbound
from heliograph.agents.core.interceptor import REJECTED_CODE, Rejected
from heliograph.agents.core.links import LOST_CODE, Call, Link, LinkInfo, LinkLost, modern_meta
from heliograph.agents.core.namespace import LISTS

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server

    from heliograph.agents.core.gateway import Gateway
    from heliograph.agents.core.upstream import Upstream

__all__ = ["listed", "listen", "merged_capabilities", "reshaped", "rounds"]

MAX_ROUNDS = 10
LIST_DEADLINE_MS = 5000.0
"""What one of several servers may take for its part of a list; the others do not wait longer for it."""
_ENVELOPE_KEYS = (types.PROTOCOL_VERSION_META_KEY, types.CLIENT_INFO_META_KEY, types.CLIENT_CAPABILITIES_META_KEY)
_subscriptions = itertools.count(1)


def merged_capabilities(infos: Sequence[LinkInfo], *, complete: bool) -> dict[str, Any]:
    """What the servers can do together; with ``complete=False`` also what an unreachable one may be able to."""
    merged: dict[str, Any] = {}
    for info in infos:
        for name, value in info.capabilities.items():
            if not isinstance(value, Mapping):
                merged.setdefault(name, value)
                continue
            old = dict(merged.get(name) or {})
            for key, item in value.items():
                old[key] = bool(old.get(key)) or item if isinstance(item, bool) else item
            merged[name] = old
    if not complete:
        for name in ("tools", "prompts", "resources"):
            merged.setdefault(name, {"listChanged": True})
    return merged


def reshaped(method: str, inner: str, outer: str, result: dict[str, Any], server: Server[Any]) -> dict[str, Any]:
    """A result of one protocol version as one of another: fields that the caller's version lacks go, required ones
    come.

    Args:
        method: of the request.
        inner, outer: versions that the server and the caller speak.
        result: of the server.
        server: whose name stamps results of the stateless era that have none.
    """
    if inner == outer or (inner not in MODERN_PROTOCOL_VERSIONS and outer not in MODERN_PROTOCOL_VERSIONS):
        return result
    modern = outer in MODERN_PROTOCOL_VERSIONS
    if modern:
        hints = {"ttlMs": 0, "cacheScope": "private"} if method in methods.CACHEABLE_METHODS else {}
        result = {"resultType": "complete", **hints, **result}
    if (method, outer) in methods.SERVER_RESULTS:
        result = methods.serialize_server_result(method, outer, result)
    if modern:
        meta = dict(result.get("_meta") or {})
        meta.setdefault(types.SERVER_INFO_META_KEY, server.server_info_stamp)
        result["_meta"] = meta
    return result


async def rounds(
    link: Link, ctx: Inbound, capabilities: Mapping[str, Any], method: str, params: dict[str, Any], call: Call
) -> dict[str, Any]:
    """A request that crosses the eras.

    Towards a server of the stateless era, the gateway answers its requests for input by asking the caller of the
    session in the way of that session. Towards a server of sessions, the caller's per-request fields are left out;
    should that server ask something, it is told that nobody is there to answer.
    """
    meta = {key: value for key, value in (params.get("_meta") or {}).items() if key not in _ENVELOPE_KEYS}
    if not link.info.modern:
        bare = {key: value for key, value in params.items() if key != "_meta"}
        return await link.call(method, {**bare, "_meta": meta} if meta else bare, call)
    body = {**params, "_meta": {**meta, **modern_meta(link.info.version, capabilities)}}
    for _ in range(MAX_ROUNDS):
        result = await link.call(method, body, call)
        if result.get("resultType") != "input_required":
            return result
        answers = {}
        for key, request in (result.get("inputRequests") or {}).items():
            outbound = ctx.outbound
            answers[key] = await outbound.send_raw_request(str(request["method"]), dict(request.get("params") or {}))
        body = {**body, "inputResponses": answers}
        if "requestState" in result:
            body["requestState"] = result["requestState"]
    raise MCPError(types.INTERNAL_ERROR, f"the server asked for input more than {MAX_ROUNDS} times")


async def listed(
    gateway: Gateway, ctx: Inbound, session: Any, method: str, params: dict[str, Any], deadline_ms: float | None
) -> dict[str, Any]:
    """A list over all servers, page by page: a cursor names the server and that server's own cursor."""
    names = list(gateway.upstreams)
    if gateway.namespace.bare:
        return await gateway.send(gateway.upstreams[names[0]], ctx, session, method, params, deadline_ms)
    wanted: list[tuple[str, str | None]] = [(name, None) for name in names]
    if params.get("cursor") is not None:
        wanted = [item for item in _read_cursor(str(params["cursor"])) if item[0] in gateway.upstreams]

    deadline_ms = LIST_DEADLINE_MS if deadline_ms is None else min(deadline_ms, LIST_DEADLINE_MS)

    async def one(name: str, cursor: str | None) -> tuple[str, dict[str, Any] | MCPError]:
        upstream = gateway.upstreams[name]
        inside = {key: value for key, value in params.items() if key != "cursor"}
        if cursor is not None:
            inside["cursor"] = cursor
        try:
            result = await gateway.send(upstream, ctx, session, method, inside, deadline_ms)
        except MCPError as error:
            return name, error
        except Rejected as refusal:
            body = refusal.to_jsonrpc_error()
            return name, MCPError(REJECTED_CODE, body["message"], body.get("data"))
        return name, gateway.namespace.outward(name, method, result)

    pages = await asyncio.gather(*(one(name, cursor) for name, cursor in wanted))
    key, _ = LISTS[method]
    entries: list[Any] = []
    onward: list[tuple[str, str | None]] = []
    good: list[dict[str, Any]] = []
    for name, page in pages:
        if isinstance(page, MCPError):
            # A server without prompts, or one that is down or refused, does not hide the others.
            if page.error.code not in (types.METHOD_NOT_FOUND, LOST_CODE, types.REQUEST_TIMEOUT, REJECTED_CODE):
                raise page
            continue
        good.append(page)
        entries += page.get(key, ())
        if page.get("nextCursor") is not None:
            onward.append((name, page["nextCursor"]))
    if not good and pages:
        first = pages[0][1]
        assert isinstance(first, MCPError)
        raise first
    result: dict[str, Any] = {key: entries}
    if onward:
        result["nextCursor"] = base64.urlsafe_b64encode(json.dumps(onward).encode()).decode()
    if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
        result["resultType"] = "complete"
        result["ttlMs"] = min((int(page.get("ttlMs", 0)) for page in good), default=0)
        public = all(page.get("cacheScope") == "public" for page in good)
        result["cacheScope"] = "public" if public else "private"
        result["_meta"] = {types.SERVER_INFO_META_KEY: gateway.server.server_info_stamp}
    return result


def _read_cursor(cursor: str) -> list[tuple[str, str | None]]:
    try:
        items = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        return [(str(name), str(inner)) for name, inner in items]
    except (ValueError, TypeError, binascii.Error):
        raise MCPError(types.INVALID_PARAMS, "the cursor is not one that this gateway gave") from None


async def listen(gateway: Gateway, ctx: Inbound, params: dict[str, Any]) -> dict[str, Any]:
    """A subscription of the stateless era: one at each server that is concerned, told as one.

    The caller gets one acknowledgement, once every server has given its own, and every event under its own request id.
    """
    wanted = dict(params.get("notifications") or {})
    uris: dict[str, list[str]] = {}
    for uri in wanted.get("resourceSubscriptions") or ():
        name, inner = gateway.namespace.inner_uri(str(uri))
        if name in gateway.upstreams:
            uris.setdefault(name, []).append(inner)
    lists = {key: value for key, value in wanted.items() if key != "resourceSubscriptions"}
    targets = [name for name in gateway.upstreams if lists or name in uris]
    outbound = ctx.outbound
    honoured: dict[str, dict[str, Any]] = {}
    acknowledged = False

    def stamped(body: dict[str, Any]) -> dict[str, Any]:
        meta = {**(body.get("_meta") or {}), SUBSCRIPTION_ID_META_KEY: ctx.request_id}
        return {**body, "_meta": meta}

    async def acknowledge() -> None:
        nonlocal acknowledged
        if acknowledged or len(honoured) < len(targets):
            return
        acknowledged = True
        union: dict[str, Any] = {}
        for name, granted in honoured.items():
            for key, value in granted.items():
                if key == "resourceSubscriptions":
                    outer = [gateway.namespace.outer_uri(name, str(uri)) for uri in value or ()]
                    union[key] = [*union.get(key, []), *outer]
                else:
                    union[key] = union.get(key) or value
        await outbound.notify("notifications/subscriptions/acknowledged", stamped({"notifications": union}))

    async def one(name: str) -> dict[str, Any]:
        upstream: Upstream = gateway.upstreams[name]

        async def on_notify(method: str, body: dict[str, Any]) -> None:
            if method == "notifications/subscriptions/acknowledged":
                honoured[name] = dict(body.get("notifications") or {})
                await acknowledge()
                return
            passed = await told(gateway.guards, name, method, body)
            if passed is not None:
                await outbound.notify(method, stamped(gateway.namespace.notification(name, method, passed)))

        link = await upstream.link(gateway._caller(upstream, ctx, None))
        if not link.info.modern:
            honoured[name] = {}
            await acknowledge()
            await asyncio.Event().wait()  # nothing to hear from it; the caller ends this
        filtered = {**lists, **({"resourceSubscriptions": uris[name]} if name in uris else {})}
        call = Call(on_notify, request_id=f"listen-{next(_subscriptions)}")
        return await link.call("subscriptions/listen", {**params, "notifications": filtered}, call)

    async def lost(name: str) -> dict[str, Any] | MCPError:
        try:
            return await one(name)
        except LinkLost as error:
            honoured.setdefault(name, {})
            await acknowledge()
            return MCPError(LOST_CODE, str(error), {"upstream": name, "retryable": True})

    outcomes = await asyncio.gather(*(lost(name) for name in targets))
    ended = next((outcome for outcome in outcomes if isinstance(outcome, dict)), None)
    if ended is None:
        failure = next((outcome for outcome in outcomes if isinstance(outcome, MCPError)), None)
        raise failure or MCPError(types.INVALID_PARAMS, "the subscription names nothing that a server here has")
    return stamped(ended) if SUBSCRIPTION_ID_META_KEY in (ended.get("_meta") or {}) else ended
