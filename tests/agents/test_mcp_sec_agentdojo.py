"""AgentDojo's suites as attacks. What needs the package is skipped without it; what must hold without it is not."""

import asyncio
import sys
from collections import Counter
from dataclasses import replace

import pytest

from heliograph.agents.mcp_sec import AttackBench, WorstCaseAgent, suite_scenarios
from heliograph.agents.mcp_sec import agentdojo as adapter
from heliograph.agents.mcp_sec.agents import orders_in
from heliograph.agents.mcp_sec.bench import first_of_each_task, play
from heliograph.agents.mcp_sec.suite import SLIM_COUNTS, ToolCall, scenarios
from heliograph.errors import BadInput, MissingExtra

PICKED = (  # each kind of each suite
    "v1-workspace-user_task_6-injection_task_1",
    "v1-workspace-user_task_18-injection_task_3",
    "v1-travel-user_task_1-injection_task_6",
    "v1-travel-user_task_13-injection_task_5",
    "v1-banking-user_task_13-injection_task_6",
    "v1-banking-user_task_3-injection_task_0",
    "v1-slack-user_task_5-injection_task_5",
    "v1-slack-user_task_4-injection_task_1",
)


@pytest.fixture(scope="module")
def cases():
    pytest.importorskip("agentdojo", reason="the extra mcpbench is not installed")
    return {one.id: one for one in suite_scenarios()}


def outcome(case, arm, *, attack=True, isolation="context"):
    return asyncio.run(play(case, arm, WorstCaseAgent(), attack=attack, isolation=isolation))


def test_without_the_package_the_error_names_the_command_and_the_slim_world_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "agentdojo", None)
    monkeypatch.setitem(sys.modules, "agentdojo.task_suite.load_suites", None)
    monkeypatch.setattr(adapter, "_suites", adapter._suites.__wrapped__)
    with pytest.raises(MissingExtra, match=r"agentdojo is not installed.*pip install 'heliograph\[mcpbench\]'"):
        suite_scenarios()
    assert AttackBench(arms=["mcp"]).run(counts={"residual": 1}, benign=False).success("mcp").part == 1


def test_all_629_cases_are_built_and_with_the_protocol_scenarios_they_are_847(cases):
    assert Counter(name.split("-")[1] for name in cases) == {
        "workspace": 240,
        "travel": 140,
        "banking": 144,
        "slack": 105,
    }
    protocol = [one for one in scenarios() if one.family != "residual"]
    assert (len(protocol), len(cases) + len(protocol)) == (sum(SLIM_COUNTS.values()) - SLIM_COUNTS["residual"], 847)
    assert sum(adapter.census(cases.values()).values()) == 629
    assert {one.family for one in cases.values()} == {"V3", "residual"}  # none is unread in this version
    for one in cases.values():
        with one.open_world() as world:
            assert one.compromised in world.servers
            assert set(one.goals) <= set(world.servers) - {one.compromised}
            assert {call.name for call in one.task.plan} <= set(world.tools)
        assert all(call.name in world.tools for _, call in orders_in(one.payload))
        assert (one.family == "V3") == bool(one.goals)


def test_building_twice_gives_the_same(cases):
    again = suite_scenarios(suites=["slack", "banking"])
    for one in again:
        first = cases[one.id]
        assert (one.payload, one.family, one.kind, one.goals) == (first.payload, first.family, first.kind, first.goals)
        assert (one.task.plan, one.task.grants) == (first.task.plan, first.task.grants)


def test_an_environment_without_a_plant_is_the_one_that_agentdojo_loads(cases):
    from agentdojo.task_suite.load_suites import get_suites

    for name, suite in get_suites("v1").items():
        ours = adapter.DojoSuite("v1", name).environment("user_task_0", {})
        assert ours == suite.load_and_inject_default_environment({})


