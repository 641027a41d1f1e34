"""What is known of one request after it ended: its times, its tokens, and how it failed if it did.

Definitions, used everywhere: the time to the first token (TTFT) runs from the *intended* sending time to the first
chunk that carries text, so a chunk that only names a role does not count and waiting in the client does. Inter-token
latencies (ITL) are gaps between tokens; a chunk of k tokens gives one gap and k - 1 zeros. The time per output token
(TPOT) is the time from the first to the last token over their number less one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Failure", "RequestRecord"]

Failure = Literal["", "refused", "http", "connection", "timeout", "truncated", "protocol", "wrong_length"]
"""Empty for success. ``refused``: a 429 or 503 that says when to come back; ``http``: any other status of 400 or more;
``connection``: none, or broken; ``timeout``; ``truncated``: the stream ended without a finish reason or its end mark;
``protocol``: no valid events, or an error among them; ``wrong_length``: complete, but not the tokens asked for."""


@dataclass(frozen=True)
class RequestRecord:
    """One request, from intention to end; times in seconds on the client's clock.

    Attributes:
        intended_s: when it should have been sent; sent_s: when it was; first_s: first text; end_s: last byte.
        prompt_tokens, output_tokens: as the server counts them (its ``usage``), else as counted here, else 0.
        asked_tokens: output tokens that were asked for.
        chunk_times_s, chunk_tokens: when each chunk with text came and how many tokens it holds; tokens are all 1 where
            the server does not say, and ``tokens_known`` is then False unless their sum fits the usage.
        finish: the finish reason that the server gave.
        failure: kind of failure, "" for success; error: the server's or the network's words.
        status: HTTP status, 0 without an answer. retry_after_s: what a refusal promised.
        cached_tokens: prompt tokens that the server took from its prefix cache, -1 where it does not say.
        image_tokens: of the prompt, -1 where the server does not say. tag: what the caller attached.
    """

    intended_s: float
    sent_s: float
    end_s: float
    first_s: float | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    asked_tokens: int = 0
    chunk_times_s: tuple[float, ...] = ()
    chunk_tokens: tuple[int, ...] = ()
    tokens_known: bool = False
    finish: str = ""
    failure: Failure = ""
    error: str = ""
    status: int = 0
    retry_after_s: float | None = None
    cached_tokens: int = -1
    image_tokens: int = -1
    tag: str = ""

    @property
    def ok(self) -> bool:
        """Whether it succeeded in every respect."""
        return not self.failure

    @property
    def handled(self) -> bool:
        """Success, or an honest refusal that says when to come back."""
        return self.ok or (self.failure == "refused" and self.retry_after_s is not None)

    @property
    def ttft_s(self) -> float | None:
        """Seconds from the intended sending to the first text; None where none came."""
        return None if self.first_s is None else self.first_s - self.intended_s

    @property
    def latency_s(self) -> float:
        """Seconds from the intended sending to the end."""
        return self.end_s - self.intended_s

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds a token after the first; None below two tokens."""
        if self.first_s is None or self.output_tokens < 2 or not self.chunk_times_s:
            return None
        rest = self.output_tokens - (self.chunk_tokens[0] if self.tokens_known else 1)
        return (self.chunk_times_s[-1] - self.first_s) / rest if rest > 0 else None

    def itl_s(self) -> tuple[float, ...]:
        """Gaps between tokens, in order; empty where the tokens of chunks are not known."""
        if not self.tokens_known:
            return ()
        gaps: list[float] = []
        for index, (when, count) in enumerate(zip(self.chunk_times_s, self.chunk_tokens, strict=True)):
            if index and count:
                gaps.append(when - self.chunk_times_s[index - 1])
            gaps.extend([0.0] * (count - 1))
        return tuple(gaps)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)
