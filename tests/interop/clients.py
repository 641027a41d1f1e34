"""One script for each client library: it lists what a server has, calls tools, and prints what came as JSON.

Each takes one argument, a JSON object: ``{"url": ...}`` or ``{"command": [...]}``, and ``"calls"``, a list of
``[tool, arguments]``.
"""

MCP_2 = """
import asyncio, json, sys
from mcp import Client, StdioServerParameters

task = json.loads(sys.argv[1])
target = task.get("url") or StdioServerParameters(command=task["command"][0], args=task["command"][1:])

def plain(model):
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)

async def main():
    found = {}
    async with Client(target, **json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}")) as client:
        found["tools"] = [plain(tool) for tool in (await client.list_tools()).tools]
        for kind in ("resources", "prompts"):
            try:
                listed = await getattr(client, f"list_{kind}")()
                found[kind] = [plain(one) for one in getattr(listed, kind)]
            except Exception as error:
                found[kind] = getattr(error, "code", None) or getattr(error.error, "code", str(error))
        found["calls"] = []
        for name, arguments in task["calls"]:
            result = await client.call_tool(name, arguments)
            content = [plain(part) for part in result.content]
            found["calls"].append({"content": content, "isError": bool(result.is_error)})
    print(json.dumps(found))

asyncio.run(main())
"""

MCP_1 = """
import asyncio, json, sys
from mcp import ClientSession, McpError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamablehttp_client

task = json.loads(sys.argv[1])

def plain(model):
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)

async def main():
    if "url" in task:
        link = streamablehttp_client(task["url"])
    else:
        link = stdio_client(StdioServerParameters(command=task["command"][0], args=task["command"][1:]))
    found = {}
    async with link as streams, ClientSession(*streams[:2]) as client:
        await client.initialize()
        found["tools"] = [plain(tool) for tool in (await client.list_tools()).tools]
        for kind in ("resources", "prompts"):
            try:
                found[kind] = [plain(one) for one in getattr(await getattr(client, f"list_{kind}")(), kind)]
            except McpError as error:
                found[kind] = error.error.code
        found["calls"] = []
        for name, arguments in task["calls"]:
            result = await client.call_tool(name, arguments)
            content = [plain(part) for part in result.content]
            found["calls"].append({"content": content, "isError": bool(result.isError)})
    print(json.dumps(found))

asyncio.run(main())
"""

FASTMCP = """
import asyncio, json, sys
from fastmcp import Client
from fastmcp.client.transports import StdioTransport

task = json.loads(sys.argv[1])
target = task.get("url") or StdioTransport(task["command"][0], task["command"][1:])

def plain(model):
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)

async def main():
    found = {}
    async with Client(target) as client:
        found["tools"] = [plain(tool) for tool in await client.list_tools()]
        for kind in ("resources", "prompts"):
            try:
                found[kind] = [plain(one) for one in await getattr(client, f"list_{kind}")()]
            except Exception as error:
                found[kind] = getattr(getattr(error, "error", error), "code", str(error))
        found["calls"] = []
        for name, arguments in task["calls"]:
            result = await client.call_tool(name, arguments, raise_on_error=False)
            content = [plain(part) for part in result.content]
            found["calls"].append({"content": content, "isError": bool(result.is_error)})
    print(json.dumps(found))

asyncio.run(main())
"""

TYPESCRIPT_SDK = """
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const task = JSON.parse(process.argv[2]);
const transport = task.url
  ? new StreamableHTTPClientTransport(new URL(task.url))
  : new StdioClientTransport({ command: task.command[0], args: task.command.slice(1), stderr: "ignore" });
const client = new Client({ name: "interop", version: "1" });
await client.connect(transport);
const found = { tools: (await client.listTools()).tools, calls: [] };
for (const kind of ["resources", "prompts"]) {
  try {
    found[kind] = (await (kind === "resources" ? client.listResources() : client.listPrompts()))[kind];
  } catch (error) {
    found[kind] = error.code ?? String(error);
  }
}
for (const [name, args] of task.calls) {
  const result = await client.callTool({ name, arguments: args });
  found.calls.push({ content: result.content, isError: Boolean(result.isError) });
}
console.log(JSON.stringify(found));
await client.close();
process.exit(0);
"""
