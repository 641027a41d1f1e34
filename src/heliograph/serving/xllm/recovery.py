"""After an instance is lost: bring keys and values from another holder, or compute them again (arXiv:2510.14686).

The report says that a re-dispatch decides between the two; the comparison below is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from heliograph.errors import BadInput
from heliograph.serving.xllm.predictor import TimePredictor

__all__ = ["Recovery", "fetch_or_recompute"]


@dataclass(frozen=True)
class Recovery:
    """What to do with a request, and both times it was decided by.

    Attributes:
        how: the cheaper way.
        fetch_s, recompute_s: predicted; ``fetch_s`` includes computing what the holder does not have.
    """

    how: Literal["fetch", "recompute"]
    fetch_s: float
    recompute_s: float


def fetch_or_recompute(
    tokens: int,
    held_tokens: int,
    predictor: TimePredictor,
    *,
    kv_bytes_per_token: int,
    bytes_per_s: float,
    scatter_s: float = 0.0,
    local_tokens: int = 0,
) -> Recovery:
    """Fetch if bytes over bandwidth, scattering, and the rest of the prompt take less than the whole prompt.

    Args:
        tokens: of the request so far.
        held_tokens: of its beginning, at the best other holder.
        predictor: of the instance that takes it over.
        kv_bytes_per_token, bytes_per_s, scatter_s: of the transfer.
        local_tokens: of its beginning, in that instance's own prefix cache.

    Raises:
        BadInput: more held than there is, or a bandwidth that is not above 0.
    """
    if not 0 <= held_tokens <= tokens or not 0 <= local_tokens <= tokens:
        raise BadInput(f"holders have {held_tokens} and {local_tokens} of {tokens} tokens; at most all can be held")
    if not bytes_per_s > 0:
        raise BadInput(f"bytes_per_s is a bandwidth and above 0; got {bytes_per_s}")
    recompute = predictor.ttft_s(max(1, tokens - local_tokens))
    moved = max(0, held_tokens - local_tokens)
    rest = tokens - max(held_tokens, local_tokens)
    fetch = moved * kv_bytes_per_token / bytes_per_s + scatter_s + predictor.ttft_s(rest)
    return Recovery("fetch" if moved and fetch < recompute else "recompute", fetch, recompute)
