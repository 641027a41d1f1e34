"""A careless tool server, gateways before it, and raw requests: the setting of the measured experiments.

The server keeps records of many tenants in SQLite and returns whatever matches, whoever asks. Keeping tenants apart is
the broker's work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Sequence
from typing import Any

import mcp_types as types
import uvicorn
from mcp.server.lowlevel import Server

from heliograph.agents.core.gateway import Gateway
from heliograph.agents.core.http_front import HttpFront, Verifier
from heliograph.agents.core.interceptor import Interceptor
from heliograph.agents.mcp_broker.context import CONTEXT_KEY
from heliograph.agents.mcp_broker.pipeline import BrokerOptions

__all__ = ["MARKER", "SECRET", "broker_options", "careless_server", "gateway_before", "request", "serving"]

MARKER = "marker-of-"
SECRET = "a secret that both sides share"
ROWS_A_TENANT = 3
_QUERY = {"type": "object", "properties": {"query": {"type": "string"}}}
_READS = types.ToolAnnotations(read_only_hint=True)


def _table(tenants: int) -> sqlite3.Connection:
    table = sqlite3.connect(":memory:", check_same_thread=False)
    table.execute("create table records (id text, tenant_id text, body text)")
    for tenant in range(tenants):
        for row in range(ROWS_A_TENANT):
            record = (f"r{tenant}-{row}", f"t{tenant}", f"{MARKER}t{tenant}.")
            table.execute("insert into records values (?, ?, ?)", record)
    return table


def careless_server(tenants: int) -> Any:
    """An ASGI application: ``find`` and ``dump`` return records of all tenants, ``context`` what it was told."""
    table = _table(tenants)

    def rows(query: str) -> list[dict[str, str]]:
        found = table.execute("select id, tenant_id, body from records where id like ?", (f"%{query}%",))
        return [{"id": a, "tenant_id": b, "body": c} for a, b, c in found]

    async def call(ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        arguments = params.arguments or {}
        if params.name == "echo":
            return _said(str(arguments.get("text", "")))
        if params.name == "context":
            meta = dict(ctx.meta or {})
            return _said(json.dumps({"context": meta.get(CONTEXT_KEY), "keys": sorted(str(key) for key in meta)}))
        found = rows(str(arguments.get("query", "")))
        if params.name == "fail":
            return _said(f"cannot handle {json.dumps(found)}", failed=True)
        items = {"items": found}
        if params.name == "dump":
            return _said(json.dumps(items))
        text = types.TextContent(type="text", text=json.dumps(items))
        return types.CallToolResult(content=[text], structured_content=items)

    async def tools(ctx: Any, params: Any) -> types.ListToolsResult:  # noqa: ARG001 - the SDK's signature
        names = ("find", "dump", "fail", "echo", "context", "delete_all")
        listed = [
            types.Tool(name=name, description=f"{name} records", input_schema=_QUERY, annotations=_READS)
            for name in names
        ]
        return types.ListToolsResult(tools=listed, ttl_ms=60000, cache_scope="public")

    return Server("records", on_call_tool=call, on_list_tools=tools).streamable_http_app()


def _said(text: str, *, failed: bool = False) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=failed)


def broker_options(*, per_tool: str = "100000/s") -> BrokerOptions:
    """All stages on: who has the role agent may use everything but ``delete_*``."""
    records = {"records": "/items", "tenant": "/tenant_id"}
    return BrokerOptions.from_mapping(
        {
            "identity": {"require_tenant": True},
            "access": [
                {"effect": "allow", "tool": "*", "role": "agent"},
                {"effect": "deny", "tool": "delete_*"},
            ],
            "rate": {"per_tool": per_tool},
            # Not a measurement of budgets: a turn that never ends.
            "budget": {"total_ms": 3_600_000, "policy": "cap"},
            "sanitize": {"records": [{**records, "tool": tool} for tool in ("find", "dump", "fail")]},
            "context_secret": SECRET,
        }
    )


@contextlib.asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """Serves on a free port of loopback; gives the URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
    task = asyncio.create_task(server._serve())  # without taking over the process's signals
    while not server.started:
        await asyncio.sleep(0.005)
        if task.done():
            task.result()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/mcp"
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def gateway_before(
    url: str, stages: Sequence[Interceptor], verifier: Verifier | None = None
) -> AsyncIterator[str]:
    """A gateway before one server; gives its URL."""
    async with serving(HttpFront(Gateway({"records": url}, stages), verifier=verifier)) as front:
        yield front


def request(method: str, params: dict[str, Any], **meta: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Body and headers of one request of the stateless era."""
    own = {
        types.PROTOCOL_VERSION_META_KEY: "2026-07-28",
        types.CLIENT_CAPABILITIES_META_KEY: {},
        types.CLIENT_INFO_META_KEY: {"name": "bench", "version": "1"},
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": {**own, **meta}}}
    headers = {
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": "2026-07-28",
        "mcp-method": method,
    }
    if "name" in params:
        headers["mcp-name"] = params["name"]
    return body, headers
