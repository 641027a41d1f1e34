"""A card says what its author did wrong: file, field and reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from heliograph.catalog.card import FAMILIES, Card, parse_card, read_card
from heliograph.errors import CardError

GOOD = """
slug = "shout"
title = "Shout: Telling Everybody at Once"
family = "ranks"
year = 2024
status = "planned"
summary = "Ranks shout their gradients across the room. For people with few ranks and loud voices."
keywords = ["shouting", "broadcast", "room"]

[[claims]]
id = "speed_up"
statement = "Shouting is faster than whispering."
metric = "time, ratio"
paper = "2x"
value = 2
unit = "x"
direction = "higher"
baseline = "whispering"
workload = "one room"

[[claims]]
id = "reach"
statement = "Everybody hears the message."
metric = "share of listeners"
paper = "100 %"
direction = "exact"
baseline = "a letter"
workload = "one room"
"""


def test_a_good_card_keeps_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "shout.toml"
    path.write_text(GOOD, encoding="utf-8")
    card = read_card(path)
    assert (card.slug, card.family, card.year, card.arxiv) == ("shout", "ranks", 2024, "")
    assert [claim.id for claim in card.claims] == ["speed_up", "reach"]
    assert card.claim("speed_up").value == 2.0
    assert card.claim("reach").value is None


def test_an_unknown_claim_is_answered_with_the_known_ones() -> None:
    card = parse_card(GOOD, "shout.toml")
    with pytest.raises(KeyError, match="speed_up, reach"):
        card.claim("volume")


@pytest.mark.parametrize(
    ("before", "after", "field", "reason"),
    [
        ('family = "ranks"', 'family = "rank"', "family", "Invalid enum value 'rank'"),
        ('status = "planned"', 'status = "done"', "status", "Invalid enum value 'done'"),
        ('direction = "exact"', 'direction = "up"', "claims[1].direction", "Invalid enum value 'up'"),
        ('title = "Shout: Telling Everybody at Once"', "", "title", "missing required field"),
        ('metric = "share of listeners"', "", "claims[1]", "missing required field `metric`"),
        ("year = 2024", 'year = 2024\nvenue = "a room"', "venue", "unknown field"),
        ('unit = "x"', 'unit = "x"\nunits = "x"', "claims[0]", "unknown field `units`"),
        ("year = 2024", 'year = "2024"', "year", "Expected `int`, got `str`"),
        ("year = 2024", "year = 1066", "year", ">= 1990"),
        ("value = 2", 'value = "2"', "claims[0].value", "got `str`"),
        ('title = "Shout: Telling Everybody at Once"', "title = 7", "title", "Expected `str`, got `int`"),
        ('keywords = ["shouting", "broadcast", "room"]', 'keywords = ["room"]', "keywords", "length >= 3"),
        ('keywords = ["shouting", "broadcast", "room"]', 'keywords = ["a", "b", 3]', "keywords[2]", "got `int`"),
        ('slug = "shout"', 'slug = "Shout!"', "slug", "regex"),
        ("year = 2024", 'year = 2024\narxiv = "cs/0101"', "arxiv", "regex"),
        ("year = 2024", 'year = 2024\ncode = "https://example.org"', "code", "regex"),
        ('id = "reach"', 'id = "speed_up"', "claims[1].id", "'speed_up' is used twice"),
    ],
)
def test_a_bad_card_is_refused_with_file_field_and_reason(before: str, after: str, field: str, reason: str) -> None:
    assert before in GOOD
    with pytest.raises(CardError) as caught:
        parse_card(GOOD.replace(before, after), "shout.toml")
    message = str(caught.value)
    assert message.startswith("shout.toml: field ")
    assert field in message
    assert reason in message


def test_a_card_without_claims_is_refused() -> None:
    with pytest.raises(CardError, match=r"shout\.toml: field top level: .*`claims`"):
        parse_card(GOOD.split("[[claims]]")[0], "shout.toml")


def test_text_that_is_not_toml_is_refused_with_its_line() -> None:
    with pytest.raises(CardError, match=r"shout\.toml: not valid TOML: .*line 2"):
        parse_card('slug = "shout"\ntitle = "Shout\n', "shout.toml")


def test_a_file_named_otherwise_than_its_slug_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "whisper.toml"
    path.write_text(GOOD, encoding="utf-8")
    with pytest.raises(CardError, match=r"whisper\.toml: field slug: is 'shout'.*'whisper'"):
        read_card(path)


def test_a_file_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "shout.toml"
    path.write_bytes(GOOD.replace("Shout:", "Sh\xf6ut:").encode("latin-1"))
    with pytest.raises(CardError, match=r"shout\.toml: cannot be read: .*utf-8"):
        read_card(path)


def test_an_absent_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"shout\.toml: cannot be read"):
        read_card(tmp_path / "shout.toml")


def test_the_order_of_families_lists_every_family_of_the_schema() -> None:
    for family in FAMILIES:
        assert parse_card(GOOD.replace('"ranks"', f'"{family}"'), "shout.toml").family == family
    assert len(FAMILIES) == 6


def test_a_card_cannot_be_changed_and_can_be_a_key() -> None:
    card = parse_card(GOOD, "shout.toml")
    with pytest.raises(AttributeError):
        card.year = 2025  # type: ignore[misc]
    assert card in {card}
    assert isinstance(card, Card)
