# ruff: noqa: SIM117 - a server, the gateway and a client read better one under the other
"""What the gateway adds to a tool call: latency and calls a second, against a direct connection, in one run.

The server, the gateway, the gateway with broker and security stages, and other projects' gateways run as processes of
their own; one client of the official SDK calls each in turn, block by block, so that all see the same machine. Every
answer is compared. Peers live in environments of their own, whose Python is named:

    python -m venv fastmcp && fastmcp/bin/pip install fastmcp
    python3.12 -m venv contextforge && contextforge/bin/pip install mcp-contextforge-gateway
    python benchmarks/agents_gateway.py --fastmcp fastmcp/bin/python --contextforge contextforge/bin/python
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

sys.path.insert(0, str(Path(__file__).parent))
from agents_peers import start_contextforge, start_fastmcp, version

SERVER = """
import sys, uvicorn
from mcp.server.lowlevel import Server
import mcp_types as types
async def call(ctx, params):
    return types.CallToolResult(content=[types.TextContent(type="text", text=params.arguments["text"])])
async def tools(ctx, params):
    echo = types.Tool(name="echo", input_schema={"type": "object"})
    return types.ListToolsResult(tools=[echo], ttl_ms=60000, cache_scope="public")
server = Server("bench", on_call_tool=call, on_list_tools=tools)
uvicorn.run(server.streamable_http_app(), port=int(sys.argv[1]), log_level="error")
"""
TOKEN = "a-token-of-the-benchmark-alone"
STAGES = {
    "auth": {"tokens": [{"token": TOKEN, "subject": "ann", "tenant": "acme", "roles": ["agent"]}]},
    "mcpsec": {"mode": "permissive"},
    "stages": [
        {
            "name": "broker",
            "options": {
                "access": [{"effect": "allow", "tool": "*", "role": "agent"}],
                "rate": {"per_tool": "1000000/s"},
                "effects": {"*": "read"},
                "budget": {"total_ms": 3_600_000},  # all calls of a session without turns are one turn
            },
        }
    ],
}
GATEWAY = "from heliograph.agents.commands import gateway_app; gateway_app()"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(arguments: list[str], port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", *arguments]
    return listening(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), port)


def listening(process: subprocess.Popen[bytes], port: int) -> subprocess.Popen[bytes]:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return process
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"a server of the benchmark did not start: {process.args[1:3]!r}")
        time.sleep(0.05)


@contextlib.asynccontextmanager
async def connected(url: str, headers: dict[str, str], mode: str):
    limits = httpx2.Limits(max_connections=256, max_keepalive_connections=256)
    async with httpx2.AsyncClient(limits=limits, timeout=60, trust_env=False, headers=headers) as http:
        async with Client(streamable_http_client(url, http_client=http), mode=mode) as client:
            (tool,) = (await client.list_tools()).tools
            yield client, tool.name


async def block(client: Client, tool: str, callers: int, calls: int, text: str) -> tuple[list[float], float]:
    """Latencies in ms of ``calls`` calls by ``callers`` at a time, and the seconds that they took."""
    latencies: list[float] = []

    async def caller(count: int) -> None:
        for _ in range(count):
            began = time.perf_counter()
            result = await client.call_tool(tool, {"text": text})
            latencies.append((time.perf_counter() - began) * 1000)
            assert result.content[0].text == text, result

    began = time.perf_counter()
    await asyncio.gather(*(caller(calls // callers) for _ in range(callers)))
    return latencies, time.perf_counter() - began


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def measure(
    urls: dict[str, tuple[str, dict[str, str]]], mode: str, callers: int, calls: int, blocks: int, text: str
) -> dict[str, dict]:
    medians: dict[str, list[float]] = {name: [] for name in urls}
    tails: dict[str, list[float]] = {name: [] for name in urls}
    rates: dict[str, list[float]] = {name: [] for name in urls}
    async with contextlib.AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(connected(*at, mode)) for name, at in urls.items()}
        for client, tool in clients.values():
            await block(client, tool, callers, max(callers, calls // 4), text)
        for _ in range(blocks):
            for name, (client, tool) in clients.items():
                latencies, seconds = await block(client, tool, callers, calls, text)
                medians[name].append(statistics.median(latencies))
                tails[name].append(quantile(latencies, 0.99))
                rates[name].append(len(latencies) / seconds)
    rows = {}
    for name in urls:
        added = [mine - direct for mine, direct in zip(medians[name], medians["direct"], strict=True)]
        rows[name] = {
            "p50_ms": statistics.median(medians[name]),
            "p99_ms": statistics.median(tails[name]),
            "calls_per_s": statistics.median(rates[name]),
            "added_p50_ms": statistics.median(added),
            "added_p50_ms_blocks": added,
            "p50_ratio": statistics.median(m / d for m, d in zip(medians[name], medians["direct"], strict=True)),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--callers", default="1,16,64")
    parser.add_argument("--calls", type=int, default=256, help="a block")
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--bytes", type=int, default=300, help="of a call's text")
    parser.add_argument("--audit", action="store_true", help="with the audit log on")
    parser.add_argument("--fastmcp", metavar="PYTHON", help="of an environment with fastmcp")
    parser.add_argument("--contextforge", metavar="PYTHON", help="of an environment with mcp-contextforge-gateway")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    ports = {name: free_port() for name in ("direct", "gateway", "with stages")}
    url = f"http://127.0.0.1:{ports['direct']}/mcp"
    peers: dict[str, str] = {}
    running = []
    with tempfile.TemporaryDirectory() as folder:
        policy = {"audit": {"path": "audit.jsonl"}} if options.audit else {}
        config = Path(folder) / "gateway.json"
        config.write_text(json.dumps({"mcpServers": {"bench": {"url": url}}, "heliograph": policy}))
        try:
            running.append(start([SERVER, str(ports["direct"])], ports["direct"]))
            running.append(start([GATEWAY, "serve", str(config), "--port", str(ports["gateway"])], ports["gateway"]))
            staged = Path(folder) / "staged.json"
            staged.write_text(json.dumps({"mcpServers": {"bench": {"url": url}}, "heliograph": {**policy, **STAGES}}))
            running.append(
                start([GATEWAY, "serve", str(staged), "--port", str(ports["with stages"])], ports["with stages"])
            )
            if options.fastmcp:
                ports["fastmcp"], peers["fastmcp"] = free_port(), version(options.fastmcp, "fastmcp")
                proxy = start_fastmcp(options.fastmcp, ports["fastmcp"], url)
                running.append(proxy)
                listening(proxy, ports["fastmcp"])
            urls = {name: (f"http://127.0.0.1:{port}/mcp", {}) for name, port in ports.items()}
            urls["with stages"] = (urls["with stages"][0], {"authorization": f"Bearer {TOKEN}"})
            if options.contextforge:
                peers["contextforge"] = version(options.contextforge, "mcp-contextforge-gateway")
                forge, at, headers = start_contextforge(options.contextforge, free_port(), url, Path(folder))
                running.append(forge)
                urls["contextforge"] = (at, headers)
            results = []
            for mode, era in (("2026-07-28", "2026-07-28"), ("legacy", "2025-11-25")):
                for callers in (int(n) for n in options.callers.split(",")):
                    calls = max(options.calls, callers) // callers * callers
                    rows = asyncio.run(measure(urls, mode, callers, calls, options.blocks, "x" * options.bytes))
                    for name, row in rows.items():
                        results.append({"era": era, "callers": callers, "through": name, **row})
                        print(
                            f"{era} {callers:3} callers  {name:12} p50 {row['p50_ms']:7.2f} ms"
                            f"  p99 {row['p99_ms']:7.2f} ms"
                            f"  {row['calls_per_s']:7.0f} calls/s  added {row['added_p50_ms']:+6.2f} ms"
                            f"  ratio {row['p50_ratio']:.2f}",
                            flush=True,
                        )
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()
    if options.output:
        record = {
            "benchmark": "agents_gateway",
            "machine": {"system": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()},
            "settings": {
                "calls": options.calls,
                "blocks": options.blocks,
                "bytes": options.bytes,
                "audit": options.audit,
            },
            "peers": peers,
            "results": results,
        }
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
