"""Looking things up costs no heavy import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from heliograph.trials.plan import load_check

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


@pytest.mark.parametrize("command", [["--help"], ["check", "--help"], ["systems"], ["show", "floydnet"]])
def test_commands_that_measure_nothing_import_nothing_heavy(command: list[str], tmp_path: Path) -> None:
    heavy = [name for name in HEAVY if name != "sqlalchemy" or command[0] != "show"]  # it reads the store of runs
    heavy += ["scipy", "sklearn", "matplotlib", "networkx"]
    code = (
        f"import sys\nfrom heliograph.cli import app\napp({command!r}, standalone_mode=False)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    home = {**os.environ, "HELIOGRAPH_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


LAYERS = ("floydnet", "gnn_plus", "graph_mamba", "grit")
"""Checks some of whose arms are made of PyTorch Geometric's layers."""


@pytest.mark.parametrize("slug", [*LAYERS, "mesh_transformer", "surface_predecoder"])
def test_planning_a_check_of_graphs_leaves_what_only_its_trials_need(slug: str) -> None:
    heavy = ("torch_geometric", "lightning", "torchmetrics", "pandas", "sklearn", "scipy.stats")
    code = (
        "import sys\nfrom heliograph.trials.session import CheckOptions, plan_systems\n"
        f"plans, _ = plan_systems([{slug!r}], CheckOptions('laptop'))\nassert plans[0].trials\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("slug", LAYERS)
def test_layers_are_imported_once_before_trials_are_forked(slug: str) -> None:
    assert "torch_geometric.nn" in load_check(f"heliograph.checks.graphs.{slug}:CHECK").preload


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
