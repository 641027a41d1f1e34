"""Four client libraries, four servers: through the gateway each sees what it sees without it."""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop import clients
from tests.interop.environments import node_environment, python_environment

pytestmark = [pytest.mark.interop, pytest.mark.timeout(1500)]
PACKAGES = (
    "@modelcontextprotocol/sdk@1.32.2",
    "@modelcontextprotocol/server-everything@2026.8.31",
    "@modelcontextprotocol/server-filesystem@2026.8.31",
    "@modelcontextprotocol/server-memory@2026.8.31",
)
Client = Callable[[dict[str, Any]], dict[str, Any]]


def python_client(python: Path | str, script: str, *rest: str) -> Client:
    def ask(task: dict[str, Any]) -> dict[str, Any]:
        done = subprocess.run(
            [str(python), "-c", script, json.dumps(task), *rest], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return ask


def client_of(name: str, tmp_path: Path) -> Client:
    if name == "mcp 2":
        return python_client(sys.executable, clients.MCP_2)
    if name == "mcp 2, legacy":
        return python_client(sys.executable, clients.MCP_2, '{"mode": "legacy"}')
    if name == "mcp 1":
        return python_client(python_environment("mcp-1", "mcp<2") / "python", clients.MCP_1)
    if name == "fastmcp":
        return python_client(python_environment("fastmcp", "fastmcp>=4.1") / "python", clients.FASTMCP)
    node, modules = node_environment("mcp-node", *PACKAGES)
    script = modules.parent / "client.mjs"
    script.write_text(clients.TYPESCRIPT_SDK)

    def ask(task: dict[str, Any]) -> dict[str, Any]:
        done = subprocess.run(
            [str(node), str(script), json.dumps(task)], capture_output=True, text=True, timeout=120, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return ask


def server_of(name: str, folder: Path) -> tuple[list[str], list[list[Any]]]:
    """Its command, and calls whose answers are the same each time."""
    if name == "notes":
        program = Path(__file__).parent / "notes_server.py"
        calls = [["keep", {"name": "b", "text": "zwei ☼"}], ["read", {"name": "b"}], ["read", {"name": "none"}]]
        return [sys.executable, str(program)], calls
    node, modules = node_environment("mcp-node", *PACKAGES)
    start = [str(node), str(modules / "@modelcontextprotocol" / f"server-{name}" / "dist" / "index.js")]
    if name == "everything":
        return start, [["echo", {"message": "hällo"}], ["get-sum", {"a": 2, "b": 40}], ["get-sum", {"a": "no"}]]
    if name == "filesystem":
        (folder / "a.txt").write_text("one\ntwo\n")
        listed = [["list_directory", {"path": str(folder)}], ["read_text_file", {"path": str(folder / "a.txt")}]]
        return [*start, str(folder)], [*listed, ["read_text_file", {"path": "/etc/passwd"}]]
    made = {"entities": [{"name": "ada", "entityType": "person", "observations": ["wrote notes"]}]}
    return start, [["create_entities", made], ["search_nodes", {"query": "ada"}], ["search_nodes", {"query": "zzz"}]]


@contextlib.contextmanager
def gateway(command: list[str], folder: Path, policy: dict[str, Any]) -> Iterator[str]:
    config = folder / "gateway.json"
    servers = {"up": {"command": command[0], "args": command[1:]}}
    config.write_text(json.dumps({"mcpServers": servers, "heliograph": policy}))
    start = [sys.executable, "-m", "heliograph.cli", "gateway", str(config), "--port", "0"]
    process = subprocess.Popen(start, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            found = re.search(r"http://\S+", line)
            if found:
                break
        else:
            raise AssertionError("the gateway did not start")
        yield found.group()
    finally:
        process.terminate()
        process.wait(20)


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    """Without what a gateway may add for itself, and in an order of its own.

    These servers speak the revision of 2025 alone. A newer client speaks that one with them, and the one of 2026 with
    the gateway, in which tools have no field ``execution``.
    """

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: cleaned(v) for k, v in value.items() if k not in ("_meta", "execution")}
        return [cleaned(one) for one in value] if isinstance(value, list) else value

    rest = {kind: found[kind] for kind in ("resources", "prompts")}
    for kind, one in rest.items():
        rest[kind] = sorted(cleaned(one), key=json.dumps) if isinstance(one, list) else "none"
    return {"tools": sorted(cleaned(found["tools"]), key=lambda t: t["name"]), "calls": cleaned(found["calls"]), **rest}


@pytest.mark.parametrize("server", ["notes", "everything", "filesystem", "memory"])
@pytest.mark.parametrize("client", ["mcp 2", "mcp 2, legacy", "mcp 1", "fastmcp", "typescript"])
@pytest.mark.parametrize("policy", [{}, {"mcpsec": {"mode": "permissive"}}], ids=["plain", "mcpsec"])
def test_a_client_sees_the_same_through_the_gateway(
    client: str, server: str, policy: dict[str, Any], tmp_path: Path
) -> None:
    ask = client_of(client, tmp_path)
    (tmp_path / "files").mkdir()
    command, calls = server_of(server, tmp_path / "files")
    memory = tmp_path / "memory.json"
    wrapped = ["env", f"MEMORY_FILE_PATH={memory}", *command]
    direct = comparable(ask({"command": wrapped, "calls": calls}))
    memory.unlink(missing_ok=True)
    with gateway(wrapped, tmp_path, policy) as url:
        through = comparable(ask({"url": url, "calls": calls}))
    assert direct["tools"]
    assert not direct["calls"][0]["isError"]
    assert through == direct
