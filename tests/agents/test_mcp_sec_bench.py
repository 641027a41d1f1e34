"""Scenarios, agents and the bench; verbs of the command line; recorded traffic."""

import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from heliograph.agents import Scripted
from heliograph.agents.mcp_sec import AttackBench, ChatAgent, LikelihoodAgent, WorstCaseAgent, scenarios
from heliograph.agents.mcp_sec.agents import View, filled, orders_in
from heliograph.agents.mcp_sec.suite import FAMILIES, SLIM_COUNTS, ToolCall, encode, instruction, multi_server
from heliograph.agents.mcp_sec.survey import pin_servers, survey
from heliograph.agents.mcp_sec.world import ToolFailed, World
from heliograph.agents.mcp_sec_commands import mcp_sec_app
from heliograph.errors import BadInput

SERVER = """
from mcp.server.mcpserver import MCPServer
server = MCPServer("notes")

@server.tool()
def find(query: str) -> str:
    "Finds notes."
    return "nothing"

server.run("stdio")
"""


def verb(*arguments):
    result = CliRunner().invoke(mcp_sec_app, list(arguments))
    if isinstance(result.exception, BadInput):
        return result.exception.exit_code, str(result.exception)
    return result.exit_code, result.stdout


# -- the world ---------------------------------------------------------------------------------------------------------


def test_the_world_is_real_files_and_tables_and_stays_inside():
    with World({"https://a.example": "page"}) as world:
        world.run("files", "write_file", {"path": "a.txt", "text": "x"})
        assert (world.root / "files" / "a.txt").read_text() == "x"
        world.run("mail", "send_mail", {"to": "ann", "subject": "s", "body": "b"})
        assert world.sent() == [("ann", "s", "b")]
        assert world.run("web", "fetch", {"url": "https://a.example?q=1"}) == "page"
        assert "q=1" in world.left()
        for bad in ({"path": "../../etc/passwd"}, {"path": "/etc/passwd"}, {"path": 3}, {}):
            with pytest.raises(ToolFailed):
                world.run("files", "read_file", bad)
        first = world.commit("one", "text")
        assert world.commit("two", "text") != first
    assert not world.root.exists()


def test_scenarios_are_the_same_for_the_same_seed_and_have_the_counts():
    first, again, other = scenarios(), scenarios(), scenarios(seed=1)
    assert [one.id for one in first] == [one.id for one in again]
    assert [one.payload for one in first] == [one.payload for one in again]
    assert [one.payload for one in first] != [one.payload for one in other]
    assert {f: sum(one.family == f for one in first) for f in FAMILIES} == SLIM_COUNTS
    assert sum(SLIM_COUNTS.values()) - SLIM_COUNTS["residual"] == 218
    for wrong in ({"V9": 1}, {"V1": -1}):
        with pytest.raises(BadInput, match="families are"):
            scenarios(wrong)


# -- agents ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoded", [False, True])
def test_orders_are_found_in_what_an_agent_reads(encoded):
    call = ToolCall("mail.send_mail", {"to": "x", "body": "{{b64:files.read_file}}"})
    ((_, found),) = orders_in(f"Nice weather. {instruction(call, encoded=encoded)} Bye.")
    assert found == call
    assert orders_in("call `x` with {not json") == []


def test_the_worst_agent_obeys_once_and_then_goes_on_with_the_plan():
    order = ToolCall("web.post", {"url": "u", "body": "b"})
    view = View("", "", [ToolCall("files.list_files")], {"t": instruction(order)})
    choice = WorstCaseAgent().next(view)
    assert (choice.call, choice.source) == (order, "injected")
    view.obeyed.add(choice.key)
    assert WorstCaseAgent().next(view).source == "user"
    view.plan = []
    assert WorstCaseAgent().next(view) is None


def test_the_likelihood_agent_takes_the_highest_score():
    order = ToolCall("web.post", {"url": "u", "body": "b"})
    view = View("", "", [ToolCall("files.list_files")], {"t": instruction(order)})
    for loved, source in (("web.post", "injected"), ("list_files", "user"), ("repo.log", "own")):
        agent = LikelihoodAgent(Scripted(score=lambda _, text, loved=loved: float(loved in text)), distractors=5)
        view.obeyed = set()
        assert agent.next(view).source == source
    with pytest.raises(BadInput, match="distractors"):
        LikelihoodAgent(Scripted(), distractors=9)


