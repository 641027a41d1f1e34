"""Prompts of exact length that no server has seen before, or has, as the subject demands.

A benchmark that repeats its prompts measures the prefix cache. Here each request begins with tokens drawn from a salt,
so that even the first block differs; a shared prefix is asked for, never an accident.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from heliograph.errors import BadInput
from heliograph.random import CounterRng
from heliograph.serving.load.client import LoadRequest

__all__ = ["make_requests", "salted_text", "salted_tokens"]

WORDS = "north river stone light paper green water field house morning letter table winter garden glass".split()  # noqa: SIM905
SHARED = 2**32 - 1


def make_requests(
    count: int,
    *,
    prompt_tokens: int,
    output_tokens: int,
    salt: int,
    vocabulary: int = 0,
    form: Literal["tokens", "text"] = "tokens",
    shared_prefix_tokens: int = 0,
    tag: str = "",
) -> Iterator[LoadRequest]:
    """``count`` requests with prompts that differ from their first token on, unless a prefix is shared.

    Args:
        count: requests.
        prompt_tokens: length of each prompt; for text a number of words, and the server's usage gives the tokens.
        output_tokens: to generate.
        salt: another salt gives other prompts; runs that must not meet a warm cache take different ones.
        vocabulary: ids are drawn below it, above the first 256, where control tokens tend to lie.
        form: token ids, which have an exact length, or text, for chat and for servers that take no ids.
        shared_prefix_tokens: so many first tokens are the same for all of this salt: a warm cache on purpose.
        tag: comes back with the records.
    """
    if count < 0 or prompt_tokens < 1 or not 0 <= shared_prefix_tokens < prompt_tokens:
        raise BadInput(
            f"need prompts of one token or more and a shorter shared prefix; got {prompt_tokens} and "
            f"{shared_prefix_tokens}"
        )
    for item in range(count):
        if form == "text":
            prompt: str | tuple[int, ...] = salted_text(prompt_tokens, salt, item, shared_prefix_tokens)
        else:
            prompt = salted_tokens(prompt_tokens, salt, item, vocabulary, shared_prefix_tokens)
        yield LoadRequest(prompt, output_tokens, prompt_tokens if form == "tokens" else 0, tag=tag)


def salted_tokens(
    length: int, salt: int, item: int, vocabulary: int, shared: int = 0, family: int = 0
) -> tuple[int, ...]:
    """Token ids; the first ``shared`` are those of every item of this salt, and another family has other tokens.

    Raises:
        BadInput: a vocabulary too small to draw from.
    """
    low = 256 if vocabulary > 1024 else 3
    if vocabulary <= low + 1:
        raise BadInput(f"token-id prompts need the size of the vocabulary; got {vocabulary}")
    rng = CounterRng(salt)
    head = rng.at(item=SHARED).integers(low, vocabulary, shared)
    tail = rng.at(step=family, item=item).integers(low, vocabulary, length - shared)
    return tuple(int(token) for token in (*head, *tail))


def salted_text(length: int, salt: int, item: int, shared: int = 0) -> str:
    """Words; the first ``shared`` are those of every item of this salt, then a number of its own."""
    rng = CounterRng(salt)
    head = [WORDS[i] for i in rng.at(item=SHARED).integers(0, len(WORDS), shared)]
    tail = [WORDS[i] for i in rng.at(item=item).integers(0, len(WORDS), max(0, length - shared - 1))]
    return " ".join([*head, f"{salt}-{item}", *tail])
