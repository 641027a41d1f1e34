"""A prompt is taken by an instance that can start it now, with all that it needs, or by none."""

import asyncio
import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from heliograph.clock import run_virtual
from heliograph.errors import BadInput
from heliograph.serving.core.cost_model import CostModel
from heliograph.serving.pd_serve import (
    Accept,
    Backoff,
    ForwardStats,
    LeastReported,
    NoIdlePrefill,
    Offer,
    OnDemand,
    PrefillAdmission,
    PrefillLimits,
    Reject,
    forward,
    simulate_forwarding,
)
from heliograph.serving.pd_serve.modelled import Prompt

LIMITS = PrefillLimits(slots=2, num_blocks=8, block_size=4, send_buffer_bytes=24, kv_bytes_per_token=1)
COST = CostModel(0.01, 0.001, 0.0, 0.01, 0.0, kv_bytes_per_token=100)


class Door(RuleBasedStateMachine):
    """Offers, starts, ends and losses in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.door = PrefillAdmission(LIMITS, lambda: self.now)
        self.keys: list[str] = []

    @rule(request=st.integers(0, 5), attempt=st.integers(0, 2), tokens=st.integers(1, 40), hands_over=st.booleans())
    def offer(self, request: int, attempt: int, tokens: int, hands_over: bool) -> None:
        before = self.door.reserved_blocks
        answer = self.door.offer(Offer(f"r{request}", attempt, tokens, hands_over))
        if isinstance(answer, Accept):
            self.keys.append(answer.key)
        else:
            assert self.door.reserved_blocks <= before

    @rule(data=st.data(), what=st.sampled_from(["start", "prefilled", "sent", "release"]))
    def go_on(self, data: st.DataObject, what: str) -> None:
        if self.keys:
            getattr(self.door, what)(data.draw(st.sampled_from(self.keys)))

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nothing_is_given_twice(self) -> None:
        assert self.door.busy_slots <= LIMITS.slots
        assert self.door.reserved_blocks <= LIMITS.num_blocks
        assert self.door.reserved_bytes <= LIMITS.send_buffer_bytes

    def teardown(self) -> None:
        for key in self.keys:
            self.door.release(key)
        assert (self.door.busy_slots, self.door.reserved_blocks, self.door.reserved_bytes) == (0, 0, 0)


TestDoor = Door.TestCase
TestDoor.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_of_many_gateways_that_offer_at_once_one_gets_the_last_slot() -> None:
    door = PrefillAdmission(PrefillLimits(slots=1))
    start, answers = threading.Barrier(8), []

    def gateway(number: int) -> None:
        start.wait()
        answers.append(door.offer(Offer(f"r{number}", 0, 10)))

    threads = [threading.Thread(target=gateway, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(answer, Accept) for answer in answers) == 1


@pytest.mark.parametrize(
    ("tokens", "before", "reason"),
    [
        (4, [(4, True), (4, True)], "slots"),
        (24, [(12, False)], "blocks"),
        (20, [(8, True)], "send buffer"),
        (33, [], "never"),
    ],
)
def test_a_rejection_says_what_is_missing(tokens: int, before: list[tuple[int, bool]], reason: str) -> None:
    door = PrefillAdmission(LIMITS)
    for number, (size, hands_over) in enumerate(before):
        assert isinstance(door.offer(Offer(f"b{number}", 0, size, hands_over)), Accept)
    assert door.offer(Offer("r", 0, tokens)) == Reject(reason)  # type: ignore[arg-type]


def test_blocks_stay_reserved_until_the_cache_has_left() -> None:
    held = {"r/0/0"}
    door = PrefillAdmission(LIMITS, still_held=lambda key: key in held)
    answer = door.offer(Offer("r", 0, 16))
    assert isinstance(answer, Accept)
    door.start(answer.key)
    door.prefilled(answer.key)
    door.settle()
    assert (door.busy_slots, door.reserved_blocks) == (0, 4)
    held.clear()
    door.settle()
    assert door.reserved_blocks == 0


def test_the_same_attempt_offered_twice_holds_one_reservation() -> None:
    door = PrefillAdmission(LIMITS)
    assert door.offer(Offer("r", 0, 8)) == door.offer(Offer("r", 0, 8))
    later = door.offer(Offer("r", 1, 8))
    assert isinstance(later, Accept)
    assert door.reserved_blocks == 2


def test_an_answer_of_one_token_needs_no_send_buffer() -> None:
    door = PrefillAdmission(LIMITS)
    assert isinstance(door.offer(Offer("r", 0, 30, hands_over=False)), Accept)
    assert door.reserved_bytes == 0


def test_a_draining_instance_takes_nothing() -> None:
    door = PrefillAdmission(LIMITS)
    door.draining = True
    assert door.offer(Offer("r", 0, 1)) == Reject("draining")


class Port:
    def __init__(self, name: str, free_at_s: float, reason: str = "slots") -> None:
        self.name, self.free_at_s, self.reason = name, free_at_s, reason

    async def offer(self, offer: Offer) -> Accept | Reject:
        free = asyncio.get_running_loop().time() >= self.free_at_s
        return Accept(f"{offer.request} at {self.name}") if free else Reject(self.reason)  # type: ignore[arg-type]


def offered(*ports: Port, deadline_s: float, stats: ForwardStats | None = None) -> tuple[str, float]:
    async def act() -> tuple[str, float]:
        _, key = await forward(Offer("r", 0, 4), ports, deadline_s, rng=random.Random(0), stats=stats)
        return key, asyncio.get_running_loop().time()

    return run_virtual(act())


def test_the_first_idle_instance_takes_the_prompt_soon_after_it_is_idle() -> None:
    stats = ForwardStats()
    key, when = offered(Port("a", 9.0), Port("b", 0.5), deadline_s=2.0, stats=stats)
    assert key == "r at b"
    assert 0.5 <= when <= 0.5 + Backoff().most_s
    assert stats.accept_rate("a") == 0.0
    assert 0 < stats.accept_rate("b") < 0.1


def test_a_prompt_that_nobody_takes_ends_at_its_deadline() -> None:
    stats = ForwardStats()
    with pytest.raises(NoIdlePrefill, match="no prefill instance was idle"):
        offered(Port("a", 9.0), deadline_s=1.0, stats=stats)
    assert stats.timeouts == 1
    assert stats.rejected["slots"] < 1.0 / (Backoff().most_s * (1 - Backoff().jitter)) + 20  # no storm


def test_a_prompt_that_fits_nobody_is_refused_at_once() -> None:
    with pytest.raises(BadInput, match="can hold it"):
        offered(Port("a", 9.0, "never"), deadline_s=1.0)


@given(st.lists(st.tuples(st.floats(0, 0.3), st.integers(1, 600)), min_size=1, max_size=25), st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_every_prompt_gets_a_first_token_or_a_timeout(drawn: list[tuple[float, int]], seed: int) -> None:
    at, prompts = 0.0, []
    for gap, tokens in drawn:
        at += gap
        prompts.append(Prompt(at, tokens))
    for policy in (OnDemand(rpc_s=0.0), LeastReported(0.2), LeastReported(0.2, own_dispatches=True)):
        report = simulate_forwarding(prompts, policy, COST, instances=2, gateways=2, slo_s=0.8, seed=seed)
        assert len(report.ttft_s) == len(prompts)
        for ttft, prompt in zip(report.ttft_s, prompts, strict=True):
            assert ttft >= COST.prefill_seconds(min(prompt.tokens, 512)) - 1e-9
        assert report.timeouts == sum(t > 0.8 for t in report.ttft_s)


def test_a_slow_instance_shows_as_a_low_share_of_accepted_offers() -> None:
    prompts = [Prompt(0.05 * n, 100) for n in range(200)]
    report = simulate_forwarding(prompts, OnDemand(), COST, instances=3, slo_s=2.0, slow={1: 6.0})
    assert report.accept_rate["prefill-1"] < 0.7 * report.accept_rate["prefill-0"]
    assert report.attainment > 0.95


def test_offering_beats_reports_that_are_old() -> None:
    prompts = [Prompt(0.02 * n, 150 if n % 5 else 900) for n in range(200)]
    old = simulate_forwarding(prompts, LeastReported(5.0), COST, slo_s=1.5)
    assert simulate_forwarding(prompts, OnDemand(rpc_s=0.0), COST, slo_s=1.5).attainment > old.attainment


def test_prompts_that_are_out_of_order_are_refused() -> None:
    with pytest.raises(BadInput, match="order"):
        simulate_forwarding([Prompt(1.0, 5), Prompt(0.0, 5)], OnDemand(), COST, slo_s=1.0)
