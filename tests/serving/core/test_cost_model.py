"""The formula of step times fits what follows it, and refuses what does not."""

import pytest

from heliograph.errors import BadInput
from heliograph.serving.core.cost_model import BadFit, CostModel, StepShape, measured_shapes

TRUE = CostModel(0.01, 1e-4, 2e-7, 5e-4, 1e-6)


def test_a_fit_recovers_the_coefficients_of_exact_times() -> None:
    found = CostModel.fit(measured_shapes(TRUE.seconds))
    for own, wanted in zip(found.coefficients, TRUE.coefficients, strict=True):
        assert own == pytest.approx(wanted, rel=1e-3)
    assert found.median_error < 1e-6


def test_times_without_any_law_are_refused() -> None:
    shapes = measured_shapes(TRUE.seconds)
    wild = [(shape, 10.0 ** (-(n % 5))) for n, (shape, _) in enumerate(shapes)]
    with pytest.raises(BadFit, match="more than"):
        CostModel.fit(wild)


def test_too_few_or_impossible_measurements_are_refused() -> None:
    with pytest.raises(BadInput, match="at least 8"):
        CostModel.fit([(StepShape(decodes=(1,)), 0.1)])
    with pytest.raises(BadInput, match="negative"):
        CostModel(-1, 0, 0, 0, 0)


def test_more_work_never_takes_less_time() -> None:
    found = CostModel.fit(measured_shapes(TRUE.seconds))
    assert found.prefill_seconds(1) <= found.prefill_seconds(100) <= found.prefill_seconds(1000)
    assert found.decode_seconds(0, 0) == 0
    assert found.decode_seconds(1, 10) <= found.decode_seconds(8, 10) <= found.decode_seconds(8, 1000)


def test_a_saved_model_is_read_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    TRUE.save(tmp_path / "cost.json")
    assert CostModel.load(tmp_path / "cost.json") == TRUE
    (tmp_path / "cost.json").write_text("{}")
    with pytest.raises(BadInput, match="no cost model"):
        CostModel.load(tmp_path / "cost.json")
