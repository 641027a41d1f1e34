import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.serving.amd_instinct import ablate_flag
from heliograph.serving.amd_instinct.ablation import run_order


@given(values=st.integers(2, 5), repeats=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_value_has_the_same_mean_place_in_each_repeat(values, repeats, seed):
    for row in run_order(values, repeats, seed):
        places = {value: [i for i, v in enumerate(row) if v == value] for value in range(values)}
        assert all(sum(p) == 2 * values - 1 and len(p) == 2 for p in places.values())


def test_a_drift_is_not_taken_for_an_effect():
    time = iter(range(1000))
    result = ablate_flag("flag", ("off", "on"), lambda _: 1000.0 * 0.99 ** next(time))
    assert result.compare().ratio.estimate == pytest.approx(1.0)
    assert not result.compare().mean_differs


def test_a_real_gain_is_found_through_the_same_drift():
    time = iter(range(1000))
    result = ablate_flag("flag", ("off", "on"), lambda v: (1.05 if v == "on" else 1.0) * 1000 * 0.999 ** next(time))
    assert result.compare().mean_differs
    assert "reference" in result.table()


def test_the_order_is_seeded():
    orders = [ablate_flag("f", (1, 2, 3), float, repeats=4, seed=seed).order for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
    ("values", "repeats", "measure"),
    [((1,), 5, float), ((1, 2), 1, float), ((1, 0), 2, float), ((1, 2), 2, lambda _: float("nan"))],
)
def test_what_cannot_be_compared_is_refused(values, repeats, measure):
    with pytest.raises(BadInput):
        ablate_flag("f", values, measure, repeats=repeats)
