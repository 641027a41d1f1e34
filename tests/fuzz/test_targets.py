"""Every target on its seeds, on parts of them, and on arbitrary bytes; ``make fuzz`` goes on from there by coverage."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS


def test_every_target_has_seeds() -> None:
    assert SEEDS.keys() == TARGETS.keys()


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_cut_or_changed_anywhere_end_as_promised(name: str) -> None:
    chance = random.Random(0)
    for seed in SEEDS[name]:
        TARGETS[name](seed)
        for _ in range(150):
            changed = bytearray(seed)
            for _ in range(chance.randrange(1, 4)):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            TARGETS[name](bytes(changed[: chance.randrange(1, len(changed) + 1)]))


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=200))
@settings(max_examples=40, deadline=None)
def test_arbitrary_bytes_end_as_promised(name: str, data: bytes) -> None:
    TARGETS[name](data)
