"""``heliograph new``: card, component, check and tests of a new system, in a form that runs at once.

The scaffold is a small real system (a segment sum by binning) with a true check, so that its author replaces working
parts one by one instead of filling holes.
"""

from __future__ import annotations

import keyword
import re
import shutil
import tempfile
from pathlib import Path
from string import Template

from heliograph.catalog.card import FAMILIES
from heliograph.catalog.registry import load_cards
from heliograph.errors import BadInput

__all__ = ["scaffold"]

TEMPLATES = Path(__file__).parent / "templates" / "system"


def scaffold(slug: str, family: str, folder: Path) -> list[Path]:
    """Writes a new system, all of it or nothing.

    In a source checkout of heliograph its files join the family; anywhere else they make a plug-in package, which
    ``pip install -e .`` registers.

    Args:
        slug: the new system's name.
        family: where it belongs.
        folder: a checkout of heliograph, or where the plug-in's folder is to be made.

    Returns:
        The files written.

    Raises:
        BadInput: a bad or taken slug, an unknown family, a folder that cannot be written, or a file that exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", slug) or keyword.iskeyword(slug) or len(slug) > 40:
        raise BadInput(f"{slug!r} is no slug: lower-case letters, digits and single underscores, for example my_system")
    if slug in load_cards():
        raise BadInput(f"the catalog has a system {slug} already")
    if family not in FAMILIES:
        raise BadInput(f"unknown family {family!r}; choose one of {', '.join(FAMILIES)}")
    inside = (folder / "src" / "heliograph" / "catalog").is_dir()
    root = folder if inside else folder / f"heliograph-{slug.replace('_', '-')}"
    files = _render(slug, family, root, inside=inside)
    for name in files:
        if (root / name).exists():
            raise BadInput(f"{root / name} exists already; nothing was written")
    return _write_all(root, files)


def _render(slug: str, family: str, root: Path, *, inside: bool) -> dict[str, str]:
    """File names, relative to the root, and their contents."""
    component = f"heliograph.{family}.{slug}" if inside else f"heliograph_{slug}.component"
    own_import = (
        f"from {component} import binned_segment_sum\n"  # where it sorts: first inside heliograph, last in a plug-in
    )
    names = {
        "import_inside": own_import if inside else "",
        "import_plugin": "" if inside else own_import,
        "slug": slug,
        "family": family,
        "camel": "".join(part.capitalize() for part in slug.split("_")),
        "component": component,
        "check": f"heliograph.checks.{family}.{slug}" if inside else f"heliograph_{slug}.check",
        "check_package": "" if inside else f"heliograph_{slug}.check",
        "package": f"heliograph-{slug.replace('_', '-')}",
        "module": f"heliograph_{slug}",
    }
    places = {
        "card.toml": f"src/heliograph/catalog/cards/{slug}.toml"
        if inside
        else f"src/heliograph_{slug}/cards/{slug}.toml",
        "component.py": f"src/heliograph/{family}/{slug}.py" if inside else f"src/heliograph_{slug}/component.py",
        "check.py": f"src/heliograph/checks/{family}/{slug}.py" if inside else f"src/heliograph_{slug}/check.py",
        "test.py": f"tests/{family}/test_{slug}.py" if inside else f"tests/test_{slug}.py",
    }
    if inside:
        packages = {f"src/heliograph/{family}": "Systems", f"src/heliograph/checks/{family}": "Checks"}
        places_of_packages = {
            f"{p}/__init__.py": f'"""{what} of the family {family}."""\n' for p, what in packages.items()
        }
        places_of_packages[f"tests/{family}/__init__.py"] = ""
        extra = {name: text for name, text in places_of_packages.items() if not (root / name).exists()}
    else:
        places |= {"pyproject.toml": "pyproject.toml"}
        extra = {f"src/heliograph_{slug}/__init__.py": f'"""The system {slug}, a plug-in of heliograph."""\n'}
    rendered = {
        place: Template((TEMPLATES / f"{template}.tmpl").read_text(encoding="utf-8")).substitute(names)
        for template, place in places.items()
    }
    return rendered | extra


def _write_all(root: Path, files: dict[str, str]) -> list[Path]:
    written: list[Path] = []
    try:
        with tempfile.TemporaryDirectory() as staging:
            for name, text in files.items():
                path = Path(staging) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            for name in files:
                target = root / name
                if target.exists():
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path(staging) / name, target)
                written.append(target)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise BadInput(f"cannot write into {root}: {error.strerror}; nothing was written") from None
    return written
