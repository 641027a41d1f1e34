"""Admission without eviction: the promise, and the engine under it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.lm.core.sampling import SamplingParams
from heliograph.serving.core.blocks import BlockPool, KVManager
from heliograph.serving.core.cluster import RoundRobin
from heliograph.serving.core.cost_model import CostModel
from heliograph.serving.core.request import Request
from heliograph.serving.core.scheduler import SchedulerConfig
from heliograph.serving.core.sim_cluster import InstanceSpec, SimCluster, SimRequest
from heliograph.serving.xllm.admission import ZeroEvictAdmission

COST = CostModel(0.01, 0.001, 0.0, 0.002, 0.0)


def run(rows, blocks, admission, *, block_size=4, prefix_cache=False, sequences=8):
    limits = SchedulerConfig(max_tokens_per_step=64, max_sequences=sequences)
    spec = InstanceSpec("one", "mix", blocks, block_size, limits, prefix_cache)
    cluster = SimCluster([spec], RoundRobin(), COST, admission=admission)
    requests = [
        SimRequest(f"r{n}", at, range(1000 * (n % share), 1000 * (n % share) + prompt), output)
        for n, (at, prompt, output, share) in enumerate(rows)
    ]
    report = cluster.run(requests)
    cluster.check()
    return report


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 0.5), st.integers(1, 30), st.integers(1, 20), st.integers(1, 3)), min_size=1, max_size=14
    ),
    st.integers(14, 40),
    st.booleans(),
)
def test_nothing_is_evicted_while_answers_keep_to_the_limit(rows, blocks, prefix_cache):
    report = run(rows, blocks, lambda: ZeroEvictAdmission(20), prefix_cache=prefix_cache)
    assert report.preemptions == 0
    assert all(r.completed for r in report.records)


def test_the_same_load_evicts_without_it():
    rows = [(0.0, 12, 20, 1)] * 10
    assert run(rows, 20, None).preemptions > 0
    assert run(rows, 20, lambda: ZeroEvictAdmission(20)).preemptions == 0


def test_answers_beyond_the_limit_end_all_the_same():
    report = run([(0.0, 12, 40, 1)] * 6, 30, lambda: ZeroEvictAdmission(2))
    assert all(r.completed for r in report.records)


def test_with_blocks_for_everybody_nobody_waits():
    rows = [(0.0, 12, 20, 1)] * 8
    report = run(rows, 200, lambda: ZeroEvictAdmission(20))
    assert report.records == run(rows, 200, None).records


def kv_with(running, blocks=10):
    kv = KVManager(BlockPool(blocks, 4), prefix_cache=False)
    for request in running:
        assert kv.start(request, (), len(request.tokens))
        request.num_computed = len(request.tokens)
    return kv


def test_the_lowest_point_is_counted_by_hand():
    running = Request("a", [1] * 8, SamplingParams(max_tokens=8))
    kv = kv_with([running])  # 2 of 10 blocks; grows to 16 tokens and the one ahead: 5
    candidate = Request("b", [1] * 4, SamplingParams(max_tokens=4))  # 8 tokens and the one ahead: 3
    # after 5 steps both are there: 8 + 5 = 13 tokens are 4 blocks, 4 + 5 = 9 are 3; then b ends and a grows to 5
    assert ZeroEvictAdmission(256).lowest(candidate, [running], kv) == 10 - (4 + 3)


def test_somebody_alone_always_starts():
    request = Request("a", [1] * 30, SamplingParams(max_tokens=200))
    assert ZeroEvictAdmission(256).allow(request, [], kv_with([]))


def test_a_limit_below_one_is_refused():
    with pytest.raises(BadInput, match="at least 1"):
        ZeroEvictAdmission(0)
