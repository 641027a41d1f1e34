"""Every deliberate error has one base, an exit code, and survives the way between processes."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from heliograph import errors
from heliograph.errors import (
    BadInput,
    CardError,
    HeliographError,
    MemoryEstimateError,
    MissingData,
    MissingExtra,
    ResumeMismatch,
    StoreError,
    UnknownSystem,
)

EXAMPLES = [
    HeliographError("something"),
    BadInput("the file has no header"),
    CardError("card.toml: field year: is missing"),
    UnknownSystem("no system is called 'x'"),
    MissingExtra("torch", "graphs"),
    MissingData("molsets", "pip install --no-deps molsets"),
    MemoryEstimateError("needs 90 GiB, the budget is 4 GiB"),
    StoreError("the store is locked"),
    ResumeMismatch("numpy was 2.0, is 2.1"),
]


def test_every_public_error_is_listed_and_derives_from_the_base() -> None:
    defined = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert defined == set(errors.__all__) == {type(example).__name__ for example in EXAMPLES}
    assert all(issubclass(getattr(errors, name), HeliographError) for name in defined)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (BadInput, ValueError),
        (UnknownSystem, ValueError),
        (MissingExtra, ImportError),
        (MemoryEstimateError, MemoryError),
    ],
)
def test_errors_are_caught_by_the_built_in_class_that_fits(error: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(error, builtin)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_bad_input_exits_with_2(error: HeliographError) -> None:
    assert error.exit_code == 2


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("travel", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_an_error_survives_pickling_and_copying(error: HeliographError, travel: object) -> None:
    arrived = travel(error)  # type: ignore[operator]
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)


def test_a_missing_extra_holds_the_one_install_line() -> None:
    error = MissingExtra("torch", "graphs")
    assert str(error) == "torch is not installed. Install it with: pip install 'heliograph[graphs]'"
    assert (error.package, error.extra) == ("torch", "graphs")
