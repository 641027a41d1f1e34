"""The schema of a card: what a published system claims, as data.

A card is one TOML file. It states facts of the paper and never a result of ours.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from heliograph.errors import CardError

__all__ = ["FAMILIES", "Card", "ClaimCard", "parse_card", "read_card"]

Family = Literal["agents", "serving", "graphs", "lm", "ranks", "chips"]
FAMILIES: tuple[str, ...] = ("agents", "serving", "graphs", "lm", "ranks", "chips")

Slug = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9]*(_[a-z0-9]+)*$", max_length=40)]
Sentence = Annotated[str, Meta(min_length=10, max_length=600)]
Short = Annotated[str, Meta(min_length=1, max_length=300)]


class ClaimCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One headline claim, with the figure exactly as its source gives it.

    Attributes:
        id: stable name, used by checks and in JSON output.
        statement: the claim in our words, one sentence.
        metric: what the figure measures, in the field's terms.
        paper: the figure as its source gives it, units included; ``"not stated"`` where no source gives one.
        value: the same figure as a number, where one number says it.
        unit: unit of ``value`` (``"x"`` for a ratio, ``"%"`` for a share).
        direction: ``higher`` or ``lower`` is better, or ``exact`` for a claim that is true or false.
        baseline: what the figure is compared with, with its figure if given.
        workload: model, data and hardware behind the figure.
        source: where the figure stands: ``paper``, ``code`` (official repository), or ``ours`` for a property that the
            component claims by itself.
    """

    id: Slug
    statement: Sentence
    metric: Short
    paper: Short
    direction: Literal["higher", "lower", "exact"]
    baseline: Short
    workload: Short
    value: float | None = None
    unit: str = ""
    source: Literal["paper", "code", "ours"] = "paper"


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is claimed by one system.

    Attributes:
        slug: name on the command line and of the module.
        title: the paper's title.
        family: which engine it plugs into.
        year: of the first public version.
        arxiv: arXiv id, or ``""``.
        code: official code as ``owner/name`` on GitHub, or ``""``.
        code_licence: licence of the official code, or ``""`` when unknown.
        status: ``working`` once component, check, tests, docs page and a recorded run exist.
        summary: two sentences in our words: what passes messages to what, and for whom.
        keywords: terms of the field that a reader may search for.
        public: importable names.
        check_package: import path of the module that holds the check; empty for the built-in systems.
        claims: the headline claims.
    """

    slug: Slug
    title: Short
    family: Family
    year: Annotated[int, Meta(ge=1990, le=2100)]
    arxiv: Annotated[str, Meta(pattern=r"^(\d{4}\.\d{4,5})?$")] = ""
    code: Annotated[str, Meta(pattern=r"^([\w.-]+/[\w.-]+)?$")] = ""
    code_licence: str = ""
    status: Literal["planned", "working"]
    summary: Annotated[str, Meta(min_length=40, max_length=700)]
    keywords: Annotated[tuple[Short, ...], Meta(min_length=3)]
    public: tuple[str, ...] = ()
    check_package: str = ""
    claims: Annotated[tuple[ClaimCard, ...], Meta(min_length=1)]

    def claim(self, claim_id: str) -> ClaimCard:
        """The claim with this id.

        Raises:
            KeyError: no claim has it.
        """
        for claim in self.claims:
            if claim.id == claim_id:
                return claim
        raise KeyError(f"{self.slug} has no claim {claim_id!r}; it has {', '.join(c.id for c in self.claims)}")


def parse_card(text: str, where: str) -> Card:
    """Parses and validates the TOML text of a card.

    Args:
        text: the file's contents.
        where: how to name the file in an error.

    Raises:
        CardError: not TOML, or a field is missing, unknown or out of range; names file, field and reason.
    """
    try:
        card = msgspec.convert(tomllib.loads(text), Card)
    except tomllib.TOMLDecodeError as error:
        raise CardError(f"{where}: not valid TOML: {error}") from None
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        field = path.rstrip("`").lstrip(".") or "top level"
        raise CardError(f"{where}: field {field}: {reason}") from None
    seen: set[str] = set()
    for index, claim in enumerate(card.claims):
        if claim.id in seen:
            raise CardError(f"{where}: field claims[{index}].id: {claim.id!r} is used twice")
        seen.add(claim.id)
    return card


def read_card(path: Path) -> Card:
    """Reads one card file; the file must be named after its slug.

    Raises:
        CardError: unreadable, invalid, or named otherwise than its slug.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: cannot be read: {error}") from None
    card = parse_card(text, path.name)
    if card.slug != path.stem:
        raise CardError(f"{path.name}: field slug: is {card.slug!r}; the file's name says {path.stem!r}")
    return card
