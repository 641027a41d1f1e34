import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from heliograph.agents import CascadeRisk, Governor, LineageGraph, simulate_cascade
from heliograph.agents.commands import agents_app
from heliograph.agents.error_cascade import Claim, EveryClaim, read_log, replay, topology
from heliograph.agents.error_cascade.risk import traces
from heliograph.cli import app
from heliograph.errors import BadInput

SAYS = "The source of prices is vault-b."


def write(tmp_path, lines, name="log.jsonl"):
    path = tmp_path / name
    text = lines if isinstance(lines, str) else "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(text)
    return path


def run(*arguments):
    return CliRunner().invoke(agents_app, ["error_cascade", *map(str, arguments)])


def simulated(tmp_path, beta=0.4, delta=0.0, runs=60, rounds=6, seed=0):
    """A log of agents who each round repeat the claim if they hold it, and something of their own if not."""
    x = simulate_cascade(topology("star", 4), beta, delta, 0, rounds, runs, seed)
    lines = []
    for r, t, i in np.ndindex(x.shape):
        to = [f"n{j}" for j in range(4) if topology("star", 4)[j, i]]
        value = "b" if x[r, t, i] else f"own-{i}"
        text = f"The source of prices is {value}." if value == "b" else "Is all well?"
        lines.append({"run": str(r), "round": int(t), "sender": f"n{i}", "recipients": to, "text": text})
    return write(tmp_path, lines), x


@pytest.mark.parametrize(
    ("format", "content", "speakers"),
    [
        ("autogen", [{"source": "planner", "content": SAYS, "type": "TextMessage"},
                     {"source": "coder", "content": [SAYS, {"url": "x"}], "type": "MultiModalMessage"}],
         ["planner", "coder"]),
        ("autogen", [{"content": SAYS, "role": "user", "name": "ann"}, {"content": SAYS, "role": "assistant"}],
         ["ann", "assistant"]),
        ("langgraph", {"values": {"messages": [{"type": "human", "content": SAYS, "id": "1"},
                                               {"type": "ai", "name": "supervisor", "content": SAYS, "id": "2"},
                                               {"type": "ai", "content": "", "tool_calls": [{}], "id": "3"}]}},
         ["human", "supervisor"]),
        ("langchain", [{"lc": 1, "type": "constructor", "id": ["langchain", "schema", "HumanMessage"],
                        "kwargs": {"content": SAYS}},
                       {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "AIMessage"],
                        "kwargs": {"content": SAYS, "name": "writer"}}], ["HumanMessage", "writer"]),
        ("crewai", {"tasks_output": [{"agent": "Analyst", "raw": SAYS, "description": "d"},
                                     {"agent": "Writer", "raw": SAYS, "description": "d"}]}, ["Analyst", "Writer"]),
        ("metagpt", {"storage": [{"sent_from": "Alice", "send_to": ["Bob"], "content": SAYS, "cause_by": "x"},
                                 {"sent_from": "Bob", "send_to": ["<all>"], "content": SAYS, "cause_by": "y"}]},
         ["Alice", "Bob"]),
        ("camel", [{"role_name": "Trader", "role_type": "user", "content": SAYS},
                   {"role_name": "Coder", "role_type": "assistant", "content": SAYS}], ["Trader", "Coder"]),
    ],
)  # fmt: skip
def test_transcripts_of_frameworks_are_told_apart_and_read(tmp_path, format, content, speakers):
    log = read_log(write(tmp_path, json.dumps(content)))
    assert log.format == format
    assert [m.sender for m in log.messages] == speakers
    assert [m.round for m in log.messages] == [0, 1]
    found = traces(log)
    assert found.adoption[0, -1].sum() == 2


def test_lines_that_are_no_messages_are_skipped_and_counted(tmp_path):
    good = {"run": "r", "round": 0, "sender": "a", "text": SAYS}
    lines = [json.dumps(good), "nonsense", "7", json.dumps({**good, "round": -1}), json.dumps({**good, "text": 5})]
    log = read_log(write(tmp_path, "\n".join([*lines, json.dumps({**good, "sender": "b", "round": 7})])))
    assert [line for line, _ in log.skipped] == [2, 3, 4, 5]
    assert [(m.sender, m.round) for m in log.messages] == [("a", 0), ("b", 1)]


