"""The systems that this installation knows: built-in cards, plug-ins' cards, and the results committed beside them.

A plug-in is a package with an entry point in the group ``heliograph.systems``. The entry point names a module; the
plug-in's cards are the ``*.toml`` files in the folder ``cards`` beside that module.
"""

from __future__ import annotations

import difflib
import functools
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from heliograph.catalog.card import FAMILIES, Card, read_card
from heliograph.errors import CardError, UnknownSystem

__all__ = ["CatalogWarning", "check_ref", "committed_results", "get_card", "load_cards", "nearest_slugs"]

PLUGIN_GROUP = "heliograph.systems"
_HERE = Path(__file__).parent


class CatalogWarning(UserWarning):
    """Something beside the built-in cards could not be used and was left out."""


@functools.cache
def load_cards() -> dict[str, Card]:
    """Every card by slug: the built-in ones by family (in the order of ``FAMILIES``) and slug, then those of plug-ins.

    Read once a process and shared: treat the answer as read-only. A plug-in's entry point that fails to load, or a
    card of it that is invalid, is left out with a :class:`CatalogWarning`.

    Raises:
        CardError: a built-in card is invalid.
    """
    built_in = [read_card(path) for path in (_HERE / "cards").glob("*.toml")]
    built_in.sort(key=lambda card: (FAMILIES.index(card.family), card.slug))
    cards = {card.slug: card for card in built_in}
    for entry in sorted(metadata.entry_points(group=PLUGIN_GROUP), key=lambda entry: (entry.name, entry.value)):
        for path in _plugin_card_files(entry):
            try:
                card = _read_plugin_card(path, cards)
            except Exception as error:
                _warn_about(entry, error)
            else:
                cards[card.slug] = card
    return cards


def get_card(slug: str) -> Card:
    """The card of this system.

    Raises:
        UnknownSystem: no system has this slug; the message names the nearest ones.
    """
    cards = load_cards()
    if slug in cards:
        return cards[slug]
    nearest = nearest_slugs(slug, cards.values())
    hint = f"did you mean {', '.join(nearest)}?" if nearest else "`heliograph systems` lists them all."
    raise UnknownSystem(f"no system is called {_shortened(slug)!r}; {hint}")


def nearest_slugs(slug: str, cards: Iterable[Card], limit: int = 3) -> list[str]:
    """Slugs that a user may have meant, best first: close in spelling to the slug or to a word of the title.

    >>> nearest_slugs("gnn-plus", load_cards().values())[0]
    'gnn_plus'
    """
    wanted = _folded(_shortened(slug))
    if not wanted:
        return []
    scores: dict[str, float] = {}
    for card in cards:
        by_slug = _closeness(wanted, _folded(card.slug))
        words = [word for word in map(_folded, card.title.split()) if len(word) >= 4]
        by_title = max((_closeness(wanted, word) for word in words), default=0.0)
        scores[card.slug] = max(by_slug, 0.95 * by_title)
    ranked = sorted(scores, key=lambda name: -scores[name])
    return [name for name in ranked if scores[name] >= max(0.6, scores[ranked[0]] - 0.25)][:limit]


def check_ref(card: Card) -> str:
    """Where the card's check is, as ``module:attribute``."""
    return f"{card.check_package or f'heliograph.checks.{card.family}.{card.slug}'}:CHECK"


def committed_results(slug: str) -> list[dict[str, Any]]:
    """Results of the system that are shipped with heliograph, by file name; empty where there are none.

    They stand in ``docs/results`` of a source checkout, and in the package once it is installed.

    Returns:
        One dictionary a file, with the keys ``header``, ``findings`` and ``controls``; the trials are left out. A
        file that is not such a result is skipped with a :class:`CatalogWarning`.
    """
    files: dict[str, Path] = {}
    for folder in _result_folders():
        if folder.is_dir():
            for path in folder.iterdir():
                if path.name.startswith(f"{slug}-") and path.suffix == ".json":
                    files.setdefault(path.name, path)
    results = []
    for name in sorted(files):
        try:
            results.append(_read_result(files[name]))
        except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            warnings.warn(f"{files[name]} was skipped: not a result: {error}", CatalogWarning, stacklevel=2)
    return results


class _Result(msgspec.Struct):
    header: dict[str, Any]
    findings: list[dict[str, Any]]
    controls: list[dict[str, Any]]


def _read_result(path: Path) -> dict[str, Any]:
    result = msgspec.json.decode(path.read_bytes(), type=_Result)  # undeclared keys, such as trials, are not built
    machine = result.header.get("machine")
    if not isinstance(machine, dict):
        raise ValueError("header.machine is missing")
    for where, holder, key in (
        ("header", result.header, "preset"),
        ("header", result.header, "started_at"),
        ("header.machine", machine, "label"),
    ):
        if not isinstance(holder.get(key), str):
            raise ValueError(f"{where}.{key} is missing or not text")
    return msgspec.structs.asdict(result)


def _result_folders() -> Iterator[Path]:
    source, root = _HERE.parents[1], _HERE.parents[2]
    if source.name == "src" and (root / "pyproject.toml").is_file():
        yield root / "docs" / "results"
    yield _HERE / "results"


def _plugin_card_files(entry: metadata.EntryPoint) -> list[Path]:
    try:
        module = entry.load()
        file = getattr(module, "__file__", None)
        if file is None:
            raise CardError(f"{entry.value} is not a module with a file, so no folder of cards lies beside it")
        folder = Path(file).parent / "cards"
        paths = sorted(folder.glob("*.toml"))
        if not paths:
            raise CardError(f"{folder} holds no card (*.toml)")
    except (Exception, SystemExit) as error:  # an import runs foreign code, which may raise anything
        _warn_about(entry, error)
        return []
    return paths


def _read_plugin_card(path: Path, known: Mapping[str, Card]) -> Card:
    card = read_card(path)
    if not card.check_package:
        raise CardError(f"{path.name}: field check_package: must name the module that holds the check")
    if card.slug in known:
        raise CardError(f"{path.name}: field slug: {card.slug!r} exists already; a plug-in needs a slug of its own")
    return card


def _warn_about(entry: metadata.EntryPoint, error: BaseException) -> None:
    reason = str(error) if isinstance(error, CardError) else f"{type(error).__name__}: {error}"
    warnings.warn(
        f"entry point {entry.name!r} of {PLUGIN_GROUP} ({entry.value}): {reason}", CatalogWarning, stacklevel=3
    )


def _closeness(wanted: str, word: str) -> float:
    """From 0 to 1: difflib's ratio, and at least 0.8 where ``wanted`` begins the word."""
    matcher = difflib.SequenceMatcher(None, wanted, word, autojunk=False)
    if matcher.real_quick_ratio() < 0.3:  # difflib's cheap upper bound
        return 0.0
    ratio = matcher.ratio()
    return max(ratio, 0.8 + 0.1 * ratio) if len(wanted) >= 3 and word.startswith(wanted) else ratio


def _folded(text: str) -> str:
    """Lower case without separators and punctuation."""
    return re.sub(r"[\W_]+", "", text.casefold())


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
