"""Order, causality, conservation and determinism of the event engine, and what it says of deadlocks."""

from __future__ import annotations

import doctest
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.sim import Deadlock, Fifo, Link, Resource, Signal, Sim, Slots, engine, faults, ledger

seconds = st.floats(0, 10, allow_nan=False)


@pytest.mark.parametrize("module", [engine, faults, ledger])
def test_examples_in_the_documentation_run(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


@given(delays=st.lists(seconds, min_size=1, max_size=20))
def test_events_come_in_order_of_time_then_of_scheduling(delays):
    sim, seen = Sim(), []

    def sleeper(number, delay):
        yield sim.wait(delay)
        seen.append((sim.now, number))

    for number, delay in enumerate(delays):
        sim.spawn(sleeper(number, delay))
    sim.run()
    assert seen == sorted(seen)
    assert [when for when, _ in seen] == sorted(delays)


@given(items=st.lists(st.tuples(seconds, seconds), max_size=25), depth=st.integers(1, 4))
def test_queues_keep_order_lose_nothing_and_respect_their_depth(items, depth):
    sim = Sim()
    queue, got = Fifo(sim, depth), []

    def producer():
        for number, (pause, _) in enumerate(items):
            yield sim.wait(pause)
            yield queue.put((number, sim.now))

    def consumer():
        for _, pause in items:
            yield sim.wait(pause)
            number, sent = yield queue.get()
            assert sim.now >= sent
            got.append(number)

    sim.spawn(producer())
    sim.spawn(consumer())
    sim.run()
    assert got == list(range(len(items)))
    assert queue.most <= depth


@given(
    jobs=st.lists(st.tuples(seconds, st.floats(0.01, 100)), min_size=1, max_size=15),
    policy=st.sampled_from(["fifo", "shared", "priority"]),
    rate=st.floats(0.1, 50),
)
@settings(deadline=None)
def test_work_is_conserved_under_every_policy(jobs, policy, rate):
    sim = Sim()
    resource, ends = Resource(sim, rate, policy), {}

    def worker(number, start, amount):
        yield sim.wait(start)
        yield resource.use(amount, priority=number % 3)
        ends[number] = sim.now

    for number, (start, amount) in enumerate(jobs):
        sim.spawn(worker(number, start, amount))
    sim.run()
    total = sum(amount for _, amount in jobs)
    assert resource.done == pytest.approx(total)
    assert resource.busy * rate == pytest.approx(total, rel=1e-6)
    for number, (start, amount) in enumerate(jobs):
        assert ends[number] >= start + amount / rate - 1e-6 * (1 + ends[number])
    if policy == "fifo":
        order = sorted(range(len(jobs)), key=lambda n: (jobs[n][0], n))
        assert [ends[n] for n in order] == sorted(ends.values())


def test_shared_work_slows_everybody_equally():
    sim, ends = Sim(), {}
    resource = Resource(sim, 10.0, "shared")

    def worker(name, start, amount):
        yield sim.wait(start)
        yield resource.use(amount)
        ends[name] = sim.now

    sim.spawn(worker("a", 0, 10))
    sim.spawn(worker("b", 0, 20))
    sim.run()
    assert ends == pytest.approx({"a": 2.0, "b": 3.0})


@given(
    messages=st.lists(st.tuples(seconds, st.integers(0, 10**6)), max_size=15),
    alpha=st.floats(0, 1),
    beta=st.floats(1e-9, 1e-3),
)
def test_messages_arrive_in_order_not_before_their_time_and_no_byte_is_lost(messages, alpha, beta):
    sim = Sim()
    link, inbox, sent, got = Link(sim, alpha, beta), Fifo(sim), [], []

    def sender():
        for number, (pause, size) in enumerate(messages):
            yield sim.wait(pause)
            sent.append(sim.now)
            yield link.send(size, inbox, number)

    def receiver():
        for _ in messages:
            number = yield inbox.get()
            got.append((number, sim.now))

    sim.spawn(sender())
    sim.spawn(receiver())
    sim.run()
    assert [number for number, _ in got] == list(range(len(messages)))
    assert link.sent == link.arrived == sum(size for _, size in messages)
    for (number, when), begun in zip(got, sent, strict=True):
        assert when >= begun + alpha + beta * messages[number][1] - 1e-9 * (1 + when)


def test_equal_programs_are_equal_runs():
    def trace():
        sim, seen = Sim(), []
        resource, queue = Resource(sim, 3.0, "shared"), Fifo(sim, 2)

        def worker(number):
            for turn in range(4):
                yield resource.use(1 + (number * 7 + turn) % 3)
                yield queue.put((number, turn))
                seen.append((sim.now, number, turn))

        def drain():
            for _ in range(12):
                seen.append((sim.now, (yield queue.get())))

        for number in range(3):
            sim.spawn(worker(number))
        sim.spawn(drain())
        sim.run()
        return seen

    assert trace() == trace()


def test_deadlock_names_the_ring_of_waits():
    sim = Sim()
    left, right = Slots(sim, name="left fork"), Slots(sim, name="right fork")

    def philosopher(first, second):
        yield first.acquire()
        yield sim.wait(1)
        yield second.acquire()

    sim.spawn(philosopher(left, right), "Ada")
    sim.spawn(philosopher(right, left), "Bob")
    with pytest.raises(Deadlock, match="Wait cycle: Ada -> Bob -> Ada") as caught:
        sim.run()
    assert caught.value.waiting["Ada"] == "a place of right fork, held by Bob"
    assert pickle.loads(pickle.dumps(caught.value)).cycle == ("Ada", "Bob")


def test_a_wait_for_an_item_that_nobody_brings_is_reported_without_a_ring():
    sim = Sim()
    queue = Fifo(sim, name="inbox")

    def reader():
        yield queue.get()

    sim.spawn(reader(), "reader")
    with pytest.raises(Deadlock, match="reader waits for an item of inbox") as caught:
        sim.run()
    assert caught.value.cycle == ()


def test_run_until_stops_there_and_goes_on():
    sim, seen = Sim(), []

    def ticker():
        for _ in range(5):
            yield sim.wait(1)
            seen.append(sim.now)

    sim.spawn(ticker())
    sim.run(until=2.5)
    assert (sim.now, seen) == (2.5, [1, 2])
    sim.run()
    assert seen == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="already"):
        sim.run(until=1)