def test_tools_are_split_by_the_part_of_the_environment_that_they_work_on(cases):
    workspace = adapter.DojoSuite("v1", "workspace")
    assert workspace.servers == ("inbox", "calendar", "cloud_drive")
    assert workspace.server_of["create_calendar_event"] == "calendar"  # which sends invitations too
    with adapter.DojoWorld(workspace) as world:
        effects = {tool.name: tool.effect for tool in world.tools.values()}
    assert (effects["search_emails"], effects["send_email"], effects["delete_file"]) == ("read", "external", "write")


@pytest.mark.parametrize("name", PICKED)
def test_a_case_gives_the_same_with_and_without_a_protocol_and_twice(cases, name):
    case = cases[name]
    for arm in ("twin", "mcp", "mcp+prompt"):
        assert outcome(case, arm).success
    first, again = outcome(case, "mcpsec"), outcome(case, "mcpsec")
    assert first == again
    assert first.success == (case.family == "residual")
    assert bool(first.denied) == (case.family == "V3")


@pytest.mark.parametrize("name", PICKED)
def test_a_benign_twin_does_the_users_task_in_every_arm_and_nothing_is_refused(cases, name):
    for arm in ("twin", "mcp", "mcp+prompt", "mcpsec"):
        for isolation in ("context", "value") if arm == "mcpsec" else ("off",):
            found = outcome(cases[name], arm, attack=False, isolation=isolation)
            assert (found.success, found.useful, found.denied) == (False, True, ())


def test_tools_over_the_protocol_answer_what_the_functions_answer(cases):
    from heliograph.agents.mcp_sec.hosts import open_host
    from heliograph.agents.mcp_sec.suite import Played

    case = cases["v1-workspace-user_task_18-injection_task_3"]

    async def answers(arm):
        with case.open_world() as world:
            case.task.setup(world, case.payload)
            async with open_host(arm, world, case, Played(), attack=True) as (host, _):
                await host.tools()
                calls = [*case.task.calls(world), ToolCall("inbox.delete_email", {"email_id": "no such"})]
                return [(a.text, a.ok) for a in [await host.call(call) for call in calls]]

    found = asyncio.run(answers("twin"))
    assert found == asyncio.run(answers("mcp")) == asyncio.run(answers("mcpsec"))
    assert [ok for _, ok in found] == [True, True, False]


def test_a_goal_that_repeats_a_call_has_it_made_as_often(cases):
    orders = orders_in(cases["v1-banking-user_task_0-injection_task_6"].payload)
    assert [call.name for _, call in orders] == ["bank_account.send_money"] * 3
    assert len({key for key, _ in orders}) == 3


def test_cases_that_cannot_be_reached_have_a_family_of_their_own(cases):
    task = cases["v1-slack-user_task_4-injection_task_1"].task
    goal = ToolCall("web.get_webpage", {"url": "x"})
    assert adapter._kind(replace(task, source=""), [goal]) == ("unread", "no vector read")
    assert adapter._kind(task, [goal, ToolCall(".launch_rocket")]) == ("unread", "no such tool")


def test_a_flow_that_the_users_task_was_granted_lets_a_goal_through(cases):
    case = cases["v1-banking-user_task_0-injection_task_6"]  # the user pays a bill that lies in a file
    assert case.kind == "banking, granted flow"
    assert outcome(case, "mcpsec").success


def test_scenarios_of_one_user_task_share_a_benign_twin(cases):
    assert len(first_of_each_task(cases.values())) == 97
    few = [cases[f"v1-slack-user_task_0-injection_task_{n}"] for n in (1, 3)]
    report = AttackBench(arms=["twin"]).run(few)
    assert (len(report.attacks("twin")), report.utility("twin").whole) == (2, 1)
    assert report.suite == "given, 2 scenarios"


def test_unknown_versions_and_suites_are_refused(cases):
    with pytest.raises(BadInput, match="v9"):
        suite_scenarios("v9")
    with pytest.raises(BadInput, match="workspace"):
        suite_scenarios(suites=["garden"])


def test_the_latest_version_is_built_too(cases):
    assert len(suite_scenarios("v1.2.2")) == 949
