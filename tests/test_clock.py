"""Virtual time moves only when told, in a fixed order, and costs no real time."""

from __future__ import annotations

import asyncio
import math
import selectors
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.clock import Clock, Stalled, VirtualClock, VirtualTimeLoop, WallClock, run_virtual

delays = st.floats(0, 1e6)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real waiting, in a sleep or in a poll of files, fails the test."""
    select = selectors.DefaultSelector.select

    def poll(self: selectors.DefaultSelector, timeout: float | None = None) -> Any:
        assert timeout == 0
        return select(self, timeout)

    def refuse(*_: object) -> None:
        raise AssertionError("slept for real")

    monkeypatch.setattr(selectors.DefaultSelector, "select", poll)
    monkeypatch.setattr(time, "sleep", refuse)


# --- the protocol ---


@pytest.mark.parametrize("clock", [WallClock(), VirtualClock()])
@pytest.mark.parametrize("seconds", [-1.0, -1e-9, math.nan])
def test_a_negative_or_undefined_delay_is_refused(clock: Clock, seconds: float) -> None:
    with pytest.raises(ValueError, match="cannot be negative or NaN"):
        clock.sleep(seconds)


def test_both_clocks_keep_the_protocol() -> None:
    assert isinstance(WallClock(), Clock)
    assert isinstance(VirtualClock(), Clock)


def test_the_wall_clock_follows_the_monotonic_clock_and_sleeps_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: real[0])
    monkeypatch.setattr(time, "time", lambda: 1 / 0)
    monkeypatch.setattr(time, "sleep", lambda seconds: real.__setitem__(0, real[0] + seconds))
    clock = WallClock()
    assert clock.now() == 0.0
    clock.sleep(2.5)
    assert clock.now() == 2.5


# --- the virtual clock ---


@given(st.lists(delays, max_size=40))
def test_callbacks_run_in_order_of_time_then_of_scheduling(whens: list[float]) -> None:
    clock, seen = VirtualClock(), list[tuple[float, int]]()
    for serial, when in enumerate(whens):
        clock.call_at(when, lambda serial=serial: seen.append((clock.now(), serial)))  # type: ignore[misc]
    clock.run()
    assert seen == sorted((when, serial) for serial, when in enumerate(whens))
    assert clock.now() == max(whens, default=0.0)


@given(st.lists(st.tuples(delays, st.booleans()), max_size=40))
def test_a_cancelled_callback_does_not_run(plan: list[tuple[float, bool]]) -> None:
    clock, seen = VirtualClock(), list[int]()
    for serial, (when, cancelled) in enumerate(plan):
        cancel = clock.call_at(when, lambda serial=serial: seen.append(serial))  # type: ignore[misc]
        if cancelled:
            cancel()
            cancel()  # twice is no error
    clock.run()
    assert sorted(seen) == [serial for serial, (_, cancelled) in enumerate(plan) if not cancelled]
    assert clock.now() == max((when for when, cancelled in plan if not cancelled), default=0.0)


def test_cancelling_what_ran_already_does_nothing_and_keeps_nothing() -> None:
    clock, seen = VirtualClock(), list[str]()
    cancel = clock.call_at(1.0, lambda: seen.append("first"))
    clock.run()
    cancel()
    clock.call_at(2.0, lambda: seen.append("second"))
    clock.run()
    assert seen == ["first", "second"]
    assert not clock._pending


def test_a_callback_may_cancel_another_that_is_due_at_the_same_time() -> None:
    clock, seen = VirtualClock(), list[str]()
    clock.call_at(1.0, lambda: cancel())
    cancel = clock.call_at(1.0, lambda: seen.append("cancelled"))
    clock.run()
    assert seen == []


def test_callbacks_may_schedule_callbacks() -> None:
    clock, seen = VirtualClock(), list[float]()

    def tick() -> None:
        seen.append(clock.now())
        if len(seen) < 5:
            clock.call_at(clock.now() + 1.5, tick)

    clock.call_at(0.0, tick)
    clock.sleep(4.0)
    assert (seen, clock.now()) == ([0.0, 1.5, 3.0], 4.0)
    clock.run()
    assert (seen, clock.now()) == ([0.0, 1.5, 3.0, 4.5, 6.0], 6.0)


def test_a_callback_scheduled_for_now_runs_now_and_after_those_already_due() -> None:
    clock, seen = VirtualClock(), list[str]()
    clock.call_at(1.0, lambda: clock.call_at(1.0, lambda: seen.append("last")))
    clock.call_at(1.0, lambda: seen.append("first"))
    clock.sleep(1.0)
    assert seen == ["first", "last"]


def test_sleep_runs_what_falls_due_up_to_its_end_and_no_more() -> None:
    clock, seen = VirtualClock(10.0), list[float]()
    for when in (10.0, 12.0, 12.5):
        clock.call_at(when, lambda: seen.append(clock.now()))
    clock.sleep(2.0)
    assert (seen, clock.now()) == ([10.0, 12.0], 12.0)


@given(st.lists(st.one_of(delays, st.tuples(delays, delays)), max_size=30))
def test_the_clock_never_runs_backwards(steps: list[float | tuple[float, float]]) -> None:
    clock, seen = VirtualClock(), [0.0]

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        seen.append(clock.now())

    for step in steps:
        if isinstance(step, tuple):  # a callback that itself sleeps, past whoever called it
            clock.call_at(clock.now() + step[0], lambda seconds=step[1]: sleep(seconds))  # type: ignore[misc]
        else:
            sleep(step)
    clock.run()
    seen.append(clock.now())
    assert seen == sorted(seen)


@pytest.mark.parametrize("when", [4.999, -1.0, math.nan])
def test_the_past_cannot_be_scheduled(when: float) -> None:
    clock = VirtualClock(5.0)
    with pytest.raises(ValueError, match="cannot schedule"):
        clock.call_at(when, lambda: None)


def test_a_callback_that_fails_leaves_the_clock_at_its_time_and_the_rest_scheduled() -> None:
    clock, seen = VirtualClock(), list[float]()
    clock.call_at(1.0, lambda: 1 / 0)
    clock.call_at(2.0, lambda: seen.append(clock.now()))
    with pytest.raises(ZeroDivisionError):
        clock.run()
    assert clock.now() == 1.0
    clock.run()
    assert seen == [2.0]


def test_sleeping_a_year_costs_nothing(no_waiting: None) -> None:
    clock = VirtualClock()
    clock.sleep(365 * 86400)
    assert clock.now() == 365 * 86400


# --- the asyncio loop on virtual time ---


def test_an_hour_of_sleep_takes_no_real_time(no_waiting: None) -> None:
    async def main() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 3600.0


@pytest.mark.parametrize("seconds", [86_400.0, 400 * 86_400.0, 1e9 + 0.1])
def test_sleeps_longer_than_the_loops_longest_poll_end_on_time(no_waiting: None, seconds: float) -> None:
    async def main() -> float:
        await asyncio.sleep(seconds)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(seconds, rel=1e-12)


def test_a_timeout_ends_what_takes_longer_and_spares_what_does_not() -> None:
    async def main() -> tuple[str, float]:
        assert await asyncio.wait_for(asyncio.sleep(5, "in time"), timeout=6) == "in time"
        try:
            async with asyncio.timeout(10):
                await asyncio.sleep(11)
        except TimeoutError:
            return "too late", asyncio.get_running_loop().time()
        return "", 0.0

    assert run_virtual(main()) == ("too late", 15.0)


@pytest.mark.parametrize(
    "wait",
    [
        lambda: asyncio.Event().wait(),
        lambda: asyncio.Queue().get(),
        lambda: asyncio.get_running_loop().create_future(),
        lambda: asyncio.gather(asyncio.Event().wait(), asyncio.Event().wait()),
    ],
)
def test_a_deadlock_is_reported(wait: Callable[[], asyncio.Future[object]]) -> None:
    async def main() -> None:
        await asyncio.sleep(1)
        await wait()

    with pytest.raises(Stalled, match="no timer is set") as caught:
        run_virtual(main())
    assert caught.value.exit_code == 1


def test_a_deadlock_leaves_no_task_behind() -> None:
    ended: list[str] = []

    async def waiter(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(waiter("one"))
            group.create_task(waiter("two"))

    with pytest.raises(Stalled):
        run_virtual(main())
    assert sorted(ended) == ["one", "two"]


def test_a_lock_held_by_a_sleeper_is_no_deadlock() -> None:
    async def main() -> list[str]:
        lock, seen = asyncio.Lock(), list[str]()

        async def use(name: str, seconds: float) -> None:
            async with lock:
                await asyncio.sleep(seconds)
                seen.append(name)

        await asyncio.gather(use("long", 100.0), use("short", 1.0))
        return seen

    assert run_virtual(main()) == ["long", "short"]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60))
def test_many_timers_fire_in_order_of_time_and_twice_alike(seconds: list[int]) -> None:
    def once() -> list[tuple[float, int]]:
        async def main() -> list[tuple[float, int]]:
            loop, seen = asyncio.get_running_loop(), list[tuple[float, int]]()

            async def wake(serial: int, after: float) -> None:
                await asyncio.sleep(after)
                seen.append((loop.time(), serial))

            await asyncio.gather(*(wake(serial, after / 7) for serial, after in enumerate(seconds)))
            return seen

        return run_virtual(main())

    first = once()
    assert first == once()
    assert [seconds[serial] for _, serial in first] == sorted(seconds)
    assert [when for when, _ in first] == pytest.approx([after / 7 for after in sorted(seconds)])


def test_a_chain_of_messages_through_queues_takes_the_sum_of_its_delays() -> None:
    async def main() -> float:
        queues: list[asyncio.Queue[int]] = [asyncio.Queue() for _ in range(101)]

        async def relay(at: int) -> None:
            message = await queues[at].get()
            await asyncio.sleep(0.25)
            await queues[at + 1].put(message + 1)

        tasks = [asyncio.create_task(relay(at)) for at in range(100)]
        await queues[0].put(0)
        assert await queues[100].get() == 100
        await asyncio.gather(*tasks)
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 25.0


def test_the_loop_tells_its_time_under_both_names() -> None:
    loop = VirtualTimeLoop()
    try:
        loop.run_until_complete(asyncio.sleep(2.0))
        assert loop.time() == loop.now() == 2.0
    finally:
        loop.close()


def test_an_error_in_the_main_coroutine_comes_out() -> None:
    async def main() -> None:
        await asyncio.sleep(1)
        raise LookupError("lost")

    with pytest.raises(LookupError, match="lost"):
        run_virtual(main())