def test_killed_process_takes_nothing_and_the_next_in_line_is_served():
    sim, got = Sim(), []
    queue, slots = Fifo(sim), Slots(sim)

    def reader(name):
        got.append((name, (yield queue.get())))

    def holder(name):
        me = yield slots.acquire()
        yield sim.wait(2)
        got.append(name)
        slots.release(me)

    first = sim.spawn(reader("first"), "first")
    sim.spawn(reader("second"), "second")
    sim.spawn(holder("x"), "x")
    waiting = sim.spawn(holder("y"), "y")
    sim.spawn(holder("z"), "z")
    sim.at(1.0, first.kill)
    sim.at(1.0, waiting.kill)
    sim.at(1.5, lambda: queue.put_now("item"))
    sim.run()
    assert got == [("second", "item"), "x", "z"]
    assert sim.now == 4.0


def test_processes_wait_for_each_other_and_for_signals():
    sim = Sim()
    ready = Signal(sim, "ready")

    def child():
        value = yield ready
        return value + 1

    def parent():
        answer = yield sim.spawn(child(), "child")
        again = yield ready
        return answer, again

    process = sim.spawn(parent(), "parent")
    sim.at(3.0, lambda: ready.give(4))
    sim.run()
    assert process.result == (5, 4)
    with pytest.raises(BadInput, match="given already"):
        ready.give()


def test_an_error_in_a_process_comes_through():
    sim = Sim()

    def broken():
        yield sim.wait(1)
        raise RuntimeError("broken on purpose")

    sim.spawn(broken())
    with pytest.raises(RuntimeError, match="on purpose"):
        sim.run()
    sim.run()


def test_bad_input_is_refused():
    sim = Sim()

    def idle():
        yield sim.wait(1)

    def wrong():
        yield 3

    sim.spawn(idle(), "name")
    for call, words in [
        (lambda: sim.spawn(idle(), "name"), "running already"),
        (lambda: sim.spawn(idle), "is a generator"),
        (lambda: Fifo(sim, 0), "at least one"),
        (lambda: Slots(sim, 0), "at least one"),
        (lambda: Resource(sim, 0), "above 0"),
        (lambda: Resource(sim, 1, "lifo"), "policy"),
        (lambda: Link(sim, -1, 1), "alpha"),
    ]:
        with pytest.raises(BadInput, match=words):
            call()
    for call in (lambda: sim.wait(-1), lambda: sim.wait(float("nan")), lambda: Resource(sim, 1).use(-1)):
        with pytest.raises(ValueError, match="negative or NaN"):
            call()
    sim.spawn(wrong(), "wrong")
    with pytest.raises(BadInput, match="wrong yielded 3"):
        sim.run()
