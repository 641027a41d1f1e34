import asyncio
import json
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents import GlobalWorkspaceAgent
from heliograph.agents.core.audit import AuditError, verify
from heliograph.agents.gwa import HashedWords, replay_journal
from heliograph.agents.gwa.state import pack, unpack
from heliograph.agents.gwa.workspace import count_words, read_journal
from heliograph.clock import run_virtual
from heliograph.errors import BadInput

from .gwa_minds import drawn, scripted, take, workspace


def in_virtual_time(scenario):
    return run_virtual(scenario())


def think(journal, ticks, message=None, config=None, **options):
    """State, drive and ticks after some thinking."""

    async def scenario():
        ws = workspace(config, nodes={"generator": drawn, **options.pop("nodes", {})}, journal=journal, **options)
        async with GlobalWorkspaceAgent(ws) as mind:
            found = await take(mind, message, max_ticks=ticks) if ticks else []
            return ws.state, ws.drive.state_dict(), found

    return in_virtual_time(scenario)


def test_a_full_stage_becomes_a_summary_and_facts_in_the_archive():
    async def scenario():
        mind = GlobalWorkspaceAgent(workspace({"theta": 40}))
        ticks = await take(mind, max_ticks=20)
        full = next(tick for tick in ticks if tick.condensed)
        assert full.condensed == "summary"
        assert [memory.text for memory in mind.workspace.state.archive] == ["The crane is red."]  # kept once
        assert mind.workspace.state.stage[0].content == "A harbour, in short."
        assert any(tick.retrieved for tick in ticks) is False

    in_virtual_time(scenario)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(16, 120), st.sampled_from(["", "short", "x" * 5000, "many words " * 900]),
    st.sampled_from(["1. a", "1. " + "long thought " * 300, "1. " + "y" * 4000]),
)  # fmt: skip
def test_the_stage_stays_within_theta_and_what_one_tick_writes(theta, summary, thought):
    async def scenario():
        model = scripted(summary=summary, generator=thought)
        mind = GlobalWorkspaceAgent(workspace({"theta": theta}, model=model))
        one_line = max(theta // 2, 8) + 3  # and its role
        for tick in await take(mind, max_ticks=8):
            assert tick.stage_tokens <= theta + one_line
        for tick in await take(mind, "hello " * 500, max_ticks=3):
            assert tick.stage_tokens <= theta + 2 * one_line + 3
        assert all(entry.tokens <= one_line for entry in mind.workspace.state.stage)

    in_virtual_time(scenario)


def test_a_summary_longer_than_its_source_is_refused():
    async def scenario():
        model = scripted(summary="word " * 400)
        mind = GlobalWorkspaceAgent(workspace({"theta": 40}, model=model))
        ticks = await take(mind, max_ticks=20)
        assert {tick.condensed for tick in ticks} == {"", "cut"}

    in_virtual_time(scenario)


def test_memories_come_back_by_nearness_and_far_ones_do_not():
    ws = workspace({"distance_cut": 0.5})
    facts = ["The gate code is 4711.", "The tide turns at noon.", "Gulls nest on the crane."]
    ws._state = ws.state.change(archive=ws.memories(facts, "knowledge"))
    assert ws.retrieve(["gate code"]) == ("The gate code is 4711.",)
    assert ws.retrieve(["gate code", "code of the gate"]) == ("The gate code is 4711.",)
    assert ws.retrieve(["quantum chess"]) == ()
    assert ws.memories(["Same  text", "same text", " "], "knowledge")[0].text == "same text"


def test_a_huge_paste_goes_into_the_archive_and_its_start_is_the_message():
    async def scenario():
        mind = GlobalWorkspaceAgent(workspace({"theta": 200}))
        paste = " ".join(f"fact{n} is number {n}." for n in range(60_000))
        assert len(paste) > 1_000_000
        ticks = await take(mind, paste, max_ticks=1)
        assert ticks[0].stage_tokens < 400
        assert sum(len(memory.text) for memory in mind.workspace.state.archive) > 990_000

    in_virtual_time(scenario)


def test_vectors_read_back_as_they_were_written_and_words_decide_nearness():
    rows = HashedWords().embed(["the red crane", "a red crane", "quiet harbour", "the of and"])
    assert rows[0] @ rows[1] == pytest.approx(1)
    assert abs(rows[0] @ rows[2]) < 0.3
    assert (unpack(pack(unpack(pack(rows[2])))) == unpack(pack(rows[2]))).all()
    with pytest.raises(BadInput):
        HashedWords().embed([" "])


def test_a_resumed_mind_equals_one_that_never_stopped(tmp_path):
    for cut in range(1, 9):
        whole = think(tmp_path / f"whole{cut}.jsonl", 9, config={"theta": 40, "tau": 0.1})
        think(tmp_path / f"part{cut}.jsonl", cut, config={"theta": 40, "tau": 0.1})
        again = think(tmp_path / f"part{cut}.jsonl", 9 - cut, config={"theta": 40, "tau": 0.1})
        assert (again[0], again[1]) == (whole[0], whole[1])
        assert [tick.winner for tick in again[2]] == [tick.winner for tick in whole[2]][cut:]


def test_a_journal_cut_anywhere_loses_only_the_line_that_was_not_finished(tmp_path):
    path = tmp_path / "mind.jsonl"
    think(path, 4, "hello", config={"max_ticks": 8})
    whole = path.read_bytes()
    ends = [n + 1 for n, byte in enumerate(whole) if byte == 10]
    states = {}
    for place in sorted({1, *range(1, len(whole), 613), *ends}):
        torn = tmp_path / f"torn{place}.jsonl"
        torn.write_bytes(whole[:place])
        state, drive, _ = think(torn, 0)
        lines = max(sum(end <= place for end in ends), 1)  # an opening line is written anew
        assert state.tick == max(lines - 2, 0)
        assert states.setdefault(lines, (state, drive)) == (state, drive)
        assert verify(torn).ok
        assert verify(torn).torn_bytes == 0


KILLED = """
    import asyncio, os, signal, sys
    sys.path.insert(0, {root!r})
    from tests.agents.gwa_minds import drawn, take, workspace
    from heliograph.agents import GlobalWorkspaceAgent

    async def deadly(state, ask):
        if state.tick == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return await drawn(state, ask)

    async def main():
        mind = GlobalWorkspaceAgent(workspace(nodes={{"generator": drawn, "critic": deadly}}, journal={path!r}))
        async for tick in mind.run("hello"):
            print(tick.winner, flush=True)

    asyncio.run(main())
"""


def test_a_mind_killed_in_the_middle_of_a_tick_goes_on_with_its_message(tmp_path):
    from pathlib import Path

    path = tmp_path / "mind.jsonl"
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED.format(root=root, path=str(path)))],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr
    told = done.stdout.split("\n")[:-1]
    assert len(told) == 3

    async def go_on():
        ws = workspace(nodes={"generator": drawn}, journal=path)
        assert (ws.state.tick, ws.state.pending) == (3, "hello")
        async with GlobalWorkspaceAgent(ws) as mind:
            return await take(mind)

    rest = in_virtual_time(go_on)
    assert [tick.index for tick in rest] == [3, 4, 5, 6, 7]
    assert rest[-1].said
    kept = [row["snapshot"]["winner"] for row in read_journal(path) if row["event"] == "tick"]
    assert kept[:3] == told
    never_stopped = think(tmp_path / "other.jsonl", 8, "hello")[2]
    assert kept == [tick.winner for tick in never_stopped]


