import asyncio
import contextlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents import Chain, Envelope, Rejected
from heliograph.agents.mcp_broker import ToolCatalog, ToolLatencyModel, ToolTimes, TurnBudget, make_policy
from heliograph.agents.mcp_broker.allocation import POLICIES, Cap, Optimal, PlannedCall
from heliograph.agents.mcp_broker.budget import TURN_KEY
from heliograph.checks.agents.mcp_broker_parts.turns import draw, families, run_turns
from heliograph.clock import VirtualClock, run_virtual
from heliograph.errors import BadInput

READS = {"*": "read"}


def call(tool="slow", turn=None, arguments=None, tenant="t"):
    meta = {"_meta": {TURN_KEY: turn}} if turn else {}
    params = {"name": tool, "arguments": arguments or {}, **meta}
    payload = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    return Envelope(topic="mcp.tools.call", kind="request", sender="ann", tenant=tenant, payload=payload)


class Tool:
    """Takes the given seconds, call after call, and remembers what it was told."""

    def __init__(self, *seconds):
        self.seconds, self.seen, self.cancelled = list(seconds), [], 0

    async def __call__(self, env):
        self.seen.append(env)
        try:
            await asyncio.sleep(self.seconds.pop(0))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return env.answer({"jsonrpc": "2.0", "id": 1, "result": {"content": []}})


def virtual(scenario):
    async def main():
        return await scenario(asyncio.get_running_loop())

    return run_virtual(main())


def times(name, median, p99):
    return PlannedCall(ToolTimes(name, median, p99), 1)


@given(
    st.sampled_from(POLICIES),
    st.floats(0.5, 6000),
    st.lists(st.tuples(st.floats(1, 2000), st.floats(1.05, 50)), min_size=1, max_size=5),
)
@settings(deadline=None, max_examples=80)
def test_a_limit_is_positive_and_never_beyond_what_is_left(name, remaining, tools):
    plan = [PlannedCall(ToolTimes(f"{n}", median, median * by), n % 2) for n, (median, by) in enumerate(tools)]
    assert 0 < make_policy(name, total_ms=5000).limit_ms(remaining, plan) <= remaining


def test_cap_gives_the_usual_worst_case_and_keeps_back_what_the_others_need():
    plan = [times("a", 100, 500), times("b", 300, 900), times("c", 200, 900)]
    assert Cap(1.2).limit_ms(5000, plan) == pytest.approx(600)
    assert Cap(1.2).limit_ms(900, plan) == pytest.approx(400)
    assert Cap(1.2).limit_ms(510, plan) == pytest.approx(50)


def test_proportional_starves_a_tool_beside_one_that_is_thought_to_stall():
    plan = [times("quick", 100, 300), times("stalls", 100, 60_000)]
    proportional = make_policy("proportional", total_ms=4000)
    assert proportional.limit_ms(4000, plan) < 60
    assert Cap().limit_ms(4000, plan) == pytest.approx(360)


def brute_force(plan, budget, cells, cdf):
    """The recursion of the optimum, written top-down and without a table."""

    def value(place, left, retries):
        if place == len(plan):
            return 1.0
        best = 0.0
        for limit in range(left + 1):
            chance = [cdf(place, x) - cdf(place, x - 1) if x else 0.0 for x in range(limit + 1)]
            done = sum(p * value(place + 1, left - x, retries_of(place + 1)) for x, p in enumerate(chance) if p)
            again = value(place, left - limit, retries - 1) if retries and limit else 0.0
            best = max(best, done + (1 - cdf(place, limit)) * again if limit else 0.0)
        return best

    def retries_of(place):
        return plan[place].retries if place < len(plan) else 0

    return value(0, budget, plan[0].retries)


def test_the_optimum_is_that_of_all_limits_tried_one_by_one():
    plan = [PlannedCall(ToolTimes("a", 120, 500), 1), PlannedCall(ToolTimes("b", 200, 400), 1)]
    cells, total = 6, 600.0
    grid = {n: one.times.cdf(np.arange(cells + 1) * 100.0) for n, one in enumerate(plan)}
    policy = Optimal(total, cells=cells, floor_ms=1.0)
    limit = policy.limit_ms(total, plan) / 100

    def cdf(place, x):
        return float(grid[place][x]) if x > 0 else 0.0

    best = brute_force(plan, cells, cells, cdf)
    chosen = round(limit)
    rest = [brute_force(plan[1:], left, cells, lambda _, x: cdf(1, x)) for left in range(cells + 1)]
    done = sum((cdf(0, x) - cdf(0, x - 1)) * rest[cells - x] for x in range(1, chosen + 1))
    second = [PlannedCall(plan[0].times, 0), plan[1]]
    again = brute_force(second, cells - chosen, cells, cdf) if chosen < cells else 0.0
    assert done + (1 - cdf(0, chosen)) * again == pytest.approx(best)


