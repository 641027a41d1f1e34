"""Looking things up costs no heavy import."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "torch_geometric", "lightning", "pandas", "sklearn", "altair", "sqlalchemy", "scipy.stats")


@pytest.mark.parametrize(
    "statement",
    [
        "import heliograph",
        "import heliograph.catalog.registry",
        "import heliograph.catalog.registry as r; r.load_cards(); r.nearest_slugs('x', r.load_cards().values())",
        "import heliograph.catalog.registry as r, heliograph.catalog.search as s; s.search('overlap', r.load_cards())",
        "import heliograph.graphs",
        "import heliograph.graphs; dir(heliograph.graphs)",
        "import heliograph.clock, heliograph.devices, heliograph.errors, heliograph.random, heliograph.statistics",
        "import heliograph.random as r; r.CounterRng(1).at().normal(3)",
        "import heliograph.devices as d; d.this_machine(); d.package_versions()",
    ],
)
def test_nothing_heavy_is_imported(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_a_missing_torch_is_answered_with_the_install_line() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import heliograph.graphs as graphs\n"
        "try:\n    graphs.FloydNet\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'heliograph[graphs]'" in done.stdout, done.stderr


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import heliograph.graphs as graphs

    with pytest.raises(AttributeError, match="no attribute 'FloidNet'"):
        graphs.FloidNet  # noqa: B018
