"""A gateway before one server, with a rule of your own: no tool whose name says delete. A client tries both."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import uvicorn
from mcp import Client

from heliograph.agents import AuditInterceptor, AuditLog, Envelope, Gateway, Rejected, UpstreamSpec
from heliograph.agents.core.http_front import HttpFront
from heliograph.agents.core.interceptor import CallNext, interceptor

SERVER = """
from mcp.server.mcpserver import MCPServer

server = MCPServer("files")

@server.tool()
def read_file(name: str) -> str:
    return f"contents of {name}"

@server.tool()
def delete_file(name: str) -> str:
    return f"{name} is gone"

server.run("stdio")
"""


@interceptor("no_deletes")
async def no_deletes(env: Envelope, call_next: CallNext) -> Envelope:
    if env.payload["method"] == "tools/call" and "delete" in env.payload["params"]["name"]:
        raise Rejected("deleting is not allowed here", data={"suggested_actions": ["ask the owner"]})
    return await call_next(env)


async def main(folder: Path) -> None:
    (folder / "server.py").write_text(SERVER)
    files = UpstreamSpec(command=sys.executable, args=(str(folder / "server.py"),))
    with AuditLog(folder / "audit.jsonl") as log:
        front = HttpFront(Gateway({"files": files}, [AuditInterceptor(log), no_deletes]))
        web = uvicorn.Server(uvicorn.Config(front, port=0, log_level="warning"))
        serving = asyncio.create_task(web.serve())
        while not web.started:
            await asyncio.sleep(0.01)
        port = web.servers[0].sockets[0].getsockname()[1]
        async with Client(f"http://127.0.0.1:{port}/mcp") as client:
            print((await client.call_tool("read_file", {"name": "a.txt"})).content[0].text)
            try:
                await client.call_tool("delete_file", {"name": "a.txt"})
            except Exception as error:
                print("refused:", error)
        web.should_exit = True
        await serving
    print((folder / "audit.jsonl").read_text().count("\n"), "lines of audit")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))