def test_unknown_tools_have_the_prior_of_their_class_and_are_marked_cold():
    model = ToolLatencyModel({"db.write*": "write", "db.*": "read"}, clock=VirtualClock())
    assert (model.times("db.get").p99_ms, model.times("db.write_all").p99_ms) == (500, 5000)
    assert model.times("other").cold
    assert model.times("other").p99_ms == 2000
    assert math.isnan(model.quantile("other", 0.5))


def test_after_thirty_calls_measurements_replace_the_prior():
    model = ToolLatencyModel(clock=VirtualClock(), refresh=1)
    for number in range(30):
        assert model.times("a").cold
        model.observe("a", 10.0 + number)
    assert not model.times("a").cold
    assert model.times("a").p99_ms == pytest.approx(39, rel=0.05)


def test_stalls_are_a_share_of_their_own_and_do_not_move_the_percentile():
    honest, naive = (ToolLatencyModel(clock=VirtualClock(), refresh=1, censoring=flag) for flag in (True, False))
    for number in range(100):
        for model in (honest, naive):
            model.observe("a", 4000.0 if number % 10 == 0 else 100.0, censored=number % 10 == 0)
    assert honest.times("a").p99_ms == pytest.approx(100, rel=0.05)
    assert honest.times("a").stall_share == pytest.approx(0.1, abs=0.03)
    assert naive.times("a").p99_ms == pytest.approx(4000, rel=0.05)


def test_forgotten_tools_do_not_fill_the_memory():
    model = ToolLatencyModel(clock=VirtualClock(), capacity=10)
    for number in range(200):
        model.observe(f"tool{number}", 1.0)
    assert len(model.tools()) <= 10


def test_a_stalled_read_is_cut_off_and_repeated_within_the_turn():
    async def scenario(loop):
        tool = Tool(60.0, 0.1)
        budget = TurnBudget(4000, catalog=ToolCatalog(READS), clock=loop)
        answer = await budget(call(), tool)
        return tool, budget, answer, loop.time()

    tool, budget, answer, now = virtual(scenario)
    assert answer.kind == "reply"
    assert tool.cancelled == 1
    assert [env.meta.labels["attempt"] for env in tool.seen] == ["1", "2"]
    assert (budget.counts.calls, budget.counts.retries, budget.counts.timeouts) == (2, 1, 1)
    assert now < 4


def test_a_late_answer_that_nothing_else_waits_for_is_not_cut_off():
    async def scenario(loop):
        tool = Tool(*[0.01] * 200, 0.9)
        budget = TurnBudget(4000, clock=loop)
        answers = [await budget(call(turn={"id": str(turn)}), tool) for turn in range(201)]
        return [answer.kind for answer in answers]

    assert virtual(scenario) == ["reply"] * 201


def test_a_tool_that_changes_something_is_never_repeated():
    async def scenario(loop):
        tool = Tool(60.0, 0.1)
        answer = await TurnBudget(4000, clock=loop)(call(), tool)
        return tool, answer

    tool, answer = virtual(scenario)
    assert len(tool.seen) == 1
    assert answer.payload["error"]["code"] == -32001
    assert answer.payload["error"]["data"]["retryable"] is True


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=8), st.sampled_from(POLICIES), st.integers(0, 2))
@settings(deadline=None, max_examples=60)
def test_no_call_ever_runs_past_the_end_of_its_turn(latencies, policy, retries):
    async def scenario(loop):
        seconds = [value for value in latencies for _ in range(retries + 1)]
        tool = Tool(*seconds)
        budget = TurnBudget(3000, policy, catalog=ToolCatalog(READS), retries=retries, clock=loop)
        chain = Chain([budget])
        for _ in latencies:
            with contextlib.suppress(Rejected):
                await chain(call(turn={"id": "t", "remaining_calls": 2}), tool)
        return [(env.meta.deadline_ms, env) for env in tool.seen], loop.time()

    seen, now = virtual(scenario)
    assert now <= 3.0 + 1e-6
    assert all(0 < limit <= 3000 for limit, _ in seen)


