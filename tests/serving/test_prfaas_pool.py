"""A prefix hit is the longest length that all groups have; transfer pages are never found; no page is lost."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from heliograph.errors import BadInput
from heliograph.serving.core.blocks import LeakError
from heliograph.serving.prfaas import CacheGroup, GlobalPrefixIndex, HybridKVPool, prefix_names
from heliograph.workload import AttentionShape, LayerShape, LlmShape, TraceRequest

BLOCK, STEP = 4, 8
GROUPS = (
    CacheGroup("full", "full", token_bytes=10),
    CacheGroup("window", "state", token_bytes=30, window=6),
    CacheGroup("linear", "state", state_bytes=130),
)


def pool(pages: int = 400, groups: tuple[CacheGroup, ...] = GROUPS, **more: object) -> HybridKVPool:
    return HybridKVPool(groups, 64, pages, block_tokens=BLOCK, checkpoint_tokens=STEP, **more)  # type: ignore[arg-type]


def computed(kept: HybridKVPool, name: str, tokens: list[int], *stops: int) -> None:
    kept.begin(name, tokens)
    for stop in (*stops, len(tokens)):
        assert kept.extend(name, stop)
    kept.end(name)


def test_a_hit_ends_at_a_checkpoint_although_full_blocks_reach_further() -> None:
    kept = pool()
    computed(kept, "a", list(range(30)))
    hit = kept.match([*range(23), 99, 98, 97])
    assert hit.by_group["full"] == 20
    assert hit.length == hit.by_group["window"] == hit.by_group["linear"] == 16


def test_the_end_of_a_prompt_is_a_checkpoint_at_its_last_full_block() -> None:
    kept = pool()
    computed(kept, "a", list(range(30)))
    assert kept.match([*range(30), 1, 2, 3]).length == 28


def test_a_token_is_always_left_to_compute() -> None:
    kept = pool()
    computed(kept, "a", list(range(16)))
    assert kept.match(list(range(16))).length == 8


def test_steps_between_checkpoints_save_the_same_states() -> None:
    whole, parts = pool(), pool()
    computed(whole, "a", list(range(30)))
    computed(parts, "a", list(range(30)), 3, 9, 17, 18)
    assert whole.match([*range(25), 7]) == parts.match([*range(25), 7])


def test_models_without_states_reuse_every_block() -> None:
    kept = pool(groups=GROUPS[:1])
    computed(kept, "a", list(range(30)))
    assert kept.match([*range(23), 99]).length == 20


def test_models_without_full_layers_reuse_states_alone() -> None:
    kept = pool(groups=GROUPS[1:])
    computed(kept, "a", list(range(30)))
    assert kept.match([*range(23), 99]).length == 16


def test_other_models_find_nothing() -> None:
    kept, other = pool(fingerprint="a"), pool(fingerprint="b")
    tokens = list(range(30))
    assert kept._names(tokens) != other._names(tokens)


def test_a_state_whose_pages_were_taken_is_no_hit_for_any_group() -> None:
    kept = pool(60)
    computed(kept, "a", list(range(30)))
    assert kept.match([*range(30), 1]).length
    assert kept.reserve_transfer("t", 64 * kept.num_free)  # takes every page
    assert kept.match([*range(30), 1]).length == 0
    kept.check()


def test_a_transfer_takes_all_its_pages_or_none_and_is_never_found() -> None:
    kept = pool(20)
    assert kept.reserve_transfer("a", 64 * 15)
    assert not kept.reserve_transfer("b", 64 * 6)
    assert kept.num_free == 5
    kept.check()
    kept.end_transfer("a")
    assert kept.num_free == 20
    assert kept.match(list(range(30))).length == 0


def test_a_published_transfer_page_is_noticed() -> None:
    kept = pool(20)
    kept.reserve_transfer("a", 64)
    kept.pages.publish(kept._transfers["a"][0], b"name", b"before", [1])
    with pytest.raises(LeakError, match="transfer"):
        kept.check()


def test_a_prompt_that_does_not_fit_takes_nothing() -> None:
    kept = pool(6)
    kept.begin("a", list(range(40)))
    assert not kept.extend("a", 40)
    assert kept.num_free == 6
    kept.check()


def test_answers_are_published_block_by_block() -> None:
    kept = pool(groups=GROUPS[:1])
    kept.begin("a", list(range(6)))
    kept.extend("a", 6)
    kept.append("a", [6, 7, 8])
    kept.extend("a", 9)
    kept.end("a")
    assert kept.match(list(range(12))).length == 8


def test_padding_counts_the_bytes_that_rounding_leaves_unused() -> None:
    found = pool().padding()
    assert found == {"full": 1 - 40 / 64, "window": 1 - 180 / 192, "linear": 1 - 130 / 192}


def test_groups_follow_from_a_model() -> None:
    def layer(kind: str, window: int | None = None) -> LayerShape:
        return LayerShape(AttentionShape(kind, 4, 2, 8, 8, window), 64)  # type: ignore[arg-type]

    shape = LlmShape("x", 32, 100, 512, (layer("gqa"), layer("gqa", 64), layer("gqa", 64), layer("linear")))
    groups = {group.name: group for group in CacheGroup.of(shape)}
    assert groups["full"].token_bytes == 2 * 2 * 16
    assert groups["window 64"].snapshot_bytes(1000) == 2 * 64 * 2 * 2 * 16
    assert groups["linear"].state_bytes > 0
    total = sum(group.snapshot_bytes(1000) for group in groups.values())
    assert total == shape.kv_bytes(1000)


@pytest.mark.parametrize(
    "group",
    [
        {"kind": "full"},
        {"kind": "full", "token_bytes": 1, "window": 4},
        {"kind": "state"},
        {"kind": "state", "window": 4},
        {"kind": "state", "window": 0, "token_bytes": 1},
        {"kind": "other", "token_bytes": 1},
    ],
)
def test_groups_that_cannot_be_are_refused(group: dict[str, object]) -> None:
    with pytest.raises(BadInput, match="group"):
        CacheGroup("g", **group)  # type: ignore[arg-type]


def test_misuse_is_refused() -> None:
    kept = pool()
    kept.begin("a", [1, 2])
    for wrong in (
        lambda: kept.begin("a", [1]),
        lambda: kept.begin("b", []),
        lambda: kept.extend("a", 3),
        lambda: kept.end("b"),
        lambda: kept.end_transfer("t"),
        lambda: kept.reserve_transfer("t", 0),
        lambda: HybridKVPool((), 64),
        lambda: HybridKVPool(GROUPS, 64, block_tokens=4, checkpoint_tokens=6),
        lambda: HybridKVPool((GROUPS[0], GROUPS[0]), 64),
    ):
        with pytest.raises(BadInput):
            wrong()


class PoolAgainstModel(RuleBasedStateMachine):
    """A large pool against a plain record of what each group was given; a small one for lost pages only."""

    @initialize(small=st.booleans())
    def start(self, small: bool) -> None:
        self.small = small
        self.pool = pool(40 if small else 5000)
        self.full: set[tuple[int, ...]] = set()
        self.states: set[tuple[int, ...]] = set()
        self.running: dict[int, list[int]] = {}
        self.computed: dict[int, int] = {}
        self.moving: set[int] = set()
        self.serial = 0

    prompts = st.lists(st.integers(0, 1), min_size=1, max_size=30)

    def expected(self, tokens: list[int]) -> int:
        best = 0
        for length in range(BLOCK, len(tokens), BLOCK):
            run = all(tuple(tokens[:n]) in self.full for n in range(BLOCK, length + 1, BLOCK))
            if run and tuple(tokens[:length]) in self.states:
                best = length
        return best

    @rule(tokens=prompts)
    def begin(self, tokens: list[int]) -> None:
        hit = self.pool.begin(self.serial, tokens)
        if not self.small:
            assert hit.length == self.expected(tokens)
        else:
            assert hit.length <= self.expected(tokens)  # pages may have been taken since, never the reverse
        self.running[self.serial], self.computed[self.serial] = tokens, hit.length
        self.serial += 1

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        tokens, before = self.running[name], self.computed[name]
        after = data.draw(st.integers(before, len(tokens)))
        if not self.pool.extend(name, after):
            assert self.small
            return
        self.computed[name] = after
        for end in range(BLOCK, after + 1, BLOCK):
            if end > before // BLOCK * BLOCK:
                self.full.add(tuple(tokens[:end]))
        last = len(tokens) // BLOCK * BLOCK
        for end in range(before + 1, after + 1):
            if end % STEP == 0 or end == last:
                self.states.add(tuple(tokens[:end]))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        self.pool.end(name)
        del self.running[name]

    @rule(nbytes=st.integers(1, 600))
    def move(self, nbytes: int) -> None:
        if self.pool.reserve_transfer(self.serial, nbytes):
            self.moving.add(self.serial)
        self.serial += 1

    @precondition(lambda self: self.moving)
    @rule()
    def moved(self) -> None:
        self.pool.end_transfer(self.moving.pop())

    @invariant()
    def no_page_is_lost(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check()


PoolAgainstModel.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestPoolAgainstModel = PoolAgainstModel.TestCase


def test_the_index_knows_the_longest_prefix_of_each_cluster() -> None:
    index = GlobalPrefixIndex(("remote", "local"), 16)
    index.record("remote", ["a", "b", "c"])
    index.record("local", ["a", "x"])
    assert index.lengths(["a", "b", "c", "d"]) == {"remote": 48, "local": 16}
    assert index.lengths(["a", "b", "c"], usable=47) == {"remote": 32, "local": 16}


def test_the_index_counts_checkpoints_only_where_states_are_saved() -> None:
    index = GlobalPrefixIndex(("remote",), 16)
    index.record("remote", ["a", "b", "c", "d"], [2, 4])
    assert index.lengths(["a", "b", "c"]) == {"remote": 32}
    assert index.lengths(["a", "b", "c", "d"]) == {"remote": 64}


def test_the_index_forgets_what_is_evicted_lost_or_beyond_its_capacity() -> None:
    index = GlobalPrefixIndex(("remote", "local"), 16, 2)
    index.record("local", ["a", "b", "c"])
    assert index.lengths(["a"])["local"] == 0
    index.evicted("local", ["c"])
    assert index.lengths(["a", "b", "c"])["local"] == 32
    index.forget("local")
    assert index.lengths(["a", "b"])["local"] == 0


def test_the_index_refuses_unknown_clusters_and_checkpoints() -> None:
    index = GlobalPrefixIndex(("remote",), 16)
    for wrong in (
        lambda: index.record("other", ["a"]),
        lambda: index.record("remote", ["a"], [2]),
        lambda: GlobalPrefixIndex((), 16),
    ):
        with pytest.raises(BadInput):
            wrong()


def test_names_of_a_trace_are_equal_exactly_where_prompts_are() -> None:
    def named(*ids: int) -> list[object]:
        request = TraceRequest(
            output_tokens=1, arrival_s=0.0, prompt_tokens=512 * len(ids), prefix_block_ids=ids, prefix_block_tokens=512
        )
        return list(prefix_names(request, 512))

    assert named(1, 2, 3)[:2] == named(1, 2, 4)[:2]
    assert named(1, 2, 3)[2] != named(1, 2, 4)[2]
    assert named(9, 2)[1] != named(1, 2)[1]  # the same block after another beginning is another prefix
    with pytest.raises(BadInput, match="blocks of 512"):
        prefix_names(
            TraceRequest(
                output_tokens=1, arrival_s=0.0, prompt_tokens=512, prefix_block_ids=(1,), prefix_block_tokens=512
            ),
            16,
        )
    lone = TraceRequest(output_tokens=1, arrival_s=0.0, prompt_tokens=512)
    shared = TraceRequest(output_tokens=1, arrival_s=0.0, prompt_tokens=512, prefix_id="p", prefix_tokens=40)
    ids = TraceRequest(output_tokens=1, arrival_s=0.0, prompt_token_ids=tuple(range(33)))
    assert (prefix_names(lone, 16), len(prefix_names(shared, 16)), len(prefix_names(ids, 16))) == ([], 2, 2)