def test_a_full_disk_means_the_tick_did_not_happen(tmp_path, monkeypatch):
    async def scenario():
        ws = workspace(journal=tmp_path / "mind.jsonl")
        mind = GlobalWorkspaceAgent(ws)
        await take(mind, max_ticks=2)
        before, drive = ws.state, ws.drive.state_dict()

        def full(line):
            raise AuditError("no space")

        monkeypatch.setattr(ws._journal, "_write", full)
        with pytest.raises(AuditError):
            await take(mind, max_ticks=1)
        assert (ws.state, ws.drive.state_dict()) == (before, drive)
        monkeypatch.undo()
        assert (await take(mind, max_ticks=1))[0].index == 2
        await mind.close()

    in_virtual_time(scenario)


def test_two_writers_a_foreign_and_a_damaged_journal_are_refused(tmp_path):
    path = tmp_path / "mind.jsonl"
    think(path, 2)
    held = workspace(journal=path)
    with pytest.raises(AuditError, match="another process"):
        workspace(journal=path)
    held.close()
    with pytest.raises(BadInput, match="another seed"):
        workspace({"seed": 5}, journal=path)
    with pytest.raises(BadInput, match="journal of 'ws'"):
        workspace(name="other", journal=path)
    before = path.read_bytes()
    path.write_bytes(before.replace(b'"winner":"word', b'"winner":"wird', 1))
    with pytest.raises(BadInput, match="line 2 is bad"):
        workspace(journal=path)
    path.write_text('{"event": "other"}\n')
    with pytest.raises(BadInput, match="no line of a workspace"):
        workspace(journal=path)


