import asyncio
import json
import sys

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from typer.testing import CliRunner

from heliograph.agents.core.audit import verify
from heliograph.agents.core.config import read_config
from heliograph.agents.core.service import GatewayService
from heliograph.agents.mcp_broker import Category, StdioUpstream, StructuredError, broker_stages, checklist
from heliograph.agents.mcp_broker.pipeline import BrokerOptions
from heliograph.agents.mcp_broker.readiness import check_config, check_tools, listed_tools
from heliograph.agents.mcp_broker_commands import mcp_broker_app
from heliograph.errors import BadInput

from .serving import gateway_before, run, serving

SERVER = """
import anyio, json
from mcp.server.mcpserver import MCPServer, Context
from mcp_types import ToolAnnotations
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("records")
reads = ToolAnnotations(read_only_hint=True)

@server.tool(annotations=reads)
def find_records(query: str) -> str:
    "Finds records of all tenants."
    rows = [{"tenant_id": t, "body": f"body of {t}"} for t in ("acme", "other")]
    return json.dumps({"items": rows})

@server.tool()
async def hang_for_ever() -> str:
    "Answers after an hour."
    await anyio.sleep(3600)
    return "late"

@server.tool(annotations=reads)
def refuse_number(number: int) -> str:
    "Says no to every number."
    raise ToolError("no such number")

@server.tool()
def delete_everything() -> str:
    "Deletes all records."
    return "gone"

server.run("stdio")
"""

POLICY = {
    "auth": {"tokens": [{"token": "token-of-ann-0123456789", "subject": "ann", "tenant": "acme", "roles": ["agent"]}]},
    "audit": {"path": "audit.jsonl"},
    "stages": [
        {
            "name": "broker",
            "options": {
                "access": [
                    {"effect": "allow", "tool": "*", "role": "agent"},
                    {"effect": "deny", "tool": "delete_*"},
                ],
                "sanitize": {"records": [{"tool": "find_*", "records": "/items", "tenant": "/tenant_id"}]},
                "budget": {"total_ms": 30_000, "classes": {"hang*": "read"}},
                "context_secret": "0123456789abcdef",
            },
        }
    ],
}


@pytest.fixture
def config(tmp_path):
    (tmp_path / "server.py").write_text(SERVER)
    servers = {"records": {"command": sys.executable, "args": [str(tmp_path / "server.py")]}}
    path = tmp_path / "gateway.json"
    path.write_text(json.dumps({"mcpServers": servers, "heliograph": POLICY}))
    return path


def serf(result):
    body = result.model_dump(by_alias=True, mode="json")
    return StructuredError.from_result(body)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_configured_broker_guards_a_real_server(config, mode):
    async def scenario():
        service = GatewayService(read_config(config))
        short = {"dev.heliograph/turn": {"id": "short", "budget_ms": 300}}
        headers = {"authorization": "Bearer token-of-ann-0123456789"}
        async with serving(service.front) as url:
            async with (
                httpx2.AsyncClient(headers=headers, timeout=30) as http,
                Client(streamable_http_client(url, http_client=http), mode=mode) as client,
            ):
                names = {tool.name for tool in (await client.list_tools()).tools}
                found = await client.call_tool("find_records", {"query": "x"})
                denied = await client.call_tool("delete_everything", {})
                bad = await client.call_tool("refuse_number", {"number": 1})
                late = await client.call_tool("hang_for_ever", {}, meta=short)
            await service.gateway.close()
        service.close_audit()
        return names, found, denied, bad, late

    names, found, denied, bad, late = run(scenario)
    assert names == {"find_records", "hang_for_ever", "refuse_number"}
    assert json.loads(found.content[0].text) == {"items": [{"tenant_id": "acme", "body": "body of acme"}]}
    assert serf(denied).category is Category.PERMISSION_DENIED
    assert serf(bad).category is Category.RESOURCE_NOT_FOUND
    assert (serf(late).category, serf(late).code) == (Category.UPSTREAM_FAILURE, "timeout")
    assert verify(config.parent / "audit.jsonl").ok


