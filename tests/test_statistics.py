"""Intervals agree with scipy.stats, and cover what they promise to cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from heliograph.statistics import (
    Interval,
    bootstrap_mean,
    clopper_pearson,
    mcnemar_difference,
    mcnemar_p_value,
    paired_t,
    rule_of_three,
    simultaneous_level,
    smallest_detectable_effect,
    wilson,
)

levels = st.sampled_from([0.5, 0.8, 0.9, 0.9375, 0.95, 0.99, 0.999])
counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
effects = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30)


def outcomes(both: int, wins: int, losses: int, neither: int) -> tuple[list[bool], list[bool]]:
    first = [True] * (both + wins) + [False] * (losses + neither)
    second = [True] * both + [False] * wins + [True] * losses + [False] * neither
    return first, second


# --- the mean of paired effects ---


@settings(deadline=None)
@given(effects, levels)
def test_paired_t_equals_scipys_interval(values: list[float], level: float) -> None:
    assume(np.std(values) > 1e-9 * max(1.0, *map(abs, values)))
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(level)
    ours = paired_t(values, level)
    assert ours.count == len(values)
    np.testing.assert_allclose((ours.low, ours.high), theirs, rtol=1e-9, atol=1e-6)


@given(effects, levels, st.floats(-1e6, 1e6))
def test_paired_t_moves_with_the_effects(values: list[float], level: float, by: float) -> None:
    ours, moved = paired_t(values, level).shifted(by), paired_t([v + by for v in values], level)
    for end in ("estimate", "low", "high"):
        assert getattr(ours, end) == pytest.approx(getattr(moved, end), rel=1e-6, abs=1e-4)


def test_equal_effects_give_an_interval_of_no_width() -> None:
    assert paired_t([2.5] * 5) == Interval(2.5, 2.5, 2.5, 0.95, 5)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [1.0, math.inf], [[1.0, 2.0]]])
def test_paired_t_refuses_what_has_no_interval(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"block|finite"):
        paired_t(values)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 95.0, math.nan])
def test_a_level_outside_0_and_1_is_refused(level: float) -> None:
    for call in (
        lambda: paired_t([1.0, 2.0], level),
        lambda: clopper_pearson(1, 2, level),
        lambda: wilson(1, 2, level),
        lambda: rule_of_three(3, level),
        lambda: mcnemar_difference([True], [False], level),
        lambda: bootstrap_mean([1.0] * 20, level),
        lambda: simultaneous_level(level, 2),
    ):
        with pytest.raises(ValueError, match="level"):
            call()


def within_binomial_error(hits: int, draws: int, level: float) -> bool:
    """Whether a count of hits is consistent with the level, at four deviations."""
    return abs(hits - draws * level) < 4 * math.sqrt(draws * level * (1 - level))


@pytest.mark.parametrize(("blocks", "level"), [(2, 0.9), (5, 0.95), (8, 0.99)])
def test_paired_t_covers_the_mean_as_often_as_promised(blocks: int, level: float) -> None:
    rng, draws = np.random.default_rng(2024 + blocks), 3000
    intervals = [paired_t(row, level) for row in rng.normal(0.3, 2.0, (draws, blocks))]
    assert within_binomial_error(sum(i.low <= 0.3 <= i.high for i in intervals), draws, level)


def test_simultaneous_intervals_hold_together_as_often_as_promised() -> None:
    rng, draws, claims = np.random.default_rng(7), 2000, 4
    level = simultaneous_level(0.9, claims)
    assert level == pytest.approx(0.975)
    rows = rng.normal(size=(draws, claims, 5))
    together = sum(all((i := paired_t(row, level)).low <= 0 <= i.high for row in claim_rows) for claim_rows in rows)
    assert within_binomial_error(together, draws, level**claims)  # independent claims
    assert level**claims >= 0.9


def test_one_interval_keeps_its_level_and_none_is_refused() -> None:
    assert simultaneous_level(0.95, 1) == pytest.approx(0.95)
    with pytest.raises(ValueError, match="at least one"):
        simultaneous_level(0.95, 0)


@pytest.mark.parametrize(("blocks", "power"), [(5, 0.8), (8, 0.9), (20, 0.8)])
def test_the_smallest_detectable_effect_is_detected_about_as_often_as_said(blocks: int, power: float) -> None:
    effect = smallest_detectable_effect(1.5, blocks, 0.95, power)
    rng = np.random.default_rng(blocks)
    seen = sum(paired_t(row).low > 0 for row in rng.normal(effect, 1.5, (1500, blocks)))
    assert seen / 1500 == pytest.approx(power, abs=0.05)


def test_one_block_detects_nothing() -> None:
    assert smallest_detectable_effect(1.0, 1) == math.inf


# --- proportions ---


@settings(deadline=None)
@given(counts, levels)
def test_proportions_equal_scipys_intervals(count: tuple[int, int], level: float) -> None:
    test = stats.binomtest(*count)
    for ours, method in ((clopper_pearson, "exact"), (wilson, "wilson")):
        interval, theirs = ours(*count, level), test.proportion_ci(level, method)
        np.testing.assert_allclose((interval.low, interval.high), theirs, rtol=1e-8, atol=1e-12)
        assert interval.low <= interval.estimate <= interval.high


@pytest.mark.parametrize("interval", [clopper_pearson, wilson])
@pytest.mark.parametrize(("successes", "trials"), [(-1, 3), (4, 3), (0, 0)])
def test_impossible_counts_are_refused(interval: object, successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        interval(successes, trials)  # type: ignore[operator]


def test_clopper_pearson_covers_at_least_as_often_as_promised() -> None:
    n, level = 30, 0.95
    for p in (0.01, 0.1, 0.37, 0.5, 0.9):
        chance = stats.binom.pmf(np.arange(n + 1), n, p)
        covered = [clopper_pearson(k, n, level).low <= p <= clopper_pearson(k, n, level).high for k in range(n + 1)]
        assert chance[covered].sum() >= level


@given(st.integers(1, 10**6), levels)
def test_the_rule_of_three_is_the_rate_at_which_no_event_is_just_likely_enough(trials: int, level: float) -> None:
    bound = rule_of_three(trials, level)
    assert trials * math.log1p(-bound) == pytest.approx(math.log1p(-level), rel=1e-6)
    assert bound == pytest.approx(clopper_pearson(0, trials, 2 * level - 1).high if level > 0.5 else bound, rel=1e-6)


def test_the_rule_of_three_is_about_three_over_the_trials() -> None:
    assert rule_of_three(1000) == pytest.approx(3 / 1000, rel=0.01)
    with pytest.raises(ValueError, match="trial"):
        rule_of_three(0)


# --- paired successes ---


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemars_p_value_equals_scipys_binomial_test(wins: int, losses: int) -> None:
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert mcnemar_p_value(wins, losses) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_p_value(wins, losses) == mcnemar_p_value(losses, wins)


def test_negative_counts_of_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        mcnemar_p_value(-1, 1)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), levels)
def test_the_difference_excludes_0_exactly_when_mcnemar_rejects(
    both: int, wins: int, losses: int, neither: int, level: float
) -> None:
    assume(both + wins + losses + neither > 0)
    interval = mcnemar_difference(*outcomes(both, wins, losses, neither), level)
    assert (interval.low > 0 or interval.high < 0) == (mcnemar_p_value(wins, losses) < 1 - level)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), levels)
def test_the_difference_lies_in_its_interval_and_turns_with_the_pair(
    both: int, wins: int, losses: int, neither: int, level: float
) -> None:
    assume(both + wins + losses + neither > 0)
    first, second = outcomes(both, wins, losses, neither)
    interval, turned = mcnemar_difference(first, second, level), mcnemar_difference(second, first, level)
    assert interval.estimate == pytest.approx(np.mean(first) - np.mean(second))
    assert -1 <= interval.low <= interval.estimate <= interval.high <= 1
    assert (turned.low, turned.high) == pytest.approx((-interval.high, -interval.low), abs=1e-12)


def test_without_discordant_pairs_the_rule_of_three_bounds_the_difference() -> None:
    interval = mcnemar_difference([True] * 70 + [False] * 30, [True] * 70 + [False] * 30, 0.95)
    bound = rule_of_three(100, 0.975)
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((0.0, -bound, bound))


@pytest.mark.parametrize(
    ("pairs", "wins", "losses"),
    [
        (60, 0.0, 0.0),
        (100, 0.1, 0.0),
        (100, 0.1, 0.02),
        (200, 0.05, 0.05),
        (50, 0.3, 0.1),
        (30, 0.5, 0.4),
        (300, 0.01, 0.0),
    ],
)
def test_the_difference_is_covered_at_least_as_often_as_promised(pairs: int, wins: float, losses: float) -> None:
    rng, level, draws = np.random.default_rng(pairs), 0.95, 600
    hits = 0
    for won, lost, _ in rng.multinomial(pairs, [wins, losses, 1 - wins - losses], size=draws):
        interval = mcnemar_difference(*outcomes(0, won, lost, pairs - won - lost), level)
        hits += interval.low <= wins - losses <= interval.high
    assert hits >= draws * level - 4 * math.sqrt(draws * level * (1 - level))


@pytest.mark.parametrize(("first", "second"), [([], []), ([True], [True, False]), ([[True]], [[True]])])
def test_outcomes_that_are_not_paired_are_refused(first: list[bool], second: list[bool]) -> None:
    with pytest.raises(ValueError, match="paired"):
        mcnemar_difference(first, second)


# --- the bootstrap ---


@pytest.mark.parametrize("blocks", [0, 1, 5, 19])
def test_the_bootstrap_is_refused_below_20_blocks(blocks: int) -> None:
    with pytest.raises(ValueError, match=f"20 blocks or more; got {blocks}"):
        bootstrap_mean([1.0] * blocks)


@pytest.mark.parametrize("values", [[math.nan] * 20, [[1.0]] * 20])
def test_the_bootstrap_refuses_what_is_no_row_of_numbers(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"finite|one row"):
        bootstrap_mean(values)


def test_the_bootstrap_of_many_normal_blocks_is_close_to_students_interval() -> None:
    values = np.random.default_rng(5).normal(1.0, 1.0, 200).tolist()
    ours, student = bootstrap_mean(values), paired_t(values)
    assert ours.estimate == student.estimate
    assert (ours.low, ours.high) == pytest.approx((student.low, student.high), abs=0.03)


def test_the_bootstrap_is_repeated_by_its_seed() -> None:
    values = np.random.default_rng(6).exponential(size=25).tolist()
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


# --- start-up ---


def test_importing_statistics_does_not_import_scipy_stats() -> None:
    import subprocess
    import sys

    code = "import sys, heliograph.statistics; sys.exit('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
