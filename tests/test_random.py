"""Noise is the same however work is divided, and in numpy as in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import stats

from heliograph.random import CounterRng, CounterStream, philox4x32

seeds = st.integers(0, 2**64 - 1)
words32 = st.integers(0, 2**32 - 1)
streams = st.builds(
    lambda seed, step, item, layer: CounterRng(seed).at(step, item, layer),
    seeds, words32, words32, st.integers(0, 2**16 - 1),
)  # fmt: skip

Draw = Callable[..., Any]
DRAWS: dict[str, Draw] = {
    "bits": lambda stream, *where, **on: stream.bits(*where, **on),
    "uniform": lambda stream, *where, **on: stream.uniform(*where, **on),
    "normal": lambda stream, *where, **on: stream.normal(*where, **on),
    "rademacher": lambda stream, *where, **on: stream.rademacher(*where, **on),
    "integers": lambda stream, *where, **on: stream.integers(-7, 1000, *where, **on),
    "integers of the widest range": lambda stream, *where, **on: stream.integers(-(2**31), 2**31, *where, **on),
}


# --- the bijection ---

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    torch = pytest.importorskip("torch")
    assert philox4x32(counter, key) == expected  # type: ignore[arg-type]
    in_numpy = philox4x32(tuple(np.full(3, word, np.int64) for word in counter), key)  # type: ignore[arg-type]
    in_torch = philox4x32(tuple(torch.full((3,), word, dtype=torch.int64) for word in counter), key)
    for words in (in_numpy, in_torch):
        assert [word.tolist() for word in words] == [[word] * 3 for word in expected]


@given(st.tuples(words32, words32, words32, words32), st.tuples(words32, words32))
def test_philox_of_arrays_equals_that_of_integers(counter: tuple[int, int, int, int], key: tuple[int, int]) -> None:
    arrays = philox4x32(tuple(np.array([word], np.int64) for word in counter), key)  # type: ignore[arg-type]
    assert tuple(int(word[0]) for word in arrays) == philox4x32(counter, key)


@given(streams, st.integers(0, 2**45 - 1))
def test_a_pair_of_elements_is_one_block_of_the_bijection(stream: CounterStream, block: int) -> None:
    counter = (block & ONES, (block >> 32) | (stream.layer << 16), stream.step, stream.item)
    w0, w1, w2, w3 = philox4x32(counter, (stream.seed & ONES, stream.seed >> 32))
    words = [int(word) % 2**64 for word in stream.bits(2, start=2 * block)]
    assert words == [w0 | w1 << 32, w2 | w3 << 32]


# --- division of work ---


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@settings(max_examples=40, deadline=None)
@given(stream=streams, start=st.integers(0, 2**46 - 200), parts=st.lists(st.integers(0, 20), min_size=1, max_size=8))
def test_any_partition_of_a_tensor_sees_the_same_numbers(
    draw: Draw, stream: CounterStream, start: int, parts: list[int]
) -> None:
    whole = draw(stream, sum(parts), start)
    ends = np.cumsum([0, *parts])
    pieces = [draw(stream, count, start + int(at)) for count, at in zip(parts, ends, strict=False)]
    assert_array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@settings(max_examples=40, deadline=None)
@given(stream=streams, start=st.integers(0, 2**46 - 3000), count=st.sampled_from([0, 1, 2, 7, 2500]))
def test_numpy_and_torch_draw_equal_bits(draw: Draw, stream: CounterStream, start: int, count: int) -> None:
    torch = pytest.importorskip("torch")
    in_numpy = draw(stream, count, start)
    in_torch = draw(stream, count, start, device=torch.device("cpu")).numpy()
    assert in_numpy.dtype == in_torch.dtype
    assert_array_equal(in_numpy.view(np.int64), in_torch.view(np.int64))


@pytest.mark.parametrize("integer", [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64])
def test_narrow_numpy_integers_name_the_same_stream(integer: type[np.integer[Any]]) -> None:
    plain = CounterRng(5).at(step=7, item=9, layer=100).bits(4, start=11)
    narrow = CounterRng(integer(5)).at(integer(7), integer(9), integer(100)).bits(integer(4), start=integer(11))
    assert_array_equal(plain, narrow)


def test_a_large_layer_in_a_narrow_type_does_not_wrap() -> None:
    assert_array_equal(CounterRng(1).at(layer=np.int32(40_000)).bits(4), CounterRng(1).at(layer=40_000).bits(4))


# --- independence ---


@given(seeds, st.tuples(words32, words32, st.integers(0, 2**16 - 1)), st.tuples(words32, words32, st.integers(0, 9)))
def test_different_streams_share_no_word(seed: int, one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    words = [set(CounterRng(seed).at(*name).bits(64).tolist()) for name in {one, other}]
    assert len(set.union(*words)) == 64 * len(words)


def test_neighbouring_streams_are_uncorrelated() -> None:
    count = 4096
    names = [(0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 1, 0), (0, 2, 0), (0, 0, 1), (0, 0, 2), (1, 1, 1)]
    rows = np.stack(
        [CounterRng(seed).at(*name).normal(count) for seed in (0, 1, 2**32) for name in names]
    )  # 24 streams
    correlation = np.corrcoef(rows)[np.triu_indices(len(rows), k=1)]
    assert np.abs(correlation).max() < 5 / np.sqrt(count)  # 276 pairs: 5 deviations are a chance of 2e-4
    assert abs((correlation**2).mean() * count - 1) < 0.35


def test_elements_of_a_stream_are_uncorrelated() -> None:
    row = CounterRng(3).at().normal(20_001)
    for lag in (1, 2, 3):
        assert abs(np.corrcoef(row[:-lag], row[lag:])[0, 1]) < 5 / np.sqrt(20_000)


# --- distributions ---


def test_uniform_lies_strictly_between_0_and_1_and_is_uniform() -> None:
    row = CounterRng(11).at().uniform(50_000)
    assert row.min() > 0
    assert row.max() < 1
    assert stats.kstest(row, "uniform").pvalue > 1e-4


@given(streams)
def test_uniform_is_an_odd_multiple_of_2_to_the_minus_53(stream: CounterStream) -> None:
    scaled = stream.uniform(64) * 2.0**53
    assert_array_equal(scaled % 2, np.ones(64))


def test_normal_has_the_moments_of_the_standard_normal() -> None:
    count = 200_000
    row = CounterRng(12).at().normal(count)
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((row**power).mean() - expected) < 4 * np.sqrt(variance / count)
    assert stats.kstest(row, "norm").pvalue > 1e-4


def test_normal_is_the_inverse_distribution_of_uniform() -> None:
    stream = CounterRng(13).at()
    uniform, normal = stream.uniform(200_000), stream.normal(200_000)
    np.testing.assert_allclose(normal, stats.norm.ppf(uniform), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_the_inverse_distribution_is_exact_in_the_far_tails_and_at_the_joints(library: str) -> None:
    from heliograph.random import _inverse_normal

    tails = np.concatenate([2.0 ** -np.arange(1, 54), 1 - 2.0 ** -np.arange(2, 54)])
    joint = np.exp(-25.0)  # where the last two approximations meet
    joints = [c * (1 + k * 2e-16) for c in (0.075, 0.925, joint, 0.5) for k in range(-3, 4)]
    p = np.unique(np.concatenate([tails, joints]))
    ours = _inverse_normal(p) if library == "numpy" else _in_torch(_inverse_normal, p)
    np.testing.assert_allclose(ours, stats.norm.ppf(p), rtol=1e-13, atol=1e-15)


def _in_torch(function: Callable[[Any], Any], values: np.ndarray) -> np.ndarray:
    torch = pytest.importorskip("torch")
    result: np.ndarray = function(torch.from_numpy(values)).numpy()
    return result


def test_rademacher_gives_both_signs_equally() -> None:
    row = CounterRng(14).at().rademacher(40_000)
    assert set(row.tolist()) == {-1.0, 1.0}
    assert abs(row.sum()) < 4 * np.sqrt(40_000)


@given(streams, st.integers(-(2**62), 2**62), st.integers(1, 2**32))
def test_integers_stay_in_their_range(stream: CounterStream, low: int, width: int) -> None:
    row = stream.integers(low, low + width, 32)
    assert low <= row.min()
    assert row.max() < low + width


@pytest.mark.parametrize(("low", "high"), [(-(2**63), -(2**63) + 3), (2**63 - 3, 2**63)])
def test_integers_reach_both_ends_of_the_64_bit_range(low: int, high: int) -> None:
    assert set(CounterRng(0).at().integers(low, high, 100).tolist()) == set(range(low, high))


def test_integers_are_uniform() -> None:
    counts = np.bincount(CounterRng(15).at().integers(0, 10, 50_000), minlength=10)
    assert stats.chisquare(counts).pvalue > 1e-4


# --- refusals ---


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        CounterRng(seed)


def test_a_seed_that_is_no_integer_is_refused() -> None:
    with pytest.raises(TypeError):
        CounterRng(1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["step", "item", "layer"])
@pytest.mark.parametrize("value", [-1, 2**32])
def test_a_coordinate_out_of_range_is_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=name):
        CounterRng(0).at(**{name: value})


@pytest.mark.parametrize(("count", "start"), [(-1, 0), (1, -1), (1, 2**46), (2, 2**46 - 1)])
def test_elements_out_of_range_are_refused(count: int, start: int) -> None:
    with pytest.raises(ValueError, match="elements"):
        CounterRng(0).at().bits(count, start)


@pytest.mark.parametrize(
    ("low", "high"), [(3, 3), (3, 2), (0, 2**32 + 1), (2**63 - 1, 2**63 + 1), (-(2**63) - 1, -(2**63) + 1)]
)
def test_an_impossible_range_is_refused(low: int, high: int) -> None:
    with pytest.raises(ValueError, match=r"got \["):
        CounterRng(0).at().integers(low, high, 1)
