"""What the stages add to a call: direct, direct again, through a bare gateway, and through all stages, in turn."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from heliograph.agents.core.audit import AuditLog
from heliograph.agents.mcp_broker.pipeline import broker_stages
from heliograph.checks.agents.mcp_broker_parts.bench import broker_options, careless_server, gateway_before, serving
from heliograph.checks.agents.mcp_broker_parts.isolation import KeyPair
from heliograph.trials.check import Context

__all__ = ["measure"]

ARMS = ("direct", "direct again", "bare gateway", "broker")


@contextlib.asynccontextmanager
async def _connected(url: str, mode: str, token: str) -> AsyncIterator[Client]:
    headers = {"authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60, trust_env=False) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        await client.list_tools()
        yield client


async def _call_ms(client: Client, text: str) -> float:
    began = time.perf_counter()
    result = await client.call_tool("echo", {"text": text})
    took = (time.perf_counter() - began) * 1000
    said: Any = result.content[0]
    if said.text != text:
        raise RuntimeError("an answer changed on its way")
    return took


async def _run(context: Context, log_path: Path) -> dict[str, Any]:
    load, keys, table = context.workload, KeyPair(), {}
    added, bare, twins = [], [], []
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(careless_server(1)))
        log = stack.enter_context(AuditLog(log_path, fsync="interval"))
        verifier = keys.verifier()
        plain = await stack.enter_async_context(gateway_before(server, (), verifier))
        stages = broker_stages(broker_options(), log=log)
        brokered = await stack.enter_async_context(gateway_before(server, stages, verifier))
        urls = dict(zip(ARMS, (server, server, plain, brokered), strict=True))
        cells = [(mode, size) for mode in ("auto", "legacy") for size in load["bytes"]]
        for number, (mode, size) in enumerate(cells):
            async with contextlib.AsyncExitStack() as inner:
                token = keys.token("t0")
                clients = {
                    arm: await inner.enter_async_context(_connected(url, mode, token)) for arm, url in urls.items()
                }
                times: dict[str, list[float]] = {arm: [] for arm in ARMS}
                for repeat in range(load["warmup"] + load["calls"]):
                    # Whoever comes first after a pause pays for it: the order turns round.
                    for arm in ARMS if repeat % 2 else reversed(ARMS):
                        took = await _call_ms(clients[arm], "x" * size)
                        if repeat >= load["warmup"]:
                            times[arm].append(took)
            median = {arm: statistics.median(values) for arm, values in times.items()}
            added.append(median["broker"] - median["direct"])
            bare.append(median["bare gateway"] - median["direct"])
            twins.append(abs(median["direct again"] - median["direct"]))
            p95 = {arm: statistics.quantiles(values, n=20)[-1] for arm, values in times.items()}
            table[f"{mode}, {size} bytes"] = {"median_ms": median, "p95_ms": p95}
            context.progress((number + 1) / len(cells), f"{added[-1]:.1f} ms added")
    context.keep("latency", table)
    return {
        "added_ms": max(added),
        "gateway_ms": max(bare),
        "twin_ms": max(twins),
        "twins_agree": max(twins) <= load["twin_margin_ms"],
    }


def measure(context: Context) -> Mapping[str, Any]:
    """Added median of the worst case among both protocol eras and all sizes."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_run(context, Path(folder) / "audit.jsonl"))
