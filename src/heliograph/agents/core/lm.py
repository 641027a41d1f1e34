"""Language models as agents use them: generate, score candidates, embed; local, remote, scripted, or a word table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from heliograph.errors import BadInput, HeliographError, MissingData, MissingExtra

if TYPE_CHECKING:
    from heliograph.lm.core.load import LanguageModel

__all__ = ["LM", "Generation", "LMError", "LocalGGUF", "Message", "OpenAICompatible", "Scripted", "StaticEmbedding"]

Message = Mapping[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``."""


class LMError(HeliographError):
    """A model did not answer, or cannot do what was asked of it."""

    exit_code = 1


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        text: of it.
        prompt_tokens, answer_tokens: how many; 0 where the model does not say.
        finish: "stop" or "length".
    """

    text: str
    prompt_tokens: int = 0
    answer_tokens: int = 0
    finish: str = "stop"


@runtime_checkable
class LM(Protocol):
    """What agents need of a model. A model that cannot do one of these raises :class:`LMError`."""

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Generation:
        """Goes on from a text, or answers a conversation."""
        ...

    def score(self, context: str, candidates: Sequence[str]) -> NDArray[np.float64]:
        """Mean log-probability a token of each candidate after the context, [len(candidates)]."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Unit vectors, [len(texts), dimensions]."""
        ...


def _unit(rows: NDArray[Any]) -> NDArray[np.float64]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1), dtype=np.float64)


class LocalGGUF:
    """A model file of this machine, through ``heliograph.lm``.

    Args:
        path: a GGUF file or a Hugging Face folder; SmolLM2-135M-Instruct by default.
        model: one that is loaded already, instead.

    Raises:
        MissingExtra: torch is not installed.
        MissingData: the default model is not installed.
    """

    def __init__(self, path: str | Path | None = None, *, model: LanguageModel | None = None) -> None:
        try:
            from heliograph.lm.core.load import load_model
        except ModuleNotFoundError as error:
            raise MissingExtra((error.name or "torch").split(".")[0], "lm") from error
        if model is None:
            if path is None:
                from heliograph.data.language_models import smollm2_file

                path = smollm2_file()
            model = load_model(path)
        self.model = model

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Generation:
        """Goes on from a text as it is, or answers a conversation in the model's chat template."""
        from heliograph.lm.core.generate import generate
        from heliograph.lm.core.sampling import SamplingParams

        tokenizer = self.model.tokenizer
        text = prompt if isinstance(prompt, str) else tokenizer.chat(list(prompt))
        tokens = tokenizer.encode(text)
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed, stop=tuple(stop))
        done = generate(self.model, [tokens], params)[0]
        return Generation(done.text, len(tokens), len(done.tokens), done.finish)

    def score(self, context: str, candidates: Sequence[str]) -> NDArray[np.float64]:
        """Mean log-probability a token of each candidate; the context's tokens do not count."""
        from heliograph.lm.core.generate import score_tokens

        tokenizer = self.model.tokenizer
        before = tokenizer.encode(context)
        if not before:
            raise BadInput("the context is empty; a candidate is scored after at least one token")
        means = []
        for candidate in candidates:
            after = tokenizer.encode(candidate, special=False)
            if not after:
                raise BadInput("an empty candidate has no probability a token")
            # Entry i is the log-probability of token i + 1.
            scores = score_tokens(self.model, [*before, *after])
            means.append(float(scores[-len(after) :].double().mean()))
        return np.asarray(means)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The mean of the input embeddings of a text's tokens; for meaning, :class:`StaticEmbedding` is better."""
        import torch

        rows = []
        with torch.no_grad():
            for text in texts:
                tokens = self.model.tokenizer.encode(text, special=False)
                if not tokens:
                    raise BadInput("an empty text has no embedding")
                rows.append(self.model.decoder.embed(torch.tensor([tokens]))[0].double().mean(0).numpy())
        return _unit(np.stack(rows))