FIELDS = st.sampled_from(
    ["sender", "content", "source", "text", "type", "role", "round", "raw", "agent", "lc", "kwargs"]
)
ITEMS = st.dictionaries(FIELDS, st.none() | st.integers() | st.text(max_size=5) | st.just([1]))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200) | st.lists(ITEMS, max_size=5).map(lambda items: json.dumps(items).encode()))
def test_any_bytes_are_a_log_or_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("l") / "log"
    path.write_bytes(data)
    with contextlib.suppress(BadInput):
        read_log(path)


def test_rates_are_recovered_from_a_log(tmp_path):
    path, _ = simulated(tmp_path, beta=0.4, runs=150)
    risk = CascadeRisk.from_log(path, keep=lambda claim: claim.object == "b")
    assert risk.cascades == 150
    low, high = risk.fit.beta_interval
    assert low <= 0.4 <= high
    assert high - low < 0.15
    assert risk.seeds()[0][0] == "n0"


def test_a_log_shows_the_adoption_it_was_made_from(tmp_path):
    path, x = simulated(tmp_path, runs=12)
    found = traces(read_log(path), keep=lambda claim: claim.object == "b")
    assert np.array_equal(found.adoption, x)
    assert np.array_equal(found.adjacency[0, 0], topology("star", 4))


def test_contradicting_oneself_is_recovery(tmp_path):
    lines = [{"round": t, "sender": s, "text": f"The rate of tax is {v}."} for t, s, v in
             [(0, "a", 9), (1, "b", 9), (2, "b", 5), (3, "a", 9)]]  # fmt: skip
    found = traces(read_log(write(tmp_path, lines)), keep=lambda claim: claim.object == 9.0)
    assert found.adoption[0].tolist() == [[True, False], [True, True], [True, False], [True, False]]


def test_replay_finds_what_a_governor_would_have_stopped_and_where_it_entered(tmp_path):
    lines = [
        {"round": 0, "sender": "a", "text": "The rate of tax is 9 %."},
        {"round": 1, "sender": "b", "text": "The rate of tax is 9 %. The total of bill is 90."},
        {"round": 2, "sender": "c", "text": "The total of bill is 90."},
    ]
    governor = Governor("speed", claims=EveryClaim())
    governor.trust(Claim("tax", "rate", 0.05))
    found = replay(read_log(write(tmp_path, lines)), governor)
    assert [(one.line, one.claim.object) for one in found.refused][:2] == [(1, 9.0), (2, 9.0)]
    assert (found.roots[0].agent, found.roots[0].claim.object) == ("a", 9.0)


def test_commands_print_json_and_write_files(tmp_path):
    path, _ = simulated(tmp_path, runs=8)
    fitted = run("fit", path, "--json", "--about", "prices is b")
    assert fitted.exit_code == 0, fitted.output
    fitted = json.loads(run("fit", path, "--json").stdout)
    assert set(fitted["fits"]) == {"likelihood", "seeded", "homogeneous"}
    assert json.loads(run("risk", path, "--json").stdout)["seeds"][0]["agent"] == "n0"
    (tmp_path / "true.txt").write_text("The source of prices is vault-a.\n")
    found = run("replay", path, "--trusted", tmp_path / "true.txt", "--lineage", tmp_path / "l.jsonl", "--json")
    assert found.exit_code == 1
    assert json.loads(found.stdout)["roots"][0]["agent"] == "n0"
    assert len(LineageGraph.from_jsonl(tmp_path / "l.jsonl")) > 1
    assert run("replay", path, "--trace", "prices").exit_code == 0
    for more in ([], ["--fitted"]):
        assert run("plot", path, "--output", tmp_path / "s.json", *more).exit_code == 0
    assert "beta" in run("fit", path).stdout
    assert "gain" in run("risk", path).stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", "nowhere.jsonl"],
        ["risk", "{log}", "--format", "xml"],
        ["risk", "{log}", "--about", "nobody said this"],
        ["fit", "{empty}"],
        ["replay", "{log}", "--trusted", "{empty}"],
        ["replay", "{log}", "--lineage", "/nowhere/at/all"],
        ["plot", "{log}", "--output", "x.txt"],
    ],
)
def test_commands_name_what_is_wrong_and_exit_with_2(tmp_path, arguments):
    log = write(tmp_path, [{"round": t, "sender": s, "text": SAYS} for t, s in enumerate("ab")])
    empty = write(tmp_path, "", "empty")
    filled = [a.format(log=log, empty=empty) for a in arguments]
    outcome = CliRunner().invoke(app, ["agents", "error_cascade", *filled])
    assert isinstance(outcome.exception, BadInput) or outcome.exit_code == 2
    assert not list(tmp_path.glob("*.part"))
