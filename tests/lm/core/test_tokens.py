"""Tokenizers of GGUF headers against the plain rule that they follow."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.errors import BadInput
from heliograph.lm.core.tokens import SPACE, gguf_tokenizer

pytest.importorskip("tokenizers")
HERE = Path("model.gguf")
JOINED = [SPACE + "a", "an", "na", "ana", "anan", "ban", SPACE + "b", "ab", "aa", "ba" + SPACE]
LETTERS = [SPACE, "a", "b", "n"]
PIECES = ["<unk>", "<bos>", "<eos>", *(f"<0x{n:02X}>" for n in range(256)), "\n\n", *LETTERS, *JOINED]
TYPES = [2, 3, 3, *[6] * 256, 4, *[1] * (len(LETTERS) + len(JOINED))]
SCORES = [0.0] * (len(PIECES) - len(JOINED)) + [-float(n) for n in range(len(JOINED))]
HEADER = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.scores": SCORES,
    "tokenizer.ggml.token_type": TYPES,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.add_space_prefix": False,
}


def plain(text: str) -> list[int]:
    """Joins the neighbours whose sum has the best score, the first of equals, until none can be joined."""
    number = {piece: n for n, piece in enumerate(PIECES)}
    found: list[int] = []
    for part in text.replace(" ", SPACE).split("\n\n"):
        pieces = list(part)
        while True:
            sums = [(-SCORES[number[a + b]], at) for at, (a, b) in enumerate(pairwise(pieces))
                    if a + b in number]  # fmt: skip
            if not sums:
                break
            _, at = min(sums)
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        for piece in pieces:
            found += [number[piece]] if piece in number else [number[f"<0x{byte:02X}>"] for byte in piece.encode()]
        found.append(number["\n\n"])
    return [1, *found[:-1]]


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="aabbnn ä\n", max_size=24))
def test_pieces_are_joined_by_the_best_score_and_come_back_as_the_text(text: str) -> None:
    tokenizer = gguf_tokenizer(HEADER, HERE)
    assert tokenizer.encode(text) == plain(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_begin_token_that_the_text_has_is_not_put_before_it_again() -> None:
    tokenizer = gguf_tokenizer(HEADER, HERE)
    assert tokenizer.encode("<bos>ab") == tokenizer.encode("ab")
    assert tokenizer.encode("<bos>ab", special=False) != tokenizer.encode("ab")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokenizer.ggml.scores": SCORES[1:]}, "one length"),
        ({"tokenizer.ggml.tokens": [*PIECES[:-1], "a"]}, "repeated"),
        ({"tokenizer.ggml.model": "rwkv"}, "not built"),
        ({"tokenizer.ggml.token_type": None}, "one length"),
    ],
)
def test_lists_that_do_not_fit_are_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        gguf_tokenizer(HEADER | change, HERE)
