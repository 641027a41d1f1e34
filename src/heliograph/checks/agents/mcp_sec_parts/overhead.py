"""What attestation, codes, labels and marks add to a message, over loopback HTTP and in memory."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx2
import uvicorn
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.lowlevel import Server
from mcp_types import CallToolRequestParams
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from heliograph.agents.core.gateway import Gateway
from heliograph.agents.core.http_front import HttpFront
from heliograph.agents.core.identity import Identity
from heliograph.agents.mcp_sec.attested import AttestedServer
from heliograph.agents.mcp_sec.certificates import CapabilityCertificate, pins_of
from heliograph.agents.mcp_sec.enforcer import SecurityEnforcer
from heliograph.agents.mcp_sec.inprocess import gateway_before
from heliograph.agents.mcp_sec.policy import SecurityPolicy
from heliograph.agents.mcp_sec.trust import TrustStore
from heliograph.trials.check import Context

__all__ = ["measure"]

ARMS = ("bare", "bare again", "warm", "cold")
NAMES = ("s", "t")
"""Two servers, called in turn, so that arguments are compared with what the other one has answered."""
TOOL = {"name": "echo", "description": "Says it again", "inputSchema": {"type": "object"}}


def _server() -> Server[Any]:
    async def tools(ctx: Any, params: Any) -> dict[str, Any]:  # noqa: ARG001 - the SDK's signature
        modern = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
        return {"tools": [TOOL], **(modern if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS else {})}

    async def call(ctx: Any, params: CallToolRequestParams) -> dict[str, Any]:
        modern = {"resultType": "complete"} if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS else {}
        return {"content": [{"type": "text", "text": (params.arguments or {}).get("text", "")}], **modern}

    return Server("s", on_list_tools=tools, on_call_tool=call)  # type: ignore[arg-type]


def _attested() -> tuple[dict[str, Server[Any]], SecurityEnforcer, list[AttestedServer]]:
    issuer, key = Identity.generate(), Identity.generate()
    servers, attested = {}, []
    for name in NAMES:
        certificate = CapabilityCertificate.issue(
            name, key.public, issuer, issued_by="i", capabilities=["tools"], tools=pins_of([TOOL])
        )
        servers[name] = _server()
        attested.append(AttestedServer(certificate, key).install(servers[name]))
    enforcer = SecurityEnforcer(TrustStore({"i": issuer.public}), policy=SecurityPolicy(mode="strict"))
    return servers, enforcer, attested


@contextlib.asynccontextmanager
async def _serving(app: Any) -> AsyncIterator[str]:
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
async def _connected(
    servers: dict[str, Server[Any]], stages: tuple[Any, ...], mode: str, http: bool
) -> AsyncIterator[Client]:
    if not http:
        async with Client(gateway_before(servers, stages).server, mode=mode) as client:
            yield client
        return
    async with contextlib.AsyncExitStack() as stack:
        ups = {
            name: await stack.enter_async_context(_serving(one.streamable_http_app())) for name, one in servers.items()
        }
        front = await stack.enter_async_context(_serving(HttpFront(Gateway(ups, stages))))
        web = await stack.enter_async_context(httpx2.AsyncClient(timeout=60, trust_env=False))
        yield await stack.enter_async_context(Client(streamable_http_client(front, http_client=web), mode=mode))


async def _call_ms(client: Client, server: str, text: str) -> float:
    began = time.perf_counter()
    result = await client.call_tool(f"{server}.echo", {"text": text})
    took = (time.perf_counter() - began) * 1000
    said: Any = result.content[0]
    if said.text != text:
        raise RuntimeError("an answer changed on its way")
    return took


def _text(repeat: int, size: int) -> str:
    """Words of two to nine letters; no two texts have twelve bytes in a row in common."""
    noise = random.Random(repeat * 1_000_003 + size)
    words = ("".join(noise.choices("abcdefghijklmnopqrstuvwxyz", k=noise.randint(2, 9))) for _ in range(size // 5))
    return " ".join(words)[:size]


async def _run(context: Context) -> dict[str, Any]:
    load, table = context.workload, {}
    added: dict[str, list[float]] = {"warm": [], "cold": []}
    twins, carried = [], []
    cells = [(http, mode) for http in (False, True) for mode in load["modes"]]
    for number, (http, mode) in enumerate(cells):
        async with contextlib.AsyncExitStack() as stack:
            clients, forget = {}, {}
            for arm in ARMS:
                servers = {name: _server() for name in NAMES}
                stages: tuple[Any, ...] = ()
                if arm in ("warm", "cold"):
                    servers, enforcer, attested = _attested()
                    stages = (enforcer,)
                    forget[arm] = (enforcer, attested)
                clients[arm] = await stack.enter_async_context(_connected(servers, stages, mode, http))
                await clients[arm].list_tools()
            for size in load["bytes"]:
                times: dict[str, list[float]] = {arm: [] for arm in ARMS}
                for repeat in range(load["warmup"] + load["calls"]):
                    for arm in ARMS if repeat % 2 else reversed(ARMS):
                        if arm == "cold":  # the certificate is checked and the key derived anew
                            forget[arm][0]._peers.forget()
                            for one in forget[arm][1]:
                                one.channel._sessions.clear()
                        took = await _call_ms(clients[arm], NAMES[repeat % 2], _text(repeat, size))
                        if repeat >= load["warmup"]:
                            times[arm].append(took)
                median = {arm: statistics.median(row) for arm, row in times.items()}
                # A call is two messages, its request and its answer.
                for arm, row in added.items():
                    row.append((median[arm] - median["bare"]) / 2)
                twins.append(abs(median["bare again"] - median["bare"]) / 2)
                carried.append(median["bare"] / 2)
                where = f"{'http' if http else 'memory'}, {mode}, {size} bytes"
                p95 = {arm: statistics.quantiles(row, n=20)[-1] for arm, row in times.items()}
                table[where] = {"median_call_ms": median, "p95_call_ms": p95}
        context.progress((number + 1) / len(cells), f"{max(added['warm']):.2f} ms added")
    context.keep("latency", table)
    return {
        "cold_ms": max(added["cold"]),
        "warm_ms": max(added["warm"]),
        "transport_ms": max(carried),
        "twin_ms": max(twins),
        "twins_agree": max(twins) <= load["twin_margin_ms"],
    }


def measure(context: Context) -> Mapping[str, Any]:
    """Added median of a message, the worst of transports, eras and sizes."""
    return asyncio.run(_run(context))
