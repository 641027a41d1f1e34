"""Blocks are never lost, never shared by texts that differ, and found again by texts that begin alike."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from heliograph.errors import BadInput
from heliograph.serving.core.blocks import BlockPool, KVManager, LeakError, chain_hashes
from heliograph.serving.core.request import Request


def manager(blocks: int = 8, size: int = 4, fingerprint: str = "m") -> KVManager:
    return KVManager(BlockPool(blocks, size), fingerprint)


def computed(kv: KVManager, request: Request) -> Request:
    shared = kv.match(request)
    assert kv.start(request, shared, len(request.tokens))
    kv.publish(request, len(request.tokens))
    return request


def test_a_name_stands_for_everything_before_it() -> None:
    a, b = chain_hashes([1, 2, 3, 4], 2, "s"), chain_hashes([9, 2, 3, 4], 2, "s")
    assert a[1] != b[1]
    assert a == chain_hashes([1, 2, 3, 4, 5], 2, "s")
    assert a[0] != chain_hashes([1, 2], 2, "other")[0]


def test_a_text_that_begins_alike_shares_full_blocks() -> None:
    kv = manager()
    first = computed(kv, Request("a", list(range(10))))
    second = Request("b", list(range(9)))
    assert kv.match(second) == first.blocks[:2]


def test_the_last_token_is_always_computed() -> None:
    kv = manager()
    computed(kv, Request("a", list(range(8))))
    assert len(kv.match(Request("b", list(range(8))))) == 1


def test_freed_blocks_are_found_until_they_are_needed() -> None:
    kv = manager(blocks=3)
    kv.free(computed(kv, Request("a", list(range(9)))))
    assert len(kv.match(Request("b", list(range(9))))) == 2
    kv.free(computed(kv, Request("c", list(range(50, 62)))))
    assert kv.match(Request("d", list(range(9)))) == []


@pytest.mark.parametrize("changes", [{"salt": "tenant"}, {"prompt_logprobs": True}])
def test_requests_of_another_kind_share_nothing(changes: dict[str, object]) -> None:
    kv = manager()
    computed(kv, Request("a", list(range(9))))
    assert kv.match(Request("b", list(range(9)), **changes)) == []  # type: ignore[arg-type]


def test_other_tokens_under_the_same_name_are_a_miss() -> None:
    pool = BlockPool(2, 2)
    (block,) = pool.take(1) or []
    pool.publish(block, b"name", b"before", (1, 2))
    assert pool.find(b"name", b"before", (1, 2)) == block
    assert pool.find(b"name", b"before", (1, 3)) is None
    assert pool.find(b"name", b"other", (1, 2)) is None


def test_nothing_is_taken_when_not_all_can_be_had() -> None:
    kv = manager(blocks=2)
    request = Request("a", list(range(12)))
    assert not kv.start(request, (), 12)
    assert request.blocks == []
    assert kv.pool.num_free == 2
    kv.check()


def test_a_lease_keeps_blocks_until_its_deadline() -> None:
    kv = manager()
    request = computed(kv, Request("a", list(range(6))))
    kv.hold(request, "key", 6, deadline_s=5.0)
    kv.check()
    assert kv.pool.num_free == 6
    assert kv.expire(4.9) == []
    assert kv.expire(5.0) == ["key"]
    assert kv.pool.num_free == 8
    assert not kv.release("key")


def test_a_lease_is_not_overwritten() -> None:
    kv = manager()
    kv.hold(computed(kv, Request("a", [1, 2])), "key", 2, 1.0)
    with pytest.raises(BadInput, match="exists already"):
        kv.hold(computed(kv, Request("b", [3, 4])), "key", 2, 1.0)


def test_giving_back_what_nobody_holds_is_a_leak() -> None:
    pool = BlockPool(2, 2)
    with pytest.raises(LeakError, match="given back"):
        pool.give_back([0])


def test_a_lost_block_is_noticed() -> None:
    kv = manager()
    request = computed(kv, Request("a", list(range(6))))
    request.blocks.pop()
    with pytest.raises(LeakError, match="counts 1 holders; 0"):
        kv.check()


class Pool(RuleBasedStateMachine):
    """Any sequence of starts, growth, publishing, frees and leases keeps the counts right."""

    @initialize(blocks=st.integers(1, 9), size=st.integers(1, 4))
    def begin(self, blocks: int, size: int) -> None:
        self.kv, self.held, self.now = manager(blocks, size), list[Request](), 0.0
        self.serial = 0

    @rule(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=12), salt=st.sampled_from(["", "t"]))
    def start(self, tokens: list[int], salt: str) -> None:
        self.serial += 1
        request = Request(f"r{self.serial}", tokens, salt=salt)
        shared = self.kv.match(request)
        for number, block in enumerate(shared):
            kept = next(k for k in self.kv.pool._kept.values() if k.block == block)
            size = self.kv.pool.block_size
            assert kept.tokens == tuple(tokens[number * size : (number + 1) * size])
        if self.kv.start(request, shared, len(tokens)):
            self.held.append(request)

    @rule(index=st.integers(0, 20), more=st.lists(st.integers(0, 2), max_size=5))
    def grow(self, index: int, more: list[int]) -> None:
        if self.held:
            request = self.held[index % len(self.held)]
            if self.kv.ensure(request, len(request.tokens) + len(more)):
                request.tokens += more
                self.kv.publish(request, len(request.tokens))

    @rule(index=st.integers(0, 20), lease=st.booleans())
    def end(self, index: int, lease: bool) -> None:
        if self.held:
            request = self.held.pop(index % len(self.held))
            if lease:
                self.kv.hold(request, request.id, len(request.tokens), self.now + 2)
            else:
                self.kv.free(request)

    @rule()
    def tick(self) -> None:
        self.now += 1
        self.kv.expire(self.now)

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "kv"):
            self.kv.check()


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
