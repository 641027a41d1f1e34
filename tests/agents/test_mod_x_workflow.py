import asyncio
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.agents.mod_x.discovery import Capability
from heliograph.agents.mod_x.peer import CallFailed
from heliograph.agents.mod_x.workflow import NoPlan, OnceStore, WorkflowEngine, _has, make_plan
from heliograph.errors import BadInput


def cap(name, needs, gives, cost=1.0, **more):
    return Capability(
        name=name, agent="w", inputs={need: need for need in needs}, outputs=tuple(gives), price=cost, **more
    )


def brute_force(capabilities, have, goal):
    best = None
    for size in range(len(capabilities) + 1):
        for order in itertools.permutations(capabilities, size):
            at_hand = set(have)
            for one in order:
                if not all(_has(need, at_hand) for need in one.inputs.values()):
                    break
                at_hand |= set(one.outputs)
            else:
                cost = sum(one.price for one in order)
                if _has(goal, at_hand) and (best is None or cost < best):
                    best = cost
    return best


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6))
def test_the_cost_of_a_plan_is_that_of_brute_force(seed):
    noise = random.Random(seed)
    types = [*"abcde", "a.x"]
    capabilities = [
        cap(
            f"c{n}",
            noise.sample(types, noise.randrange(3)),
            noise.sample(types, noise.randrange(1, 3)),
            noise.randrange(4),
        )
        for n in range(noise.randrange(1, 6))
    ]
    wanted = brute_force(capabilities, {"b"}, "a")
    if wanted is None:
        with pytest.raises(NoPlan) as no:
            make_plan(capabilities, {"b"}, "a")
        assert no.value.missing
    else:
        assert make_plan(capabilities, {"b"}, "a").cost == wanted


def test_no_plan_names_the_missing_type_or_the_circle():
    with pytest.raises(NoPlan) as no:
        make_plan([cap("x", ["visa"], ["trip"])], [], "trip")
    assert no.value.missing == ("visa",)
    with pytest.raises(NoPlan, match="need each other"):
        make_plan([cap("x", ["b"], ["a"]), cap("y", ["a"], ["b"])], [], "a")


CHAIN = [
    cap("quote", ["city"], ["price"]),
    cap("book", ["price"], ["booking"], effects="write", undo="undo.book"),
    cap("ticket", ["booking"], ["trip"], effects="write", undo="undo.ticket"),
    cap("undo.book", ["key"], [], effects="write"),
    cap("undo.ticket", ["key"], [], effects="write"),
]


class World:
    """Providers that remember what they did; the process of the engine dies at a given call of the journal."""

    def __init__(self, broken=()):
        self.done, self.store, self.broken = [], OnceStore(), set(broken)

    async def call(self, capability, arguments, key):
        if capability.id in self.broken:
            raise CallFailed("broken")

        async def work():
            self.done.append((capability.name, arguments.get("key", "")))
            return f"{capability.name} of {sorted(arguments.values())}"

        return await self.store.run(key, work)


class Killed(BaseException):
    pass


def test_a_run_killed_anywhere_is_continued_without_a_step_done_twice(tmp_path, monkeypatch):
    from heliograph.agents.mod_x import workflow

    write = workflow._write_line
    for point in range(16):
        world, journal, left = World(), tmp_path / f"journal{point}", [point // 2]

        def deadly(path, record, left=left, late=point % 2):
            if left[0] == 0 and not late:
                raise Killed
            write(path, record)
            if left[0] == 0:
                raise Killed
            left[0] -= 1

        monkeypatch.setattr(workflow, "_write_line", deadly)
        ask = {"run": "r", "grants": ("read", "write")}
        with pytest.raises(Killed):
            asyncio.run(
                WorkflowEngine(lambda: CHAIN, world.call, journal=journal).achieve("trip", {"city": "Rome"}, **ask)
            )
        monkeypatch.setattr(workflow, "_write_line", write)
        engine = WorkflowEngine(lambda: CHAIN, world.call, journal=journal)
        outcome = asyncio.run(engine.achieve("trip", {"city": "Rome"}, **ask))
        assert outcome.ok
        assert [name for name, _ in world.done] == ["quote", "book", "ticket"]
        assert engine.unfinished() == []


def test_half_a_line_at_the_end_of_the_journal_harms_nothing(tmp_path):
    world, journal = World(), tmp_path / "journal"
    engine = WorkflowEngine(lambda: CHAIN[:1], world.call, journal=journal)
    asyncio.run(engine.achieve("price", {"city": "Rome"}, run="r"))
    with journal.open("ab") as file:
        file.write(b'{"run":"r","event":"e')
    again = asyncio.run(engine.achieve("price", {"city": "Rome"}, run="r"))
    assert again.ok
    assert asyncio.run(engine.achieve("price", {"city": "Oslo"}, run="s")).ok
    assert len(world.done) == 2


def test_a_failed_provider_is_replaced_and_a_fixed_pipeline_gives_up():
    other = cap("quote2", ["city"], ["price"], cost=5)
    for replan in (True, False):
        world = World(broken=["w/quote"])
        engine = WorkflowEngine(lambda: [*CHAIN, other], world.call, replan=replan)
        outcome = asyncio.run(engine.achieve("price", {"city": "Rome"}, run="r"))
        assert outcome.ok is replan
        assert outcome.failures == {"w/quote": "broken"}


def test_what_was_written_is_undone_when_the_goal_is_out_of_reach():
    world = World(broken=["w/ticket"])
    engine = WorkflowEngine(lambda: CHAIN, world.call)
    outcome = asyncio.run(engine.achieve("trip", {"city": "Rome"}, run="r", grants=("read", "write")))
    assert not outcome.ok
    assert outcome.undone == ["w/ticket", "w/book"]
    assert ("undo.book", "r/w/book") in world.done
    world = World(broken=["w/ticket", "w/undo.book"])
    outcome = asyncio.run(
        WorkflowEngine(lambda: CHAIN, world.call).achieve("trip", {"city": "x"}, run="r", grants=("read", "write"))
    )
    assert outcome.uncertain == ["w/book"]


def test_effects_need_a_grant_and_results_need_acceptance():
    world = World()
    engine = WorkflowEngine(lambda: CHAIN, world.call)
    with pytest.raises(NoPlan):
        asyncio.run(engine.achieve("trip", {"city": "Rome"}, run="r"))
    outcome = asyncio.run(engine.achieve("price", {"city": "Rome"}, run="r", accept=lambda one, given: False))
    assert not outcome.ok
    with pytest.raises(BadInput):
        asyncio.run(engine.achieve("price", {"city": float("nan")}, run="q"))


def test_work_under_one_key_is_done_once_even_at_the_same_time_and_after_a_restart(tmp_path):
    done = []

    async def work():
        done.append(1)
        await asyncio.sleep(0)
        return "r"

    async def twice():
        store = OnceStore(tmp_path / "once")
        return await asyncio.gather(store.run("k", work), store.run("k", work))

    assert asyncio.run(twice()) == ["r", "r"]
    assert asyncio.run(OnceStore(tmp_path / "once").run("k", work)) == "r"
    assert len(done) == 1
