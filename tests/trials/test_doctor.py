from __future__ import annotations

import importlib.metadata

import pytest

from heliograph.trials import doctor


def test_absent_data_wheels_are_named_with_the_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: iter(() if name == "molsets" else (name,)))
    found = {line.what: line for line in doctor.diagnose("sqlite:///:memory:")}["data"]
    assert found.state == "missing"
    assert found.remedy == "pip install --no-deps molsets"


def test_extras_name_modules_that_the_project_asks_for() -> None:
    assert {"graphs", "lm", "molecules"} <= set(doctor.EXTRAS)
    assert "lightning" in doctor.EXTRAS["graphs"]
