"""What several test folders share: a store of one's own, and a plug-in that carries a synthetic check."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a script, and inherited by commands
    signal.signal(signal.SIGINT, signal.default_int_handler)

CARD = """
slug = "synthetic"
title = "Synthetic: a system whose answers are known"
family = "graphs"
year = 2026
status = "working"
summary = "A system that exists for tests alone and measures numbers that it draws by itself. Nobody needs it."
keywords = ["synthetic", "test", "noise"]
check_package = "synthetic_plugin.check"

[[claims]]
id = "better_score"
statement = "The system's score exceeds the baseline's."
metric = "score"
paper = "2.5 points"
value = 2.5
direction = "higher"
baseline = "nothing"
workload = "noise"

[[claims]]
id = "agreement"
statement = "The system agrees with itself."
metric = "cases"
paper = "all"
direction = "exact"
baseline = "itself"
workload = "none"
"""


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's store."""
    monkeypatch.setenv("HELIOGRAPH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HELIOGRAPH_STORE", raising=False)


@pytest.fixture
def plugin_env(tmp_path: Path) -> dict[str, str]:
    """An environment in which the system ``synthetic`` is installed; ``HELIOGRAPH_TEST_CHECK`` picks its check."""
    folder = tmp_path / "plugin"
    package = folder / "synthetic_plugin"
    (package / "cards").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "cards" / "synthetic.toml").write_text(CARD)
    (package / "check.py").write_text(
        "import os\nfrom tests.trials import synthetic\n"
        "CHECK = getattr(synthetic, os.environ.get('HELIOGRAPH_TEST_CHECK', 'CHECK'))\n"
    )
    info = folder / "synthetic_plugin-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: synthetic-plugin\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[heliograph.systems]\nsynthetic = synthetic_plugin\n")
    marks = tmp_path / "marks"
    marks.mkdir()
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT), str(ROOT / "src")]),
        "HELIOGRAPH_TEST_MARKS": str(marks),
        "COLUMNS": "160",
    }


@pytest.fixture
def heliograph() -> list[str]:
    """The command line, as a command."""
    return [sys.executable, "-m", "heliograph.cli"]
