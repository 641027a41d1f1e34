from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from heliograph.catalog.card import read_card
from heliograph.errors import BadInput
from heliograph.trials.scaffold import scaffold


def test_plugin_runs_its_check_and_its_tests_as_they_are(tmp_path: Path) -> None:
    scaffold("my_system", "graphs", tmp_path)
    root = tmp_path / "heliograph-my-system"
    assert read_card(root / "src" / "heliograph_my_system" / "cards" / "my_system.toml").slug == "my_system"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    env = {"PYTHONPATH": str(root / "src"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, env=env, timeout=200)
    assert result.returncode == 0, result.stdout + result.stderr


def test_files_in_a_checkout_join_the_family(tmp_path: Path) -> None:
    (tmp_path / "src" / "heliograph" / "catalog").mkdir(parents=True)
    written = {str(p.relative_to(tmp_path)) for p in scaffold("my_system", "graphs", tmp_path)}
    assert {
        "src/heliograph/catalog/cards/my_system.toml",
        "src/heliograph/graphs/my_system.py",
        "src/heliograph/checks/graphs/my_system.py",
        "tests/graphs/test_my_system.py",
    } <= written


@pytest.mark.parametrize("slug", ["My", "1x", "a__b", "class", "a-b", "", "x" * 41, "floydnet"])
def test_bad_or_taken_slug_is_refused_and_nothing_is_written(tmp_path: Path, slug: str) -> None:
    with pytest.raises(BadInput):
        scaffold(slug, "graphs", tmp_path)
    assert not list(tmp_path.iterdir())


def test_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    scaffold("my_system", "graphs", tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(BadInput, match="exists already"):
        scaffold("my_system", "graphs", tmp_path)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        scaffold("my_system", "graphs", tmp_path / "file")


def test_scaffold_compiles(tmp_path: Path) -> None:
    for path in scaffold("other_one", "ranks", tmp_path):
        if path.suffix == ".py":
            compile(path.read_text(), str(path), "exec")
    assert importlib.util.find_spec("heliograph_other_one") is None
