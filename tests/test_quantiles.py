import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.quantiles import CensoredQuantiles, QuantileState

values = st.lists(st.floats(0.02, 1e6), min_size=1, max_size=60)


@given(values, st.floats(0.01, 0.99))
def test_without_censoring_it_is_the_empirical_quantile_to_the_relative_error(samples, share):
    sketch = CensoredQuantiles()
    for sample in samples:
        sketch.observe(sample)
    exact = sorted(samples)[min(len(samples) - 1, math.ceil(share * len(samples) - 1e-9) - 1)]
    assert sketch.quantile(share) == pytest.approx(exact, rel=0.041)


def kaplan_meier(samples, cut, at):
    """The textbook sum over single samples; a finish at the time of a cut comes first."""
    survival = 1.0
    order = sorted(zip(samples, cut, strict=True), key=lambda pair: (pair[0], pair[1]))
    for place, (sample, censored) in enumerate(order):
        if sample <= at and not censored:
            survival *= 1 - 1 / (len(order) - place)
    return 1 - survival


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=40))
def test_with_censoring_it_is_the_product_limit_estimate(rows):
    sketch = CensoredQuantiles(relative_error=0.01)
    samples, cut = [2.0**power for power, _ in rows], [censored for _, censored in rows]
    for sample, censored in zip(samples, cut, strict=True):
        sketch.observe(sample, censored=censored)
    at = np.array([2.0**power * 1.2 for power in range(13)])
    assert sketch.cdf(at) == pytest.approx([kaplan_meier(samples, cut, limit) for limit in at])


def test_calls_given_up_do_not_pull_the_quantile_down():
    honest, naive = CensoredQuantiles(), CensoredQuantiles()
    for _ in range(50):
        for sketch in (honest, naive):
            sketch.observe(100.0)
        honest.observe(10.0, censored=True)
        naive.observe(10.0)
    assert naive.quantile(0.5) == pytest.approx(10, rel=0.05)
    assert honest.quantile(0.5) == pytest.approx(100, rel=0.05)


def test_the_share_below_the_last_finish_is_all_that_finished():
    sketch = CensoredQuantiles()
    for value in (3.0, 77.0, 100.0):
        sketch.observe(value)
    assert sketch.cdf(np.array([sketch.last_seen()]))[0] == pytest.approx(1.0)


def test_a_quantile_beyond_the_last_finish_is_infinite_and_the_last_finish_is_known():
    sketch = CensoredQuantiles()
    for _ in range(9):
        sketch.observe(5.0)
    sketch.observe(50.0, censored=True)
    assert sketch.quantile(0.89) == pytest.approx(5, rel=0.05)
    assert sketch.quantile(0.95) == math.inf
    assert sketch.last_seen() == pytest.approx(5, rel=0.05)
    assert sketch.censored_share == pytest.approx(0.1)


def test_the_finishing_part_has_quantiles_of_its_own():
    sketch = CensoredQuantiles()
    for value in (1.0, 2.0, 4.0, 8.0):
        sketch.observe(value)
    for _ in range(4):
        sketch.observe(16.0, censored=True)
    assert sketch.quantile(0.75) == math.inf
    assert sketch.finishing_quantile(0.75) == pytest.approx(4.0, rel=0.05)


def test_after_a_half_life_an_old_sample_weighs_half():
    by_count, by_time = CensoredQuantiles(half_life_samples=1), CensoredQuantiles(half_life_time=60)
    for sketch in (by_count, by_time):
        sketch.observe(1.0, now=0.0)
        sketch.observe(100.0, now=60.0)
        assert sketch.weight == pytest.approx(1.5)
        assert sketch.cdf(np.array([2.0]))[0] == pytest.approx(1 / 3)


def test_a_tool_that_became_slow_is_slow_after_some_half_lives():
    sketch = CensoredQuantiles(half_life_samples=20)
    for _ in range(5000):
        sketch.observe(10.0)
    for _ in range(100):
        sketch.observe(1000.0)
    assert sketch.quantile(0.5) == pytest.approx(1000, rel=0.05)


def test_very_long_streams_keep_finite_weights():
    sketch = CensoredQuantiles(half_life_samples=1)
    for _ in range(3000):
        sketch.observe(3.0)
    assert sketch.weight == pytest.approx(2.0)
    sketch.observe(3.0, now=0.0)
    assert sketch.quantile(0.5) == pytest.approx(3.0, rel=0.05)


def test_after_a_very_long_silence_only_the_new_sample_counts():
    sketch = CensoredQuantiles(half_life_time=1.0)
    sketch.observe(1.0, now=0.0)
    sketch.observe(9.0, now=1e6)
    assert sketch.weight == pytest.approx(1.0)
    assert sketch.quantile(0.5) == pytest.approx(9.0, rel=0.05)


@given(values, values)
def test_merging_is_the_same_as_seeing_both_streams(first, second):
    left, right, both = CensoredQuantiles(), CensoredQuantiles(), CensoredQuantiles()
    for sample in first:
        left.observe(sample)
        both.observe(sample)
    for sample in second:
        right.observe(sample)
        both.observe(sample)
    left.merge(right)
    assert left.quantile(0.5) == both.quantile(0.5)
    assert left.count == both.count


def test_a_snapshot_answers_as_the_original():
    sketch = CensoredQuantiles(half_life_samples=7)
    for sample in range(1, 40):
        sketch.observe(float(sample), censored=sample % 5 == 0)
    again = CensoredQuantiles.from_state(sketch.state(), half_life_samples=7)
    for share in (0.1, 0.5, 0.9):
        assert again.quantile(share) == sketch.quantile(share)
    assert again.weight == pytest.approx(sketch.weight)


def test_without_samples_everything_is_nan():
    sketch = CensoredQuantiles()
    assert math.isnan(sketch.quantile(0.5))
    assert math.isnan(sketch.last_seen())
    assert np.isnan(sketch.cdf(np.array([1.0]))).all()


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_sample_that_cannot_be_is_refused(value):
    with pytest.raises(BadInput, match="finite and 0 or more"):
        CensoredQuantiles().observe(value)


@pytest.mark.parametrize(
    "options",
    [{"low": 0}, {"low": 2, "high": 1}, {"relative_error": 0}, {"half_life_samples": 0}, {"half_life_time": math.inf}],
)
def test_settings_that_cannot_be_are_refused(options):
    with pytest.raises(BadInput):
        CensoredQuantiles(**options)


def test_shares_outside_and_foreign_snapshots_are_refused():
    sketch = CensoredQuantiles()
    with pytest.raises(BadInput, match=r"lies in \(0, 1\)"):
        sketch.quantile(1.0)
    with pytest.raises(BadInput, match="same range"):
        sketch.merge(CensoredQuantiles(high=10))
    with pytest.raises(BadInput, match="weights"):
        CensoredQuantiles.from_state(QuantileState(0.01, 1e7, 0.02, (1.0,), (0.0,), 1))
