"""The messages of the OpenAI-compatible server: what clients send, checked, and what they get.

Field names and meanings are those of the public API for completions and chat completions. What this server cannot do is
refused, never ignored: a setting that changes the answer and is dropped silently is worse than an error.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from heliograph.errors import BadInput
from heliograph.lm.core.sampling import SamplingParams
from heliograph.lm.core.tokens import Tokenizer
from heliograph.serving.core.request import Sample

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "Generation",
    "chat_generations",
    "chat_logprobs",
    "completion_generations",
    "completion_logprobs",
    "error_body",
    "usage_body",
]

MAX_CHOICES = 128
MAX_LOGPROBS = 20


@dataclass(frozen=True)
class Generation:
    """One answer to be generated.

    Attributes:
        prompt: token numbers.
        params: how tokens are drawn.
        logprobs: alternatives reported with each token, or None; prompt_logprobs: whether for the prompt too.
        priority: 0 online, 1 offline.
        salt: of the prefix cache.
        choice: its index in the response.
        copy_of: index of the generation with the same prompt that goes first, or None.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    logprobs: int | None = None
    prompt_logprobs: bool = False
    priority: int = 0
    salt: str = ""
    choice: int = 0
    copy_of: int | None = None


class _Common(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str = ""
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    min_p: float = Field(0.0, ge=0, le=1)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    stop: str | list[str] | None = None
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0)
    seed: int | None = None
    ignore_eos: bool = False
    priority: Literal["online", "offline"] | int = "online"
    cache_salt: str = ""
    user: str | None = None

    def sampling(self, max_tokens: int, choice: int) -> SamplingParams:
        """Settings of one of the ``n`` choices; each draws its own numbers."""
        seed = secrets.randbits(63) if self.seed is None else (self.seed + choice) % 2**64
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > 16:
            raise BadInput(f"at most 16 stop texts; got {len(stops)}")
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_k=max(0, self.top_k),
            top_p=self.top_p,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            seed=seed,
            stop=tuple(stops),
            ignore_end=self.ignore_eos,
        )

    @property
    def urgency(self) -> int:
        """0 online, 1 offline."""
        if isinstance(self.priority, int):
            return self.priority
        return 1 if self.priority == "offline" else 0

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool((self.stream_options or {}).get("include_usage"))

    @property
    def wants_running_usage(self) -> bool:
        """Whether every chunk of a stream tells the numbers of tokens so far."""
        return bool((self.stream_options or {}).get("continuous_usage_stats"))

    def refuse(self, **unbuilt: Any) -> None:
        """Refuses settings that change the answer and are not built.

        Raises:
            BadInput: naming the setting.
        """
        extra = self.model_extra or {}
        for name, harmless in unbuilt.items():
            value = extra.get(name, harmless)
            if value is not None and value != harmless:
                raise BadInput(f"{name} is not built here; leave it out (got {str(value)[:60]})")


class CompletionRequest(_Common):
    """Body of ``/v1/completions``."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int = Field(16, ge=0)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)


class ChatMessage(BaseModel):
    """One message; content is a text, or parts of type "text"."""

    role: str
    content: str | list[dict[str, Any]] | None = None

    def text(self) -> str:
        """Of all parts.

        Raises:
            BadInput: a part that is no text.
        """
        if isinstance(self.content, list):
            for part in self.content:
                if part.get("type") != "text" or not isinstance(part.get("text"), str):
                    raise BadInput(f"only text can be read; a message has a part of type {part.get('type')!r}")
            return "".join(part["text"] for part in self.content)
        return self.content or ""


class ChatRequest(_Common):
    """Body of ``/v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=0)
    max_completion_tokens: int | None = Field(None, ge=0)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)


