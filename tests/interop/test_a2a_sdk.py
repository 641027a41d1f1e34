"""The official A2A client against a peer's A2A endpoint: what it asks is served, and each body is of the protocol.

The project's conformance kit (a2aproject/a2a-tck) is on no package index, so the requirements that concern the
JSON-RPC binding are tests of ours in ``tests/agents/test_mod_x_a2a.py``.
"""

import asyncio
import json
from pathlib import Path

import pytest

from heliograph.agents.mod_x import serve_a2a
from tests.agents.serving import run, serving
from tests.agents.test_mod_x_a2a import World
from tests.interop.environments import python_environment

pytestmark = [pytest.mark.interop, pytest.mark.timeout(900)]
CLIENT = Path(__file__).with_name("a2a_client.py")


@pytest.fixture(scope="module")
def seen():
    python = python_environment("a2a-sdk", "a2a-sdk==1.3.0") / "python"

    async def scenario():
        async with serving(serve_a2a(World().peer, timeout_s=20), path="/") as url:
            client = await asyncio.create_subprocess_exec(
                python, CLIENT, url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
            out, err = await client.communicate()
            assert client.returncode == 0, err.decode()[-3000:]
            return json.loads(out)

    return run(scenario, 120)


def test_the_official_client_completes_a_task(seen):
    assert {"discover", "shop.double"} <= set(seen["skills"])
    assert seen["result"] == {"result": 42}
    assert seen["same"]
    assert seen["listed"] == [1, 2, True]


def test_the_official_client_follows_a_stream(seen):
    assert seen["stream"] == [
        ["task", "TASK_STATE_SUBMITTED"],
        ["status_update", "TASK_STATE_WORKING"],
        ["artifact_update"],
        ["status_update", "TASK_STATE_COMPLETED"],
    ]
    assert seen["text"] == [["message"]]


def test_the_official_client_continues_and_cancels(seen):
    assert seen["continued"] == ["TASK_STATE_INPUT_REQUIRED", "TASK_STATE_COMPLETED", True]
    assert seen["canceled"] == "TASK_STATE_CANCELED"
    assert seen["followed"] == ["status_update", "TASK_STATE_CANCELED"]


def test_the_official_client_names_each_error(seen):
    assert seen["errors"] == {
        "get": "TaskNotFoundError",
        "cancel": "TaskNotCancelableError",
        "subscribe": "UnsupportedOperationError",
        "push": "PushNotificationNotSupportedError",
        "continue": "UnsupportedOperationError",
        "skill": "InvalidParamsError",
        "failed": "TASK_STATE_FAILED",
        "version": "VersionNotSupportedError",
    }


def test_every_body_is_of_the_protocol(seen):
    assert seen["bodies"] >= 15
