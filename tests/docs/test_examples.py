"""What the documentation shows works: Python blocks and examples run, command lines parse, links and pages exist."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

from heliograph import cli
from heliograph.catalog.card import FAMILIES
from heliograph.catalog.registry import load_cards

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
INVENTED = {"my_system", "my_plugin"}  # slugs of the page on adding a system
READING = ("systems", "show", "doctor", "runs")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(language: str) -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if match[1] == language:
                yield Block(page, text.count("\n", 0, match.start()) + 2, language, match[2])


def command_lines() -> list[str]:
    """Every ``$ heliograph ...`` of the pages, without the comment or the redirection behind it."""
    shown = {
        re.split(r"\s+[#>]\s", line)[0].removeprefix("$ ").strip()
        for block in blocks("console")
        for line in block.text.splitlines()
        if line.startswith("$ heliograph ")
    }
    return sorted(shown)


def is_cheap(line: str) -> bool:
    words = shlex.split(line)[1:]
    if INVENTED & set(words) or {"--store", "--import"} & set(words):
        return False
    return words[0] in READING or words[0] in ("--version", "--help") or "--dry-run" in words


def run_here(line: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """``docs/hooks.py``, which mkdocs loads by its path."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("block", list(blocks("python")), ids=lambda block: block.name)
def test_python_block_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec")
    exec(code, {"__name__": "__docs__"})


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.py")), ids=lambda path: path.name)
def test_example_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize("line", command_lines())
def test_command_line_parses(line: str) -> None:
    root = typer.main.get_command(cli.app)
    name, *arguments = shlex.split(line)[1:]
    if name.startswith("-"):
        assert any(name in parameter.opts for parameter in root.params) or name == "--help"
        return
    context = root.commands[name].make_context(name, arguments)
    slugs = {context.params.get("slug")} | set(context.params.get("slugs") or ())
    assert slugs - {None} <= set(load_cards()) | INVENTED
    assert context.params.get("family") in (None, *FAMILIES)
    assert context.params.get("preset") in (None, "smoke", "laptop", "gpu")


@pytest.mark.parametrize("line", [line for line in command_lines() if is_cheap(line)])
def test_cheap_command_line_runs(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = (0, 1) if line.startswith("heliograph doctor") else (0,)  # 1: something on this machine is broken
    assert run_here(line, monkeypatch) in expected


@pytest.mark.parametrize("invented", sorted(INVENTED))
def test_the_scaffold_has_the_files_that_the_page_names(
    invented: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inside = invented == "my_system"
    for folder in ("src/heliograph/catalog", "src/heliograph/graphs", "src/heliograph/checks/graphs") if inside else ():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "__init__.py").touch()
    assert run_here("heliograph new scaffolded --family graphs", monkeypatch) == 0
    root = tmp_path if inside else tmp_path / "heliograph-scaffolded"
    page = (ROOT / "docs" / "adding-a-system.md").read_text(encoding="utf-8")
    named = [name for name in re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE) if invented in name]
    assert len(named) >= 4
    assert [name for name in named if not (root / name.replace(invented, "scaffolded")).is_file()] == []


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_links_of_the_pages_outside_docs_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (ROOT / re.sub(r"\s", "", link)).exists()]
    assert missing == []


def test_every_system_and_family_has_a_page_in_the_navigation(hooks: ModuleType) -> None:
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    shown = set(_leaves([hooks.expand(entry) for entry in config["nav"]]))
    made = set(hooks.generated_pages())
    assert {f"systems/{card.slug}.md" for card in hooks.built_in_cards()} <= shown
    assert {f"families/{family}.md" for family in FAMILIES} <= shown
    assert [page for page in shown - made if not (ROOT / "docs" / page).is_file()] == []
    assert made <= shown


def test_every_built_system_has_notes() -> None:
    built = {path.stem for family in FAMILIES for path in (ROOT / "src/heliograph/checks" / family).glob("*.py")}
    slugs = {slug for slug, card in load_cards().items() if not card.check_package}
    assert {slug for slug in built & slugs if not (ROOT / "docs" / "notes" / f"{slug}.md").is_file()} == set()


def test_a_page_shows_committed_results_or_says_that_there_are_none(hooks: ModuleType, monkeypatch: Any) -> None:
    finding = {
        "claim": "expressive_power", "verdict": "fails", "declared": False, "ours": 0.5, "kind": "exact", "unit": "",
        "threshold": None, "paper": "", "blocks": 1, "provenance": "measured", "note": "1 of 2 | cases",
        "cannot_show": "x",
    }  # fmt: skip
    record = {
        "header": {"preset": "laptop", "started_at": "2026-01-02T00:00:00", "machine": {"label": "2 cores of a test"}},
        "findings": [finding],
        "controls": [{"name": "twins", "passed": False, "note": "outside"}],
    }
    card = load_cards()["floydnet"]
    monkeypatch.setattr(hooks, "committed_results", lambda _: [])
    assert "Not checked yet" in hooks.system_page(card)
    monkeypatch.setattr(hooks, "committed_results", lambda _: [record])
    page = hooks.system_page(card)
    assert "laptop on 2 cores of a test" in page
    assert "| ✗ fails | 50 % of cases agree |" in page
    assert "twins misbehaved" in page
    assert "1 of 2 \\| cases" in page


def test_docstrings_lose_their_rest_markup(hooks: ModuleType) -> None:
    docstring = "Sums.\n\n.. math:: a =\n    b\n\nSee :class:`~heliograph.errors.BadInput` and :math:`x`.\n"
    assert hooks.as_markdown(docstring) == (
        "Sums.\n\n```tex\na = b\n```\n\nSee `heliograph.errors.BadInput` and `x`.\n"
    )


def _leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from _leaves(entry)
