"""Text to tokens and back, by the library ``tokenizers``; chat messages by the model's own template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from heliograph.errors import BadInput, MissingExtra

__all__ = ["StopText", "TextStream", "Tokenizer", "gguf_tokenizer", "hugging_face_tokenizer", "train_tokenizer"]

CONTROL, USER_DEFINED, BYTE = 3, 4, 6  # token types of GGUF
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # that SentencePiece writes for a blank
# how a pre-tokenizer of that name cuts text before pairs are merged
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    "smollm": r"\p{N}",
    "llama-bpe": _WORDS + r"\p{N}{1,3}" + _REST,
    "qwen2": _WORDS + r"\p{N}" + _REST,
}


class Tokenizer:
    """A byte-level tokenizer.

    Attributes:
        size: tokens known.
        end_tokens: those that end an answer.
        begin_token: put before a text, or None.
        template: Jinja template of chats, or "".
    """

    def __init__(
        self, inner: Any, end_tokens: Sequence[int], begin_token: int | None = None, template: str = ""
    ) -> None:
        self._inner = inner
        self.size: int = inner.get_vocab_size(with_added_tokens=True)
        self.end_tokens, self.begin_token, self.template = tuple(end_tokens), begin_token, template

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Tokens of a text. With ``special=False`` the text of a special token is ordinary text, as for user input."""
        if special:
            found: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        else:
            self._inner.encode_special_tokens = True
            try:
                found = self._inner.encode(text, add_special_tokens=False).ids
            finally:
                self._inner.encode_special_tokens = False
        if self.begin_token is None or found[:1] == [self.begin_token]:  # chat templates may write it themselves
            return found
        return [self.begin_token, *found]

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Text of tokens; special ones are left out unless asked for."""
        text: str = self._inner.decode(list(tokens), skip_special_tokens=not special)
        return text

    def chat(self, messages: Sequence[Mapping[str, str]], *, answer: bool = True) -> str:
        """Messages ``{"role", "content"}`` as the model's template writes them, ready for its answer.

        Raises:
            BadInput: the model has no template, or messages that it does not take.
        """
        if not self.template:
            raise BadInput("this model has no chat template; give a prompt instead of messages")
        import jinja2
        import jinja2.sandbox

        def refuse(reason: str) -> None:
            raise jinja2.TemplateError(reason)

        room = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        room.globals["raise_exception"] = refuse
        special = {
            "bos_token": self.text_of(self.begin_token),
            "eos_token": self.text_of(next(iter(self.end_tokens), None)),
        }
        try:
            return room.from_string(self.template).render(
                messages=list(messages), add_generation_prompt=answer, **special
            )
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise BadInput(f"the chat template does not take these messages: {error}") from None

    def save(self, folder: Path) -> None:
        """Writes ``tokenizer.json`` and what stands beside it, as :func:`hugging_face_tokenizer` reads them."""
        self._inner.save(str(folder / "tokenizer.json"))
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        if self.end_tokens:
            settings["eos_token"] = self.text_of(self.end_tokens[0])
            ends = json.dumps({"eos_token_id": list(self.end_tokens)})
            (folder / "generation_config.json").write_text(ends + "\n", encoding="utf-8")
        if self.begin_token is not None:
            settings |= {"bos_token": self.text_of(self.begin_token), "add_bos_token": True}
        if self.template:
            settings["chat_template"] = self.template
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def text_of(self, token: int | None) -> str:
        """A token as it stands in the vocabulary; "" for None."""
        return "" if token is None else str(self._inner.id_to_token(token) or "")


class TextStream:
    """Text of tokens as they come, cut so that no half of a character is ever shown."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._shown = ""
        self._start = 0

    def push(self, token: int) -> str:
        """The new text, "" while a character is incomplete."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens[self._start :])
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        new, self._shown = text[len(self._shown) :], text
        if len(self._tokens) - self._start > 64 and not self._shown.endswith(" "):
            # decode from a recent token on, so that a long answer does not cost the square of its length
            self._start = len(self._tokens) - 8
            self._shown = self._tokenizer.decode(self._tokens[self._start :])
        return new

    def finish(self) -> str:
        """What is left, with a replacement character where a character never became whole."""
        text = self._tokenizer.decode(self._tokens[self._start :])
        return text[len(self._shown) :]

    def all(self, tokens: Sequence[int]) -> Iterator[str]:
        """The texts of several tokens, and what is left."""
        for token in tokens:
            yield self.push(token)
        yield self.finish()


class StopText:
    """Text as it grows, cut before the first stop text; what may become a stop text is held back until that is known.

    Args:
        stops: texts that end the answer.

    Attributes:
        text: all of it so far, the part held back included.
        stopped: whether a stop text was found; nothing is taken afterwards.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops, self._shown = tuple(stops), 0
        self.text, self.stopped = "", False

    def push(self, new: str, *, last: bool = False) -> str:
        """Adds text; gives what can be shown now. With ``last`` nothing is held back any more."""
        if self.stopped:
            return ""
        searched = max(0, len(self.text) - max(map(len, self._stops), default=0))
        self.text += new
        found = [place for stop in self._stops if (place := self.text.find(stop, searched)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
        end = len(self.text) if last or self.stopped else len(self.text) - self._held()
        shown, self._shown = self.text[self._shown : end], max(end, self._shown)
        return shown

    def _held(self) -> int:
        """Length of the longest end of the text that begins a stop text."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-length:]) for stop in self._stops):
                return length
        return 0


def train_tokenizer(texts: Iterable[str], vocabulary: int = 4096, *, end: str = "<|end|>") -> Tokenizer:
    """A byte-level tokenizer of pairs, learned from texts; every text can be written in it.

    Args:
        texts: to learn from.
        vocabulary: tokens in all, 257 at least: the bytes and ``end``.
        end: what ends a document.

    Raises:
        BadInput: too small a vocabulary.
    """
    library = _library()
    if vocabulary < 257:
        raise BadInput(f"256 bytes and an end token take a vocabulary of 257; got {vocabulary}")
    inner = library.Tokenizer(library.models.BPE())
    inner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[end],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return Tokenizer(inner, [inner.token_to_id(end)])


class NumberTokenizer(Tokenizer):
    """Texts in which tokens stand as numbers, for models without a vocabulary; other words are their bytes.

    >>> numbers = NumberTokenizer(1000)
    >>> numbers.encode("12 7 hi"), numbers.decode([12, 7])
    ([12, 7, 104, 105], ' 12 7')

    Args:
        size: tokens known.
    """

    def __init__(self, size: int) -> None:
        self.size, self.end_tokens, self.begin_token, self.template = size, (), None, ""

    def encode(self, text: str, *, special: bool = True) -> list[int]:  # noqa: ARG002
        """Tokens of a text."""
        found: list[int] = []
        for word in text.split():
            number = int(word) if word.isascii() and word.isdigit() and len(word) < 10 else self.size
            found += [number] if number < self.size else [byte % self.size for byte in word.encode()]
        return found

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> str:  # noqa: ARG002
        """Numbers, each after a space."""
        return "".join(f" {token}" for token in tokens)

    def text_of(self, token: int | None) -> str:
        """The number, or "" for None."""
        return "" if token is None else str(token)


def gguf_tokenizer(metadata: Mapping[str, Any], path: Path) -> Tokenizer:
    """From a GGUF header with byte-level pairs (``gpt2``) or pieces with scores (``llama``, as Gemma has).

    Raises:
        BadInput: another kind, a field that is missing, or lists that do not fit.
    """
    library = _library()
    kind = metadata.get("tokenizer.ggml.model")
    words, merges = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.merges")
    types = metadata.get("tokenizer.ggml.token_type") or []
    if kind == "llama":
        return _finish(metadata, _pieces(library, metadata, path))
    if kind != "gpt2" or not isinstance(words, list) or not isinstance(merges, list):
        raise BadInput(
            f"{path}: the tokenizer {kind!r} is not built; byte-level pairs ('gpt2') and pieces ('llama') are"
        )
    split = SPLITS.get(str(metadata.get("tokenizer.ggml.pre")))
    if split is None:
        raise BadInput(f"{path}: the pre-tokenizer {metadata.get('tokenizer.ggml.pre')!r} is not known")
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    if len(set(words)) != len(words) or any(len(pair) != 2 for pair in pairs):
        raise BadInput(f"{path}: the tokenizer has repeated words or merges that are no pairs")
    try:
        inner = library.Tokenizer(library.models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=pairs))
    except Exception as error:
        raise BadInput(f"{path}: the tokenizer's lists do not fit each other: {error}") from None
    parts = library.pre_tokenizers
    pattern = library.Regex(split)
    whole = metadata["tokenizer.ggml.pre"] == "smollm"
    inner.pre_tokenizer = parts.Sequence(
        [
            parts.Split(pattern, behavior="isolated"),
            parts.ByteLevel(add_prefix_space=False, use_regex=whole),
        ]
    )
    inner.decoder = library.decoders.ByteLevel()
    special = [word for word, kind in zip(words, types, strict=False) if kind in (CONTROL, USER_DEFINED)]
    inner.add_special_tokens([library.AddedToken(word, special=True, normalized=False) for word in special])
    return _finish(metadata, inner)


def _pieces(library: Any, metadata: Mapping[str, Any], path: Path) -> Any:
    """Pieces of text with scores: neighbours are joined as long as their sum is a piece, the best score first."""
    words, scores = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.scores")
    types = metadata.get("tokenizer.ggml.token_type")
    lists = (words, scores, types)
    if not all(isinstance(part, list) for part in lists) or len({len(part or ()) for part in lists}) != 1:
        raise BadInput(f"{path}: the tokenizer's tokens, scores and types are not lists of one length")
    assert words is not None
    assert scores is not None
    assert types is not None
    vocabulary = {word: number for number, word in enumerate(words)}
    if len(vocabulary) != len(words):
        raise BadInput(f"{path}: the tokenizer has repeated words")
    plain = {word for word, kind in zip(words, types, strict=True) if kind not in (CONTROL, BYTE)}
    joins = [
        (-score, number, word[:cut], word[cut:])
        for number, (word, score) in enumerate(zip(words, scores, strict=True))
        if word in plain
        for cut in range(1, len(word))
        if word[:cut] in plain and word[cut:] in plain
    ]
    joins.sort()
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    try:
        inner = library.Tokenizer(
            library.models.BPE(
                vocab=vocabulary,
                merges=[(left, right) for _, _, left, right in joins],
                unk_token=None if unknown is None else words[int(unknown)],
                fuse_unk=True,
                byte_fallback=True,
            )
        )
    except Exception as error:
        raise BadInput(f"{path}: the tokenizer's lists do not fit each other: {error}") from None
    normalizers, decoders = library.normalizers, library.decoders
    ahead = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    blanks = normalizers.Replace(" ", SPACE)
    inner.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), blanks]) if ahead else blanks
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if ahead else steps)
    inner.add_special_tokens(
        [
            library.AddedToken(word, special=True, normalized=False)
            for word, kind in zip(words, types, strict=True)
            if kind == CONTROL
        ]
    )
    inner.add_tokens(
        [
            library.AddedToken(word, special=False, normalized=False)
            for word, kind in zip(words, types, strict=True)
            if kind == USER_DEFINED and SPACE not in word
        ]
    )
    return inner


def _finish(metadata: Mapping[str, Any], inner: Any) -> Tokenizer:
    """With the tokens that begin and end texts, and the template of chats."""
    end = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    begin = metadata.get("tokenizer.ggml.bos_token_id") if metadata.get("tokenizer.ggml.add_bos_token") else None
    return Tokenizer(
        inner,
        [int(token) for token in end if token is not None],
        None if begin is None else int(begin),
        str(metadata.get("tokenizer.chat_template", "")),
    )


def hugging_face_tokenizer(path: Path) -> Tokenizer:
    """From ``tokenizer.json`` of a folder, with ``tokenizer_config.json`` beside it.

    Raises:
        BadInput: unreadable.
    """
    library = _library()
    try:
        inner = library.Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # the library raises Exception itself
        raise BadInput(f"{path} has no readable tokenizer.json: {error}") from None
    settings: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "generation_config.json"):
        try:
            settings |= json.loads((path / name).read_text(encoding="utf-8"))
        except OSError:
            continue
        except ValueError as error:
            raise BadInput(f"{path / name} is no JSON: {error}") from None
    ends = settings.get("eos_token_id")
    end = [ends] if isinstance(ends, int) else list(ends or [])
    if not end and (word := _word(settings.get("eos_token"))) is not None:
        end = [inner.token_to_id(word)]
    begin = _word(settings.get("bos_token")) if settings.get("add_bos_token") else None
    template = settings.get("chat_template", "")
    if (path / "chat_template.jinja").is_file():
        template = (path / "chat_template.jinja").read_text(encoding="utf-8")
    return Tokenizer(
        inner,
        [token for token in end if token is not None],
        None if begin is None else inner.token_to_id(begin),
        template if isinstance(template, str) else "",
    )


def _word(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.normalizers
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise MissingExtra("tokenizers", "lm") from error
    return tokenizers
