import asyncio
import json
import sys

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from typer.testing import CliRunner

import heliograph.agents.core.lm as engine
from heliograph.agents import gwa_commands
from heliograph.agents.gwa_commands import gwa_app
from heliograph.errors import BadInput

from .gwa_minds import scripted


@pytest.fixture
def model(monkeypatch):
    """Whoever loads the local model gets a scripted one."""
    asked = []

    def load(path=None):
        asked.append(path)
        return scripted(meta="!!1!! [THINK_MORE]")

    monkeypatch.setattr(engine, "LocalGGUF", load)
    return asked


def call(*args):
    return CliRunner().invoke(gwa_app, [str(arg) for arg in args])


def test_run_prints_ticks_goes_on_and_replay_agrees(model, tmp_path):
    journal = tmp_path / "mind.jsonl"
    first = call("run", "hello", "--ticks", 2, "--journal", journal, "--json")
    assert first.exit_code == 0, first.output
    ticks = [json.loads(line) for line in first.stdout.splitlines()]
    assert [tick["tag"] for tick in ticks] == ["THINK_MORE", "RESPONSE"]
    second = call("run", "--ticks", 1, "--journal", journal)
    assert "   2  H" in second.stdout
    found = json.loads(call("replay", journal, "--json").stdout)
    assert (found["ticks"], found["messages"], found["largest_difference"]) == (3, 1, 0.0)
    assert "differs by 0 at most" in call("replay", journal).stdout


def test_an_inert_drive_is_told_on_standard_error(model, tmp_path):
    assert "a smaller tau" in call("run", "--ticks", 1).stderr
    config = tmp_path / "settings.json"
    config.write_text('{"entropy": "window"}')
    assert call("run", "--ticks", 1, "--config", config).stderr == ""


def test_a_local_model_gets_short_answers_unless_told_otherwise(model):
    seen = []
    for args in ((), ("--tokens", 7)):
        agent = gwa_commands._agent(None, None, "", "", "", "ws", None, args[1] if args else None)
        seen.append(agent.workspace.config.max_tokens["generator"])
    assert seen == [96, 7]


def test_mistakes_are_told_before_a_model_is_loaded(model, tmp_path):
    config = tmp_path / "settings.json"
    for text, match in (("{", "cannot read"), ("[]", "no JSON object"), ('{"taw": 1}', "no such setting")):
        config.write_text(text)
        found = call("run", "hello", "--config", config)
        assert isinstance(found.exception, BadInput)
        assert match in str(found.exception)
    assert "needs --model" in str(call("run", "--url", "http://x/v1").exception)
    assert model == []


def test_replay_refuses_what_is_no_journal(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("hello\n")
    assert isinstance(call("replay", path).exception, BadInput)


@pytest.mark.integration
def test_serve_speaks_mcp_on_its_pipe_even_when_the_model_is_away(tmp_path):
    config = tmp_path / "settings.json"
    config.write_text('{"attempts": 1, "tau": 0.1}')
    args = [
        "-m", "heliograph.cli", "agents", "gwa", "serve", "--url", "http://127.0.0.1:9/v1", "--model", "none",
        "--config", str(config), "--journal", str(tmp_path / "mind.jsonl"),
    ]  # fmt: skip

    async def scenario():
        async with Client(stdio_client(StdioServerParameters(command=sys.executable, args=args))) as client:
            said = (await client.call_tool("think", {"input": "hello", "max_ticks": 1})).structured_content
            assert said["said"] == "I have no answer."
            assert (await client.call_tool("status", {})).structured_content["tick"] == 1

    asyncio.run(scenario())
