import numpy as np
import pytest

from heliograph.errors import BadInput
from heliograph.workload import LogNormalLengths, arrival_times, generate_requests

MANY = 20_000


@pytest.mark.parametrize(("kind", "variation"), [("poisson", 1.0), ("bursty", 3.0), ("even", 0.0)])
def test_gaps_have_the_asked_mean_and_variation(kind, variation):
    gaps = np.diff(arrival_times(MANY, 5.0, kind=kind, variation=3.0, seed=1))
    assert gaps.mean() == pytest.approx(0.2, rel=0.08)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.08, abs=1e-6)


def test_the_same_seed_gives_the_same_trace_and_another_seed_another():
    first, again, other = (generate_requests(50, 2.0, prompt=LogNormalLengths(5, 1), seed=s) for s in (3, 3, 4))
    assert first.requests == again.requests
    assert first.requests != other.requests


def test_lengths_keep_their_range_mean_and_tail():
    lengths = LogNormalLengths(9.90, 1.00, 128, 131072)
    drawn = lengths.sample(MANY, seed=2)
    assert drawn.min() >= 128
    assert drawn.max() <= 131072
    assert drawn.mean() == pytest.approx(lengths.mean(), rel=0.03)
    assert (drawn > 19_400).mean() == pytest.approx(lengths.share_above(19_400), abs=0.01)
    assert lengths.share_above(19_400) == pytest.approx(0.496, abs=0.003)  # arXiv:2604.15039
    above = drawn[drawn > 19_400]
    assert above.mean() == pytest.approx(lengths.mean_between(19_400, 131072), rel=0.03)


def test_a_fixed_length_is_always_that_length():
    fixed = LogNormalLengths.fixed(77)
    assert set(fixed.sample(10)) == {77}
    assert fixed.mean() == pytest.approx(77)


def test_requests_share_the_prefixes_that_were_asked_for():
    trace = generate_requests(200, 5.0, prompt=64, output=8, prefixes=3, prefix_tokens=32)
    assert {r.prefix_id for r in trace} == {"prefix-0", "prefix-1", "prefix-2"}
    assert {r.prefix_tokens for r in trace} == {32}


@pytest.mark.parametrize(
    "call",
    [
        lambda: arrival_times(0, 1.0),
        lambda: arrival_times(3, 0.0),
        lambda: arrival_times(3, 1.0, kind="odd"),
        lambda: LogNormalLengths(5, -1),
        lambda: LogNormalLengths(0.0, 0.1, 10**6, 10**6 + 1),
        lambda: generate_requests(3, 1.0, prefixes=2),
        lambda: generate_requests(3, 1.0, prompt=0),
    ],
)
def test_sizes_out_of_range_are_refused(call):
    with pytest.raises(BadInput):
        call()