def test_a_server_on_a_pipe_stands_behind_the_stages(config):
    async def scenario():
        spec = StdioUpstream(sys.executable, str(config.parent / "server.py"), timeout_s=20)
        options = {"identity": {"anonymous": "allow"}, "access": [{"effect": "allow", "tool": "refuse_*"}]}
        async with gateway_before({"r": spec}, broker_stages(BrokerOptions.from_mapping(options))) as (gateway, url):
            async with Client(url) as client:
                listed = await client.list_tools()
                wrong = await client.call_tool("refuse_number", {"number": "x"})
            await gateway.close()
        return listed, wrong

    listed, wrong = run(scenario)
    assert [tool.name for tool in listed.tools] == ["refuse_number"]
    assert serf(wrong).category is Category.INVALID_INPUT
    assert serf(wrong).param_hints == {"/number": "type integer"}


def test_the_checklist_asks_the_server_and_names_what_is_missing(config):
    items = asyncio.run(checklist(config))
    states = {item.question: item.state for item in items}
    assert {item.dimension for item in items} == {
        "server contracts",
        "user context",
        "timeouts",
        "errors",
        "observability",
    }
    assert states["records: are tools described?"] == "pass"
    assert states["records: are side effects declared?"] == "fail"
    assert states["is there a circuit breaker?"] == "pass"
    assert all(item.fix for item in items if item.state == "fail")


def test_a_server_that_does_not_answer_is_unknown_and_not_a_pass(tmp_path):
    path = tmp_path / "gateway.json"
    path.write_text(json.dumps({"mcpServers": {"gone": {"url": "http://127.0.0.1:1/mcp"}}}))
    items = asyncio.run(checklist(path))
    assert [item.state for item in items if item.dimension == "server contracts"] == ["unknown"]
    with pytest.raises(BadInput, match="gone cannot be asked"):
        asyncio.run(listed_tools("gone", read_config(path).specs["gone"]))


def test_an_empty_policy_fails_and_a_full_one_passes(tmp_path, config):
    path = tmp_path / "bare.json"
    path.write_text(json.dumps({"mcpServers": {"x": {"url": "http://127.0.0.1:1/mcp"}}}))
    bare = {item.question for item in check_config(read_config(path)) if item.state == "fail"}
    assert {"are callers identified?", "has a turn a time budget?", "is there an audit log?"} <= bare
    assert [item.question for item in check_config(read_config(config)) if item.state != "pass"] == []


def test_the_literal_split_and_open_doors_fail(config):
    options = {"budget": {"policy": "proportional"}, "identity": {"anonymous": "allow"}}
    options["access"] = [{"effect": "allow", "tool": "*"}]
    body = json.loads(config.read_text())
    body["heliograph"]["stages"][0]["options"] = options
    config.write_text(json.dumps(body))
    failed = {item.question for item in check_config(read_config(config)) if item.state == "fail"}
    assert {
        "is the budget split in a way that stalls cannot spoil?",
        "is anonymous access off?",
        "do rules say who may use which tool?",
    } <= failed


def test_contracts_are_read_from_the_tool_list():
    tool = {"name": "tool1", "inputSchema": {"properties": {"x": {}}}}
    assert {item.state for item in check_tools("s", [tool])} == {"fail"}
    good = {
        "name": "find_user",
        "description": "Finds one user by name.",
        "inputSchema": {"properties": {"name": {"type": "string"}}},
        "annotations": {"readOnlyHint": True},
    }
    assert {item.state for item in check_tools("s", [good])} == {"pass"}


def test_the_command_prints_the_list_and_says_by_its_exit_code_whether_all_pass(config):
    runner = CliRunner()
    shown = runner.invoke(mcp_broker_app, ["checklist", str(config), "--no-probe"])
    assert shown.exit_code == 1
    assert "unknown" in shown.output
    as_json = json.loads(runner.invoke(mcp_broker_app, ["checklist", str(config), "--no-probe", "--json"]).output)
    assert {"dimension", "question", "state", "why", "fix"} == set(as_json[0])
