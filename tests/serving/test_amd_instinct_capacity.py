import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.serving.amd_instinct import CapacityModel, EffectiveRates, studied_model
from heliograph.serving.amd_instinct.capacity import fitted_saturation, saturation_point
from heliograph.workload import DeviceSpec, LlmShape
from tests.workload.test_shape import SMOLLM2

RATES = EffectiveRates(1e10, 5e10, 0.002)
SMALL = CapacityModel(LlmShape.from_config(SMOLLM2), RATES)


@given(c=st.integers(1, 2000), context=st.integers(0, 4000), prompt=st.integers(0, 2000))
def test_the_rate_rises_with_concurrency_and_never_doubles_beyond_it(c, context, prompt):
    once, twice = (SMALL.rate(n, context, prompt, 16) for n in (c, 2 * c))
    assert once <= twice * (1 + 1e-9)
    assert twice <= 2 * once * (1 + 1e-9)


@given(context=st.integers(0, 4000), more=st.integers(1, 4000))
def test_longer_contexts_are_never_faster(context, more):
    assert SMALL.rate(16, context + more) <= SMALL.rate(16, context)


def test_longer_prompts_saturate_a_computing_server_earlier():
    assert SMALL.saturation(320, 512, 32) < SMALL.saturation(80, 64, 32)


def test_at_the_balance_caches_move_as_many_bytes_as_weights():
    model = CapacityModel(studied_model("llama31_405b"), EffectiveRates.from_sheet(DeviceSpec.mi325x()), 8)
    at = model.balance(2560)
    assert at * model.shape.kv_bytes(2560, 2.0, 8) == pytest.approx(model.shape.step_weight_bytes(at) / 8, rel=1e-3)
    assert model.balance(5120) < at


def test_sparse_models_read_more_weights_as_concurrency_rises():
    sparse = CapacityModel(studied_model("deepseek_v32"), EffectiveRates.from_sheet(DeviceSpec.mi325x()), 8)
    assert sparse.step_s(64, 0) > 3 * sparse.step_s(1, 0)


def test_calibration_makes_the_first_step_last_what_was_measured():
    assert SMALL.calibrated(0.08, 100).step_s(1, 100) == pytest.approx(0.08)
    bare = CapacityModel(SMALL.shape, EffectiveRates(1e10, 5e10))
    assert SMALL.calibrated(1e-9, 100).step_s(1, 100) == pytest.approx(bare.step_s(1, 100))


@given(half=st.floats(2, 100))
def test_the_measured_point_of_a_known_curve_is_found(half):
    # c / (half + c): doubling gains 5 % at c = 9.5 x half
    rates = {2**k: 1000 * 2**k / (half + 2**k) for k in range(14)}
    assert saturation_point(rates) == pytest.approx(9.5 * half, rel=0.15)


@given(half=st.floats(2, 100), top=st.floats(1, 1e6))
def test_the_fit_finds_the_point_of_a_known_curve_from_few_levels(half, top):
    rates = {2**k: top * 2**k / (half + 2**k) for k in range(6)}
    assert fitted_saturation(rates) == pytest.approx(9.5 * half, rel=1e-6)


def test_the_fit_knows_a_server_that_gains_nothing_or_everything():
    assert fitted_saturation({1: 10.0, 2: 10.0, 4: 10.0}) == 1.0
    assert fitted_saturation({1: 10.0, 2: 20.0, 4: 40.0}) > 1e6
    with pytest.raises(BadInput):
        fitted_saturation({1: 10.0, 2: 20.0})


def test_a_curve_that_does_not_bend_has_no_point():
    assert saturation_point({1: 10.0, 2: 20.0, 4: 40.0}) == math.inf


@pytest.mark.parametrize("rates", [{1: 1.0, 2: 2.0}, {1: 1.0, 2: 0.0, 4: 1.0}])
def test_too_few_or_impossible_rates_are_refused(rates):
    with pytest.raises(BadInput):
        saturation_point(rates)


def test_rates_that_are_not_positive_are_refused():
    with pytest.raises(BadInput):
        EffectiveRates(0, 1)
    with pytest.raises(BadInput):
        SMALL.rate(0, 10)
