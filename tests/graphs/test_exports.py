"""The package exports lazily and names the install line when torch is missing."""

import subprocess
import sys

import heliograph.graphs


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_importing_the_package_imports_no_torch():
    result = run("import sys, heliograph.graphs, heliograph.data; assert 'torch' not in sys.modules")
    assert result.returncode == 0, result.stderr


def test_the_data_modules_need_no_torch():
    code = "import sys; sys.modules['torch'] = None\n" + "".join(
        f"import heliograph.data.{name}\n" for name in ("wl_pairs", "counting", "algorithms")
    )
    result = run(code + "import heliograph.graphs.core.expressivity")
    assert result.returncode == 0, result.stderr


def test_without_torch_the_install_line_is_named():
    code = "import sys; sys.modules['torch'] = None\nfrom heliograph.graphs import FloydNet"
    result = run(code)
    assert "MissingExtra" in result.stderr
    assert "pip install 'heliograph[graphs]'" in result.stderr


def test_every_public_name_resolves():
    for name in heliograph.graphs.__all__:
        assert getattr(heliograph.graphs, name).__name__ == name
    assert set(heliograph.graphs.__all__) <= set(dir(heliograph.graphs))
