"""Other projects' gateways for ``agents_gateway.py``: processes in environments of their own, before one server."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

PROXY = """
import sys
from fastmcp.server import create_proxy
create_proxy(sys.argv[2]).run(transport="http", port=int(sys.argv[1]), log_level="ERROR", show_banner=False)
"""


def version(python: str, package: str) -> str:
    """Of a package in another environment."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def start_fastmcp(python: str, port: int, upstream: str) -> subprocess.Popen[bytes]:
    """FastMCP's proxy."""
    return subprocess.Popen(
        [python, "-c", PROXY, str(port), upstream], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def start_contextforge(
    python: str, port: int, upstream: str, folder: Path
) -> tuple[subprocess.Popen[bytes], str, dict[str, str]]:
    """ContextForge with one server registered: its process, where that server is, and the caller's headers."""
    secret, password = secrets.token_urlsafe(40), f"Aa1-{secrets.token_urlsafe(24)}"
    settings = {
        "HOME": str(folder),
        "DATABASE_URL": f"sqlite:///{folder}/contextforge.db",
        "JWT_SECRET_KEY": secret,
        "AUTH_ENCRYPTION_SECRET": secret[::-1],
        "MCPGATEWAY_UI_ENABLED": "false",
        "LOG_LEVEL": "ERROR",
        "PLUGINS_ENABLED": "false",
        "OBSERVABILITY_ENABLED": "false",
        "RATE_LIMITING_ENABLED": "false",
        "TOOL_RATE_LIMIT": "100000000",
        "SSRF_PROTECTION_ENABLED": "false",
        "SSRF_ALLOW_LOCALHOST": "true",
        "ADMIN_REQUIRE_PASSWORD_CHANGE_ON_BOOTSTRAP": "false",
        "PASSWORD_CHANGE_ENFORCEMENT_ENABLED": "false",
        "MCP_CLIENT_AUTH_ENABLED": "true",
    }
    settings |= dict.fromkeys(("BASIC_AUTH_PASSWORD", "PLATFORM_ADMIN_PASSWORD", "DEFAULT_USER_PASSWORD"), password)
    process = subprocess.Popen(
        [str(Path(python).absolute().parent / "mcpgateway"), "--host", "127.0.0.1", "--port", str(port)],
        env={**os.environ, **settings},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    base, headers = f"http://127.0.0.1:{port}", {"content-type": "application/json"}

    def ask(path: str, body: object = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(base + path, data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    deadline = time.monotonic() + 180
    while True:
        try:
            ask("/health")
            break
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("ContextForge did not start") from None
            time.sleep(1)
    told = ask("/auth/email/login", {"email": "admin@example.com", "password": password})
    headers["authorization"] = f"Bearer {told['access_token']}"
    ask("/gateways", {"name": "bench", "url": upstream, "transport": "STREAMABLEHTTP"})
    (tool,) = [one for one in ask("/tools") if one["originalName"] == "echo"]  # type: ignore[index]
    made = ask("/servers", {"server": {"name": "bench", "description": "", "associated_tools": [tool["id"]]}})
    return process, f"{base}/servers/{made['id']}/mcp/", {"authorization": headers["authorization"]}