def test_a_spent_turn_refuses_and_the_next_turn_begins_anew():
    async def scenario(loop):
        budget = TurnBudget(1000, clock=loop)
        await budget(call(turn={"id": "one"}), Tool(0.6))
        await budget(call(turn={"id": "one"}), Tool(0.6))
        with pytest.raises(Rejected, match="ms left"):
            await budget(call(turn={"id": "one"}), Tool(0.6))
        fresh = await budget(call(turn={"id": "two"}), Tool(0.1))
        other = await budget(call(turn={"id": "one"}, tenant="other"), Tool(0.1))
        return fresh, other, budget.counts.refused

    fresh, other, refused = virtual(scenario)
    assert fresh.kind == other.kind == "reply"
    assert refused == 1


def test_a_caller_can_shorten_its_budget_but_not_lengthen_it():
    async def scenario(loop):
        limits = []
        for asked in (500, 10**9):
            tool = Tool(0.01)
            budget = TurnBudget(2000, "constant", clock=loop)
            await budget(call(turn={"id": f"{asked}", "budget_ms": asked}), tool)
            limits.append(tool.seen[0].meta.deadline_ms)
        return limits

    assert virtual(scenario) == pytest.approx([500, 2000])


def test_an_unnamed_turn_ends_after_a_rest():
    async def scenario(loop):
        budget = TurnBudget(1000, "constant", idle_s=30, clock=loop)
        tool = Tool(0.5, 0.1)
        await budget(call(), tool)
        await asyncio.sleep(31)
        await budget(call(), tool)
        return [env.meta.deadline_ms for env in tool.seen]

    assert virtual(scenario) == pytest.approx([1000, 1000])


def test_a_caller_that_names_no_turns_is_never_refused_for_a_spent_one():
    async def scenario(loop):
        budget = TurnBudget(1000, clock=loop)
        answers = [await budget(call(), Tool(0.3)) for _ in range(20)]
        return [answer.kind for answer in answers], budget.counts.refused, loop.time()

    kinds, refused, now = virtual(scenario)
    assert kinds == ["reply"] * 20
    assert refused == 0
    assert now == pytest.approx(6)


def test_what_the_caller_says_of_its_turn_does_not_reach_the_server():
    async def scenario(loop):
        tool = Tool(0.1)
        await TurnBudget(1000, clock=loop)(call(turn={"id": "x", "next": ["a", 3]}), tool)
        return tool.seen[0].payload["params"]["_meta"]

    assert virtual(scenario) == {}


def test_a_shorter_deadline_from_outside_counts():
    async def scenario(loop):
        tool = Tool(0.1)
        env = call()
        await TurnBudget(5000, "constant", clock=loop)(env.replace(meta=type(env.meta)(deadline_ms=300)), tool)
        return tool.seen[0].meta.deadline_ms

    assert virtual(scenario) == 300


def test_the_interceptor_decides_as_the_simulation_does():
    family, budget_ms = families()["paper"], 3000.0
    latency = draw(family, 60, 5, stalls=True)
    expected = run_turns(make_policy("cap", total_ms=budget_ms), latency, budget_ms, refresh=50)

    async def scenario(loop):
        model = ToolLatencyModel(refresh=50, clock=loop)
        budget = TurnBudget(budget_ms, model=model, catalog=ToolCatalog(READS), clock=loop)
        names = [f"tool{n}" for n in range(5)]
        completed = []
        for turn in range(len(latency)):
            ended = True
            for place, name in enumerate(names):
                try:
                    asked = {"id": str(turn), "next": names[place + 1 :]}
                    answer = await budget(call(name, asked), Tool(*(latency[turn, place] / 1000)))
                    ended = answer.kind == "reply"
                except Rejected:
                    ended = False
                if not ended:
                    break
            completed.append(ended)
        return completed

    assert virtual(scenario) == expected.completed.tolist()


@pytest.mark.parametrize(
    "options",
    [{"total_ms": 10, "floor_ms": 50}, {"retries": -1}, {"idle_s": 0}, {"policy": "guess"}, {"kappa": 0}],
)
def test_budgets_that_cannot_be_are_refused(options):
    with pytest.raises(BadInput):
        TurnBudget(**options)