def test_rollback_is_kept_over_a_restart(tmp_path):
    path = tmp_path / "mind.jsonl"

    async def scenario():
        ws = workspace(journal=path)
        mind = GlobalWorkspaceAgent(ws)
        await take(mind, max_ticks=1)
        before = ws.snapshot()
        await take(mind, max_ticks=2)
        ws.rollback(before)
        await mind.close()
        return before, ws.state

    before, state = in_virtual_time(scenario)
    assert state.stage == before.stage
    again = workspace(journal=path)
    assert again.state == state
    again.close()


def test_replay_runs_the_drive_again_over_the_recorded_thoughts(tmp_path):
    path = tmp_path / "mind.jsonl"
    think(path, 5, "hello", config={"tau": 0.1})
    think(path, 3, config={"tau": 0.1})
    found = replay_journal(path)
    assert (found.ticks, found.messages, found.answers, found.skipped) == (8, 1, 1, 0)
    assert found.largest_difference == 0.0
    assert 0 < found.distinct_2 <= 1
    rows = path.read_text().splitlines()
    (tmp_path / "none.jsonl").write_text(rows[3] + "\n")
    with pytest.raises(BadInput):
        replay_journal(tmp_path / "none.jsonl")
    with pytest.raises(BadInput, match="cannot read"):
        replay_journal(tmp_path / "absent.jsonl")


def test_words_are_counted_without_a_tokenizer():
    assert count_words("harbours, and cranes") == 5
    assert count_words("") == 0


def test_an_mcp_client_thinks_asks_and_reads_the_trace():
    from mcp import Client

    async def scenario():
        mind = GlobalWorkspaceAgent(workspace(model=scripted(meta="!!1!! [RESPONSE]")))
        async with Client(mind.as_mcp_server()) as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            assert names == {"think", "status"}
            found = await client.call_tool("think", {"input": "hello"})
            assert found.structured_content["said"] == "It is so."
            assert (await client.call_tool("status", {})).structured_content["tick"] == 1
            trace = json.loads((await client.read_resource("gwa://ws/trace")).contents[0].text)
            assert trace[0]["winner"] == "The crane stops."
            refused = await client.call_tool("think", {"input": "\x00"})
            assert refused.is_error
            assert "empty" in refused.content[0].text

    asyncio.run(scenario())


def test_a_served_mind_goes_on_idling_after_an_answer():
    from mcp import Client

    async def scenario():
        mind = GlobalWorkspaceAgent(workspace({"max_idle_ticks": 2}, model=scripted()))
        async with mind, Client(mind.as_mcp_server(idle_every=0.001)) as client:
            await client.call_tool("think", {"input": "hello", "max_ticks": 1})
            await mind.idle()  # the one that runs already
            trace = json.loads((await client.read_resource("gwa://ws/trace")).contents[0].text)
            assert [tick["mode"] for tick in trace] == ["RESPONDING", "IDLE", "IDLE"]

    asyncio.run(scenario())