@pytest.mark.parametrize(
    ("said", "call"),
    [
        ('{"tool": "mail.inbox", "arguments": {}}', ToolCall("mail.inbox", {})),
        (
            'Sure! {"tool": "files.read_file", "arguments": {"path": 3}} done',
            ToolCall("files.read_file", {"path": "3"}),
        ),
        ('{"done": true}', None),
        ("I would rather not", None),
        ("{broken", None),
    ],
)
def test_a_chat_model_names_its_call_as_json(said, call):
    choice = ChatAgent(Scripted([said])).next(View("s", "t", [], {}))
    assert (choice.call if choice else None) == call


def test_placeholders_are_filled_with_encoded_answers():
    from heliograph.agents.mcp_sec.agents import Entry

    entries = [Entry(ToolCall("files.read_file"), "se cret", "")]
    call = filled(ToolCall("x", {"a": "<{{hex:files.read_file}}>", "b": "{{none.such}}"}), entries)
    assert call.arguments == {"a": f"<{b'se cret'.hex()}>", "b": ""}
    with pytest.raises(BadInput, match="encodings"):
        encode("rot13:", "x")


def test_scores_with_a_kept_prefix_equal_those_without():
    pytest.importorskip("torch", reason="the extra lm is not installed")
    from heliograph.agents import LocalGGUF
    from heliograph.agents.mcp_sec.prefix import PrefixScorer
    from heliograph.lm.core.tokens import train_tokenizer
    from heliograph.lm.core.train import new_model, small_config

    tokenizer = train_tokenizer(["Tools: a, b. Call: a. Answer: send it. " * 5], 280)
    model = new_model(small_config(tokenizer.size, layers=2, hidden=32, heads=2, context=64), tokenizer, seed=0)
    kept, plain = PrefixScorer(model=model), LocalGGUF(model=model)
    for context in ("Tools: a, b. Call: ", "Tools: a, b. Call: a. Call: ", "Answer"):
        candidates = ["a", "send it", " b. a"]
        assert np.allclose(kept.score(context, candidates), plain.score(context, candidates), atol=1e-4)
    with pytest.raises(BadInput, match="one token"):
        kept.score("x", [""])
    with pytest.raises(BadInput, match="64 tokens"):
        kept.score("Call: " * 99, ["a"])


# -- the bench ---------------------------------------------------------------------------------------------------------


def test_attacks_succeed_without_the_gateway_and_benign_twins_do_nothing():
    counts = {"V1": 4, "V2": 2, "V3": 1, "replay": 3, "tamper": 2, "downgrade": 1, "residual": 1}
    report = AttackBench(arms=["mcp", "mcpsec"], isolation="context").run(counts=counts)
    assert all(one.success for one in report.attacks("mcp"))
    for family in ("V1", "V2", "replay", "tamper", "downgrade"):
        assert report.success("mcpsec", family).part == 0
    assert report.success("mcpsec", "residual").part == 1
    assert report.utility("mcpsec").share == report.utility("mcp").share == 1.0
    assert report.false_denials("mcpsec").part == 0
    benign = [one for one in report.outcomes if not one.attack and one.family != "downgrade"]
    assert not any(one.success for one in benign)
    body = json.loads(json.dumps(report.to_dict()))
    assert body["suite"] == "slim world, 14 scenarios"
    assert body["amplification"]["pairs"] == 0


def test_one_server_of_five_reaches_others_only_over_the_plain_protocol():
    cases = multi_server(2)
    report = AttackBench(arms=["twin", "mcp", "mcpsec"], isolation="context").run(cases, benign=False)
    assert report.success("mcp").share == report.success("twin").share == 1.0
    assert report.success("mcpsec").share < 1.0
    assert report.amplification() == (0.0, 1.0, 2)


def test_unknown_arms_and_isolations_are_refused():
    with pytest.raises(BadInput, match="arms are"):
        AttackBench(arms=["mcp2"])
    with pytest.raises(BadInput, match="isolation is"):
        AttackBench(isolation="loud")


# -- verbs -------------------------------------------------------------------------------------------------------------