class OpenAICompatible:
    """A server with the OpenAI interface: ``/chat/completions``, ``/completions``, ``/embeddings``.

    Args:
        url: up to and with ``/v1``.
        model: name there.
        api_key: sent as a bearer token, if given.
        embedding_model: name there; the same as ``model`` by default.
        timeout_s: for one answer.
        client: an ``httpx2.Client`` to send with, for tests or proxies.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str = "",
        embedding_model: str = "",
        timeout_s: float = 60.0,
        client: Any = None,
    ) -> None:
        try:
            import httpx2
        except ModuleNotFoundError as error:
            raise MissingExtra("httpx2", "agents") from error
        if not url.startswith(("http://", "https://")):
            raise BadInput(f"url begins with http:// or https://; got {url!r}")
        self._url, self.model, self._embedding_model = url.rstrip("/"), model, embedding_model or model
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = client or httpx2.Client(headers=headers, timeout=timeout_s)
        self._failure: type[Exception] = httpx2.HTTPError

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        try:
            answer = self._client.post(f"{self._url}/{path}", json=body)
        except self._failure as error:
            raise LMError(f"{self._url} did not answer: {error or type(error).__name__}") from None
        if answer.status_code != 200:
            raise LMError(f"{self._url}/{path} answered {answer.status_code}: {answer.text[:200]}")
        try:
            return answer.json()
        except ValueError:
            raise LMError(f"{self._url}/{path} did not answer with JSON") from None

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Generation:
        """Asks ``/completions`` for a text, ``/chat/completions`` for a conversation."""
        body: dict[str, Any] = {"model": self.model, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        if stop:
            body["stop"] = list(stop)
        chat = not isinstance(prompt, str)
        body |= {"messages": [{**m} for m in prompt if not isinstance(m, str)]} if chat else {"prompt": prompt}
        answer = self._post("chat/completions" if chat else "completions", body)
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] if chat else choice["text"]
            usage = answer.get("usage") or {}
            return Generation(
                str(text or ""),
                int(usage.get("prompt_tokens", 0)),
                int(usage.get("completion_tokens", 0)),
                "length" if choice.get("finish_reason") == "length" else "stop",
            )
        except (KeyError, IndexError, TypeError) as error:
            raise LMError(f"{self._url} answered in another form than the OpenAI interface ({error!r})") from None

    def score(self, context: str, candidates: Sequence[str]) -> NDArray[np.float64]:
        """Through ``/completions`` with ``echo`` and ``logprobs``, which not every server has."""
        means = []
        for candidate in candidates:
            body = {"model": self.model, "prompt": context + candidate, "max_tokens": 0, "echo": True, "logprobs": 0}
            answer = self._post("completions", {**body, "temperature": 0})
            try:
                found = answer["choices"][0]["logprobs"]
                pairs = zip(found["text_offset"], found["token_logprobs"], strict=True)
                scores = [float(score) for place, score in pairs if place >= len(context) and score is not None]
            except (KeyError, IndexError, TypeError, ValueError):
                raise LMError(f"{self._url} gives no log-probabilities of a prompt; score with LocalGGUF") from None
            if not scores:
                raise BadInput("an empty candidate has no probability a token")
            means.append(math.fsum(scores) / len(scores))
        return np.asarray(means)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Through ``/embeddings``."""
        answer = self._post("embeddings", {"model": self._embedding_model, "input": list(texts)})
        try:
            rows = sorted(answer["data"], key=lambda row: row["index"])
            return _unit(np.asarray([row["embedding"] for row in rows], dtype=np.float64))
        except (KeyError, TypeError, ValueError) as error:
            raise LMError(f"{self._url} answered in another form than the OpenAI interface ({error!r})") from None


class Scripted:
    """A model whose answers are given beforehand; for tests and for simulations whose model is a rule.

    Args:
        answers: taken one after the other, or a rule from prompt to answer.
        score: rule from context and candidate to a number; absent, :meth:`score` raises.
        embed: rule from text to vector; absent, :meth:`embed` raises.

    Attributes:
        prompts: all that were given to :meth:`generate`, in order.
    """

    def __init__(
        self,
        answers: Iterable[str] | Callable[[str], str] = (),
        *,
        score: Callable[[str, str], float] | None = None,
        embed: Callable[[str], Sequence[float]] | None = None,
    ) -> None:
        self._rule = answers if callable(answers) else None
        self._answers = None if callable(answers) else iter(answers)
        self._score, self._embed = score, embed
        self.prompts: list[str] = []

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,  # noqa: ARG002 - the interface
        seed: int = 0,  # noqa: ARG002
        stop: Sequence[str] = (),
    ) -> Generation:
        """The next answer, cut at a stop text; tokens are words."""
        text = prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
        self.prompts.append(text)
        if self._rule is not None:
            answer = self._rule(text)
        else:
            assert self._answers is not None
            try:
                answer = next(self._answers)
            except StopIteration:
                raise LMError(f"the script has no answer number {len(self.prompts)}") from None
        for end in stop:
            answer = answer.split(end)[0]
        words = answer.split()
        if len(words) > max_tokens:
            return Generation(" ".join(words[:max_tokens]), len(text.split()), max_tokens, "length")
        return Generation(answer, len(text.split()), len(words))

    def score(self, context: str, candidates: Sequence[str]) -> NDArray[np.float64]:
        """By the rule."""
        if self._score is None:
            raise LMError("this script has no rule for scores; give score=")
        return np.asarray([self._score(context, candidate) for candidate in candidates], dtype=np.float64)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """By the rule."""
        if self._embed is None:
            raise LMError("this script has no rule for embeddings; give embed=")
        return _unit(np.asarray([self._embed(text) for text in texts], dtype=np.float64))


class StaticEmbedding:
    """A table of word vectors, averaged over a text; needs no model run. It embeds only.

    Args:
        dimensions: 64, 128 or 256: the table of the ``wordllama`` package, cut (Matryoshka).

    Raises:
        MissingData: ``wordllama`` is not installed.
    """

    def __init__(self, dimensions: int = 256) -> None:
        try:
            import wordllama
        except ModuleNotFoundError:
            raise MissingData("wordllama", "pip install wordllama") from None
        if dimensions not in (64, 128, 256):
            raise BadInput(f"dimensions is 64, 128 or 256; got {dimensions}")
        # The wheel carries the tokenizer in a folder in which the loader looks only as a cache.
        home = Path(wordllama.__file__).parent
        self._table = wordllama.WordLlama.load(trunc_dim=dimensions, cache_dir=home, disable_download=True)
        self.dimensions = dimensions

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Unit vectors, [len(texts), dimensions]."""
        if not texts:
            return np.zeros((0, self.dimensions))
        if not all(text.strip() for text in texts):
            raise BadInput("an empty text has no embedding")
        return _unit(np.asarray(self._table.embed(list(texts))))

    def generate(self, prompt: str | Sequence[Message], **_: Any) -> Generation:  # noqa: ARG002 - the interface
        """A table writes nothing."""
        raise LMError("StaticEmbedding embeds only; generate with LocalGGUF or OpenAICompatible")

    def score(self, context: str, candidates: Sequence[str]) -> NDArray[np.float64]:  # noqa: ARG002
        """A table gives no probabilities."""
        raise LMError("StaticEmbedding embeds only; score with LocalGGUF")