def completion_generations(body: CompletionRequest, tokenizer: Tokenizer, context: int) -> list[Generation]:
    """The answers that a completion asks for: ``n`` a prompt, in the order of their indices.

    Raises:
        BadInput: no prompt, an empty one, or a setting that is not built.
    """
    body.refuse(best_of=body.n, suffix="", logit_bias={}, response_format=None)
    found: list[Generation] = []
    for prompt in _prompts(body.prompt, tokenizer):
        _fits(prompt, context)
        first = len(found)
        for choice in range(body.n):
            # the prompt's log-probabilities come with the step that draws the first token
            drawn = max(1, body.max_tokens) if body.echo and body.logprobs is not None else body.max_tokens
            found.append(
                Generation(
                    prompt,
                    body.sampling(drawn, choice),
                    body.logprobs,
                    body.echo and body.logprobs is not None,
                    body.urgency,
                    body.cache_salt,
                    len(found),
                    first if choice else None,
                )
            )
    return found


def chat_generations(body: ChatRequest, tokenizer: Tokenizer, context: int) -> list[Generation]:
    """The ``n`` answers that a chat asks for.

    Raises:
        BadInput: messages that the template does not take, or a setting that is not built.
    """
    body.refuse(
        tools=[], functions=[], tool_choice="none", response_format={"type": "text"}, logit_bias={}, modalities=["text"]
    )
    text = tokenizer.chat([{"role": m.role, "content": m.text()} for m in body.messages])
    prompt = tuple(tokenizer.encode(text))
    _fits(prompt, context)
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    if body.top_logprobs is not None and not body.logprobs:
        raise BadInput("top_logprobs needs logprobs=true")
    alternatives = (body.top_logprobs or 0) if body.logprobs else None
    return [
        Generation(
            prompt,
            body.sampling(context - len(prompt) if limit is None else limit, choice),
            alternatives,
            False,
            body.urgency,
            body.cache_salt,
            choice,
            0 if choice else None,
        )
        for choice in range(body.n)
    ]


def completion_logprobs(samples: Sequence[Sample | int], tokenizer: Tokenizer, offset: int = 0) -> dict[str, list[Any]]:
    """The ``logprobs`` of a completion; a bare number stands for a token without one, as the first of a prompt."""
    texts = [tokenizer.decode([s if isinstance(s, int) else s.token], special=True) for s in samples]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [None if isinstance(s, int) else s.logprob for s in samples],
        "top_logprobs": [
            None if isinstance(s, int) else {tokenizer.decode([t], special=True): p for t, p in s.top} for s in samples
        ],
        "text_offset": offsets,
    }


def chat_logprobs(samples: Sequence[Sample], tokenizer: Tokenizer) -> dict[str, Any]:
    """The ``logprobs`` of a chat answer."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        text = tokenizer.decode([token], special=True)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    return {
        "content": [
            entry(s.token, s.logprob) | {"top_logprobs": [entry(token, logprob) for token, logprob in s.top]}
            for s in samples
        ],
        "refusal": None,
    }


def usage_body(prompt: int, generated: int, cached: int) -> dict[str, Any]:
    """Numbers of tokens, as clients count them."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def error_body(message: str, kind: str = "invalid_request_error", param: str | None = None) -> dict[str, Any]:
    """An error, as the official clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


def head_body(kind: str, model: str) -> dict[str, Any]:
    """What every response begins with."""
    prefix = "chatcmpl" if kind.startswith("chat") else "cmpl"
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}


def _prompts(prompt: Any, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    if isinstance(prompt, str):
        return [tuple(tokenizer.encode(prompt))]
    if not prompt:
        raise BadInput("prompt is an empty list")
    if isinstance(prompt[0], int):
        return [tuple(prompt)]
    return [tuple(tokenizer.encode(one)) if isinstance(one, str) else tuple(one) for one in prompt]


def _fits(prompt: Sequence[int], context: int) -> None:
    if not prompt:
        raise BadInput("the prompt is empty; a model needs at least one token to go on from")
    if len(prompt) >= context:
        raise BadInput(
            f"the prompt has {len(prompt)} tokens; this model's context is {context}, and the answer needs at least one"
        )


def describe_fault(error: Mapping[str, Any]) -> tuple[str, str]:
    """A validation error of the body, in words, and the field that it is about."""
    where = ".".join(str(part) for part in error.get("loc", ()) if part != "body")
    return f"{where or 'body'}: {error.get('msg', 'not valid')}", where