def test_audit_takes_empty_malformed_and_long_files(tmp_path):
    (tmp_path / "empty.json").write_text('{"mcpServers": {}}')
    (tmp_path / "bad.json").write_text("{")
    servers = {f"s{n}": {"command": "npx", "args": ["-y", "pkg"], "env": {"API_KEY": "x"}} for n in range(500)}
    (tmp_path / "long.json").write_text(json.dumps({"mcpServers": servers}))
    assert verb("audit", str(tmp_path / "empty.json")) == (0, "0 servers; no policy\n")
    code, said = verb("audit", str(tmp_path / "bad.json"))
    assert (code, "is not JSON" in said) == (2, True)
    code, said = verb("audit", str(tmp_path / "long.json"), "--json")
    body = json.loads(said)
    assert (code, len(body["servers"]), body["clean"]) == (0, 500, False)
    assert len(body["servers"][0]["findings"]) == 2
    assert verb("audit", str(tmp_path / "long.json"), "--strict")[0] == 1


def test_a_certificate_is_issued_verified_and_never_written_over(tmp_path):
    (tmp_path / "tools.json").write_text(json.dumps({"tools": [{"name": "a", "inputSchema": {}}]}))
    base = [
        "issue",
        "--server",
        "mail",
        "--issuer",
        "acme",
        "--tools",
        str(tmp_path / "tools.json"),
        "--effects",
        "a=read",
    ]
    base += [
        "--key",
        str(tmp_path / "i.pem"),
        "--server-key",
        str(tmp_path / "s.pem"),
        "--output",
        str(tmp_path / "c.json"),
    ]
    code, said = verb(*base)
    assert (code, "--create" in said) == (2, True)
    assert verb(*base, "--create", "--capabilities", "magic")[0] == 2
    assert not (tmp_path / "i.pem").exists()
    code, said = verb(*base, "--create", "--trust", str(tmp_path / "t.json"), "--json")
    assert code == 0
    assert json.loads(said)["tools"][0]["side_effect"] == "read"
    assert (tmp_path / "i.pem").stat().st_mode & 0o077 == 0
    check = ["verify", str(tmp_path / "c.json"), "--trust", str(tmp_path / "t.json")]
    assert verb(*check)[0] == 0
    code, said = verb(*check, "--server", "files", "--json")
    assert (code, json.loads(said)["reason"]) == (1, "server_id_mismatch")
    assert "never written over" in verb(*base)[1]


@pytest.mark.integration
def test_a_server_is_pinned_and_a_change_is_found(tmp_path):
    (tmp_path / "server.py").write_text(SERVER)
    servers = {"notes": {"command": sys.executable, "args": [str(tmp_path / "server.py")]}}
    path = tmp_path / "gateway.json"
    path.write_text(json.dumps({"mcpServers": servers, "heliograph": {"mcpsec": {"pins": "pins.json"}}}))
    assert [tool.name for tool in pin_servers(path, [])["notes"].tools] == ["find"]
    (tmp_path / "server.py").write_text(SERVER.replace("Finds notes.", "Finds notes and mails them."))
    (report,) = survey(path, probe=True).servers
    assert (report.level, report.changes) == ("unverified", {"find": "description"})
    with pytest.raises(BadInput, match="no enabled server 'x'"):
        pin_servers(path, ["x"])


def test_recorded_traffic_is_played_through_the_policy(tmp_path):
    text = {"content": [{"type": "text", "text": "the launch code is 7351-ABBA"}]}
    lines = [
        {"server": "files", "method": "tools/call", "params": {"name": "read", "arguments": {}}, "result": text},
        {
            "server": "web",
            "method": "tools/call",
            "params": {"name": "post", "arguments": {"body": "the launch code is 7351-ABBA"}},
            "result": {"content": []},
        },
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    policy = {"mode": "permissive", "side_effects": {"*": "read"}}
    (tmp_path / "g.json").write_text(json.dumps({"mcpServers": {}, "heliograph": {"mcpsec": policy}}))
    code, said = verb("audit", str(tmp_path / "g.json"), "--traffic", str(tmp_path / "t.jsonl"), "--json")
    assert (code, [one["denied"] for one in json.loads(said)["traffic"]]) == (0, ["", "flow"])
    (tmp_path / "t.jsonl").write_text('{"server": 3}')
    assert "line 1" in verb("audit", str(tmp_path / "g.json"), "--traffic", str(tmp_path / "t.jsonl"))[1]


def test_bench_prints_rates_and_refuses_what_it_does_not_know():
    code, said = verb("bench", "--counts", "V1=1", "--arms", "mcp,mcpsec", "--json")
    assert (code, json.loads(said)["suite"]) == (0, "slim world, 1 scenarios")
    for wrong in (["--counts", "V1"], ["--agent", "bold"], ["--agent", "chat"], ["--arms", "x"]):
        assert verb("bench", *wrong)[0] == 2
